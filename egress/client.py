"""The client's half of a connection: what it says first, and how it is turned away.

What it says is held against the name or address it connected to. Whom it may not reach it is told in its own protocol,
where that has words for it.
"""

from __future__ import annotations

import _socket

from osmoda.egress import first_bytes, relay
from osmoda.egress import loop as _loop
from osmoda.egress.farewell import UNRECOGNIZED_NAME, Farewell, Refusal, words
from osmoda.egress.first_bytes import FirstBytes, Unacceptable
from osmoda.egress.judgement import contradiction, decide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.egress.dial import UpstreamError
    from osmoda.egress.loop import Timer
    from osmoda.egress.relay import Relay
    from osmoda.egress.session import Session

READING, HELD, RESOLVING, DIALLING, RELAYING, INSPECTED, REFUSED, ENDED = (
    "reading", "held", "resolving", "dialling", "relaying", "inspected", "refused", "ended",
)  # fmt: skip

FIRST_BYTES = 10.0
"""Seconds for the client to say what is read before its server is dialled."""

_PROTOCOL_SECONDS = 1.0  # for the client of a refused connection to show in which protocol to tell it
_AT_ONCE = 16384  # bytes
_READ_FIRST = (first_bytes.HTTPS_PORT, first_bytes.HTTP_PORT)
_GONE = _loop.ERR | _loop.HUP
_MORE = _loop.RDHUP | _loop.PRI | _GONE
_STATUS = {"timeout": 504, "busy": 503}  # of upstream errors; the others are 502


