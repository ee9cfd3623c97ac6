"""The names of the tests' internet, where they lead, and what the addresses without a server do.

Every name here is below `test`, which nobody can have (RFC 6761). All addresses lead to one machine, whose servers
listen on all of them, also those that no name of a sandbox may lead to: a test of a refusal has something to miss.
"""

from __future__ import annotations

# The machine that osmoda runs on: its address on the internet, and one on a local network.
HOST_IPV4, HOST_IPV6, HOST_LAN = "192.0.2.1", "2001:db8::1", "10.1.1.1"
GATEWAY_IPV4, GATEWAY_IPV6 = "192.0.2.254", "2001:db8::254"
DNS_IPV4, DNS_IPV6 = "198.51.100.53", "2001:db8:100::53"
HTTP1_IPV4, HTTP1_IPV6 = "198.51.100.12", "2001:db8:100::12"  # where nginx does not offer HTTP/2

SILENT = "203.0.113.250", "2001:db8:113::250"  # nothing comes back from there
UNREACHABLE = "203.0.113.251", "2001:db8:113::251"  # no way leads there
NOBODY_IPV4, NOBODY_IPV6 = "203.0.113.99", "2001:db8:113::99"  # answers, but has no name

# What is local to the machine of the servers.
IPV4_NETWORKS = (
    "198.51.100.0/24",
    "203.0.113.0/24",
    "10.9.0.0/16",
    "100.64.0.0/16",
    "169.254.169.254/32",
    "172.16.9.0/24",
    "192.168.9.0/24",
)
IPV6_NETWORKS = (
    "2001:db8:100::/48",
    "2001:db8:113::/48",
    "fd00:9::/32",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2002:a09:909::/48",
    "2001:0:a09:909::/64",
)


def _both(number: int) -> dict[str, list[str]]:
    return {"A": [f"198.51.100.{number}"], "AAAA": [f"2001:db8:100::{number}"]}


def _leading_to(*addresses: str) -> dict[str, list[str]]:
    return {
        "A": [address for address in addresses if ":" not in address],
        "AAAA": [address for address in addresses if ":" in address],
    }


# Web servers whose certificate is valid; each has one of its own.
SITES = {
    "www.example.test": _both(10),
    "evil.example.test": _both(10),  # beside the one above, as behind a content delivery network
    "api.example.test": _both(11),
    "h1.example.test": _leading_to(HTTP1_IPV4, HTTP1_IPV6),
    "git.example.test": _both(13),
    "pypi.example.test": _both(14),
    "db.example.test": _both(15),
    "xn--bcher-kva.example.test": _both(19),
    "events.example.test": _both(20),
    "v4.example.test": {"A": ["198.51.100.21"]},
    "v6.example.test": {"AAAA": ["2001:db8:100::21"]},
    "other.example.test": _leading_to("203.0.113.10", "2001:db8:113::10"),
    "tcp.example.test": _both(23),
}
# Under one wildcard certificate.
WILD = {
    "wild.test": _both(18),
    "*.wild.test": _both(18),  # any depth
    "notwild.test": _leading_to("203.0.113.18", "2001:db8:113::18"),
    "*.wild.test.evil.test": _leading_to("203.0.113.19", "2001:db8:113::19"),
}
# With certificates that nobody should accept.
EXPIRED, WRONG, SELF_SIGNED = "expired.example.test", "wrong.example.test", "selfsigned.example.test"
INVALID = {EXPIRED: _both(16), WRONG: _both(17), SELF_SIGNED: _both(24)}

# Names that lead where no listed name may lead by itself.
MISLEADING = {
    "private.example.test": _leading_to("10.9.9.9", "fd00:9::9"),
    "private172.example.test": _leading_to("172.16.9.9"),
    "private192.example.test": _leading_to("192.168.9.9"),
    "metadata.example.test": _leading_to("169.254.169.254"),
    "shared.example.test": _leading_to("100.64.0.9"),
    "nat64.example.test": _leading_to("64:ff9b::a09:909"),
    "localnat64.example.test": _leading_to("64:ff9b:1::a09:909"),
    "sixtofour.example.test": _leading_to("2002:a09:909::1"),
    "teredo.example.test": _leading_to("2001:0:a09:909::1"),
    "mapped.example.test": _leading_to("::ffff:169.254.169.254"),
    "loopback.example.test": _leading_to("127.0.0.1", "::1"),
    "zero.example.test": _leading_to("0.0.0.0", "::"),
    "lan.example.test": _leading_to(HOST_LAN),
    "mixed.example.test": _leading_to("10.9.9.9", "198.51.100.10", "fd00:9::9", "2001:db8:100::10"),
    "alias.example.test": {"CNAME": "private.example.test"},
    "mixedalias.example.test": {"CNAME": "mixed.example.test"},
}
ZONE: dict[str, dict[str, object]] = {
    **SITES,
    **WILD,
    **INVALID,
    **MISLEADING,
    "silent.example.test": _leading_to(*SILENT),
    "unreachable.example.test": _leading_to(*UNREACHABLE),
    "slowname.example.test": {"silent": True},
    "broken.example.test": {"rcode": "SERVFAIL"},
    "*.tunnel.test": _both(10),
}
