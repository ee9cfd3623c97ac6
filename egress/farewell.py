"""How a connection is refused: in its own protocol, so that whoever made it reads why; else by a reset.

TLS gets the fatal alert access_denied (RFC 8446 section 6.2), HTTP an answer with the reason in a sentence. What the
client sent is read and thrown away first: closing with bytes unread sends a reset, which overtakes the answer.
"""

from __future__ import annotations

import _socket

from osmoda.egress import loop as _loop
from osmoda.egress.first_bytes import HTTP, TLS
from osmoda.egress.relay import reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.loop import Loop

DRAIN = 2.0
"""Seconds in which the client may take the answer."""

ACCESS_DENIED, UNRECOGNIZED_NAME = 49, 112
"""Alerts of TLS."""

_MOST = 1 << 20  # bytes that are thrown away
_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


class Refusal:
    """Why a client gets no further: what it is told, and what the record of its connection says.

    `verdict`, `action`, `reason` and `rule` are as in records; `status` is for HTTP, `alert` for TLS (0: a reset).
    """

    __slots__ = ("action", "alert", "reason", "rule", "status", "verdict")

    def __init__(
        self, verdict: str, action: str, reason: str, rule: str, *, status: int = 403, alert: int = ACCESS_DENIED
    ) -> None:
        self.verdict = verdict
        self.action = action
        self.reason = reason
        self.rule = rule
        self.status = status
        self.alert = alert


def words(refusal: Refusal, protocol: str, request: bytes = b"") -> bytes:
    """What to send; empty where the protocol has no words for it.

    `request` is what is known of an HTTP request: its answer is JSON when it asks for that, and has no body for HEAD.
    """
    if protocol == TLS:
        return b"\x15\x03\x03\x00\x02\x02" + bytes((refusal.alert,)) if refusal.alert else b""
    if protocol != HTTP:
        return b""
    status, reason, rule = refusal.status, refusal.reason, refusal.rule
    if b"json" in request.lower().partition(b"\naccept:")[2].partition(b"\n")[0]:
        import json

        kind = "application/json"
        body = json.dumps({"error": reason, "rule": rule}).encode() + b"\n"
    else:
        kind = "text/plain; charset=utf-8"
        body = f"{reason}{f' ({rule})' if rule and rule not in reason else ''}\n".encode(errors="replace")
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}\r\nServer: osmoda\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request[:5] == b"HEAD " else body)


class Farewell:
    """Says `content` to the client, waits until it has gone, and closes. `on_end()` is called once then.

    The socket, registered with the loop for `loop.STREAM`, becomes this object's to close. `begin` sets it going.
    """

    __slots__ = ("_content", "_left", "_loop", "_on_end", "_socket", "_timer")

    def __init__(self, loop: Loop, socket: _socket.socket, content: bytes, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._socket = socket
        self._content = content
        self._on_end: Callable[[], None] | None = on_end
        self._left = _MOST
        self._timer = loop.call_later(DRAIN, self.cut)
        loop.take_over(socket.fileno(), _loop.STREAM, self.ready)

    def begin(self) -> None:
        """Say it. It may be over when this returns."""
        try:
            # A few hundred bytes on a connection on which nothing was sent yet: the kernel takes them all.
            self._socket.send(self._content)
            self._socket.shutdown(_socket.SHUT_WR)
        except OSError:
            self.cut()
        else:
            self._read()

    def ready(self, events: int) -> None:
        """More came, or the end."""
        self._read()

    def _read(self) -> None:
        while self._on_end is not None:
            try:
                count = self._socket.recv_into(self._loop.scratch)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            self._left -= count
            if not count:
                self._end(graceful=True)
            elif self._left < 0:
                self.cut()

    def cut(self) -> None:
        """Reset it now: the client does not take the answer, or goes on and on. Does nothing after the end."""
        self._end(graceful=False)

    def _end(self, graceful: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self._timer.cancel()
        if graceful:
            self._loop.close(self._socket.detach())
        else:
            reset(self._loop, self._socket)
        on_end()

    def fault(self) -> None:
        """A callback has failed."""
        self.cut()
