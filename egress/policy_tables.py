"""The compiled policy as bytes, and the tables that are read from it, a chunk at a time.

Not marshal: five bytes of that can ask for gigabytes. A blob is `MAGIC` and chunks, each of them a letter, its length
(4 bytes, little-endian) and that much content. Names come sorted, so that a table of 100,000 is a row of smaller
dictionaries: one that grows is copied as a whole, which would hold up connections.

A *reference* stands for a rule at a line: the number of the rule among those that differ in more than their host and
line, and the line, in one integer. Hosts are the keys.
"""

from __future__ import annotations

import _socket

from osmoda.egress.verdicts import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    type References = int | list[int]

MAGIC = b"osmoda policy 1\n"
MOST_BYTES = 64 << 20
LINE_BITS = 24
LINE = (1 << LINE_BITS) - 1
CHUNK = {b"H": 1, b"F": 1024, b"R": 256, b"P": 256, b"N": 2048, b"W": 2048, b"A": 512, b"E": 8192}
"""Kinds, in their order, and the most entries in a chunk of each: what is read in about a millisecond.

H: the header, F: files that rules come from, R: rules, P: peers, N: names, W: what stands behind the `*.` of a
wildcard, A: networks, E: rules for every name.
"""
END = b"Z"

_MOST_IN_PART = 80_000  # a dictionary that outgrows its space is copied in one go
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789-_.\n"


class Rule(Terms):
    """The terms that entries share, and what it takes to look them up.

    `at` holds the ports, None for every port; `asks` tells whether it is one of `inspected` terms; `file` is the file
    that its entries stand in.
    """

    __slots__ = ("asks", "at", "deny", "file")

    def __init__(self, line: str, files: list[str]) -> None:
        deny, ports, methods, paths, secret, max_body, max_bytes, max_requests, ech, addresses, file = line.split("\t")
        numbers = tuple([int(port) for port in ports.split(",")])
        if deny not in ("0", "1") or ech not in ("0", "1") or max(numbers) > 65535 or min(numbers) < 0:
            raise ValueError("the compiled policy has a rule that no profile has")
        limits = int(max_body), int(max_bytes), int(max_requests)
        super().__init__(numbers, _words(methods), _words(paths), secret, *limits, ech == "1", _words(addresses))
        self.at = None if 0 in numbers else frozenset(numbers)
        self.deny = deny == "1"
        self.file = files[int(file)]
        self.asks = self.inspected

    def origin(self, reference: int) -> str:
        """`file:line` of an entry; the file alone for what nobody wrote ("tier 2")."""
        line = reference & LINE
        return f"{self.file}:{line}" if line else self.file


class Names:
    """Names and their references, in parts that follow one another in order."""

    __slots__ = ("_last", "_part", "_parts")

    def __init__(self) -> None:
        self._part: dict[str, References] = {}
        self._parts: list[tuple[str, Callable[[str], References | None]]] = [("", self._part.get)]  # the last one first
        self._last = ""

    def get(self, name: str) -> References | None:
        """The references of exactly this name."""
        for first, look_up in self._parts:
            if name >= first:
                return look_up(name)
        return None

    def lookup(self) -> Callable[[str], References | None]:
        """`get` as it is fastest, once all names are there."""
        return self._part.get if len(self._parts) == 1 else self.get

    def extend(self, names: list[str], references: list[int]) -> None:
        """More of them, in order. Raises ValueError."""
        if names[0] < self._last or min(names) != names[0] or max(names) != names[-1]:
            raise ValueError("the compiled policy has names that are out of order")
        if len(self._part) > _MOST_IN_PART and names[0] != self._last:
            self._part = {}
            self._parts.insert(0, (names[0], self._part.get))
        added: dict[str, References] = dict(zip(names, references, strict=True))
        if len(added) == len(names) and names[0] != self._last:
            self._part.update(added)
        else:
            for name, reference in zip(names, references, strict=True):
                _add(self._part, name, reference)
        self._last = names[-1]


def _add(table: dict[str, References], key: str, reference: int) -> None:
    held = table.get(key)
    if held is None:
        table[key] = reference
    elif isinstance(held, int):
        table[key] = [held, reference]
    else:
        held.append(reference)


class Tables:
    """All that a policy knows, as it is looked up."""

    __slots__ = (
        "ask", "ask_origin", "deepest", "default_origin", "digest", "every", "files", "local_ports", "names",
        "networks", "peers", "rules", "secrets", "serve", "wildcards",
    )  # fmt: skip

    def __init__(self) -> None:
        self.digest = self.ask_origin = self.default_origin = ""
        self.ask = False
        self.serve: tuple[int, ...] = ()
        self.secrets: tuple[str, ...] = ()
        self.files: list[str] = []
        self.rules: list[Rule] = []
        self.peers: dict[str, dict[int, tuple[str, str, str]]] = {}  # name, port: target, origin, origin of a denial
        self.local_ports: dict[
            int, tuple[str, int, str, str, str]
        ] = {}  # a port of localhost: name, port, and as above
        self.names = Names()
        self.wildcards = Names()
        self.deepest = 0  # the most labels that stand behind a star
        self.every: list[int] = []
        # Length of an address in bytes: bits behind the prefix: prefix: the network in words, and references.
        self.networks: dict[int, dict[int, dict[int, tuple[str, list[int]]]]] = {4: {}, 16: {}}


