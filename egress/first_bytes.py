"""What a client says first, and whether it may stand for the name that it connected to.

Port 443 wants TLS, port 80 HTTP/1 or TLS. Other ports take anything, but what is TLS or HTTP there is read as strictly:
it names a host, and a name that was not connected to must not pass. Bytes in, findings out: no socket, no clock.
"""

from __future__ import annotations

from osmoda.egress import usual_hello
from osmoda.egress.hello import HelloReader, MalformedHello, looks_like_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.egress.http_head import HeadReader

TLS, HTTP, OTHER = "tls", "http", "tcp"
"""What `FirstBytes.protocol` may be, as records have it; empty while it is not known."""

HTTPS_PORT, HTTP_PORT = 443, 80


class Unacceptable(Exception):
    """The bytes are not what the port takes, or cannot be relied on. `status` is what HTTP answers."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class FirstBytes:
    """Reads them as they come in. `content` is all that was fed, to be passed on.

    When `feed` says that it is enough, `host` is the name in it (empty where there is none), `port` what stands beside
    it (0 where nothing does), `hidden` whether a part of the hello is encrypted.
    """

    __slots__ = ("_http", "_port", "_tls", "content", "hidden", "host", "port", "protocol")

    def __init__(self, port: int) -> None:
        """Prepare for the first bytes of a connection to `port`."""
        self._port = port
        self._tls: HelloReader | None = None
        self._http: HeadReader | None = None
        self.content: bytes | bytearray = b""
        self.protocol = ""
        self.host = ""
        self.port = 0
        self.hidden = False

    def feed(self, some: bytes) -> bool:
        """Whether it is enough. Raises Unacceptable; `protocol` then says in which protocol to answer."""
        if not self.content:
            self.content = some
        elif isinstance(self.content, bytes):
            self.content = bytearray(self.content) + some
        else:
            self.content += some
        if not self.protocol:
            some = bytes(self.content)
            self.protocol = protocol_of(some)
        if self.protocol == TLS:
            return self._read_hello(some)
        if self.protocol == HTTP:
            if self._port == HTTPS_PORT:
                raise Unacceptable("what came on port 443 is plain HTTP, and port 443 is for TLS")
            return self._read_head(some)
        if self.protocol and self._port in (HTTPS_PORT, HTTP_PORT):
            what = "TLS" if self._port == HTTPS_PORT else "HTTP/1 or TLS"
            raise Unacceptable(f"what came on port {self._port} is not {what}")
        return bool(self.protocol)

    def may_end(self) -> bool:
        """The client has ended: whether what there is may be passed on, an undecided beginning of nothing included."""
        return self.protocol not in (TLS, HTTP) and self._port not in (HTTPS_PORT, HTTP_PORT)

    def _read_hello(self, some: bytes) -> bool:
        hello = usual_hello.read(some) if self._tls is None else None
        try:
            if hello is None:
                if self._tls is None:
                    self._tls = HelloReader()
                hello = self._tls.feed(some)
        except MalformedHello as error:
            raise Unacceptable(f"the TLS hello cannot be relied on: {error}") from None
        if hello is None:
            return False
        self.host = hello.server_name or ""
        self.hidden = hello.ech
        self._tls = None
        return True

    def _read_head(self, some: bytes) -> bool:
        from osmoda.egress import http_head

        if self._http is None:
            self._http = http_head.HeadReader()
        try:
            head = self._http.feed(some)
        except http_head.BadHead as error:
            raise Unacceptable(f"the HTTP request cannot be relied on: {error}", error.status) from None
        if head is None:
            return False
        if any(protocol.strip().startswith("h2c") for protocol in head.upgrade.split(",")):
            # What follows would be another protocol, with requests of its own, which nobody has looked at.
            raise Unacceptable("the HTTP request asks for HTTP/2 on a connection that is passed on unopened (h2c)", 400)
        self.host, self.port = head.host, head.port
        self._http = None
        return True


def protocol_of(first: bytes) -> str:
    """How a connection that begins with `first` would be read; empty: too early to tell."""
    tls = looks_like_tls(first)
    if tls is None:
        return ""
    if tls:
        return TLS
    # h11 and `re` are loaded by the first connection that is not TLS.
    from osmoda.egress.http_head import looks_like_http

    http = looks_like_http(first)
    if http is None:
        return ""
    return HTTP if http else OTHER
