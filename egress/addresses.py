"""Classes of addresses: which ones a name may lead to.

A name that the profile lists is under somebody else's control, and its addresses with it: one that leads to this host,
its network or its cloud's metadata service is refused unless a rule names that network. The ranges are those of IANA's
IPv4 and IPv6 special-purpose address registries (RFC 6890), and of clouds.
"""

from __future__ import annotations

import _socket

_IPV4 = (
    ("0.0.0.0/8", "unspecified"),  # "this network", RFC 791; 0.0.0.0 is this host to connect(2)
    ("10.0.0.0/8", "private"),  # RFC 1918
    ("100.64.0.0/10", "shared"),  # carrier-grade NAT, RFC 6598
    ("100.100.100.200/32", "metadata"),  # Alibaba
    ("127.0.0.0/8", "loopback"),  # RFC 1122
    ("168.63.129.16/32", "metadata"),  # Azure's wire server, on an address that is otherwise public
    ("169.254.0.0/16", "link-local"),  # RFC 3927
    ("169.254.0.23/32", "metadata"),  # Tencent
    ("169.254.169.254/32", "metadata"),  # AWS, Google, Azure, OpenStack and most others
    ("169.254.170.2/32", "metadata"),  # AWS: credentials of ECS tasks
    ("169.254.170.23/32", "metadata"),  # AWS: credentials of EKS pods
    ("172.16.0.0/12", "private"),  # RFC 1918
    ("192.0.0.0/24", "reserved"),  # protocol assignments, RFC 6890: DS-Lite, PCP and TURN anycast, NAT64 discovery
    ("192.0.0.192/32", "metadata"),  # Oracle
    ("192.88.99.0/24", "reserved"),  # relays of 6to4, deprecated by RFC 7526
    ("192.168.0.0/16", "private"),  # RFC 1918
    ("198.18.0.0/15", "ours"),  # benchmarks, RFC 2544: the addresses of names inside sandboxes
    ("224.0.0.0/4", "multicast"),  # RFC 5771
    ("240.0.0.0/4", "reserved"),  # RFC 1112, and the broadcast address of RFC 919
    # Public: AS112 (192.31.196.0/24 and 192.175.48.0/24, RFC 7535 and 7534) and AMT (192.52.193.0/24, RFC 7450), as the
    # registry says; and 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 (documentation, RFC 5737): nothing is there.
)
_IPV6 = (
    ("::/128", "unspecified"),  # RFC 4291; this host to connect(2)
    ("::1/128", "loopback"),  # RFC 4291
    ("::/96", "mapped"),  # IPv4-compatible, deprecated by RFC 4291
    ("::ffff:0:0/96", "mapped"),  # RFC 4291: connect(2) sends IPv4
    ("::ffff:0:0:0/96", "translated"),  # SIIT, RFC 2765
    ("64:ff9b::/96", "translated"),  # NAT64, RFC 6052
    ("64:ff9b:1::/48", "translated"),  # local NAT64, RFC 8215
    ("2001::/23", "reserved"),  # protocol assignments, RFC 2928, with PCP, TURN and SRP anycast, ORCHID, drone tags
    ("2001::/32", "translated"),  # Teredo, RFC 4380
    ("2001:2::/48", "ours"),  # benchmarks, RFC 5180: the addresses of names inside sandboxes
    ("2001:3::/32", "public"),  # AMT, RFC 7450
    ("2001:4:112::/48", "public"),  # AS112, RFC 7535; so is 2620:4f:8000::/48, RFC 7534
    ("2002::/16", "translated"),  # 6to4, RFC 3056
    ("3fff::/20", "reserved"),  # documentation, RFC 9637; 2001:db8::/32 (RFC 3849) is public as its like in IPv4 are
    ("fc00::/7", "private"),  # unique local, RFC 4193
    ("fd00:42::42/128", "metadata"),  # Scaleway
    ("fd00:c1::a9fe:a9fe/128", "metadata"),  # Oracle
    ("fd00:ec2::23/128", "metadata"),  # AWS: credentials of EKS pods
    ("fd00:ec2::254/128", "metadata"),  # AWS
    ("fd20:ce::254/128", "metadata"),  # Google
    ("fe80::/10", "link-local"),  # RFC 4291
    ("fe80::a9fe:a9fe/128", "metadata"),  # OpenStack
    ("fec0::/10", "private"),  # site-local, deprecated by RFC 3879
    ("ff00::/8", "multicast"),  # RFC 4291
    # All else outside 2000::/3 is reserved (RFC 4291): discard 100::/64 (RFC 6666), dummy 100:0:0:1::/64 (RFC 9780),
    # segment routing 5f00::/16 (RFC 9602).
)
_WORDS = {
    "loopback": "a loopback address of this host",
    "private": "a private address",
    "link-local": "a link-local address",
    "metadata": "the address of a cloud's metadata service",
    "shared": "an address behind a carrier's NAT",
    "multicast": "a multicast address",
    "reserved": "a reserved address",
    "unspecified": "no address of a destination",
    "ours": "an address of names inside sandboxes",
    "public": "public",
}


