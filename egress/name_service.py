"""The resolver's sockets: UDP and TCP of one sandbox on the gateway's loop; what is said is `resolver`'s.

The library that reads messages takes 0.1 s to import. A thread does that, once a process; until it is done queries wait
where the kernel keeps them, bounded by the sockets' own buffers, and nothing else in the gateway waits.

What a sandbox may have of the gateway's time is bounded: queries are counted by their size, which is what they cost
(a name of 120 parts takes five times as long as one of 3), and when there were too many its sockets are not read for a
moment, so that the kernel drops the rest for free.
"""

from __future__ import annotations

import _socket
import errno
import posix
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.loop import Loop, Timer
    from osmoda.egress.resolver import Found, Refused

QUERIES_PER_SECOND = 2000
"""How many queries a sandbox may ask, and as many at once after a second of silence; one counts for each 64 bytes."""

MOST_STREAMS = 16
"""How many TCP connections to its resolver a sandbox may have; more wait until one of these ends."""

DEADLINE = 5.0
"""Seconds that a TCP connection may stay open after its last answer (RFC 7766, section 6.2.3)."""

MOST_QUERY = 4096
"""Bytes of the longest query that is read, as in `resolver`; so at most 64 KiB of all TCP connections are kept."""

_IN, _OUT = 0x1, 0x4
_AT_ONCE = 16  # queries a turn, counted in the same way: 1 ms that other connections wait
_PAUSE = 0.05  # seconds without reading, after too many queries or for want of descriptors
_RETRY = 1.0
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SO_MEMINFO, _MEMINFO_SIZE = 55, 36  # asm-generic/socket.h: nine numbers, of which the last counts drops
_UNIT = 64

_answer: Callable[..., bytes | None] | None = None
_importing: list[tuple[Loop, Callable[[BaseException | None], None]]] = []
_lock = allocate_lock()


