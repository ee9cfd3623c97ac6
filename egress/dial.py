"""Connecting to the first of some addresses that answers, without waiting for any of them."""

from __future__ import annotations

import _socket
import errno
import posix

from osmoda.egress import loop as _loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.egress.loop import Loop, Timer

PATIENCE = 10.0
"""Seconds that a dial may take."""

_MOST_TRIED = 8
_STAGGER = 0.25  # seconds before the next address is tried beside one that does not answer (RFC 8305, section 5)

_KINDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EMFILE: "busy",
    errno.ENFILE: "busy",
    errno.ENOBUFS: "busy",
    errno.ENOMEM: "busy",
    errno.EAGAIN: "busy",
    errno.EADDRNOTAVAIL: "busy",
}


class UpstreamError(Exception):
    """Why there is no connection. `kind` is one of the words below, `text` a sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """"unresolvable", "refused", "unreachable", "timeout", "busy" or "reset"."""
        self.text = text


class Dial:
    """An attempt to connect. `cancel` gives it up: `done` is not called then."""

    __slots__ = (
        "_addresses",
        "_attempts",
        "_deadline",
        "_done",
        "_error",
        "_loop",
        "_next",
        "_port",
        "_stagger",
        "_told",
    )

    def __init__(
        self,
        loop: Loop,
        addresses: Sequence[bytes],
        port: int,
        done: Callable[[_socket.socket | UpstreamError, bytes], None],
        timeout: float,
    ) -> None:
        self._loop = loop
        self._addresses = addresses
        self._port = port
        self._done: Callable[[_socket.socket | UpstreamError, bytes], None] | None = done
        self._told: object = None
        self._next = 0
        self._attempts: list[_Attempt] = []
        self._error: UpstreamError | None = None
        self._deadline: Timer | None = None
        self._stagger: Timer | None = None
        self._try_next()
        if self._done is not None:
            self._deadline = loop.call_later(timeout, self._too_late)

    def cancel(self) -> None:
        """Give up. Does nothing when it has come to its end."""
        self._done = None
        self._tidy()

    def _try_next(self) -> None:
        """Begin with the next address; on to the one after it at once when this one fails at once."""
        self._stagger = None
        while self._done is not None:
            if self._next >= min(len(self._addresses), _MOST_TRIED):
                if not self._attempts:
                    self._end(self._error or UpstreamError("unreachable", "there is no address to dial"), b"")
                return
            address = self._addresses[self._next]
            self._next += 1
            error = self._begin(address)
            if error == errno.EINPROGRESS:
                if self._next < len(self._addresses):
                    self._stagger = self._loop.call_later(_STAGGER, self._try_next)
                return
            if error:
                self._note(error, address)

    def _begin(self, address: bytes) -> int:
        """0 when it is connected, EINPROGRESS, or what went wrong."""
        family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        try:
            socket = _socket.socket(family, kind, _socket.IPPROTO_TCP)
        except OSError as lack:
            return lack.errno or errno.EMFILE
        socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        attempt = _Attempt(self, socket, address, (_socket.inet_ntop(family, address), self._port))
        error = attempt.connect()
        if error == errno.EINPROGRESS:
            # On this host the other side has answered by now; asking again saves waiting for an event that says so.
            error = attempt.connect()
            if error == errno.EALREADY:
                self._loop.register(socket.fileno(), _loop.STREAM, attempt.ready)
                self._attempts.append(attempt)
                return errno.EINPROGRESS
        if error:
            socket.close()
        else:
            self._end(socket, address)
        return error

    def settled(self, attempt: _Attempt, error: int) -> None:
        """The kernel has said how an attempt ended."""
        self._attempts.remove(attempt)
        self._loop.unregister(attempt.socket.fileno())
        if not error:
            self._end(attempt.socket, attempt.address)
            return
        self._loop.close(attempt.socket.detach())
        self._note(error, attempt.address)
        if self._stagger is not None:
            self._stagger.cancel()
        self._try_next()

    def _note(self, number: int, address: bytes) -> None:
        if self._error is None:
            kind = _KINDS.get(number, "unreachable")
            where = _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)
            self._error = UpstreamError(kind, f"{where} port {self._port}: {posix.strerror(number)}")

    def _too_late(self) -> None:
        self._deadline = None
        self._end(self._error or UpstreamError("timeout", f"nobody answered at port {self._port} in time"), b"")

    def _end(self, result: _socket.socket | UpstreamError, address: bytes) -> None:
        done, self._done = self._done, None
        self._tidy()
        if done is not None:
            self._told = done
            done(result, address)
            self._told = None

    def _tidy(self) -> None:
        for timer in (self._deadline, self._stagger):
            if timer is not None:
                timer.cancel()
        self._deadline = self._stagger = None
        for attempt in self._attempts:
            self._loop.close(attempt.socket.detach())
        self._attempts.clear()

    def fault(self) -> None:
        """A callback has failed, here or where the result was told: nobody shall wait for ever."""
        if self._told is not None:
            _loop.fault(self._told)
        else:
            self._end(UpstreamError("busy", "a fault of the gateway"), b"")


class _Attempt:
    """One address of a dial."""

    __slots__ = ("_sockaddr", "address", "dial", "socket")

    def __init__(self, dial: Dial, socket: _socket.socket, address: bytes, sockaddr: tuple[str, int]) -> None:
        self.dial = dial
        self.socket = socket
        self.address = address
        self._sockaddr = sockaddr

    def connect(self) -> int:
        """Begin, or ask how it went: 0 or an errno (connect(2): EINPROGRESS, then EALREADY while it goes on)."""
        error = self.socket.connect_ex(self._sockaddr)
        return 0 if error == errno.EISCONN else error

    def ready(self, events: int) -> None:
        """It has come to an end, perhaps; events may be stale."""
        error = self.connect()
        if error != errno.EALREADY:
            self.dial.settled(self, error)

    def fault(self) -> None:
        """A callback has failed."""
        self.dial.fault()


def is_of_this_host(address: bytes) -> bool:
    """Whether a packed address is one of this host's own: to itself it would speak from that very address.

    Nothing is sent (udp(7), connect(2)). What has no route is not this host.
    """
    family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
    probe = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        target = _socket.inet_ntop(family, address)
        probe.connect((target, 9))
        return _socket.inet_pton(family, probe.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False
    finally:
        probe.close()
