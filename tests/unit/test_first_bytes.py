"""What a client says first: which protocol it is, which host it names, and when there is enough of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.first_bytes import HTTP, OTHER, TLS, FirstBytes, Unacceptable, protocol_of
from tests.client_hellos import ech_outer, hello, message, records

GET = b"GET / HTTP/1.1\r\nHost: Example.com:8080\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.2p1\r\n"


def outcome(port, pieces):
    """How the pieces end: the findings, the reason of a refusal, or None when more is awaited."""
    first = FirstBytes(port)
    for index, piece in enumerate(pieces):
        try:
            complete = first.feed(piece)
        except Unacceptable as error:
            return first.protocol, error.reason, error.status
        if complete:
            rest = b"".join(pieces[index + 1 :])
            return first.protocol, first.host, first.port, first.hidden, bytes(first.content) + rest
    return None


def split(content, size):
    return [content[at : at + size] for at in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("port", "content", "found"),
    [
        (443, hello(), (TLS, "example.com", 0, False)),
        (8443, records(message([]), [5]), (TLS, "", 0, False)),
        (80, hello(b"a.example", ech_outer()), (TLS, "a.example", 0, True)),
        (80, GET, (HTTP, "example.com", 8080, False)),
        (8080, GET, (HTTP, "example.com", 8080, False)),
        (80, b"GET / HTTP/1.0\r\n\r\n", (HTTP, "", 0, False)),
        (22, SSH, (OTHER, "", 0, False)),
        (5432, b"\0\0\0\x08\x04\xd2\x16\x2f", (OTHER, "", 0, False)),
    ],
)
def test_it_is_read_however_it_comes(port, content, found, size):
    whole = content + b"what follows"
    protocol, host, host_port, hidden, passed_on = outcome(port, split(whole, size))
    assert (protocol, host, host_port, hidden) == found
    assert passed_on == whole


@pytest.mark.parametrize(
    ("port", "content", "protocol", "reason", "status"),
    [
        (443, SSH, OTHER, "what came on port 443 is not TLS", 400),
        (80, SSH, OTHER, "what came on port 80 is not HTTP/1 or TLS", 400),
        (443, GET, HTTP, "what came on port 443 is plain HTTP, and port 443 is for TLS", 400),
    ],
)
def test_what_the_port_does_not_take(port, content, protocol, reason, status):
    for size in (1, 1000):
        assert outcome(port, split(content, size)) == (protocol, reason, status)


def test_what_cannot_be_relied_on():
    protocol, reason, _ = outcome(443, [b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00"])
    assert protocol == TLS
    assert reason.startswith("the TLS hello cannot be relied on: ")
    protocol, reason, status = outcome(80, [b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"])
    assert (protocol, status) == (HTTP, 400)
    assert reason.startswith("the HTTP request cannot be relied on: ")
    assert outcome(80, [b"GET / HTTP/9.9\r\nHost: a\r\n\r\n"])[2] == 505


def test_too_much_without_an_end():
    claimed = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(16380)
    assert outcome(443, split(claimed * 3, 4096))[0] == TLS
    assert outcome(80, split(b"GET / HTTP/1.1\r\nX: " + b"a" * 40000, 4096))[2] == 431
    # What never shows what it is does not either: it passes as neither, where the port takes that.
    assert outcome(8080, split(b"GETS" * 5000, 512))[0] in (HTTP, OTHER)


@pytest.mark.parametrize(
    ("port", "content", "ends"),
    [(22, b"", True), (22, b"GE", True), (22, hello()[:20], False), (8080, GET[:20], False), (443, b"", False)],
)
def test_where_the_client_may_end(port, content, ends):
    first = FirstBytes(port)
    if content:
        assert not first.feed(content)
    assert first.may_end() is ends


@pytest.mark.parametrize(
    ("first", "protocol"),
    [
        (b"", ""),
        (b"\x16", ""),
        (b"\x16\x03", TLS),
        (b"\x15\x03", TLS),
        (b"\x16\x04", OTHER),
        (b"G", ""),
        (b"GET / HTTP/1.1\r\n", HTTP),
        (b"PING\r\n", OTHER),
    ],
)
def test_the_protocol_of_a_beginning(first, protocol):
    assert protocol_of(first) == protocol


@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from([22, 80, 443]))
def test_any_bytes_end_the_same_however_they_are_split(content, size, port):
    def without_rest(found):
        return found[:4] if found else found

    whole, pieces = outcome(port, [content] if content else []), outcome(port, split(content, size))
    if whole is None or pieces is None:
        assert whole == pieces
    else:
        assert without_rest(whole)[0] == without_rest(pieces)[0]
        assert (len(whole), len(pieces)) in ((3, 3), (5, 5))


def test_tls_loads_nothing_of_http():
    code = (
        "import sys\n"
        "from osmoda.egress.first_bytes import FirstBytes\n"
        f"FirstBytes(443).feed({hello()!r})\n"
        "print(*[m for m in ('h11', 'osmoda.egress.http_head') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("value", [b"h2c", b"H2C", b"websocket, h2c", b"h2c-14"])
def test_another_protocol_without_tls_is_no_tunnel(value):
    head = b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: " + value + b"\r\n\r\n"
    assert outcome(80, [head.replace(value, b"websocket")])[:2] == (HTTP, "example.com")
    protocol, reason, status = outcome(80, [head])
    assert (protocol, status) == (HTTP, 400)
    assert "h2c" in reason
