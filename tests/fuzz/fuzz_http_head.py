"""The reader of HTTP heads: what it accepts can be read in one way only, and other parsers read the same host."""

from __future__ import annotations

import http.client
import io
import ipaddress
import re

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from mitmproxy.net.http.http1.read import read_request_head

from osmoda.egress.http_head import MOST_BYTES, BadHead, Head, HeadReader, looks_like_http, parse_head
from tests.fuzz.lane import Choices, cut, run

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(TOKEN + rb" (?:/[\x21-\x7e]*|\*|[hH][tT][tT][pP]://[\x21-\x7e]+) HTTP/1\.[01]")
HEADER_LINE = re.compile(
    rb"(" + TOKEN + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
AUTHORITY = re.compile(rb"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::([1-9][0-9]{0,4}))?")

METHODS = (b"GET", b"POST", b"OPTIONS", b"CONNECT", b"PRI", b"M-SEARCH", b"get")
HOSTS = (
    b"a.b",
    b"A.b:80",
    b"evil.com",
    b"[::1]:8080",
    b"192.0.2.1",
    b"a.b@evil.com",
    b"127.1",
    b"a.b:0443",
    b"a.b.",
    b"a.b:70000",
)
TARGETS = (
    b"/",
    b"*",
    b"http://a.b/",
    b"http://a.b:80?x",
    b"http://evil.com/",
    b"HTTP://A.B",
    b"//evil.com/x",
    b"/..%2f#",
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"")
FIELDS = (
    b"X: y",
    b"Host: a.b",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: close, Host",
    b"Upgrade: h2c",
    b"Content_Length: 5",
    b" folded: x",
)
NAMES = (b"host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"X", b"")
VALUES = (b"a.b", b"5", b"5, 5", b"chunked", b"gzip, chunked", b"websocket", b"", b"x\r\n y")
BETWEEN = (b": ", b":", b" : ", b":\t", b"")
ENDS = (b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\r\n")


def outcome(pieces: list[bytes]) -> Head | int | None:
    """What a reader makes of the pieces: the head, None, or the status of the refusal."""
    reader = HeadReader()
    found = None
    try:
        for piece in pieces:
            found = reader.feed(piece)
    except BadHead as error:
        return error.status
    return found


def any_bytes(choices: Choices) -> None:
    check(choices.sizes(), choices.rest())


def any_lines(choices: Choices) -> None:
    """A head from parts, most of them as they should be."""
    parts = [_or_any(choices, METHODS), b" ", _or_any(choices, TARGETS), b" ", choices.pick(VERSIONS), _end(choices)]
    if choices.number(3):
        parts += [b"Host: ", _or_any(choices, HOSTS), _end(choices)]
    for _ in range(choices.number(5)):
        if choices.number(3):
            parts += [choices.pick(FIELDS), _end(choices)]
        else:
            parts += [_or_any(choices, NAMES), choices.pick(BETWEEN), _or_any(choices, VALUES), _end(choices)]
    parts += [b"X: ", bytes(b"x" * choices.number(MOST_BYTES)), _end(choices)] if choices.number(20) == 20 else []
    parts += [_end(choices), choices.piece(20)]
    check(choices.sizes(), b"".join(parts))


def _or_any(choices: Choices, options: tuple[bytes, ...]) -> bytes:
    return choices.piece(30) if choices.number(7) == 7 else choices.pick(options)


def _end(choices: Choices) -> bytes:
    return choices.pick(ENDS) if choices.number(15) == 15 else b"\r\n"


def check(sizes: list[int], data: bytes) -> None:
    found = outcome([data])
    pieces = cut(data, sizes)
    again = outcome(pieces)
    assert looks_like_http(pieces[0]) in (None, looks_like_http(data)), "it takes back what it said"
    # In pieces another fault may be met first, but it is no head either.
    assert found == again or (isinstance(found, int) and isinstance(again, int)), "it depends on how it is cut"
    assert not isinstance(found, int) or found in (400, 405, 431, 501, 505)
    if isinstance(found, Head):
        assert parse_head(data) == found
        assert looks_like_http(data) is True
        head, blank, _ = data.partition(b"\r\n\r\n")
        check_grammar(head, found)
        compare(head + blank, found)


def check_grammar(head: bytes, found: Head) -> None:
    """Split at CR LF, every line is one by the grammar, and what decides stands there once."""
    assert len(head) + 4 <= MOST_BYTES
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", head)
    first, *lines = head.split(b"\r\n")
    assert b"\r" not in b"".join(lines) + first
    assert b"\n" not in b"".join(lines) + first
    assert REQUEST_LINE.fullmatch(first)
    fields = [HEADER_LINE.fullmatch(line) for line in lines]
    assert all(fields)
    names = [field[1].lower().replace(b"_", b"-") for field in fields]
    values = dict(zip(names, [field[2] for field in fields], strict=True))
    for name in (b"host", b"content-length", b"transfer-encoding"):
        assert names.count(name) <= 1
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    method, target, version = first.split(b" ")
    assert (method.decode(), target.decode()) == (found.method, found.target)
    named = [values[b"host"]] if b"host" in names else []
    if not target.startswith((b"/", b"*")):
        named.append(re.split(rb"[/?]", target[7:])[0])
    assert named or (version == b"HTTP/1.0" and found.host == "")
    for authority in named:
        parts = AUTHORITY.fullmatch(authority)
        assert parts
        if parts[1].startswith(b"["):
            assert ":" in found.host
        else:
            assert parts[1].lower().decode().removesuffix(".") == found.host
        assert int(parts[2] or 80) == (found.port or 80)
        assert found.port <= 65535


class _Nothing:
    """The connection and the loop of a parser of aiohttp: what it does with bodies is no matter here."""

    _reading_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def compare(head: bytes, found: Head) -> None:
    """Node's parser (by aiohttp), mitmproxy's and Python's refuse the head, or read the same in it."""
    lines = head[:-4].split(b"\r\n")
    message = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
    hosts = {_bare(value) for value in message.get_all("Host", [])}
    assert hosts == ({_with_port(found)} if hosts else set())
    try:
        parser = HttpRequestParser(_Nothing(), _Nothing(), 2**16, max_line_size=MOST_BYTES, max_field_size=MOST_BYTES)
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        messages = []
    for request, _ in messages:
        assert (request.method, request.path) == (found.method, found.target)
        assert [_bare(value) for value in request.headers.getall("Host", [])] in ([], [_with_port(found)])
    assert len(messages) <= 1
    try:
        request = read_request_head(lines)
    except ValueError:
        return
    assert request.method == found.method
    if request.host_header:
        assert _bare(request.host_header) == _with_port(found)
    if found.target.lower().startswith("http://"):
        assert request.host.lower().removesuffix(".") == found.host


def _bare(host: str) -> str:
    """Without what does not tell hosts apart."""
    host = host.strip(" \t").lower()
    name, port = (host, "") if host.endswith("]") or ":" not in host else host.rsplit(":", 1)
    if name.startswith("["):
        name = f"[{ipaddress.ip_address(name[1:-1])}]"
    return f"{name.removesuffix('.')}:{port or 80}"


def _with_port(head: Head) -> str:
    return f"{f'[{head.host}]' if ':' in head.host else head.host}:{head.port or 80}"


MODES = (any_bytes, any_lines)


def one(data: bytes) -> None:
    choices = Choices(data)
    choices.pick(MODES)(choices)


if __name__ == "__main__":
    run(one)
