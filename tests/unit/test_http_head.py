from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.http_head import MOST_BYTES, BadHead, Head, HeadReader, looks_like_http, parse_head


def head(*lines: str, first: str = "GET / HTTP/1.1") -> bytes:
    return "".join(f"{line}\r\n" for line in (first, *lines, "")).encode("latin-1")


def outcome(pieces):
    """What a reader makes of the pieces: the head, None, or the status of the refusal; once found it stays."""
    reader = HeadReader()
    found = None
    for piece in pieces:
        try:
            found = reader.feed(piece)
        except BadHead as error:
            with pytest.raises(BadHead, match=re.escape(str(error))):
                reader.feed(b"")
            return error.status
    return found


def refused(data: bytes, status: int, reason: str) -> None:
    with pytest.raises(BadHead, match=reason) as caught:
        parse_head(data)
    assert caught.value.status == status
    # Piece by piece another fault of the same head may be met first, but it is no head either.
    assert isinstance(outcome([data[at : at + 1] for at in range(len(data))]), int)


# Heads as they should be


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (head("Host: example.com"), Head("GET", "/", "example.com", 0, "")),
        (head("Host: EXAMPLE.com:8080"), Head("GET", "/", "example.com", 8080, "")),
        (head("host:example.com."), Head("GET", "/", "example.com", 0, "")),
        (head("HOST:\t example.com \t"), Head("GET", "/", "example.com", 0, "")),
        (head("Host: a_b.xn--bcher-kva.example"), Head("GET", "/", "a_b.xn--bcher-kva.example", 0, "")),
        (head("Host: 192.0.2.1:80"), Head("GET", "/", "192.0.2.1", 80, "")),
        (head("Host: [2001:DB8:0::1]:80"), Head("GET", "/", "2001:db8::1", 80, "")),
        (head("Host: [2001:db8::1]"), Head("GET", "/", "2001:db8::1", 0, "")),
        (head("Host: [::1]:8081"), Head("GET", "/", "::1", 8081, "")),
        (head("Host: writer.agent:8082"), Head("GET", "/", "writer.agent", 8082, "")),
        (
            head("Host: a.b", "Content-Length: 5", "Cookie: caf\xe9", "X:", first="POST /x?y=%2F{a}|b HTTP/1.1"),
            Head("POST", "/x?y=%2F{a}|b", "a.b", 0, ""),
        ),
        (head("Host: a.b", "Transfer-Encoding: chunked", first="PUT / HTTP/1.1"), Head("PUT", "/", "a.b", 0, "")),
        (head("Host: a.b", "Transfer-Encoding: Chunked", first="PUT / HTTP/1.1"), Head("PUT", "/", "a.b", 0, "")),
        (head("Host: a.b", first="OPTIONS * HTTP/1.1"), Head("OPTIONS", "*", "a.b", 0, "")),
        (head("Host: a.b", first="GET http://A.b/x HTTP/1.1"), Head("GET", "http://A.b/x", "a.b", 0, "")),
        (head("Host: a.b:80", first="GET HTTP://a.b?q HTTP/1.1"), Head("GET", "HTTP://a.b?q", "a.b", 80, "")),
        (head("Host: a.b", first="GET http://a.b:80 HTTP/1.1"), Head("GET", "http://a.b:80", "a.b", 80, "")),
        (head("Host: a.b:81", first="GET http://a.b.:81/ HTTP/1.1"), Head("GET", "http://a.b.:81/", "a.b", 81, "")),
        (head(first="GET / HTTP/1.0"), Head("GET", "/", "", 0, "")),
        (head("Host: a.b", first="GET / HTTP/1.0"), Head("GET", "/", "a.b", 0, "")),
        (head(first="GET http://a.b/ HTTP/1.0"), Head("GET", "http://a.b/", "a.b", 0, "")),
        (head("Host: a.b", first="M-SEARCH / HTTP/1.1"), Head("M-SEARCH", "/", "a.b", 0, "")),
        (head("Host: a.b", "Upgrade: WebSocket"), Head("GET", "/", "a.b", 0, "websocket")),
        (
            head("Host: a.b", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
            Head("GET", "/", "a.b", 0, "h2c"),
        ),
        (
            head("Host: a.b", "Upgrade: websocket/13 ,\tH2C", "Upgrade: x"),
            Head("GET", "/", "a.b", 0, "websocket/13,h2c,x"),
        ),
    ],
)
def test_what_a_head_asks_for(data, found):
    assert parse_head(data) == found
    assert parse_head(data + b"\0body\r\nHost: other\r\n\r\n") == found
    assert outcome([data[at : at + 1] for at in range(len(data))]) == found
    assert [parse_head(data[:size]) for size in range(len(data))] == [None] * len(data)


