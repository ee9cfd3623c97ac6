"""The gateway: one process and one loop that hold the sockets of sandboxes, decide, and relay.

It is forked by whoever runs a sandbox (`own.py`), or stands by itself for many (`service.py`).
"""

from __future__ import annotations

import posix
import time

from osmoda.egress.admission import Admission
from osmoda.egress.counters import Counters
from osmoda.egress.loop import Loop
from osmoda.egress.registration import Channel
from osmoda.egress.upstream import Upstream
from osmoda.host import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from osmoda.egress.agents import Directory
    from osmoda.egress.asking import Question
    from osmoda.egress.inspection import Inspector
    from osmoda.egress.ledger_feed import Feed
    from osmoda.egress.records import Log
    from osmoda.egress.session import Session

_DRAIN = 5.0
_DRAIN_CHECK = 0.02


class Gateway:
    """Sessions, and what they share. `log` takes their records; `upstream_authorities` is the path of a CA bundle."""

    def __init__(self, log: Log, *, upstream_authorities: str = "") -> None:
        self.loop = Loop()
        self.loop.on_error = self._fault
        self.log = log
        log.batch(self.loop.call_later)
        self.counters = Counters()
        self.upstream = Upstream(self.loop)
        self.upstream_authorities = upstream_authorities
        self.sessions: dict[str, Session] = {}
        self.directory: Directory | None = None  # where other agents are, once one was looked for
        self.ledger: Feed | None = None
        """Where verdicts are put on record, for a user who has a ledger."""
        self.awaken: Callable[[], None] | None = None  # has the ledger's service started, where this process may not
        self.draining = False
        self.parted: Callable[[], None] | None = None  # called when a channel that was admitted has ended
        self._inspector: Inspector | None = None
        self._admissions: set[Admission] = set()

    # --- sandboxes ---

    def admit(self, socket: _socket.socket) -> None:
        """Listen to whoever has a sandbox to register."""
        socket.setblocking(False)
        self._admissions.add(Admission(self, Channel(socket)))

    def departed(self, admission: Admission) -> None:
        """A channel that was admitted has ended."""
        if admission not in self._admissions:
            return
        self._admissions.discard(admission)
        if self.parted is not None:
            self.parted()
        if self.draining and not self.sessions:
            self.loop.stop()

    # --- what connections ask for ---

    def inspect_with(self, inspector: Inspector) -> None:
        """Have this one look into connections, in place of one that is the gateway's alone."""
        self._inspector = inspector

    def inspector(self) -> Inspector:
        """The inspecting half, started when it is first needed."""
        if self._inspector is None:
            from osmoda.egress.inspection import Inspector

            self._inspector = Inspector(self.loop)
        return self._inspector

    def ask(self, session: Session, name: str, port: int, done: Callable[[bool, str], None]) -> Question:
        """Hold a connection to an unlisted name until somebody decides."""
        from osmoda.egress import asking

        return asking.ask(session, name, port, done)

    def dial_agent(
        self, session: Session, target: str, port: int, done: Callable[[int, str], None], revoked: Callable[[str], None]
    ) -> Callable[[], None]:
        """Reach another agent's port: `done` gets a connected socket, or -1 and why not.

        Returns what to call once the connection is over, or not wanted. `revoked(reason)`: the other side ends it.
        """
        from osmoda.egress import agents

        return agents.dial(session, target, port, done, revoked)

    def out_of_something(self, error: OSError) -> None:
        """Descriptors or memory have run out: whoever connects waits a moment, and somebody should know."""
        self.counters.faults += 1
        self.log.write(
            {
                "time": time.time(),
                "event": "fault",
                "reason": f"the gateway cannot accept: {posix.strerror(error.errno or 0)}",
            }
        )

    def write(self, entry: dict[str, object]) -> None:
        """Keep a record."""
        self.counters.records += 1
        verdict = entry.get("verdict")
        if verdict is not None:
            self.counters.decided(str(entry.get("event")), str(verdict), str(entry.get("action")))
        self.log.write(entry)

    def use_ledger(self) -> Feed | None:
        """The ledger, if this user has one: asked with each sandbox, since one may have been made meanwhile."""
        if self.ledger is None and paths.has_ledger():
            from osmoda.egress.ledger_feed import Feed

            self.ledger = Feed(self.loop, self.awaken)
        return self.ledger

    def _fault(self, callback: object, error: BaseException) -> None:
        """A mistake of ours in one callback must not cost the others their network; its own connection is cut."""
        if not isinstance(error, Exception):
            raise error
        self.counters.faults += 1
        self.log.write({"time": time.time(), "event": "fault", "reason": f"{error!r} at {_places(error)}"})
        owner = getattr(callback, "__self__", None)
        fail = getattr(owner, "fault", None)
        if fail is not None:
            fail()

    # --- its end ---

    def drain(self, seconds: float = _DRAIN) -> None:
        """Take nothing new, give what is open up to `seconds` to end, then stop."""
        if self.draining:
            return
        self.draining = True
        for session in self.sessions.values():
            session.stop_accepting()
        self._stop_when_drained(time.monotonic() + seconds)

    def _stop_when_drained(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0 or not any(session.connections or session.visits for session in self.sessions.values()):
            self.loop.stop()
        else:
            self.loop.call_later(min(left, _DRAIN_CHECK), lambda: self._stop_when_drained(end))

    def run(self) -> None:
        """Serve until it is stopped; then let go of everything."""
        try:
            self.loop.run()
        finally:
            for admission in tuple(self._admissions):
                admission.close()
            if self._inspector is not None:
                self._inspector.close(1.0)
            self.log.close()
            if self.ledger is not None:
                self.ledger.close()
            self.loop.shut()


def _places(error: BaseException) -> str:
    """Where an exception came from: the last frames, the innermost first."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return ", ".join(frames[:-6:-1])
