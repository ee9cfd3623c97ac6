"""The gateway's event loop: descriptors (epoll(7)), timers, calls from threads, closes after the batch.

One thread runs it. Callbacks are called one after another and must not block. Events are hints: a callback must bear
one that is no longer true, and read or write until the kernel says no more when it registered with EPOLLET.
"""

from __future__ import annotations

import _socket
import errno
import posix
import select
import time
from _heapq import heapify, heappop, heappush
from _thread import allocate_lock

from osmoda.egress.pipes import Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN, OUT, ERR, HUP, RDHUP, PRI, EDGE = 0x1, 0x4, 0x8, 0x10, 0x2000, 0x2, 1 << 31
"""epoll_ctl(2)'s numbers."""

STREAM = IN | OUT | RDHUP | PRI | EDGE
"""What a connected socket is registered for, once for its whole life: each change is told once."""

SCRATCH = 65536
"""Bytes of `Loop.scratch`."""

_BATCH = 256  # events a turn
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.05  # seconds without accepting when descriptors or memory have run out
_ACCEPTED_AT_ONCE = 64
_monotonic = time.monotonic


def fault(callback: object) -> None:
    """Tell the owner of a callback that has failed, if it wants to know: what it had in hand is to be cut."""
    tell = getattr(getattr(callback, "__self__", None), "fault", None)
    if tell is not None:
        tell()


