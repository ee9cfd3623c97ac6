"""A gateway's control socket, the gateway's end: who is served, what happens, other policies, questions, its end.

Who connects must be this user or root, and not in a sandbox (`host.peer`). A peer that does not read is cut off: none
keeps the loop waiting.
"""

from __future__ import annotations

import _socket
import posix

from osmoda.egress import control_messages, records
from osmoda.egress.loop import IN, OUT, Acceptor
from osmoda.egress.policy import Policy
from osmoda.host import messages, paths, peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping
    from typing import Any

    from osmoda.egress.gateway import Gateway
    from osmoda.egress.session import Session
else:
    from _collections import deque

MOST_PEERS = 256
MOST_QUEUED = 1000  # records, for a watcher that reads slowly; what comes then is counted, and told

_BACKLOG = 128
_SENT_AT_ONCE = 64


def listen(gateway: Gateway, drain: Callable[[float], None] | None = None) -> Control:
    """Open the control socket of this process's gateway. Raises OSError, paths.UntrustedDirectory."""
    return Control(
        gateway, f"{paths.own_directory('runtime', 'egress')}/{posix.getpid()}{control_messages.SUFFIX}", drain
    )


class NotHere(ValueError):
    """This gateway does not have what the request is about; another one may."""


class Control:
    """The listening socket at `path`, and whoever has connected.

    `drain(seconds)` is called when somebody asks for the gateway's end.
    """

    def __init__(self, gateway: Gateway, path: str, drain: Callable[[float], None] | None = None) -> None:
        self.gateway = gateway
        self.path = path
        self.drain = drain or gateway.drain
        self.peers: set[Peer] = set()
        self.visits: set[Peer] = set()
        self.loading: dict[str, _Loading] = {}
        listener = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            # One of this name was that of a process which had this process's number before.
            _unlink(path)
            listener.bind(path)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._acceptor = Acceptor(gateway.loop, listener, self._accepted)

    def _accepted(self, fd: int) -> None:
        socket = _socket.socket(fileno=fd)
        try:
            reason = peer.refusal(socket)
            if not reason and len(self.peers) >= MOST_PEERS:
                reason = "too many are connected to the gateway's control socket"
            if reason:
                control_messages.say(socket, {"error": reason})
        except OSError:
            reason = "it is gone"
        if reason:
            self.gateway.loop.close(socket.detach())
        else:
            self.peers.add(Peer(self, socket))

    def close(self) -> None:
        """Remove the socket, and part from whoever is connected."""
        self._acceptor.close()
        for each in (*self.peers, *self.visits):
            each.close()
        _unlink(self.path)


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return


