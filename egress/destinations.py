"""Where a connection may go: host names, networks, ports, and the rules made of them.

Names are canonical before anything compares them (lower case, ASCII as in RFC 5890, no dot at the end), and what only
some resolvers would read as an address (`127.1`, `2130706433`) is refused: two programs must never disagree about a
rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Network, IPv6Network

ANY_PORT = 0
"""Stands for every port; only tier files and tier 0 hold it."""

ANY_SECRET = "*"  # noqa: S105
"""Stands for every secret; only tier files hold it."""

EVERY_NAME = "*"
EVERY_DOMAIN = "*.*"
"""Every name of two or more labels, but not as a rule `*`: the most that tier 2 may list."""

DEFAULT_PORTS = (443,)

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_PLAIN = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+([a-z]{2,63})\Z")
_NUMERIC = re.compile(r"[0-9]+\Z|0x[0-9a-f]*\Z")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]*\Z")
_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OURS = ("agent", "osmoda", "mesh")
_SIZE = re.compile(r"([0-9]+)([KMGT]?)\Z")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_MOST_BYTES = (1 << 63) - 1
_AGENT = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_PEER = re.compile(
    rf"(?:localhost:(?P<local>[^:=]*)=(?=agent:))?"
    rf"(?:agent:(?P<agent>{_AGENT}|\*)|mesh:(?P<server>{_AGENT}|\*)/(?P<remote>{_AGENT}|\*)|host):(?P<port>[^:]*)\Z"
)
_INSIDE = ("127.0.0.0/8", "::1/128", "198.18.0.0/15", "2001:2::/48")
"""Loopback addresses, and those that stand for names: in a sandbox they never mean a host outside."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A destination that may be reached (or, in `deny`, may not).

    `host` is canonical: a name, `*.name`, `*`, or a network such as `10.0.0.0/8`. `ports` is sorted and never empty;
    `(ANY_PORT,)` means every port. Empty `methods` and `paths` mean all of them; in `paths` a `*` stands for any text,
    also across `/`. `max_body` is in bytes, None for no limit.

    `max_bytes` (both directions together) and `max_requests` (connections, or requests where they are inspected) are
    budgets for as long as a sandbox lives, None for no limit. `ech` lets a connection that is passed on unread hide its
    server name (RFC 9849). `addresses` are networks, canonical and sorted, that the name may lead to although they are
    not public.
    """

    host: str
    ports: tuple[int, ...] = DEFAULT_PORTS
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    secret: str | None = None
    max_body: int | None = None
    max_bytes: int | None = None
    max_requests: int | None = None
    ech: bool = False
    addresses: tuple[str, ...] = ()

    @property
    def is_network(self) -> bool:
        """Whether the rule names addresses, not names."""
        return "/" in self.host

    @property
    def inspected(self) -> bool:
        """Whether it asks something of each request, so that connections have to be looked into."""
        secret = self.secret not in (None, ANY_SECRET)
        return bool(self.methods or self.paths) or secret or self.max_body is not None

    @property
    def sort_key(self) -> tuple[object, ...]:
        """The order of rules in a profile's lists."""
        limits = [-1 if limit is None else limit for limit in (self.max_body, self.max_bytes, self.max_requests)]
        return self.host, self.ports, self.methods, self.paths, self.secret or "", *limits, self.ech, self.addresses

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        parts = [f"{host}:{','.join('*' if port == ANY_PORT else str(port) for port in self.ports)}"]
        if self.methods:
            parts.append(f"methods {', '.join(self.methods)}")
        if self.paths:
            parts.append(f"paths {', '.join(self.paths)}")
        if self.secret is not None:
            parts.append(f"secret {self.secret}")
        if self.max_body is not None:
            parts.append(f"bodies of at most {self.max_body} bytes")
        if self.max_bytes is not None:
            parts.append(f"at most {self.max_bytes} bytes in all")
        if self.max_requests is not None:
            parts.append(f"at most {self.max_requests} requests in all")
        if self.ech:
            parts.append("encrypted hellos")
        if self.addresses:
            parts.append(f"addresses in {', '.join(self.addresses)}")
        return " with ".join((parts[0], " and ".join(parts[1:]))) if parts[1:] else parts[0]


def parse_rule(text: str, default_ports: tuple[int, ...], *, tier_file: bool = False) -> Rule:
    """`HOST` or `HOST:PORT,PORT`; an IPv6 network stands in brackets. Raises `ValueError` with the reason.

    `default_ports` is in canonical form.
    """
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in inner or (rest and not rest.startswith(":")):
            raise ValueError("brackets hold an IPv6 address or network and nothing else")
        host, ports = inner, rest[1:] if rest else None
    elif text.count(":") > 1:
        host, ports = text, None
    else:
        host, colon, tail = text.partition(":")
        ports = tail if colon else None
    numbers = (
        default_ports if ports is None else canonical_ports(parse_port(part, tier_file) for part in ports.split(","))
    )
    return Rule(canonical_host(host, tier_file=tier_file), numbers)