class Timer:
    """A call that is due later; `Loop.call_later` makes them."""

    __slots__ = ("_callback", "_loop")

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not be called. Does nothing when it has been, or was cancelled before."""
        if self._callback is not None:
            self._callback = None
            self._loop._forget_timer()


class Loop:
    """One epoll instance, and what is due.

    `now` is the monotonic time in seconds at which the current batch of events came. `scratch` is a receive buffer for
    whoever is called: its content is gone when the callback returns. `pipes` are for splice(2). `on_error(callback,
    error)` is called with what a callback raised; as it comes it raises `error` again, out of `run`, and the next `run`
    goes on with the rest.
    """

    def __init__(self) -> None:
        self.now = _monotonic()
        self.scratch = memoryview(bytearray(SCRATCH))
        self.pipes = Pipes()
        self.on_error: Callable[[object, BaseException], None] = _raise
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._events: Iterator[tuple[int, int]] = iter(())
        self._soon: list[Callable[[], None]] = []
        self._due: Iterator[Callable[[], None]] | None = None
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._cancelled = 0
        self._closing: list[int] = []
        self._stopping = False
        self._lock = allocate_lock()
        self._from_threads: list[Callable[[], None]] = []
        self._wake = posix.eventfd(0, posix.EFD_CLOEXEC | posix.EFD_NONBLOCK)
        self.register(self._wake, IN, self._woken)

    # --- descriptors ---

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when one of `events` (or ERR, HUP) is true of `fd`. Raises OSError."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a registered descriptor; those that are true now are told, edges too."""
        self._epoll.modify(fd, events)

    def take_over(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Register `fd`, or have another callback called where it is registered for these events already.

        That costs no system call, but also tells no edge again.
        """
        if fd not in self._callbacks:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        """Call nothing for `fd` any more; it stays open. Does nothing when it is not registered.

        Who unregisters a descriptor in order to close it should say `close`.
        """
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, fd: int) -> None:
        """Call nothing for `fd` any more, and close it at the end of the batch.

        Were it closed at once, a connection accepted in the same batch could get its number, and its last event. And
        where another process holds it too, closing alone would leave it in the epoll instance, to be told for ever.
        """
        self.unregister(fd)
        self._closing.append(fd)

    # --- calls ---

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call it after the events of this batch; asked for by such a call, after those of the next."""
        self._soon.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call it once, `seconds` from now (a millisecond late at most, when nothing else keeps the loop)."""
        timer = Timer(self, callback)
        self._sequence += 1
        heappush(self._timers, (_monotonic() + seconds, self._sequence, timer))
        return timer

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call it in the loop's thread; from any thread. A closed loop calls nothing any more."""
        with self._lock:
            if self._wake < 0:
                return
            self._from_threads.append(callback)
            if len(self._from_threads) == 1:
                posix.eventfd_write(self._wake, 1)

    def _woken(self, events: int) -> None:
        with self._lock:
            posix.eventfd_read(self._wake)
            self._soon += self._from_threads
            self._from_threads.clear()

    def _forget_timer(self) -> None:
        """Most timers are deadlines that are kept: once half of them are cancelled they are swept out together."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2]._callback is not None]
            heapify(self._timers)
            self._cancelled = 0

    # --- running ---

    def run(self) -> None:
        """Until `stop`. Raises what `on_error` raises."""
        poll, callbacks = self._epoll.poll, self._callbacks
        callback: Callable[..., None] = self._woken
        while True:
            events = self._events
            while True:
                try:
                    for fd, mask in events:
                        found = callbacks.get(fd)
                        if found is not None:
                            callback = found
                            found(mask)
                    if self._due is None and (self._soon or (self._timers and self._timers[0][0] <= self.now)):
                        self._due = self._take_due(self.now)
                    if self._due is not None:
                        for callback in self._due:
                            callback()
                        self._due = None
                    break
                except BaseException as error:
                    self.on_error(callback, error)
            if self._closing:
                self._close_all()
            if self._stopping:
                self._stopping = False
                return
            # Kept, so that the next `run` finds what an error that leaves this one kept from being done.
            self._events = iter(poll(self._patience(), _BATCH))
            self.now = _monotonic()

    def _patience(self) -> float | None:
        """How long to wait for events, in seconds; None for as long as it takes."""
        if self._soon:
            return 0
        timers = self._timers
        while timers and timers[0][2]._callback is None:
            heappop(timers)
            self._cancelled -= 1
        return max(0.0, timers[0][0] - _monotonic()) if timers else None

    def _take_due(self, now: float) -> Iterator[Callable[[], None]]:
        """What is to be called in this turn, one by one: a timer may still be cancelled by the one before it."""
        soon, self._soon = self._soon, []
        yield from soon
        while self._timers and self._timers[0][0] <= now:
            timer = heappop(self._timers)[2]
            callback = timer._callback
            if callback is None:
                self._cancelled -= 1
            else:
                timer._callback = None
                yield callback

    def stop(self) -> None:
        """End `run` after the current batch, or the next `run` after its first; from a signal handler, too."""
        self._stopping = True
        if self._wake >= 0:
            posix.eventfd_write(self._wake, 1)

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        for fd in closing:
            posix.close(fd)

    def shut(self) -> None:
        """Close what is the loop's own. Descriptors that are registered stay their owners' to close."""
        self._close_all()
        self.pipes.close()
        with self._lock:
            wake, self._wake = self._wake, -1
            self._from_threads.clear()
        if wake >= 0:
            posix.close(wake)
            self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()
        self._soon.clear()
        self._events = iter(())
        self._due = None


def _raise(callback: object, error: BaseException) -> None:  # noqa: ARG001 - a hook
    raise error


class Acceptor:
    """Accepts from a listening socket: `on_accept(fd)` gets each connection, close-on-exec and non-blocking.

    TCP connections have TCP_NODELAY, which they inherit from their listener.

    When descriptors or memory have run out it pauses, since a listener that stays ready would take the whole core;
    whoever waits in the backlog waits on. `on_shortage` is told then. The socket is this object's to close.
    """

    __slots__ = ("_on_accept", "_on_shortage", "_pause", "loop", "socket")

    def __init__(
        self,
        loop: Loop,
        socket: _socket.socket,
        on_accept: Callable[[int], None],
        on_shortage: Callable[[OSError], None] | None = None,
    ) -> None:
        self.loop = loop
        self.socket = socket
        self._on_accept = on_accept
        self._on_shortage = on_shortage
        self._pause: Timer | None = None
        socket.setblocking(False)
        if socket.family in (_socket.AF_INET, _socket.AF_INET6) and socket.type == _socket.SOCK_STREAM:
            socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        loop.register(socket.fileno(), IN, self.ready)

    def ready(self, events: int) -> None:
        """Accept what has come, but no more than the others of this batch can wait for."""
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                fd, _ = self.socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF:
                    continue  # what befell this one connection before it was accepted (accept(2))
                self.loop.unregister(self.socket.fileno())
                self._pause = self.loop.call_later(_PAUSE, self._resume)
                if self._on_shortage is not None:
                    self._on_shortage(error)
                return
            posix.set_blocking(fd, False)
            self._on_accept(fd)

    def _resume(self) -> None:
        self._pause = None
        self.loop.register(self.socket.fileno(), IN, self.ready)

    def close(self) -> None:
        """Stop accepting; the backlog is reset. Does nothing when it is closed."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        fd = self.socket.detach()
        if fd >= 0:
            self.loop.close(fd)