def _parse(network: str) -> tuple[int, int, int]:
    """The length of its addresses in bytes, the bits behind the prefix, and the prefix."""
    text, slash, bits = network.partition("/")
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        address = _socket.inet_pton(family, text)
        size = len(address) * 8
        shift = size - int(bits) if slash else 0
    except (OSError, ValueError):
        raise ValueError(f'"{network}" is not a network') from None
    if not 0 <= shift <= size:
        raise ValueError(f'"{network}" is not a network')
    return len(address), shift, int.from_bytes(address) >> shift


def _index(ranges: tuple[tuple[str, str], ...], first_bits: int) -> dict[int, list[tuple[int, int, str]]]:
    """The ranges by the first bits of the addresses in them, the narrowest range first."""
    index: dict[int, list[tuple[int, int, str]]] = {}
    for network, name in ranges:
        length, shift, prefix = _parse(network)
        spare = length * 8 - first_bits - shift  # bits by which the prefix is longer than the key; shorter where < 0
        keys = (prefix >> spare,) if spare >= 0 else range(prefix << -spare, (prefix + 1) << -spare)
        for key in keys:
            index.setdefault(key, []).append((shift, prefix, name))
    for found in index.values():
        found.sort()
    return index


_BY_BYTE = _index(_IPV4, 8)
# 2000::/3 is looked up by 16 bits, since most of its addresses are in no range at all; the rest by 8.
_BY_PAIR = _index(tuple([entry for entry in _IPV6 if entry[0][0] in "23"]), 16)
_OUTSIDE = _index(tuple([entry for entry in _IPV6 if entry[0][0] not in "23"]), 8)
_parsed: dict[str, tuple[int, int, int]] = {}


def classify(address: bytes) -> str:
    """The class of a packed address: "public", or why a name may not lead there by itself.

    "loopback", "private", "link-local", "metadata", "shared", "multicast", "unspecified", "translated", "mapped",
    "reserved" or "ours". Raises ValueError unless it has 4 or 16 bytes.
    """
    other = "public"
    if len(address) == 4:
        ranges = _BY_BYTE.get(address[0])
    elif len(address) != 16:
        raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
    elif address[0] >> 5 == 1:
        ranges = _BY_PAIR.get(address[0] << 8 | address[1])
    else:
        ranges, other = _OUTSIDE.get(address[0]), "reserved"
    if ranges:
        number = int.from_bytes(address)
        for shift, prefix, name in ranges:
            if number >> shift == prefix:
                return name
    return other


def embedded(address: bytes) -> bytes | None:
    """The IPv4 address that a "translated" or "mapped" one leads to; None for any other."""
    if len(address) != 16 or classify(address) not in ("translated", "mapped"):
        return None
    if address[0] == 0x20:
        if address[1] == 2:
            return address[2:6]  # RFC 3056, section 2
        return bytes([byte ^ 0xFF for byte in address[12:]])  # RFC 4380, section 4
    return address[12:]


def inside(address: bytes, networks: tuple[str, ...]) -> bool:
    """Whether a packed address lies in one of `networks` ("10.0.0.0/8"). Raises ValueError for what is no network."""
    number = int.from_bytes(address)
    for network in networks:
        parsed = _parsed.get(network)
        if parsed is None:
            if len(_parsed) > 4096:
                _parsed.clear()
            parsed = _parsed[network] = _parse(network)
        length, shift, prefix = parsed
        if length == len(address) and number >> shift == prefix:
            return True
    return False


def may_dial(address: bytes, networks: tuple[str, ...]) -> str:
    """Empty when a name may lead to this packed address; else the reason, in words.

    `networks` are those that a rule names, and lift the refusal for the addresses within. They do not for our own and
    the unspecified addresses, which lead back to this host, nor for one with another inside: which of the two a rule
    meant, and where a translator takes it, could be read in two ways, so it is the inner one that is to be named.
    Raises ValueError as `classify` and `inside` do.
    """
    kind = classify(address)
    if kind == "public":
        return ""
    text = _text(address)
    inner = embedded(address)
    if inner is not None:
        how = "holds" if kind == "mapped" else "is translated to"
        return (
            f"{text} {how} {_text(inner)}, {_WORDS[classify(inner)]}, and no address that stands for another is dialled"
        )
    if kind in ("ours", "unspecified"):
        return f"{text} is {_WORDS[kind]}, which nothing outside answers at"
    if inside(address, networks):
        return ""
    return f"{text} is {_WORDS[kind]}, and no rule names its network"


def _text(address: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)
