"""The short way to read a hello: what it reads is what the reader makes of it, and the rest is left to the reader."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from osmoda.egress import usual_hello
from osmoda.egress.hello import MOST_BYTES, MalformedHello, parse_hello
from osmoda.egress.usual_hello import read
from tests.client_hellos import (
    alpn,
    ech_outer,
    extension,
    hello,
    message,
    records,
    server_name,
    supported_versions,
)

USUAL = (
    hello(),
    hello(b"EXAMPLE.com", alpn(b"h2", b"http/1.1"), supported_versions(0x0304, 0x0303), extension(51, bytes(40))),
    records(message([alpn(b"h2")])),
    records(message([extension(21, bytes(300)), server_name(b"a.example")]), version=b"\3\3"),
    records(message([], session=bytes(32))),
)
OTHERS = {
    "encrypted": hello(b"a.example", ech_outer()),
    "cut": hello()[:-1],
    "empty": b"",
    "in records": records(message([server_name(b"a.example")]), [20]),
    "old": records(message([server_name(b"a.example")], version=0x0301)),
    "compressed": records(message([server_name(b"a.example")], compressions=b"\1\0")),
    "without extensions": records(message(None)),
    "an address": hello(b"10.0.0.1"),
    "no name": records(message([server_name(b"")])),
    "two names": records(message([server_name(b"a.example", b"b.example")])),
    "twice": records(message([server_name(b"a.example"), server_name(b"b.example")])),
    "odd suites": records(message([], suites=b"\x13\x01\x13")),
    "no suites": records(message([], suites=b"")),
    "long session": records(message([], session=bytes(33))),
    "trailing": records(message([server_name(b"a.example")], trailing=b"x")),
    "alert": records(message([]), kind=21),
    "too long": records(message([extension(21, bytes(MOST_BYTES))])),
    "bad versions": records(message([extension(43, b"\3\3\4\3")])),
    "bad protocols": records(message([extension(16, b"\0\3\2h")])),
}


def by_the_reader(data):
    try:
        return parse_hello(data)
    except MalformedHello:
        return None


@pytest.mark.parametrize("data", USUAL)
def test_usual_hellos_are_read(data):
    found = read(data)
    assert found is not None
    assert found == by_the_reader(data)
    assert read(data + b"early data") == found


def test_the_hello_of_this_machines_library_is_usual():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = context.wrap_bio(incoming, outgoing, server_hostname="api.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    data = outgoing.read()
    found = read(data)
    assert found is not None
    assert found.server_name == "api.example.com"
    assert found == by_the_reader(data)


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_anything_else_is_left_to_the_reader(data):
    assert read(data) is None


def mutated(data, changes, cut):
    changed = bytearray(data)
    for at, byte in changes:
        if changed:
            changed[at % len(changed)] = byte
    return bytes(changed[: len(changed) - cut])


@given(
    st.sampled_from([*USUAL, *OTHERS.values()]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    st.integers(0, 8),
    st.binary(max_size=8),
)
@example(USUAL[1], [], 0, b"")
def test_it_never_says_what_the_reader_does_not(data, changes, cut, more):
    data = mutated(data, changes, cut) + more
    found = read(data)
    assert found is None or found == by_the_reader(data)


@given(st.binary(max_size=400))
def test_any_bytes_behind_fitting_headers(body):
    data = records(b"\1" + len(body).to_bytes(3) + body)
    found = read(data)
    assert found is None or found == by_the_reader(data)


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(usual_hello, "_MOST_KEPT", 4)
    for index in range(20):
        name = b"name%d.example" % index
        assert read(hello(name)).server_name == name.decode()
        assert len(usual_hello._names) <= 4
    usual_hello._protocols.clear()
    assert read(records(message([alpn(*[b"p" * 200] * 3)]))) is not None
    assert usual_hello._protocols == {}
