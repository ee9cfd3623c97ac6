"""The head of the first HTTP/1 request on a connection, read strictly: which host it asks for.

h11 reads the wire format. On top of that, whatever another server could read differently is an error: the gateway
compares a name with what it reads, and the server behind it must read the same. RFC 9112 (HTTP/1.1), RFC 9110 (Host,
Upgrade), RFC 3986 section 3.2 (authority).
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

import h11

from osmoda.egress.addresses import classify
from osmoda.egress.hello import MalformedHello, host_name

MOST_BYTES = 16384
"""What a head may take up, in bytes, with the empty line at its end."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Methods are case-sensitive, but to some parsers "get" is GET: only capitals, as in profiles.
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9_-]*) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_FIELD_LINE = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")
# Control characters (HTAB may stand in values), and CR and LF that do not stand together; a CR at the end may yet.
_MISPLACED = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])", re.DOTALL)
_ABSOLUTE = re.compile(rb"http://([^/?]*)(?:[/?].*)?", re.IGNORECASE)
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_PROTOCOL = re.compile(_TOKEN + rb"(?:/" + _TOKEN + rb")?")

# What a connection must begin with to be held for HTTP whatever comes next; others only with "HTTP/" in the line.
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI")
_METHOD = re.compile(_TOKEN)
_MOST_OF_A_LINE = 4096  # bytes that may pass before the first line must have shown what it is
_CONTROL = bytes(byte for byte in (*range(32), 127) if byte != ord("\t"))

# Fields that say where a request ends or goes: read twice, or under a name that some servers take for theirs, or taken
# out on the way by `Connection`, they make two requests of one.
_DECISIVE = (b"host", b"content-length", b"transfer-encoding")


