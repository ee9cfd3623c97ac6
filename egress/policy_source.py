"""From the rules of a profile, each with the line it stands in, to the bytes that `policy.Policy` loads."""

from __future__ import annotations

import hashlib
import re
from array import array
from typing import TYPE_CHECKING

from osmoda.egress.destinations import (
    ANY_PORT,
    ANY_SECRET,
    EVERY_NAME,
    canonical_host,
    canonical_ports,
    host_covers,
    parse_peer,
    peer_conflicts,
)
from osmoda.egress.policy_tables import CHUNK, END, LINE_BITS, MAGIC, MOST_BYTES, escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from osmoda.egress.destinations import Peer, Rule

type Entry = tuple[str, int]

_LINE = re.compile(r"[1-9][0-9]{0,6}\Z")
_UNFIT = re.compile(r"[\s\x00]")


def compile_policy(
    *,
    allow: Sequence[tuple[Rule, str]],
    deny: Sequence[tuple[Rule, str]],
    connect: Sequence[tuple[str, str]],
    serve: Sequence[int],
    ask: bool,
    ask_origin: str,
    default_origin: str,
) -> bytes:
    """The policy as a blob. Each rule and each entry of `connect` comes with its `file:line`.

    `default_origin` stands for what nobody listed: where `network.allow` stands, or the tier. Raises `ValueError` for a
    rule that is not canonical or that only a tier file may hold, for entries of `connect` that contradict one another,
    and for more than 64 MiB.
    """
    compilation = _Compilation()
    for rules, denied in ((allow, False), (deny, True)):
        for rule, origin in rules:
            compilation.add(rule, origin, denied)
    for _, reason in peer_conflicts([text for text, _ in connect], serve):
        raise ValueError(reason)
    peers = dict.fromkeys(line for text, origin in connect for line in _peer_lines(parse_peer(text), origin, deny))
    body = b"".join(
        (
            *_text_chunks(b"F", [escaped(file) for file in compilation.files]),
            *_text_chunks(b"R", list(compilation.rules)),
            *_text_chunks(b"P", list(peers)),
            *_entry_chunks(b"N", sorted(compilation.names)),
            *_entry_chunks(b"W", sorted(compilation.wildcards)),
            *_entry_chunks(b"A", compilation.networks),
            *_entry_chunks(b"E", compilation.every),
        )
    )
    fields = (
        "1" if ask else "0",
        escaped(ask_origin),
        escaped(default_origin),
        " ".join(str(port) for port in sorted(set(serve))),
        " ".join(sorted({rule.secret for rule, _ in allow if rule.secret is not None})),
    )
    digest = hashlib.sha256("\t".join(fields).encode("utf-8", "surrogateescape") + b"\n" + body).hexdigest()
    blob = b"".join((MAGIC, *_text_chunks(b"H", ["\t".join((digest, *fields))]), body, _chunk(END, b"")))
    if len(blob) > MOST_BYTES:
        raise ValueError(f"the rules of the network take {len(blob)} bytes, and {MOST_BYTES} are the most")
    return blob


class _Compilation:
    """Rules without their hosts and lines, each once; and the hosts with their references."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.rules: dict[str, int] = {}
        self.names: list[Entry] = []
        self.wildcards: list[Entry] = []
        self.networks: list[Entry] = []
        self.every: list[Entry] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def add(self, rule: Rule, origin: str, denied: bool) -> None:
        """One rule, at its line."""
        host = rule.host
        if canonical_host(host) != host:
            raise ValueError(f'"{host}" is not in its canonical form, {canonical_host(host)}')
        file, colon, digits = origin.rpartition(":")
        if not (colon and _LINE.match(digits)):
            file, digits = origin, "0"
        reference = self._number(rule, file, denied) << LINE_BITS | int(digits)
        if host == EVERY_NAME:
            self.every.append(("", reference))
        elif "/" in host:
            self.networks.append((host, reference))
        elif host.startswith("*."):
            self.wildcards.append((host[2:], reference))
        else:
            self.names.append((host, reference))

    def _number(self, rule: Rule, file: str, denied: bool) -> int:
        terms = (
            denied, file, rule.ports, rule.methods, rule.paths, rule.secret, rule.max_body, rule.max_bytes,
            rule.max_requests, rule.ech, rule.addresses,
        )  # fmt: skip
        number = self._numbers.get(terms)
        if number is None:
            line = _rule_line(rule, self.files.setdefault(file, len(self.files)), denied)
            number = self._numbers[terms] = self.rules.setdefault(line, len(self.rules))
        return number


def _rule_line(rule: Rule, file: int, denied: bool) -> str:
    """The fields that `policy_tables.Rule` reads."""
    words = (*rule.methods, *rule.paths, *rule.addresses, rule.secret or "")
    if any(_UNFIT.search(word) for word in words) or "" in words[:-1] or rule.secret in ("", ANY_SECRET):
        raise ValueError(f"{rule} is not a rule that a profile may hold")
    if canonical_ports(rule.ports) != rule.ports or not rule.ports or not 0 <= rule.ports[-1] <= 65535:
        raise ValueError(f"{rule} has ports that are not in their canonical form")
    limits = (rule.max_body, rule.max_bytes, rule.max_requests)
    fields = (
        "1" if denied else "0",
        ",".join(map(str, rule.ports)),
        " ".join(rule.methods),
        " ".join(rule.paths),
        rule.secret or "",
        *("-1" if limit is None else str(limit) for limit in limits),
        "1" if rule.ech else "0",
        " ".join(rule.addresses),
        str(file),
    )
    return "\t".join(fields)


def _peer_lines(peer: Peer, origin: str, deny: Sequence[tuple[Rule, str]]) -> Iterator[str]:
    """A line for each name of `peer`, and one for its port of localhost."""
    denial = next(
        (
            written
            for rule, written in deny
            if {peer.port, ANY_PORT} & {*rule.ports} and any(host_covers(rule.host, name) for name in peer.names)
        ),
        "",
    )
    for name in peer.names:
        yield "\t".join((name, str(peer.port), peer.target, escaped(origin), escaped(denial), ""))
    if peer.local_port is not None:
        place = (peer.names[0], str(peer.port), peer.target, escaped(origin), escaped(denial), str(peer.local_port))
        yield "\t".join(place)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "little") + content


def _pieces[T](kind: bytes, items: list[T]) -> Iterable[list[T]]:
    return (items[start : start + CHUNK[kind]] for start in range(0, len(items), CHUNK[kind]))


def _text_chunks(kind: bytes, lines: list[str]) -> Iterator[bytes]:
    for piece in _pieces(kind, lines):
        yield _chunk(kind, "\n".join(piece).encode("utf-8", "surrogateescape"))


def _entry_chunks(kind: bytes, entries: list[Entry]) -> Iterator[bytes]:
    for piece in _pieces(kind, entries):
        references = array("Q", (reference for _, reference in piece)).tobytes()
        keys = b"" if kind == b"E" else "\n".join(key for key, _ in piece).encode("ascii")
        yield _chunk(kind, len(piece).to_bytes(4, "little") + references + keys)
