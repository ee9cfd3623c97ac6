"""Verdicts on their way to the ledger, where this user has one. Loaded only then.

Nothing on the data path waits: verdicts are submitted, and acknowledged later. While they cannot be (the service that
writes has ended, or does not keep up) new connections wait for a moment, and then are refused; those that are open were
recorded when they were let through, and go on.
"""

from __future__ import annotations

import posix

from osmoda.egress.loop import IN
from osmoda.host import paths
from osmoda.ledger.client import GREETING, Ledger, printable
from osmoda.ledger.errors import BUSY, LedgerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.loop import Loop, Timer
    from osmoda.egress.session import Session
    from osmoda.ledger.client import Ticket

_PER_SECOND = 64  # verdicts of one sandbox that get an event each; of the others the next one tells how many they were
_LATE = 5.0  # seconds after which an event that was not acknowledged means that nothing is written
_MOST_WAITING = 256  # connections, until it is known whether there is a service
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries to reach a service, or to start one in vain
_LAST_PATIENCE = 2.0  # seconds for the last events
_LONGEST = 300  # characters of a reason


class Feed:
    """The connection, beside a gateway's loop. `refusal` says why no connection may be let through now."""

    def __init__(self, loop: Loop, awaken: Callable[[], None] | None = None) -> None:
        """`awaken` has the service started by another process; by default it is this one that starts it."""
        self.refusal = ""
        self._loop = loop
        self._awaken = awaken or self._start
        self._ledger = Ledger(start=False)
        self._ledger.on_lost = self._gone
        self._watched = -1
        self._oldest: tuple[Ticket, float] | None = None
        self._timer: Timer | None = None
        self._starting = False
        self._pause = _PAUSE
        self._why = ""  # the last one that was started has said so
        self._dialled = 0.0
        self._since = loop.now
        self._undecided = True
        self._waiting: list[Callable[[], None]] = []
        self._refuse("its service has not answered yet")
        self._try()

    def when_decided(self, call: Callable[[], None]) -> bool:
        """Call `call` when it is known whether verdicts can be written; false when that is known already."""
        if not self._undecided or len(self._waiting) >= _MOST_WAITING:
            return False
        self._waiting.append(call)
        return True

    def _decide(self) -> None:
        self._undecided = False
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self._loop.call_soon(call)

    # --- verdicts ---

    def note(self, session: Session, fields: dict[str, object]) -> None:
        """Submit one verdict about a connection of `session`."""
        second = int(self._loop.now)
        if second != session.ledger_second:
            self.sum_up(session)
            session.ledger_second, session.ledger_noted = second, 0
        session.ledger_noted += 1
        if session.ledger_noted > _PER_SECOND:
            return
        self._submit(
            {
                "identity": session.identity,
                "agent": printable(session.agent or session.profile.removesuffix(".toml")),
                **_clean(fields),
            }
        )

    def sum_up(self, session: Session) -> None:
        """Say how many verdicts of a second, or at the session's end, got no event of their own."""
        others = session.ledger_noted - _PER_SECOND
        session.ledger_noted = 0
        if others > 0:
            self._submit({"identity": session.identity, "agent": printable(session.agent), "others": others})

    def _submit(self, fields: dict[str, object]) -> None:
        ticket = self._ledger.submit("egress", fields)
        if ticket.error:
            self._refuse(ticket.error)
            self._look_later()
        elif self._oldest is None:
            self._oldest = ticket, self._loop.now
            self._look_later()

    def _refuse(self, reason: str) -> None:
        self.refusal = f"it cannot be put on the ledger, so it is not let through: {reason}"

    # --- the connection ---

    def _try(self) -> None:
        """Be connected, or about to be."""
        try:
            self._ledger.dial()
        except LedgerError as error:
            self._refuse(self._why or str(error))
            if not self._starting:
                # Each time later than the last: where it cannot be started, that is not to take a core.
                self._look_later(self._pause)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
                self._awaken()
            self._look_later()
            return
        self._watched = self._ledger.fileno()
        if self._watched >= 0:
            self._loop.register(self._watched, IN, self._heard)
            self._dialled = self._loop.now
        self._look_later()

    def _heard(self, _: int) -> None:
        was_ready = self._ledger.ready
        self._ledger.hear()
        if self._ledger.ready and not was_ready:
            self.refusal = self._why = ""
            self._pause = _PAUSE
            self._decide()
            if self._oldest is not None:
                self._oldest = self._oldest[0], self._loop.now
        if self._oldest is not None and self._oldest[0].done:
            self._look()

    def _gone(self, fd: int) -> None:
        if fd == self._watched:
            self._loop.unregister(fd)
            self._watched = -1
            self._refuse("the ledger's service has ended")
            self._since, self._undecided = self._loop.now, True
            self._loop.call_soon(self._try_again)

    def _try_again(self) -> None:
        if self._watched < 0:
            self._try()

    def _look_later(self, seconds: float = _PAUSE) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._undecided and self._loop.now - self._since > _LATE:
            self._decide()
        if self._ledger.fileno() < 0:
            self._try()
        elif not self._ledger.ready:
            if self._loop.now - self._dialled > _LATE:
                self._ledger.close()  # it does not answer: perhaps another one will
            self._look_later()
        else:
            self._look()

    def _look(self) -> None:
        """Whether the service keeps up."""
        now = self._loop.now
        if self._oldest is not None and self._oldest[0].done:
            error = self._oldest[0].error
            waiting = self._ledger.oldest
            self._oldest = (waiting, now) if waiting is not None else None
            if error:
                self._refuse(error)
                self._look_later()
                if self._oldest is None:
                    # Nothing else would tell that it can be written again.
                    self._submit({"gateway": posix.getpid(), "reason": "whether verdicts can be written again"})
                return
            self.refusal = ""
        if self._oldest is not None:
            if now - self._oldest[1] > _LATE:
                self._refuse("the ledger's service does not answer")
            self._look_later()

    def _start(self) -> None:
        """Start the service, without waiting for it."""
        from osmoda.ledger import starting

        try:
            folder = paths.own_ledger()
            pid, fd = starting.begin(folder, paths.own_directory("runtime", "ledger"))
        except (OSError, paths.UntrustedDirectory) as error:
            self._refuse(f"the ledger's service cannot be started: {error}")
            return
        self._starting = True
        said = bytearray()

        def heard(_: int) -> None:
            some = posix.read(fd, 4096)
            said.extend(some)
            if some and said != GREETING:
                return
            self._loop.close(fd)
            posix.waitpid(pid, 0)
            self._starting = False
            if said == GREETING:
                self._try_again()
            else:
                reason = said.decode(errors="backslashreplace").strip().rpartition("\n")[2]
                self._refuse(reason or "the ledger's service has not started")
                if reason and not reason.startswith(BUSY):
                    self._why = reason
                    self._decide()

        self._loop.register(fd, IN, heard)

    def close(self) -> None:
        """Wait a moment for the last events."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ledger.flush(_LAST_PATIENCE)
        self._ledger.on_lost = None
        if self._watched >= 0:
            self._loop.unregister(self._watched)
            self._watched = -1
        self._ledger.close()


def _clean(fields: dict[str, object]) -> dict[str, object]:
    """What the ledger can write, and is worth writing."""
    found: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, str):
            if value:
                found[name] = printable(value)[:_LONGEST]
        elif isinstance(value, int):
            found[name] = value
    return found