# Whom it asks


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: evil.com"],
        ["Host: allowed.com.evil.com"],
        ["Host: allowed.com:81"],
        ["Host: [2001:db8::1]"],
    ],
)
def test_an_absolute_target_agrees_with_host(lines):
    refused(head(*lines, first="GET http://allowed.com/ HTTP/1.1"), 400, "same host")


@pytest.mark.parametrize("host", ["allowed@evil.com", "allowed:80@evil.com", "@evil.com", "evil.com@", "a:b@c:80"])
def test_no_user_before_a_host(host):
    refused(head(f"Host: {host}"), 400, "user")
    refused(head("Host: evil.com", first=f"GET http://{host}/ HTTP/1.1"), 400, "user")


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "[evil.com]",
        "[192.0.2.1]",
        "[::1",
        "[::1]x",
        "[::1]]",
        "[fe80::1%eth0]",
        "[v1.a]",
        "[::ffff:10.0.0.1]",
        "[::10.0.0.1]",
        "[::ffff:11]",  # some would write it ::255.255.0.17
        "::1",
        "2130706433",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "192.0.2.1.",
        "1.2.3.4.5",
        "*.example.com",
        "*",
        "10.0.0.0/8",
        "a.com/b",
        "http://a.com",
        "a.com, b.com",
        "a.com b.com",
        "a..b",
        ".",
        "..",
        "a.b..",
        "-a.com",
        "%65vil.com",
        "b\xfccher.example",
        "x" * 64 + ".com",
        ".".join(["abcdefg"] * 32),
    ],
)
def test_a_host_that_two_programs_could_read_differently(host):
    refused(head(f"Host: {host}"), 400, r"Host (has brackets|does not name|names a port|writes an IPv4)")


@pytest.mark.parametrize("port", ["", "0", "0443", "70000", "65536", "+80", "8 0", "8o", "80:80", "\xb2"])
def test_a_port_that_is_none(port):
    for host in ("a.com", "192.0.2.1", "[2001:db8::1]"):
        refused(head(f"Host: {host}:{port}"), 400, "Host names a port")
        if port.isascii() and " " not in port:
            refused(head(f"Host: {host}", first=f"GET http://{host}:{port}/ HTTP/1.1"), 400, "the target names a port")


def test_no_host_and_several_hosts():
    refused(head(), 400, "Host")
    refused(head(first="GET http://a.b/ HTTP/1.1"), 400, "Host")
    refused(head("Host: a.b", "Host: a.b"), 400, "host 2 times")
    refused(head("Host: a.b", "hOST: evil.com", first="GET / HTTP/1.0"), 400, "host 2 times")


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Hosts", "Content-Type", "Forwarded"])
def test_other_headers_are_not_judged(name):
    assert parse_head(head("Host: a.b", f"{name}: evil.com")).host == "a.b"


# Where it ends


