"""The way to a port that another agent serves, be its sandbox in this gateway or in another one of this user's.

All gateways are asked for the agent, over their control sockets, and of several that have it the sandbox that has run
longest is visited. That stays so until it ends; where it was is remembered.
"""

from __future__ import annotations

import _socket
import posix

from osmoda.egress import control_messages, visits
from osmoda.egress.loop import IN
from osmoda.host import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from osmoda.egress.loop import Loop, Timer
    from osmoda.egress.session import Session

SEARCH_SECONDS = 5.0
_ENOUGH_SECONDS = 0.25  # then gateways that have not answered are no longer waited for, when another one has the agent
_CONNECT_SECONDS = visits.CONNECT_SECONDS + 0.5
_ABSENT_SECONDS = 0.5  # in which what nobody has is not asked for again: each time costs every gateway something
_MOST_ASKED = 256
_MOST_REMEMBERED = 1024


def dial(
    session: Session, target: str, port: int, done: Callable[[int, str], None], revoked: Callable[[str], None]
) -> Callable[[], None]:
    """Connect to `port` of the agent that `target` ("agent:NAME") names, for `session`, whose policy allows it.

    `done` gets a connected, non-blocking socket, or -1 and why there is none; from the loop, after this has returned.
    The returned function is to be called when the visit is over, or no longer wanted. `revoked(reason)` is called when
    the other side ends the visit: its socket is then to be reset, and the visit still to be called over.
    """
    gateway = session.gateway
    if gateway.directory is None:
        gateway.directory = Directory(session.loop)
    return _Dial(gateway.directory, session, target.removeprefix("agent:"), port, done, revoked).over


def other_gateways(folder: str) -> list[str]:
    """The control sockets of this user's other gateways; some may be dead."""
    own = f"{posix.getpid()}{control_messages.SUFFIX}"
    names = [
        name
        for name in posix.listdir(folder)
        if name.endswith(control_messages.SUFFIX) and name[: -len(control_messages.SUFFIX)].isdigit() and name != own
    ]
    return [f"{folder}/{name}" for name in names]


class Directory:
    """What a gateway knows of where agents are; one search at a time for each of their ports."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.places: dict[tuple[str, int], str] = {}
        """The control socket of the gateway that has it, or the identity of a sandbox of this one's."""
        self._absent: dict[tuple[str, int], float] = {}
        self._searches: dict[tuple[str, int], _Search] = {}
        self._waiting: dict[tuple[str, int], list[Callable[[_Query | None], None]]] = {}

    def remember(self, agent: str, port: int, place: str) -> None:
        """It was found there."""
        if len(self.places) < _MOST_REMEMBERED:
            self.places[agent, port] = place

    def find(self, agent: str, port: int, found: Callable[[_Query | None], None]) -> None:
        """Ask all other gateways: `found` gets a conversation with the one that has had the agent longest, or None."""
        key = agent, port
        if self._absent.get(key, 0.0) > self._loop.now:
            found(None)
            return
        self._waiting.setdefault(key, []).append(found)
        if key not in self._searches:
            search = self._searches[key] = _Search(self._loop, agent, port, lambda query: self._tell(key, query))
            search.begin(self._others())

    def leave(self, agent: str, port: int, found: Callable[[_Query | None], None]) -> None:
        """`found` does not want to know any more."""
        waiting = self._waiting.get((agent, port), [])
        if found in waiting:
            waiting.remove(found)

    @staticmethod
    def _others() -> list[str]:
        try:
            return other_gateways(paths.own_directory("runtime", "egress"))[:_MOST_ASKED]
        except (OSError, paths.UntrustedDirectory):
            return []

    def _tell(self, key: tuple[str, int], query: _Query | None) -> None:
        del self._searches[key]
        waiting = self._waiting.pop(key, [])
        if query is None:
            if len(self._absent) >= _MOST_REMEMBERED:
                self._absent.clear()
            self._absent[key] = self._loop.now + _ABSENT_SECONDS
        for found in waiting[1:]:
            found(_again(self._loop, query))
        if waiting:
            waiting[0](query)
        elif query is not None:
            query.close()


