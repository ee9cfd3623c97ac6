"""The way out: names to addresses, addresses to connected sockets.

Names are resolved as every program of this host resolves them (getaddrinfo(3): /etc/hosts, nsswitch.conf, the host's
resolvers), in a few threads that are started when they are first needed. Everything but the call itself happens in the
loop's thread. Which of the addresses may be dialled is the caller's to decide, after each answer.
"""

from __future__ import annotations

import _socket
import _thread

from osmoda.egress.dial import PATIENCE, Dial, UpstreamError
from osmoda.egress.loop import fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from osmoda.egress.loop import Loop, Timer

    type Answer = list[bytes] | UpstreamError

_KEPT = 10.0  # seconds that an answer is used again
_KEPT_FAILURE = 2.0
_MOST_KEPT = 4096
_MOST_WAITING = 64  # names that one session may have waiting for a thread
_MOST_ADDRESSES = 32

# Of a name: it has no address, or nobody says so for certain. Anything else is a trouble of this host's.
_NO_ADDRESS = (_socket.EAI_NONAME, _socket.EAI_NODATA, _socket.EAI_FAIL, _socket.EAI_FAMILY, _socket.EAI_ADDRFAMILY)


def look_up(name: str) -> list[bytes]:
    """The packed addresses of `name` in getaddrinfo's order (RFC 6724). Blocks. Raises UpstreamError."""
    try:
        # As bytes: a str would be run through the codec "idna", which takes milliseconds to import.
        found = _socket.getaddrinfo(name.encode("ascii"), None, 0, _socket.SOCK_STREAM)
    except _socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            raise UpstreamError("unresolvable", f"{name} has no address") from None
        if error.errno == _socket.EAI_AGAIN:
            raise UpstreamError("unresolvable", f"the resolvers of this host do not answer for {name}") from None
        raise UpstreamError("busy", f"{name} cannot be looked up now: {error.strerror}") from None
    except OSError as error:
        raise UpstreamError("busy", f"{name} cannot be looked up now: {error.strerror}") from None
    except UnicodeError:
        raise UpstreamError("unresolvable", f"{name} is no host name") from None
    addresses: dict[bytes, None] = {}
    for family, _, _, _, address in found[:_MOST_ADDRESSES]:
        if family in (_socket.AF_INET, _socket.AF_INET6):
            addresses[_socket.inet_pton(family, str(address[0]))] = None
    return list(addresses)