class Peer:
    """One connection to the control socket.

    `on_close` is called when it ends, from whichever side; `on_writable` when it can be written to, if that was asked
    of the loop.
    """

    def __init__(self, control: Control, socket: _socket.socket) -> None:
        self.control = control
        self.socket = socket
        self.on_close: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._waits = False
        control.gateway.loop.register(socket.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        if events & OUT and self.on_writable is not None:
            self.on_writable()
            if not events & ~OUT:
                return
        try:
            heard = control_messages.hear(self.socket)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self.answer({"error": str(error)})
            heard = None
        if heard is None:
            self.close()
        else:
            self._requested(*heard)

    def _requested(self, request: dict[str, Any], descriptors: list[int]) -> None:
        answer: dict[str, Any] | None
        try:
            if self._waits:
                raise ValueError("one thing at a time")
            verb = _VERBS.get(str(request.get("verb")))
            if verb is None:
                raise ValueError(f"this gateway has no verb {request.get('verb')!r:.50}")
            self._waits = True
            answer = verb(self, request, descriptors)
        except KeyError as error:
            answer = {"error": f"the request lacks {error}"}
        except NotHere as error:
            answer = {"error": str(error), "none": True}
        except (ValueError, TypeError, OverflowError, OSError) as error:
            answer = {"error": str(error)}
        finally:
            control_messages.close(descriptors)
        if answer is not None:
            self.answer(answer)

    def fault(self) -> None:
        """A mistake of ours has kept it from its answer."""
        self.close()

    def answer(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Say what came of the request. Whoever cannot take it is gone, or does not read: part from it."""
        self._waits = False
        if self.socket.fileno() < 0:
            return
        try:
            control_messages.say(self.socket, dict(message), descriptors)
        except OSError:
            self.close()

    def close(self) -> None:
        """Part from it. Does nothing the second time."""
        fd = self.socket.detach()
        if fd < 0:
            return
        self.control.gateway.loop.close(fd)
        self.control.peers.discard(self)
        self.control.visits.discard(self)
        if self.on_close is not None:
            self.on_close()

    # --- what can be asked for ---

    def sessions(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Who is served."""
        return {"sessions": [_describe(session) for session in self.control.gateway.sessions.values()]}

    def policy(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Put another policy in force in one session; answered when it is, with the connections that it closed."""
        session = self.control.gateway.sessions.get(str(request["session"]))
        if session is None:
            raise NotHere("there is no such sandbox here")
        if len(descriptors) != 1:
            raise ValueError("the policy is missing")
        loading = _Loading(self, session, control_messages.read_memfd(descriptors[0]))
        earlier = self.control.loading.get(session.identity)
        self.control.loading[session.identity] = loading
        if earlier is not None:
            earlier.give_up("a later edit has taken its place")

    def pending(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """The open questions."""
        from osmoda.egress import asking

        return {"pending": asking.pending(self.control.gateway.sessions.values())}

    def decide(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Answer a question: `how` is "once", "run" or "refuse"."""
        from osmoda.egress import asking

        how = request["how"]
        if how not in (*asking.HOW, "refuse"):
            raise ValueError(f"a question is answered with {', '.join(asking.HOW)} or refuse")
        found = asking.decide(self.control.gateway.sessions.values(), str(request["id"]), how)
        if found is None:
            raise NotHere("there is no such question")
        session, question = found
        return {"session": _describe(session), "name": question.name, "port": question.port}

    def metrics(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Its numbers."""
        from osmoda.egress import metrics

        return {"metrics": metrics.snapshot(self.control.gateway)}

    def watch(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """From now on, a message for each record; `sandboxes` names those that are meant, all when absent."""
        wanted = request.get("sandboxes")
        _Stream(self, None if wanted is None else {str(identity) for identity in wanted})

    def serving(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Since when an agent here that serves the port runs, null when none does. For other gateways."""
        from osmoda.egress import visits

        found = visits.serving(self.control.gateway, str(request["agent"]), int(request["port"]))
        return {"since": found.opened if found else None}

    def dial(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Connect to the port that an agent here serves; the answer has the socket. For other gateways."""
        from osmoda.egress import visits

        wanted = str(request["agent"]), int(request["port"])
        visits.answer(self, *wanted, visitor=str(request["visitor"]), sandbox=str(request["sandbox"]))

    def stop(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """End, in at most `seconds` (0 to 3600)."""
        seconds = float(request.get("seconds", 0.0))
        if not 0 <= seconds <= 3600:
            raise ValueError("that many seconds are none to wait for")
        self.control.gateway.loop.call_soon(lambda: self.control.drain(seconds))
        return {"stopping": True}


_VERBS: dict[str, Callable[[Peer, dict[str, Any], list[int]], dict[str, Any] | None]] = {
    "sessions": Peer.sessions,
    "policy": Peer.policy,
    "pending": Peer.pending,
    "decide": Peer.decide,
    "metrics": Peer.metrics,
    "watch": Peer.watch,
    "serving": Peer.serving,
    "dial": Peer.dial,
    "stop": Peer.stop,
}


def _describe(session: Session) -> dict[str, Any]:
    from binascii import b2a_base64

    return {
        "identity": session.identity,
        "agent": session.agent,
        "tier": session.tier,
        "profile": session.profile,
        "files": session.files,
        "token": b2a_base64(session.token, newline=False).decode(),
        "pid": posix.getpid(),
        "opened": session.opened,
        "connections": len(session.connections),
        "policy": session.policy.digest,
        "ask": session.policy.ask,
        "serve": session.policy.serve,
        "pending": len(session.desk.open) if session.desk else 0,
    }


class _Loading:
    """A policy on its way into force: read in steps, between which the loop has its turn."""

    def __init__(self, peer: Peer, session: Session, blob: bytes) -> None:
        self._peer = peer
        self._session = session
        self._loader = Policy.loader(blob)
        self._over = False
        peer.control.gateway.loop.call_soon(self._step)

    def _step(self) -> None:
        if self._over:
            return
        if self._session.ended:
            self._end({"error": "the sandbox has ended", "none": True})
            return
        try:
            policy = self._loader.step()
        except (ValueError, TypeError, EOFError) as error:
            self.give_up(f"the policy cannot be read: {error}")
            return
        if policy is None:
            self._peer.control.gateway.loop.call_soon(self._step)
            return
        closed = self._session.replace_policy(policy)
        if self._session.desk is not None:
            from osmoda.egress import asking

            asking.policy_changed(self._session)
        if self._session.visits:
            from osmoda.egress import visits

            closed += visits.policy_changed(self._session)
        self._end({"closed": closed})

    def fault(self) -> None:
        """A mistake of ours."""
        self.give_up("the gateway has failed to put the policy in force")

    def give_up(self, reason: str) -> None:
        """The policy before stays in force."""
        self._end({"error": reason})

    def _end(self, answer: dict[str, Any]) -> None:
        self._over = True
        loading = self._peer.control.loading
        if loading.get(self._session.identity) is self:
            del loading[self._session.identity]
        self._peer.answer(answer)


class _Stream:
    """Records for one watcher."""

    def __init__(self, peer: Peer, wanted: set[str] | None) -> None:
        self._peer = peer
        self._wanted = wanted
        self._queue: deque[bytes] = deque()
        self._missed = 0
        self._blocked = False
        peer.on_close = self._close
        peer.on_writable = self._send
        peer.control.gateway.log.watchers.add(self._came)

    def _came(self, record: Mapping[str, object]) -> None:
        if self._wanted is not None and record.get("sandbox") not in self._wanted:
            return
        if len(self._queue) >= MOST_QUEUED:
            self._missed += 1
            return
        self._tell_missed()
        self._queue.append(records.encode(record)[:-1])
        if not self._blocked:
            self._send()

    def _tell_missed(self) -> None:
        if self._missed:
            self._queue.append(b'{"event":"missed","missed":%d}' % self._missed)
            self._missed = 0

    def _send(self) -> None:
        socket = self._peer.socket
        try:
            for _ in range(_SENT_AT_ONCE):
                if not self._queue:
                    self._tell_missed()
                    if not self._queue:
                        break
                messages.send(socket, self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._peer.close()
            return
        if self._blocked != bool(self._queue):
            self._blocked = not self._blocked
            self._peer.control.gateway.loop.modify(socket.fileno(), IN | OUT if self._blocked else IN)

    def _close(self) -> None:
        self._peer.control.gateway.log.watchers.discard(self._came)