class Client:
    """The client of `session` that meant to go to the address and port in `original`.

    What comes of it is up to Connection: `_proceed` is called when what is to be read first has been read; `_record`
    and `_end` when the client is turned away, and when it has gone.
    """

    __slots__ = (
        "_farewell",
        "_first",
        "_refusal",
        "_timer",
        "_unread",
        "address",
        "began",
        "hidden",
        "name",
        "port",
        "protocol",
        "relay",
        "session",
        "socket",
        "state",
        "verdict",
    )

    def __init__(self, session: Session, fd: int | _socket.socket, original: tuple[bytes, int]) -> None:
        """Raises OSError when the loop cannot take it; it is closed then."""
        loop = session.loop
        self.session = session
        self.address, self.port = original
        self.socket = relay.adopt(fd)
        self.began = loop.now
        self.state = READING
        self.protocol = ""
        self.hidden = self._unread = False
        self.relay: Relay | None = None
        self._first: FirstBytes | None = FirstBytes(self.port)
        self._refusal: Refusal | None = None
        self._farewell: Farewell | None = None
        try:
            loop.register(self.socket.fileno(), _loop.STREAM, self.ready)
        except OSError:
            self.socket.close()
            raise
        self._timer: Timer = loop.call_later(FIRST_BYTES, self._too_late)
        self.name = session.table.name_of(self.address) or ""
        if self.name:
            session.table.hold(self.name)
        self.verdict = decide(session.policy, self.name, self.address, self.port)

    @property
    def speaks_first(self) -> bool:
        """Whether what it says is read before anything is dialled."""
        return self.port in _READ_FIRST or self.verdict.inspect

    def _proceed(self) -> None:
        """What is to be read first has been read, and may go where the connection leads."""
        raise NotImplementedError

    def _withdraw(self) -> None:
        """Wait for nobody any more."""
        raise NotImplementedError

    def _record(self, verdict: str, action: str, reason: str, rule: str | None = None) -> None:
        """Leave the record of how it went."""
        raise NotImplementedError

    def _end(self) -> None:
        """It is over, and its socket closed."""
        raise NotImplementedError

    # --- what it says first ---

    def ready(self, events: int) -> None:
        """The client has said something, or has gone. Events may be stale."""
        if self.state is READING:
            self._read(events)
            return
        self._unread = True
        hung_up = events & _loop.RDHUP and self.state is HELD
        if hung_up or (events & _GONE and self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)):
            self._gone()

    def _read(self, events: int) -> None:
        first = self._first
        while first is not None and self.state is READING:
            try:
                some = self.socket.recv(_AT_ONCE)
            except BlockingIOError:
                return
            except OSError:
                some = b""
            if not some:
                self._gone()
                return
            drained = len(some) < _AT_ONCE and not events & _MORE
            self._unread = not drained
            if self._refusal is not None:
                # All that is still to be known is in which protocol to say it.
                first.content += some
                self.protocol = first_bytes.protocol_of(bytes(first.content))
                if self.protocol or len(first.content) >= _AT_ONCE:
                    self._say()
            elif self._feed(first, some):
                self._proceed()
            if drained:
                return

    def _feed(self, first: FirstBytes, some: bytes) -> bool:
        """Whether the first bytes are complete and may go where the connection leads; refused when they may not."""
        try:
            if not first.feed(some):
                return False
        except Unacceptable as error:
            self.protocol = first.protocol
            self._refuse(error.reason, status=error.status)
            return False
        self.protocol, self.hidden = first.protocol, first.hidden
        policy = self.session.policy
        reason, rule = contradiction(policy, self.verdict, self.name, self.address, self.port, first)
        if reason:
            self._refuse(reason, rule)
        return not reason

    def _show(self, some: bytes) -> bytes | None:
        """The relay's `check`: the client's first bytes on a port whose server was dialled before them."""
        first = self._first
        if first is None:
            return some
        if not some:
            if first.may_end():
                return bytes(first.content)
            self._refuse("the client ended the connection within its first bytes", status=400)
            return None
        if not first.content:
            self._timer = self.session.loop.call_later(FIRST_BYTES, self._too_late)
        if not self._feed(first, some):
            return None
        self._timer.cancel()
        self._first = None
        return bytes(first.content)

    def _too_late(self) -> None:
        if self._first is not None:
            self.protocol = self._first.protocol
        self._refuse(f"the client did not say within {FIRST_BYTES:.0f} seconds what it wants", status=400)

    def _read_first(self) -> None:
        """From now on its first bytes are wanted; they may be there already."""
        self.state = READING
        self._timer = self.session.loop.call_later(FIRST_BYTES, self._too_late)
        self._read(_MORE)

    # --- turning it away ---

    def _refuse(self, reason: str, rule: str | None = None, *, status: int = 403) -> None:
        rule = self.verdict.origin if rule is None else rule
        self._turn_away(Refusal("deny", "refused", reason, rule, status=status))

    def _fail(self, error: UpstreamError) -> None:
        """There is no way to the server; to a TLS client it looks as if the server itself had reset."""
        alert = UNRECOGNIZED_NAME if error.kind == "unresolvable" else 0
        status = _STATUS.get(error.kind, 502)
        self._turn_away(Refusal("allow", "failed", error.text, self.verdict.origin, status=status, alert=alert))

    def _turn_away(self, refusal: Refusal) -> None:
        """Tell the client in its own protocol; which one that is may have to be waited for."""
        loop = self.session.loop
        self._refusal = refusal
        self._timer.cancel()
        self._withdraw()
        if self.state is RELAYING and self.relay is not None:
            self.socket = self.relay.part()
            loop.take_over(self.socket.fileno(), _loop.STREAM, self.ready)
            if self.relay.bytes_down:
                self._cut()  # into what the server has said already, nothing can be put
                return
        self.state = READING
        if self.protocol:
            self._say()
            return
        self._timer = loop.call_later(_PROTOCOL_SECONDS, self._cut)
        if self._unread:
            self._read(_MORE)

    def _say(self) -> None:
        refusal, first = self._refusal, self._first
        assert refusal is not None
        text = words(refusal, self.protocol, bytes(first.content) if first is not None else b"")
        if not text:
            self._cut()
            return
        self._record(refusal.verdict, refusal.action, refusal.reason, refusal.rule)
        self._timer.cancel()
        self._first = None
        self.state = REFUSED
        self._farewell = Farewell(self.session.loop, self.socket, text, self._end)
        self._farewell.begin()

    def _cut(self) -> None:
        """Reset the client; what it is not told goes into the record."""
        refusal = self._refusal
        assert refusal is not None
        relay.reset(self.session.loop, self.socket)
        self._record(refusal.verdict, refusal.action, refusal.reason, refusal.rule)
        self._end()

    def _gone(self) -> None:
        """The client has ended it before there was anything to relay."""
        if self._refusal is None:
            self._refusal = Refusal("allow", "failed", "the client went away", self.verdict.origin)
        self._cut()