@pytest.mark.parametrize(
    ("lines", "status", "reason"),
    [
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 400, "both"),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], 400, "both"),
        (["Content-Length: 5", "Content-Length: 5"], 400, "content-length 2 times"),
        (["Content-Length: 5, 5"], 400, "not a number"),
        (["Content-Length: +5"], 400, "not a number"),
        (["Content-Length: 0x5"], 400, "not a number"),
        (["Content-Length: -1"], 400, "not a number"),
        (["Content-Length:"], 400, "not a number"),
        (["Content-Length: 5 5"], 400, "not a number"),
        (["Content-Length: \xb2"], 400, "not a number"),
        (["Content-Length: " + "1" * 20], 400, "not a number"),
        (["Transfer-Encoding: gzip, chunked"], 501, "chunked"),
        (["Transfer-Encoding: chunked, chunked"], 501, "chunked"),
        (["Transfer-Encoding: xchunked"], 501, "chunked"),
        (["Transfer-Encoding: \x80chunked"], 501, "chunked"),
        (["Transfer-Encoding:"], 501, "chunked"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], 400, "transfer-encoding 2 times"),
        (["Content_Length: 5"], 400, "some servers take"),
        (["Transfer_Encoding: chunked"], 400, "some servers take"),
        (["Connection: close, Host"], 400, "dropped"),
        (["Connection: keep-alive", "Connection: content-length"], 400, "dropped"),
        (["Connection: x,\tTransfer-Encoding ,y"], 400, "dropped"),
        (["Upgrade: "], 400, "Upgrade"),
        (["Upgrade: h2c,"], 400, "Upgrade"),
        (["Upgrade: a b"], 400, "Upgrade"),
        (["Upgrade: \xff"], 400, "Upgrade"),
        ([" folded: x"], 400, "second line"),
        (["\tfolded"], 400, "second line"),
        (["X: a", " b"], 400, "second line"),
        (["X : a"], 400, "a colon right behind"),
        (["X\t: a"], 400, "a colon right behind"),
        (["X"], 400, "a colon right behind"),
        ([": a"], 400, "a colon right behind"),
        (["X Y: a"], 400, "a colon right behind"),
        (["X\xe9: a"], 400, "a colon right behind"),
        (["X(: a"], 400, "a colon right behind"),
        (["X: a\0b"], 400, "control character"),
        (["X: a\x01b"], 400, "control character"),
        (["X: a\x7fb"], 400, "control character"),
        (["X: a\x0bHost: evil.com"], 400, "control character"),
        (["X: a\rHost: evil.com"], 400, "line that does not end"),
        (["X: a\nHost: evil.com"], 400, "line that does not end"),
        (["X: a\r\rHost: evil.com"], 400, "line that does not end"),
        (["X: a\r"], 400, "line that does not end"),
    ],
)
def test_a_head_that_two_programs_could_read_differently(lines, status, reason):
    refused(head("Host: a.b", *lines), status, reason)


@pytest.mark.parametrize("host", ["a.b\0", "a.b\0.evil.com", "\0a.b", "a.b\x01", "a.b\r", "a\rb", "a\nb"])
def test_a_host_with_control_characters(host):
    refused(head(f"Host: {host}"), 400, "control character")


def test_transfer_encoding_of_http_1_0():
    refused(head("Host: a.b", "Transfer-Encoding: chunked", first="POST / HTTP/1.0"), 400, r"HTTP/1\.0")