class NameService:
    """Answers on `udp_fds` and, as listening sockets, `tcp_fds`: they are this object's to close.

    `lookup`, `reverse` and `refused` are as `resolver.answer` has them, and are called in the loop's thread. `queries`
    counts what was answered, or not worth an answer.
    """

    def __init__(
        self,
        loop: Loop,
        udp_fds: list[int],
        tcp_fds: list[int],
        lookup: Callable[[str], Found | Refused],
        *,
        reverse: Callable[[bytes], str | None] | None = None,
        refused: Callable[[str, str], None] | None = None,
    ) -> None:
        self.loop = loop
        self.queries = 0
        self._lookup = lookup
        self._reverse = reverse
        self._refused = refused
        self._allowance = float(QUERIES_PER_SECOND)
        self._counted_at = loop.now
        self._datagrams = [_Datagrams(self, fd) for fd in udp_fds]
        self._listeners = [_socket.socket(fileno=fd) for fd in tcp_fds]
        self._streams: set[_Stream] = set()
        self._shortage: Timer | None = None
        self._retry: Timer | None = None
        self._listening = False
        self._warmed = False
        self._closed = False
        for fd in self._fds():
            posix.set_blocking(fd, False)
            loop.register(fd, _IN, self._cold)

    def _fds(self) -> list[int]:
        return [way.socket.fileno() for way in self._datagrams] + [socket.fileno() for socket in self._listeners]

    # --- before the first answer ---

    def prewarm(self) -> None:
        """Get ready to answer; the first query does it otherwise."""
        if self._warmed or self._closed:
            return
        self._warmed = True
        for fd in self._fds():
            self.loop.unregister(fd)
        if _answer is not None:
            self._start(None)
        else:
            _import_resolver(self.loop, self._start)

    def _cold(self, events: int) -> None:
        self.prewarm()

    def _start(self, failure: BaseException | None) -> None:
        if self._closed:
            return
        if failure is not None:
            # Out of descriptors or memory, perhaps: queries wait on.
            self._warmed = False
            self._retry = self.loop.call_later(_RETRY, self.prewarm)
            raise failure
        for way in self._datagrams:
            way.start()
        self._listen()

    # --- what both ways share ---

    def afford(self, size: int) -> int:
        """For how many a query of `size` bytes counts; 0 when it may not be answered now."""
        now = self.loop.now
        self._allowance = min(QUERIES_PER_SECOND, self._allowance + (now - self._counted_at) * QUERIES_PER_SECOND)
        self._counted_at = now
        price = 1 + size // _UNIT
        if self._allowance < price:
            return 0
        self._allowance -= price
        return price

    def reply(self, query: bytes, *, tcp: bool) -> bytes | None:
        """What to answer."""
        assert _answer is not None
        self.queries += 1
        return _answer(query, self._lookup, tcp=tcp, reverse=self._reverse, refused=self._refused)

    def dropped(self) -> int:
        """How many datagrams had no answer because there were too many, too long, or none could be sent."""
        return sum([way.dropped() for way in self._datagrams])

    # --- TCP connections ---

    def _listen(self) -> None:
        """Accept connections while there is room for them."""
        if self._listening or self._closed or len(self._streams) >= MOST_STREAMS:
            return
        self._listening = True
        for listener in self._listeners:
            self.loop.register(listener.fileno(), _IN, self._accept)

    def _stop_listening(self) -> None:
        self._listening = False
        for listener in self._listeners:
            self.loop.unregister(listener.fileno())

    def _accept(self, events: int) -> None:
        for listener in self._listeners:
            while self._listening:
                try:
                    fd, _ = listener._accept()  # type: ignore[attr-defined]  # as socket.accept does
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF:
                        self._stop_listening()
                        self._shortage = self.loop.call_later(_PAUSE, self._listen)
                    break  # else it befell this one connection before it was accepted (accept(2))
                self._streams.add(_Stream(self, fd))
                if len(self._streams) >= MOST_STREAMS:
                    self._stop_listening()

    def ended(self, stream: _Stream) -> None:
        """A connection has ended: there is room for another."""
        self._streams.discard(stream)
        self._listen()

    # --- its end ---

    def close(self) -> None:
        """Stop answering, and close all sockets. Does nothing when that is done."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._shortage, self._retry):
            if timer is not None:
                timer.cancel()
        for stream in tuple(self._streams):
            stream.close()
        for way in self._datagrams:
            way.close()
        for listener in self._listeners:
            # Whoever made it inside may still have it: to close ours would not end its events.
            self.loop.unregister(listener.fileno())
            self.loop.close(listener.detach())
        self._listeners.clear()


class _Datagrams:
    """A UDP socket: each datagram is a query (RFC 1035, section 4.2.1)."""

    __slots__ = ("_dropped", "_pause", "_service", "socket")

    def __init__(self, service: NameService, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self._service = service
        self._dropped = 0
        self._pause: Timer | None = None

    def start(self) -> None:
        """Read from now on."""
        self._pause = None
        self._service.loop.register(self.socket.fileno(), _IN, self._readable)

    def _readable(self, events: int) -> None:
        service, spent = self._service, 0
        while spent < _AT_ONCE:
            try:
                query, address = self.socket.recvfrom(MOST_QUERY + 1)
            except OSError:
                return  # no more, or what befell an earlier answer
            price = service.afford(len(query))
            if not price:
                self._dropped += 1
                service.loop.unregister(self.socket.fileno())
                self._pause = service.loop.call_later(_PAUSE, self.start)
                return
            spent += price
            message = service.reply(query, tcp=False) if len(query) <= MOST_QUERY else None
            if message is None:
                self._dropped += 1
                continue
            try:
                self.socket.sendto(message, address)
            except OSError:
                self._dropped += 1  # it asked from an address that cannot be answered

    def dropped(self) -> int:
        """How many had no answer, with those that found the receive buffer full."""
        try:
            numbers = self.socket.getsockopt(_socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_SIZE)
        except OSError:
            return self._dropped  # it is closed
        return self._dropped + int.from_bytes(numbers[-4:], "little")

    def close(self) -> None:
        """End it."""
        self._dropped = self.dropped()
        if self._pause is not None:
            self._pause.cancel()
        # As with listeners.
        self._service.loop.unregister(self.socket.fileno())
        self._service.loop.close(self.socket.detach())


class _Stream:
    """A TCP connection: messages with their length in front (RFC 1035, section 4.2.2), any number of them, in turn."""

    __slots__ = ("_deadline", "_heard", "_last", "_pause", "_service", "_socket", "_unsent")

    def __init__(self, service: NameService, fd: int) -> None:
        self._service = service
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._heard = bytearray()
        self._unsent = b""
        self._last = service.loop.now
        self._pause: Timer | None = None
        self._deadline = service.loop.call_later(DEADLINE, self._overdue)
        service.loop.register(fd, _IN, self._readable)

    def _readable(self, events: int) -> None:
        try:
            data = self._socket.recv(2 + MOST_QUERY - len(self._heard))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._heard += data
        self._answer_whole_messages()

    def _answer_whole_messages(self) -> None:
        """All that have come, but no more than others can wait for."""
        service, spent = self._service, 0
        while spent < _AT_ONCE:
            size = int.from_bytes(self._heard[:2], "big")
            if size > MOST_QUERY:
                self.close()
                return
            if len(self._heard) < 2 + size:
                return
            price = service.afford(size)
            if not price:
                self._rest(_PAUSE)
                return
            spent += price
            query = bytes(self._heard[2 : 2 + size])
            del self._heard[: 2 + size]
            message = service.reply(query, tcp=True)
            if message is None:
                self.close()
                return
            self._unsent = len(message).to_bytes(2, "big") + message
            if not self._send():
                return
        self._rest(0.0)

    def _rest(self, seconds: float) -> None:
        """Read nothing more for a moment: what has come is to be answered first."""
        self._service.loop.unregister(self._socket.fileno())
        self._pause = self._service.loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._service.loop.register(self._socket.fileno(), _IN, self._readable)
        self._answer_whole_messages()

    def _send(self) -> bool:
        """Send what is unsent; False when some is left, or the connection has ended."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._last = self._service.loop.now
            return True
        self._service.loop.unregister(self._socket.fileno())
        self._service.loop.register(self._socket.fileno(), _OUT, self._writable)
        return False

    def _writable(self, events: int) -> None:
        if self._send():
            self._service.loop.unregister(self._socket.fileno())
            self._go_on()

    def _overdue(self) -> None:
        left = self._last + DEADLINE - self._service.loop.now
        if left > 0:
            self._deadline = self._service.loop.call_later(left, self._overdue)
        else:
            self.close()

    def close(self) -> None:
        """End it."""
        fd = self._socket.detach()
        if fd < 0:
            return
        self._deadline.cancel()
        if self._pause is not None:
            self._pause.cancel()
        self._service.loop.close(fd)
        self._service.ended(self)

    fault = close  # what a gateway calls after a mistake in a callback of this object


def _import_resolver(loop: Loop, ready: Callable[[BaseException | None], None]) -> None:
    """Call `ready` in the loop's thread when `_answer` is there, or with what was raised instead."""
    with _lock:
        _importing.append((loop, ready))
        if len(_importing) > 1:
            return
    try:
        start_new_thread(_import, ())
    except RuntimeError:
        _import()  # no thread to be had


def _import() -> None:
    global _answer
    failure: BaseException | None = None
    try:
        from osmoda.egress import resolver

        _answer = resolver.answer
    except BaseException as error:  # whoever waits is told
        failure = error
    with _lock:
        waiting = tuple(_importing)
        _importing.clear()
    for loop, ready in waiting:
        loop.call_from_thread(_call(ready, failure))


def _call(ready: Callable[[BaseException | None], None], failure: BaseException | None) -> Callable[[], None]:
    return lambda: ready(failure)
