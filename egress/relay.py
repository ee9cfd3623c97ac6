"""Two connected TCP sockets joined: what one sends the other gets, in the kernel when there is much of it.

Small amounts are copied through one buffer that all relays share. When a read fills it, that direction is bulky and
goes through a pipe (splice(2)) from then on: no byte of it is copied into this process. An idle relay holds no buffer
and no pipe. A direction whose sink takes no more is not read from until it does.

An end of file is passed on as one (half-close), a reset as a reset. `revoke` resets both: what close(2) alone would
still deliver from the kernel's queues is discarded (SO_LINGER with 0 seconds, socket(7)).
"""

from __future__ import annotations

import _socket
import posix

from osmoda.egress import loop as _loop
from osmoda.egress.pipes import SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.loop import Loop, Timer
    from osmoda.egress.pipes import Pipe

ENDED = "ended"
RESET_BY_CLIENT = "reset by the client"
RESET_BY_SERVER = "reset by the server"
IDLE = "idle for too long"
USED_UP = "the budget is used up"
REVOKED = "revoked"
FAULT = "a fault of the gateway"
"""How a relay ended: what `on_end` is called with."""

IDLE_SECONDS = 3600.0

_OUT, _ERR = _loop.OUT, _loop.ERR
# After these a short read does not mean that all is read: there is an end of file, an error or urgent data to come to.
_READ_ON = _loop.RDHUP | _loop.HUP | _loop.ERR | _loop.PRI
_MUTED = _OUT | _loop.EDGE
_FULL = _loop.SCRATCH
_FLAGS = posix.SPLICE_F_MOVE | posix.SPLICE_F_NONBLOCK
_SMALL = 32768  # bytes: of less, copying costs less than three more system calls
_ROUNDS = 8  # reads that one direction has before the others' turn
_SPLICE_ROUNDS = 2  # of up to a mebibyte
_IDLE_CHECKS = 4  # a span of idleness is noticed within a quarter of it
_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
_splice = posix.splice


def adopt(socket: _socket.socket | int) -> _socket.socket:
    """A connected, non-blocking TCP socket as an object; a descriptor becomes the object's."""
    if not isinstance(socket, int):
        return socket
    # With the family given the kernel need not be asked; nothing here depends on it.
    return _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, _socket.IPPROTO_TCP, socket)


def reset(loop: Loop, socket: _socket.socket) -> None:
    """Close with a reset, at the end of the batch: nothing that is queued is delivered."""
    # Also where there is no connection any more: on Linux this option cannot fail on a socket.
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
    loop.close(socket.detach())