class Reader:
    """Reads a blob. Each `step` reads one chunk."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) > MOST_BYTES or not blob.startswith(MAGIC):
            raise ValueError("it is not a compiled policy of this version")
        self._blob = memoryview(blob)
        self._at = len(MAGIC)
        self._tables = Tables()
        self._kinds = iter(CHUNK)
        self._kind = b""

    def step(self) -> Tables | None:
        """The tables, once all is read. Raises ValueError for what was not written by `policy_source`."""
        head = self._blob[self._at : self._at + 5]
        kind, size = bytes(head[:1]), int.from_bytes(head[1:], "little")
        start = self._at + 5
        self._at = start + size
        if len(head) < 5 or self._at > len(self._blob):
            raise ValueError("the compiled policy is cut off")
        if kind == END and not size and self._at == len(self._blob) and self._tables.digest:
            for size, lengths in self._tables.networks.items():
                self._tables.networks[size] = dict(sorted(lengths.items()))  # the narrowest first
            return self._tables
        while kind != self._kind or kind == b"H":
            following = next(self._kinds, b"")
            if not following:
                raise ValueError("the compiled policy has parts that are out of order")
            self._kind = following
            if kind == following:
                break
        try:
            self._read(kind, self._blob[start : self._at])
        except (IndexError, TypeError, OverflowError, OSError) as error:
            raise ValueError(f"the compiled policy cannot be read: {error}") from None
        return None

    def _read(self, kind: bytes, content: memoryview) -> None:
        tables = self._tables
        if kind in (b"H", b"F", b"R", b"P"):
            lines = bytes(content).decode("utf-8", "surrogateescape").split("\n")
            _check_count(kind, len(lines))
            if kind == b"H":
                self._header(lines[0].split("\t"))
            elif kind == b"F":
                tables.files += [_unescaped(line) for line in lines]
            elif kind == b"R":
                tables.rules += [Rule(line, tables.files) for line in lines]
            else:
                for line in lines:
                    self._peer([_unescaped(field) for field in line.split("\t")])
            return
        count = int.from_bytes(content[:4], "little")
        _check_count(kind, count)
        references = content[4 : 4 + 8 * count].cast("Q").tolist()
        if len(references) != count or max(references) >> LINE_BITS >= len(tables.rules):
            raise ValueError("the compiled policy has entries without a rule")
        keys = bytes(content[4 + 8 * count :])
        if kind == b"E":
            tables.every += references
        elif kind == b"A":
            for network, reference in zip(keys.decode("ascii").split("\n"), references, strict=True):
                self._network(network, reference)
        else:
            names = keys.decode("ascii").split("\n")
            if keys.translate(None, _NAME_BYTES) or len(names) != count:
                raise ValueError("the compiled policy has names that are no host names")
            if kind == b"N":
                tables.names.extend(names, references)
            else:
                tables.wildcards.extend(names, references)
                tables.deepest = max(tables.deepest, *[name.count(".") + 1 for name in names])

    def _header(self, fields: list[str]) -> None:
        tables = self._tables
        digest, ask, ask_origin, default_origin, serve, secrets = fields
        if len(digest) != 64 or ask not in ("0", "1"):
            raise ValueError("the compiled policy's head is not one")
        tables.digest = digest
        tables.ask = ask == "1"
        tables.ask_origin, tables.default_origin = _unescaped(ask_origin), _unescaped(default_origin)
        tables.serve = tuple([_port(port) for port in _words(serve)])
        tables.secrets = _words(secrets)

    def _peer(self, fields: list[str]) -> None:
        name, port, target, origin, denial, local = fields
        if local:
            self._tables.local_ports[_port(local)] = (name, _port(port), target, origin, denial)
        else:
            self._tables.peers.setdefault(name, {})[_port(port)] = (target, origin, denial)

    def _network(self, text: str, reference: int) -> None:
        address, _, bits = text.partition("/")
        packed = _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)
        shift = len(packed) * 8 - int(bits)
        number = int.from_bytes(packed)
        if not 0 <= shift <= len(packed) * 8 or number >> shift << shift != number:
            raise ValueError("the compiled policy has networks that are none")
        lengths = self._tables.networks[len(packed)]
        lengths.setdefault(shift, {}).setdefault(number >> shift, (text, []))[1].append(reference)


def _check_count(kind: bytes, count: int) -> None:
    if not 0 < count <= CHUNK[kind]:
        raise ValueError("the compiled policy has a part of an unusual size")


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError("the compiled policy has a port that is none")
    return port


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(" ")) if text else ()


def escaped(text: str) -> str:
    """Any text as a field: without tabs, ends of lines, or a `%` that is not ours."""
    return text.replace("%", "%25").replace("\t", "%09").replace("\n", "%0A")


def _unescaped(text: str) -> str:
    return text.replace("%0A", "\n").replace("%09", "\t").replace("%25", "%") if "%" in text else text