def canonical_ports(ports: Iterable[int]) -> tuple[int, ...]:
    """Sorted and without repetition; every port where one of them is `ANY_PORT`."""
    found = tuple(sorted(set(ports)))
    return (ANY_PORT,) if ANY_PORT in found else found


def parse_port(text: str, tier_file: bool = False) -> int:
    """A decimal port from 1 to 65535 without leading zeros; `*` only in a tier file."""
    if tier_file and text == "*":
        return ANY_PORT
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text) or int(text) > 65535:
        raise ValueError(f'"{text}" is not a port from 1 to 65535')
    return int(text)


def parse_size(value: int | str) -> int:
    """Bytes; the suffixes K, M, G and T are powers of 1024, as in systemd.resource-control(5)."""
    if isinstance(value, str):
        match = _SIZE.match(value)
        if match is None or len(match[1]) > 19:
            raise ValueError('a size is a number of bytes or text such as "64K", "512M", "4G"')
        value = int(match[1]) << _UNITS[match[2]]
    if not 0 <= value <= _MOST_BYTES:
        raise ValueError("a size is at least 0 and less than 8 EiB")
    return value


def canonical_host(text: str, *, tier_file: bool = False) -> str:
    """A canonical name, `*.name` or network. Raises `ValueError` with the reason.

    RFC 1123 (names), RFC 5890 (international names), RFC 4632 and 4291 (networks).
    """
    if text == EVERY_NAME or (tier_file and text == EVERY_DOMAIN):
        return text
    plain = _PLAIN.match(text)  # as nearly all are; long lists are read while somebody waits
    if plain and plain[1] not in _OURS and len(text) <= 253:
        return text
    if "/" in text or ":" in text:
        return _network_text(text)
    wildcard, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    name = _ascii(name.removesuffix("."))
    if len(wildcard + name) > 253:
        raise ValueError("a host name has at most 253 characters")
    labels = name.split(".")
    for label in labels:
        if not label:
            raise ValueError("a host name has no empty part")
        if "*" in label:
            raise ValueError('a "*" may only be the whole first part, as in "*.example.com"')
        if not _LABEL.match(label):
            raise ValueError(
                "a part of a host name has 1 to 63 letters, digits and hyphens, with no hyphen at its ends"
            )
    if _NUMERIC.match(labels[-1]):
        if wildcard:
            raise ValueError("an address has no names below it")
        return _network_text(name)
    if labels[-1] in _OURS:
        raise ValueError(
            'agents, MCP and other servers are reached through network.connect, such as "agent:writer:8082"'
        )
    return wildcard + name


def _ascii(name: str) -> str:
    if name.isascii():
        return name.lower()
    # Only for international names: the tables of `idna` cost milliseconds to import.
    import idna

    try:
        return idna.encode(name, uts46=True, transitional=False).decode()
    except idna.IDNAError as error:
        raise ValueError(f"it is not a valid international name ({error})") from None


def _network_text(text: str) -> str:
    import ipaddress

    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            "it is neither a host name nor an address in its usual form, such as 192.0.2.1 or 10.0.0.0/8"
            if ":" not in text
            else "it is not an IPv6 address or network; one with ports is written [2001:db8::/32]:443"
        ) from None
    address, slash, _ = text.partition("/")
    if "%" in text:
        raise ValueError("an address has no zone here")
    if slash and str(network.network_address) != str(ipaddress.ip_address(address)):
        raise ValueError(f"the network of that length is {network}")
    if network.version == 6 and network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        raise ValueError("an IPv4 address is written as IPv4")
    return str(network)


@dataclass(frozen=True, slots=True)
class Peer:
    """An entry of `network.connect`.

    `names` are what it is called inside, at `port`; `target` is what that means: "agent:NAME", "host" or
    "mesh:SERVER/AGENT". `local_port` is the port of the sandbox's own localhost that leads there too, None for none. In
    a tier file `*` stands for any name, and `ANY_PORT` for every port.
    """

    names: tuple[str, ...]
    port: int
    target: str
    local_port: int | None = None

    def __str__(self) -> str:
        return f"{self.target}:{'*' if self.port == ANY_PORT else self.port}"


