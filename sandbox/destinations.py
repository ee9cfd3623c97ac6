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
    from collections.abc import Iterable
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
_NUMERIC = re.compile(r"[0-9]+\Z|0x[0-9a-f]*\Z")
_AGENT = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_CONNECT = re.compile(rf"(?:agent:(?:{_AGENT}|\*)|mesh:(?:{_AGENT}|\*)/(?:{_AGENT}|\*)|host):([^:]*)\Z")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]*\Z")
_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OURS = ("agent", "osmoda", "mesh")


@dataclass(frozen=True, slots=True)
class Rule:
    """A destination that may be reached (or, in `deny`, may not).

    `host` is canonical: a name, `*.name`, `*`, or a network such as `10.0.0.0/8`. `ports` is sorted and never empty;
    `(ANY_PORT,)` means every port. Empty `methods` and `paths` mean all of them; in `paths` a `*` stands for any text,
    also across `/`. `max_body` is in bytes, None for no limit.
    """

    host: str
    ports: tuple[int, ...] = DEFAULT_PORTS
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    secret: str | None = None
    max_body: int | None = None

    @property
    def is_network(self) -> bool:
        """Whether the rule names addresses, not names."""
        return "/" in self.host

    @property
    def sort_key(self) -> tuple[object, ...]:
        """The order of rules in a profile's lists."""
        body = -1 if self.max_body is None else self.max_body
        return self.host, self.ports, self.methods, self.paths, self.secret or "", body

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
        return " with ".join((parts[0], " and ".join(parts[1:]))) if parts[1:] else parts[0]


def parse_rule(text: str, default_ports: tuple[int, ...], *, tier_file: bool = False) -> Rule:
    """`HOST` or `HOST:PORT,PORT`; an IPv6 network stands in brackets. Raises `ValueError` with the reason."""
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
    numbers = default_ports if ports is None else tuple(parse_port(part, tier_file) for part in ports.split(","))
    return Rule(canonical_host(host, tier_file=tier_file), canonical_ports(numbers))


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


def canonical_host(text: str, *, tier_file: bool = False) -> str:
    """A canonical name, `*.name` or network. Raises `ValueError` with the reason.

    RFC 1123 (names), RFC 5890 (international names), RFC 4632 and 4291 (networks).
    """
    if tier_file and text == EVERY_DOMAIN:
        return text
    if text == EVERY_NAME:
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


def parse_connect(text: str, *, tier_file: bool = False) -> str:
    """`agent:NAME:PORT`, `mesh:SERVER/AGENT:PORT` or `host:PORT`; `*` for a part only in a tier file."""
    match = _CONNECT.match(text)
    if match is None or ("*" in text and not tier_file):
        raise ValueError('it is not "agent:NAME:PORT", "mesh:SERVER/AGENT:PORT" or "host:PORT"')
    parse_port(match[1], tier_file)
    return text


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