class Upstream:
    """Lookups and dials of one gateway. `workers` threads look up, at most `per_session` of them for one session.

    A thread in a lookup that takes longer than `PATIENCE` cannot be stopped; another may take its place, so that a few
    sessions with names whose servers never answer do not stop all lookups. `lookup` is for tests.
    """

    def __init__(
        self, loop: Loop, *, workers: int = 8, per_session: int = 4, lookup: Callable[[str], list[bytes]] = look_up
    ) -> None:
        self.loop = loop
        self._look_up = lookup
        self._most_workers = workers
        self._per_session = per_session
        self._workers = 0
        self._overdue = 0
        self._idle: list[_Worker] = []
        self._known: dict[str, tuple[float, Answer]] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._sessions: dict[Hashable, _Share] = {}
        self._turns: dict[_Share, None] = {}
        self._closed = False

    # --- names ---

    def cached(self, name: str) -> Answer | None:
        """What is known of `name` now; the list is the same object for as long as the same answer is used."""
        known = self._known.get(name)
        if known is None or known[0] < self.loop.now:
            return None
        return known[1]

    def known_failure(self, name: str) -> str:
        """Why `name` could not be resolved a moment ago; empty when it could, or nobody has tried."""
        answer = self.cached(name)
        return answer.text if isinstance(answer, UpstreamError) else ""

    def resolve(self, session: Hashable, name: str, port: int, done: Callable[[Answer], None]) -> None:
        """Call `done` with the packed addresses of `name`, or the error; at once when they are known.

        Answers are used for 10 s, failures for 2 s; several who ask for the same name share one lookup. An answer comes
        within `PATIENCE` seconds.
        """
        answer = self.cached(name)
        if answer is None and _is_number(name):
            # Some resolvers read `127.1` or `0x7f000001` as an address; a rule never means one by it.
            answer = UpstreamError("unresolvable", f"{name} is no host name")
        if answer is not None:
            done(answer)
            return
        share = self._sessions.get(session)
        if share is None:
            share = self._sessions[session] = _Share(session)
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = self._lookups[name] = _Lookup(name)
        if not lookup.running and lookup not in share.waiting:
            # Also when another session asked for it before: that one may have reached its limit, this one not.
            if len(share.waiting) >= _MOST_WAITING:
                self._forget_if_unused(lookup)
                done(UpstreamError("busy", f"{name} cannot be looked up: too many other names wait already"))
                return
            share.waiting[lookup] = None
        lookup.askers.append((self.loop.now + PATIENCE, done))
        if lookup.timer is None:
            lookup.timer = self.loop.call_later(PATIENCE, lambda: self._expire(lookup))
        self._start_lookups(share)

    def _start_lookups(self, share: _Share | None = None) -> None:
        """Give idle threads what waits, one lookup of each session in turn."""
        if share is not None and share.waiting:
            self._turns[share] = None
        while self._turns and (self._idle or self._workers < self._allowed()):
            share = next(iter(self._turns))
            del self._turns[share]
            lookup = share.next() if share.running < self._per_session else None
            if lookup is not None and not self._start(lookup, share):
                return
            if share.waiting and share.running < self._per_session:
                self._turns[share] = None
            elif not share.waiting and not share.running:
                self._sessions.pop(share.session, None)

    def _allowed(self) -> int:
        return self._most_workers + min(self._overdue, 3 * self._most_workers)

    def _start(self, lookup: _Lookup, share: _Share) -> bool:
        if self._idle:
            worker = self._idle.pop()
        else:
            worker = _Worker()
            try:
                _thread.start_new_thread(self._work, (worker,))
            except RuntimeError:
                self._settle(lookup, UpstreamError("busy", f"{lookup.name} cannot be looked up: no thread can start"))
                return False
            self._workers += 1
        lookup.running = share
        share.running += 1
        worker.lookup = lookup
        worker.wake.release()
        return True

    def _work(self, worker: _Worker) -> None:
        """A thread."""
        while True:
            worker.wake.acquire()
            lookup = worker.lookup
            if lookup is None:
                return
            answer: Answer
            try:
                answer = self._look_up(lookup.name) or UpstreamError("unresolvable", f"{lookup.name} has no address")
            except UpstreamError as error:
                answer = error
            except Exception as error:
                answer = UpstreamError("busy", f"{lookup.name} could not be looked up: {error}")
            # By place: the names of this frame are another lookup's by the time of the call.
            self.loop.call_from_thread(lambda lookup=lookup, answer=answer: self._found(worker, lookup, answer))  # type: ignore[misc]

    def _found(self, worker: _Worker, lookup: _Lookup, answer: Answer) -> None:
        share = lookup.running
        if share is not None:
            share.running -= 1
            if not share.running and not share.waiting:
                self._sessions.pop(share.session, None)
        if lookup.overdue:
            self._overdue -= 1
        worker.lookup = None
        if self._closed or self._workers > self._allowed():
            self._workers -= 1
            worker.wake.release()
        else:
            self._idle.append(worker)
        kept = _KEPT_FAILURE if isinstance(answer, UpstreamError) else _KEPT
        self._known.pop(lookup.name, None)
        if len(self._known) >= _MOST_KEPT:
            del self._known[next(iter(self._known))]
        self._known[lookup.name] = (self.loop.now + kept, answer)
        self._settle(lookup, answer)
        self._start_lookups(share)

    def _settle(self, lookup: _Lookup, answer: Answer) -> None:
        """Tell all who asked."""
        lookup.running = None
        if lookup.timer is not None:
            lookup.timer.cancel()
            lookup.timer = None
        self._lookups.pop(lookup.name, None)
        askers, lookup.askers = lookup.askers, []
        for _, done in askers:
            # On its own: what fails for one of them must not keep the answer from the others.
            self.loop.call_soon(_Telling(done, answer).tell)

    def _expire(self, lookup: _Lookup) -> None:
        """Whoever has waited long enough hears so; the lookup itself cannot be stopped, and is of use when it ends."""
        lookup.timer = None
        now = self.loop.now
        late = [done for until, done in lookup.askers if until <= now]
        lookup.askers = [asker for asker in lookup.askers if asker[0] > now]
        if lookup.askers:
            lookup.timer = self.loop.call_later(lookup.askers[0][0] - now, lambda: self._expire(lookup))
        if lookup.running and not lookup.overdue:
            lookup.overdue = True
            self._overdue += 1
        self._forget_if_unused(lookup)
        error = UpstreamError("timeout", f"{lookup.name} was not resolved within {PATIENCE:.0f} seconds")
        for done in late:
            self.loop.call_soon(_Telling(done, error).tell)
        self._start_lookups()

    def _forget_if_unused(self, lookup: _Lookup) -> None:
        if not lookup.running and not lookup.askers:
            self._lookups.pop(lookup.name, None)

    def close(self) -> None:
        """End the threads that wait; one in a lookup ends after it. Nobody is told anything any more."""
        self._closed = True
        for worker in self._idle:
            worker.wake.release()
        self._workers -= len(self._idle)
        self._idle.clear()
        for lookup in self._lookups.values():
            lookup.askers.clear()
            if lookup.timer is not None:
                lookup.timer.cancel()
        self._lookups.clear()
        self._turns.clear()

    # --- connections ---

    def dial(
        self,
        address: bytes,
        port: int,
        done: Callable[[_socket.socket | UpstreamError], None],
        timeout: float = PATIENCE,
    ) -> Dial:
        """Connect to a packed address: `done` gets a non-blocking socket with TCP_NODELAY, or the error.

        It may be called before this returns. The socket is the caller's, and not registered with the loop.
        """
        return Dial(self.loop, (address,), port, lambda result, _: done(result), timeout)

    def dial_any(
        self,
        addresses: Sequence[bytes],
        port: int,
        done: Callable[[_socket.socket | UpstreamError, bytes], None],
        timeout: float = PATIENCE,
    ) -> Dial:
        """As `dial`, to the first of `addresses` that answers; `done` also gets which one that was.

        They are tried in their order, the next one when the last has failed, or has not answered for a quarter of a
        second (RFC 8305, the order of families aside). The error is that of the first that failed.
        """
        return Dial(self.loop, addresses, port, done, timeout)