# Its first line


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        ("GET /", 400, "first line"),  # HTTP/0.9
        ("GET", 400, "first line"),
        ("GET  / HTTP/1.1", 400, "first line"),
        ("GET\t/ HTTP/1.1", 400, "first line"),
        ("GET / HTTP/1.1 ", 400, "first line"),
        ("GET /  HTTP/1.1", 400, "first line"),
        ("GET /a b HTTP/1.1", 400, "first line"),
        ("GET /\xe9 HTTP/1.1", 400, "first line"),
        ("GET / http/1.1", 400, "first line"),
        ("GET / HTTP/1", 400, "first line"),
        ("GET / HTTP/1.10", 400, "first line"),
        ("GET / HTTP/01.1", 400, "first line"),
        ("G(T / HTTP/1.1", 400, "first line"),
        ("get / HTTP/1.1", 400, "in capitals"),  # mitmproxy takes it for GET
        ("Get / HTTP/1.1", 400, "in capitals"),
        ("1GET / HTTP/1.1", 400, "in capitals"),
        (" GET / HTTP/1.1", 400, "does not start"),
        ("", 400, "does not start"),
        ("\r\nGET / HTTP/1.1", 400, "does not start"),
        ("GET / HTTP/1.2", 505, "1.0 and 1.1"),
        ("GET / HTTP/0.9", 505, "1.0 and 1.1"),
        ("GET / HTTP/2.0", 505, "1.0 and 1.1"),
        ("GET / HTTP/3.0", 505, "1.0 and 1.1"),
        ("PRI / HTTP/1.1", 505, "1.0 and 1.1"),
        ("CONNECT a.b:22 HTTP/1.1", 405, "CONNECT"),
        ("CONNECT / HTTP/1.1", 405, "CONNECT"),
        ("GET a.b:80 HTTP/1.1", 400, "neither"),
        ("GET * HTTP/1.1", 400, "neither"),
        ("GET x HTTP/1.1", 400, "neither"),
        ("GET https://a.b/ HTTP/1.1", 400, "neither"),
        ("GET ftp://a.b/ HTTP/1.1", 400, "neither"),
        ("GET http:/a.b/ HTTP/1.1", 400, "neither"),
        ("GET http:a.b HTTP/1.1", 400, "neither"),
        ("GET //\\evil.com HTTP/1.1", 400, "holds no"),
        ("GET http://a.b\\@evil.com/ HTTP/1.1", 400, "holds no"),
        ("GET http://a.b#@evil.com/ HTTP/1.1", 400, "holds no"),
        ("GET /#x HTTP/1.1", 400, "holds no"),
        ("GET http:// HTTP/1.1", 400, "does not name a host"),
        ("GET http:///a.b HTTP/1.1", 400, "does not name a host"),
        ("GET http://?a.b HTTP/1.1", 400, "does not name a host"),
        ("GET /\0 HTTP/1.1", 400, "control character"),
        ("GET /\r HTTP/1.1", 400, "control character"),
    ],
)
def test_a_first_line_that_is_none(first, status, reason):
    refused(head("Host: a.b", first=first), status, reason)


def test_http_2_without_tls():
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "1.0 and 1.1")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\3\1\2\0\1\0\1\xfc\3\3",
        b"\0",
        b"\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a.b\nX: y\r\n",
        b"GET / HTTP/1.1\nHost: a.b\n\n",
        b"GET / HTTP/1.1\r\nHost: a.b\r\n\n",
        b"GET /\r\n",
        b"CONNECT a.b:443 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"GET \rx",
    ],
)
def test_what_cannot_become_a_head_is_refused_at_once(data):
    with pytest.raises(BadHead):
        parse_head(data)
    assert isinstance(outcome([data[at : at + 1] for at in range(len(data))]), int)


# Bounds


@pytest.mark.parametrize("over", [0, 1, 4, 100_000])
def test_a_head_has_16_kib(over):
    padding = MOST_BYTES - len(head("Host: a.b", "X: ")) + over
    data = head("Host: a.b", f"X: {'x' * padding}")
    assert len(data) == MOST_BYTES + over
    if over:
        refused(data, 431, "16384")
    else:
        assert parse_head(data + b"body").host == "a.b"


def test_a_first_line_of_any_length_up_to_the_limit():
    assert parse_head(head("Host: a.b", first=f"GET /{'x' * 16000} HTTP/1.1")).target == "/" + "x" * 16000
    refused(b"GET /" + b"x" * MOST_BYTES, 431, "16384")
    refused(b"A" * MOST_BYTES, 431, "16384")


