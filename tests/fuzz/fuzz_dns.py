"""The resolver under any bytes: the first says how they come and what the policy would say, the rest is a query.

`python -m tests.fuzz 60 dns` runs it for a minute.
"""

from __future__ import annotations

import re

import dns.message
import dns.rcode

from osmoda.egress.resolver import MOST_TEXT, UDP_PAYLOAD, Found, Refused, answer

CANONICAL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
ADDRESSES = b"\xc6\x12\x01\x00", b"\x20\x01\x00\x02\x00\x00\x00\x01" + bytes(8)
RESULTS = (
    Found(*ADDRESSES, 60),
    Found(ADDRESSES[0], b"", 0),
    Refused("NXDOMAIN", 15, "it is not listed; profile.toml:7 would allow it"),
    Refused("REFUSED", 18, "ü" * 3000),
)
# Header, longest question, an IPv6 address, OPT, and an extended error in it.
LONGEST = 12 + 259 + 28 + 11 + 6 + MOST_TEXT


def one(data: bytes) -> None:
    """Raise AssertionError, or whatever the resolver raises, where it does not keep its word."""
    if not data:
        return
    tcp, result, query = bool(data[0] & 1), RESULTS[data[0] >> 1 & 3], data[1:]
    looked_up: list[str] = []

    def lookup(name: str) -> Found | Refused:
        looked_up.append(name)
        return result

    def reverse(address: bytes) -> str | None:
        assert len(address) in {4, 16}
        return "api.allowed.example" if address in ADDRESSES else None

    got = answer(query, lookup, tcp=tcp, reverse=reverse, refused=lambda name, text: looked_up.append(name))
    if got is None:
        assert len(query) < 12 or query[2] & 0x80
        assert not looked_up
        return
    message = dns.message.from_wire(got)
    assert got[:2] == query[:2]
    assert got[2] & 0x80
    assert message.opcode() == query[2] >> 3 & 0xF
    assert len(got) <= (LONGEST if tcp else UDP_PAYLOAD if message.edns == 0 else 512)
    if message.question:
        wire = b"".join(bytes([len(label)]) + label for label in message.question[0].name.labels)
        assert got[12 : 12 + len(wire) + 4] == query[12 : 12 + len(wire) + 4]
        assert got[12 : 12 + len(wire)] == wire
    else:
        assert message.rcode() in {dns.rcode.FORMERR, dns.rcode.NOTIMP}
        assert len(got) == 12
    assert sum(len(records) for records in message.answer) <= 1
    assert not message.authority
    assert len(set(looked_up)) <= 1
    for name in looked_up:
        assert CANONICAL.fullmatch(name), name
        assert len(name) <= 253
        assert not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2]), name
        assert name == b".".join(message.question[0].name.labels[:-1]).decode().lower()


if __name__ == "__main__":
    from tests.fuzz.lane import run

    run(one)