def _is_number(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")


class _Share:
    """What one session takes of the threads."""

    __slots__ = ("running", "session", "waiting")

    def __init__(self, session: Hashable) -> None:
        self.session = session
        self.running = 0
        self.waiting: dict[_Lookup, None] = {}

    def next(self) -> _Lookup | None:
        """What has waited longest and is still wanted."""
        while self.waiting:
            lookup = next(iter(self.waiting))
            del self.waiting[lookup]
            if lookup.askers and not lookup.running:
                return lookup
        return None


class _Lookup:
    """A name that is being looked up, or waits for that."""

    __slots__ = ("askers", "name", "overdue", "running", "timer")

    def __init__(self, name: str) -> None:
        self.name = name
        self.askers: list[tuple[float, Callable[[Answer], None]]] = []
        self.running: _Share | None = None
        self.overdue = False
        self.timer: Timer | None = None


class _Telling:
    """An answer on its way to one who asked."""

    __slots__ = ("_answer", "_done")

    def __init__(self, done: Callable[[Answer], None], answer: Answer) -> None:
        self._done = done
        self._answer = answer

    def tell(self) -> None:
        """The callback."""
        self._done(self._answer)

    def fault(self) -> None:
        """It has failed."""
        fault(self._done)


class _Worker:
    """A thread, and what it is to do next; nothing ends it."""

    __slots__ = ("lookup", "wake")

    def __init__(self) -> None:
        self.lookup: _Lookup | None = None
        self.wake = _thread.allocate_lock()
        self.wake.acquire()