@pytest.mark.parametrize(
    "beginning",
    [lambda size: b"G" * size, lambda size: head("Host: a.b", *["X: y"] * (size // 6))],
    ids=["line", "lines"],
)
def test_hostile_pieces_cost_no_more_than_their_bytes(beginning):
    def seconds(size: int) -> float:
        data = beginning(size)
        best = 1.0
        for _ in range(5):
            reader, began = HeadReader(), time.process_time()
            for at in range(len(data)):
                reader.feed(data[at : at + 1])
            best = min(best, time.process_time() - began)
        return best

    assert seconds(16000) < 10 * seconds(4000)


# However it is cut


@given(st.data())
def test_a_damaged_head_is_judged_the_same_in_any_pieces(data):
    whole = head(
        "Host: a.b:80", "Content-Length: 5", "Connection: upgrade", "Upgrade: h2c", first="PUT http://a.b/ HTTP/1.1"
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 2))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from(b"\0\t\n\r :@,/.a5\x80"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(damaged)), max_size=6)))
    pieces = [bytes(damaged[a:b]) for a, b in zip([0, *cuts], [*cuts, len(damaged)], strict=True)]
    one, several = outcome([bytes(damaged)]), outcome(pieces)
    assert one == several or (isinstance(one, int) and isinstance(several, int))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    for candidate in (data, b"GET / HTTP/1.1\r\nHost: " + data + b"\r\n\r\n", b"GET " + data + b" HTTP/1.1\r\n"):
        found = outcome([candidate])
        assert found is None or isinstance(found, Head) or found in (400, 405, 431, 501, 505)


# Telling HTTP from the rest


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (b"", None),
        (b"G", None),
        (b"GET", None),
        (b"GET /", None),
        (b"GET / HTTP", None),
        (b"GET / HTTP/", True),
        (b"GET / HTTP/1.1\r\n", True),
        (b"get / http/1.1\r\n", True),
        (b"GET\t/\tHTTP/1.1\n", True),
        (b"\r\n\r\n GET / HTTP/1.1\n", True),
        (b"\r\n", None),
        (b"WHATEVER / HTTP/1.1\r\n", True),
        (b"PRI * HTTP/2.0\r\n\r\n", True),
        (b"CONNECT a.b:22 HTTP/1.1\r\n", True),
        (b"GET /\x01", True),  # refused later, but not let through as something else
        (b"GET\x0b/", True),
        (b"get \0", True),
        (b"GET(", False),
        (b"GET(\0", False),  # as of its first four bytes
        (b"GET /\r\r\n", True),
        (b"GET /\r\n", False),  # names no host
        (b"GET key\r\n", False),
        (b"OPTIONS rtsp://a.b RTSP/1.0\r\n", False),
        (b"INVITE sip:a@b SIP/2.0\r\n", False),
        (b"EHLO a.b\r\n", False),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", False),
        (b"*1\r\n$4\r\nPING\r\n", False),
        (b"003agit-upload-pack /p\0host=a.b\0", False),
        (b"AMQP\0\0\x09\x01", False),
        (b"0\x0c\x02\x01", False),  # LDAP
        (b"\0\0\0\x08\x04\xd2\x16\x2f", False),  # PostgreSQL
        (b"\x16\3\1", False),
        (b"<?xml", False),
        (b"{", False),
        (b"X \0 HTTP/1.1\r\n", False),  # no server reads both as HTTP
        (b"a" * 4096, True),
        (b" " * 4096, True),
    ],
)
def test_looks_like_http(first, answer):
    assert looks_like_http(first) is answer


_beginnings = st.lists(
    st.sampled_from([b"GET", b"X", b" ", b"\t", b"\0", b"\x0b", b"\r", b"\n", b"/", b"HTTP", b"HTTP/", b"(", b"\xff"]),
    max_size=9,
).map(b"".join)


@given(_beginnings, _beginnings | st.binary(max_size=12))
def test_an_answer_does_not_change(first, more):
    early = looks_like_http(first)
    assert early is None or looks_like_http(first + more) is early


@given(st.text("GET /HTP.1\r\n \t:x\0hosta", max_size=40).map(str.encode))
def test_what_is_read_as_a_head_looks_like_one(data):
    for candidate in (data, b"GET " + data + b" HTTP/1.0\r\n\r\n"):
        if isinstance(outcome([candidate]), Head):
            assert looks_like_http(candidate) is True