class Relay:
    """A pair of sockets, which become this object's to close, and the two ways between them. `start` sets it going.

    `on_end(cause)` is called once, with one of the causes above, when both sockets are given up. `meter(bytes)` is
    asked before bytes are passed on; when it says False both are reset. `idle` is in seconds: with nothing moved for
    that long (at most a quarter longer) both are reset. `check(bytes)` gets what the client sends, and b"" for its end
    of file, until it returns what of it is to be passed on; None keeps it back. It may end the relay.

    The sockets are non-blocking. One that is registered with the loop already must be so for `loop.STREAM`.
    """

    __slots__ = ("_idle", "_on_end", "_quiet", "_seen", "_timer", "cause", "down", "failing", "loop", "meter", "up")

    def __init__(
        self,
        loop: Loop,
        client: _socket.socket | int,
        server: _socket.socket | int,
        on_end: Callable[[str], None],
        *,
        idle: float = IDLE_SECONDS,
        meter: Callable[[int], bool] | None = None,
        check: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        client, server = adopt(client), adopt(server)
        self.loop = loop
        self.cause = self.failing = ""
        self._on_end = on_end
        self.meter = meter
        self.up = up = _Way(self, client, server)
        self.down = down = _Way(self, server, client)
        up.opposite, down.opposite = down, up
        up.check = check
        self._idle = idle / _IDLE_CHECKS
        self._seen = self._quiet = 0
        self._timer: Timer = loop.call_later(self._idle, self._watch)

    def start(self, first: bytes = b"", *, unread: bool = False) -> None:
        """Send `first` to the server before anything else, then relay.

        `unread`: the client's socket may hold something of which an event has been told already.
        """
        up, down = self.up, self.down
        try:
            self.loop.take_over(up.source_fd, _loop.STREAM, up.ready)
            self.loop.take_over(down.source_fd, _loop.STREAM, down.ready)
        except OSError:
            self.end(FAULT)  # this user has registered as much as one may (epoll(7), max_user_watches)
            return
        if first and not up.pass_on(first):
            return
        if unread:
            up.move(_READ_ON)

    @property
    def bytes_up(self) -> int:
        """From the client to the server, so far."""
        return self.up.count

    @property
    def bytes_down(self) -> int:
        """From the server to the client, so far."""
        return self.down.count

    def revoke(self) -> None:
        """Reset both sides now. Does nothing when it has ended."""
        self.end(REVOKED)

    def permits(self, count: int) -> bool:
        """Ask the meter; end when it says no."""
        if self.meter is None or self.meter(count):
            return True
        self.end(USED_UP)
        return False

    def end(self, cause: str) -> None:
        """Give up both sockets: closed when both sides came to their end, reset for any other cause."""
        if not self.cause:
            on_end = self._on_end
            self._stop(self.failing or cause, None)
            on_end(self.cause)

    def part(self) -> _socket.socket:
        """Reset the server and give the client's socket back, still registered; `on_end` is not called.

        For whoever refuses what the client said after all, and tells it so.
        """
        client = self.up.source
        self._stop(REVOKED, client)
        return client

    def _stop(self, cause: str, kept: _socket.socket | None) -> None:
        self.cause = cause
        self._timer.cancel()
        for way in (self.up, self.down):
            way.stop()
            if cause is ENDED:
                self.loop.close(way.source.detach())
            elif way.source is not kept:
                reset(self.loop, way.source)
            # Without these circles all of it is freed at once, and not by the garbage collector.
            del way.relay, way.opposite
        del self._on_end

    def _watch(self) -> None:
        """Whether anything has moved: looking from time to time costs busy relays nothing."""
        moved = self.up.count + self.down.count
        self._quiet = self._quiet + 1 if moved == self._seen else 0
        self._seen = moved
        if self._quiet >= _IDLE_CHECKS:
            self.end(IDLE)
        else:
            self._timer = self.loop.call_later(self._idle, self._watch)


class _Way:
    """One direction. Events are edges: it reads until nothing is left, or its sink is full."""

    __slots__ = (
        "blocked",  # the sink took less than there was; the rest is in `pending` or `pipe`
        "bulky",
        "check",
        "count",
        "done",  # nothing more is to be read: the source has ended, or the relay
        "muted",  # the source's being readable is not told
        "opposite",
        "pending",
        "pipe",
        "relay",
        "scratch",
        "sink",
        "sink_fd",
        "source",
        "source_fd",
    )

    relay: Relay
    opposite: _Way

    def __init__(self, relay: Relay, source: _socket.socket, sink: _socket.socket) -> None:
        self.relay = relay
        self.source = source
        self.sink = sink
        self.source_fd = source.fileno()
        self.sink_fd = sink.fileno()
        self.scratch = relay.loop.scratch
        self.check: Callable[[bytes], bytes | None] | None = None
        self.pending: bytes = b""
        self.pipe: Pipe | None = None
        self.count = 0
        self.blocked = self.bulky = self.done = self.muted = False

    def ready(self, events: int) -> None:
        """The source has something to read, or takes something again. Events may be stale."""
        # An error is read, not sent into: sending would report it in place of what is still to be read.
        if events & _OUT and self.opposite.blocked and not events & _ERR:
            self.opposite.go_on()
        if not (self.blocked or self.done):
            self.move(events)
        elif events & _ERR and self.source.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self._lose_source()
        elif self.blocked and not self.muted:
            # Each segment that comes would be another wake-up, ten for every one that serves.
            self.muted = True
            self.relay.loop.modify(self.source_fd, _MUTED)

    def go_on(self) -> None:
        """The sink may take more, or the others have had their turn."""
        if self.done:
            return
        if self.blocked:
            self.blocked = False
            pending, self.pending = self.pending, b""
            if (pending and not self._send(pending, len(pending))) or (self.pipe and not self._empty(self.pipe)):
                return
            if self.muted:
                self.muted = False
                self.relay.loop.modify(self.source_fd, _loop.STREAM)
        self.move(_READ_ON)

    def move(self, events: int) -> None:
        """Read what there is and pass it on."""
        rounds = _ROUNDS
        scratch, relay = self.scratch, self.relay
        while rounds:
            rounds -= 1
            if self.bulky and self._splice():
                return
            try:
                count = self.source.recv_into(scratch)
            except BlockingIOError:
                return
            except OSError:
                self._lose_source()
                return
            if self.check is not None:
                if not self._show(self.check, count):
                    return
            elif not count:
                self._finish()
                return
            else:
                if relay.meter is not None and not relay.permits(count):
                    return
                self.count += count
                if not self._send(scratch[:count], count):
                    return
            if count == _FULL:
                self.bulky = True
            elif not events & _READ_ON:
                return
        self.relay.loop.call_soon(self.go_on)

    def pass_on(self, some: memoryview | bytes) -> bool:
        """Send it to the sink. False when the sink does not take all of it yet, or the relay has ended."""
        if not self.relay.permits(len(some)):
            return False
        self.count += len(some)
        return self._send(some, len(some))

    def _send(self, some: memoryview | bytes, count: int) -> bool:
        try:
            sent = self.sink.send(some)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_sink()
            return False
        if sent == count:
            return True
        self.pending = bytes(some[sent:])
        self.blocked = True
        return False

    def _show(self, check: Callable[[bytes], bytes | None], count: int) -> bool:
        """Have the client's first bytes looked at before any of them is passed on."""
        some = check(bytes(self.scratch[:count]))
        if self.done:
            return False
        if some is not None:
            self.check = None
            if some and not self.pass_on(some):
                return False
        return count > 0 or self._finish()

    def _splice(self) -> bool:
        """Pass on through a pipe. False when that is not worth it any more, or there is no pipe."""
        relay = self.relay
        if self.pipe is None:
            self.pipe = relay.loop.pipes.take()
            if self.pipe is None:
                self.bulky = False
                return False
        pipe = self.pipe
        for _ in range(_SPLICE_ROUNDS):
            try:
                count = _splice(self.source_fd, pipe.write, SIZE, None, None, _FLAGS)
            except BlockingIOError:
                self._give_back(pipe)
                return True
            except OSError:
                self._lose_source()
                return True
            if not count:
                self._give_back(pipe)
                self._finish()
                return True
            pipe.inside = count
            if not relay.permits(count):
                return True
            self.count += count
            if not self._empty(pipe):
                return True
            if count < _SMALL:
                self._give_back(pipe)
                self.bulky = False
                return False
        self._give_back(pipe)
        relay.loop.call_soon(self.go_on)
        return True

    def _empty(self, pipe: Pipe) -> bool:
        """Have the sink take what is in the pipe. False when it does not take all of it yet, or the relay has ended."""
        while pipe.inside:
            try:
                pipe.inside -= _splice(pipe.read, self.sink_fd, pipe.inside, None, None, _FLAGS)
            except BlockingIOError:
                self.blocked = True
                return False
            except OSError:
                self._lose_sink()
                return False
        return True

    def _give_back(self, pipe: Pipe) -> None:
        self.relay.loop.pipes.give_back(pipe)
        self.pipe = None

    def _finish(self) -> bool:
        """The source has come to its end."""
        self.done = True
        if self.opposite.done:
            self.relay.end(ENDED)
            return False
        try:
            self.sink.shutdown(_socket.SHUT_WR)
        except OSError:
            self._lose_sink()
        return False

    def _lose_source(self) -> None:
        self.relay.end(RESET_BY_CLIENT if self is self.relay.up else RESET_BY_SERVER)

    def _lose_sink(self) -> None:
        """It takes nothing any more: pass on what it said before, then reset its peer."""
        relay, opposite = self.relay, self.opposite
        self.done = True
        # Sending has used up the error: what is still to be read ends like a stream that ended well.
        relay.failing = RESET_BY_SERVER if self is relay.up else RESET_BY_CLIENT
        if not (opposite.done or opposite.blocked):
            opposite.move(_READ_ON)
        relay.end(relay.failing)

    def stop(self) -> None:
        """The relay has ended."""
        self.done = True
        self.blocked = False
        self.pending = b""
        if self.pipe is not None:
            self._give_back(self.pipe)

    def fault(self) -> None:
        """A callback of this relay has failed: cut it."""
        if not self.done:
            self.relay.end(FAULT)