class BadHead(ValueError):
    """No head to rely on; the text says why. `status` is what HTTP answers: 400, 405, 431, 501 or 505."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """What a request asks for.

    `host` is canonical: a name in lower case, or an IPv4 or IPv6 address (without brackets); empty where the request
    names none (HTTP/1.0). It is given only when all that names a host agrees. `port` is 0 where none is given.
    `upgrade` lists the protocols that the client would change to, in lower case with "," between ("websocket", "h2c").
    """

    method: str
    target: str
    host: str
    port: int
    upgrade: str


def looks_like_http(first: bytes) -> bool | None:
    """Whether a connection that begins so could be read as HTTP/1 by some server, however lenient; None: too early.

    What it says True to may still be refused by `parse_head`. A request without a version (HTTP/0.9) names no host, so
    it does not count.
    """
    line, newline, _ = first[:_MOST_OF_A_LINE].lstrip(b"\r\n\t ").partition(b"\n")
    undecided = True if len(first) >= _MOST_OF_A_LINE else None
    if not line:
        return undecided
    method = _METHOD.match(line)
    if method is None:
        return False
    rest = line[method.end() :]
    if rest and rest[:1] not in b"\t \r" + _CONTROL:
        return False
    before, version, _ = rest.replace(b"\t", b" ").lower().partition(b" http/")
    checked = before if version else before.removesuffix(b"\r")
    if checked.translate(None, _CONTROL) != checked:
        return method[0].upper() in _METHODS
    if version:
        return True
    return False if newline else undecided


def parse_head(data: bytes) -> Head | None:
    """The head that `data`, the first bytes of a connection, begins with; None when more are needed.

    What follows the head is not looked at. Raises BadHead. Whoever reads piece by piece takes a HeadReader instead:
    this begins anew each time.
    """
    return HeadReader().feed(data)


class HeadReader:
    """Reads a head as it comes in. All pieces together cost time and memory in proportion to the head."""

    __slots__ = ("_buffer", "_error", "_head", "_line_end")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: Head | None = None
        self._error: BadHead | None = None
        self._line_end = -1  # where the request line ends, once it has been checked

    def feed(self, data: bytes) -> Head | None:
        """The head as soon as it is complete, and from then on; None when more bytes are needed.

        Raises BadHead as soon as the head cannot be right, and from then on.
        """
        if self._error is not None:
            raise BadHead(str(self._error), self._error.status)
        if self._head is None:
            try:
                self._head = self._read(data)
            except BadHead as error:
                self._error = error
                raise
        return self._head

    def _read(self, data: bytes) -> Head | None:
        buffer = self._buffer
        known = len(buffer)
        buffer += data[: MOST_BYTES - known]
        blank = buffer.find(b"\r\n\r\n", max(0, known - 3))
        end = len(buffer) if blank < 0 else blank + 4
        if buffer and not _METHOD.match(buffer, 0, 1):
            raise BadHead("the connection does not start with an HTTP request")
        if _MISPLACED.search(buffer, max(0, known - 1), end):
            raise BadHead("the head of the request has a control character, or a line that does not end in CR LF")
        if self._line_end < 0:
            self._line_end = buffer.find(b"\r\n", max(0, known - 1))
            if self._line_end >= 0:
                _check_request_line(bytes(buffer[: self._line_end]))
        if blank >= 0:
            return _read_head(bytes(buffer[:end]))
        if len(buffer) == MOST_BYTES:
            raise BadHead(f"the head of the request has more than {MOST_BYTES} bytes", 431)
        return None


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadHead(
            "the first line is not a method in capitals, a target and a version of HTTP with one space between"
        )
    method, target, version = match.groups()
    if method == b"PRI" or version not in (b"1.0", b"1.1"):
        raise BadHead("without TLS only HTTP/1.0 and 1.1 are spoken here", 505)
    if method == b"CONNECT":
        raise BadHead("this is no proxy to CONNECT through: names are reached by themselves", 405)
    if b"#" in target or b"\\" in target:
        raise BadHead('the target of a request holds no "#" and no "\\"')  # RFC 3986: servers disagree on both
    if not (target.startswith(b"/") or _ABSOLUTE.fullmatch(target) or (target == b"*" and method == b"OPTIONS")):
        raise BadHead("the target of the request is neither a path nor an http URL")


def _read_head(head: bytes) -> Head:
    lines = head[:-4].split(b"\r\n")[1:]
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        if line[:1] in b"\t ":
            raise BadHead("a header of the request goes on over a second line")  # obs-fold: RFC 9112, section 5.2
        if not _FIELD_LINE.fullmatch(line):
            raise BadHead("a header of the request is not a name, a colon right behind it and a value")
        name, _, value = line.partition(b":")
        fields.setdefault(name.lower(), []).append(value.strip(b"\t "))
    _check_framing(fields)
    request = _read_with_h11(head)
    host, port = _agreed_host(bytes(request.target), fields.get(b"host", []))
    if request.http_version == b"1.0" and b"transfer-encoding" in fields:
        raise BadHead("a request of HTTP/1.0 has no Transfer-Encoding")  # RFC 9112, section 6.1
    return Head(request.method.decode(), request.target.decode(), host, port, _upgrade(fields.get(b"upgrade", [])))


def _check_framing(fields: dict[bytes, list[bytes]]) -> None:
    for name, values in fields.items():
        if name in _DECISIVE:
            if len(values) > 1:
                raise BadHead(f"the request has the header {name.decode()} {len(values)} times")
        elif name.replace(b"_", b"-") in _DECISIVE:
            raise BadHead("the request has a header that some servers take for one that says where it ends")
    if b"content-length" in fields:
        if b"transfer-encoding" in fields:
            raise BadHead("the request has both Content-Length and Transfer-Encoding")
        if not _LENGTH.fullmatch(fields[b"content-length"][0]):
            raise BadHead("the Content-Length of the request is not a number")
    for value in fields.get(b"connection", ()):
        if any(token.strip(b"\t ").lower() in _DECISIVE for token in value.split(b",")):
            raise BadHead("the request asks for a header to be dropped that says where it goes or ends")


def _read_with_h11(head: bytes) -> h11.Request:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_BYTES)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHead(f"the request is not HTTP as it should be ({error})", error.error_status_hint) from None
    if not isinstance(event, h11.Request):
        raise BadHead("the connection does not start with an HTTP request")
    return event


def _agreed_host(target: bytes, hosts: list[bytes]) -> tuple[str, int]:
    """The host and port that both the target, where it is absolute, and Host name."""
    absolute = _ABSOLUTE.fullmatch(target)
    named = [(hosts[0], "Host")] if hosts else []
    if absolute:
        named.append((absolute[1], "the target"))
    found = [_authority(raw, where) for raw, where in named]
    if not found:
        return "", 0
    if absolute and len({(host, port or 80) for host, port in found}) > 1:
        raise BadHead("the target of the request and its Host do not name the same host and port")
    return found[0][0], max(port for _, port in found)


def _authority(raw: bytes, where: str) -> tuple[str, int]:
    """The canonical host and the port (0: none) of `host`, `host:port` or `[address]:port`; nothing else."""
    if b"@" in raw:
        raise BadHead(f"{where} names a user before the host")
    if raw[:1] == b"[":
        text, bracket, rest = raw[1:].partition(b"]")
        if not bracket or rest[:1] not in b":":
            raise BadHead(f"{where} has brackets that do not hold an IPv6 address")
        host = _ipv6(text, where)
        port = rest[1:] if rest else None
    else:
        text, colon, port_text = raw.partition(b":")
        host = _name_or_ipv4(text, where)
        port = port_text if colon else None
    if port is None:
        return host, 0
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadHead(f"{where} names a port that is not a number from 1 to 65535")
    return host, int(port)


def _name_or_ipv4(text: bytes, where: str) -> str:
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text.decode("ascii")))
    except (OSError, ValueError):
        pass
    try:
        return host_name(text.removesuffix(b"."))
    except MalformedHello as error:
        raise BadHead(f"{where} does not name a host: {error}") from None


def _ipv6(text: bytes, where: str) -> str:
    try:
        packed = socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
    except (OSError, ValueError):
        raise BadHead(f"{where} has brackets that do not hold an IPv6 address") from None
    if classify(packed) == "mapped":
        raise BadHead(f"{where} writes an IPv4 address as IPv6")
    return socket.inet_ntop(socket.AF_INET6, packed)


def _upgrade(values: list[bytes]) -> str:
    protocols = [token.strip(b"\t ").lower() for value in values for token in value.split(b",")]
    if not all(_PROTOCOL.fullmatch(protocol) for protocol in protocols):
        raise BadHead("the Upgrade of the request does not name protocols")
    return b",".join(protocols).decode()