class _Dial:
    """One visit, from the search for the agent to its end."""

    def __init__(
        self,
        directory: Directory,
        session: Session,
        agent: str,
        port: int,
        done: Callable[[int, str], None],
        revoked: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._session = session
        self._agent = agent
        self._port = port
        self._done = done
        self._revoked = revoked
        self._is_over = False
        self._is_settled = False
        self._timer: Timer | None = None
        # What is to be undone when it is over: a search, a query, an entrance, a visit.
        self._undo: Callable[[], None] = _nothing
        session.loop.call_soon(self._start)

    def over(self) -> None:
        """The visit has ended, or is not wanted any more. Does nothing the second time."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        undo, self._undo = self._undo, _nothing
        undo()

    def fault(self) -> None:
        """A mistake of ours."""
        self._settle(-1, "the gateway has failed to find the agent")

    def _settle(self, fd: int, reason: str, place: str = "") -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._is_over or self._is_settled:
            if fd >= 0:
                self._session.loop.close(fd)
            return
        self._is_settled = True
        if fd < 0:
            self.over()
        else:
            self._directory.remember(self._agent, self._port, place)
        self._done(fd, reason)

    # --- finding it ---

    def _start(self) -> None:
        if self._is_over:
            return
        place = self._directory.places.pop((self._agent, self._port), "")
        if place.endswith(control_messages.SUFFIX):
            search = _Search(self._session.loop, self._agent, self._port, self._found_again)
            self._undo = search.close
            search.begin([place])
            return
        here = visits.serving(self._session.gateway, self._agent, self._port)
        if place and here is not None and here.identity == place:
            self._visit(here)
        else:
            self._find()

    def _find(self) -> None:
        self._undo = lambda: self._directory.leave(self._agent, self._port, self._found)
        self._directory.find(self._agent, self._port, self._found)

    def _found_again(self, query: _Query | None) -> None:
        if query is None:
            self._find()
        else:
            self._ask(query)

    def _found(self, query: _Query | None) -> None:
        here = visits.serving(self._session.gateway, self._agent, self._port)
        if query is not None and (here is None or query.since < here.opened):
            self._ask(query)
            return
        if query is not None:
            query.close()
        if here is not None:
            self._visit(here)
        else:
            self._settle(-1, visits.nobody(self._agent, self._port))

    # --- going there ---

    def _visit(self, host: Session) -> None:
        """A sandbox of this gateway."""

        def done(fd: int, reason: str) -> None:
            if fd >= 0:
                self._undo = visits.Visit(host, self._port, self._revoked).over
            self._settle(fd, reason, host.identity)

        entrance = visits.Entrance(host, self._port, self._session.agent, self._session.identity, done)
        self._undo = entrance.give_up
        entrance.open()

    def _ask(self, query: _Query) -> None:
        """A sandbox of another gateway, which was asked for the agent before."""

        def answered(message: dict[str, Any], descriptors: list[int]) -> None:
            if self._is_settled:
                control_messages.close(descriptors)
                query.close()
                self._revoked(str(message.get("revoked") or f"the gateway of agent {self._agent} has ended"))
            elif len(descriptors) == 1 and message.get("connected"):
                self._settle(descriptors[0], "", query.path)
            else:
                control_messages.close(descriptors)
                self._settle(-1, str(message.get("error") or f"the gateway of agent {self._agent} has ended"))

        self._undo = query.close
        query.on_message = answered
        self._timer = self._session.loop.call_later(_CONNECT_SECONDS, self._expired)
        try:
            query.say(
                verb="dial",
                agent=self._agent,
                port=self._port,
                visitor=self._session.agent,
                sandbox=self._session.identity,
            )
        except OSError:
            self._settle(-1, f"the gateway of agent {self._agent} has ended")

    def _expired(self) -> None:
        self._settle(-1, f"the gateway of agent {self._agent} does not answer")


def _nothing() -> None:
    """There is nothing to undo."""


def _ignore(message: dict[str, Any], descriptors: list[int]) -> None:
    """Nobody listens yet."""


class _Search:
    """Asks gateways which of them has had the agent longest: `found` gets the one, to be closed by who gets it."""

    def __init__(self, loop: Loop, agent: str, port: int, found: Callable[[_Query | None], None]) -> None:
        self._loop = loop
        self._agent = agent
        self._port = port
        self._found = found
        self._waiting: set[_Query] = set()
        self._best: _Query | None = None
        self._timers: tuple[Timer, ...] = ()

    def begin(self, places: Iterable[str]) -> None:
        """Ask those at `places`; `found` is called at once when there are none."""
        for path in places:
            try:
                query = _Query(self._loop, path)
            except OSError:
                continue  # it has died, or is overrun
            query.on_message = self._hearing(query)
            self._waiting.add(query)
            try:
                query.say(verb="serving", agent=self._agent, port=self._port)
            except OSError:
                self._waiting.discard(query)
                query.close()
        if self._waiting:
            self._timers = (
                self._loop.call_later(_ENOUGH_SECONDS, self._enough),
                self._loop.call_later(SEARCH_SECONDS, self._end),
            )
        else:
            self._end()

    def _hearing(self, query: _Query) -> Callable[[dict[str, Any], list[int]], None]:
        return lambda message, descriptors: self._heard(query, message, descriptors)

    def _heard(self, query: _Query, message: dict[str, Any], descriptors: list[int]) -> None:
        control_messages.close(descriptors)
        self._waiting.discard(query)
        since = message.get("since")
        if not isinstance(since, float) or (self._best is not None and self._best.since <= since):
            query.close()
        else:
            if self._best is not None:
                self._best.close()
            self._best = query
            query.since = since
        if not self._waiting:
            self._end()

    def _enough(self) -> None:
        if self._best is not None:
            self._end()

    def _end(self) -> None:
        best, self._best = self._best, None
        self.close()
        self._found(best)

    def close(self) -> None:
        """Ask no more."""
        for timer in self._timers:
            timer.cancel()
        for query in self._waiting:
            query.close()
        self._waiting.clear()
        if self._best is not None:
            self._best.close()
            self._best = None


def _again(loop: Loop, query: _Query | None) -> _Query | None:
    """Another conversation with the same gateway: each visit has its own."""
    if query is None:
        return None
    try:
        another = _Query(loop, query.path)
    except OSError:
        return None
    another.since = query.since
    return another


class _Query:
    """A conversation with another gateway; `on_message` gets what it says, and `{}` when it has ended."""

    def __init__(self, loop: Loop, path: str) -> None:
        """Raises OSError when there is none at `path`, or too many want to speak to it."""
        self.path = path
        self.since = 0.0
        self.on_message: Callable[[dict[str, Any], list[int]], None] = _ignore
        self._loop = loop
        self._socket = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            self._socket.connect(path)
            loop.register(self._socket.fileno(), IN, self._ready)
        except OSError:
            self._socket.close()
            raise

    def say(self, **request: object) -> None:
        """Raises OSError."""
        control_messages.say(self._socket, request)

    def _ready(self, events: int) -> None:
        try:
            heard = control_messages.hear(self._socket)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            heard = None
        self.on_message(*(heard or ({}, [])))

    def fault(self) -> None:
        """A mistake of ours."""
        self.on_message({}, [])

    def close(self) -> None:
        """Speak no more. Does nothing the second time."""
        fd = self._socket.detach()
        if fd >= 0:
            self._loop.close(fd)
