"""Connections into a sandbox, to a port that its agent serves: the side of the gateway that has the sandbox.

The socket of such a visit is made inside the sandbox. It is connected here and goes to whoever visits: a sandbox of
this gateway, or another gateway of this user over the control socket, which then stays open as long as the visit
lasts: what either side ends, the other ends too. So a port that is no longer served, or a gateway that died, ends the
visits.
"""

from __future__ import annotations

import _socket
import posix

from osmoda.egress.loop import OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.control import Peer
    from osmoda.egress.gateway import Gateway
    from osmoda.egress.session import Session

CONNECT_SECONDS = 5.0
MOST_VISITS = 4096  # that other gateways pass on, each of which keeps a control connection

_DEAF_SECONDS = 0.1
_EINPROGRESS = 115
_LOOPBACK = {_socket.AF_INET: ("127.0.0.1",), _socket.AF_INET6: ("::ffff:127.0.0.1", "::1")}


def serving(gateway: Gateway, agent: str, port: int) -> Session | None:
    """The sandbox of this gateway that is the agent and serves the port; of several the one that has run longest."""
    found = [
        session
        for session in gateway.sessions.values()
        if session.agent == agent and port in session.policy.serve and not session.ended
    ]
    return min(found, key=lambda session: session.opened, default=None)


def nobody(agent: str, port: int) -> str:
    """The reason when there is none."""
    return f"no running agent {agent} serves port {port} (network.serve of its profile)"


class Visit:
    """A connection into a sandbox: one of `Session.visits` until `over` is called. `revoke(reason)` is to end it."""

    def __init__(self, session: Session, port: int, revoke: Callable[[str], None]) -> None:
        self.session = session
        self.port = port
        self.revoke = revoke
        session.visits.add(self)

    def over(self) -> None:
        """It has ended."""
        self.session.visits.discard(self)


def policy_changed(session: Session) -> int:
    """End the visits to ports that the session no longer serves. How many those were."""
    ending = [visit for visit in session.visits if visit.port not in session.policy.serve]
    for visit in ending:
        visit.revoke(f"agent {session.agent} no longer serves port {visit.port}")
    return len(ending)


def session_ended(session: Session) -> None:
    """End all visits."""
    for visit in tuple(session.visits):
        visit.revoke(f"agent {session.agent} has ended")


def answer(peer: Peer, agent: str, port: int, visitor: str, sandbox: str) -> None:
    """Connect for another gateway, whose sandbox `sandbox`, the agent `visitor`, wants to visit. Raises ValueError."""
    control = peer.control
    session = serving(control.gateway, agent, port)
    if session is None:
        raise ValueError(nobody(agent, port))
    if len(control.visits) >= MOST_VISITS:
        raise ValueError("too many connections are passed on to other gateways")

    def done(fd: int, reason: str) -> None:
        if fd < 0:
            peer.answer({"error": reason})
            return
        peer.answer({"connected": True}, (fd,))
        control.gateway.loop.close(fd)
        if peer.socket.fileno() >= 0:
            peer.on_close = Visit(session, port, revoke).over
            control.peers.discard(peer)
            control.visits.add(peer)

    def revoke(reason: str) -> None:
        peer.answer({"revoked": reason})
        peer.close()

    entrance = Entrance(session, port, visitor, sandbox, done)
    peer.on_close = entrance.give_up
    entrance.open()


class Entrance:
    """Connects to a port inside `session`: `done` gets the connected socket, or -1 and why there is none."""

    def __init__(
        self, session: Session, port: int, visitor: str, sandbox: str, done: Callable[[int, str], None]
    ) -> None:
        self._session = session
        self._port = port
        self._visitor = visitor
        self._sandbox = sandbox
        self._done = done
        self._over = False
        self._loop = session.loop
        self._socket: _socket.socket | None = None
        self._tried = 0
        self._timer = self._loop.call_later(CONNECT_SECONDS, self._expired)

    def open(self) -> None:
        """Begin; `done` may be called at once."""
        if self._session.deaf.get(self._port, 0.0) > self._loop.now:
            self._fail(self._not_listening())
            return
        self._session.take_inner_socket(self._made)

    def _made(self, fd: int) -> None:
        if self._over:
            if fd >= 0:
                posix.close(fd)
            return
        if fd < 0:
            self._fail(f"no socket can be made in the sandbox of agent {self._session.agent}")
            return
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        error = self._socket.connect_ex((_LOOPBACK[self._socket.family][self._tried], self._port))
        if error == _EINPROGRESS:
            self._loop.register(fd, OUT, self._ready)
        else:
            self._connected(error)

    def _ready(self, events: int) -> None:
        if self._socket is not None:
            self._connected(self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR))

    def _connected(self, error: int) -> None:
        socket = self._socket
        assert socket is not None
        if error:
            others = len(_LOOPBACK[socket.family]) - 1 - self._tried
            self._drop()
            if others:
                self._tried += 1
                self._session.take_inner_socket(self._made)
            else:
                # A visitor that tries on and on must not have sockets made on and on. Only served ports get here.
                self._session.deaf[self._port] = self._loop.now + _DEAF_SECONDS
                self._fail(self._not_listening())
        elif self._session.ended or self._port not in self._session.policy.serve:
            self._fail(f"agent {self._session.agent} no longer serves port {self._port}")
        else:
            self._socket = None
            fd = socket.detach()
            self._loop.unregister(fd)
            self.give_up()
            self._record("served", f"from sandbox {self._sandbox}")
            self._done(fd, "")

    def _not_listening(self) -> str:
        return f"agent {self._session.agent} does not listen on port {self._port}"

    def _expired(self) -> None:
        self._fail(f"agent {self._session.agent} does not answer on port {self._port}")

    def _fail(self, reason: str) -> None:
        self.give_up()
        self._record("failed", reason)
        self._done(-1, reason)

    def _record(self, action: str, reason: str) -> None:
        self._session.record(
            event="connection",
            direction="in",
            name=f"{self._visitor}.agent",
            port=self._port,
            protocol="tcp",
            verdict="allow",
            action=action,
            reason=reason,
        )

    def fault(self) -> None:
        """A mistake of ours."""
        if not self._over:
            self._fail("the gateway has failed to connect")

    def give_up(self) -> None:
        """Nobody wants it any more: `done` is not called. Does nothing once it has been."""
        self._over = True
        self._timer.cancel()
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.close(self._socket.detach())
            self._socket = None