def parse_peer(text: str, *, tier_file: bool = False) -> Peer:
    """`agent:NAME:PORT`, `mesh:SERVER/AGENT:PORT`, `host:PORT` or `localhost:PORT=agent:NAME:PORT`.

    `*` for a part only in a tier file. Raises `ValueError` with the reason.
    """
    match = _PEER.match(text)
    if match is None or ("*" in text and not tier_file):
        raise ValueError(
            'it is not "agent:NAME:PORT", "mesh:SERVER/AGENT:PORT", "host:PORT" or "localhost:PORT=agent:NAME:PORT"'
        )
    local = None if match["local"] is None else parse_port(match["local"], tier_file)
    port = parse_port(match["port"], tier_file)
    if match["agent"]:
        return Peer((_name_of_ours(match["agent"], "agent"),), port, f"agent:{match['agent']}", local)
    if match["server"]:
        server, agent = match["server"], match["remote"]
        return Peer((_name_of_ours(f"{agent}.{server}", "mesh"),), port, f"mesh:{server}/{agent}")
    return Peer(("host.osmoda", "host"), port, "host")


def parse_connect(text: str, *, tier_file: bool = False) -> str:
    """The entry itself, where `parse_peer` can read it."""
    parse_peer(text, tier_file=tier_file)
    return text


def peer_conflicts(connect: Iterable[str], serve: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Index and reason of each entry of a profile's `connect` that means something else than one before it."""
    served = set(serve)
    places: dict[tuple[str, int], tuple[str, str]] = {}
    for index, text in enumerate(connect):
        peer = parse_peer(text)
        inside = [(name, peer.port) for name in peer.names]
        if peer.local_port is not None:
            inside.append(("localhost", peer.local_port))
            if peer.local_port in served:
                yield index, f'"{text}" takes port {peer.local_port}, which network.serve gives to the sandbox itself'
        for place in inside:
            first, target = places.setdefault(place, (text, str(peer)))
            if target != str(peer):
                yield index, f'"{text}" and "{first}" are both {place[0]}:{place[1]} inside'


def _name_of_ours(text: str, domain: str) -> str:
    name = f"{text}.{domain}".lower()
    if len(name) > 253 or not all(label == "*" or _LABEL.match(label) for label in name.split(".")):
        raise ValueError(f"{name} is not usable as a host name, and that is what it is called inside")
    return name


def check_allowed(rule: Rule) -> Rule:
    """A rule of `network.allow` as it is. Raises `ValueError` where its parts do not go together."""
    if rule.is_network and rule.addresses:
        raise ValueError("it is a network, which names its addresses itself; addresses are for a host name")
    if rule.is_network and any(host_covers(own, rule.host) for own in _INSIDE):
        raise ValueError(
            "a sandbox has these addresses for itself; a port of the host's own is reached through network.connect, "
            'such as "host:5432"'
        )
    if rule.ech and rule.inspected:
        raise ValueError("ech is for connections that are passed on unread; its other keys need them read")
    return rule


def check_method(text: str) -> str:
    """RFC 9110 section 9.1: methods are case-sensitive, and those in use are capitals."""
    if not _METHOD.match(text):
        raise ValueError('a method is written in capitals, such as "GET"')
    return text


def check_url_path(text: str) -> str:
    """An absolute path pattern without query, fragment or `..`."""
    if not text.startswith("/") or re.search(r"[?#\x00-\x20\x7f]", text) or ".." in text.split("/"):
        raise ValueError('a URL path starts with "/" and holds no "..", "?", "#" or space')
    return text


def check_secret(text: str, tier_file: bool = False) -> str:
    """The name under which the gateway finds the value; `*`, in a tier file, for any of them."""
    if tier_file and text == ANY_SECRET:
        return text
    if not _SECRET.match(text):
        raise ValueError("the name of a secret has letters, digits and underscores and does not start with a digit")
    return text


def canonical_addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Networks, canonical and sorted: what a name may lead to. Raises `ValueError` with the reason."""
    found = set()
    for text in texts:
        if "/" not in text and ":" not in text and not text.rpartition(".")[2].isdecimal():
            raise ValueError(f'"{text}" is not an address or a network such as "10.0.0.0/8"')
        found.add(_network_text(text))
    return tuple(sorted(found))


@lru_cache(1024)
def _network(host: str) -> IPv4Network | IPv6Network:
    import ipaddress

    return ipaddress.ip_network(host)


def host_covers(wide: str, narrow: str) -> bool:
    """Whether every host that `narrow` means is meant by `wide`; names and networks never cover each other."""
    if ("/" in wide) != ("/" in narrow):
        return False
    if "/" in wide:
        large, small = _network(wide), _network(narrow)
        return large.version == small.version and large.prefixlen <= small.prefixlen and small.network_address in large
    if wide in (EVERY_NAME, narrow):
        return True
    if wide == EVERY_DOMAIN:
        return "." in narrow
    return wide.startswith("*.") and narrow.removeprefix("*").endswith(wide[1:])


def host_meet(one: str, other: str) -> str | None:
    """What both mean. Host patterns lie inside one another or apart, so it is the narrower one, or None."""
    if host_covers(one, other):
        return other
    return one if host_covers(other, one) else None
