"""The state machine of one switch: events and times in, commands out; no clock, no file, no process.

    staged ─► switching ─► probation ─► committed
       │          │            │
       │          ▼            ▼
       │     rolling-back ◄────┘
       │          │   ▲
       ▼          ▼   └── rollback-failed (tries again)
    rolled-back ◄─┘

On entering a phase the record is saved, then the ledger is told, and only then is anything done. All that is done can
be done twice: whoever finds the record of a process that was killed starts the phase over, or goes back. A phase that
says how it ended ("committed", "rolled-back") is entered when all of it has been done.

The ledger: before anything is changed it must have been told, or the switch ends there. A way back is never stopped by
it: an agent that fails its checks is a harm that grows, the ledger can catch up. What it could not be told stays in
the record and is told, in order, as soon as it can be; until then the switch is not over, and old generations are kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.probation import Probation
from osmoda.supervisor.switch.record import GOING_BACK, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from osmoda.supervisor.switch.agents import Condition
    from osmoda.supervisor.switch.record import Member, Moment, Phase, Record

MOST_DELAY = 300.0
"""Seconds between two attempts at a rollback, at most; the first come after 1, 2, 4, …"""

_MOST_UNTOLD = (
    16  # entries that wait for the ledger; after that a rollback that fails in yet another way is only counted
)


@dataclass(frozen=True, slots=True)
class Save:
    """Put the record on disk, durably."""

    record: Record


@dataclass(frozen=True, slots=True)
class Tell:
    """Append entries to the ledger, durably, in order."""

    entries: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare a generation with its manifest: one that has changed is not activated."""

    member: Member
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End an agent, all of it."""

    member: Member


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy the data of an agent that is stopped, for the way back."""

    member: Member


@dataclass(frozen=True, slots=True)
class Restore:
    """Put the copied data in the place of what is there; nothing where no copy was made."""

    member: Member


@dataclass(frozen=True, slots=True)
class Flip:
    """Make a generation the current one; None: none is."""

    member: Member
    generation: int | None


@dataclass(frozen=True, slots=True)
class Start:
    """Start an agent, and wait until it is up."""

    member: Member


@dataclass(frozen=True, slots=True)
class Confirm:
    """See that an agent runs; what is said to be done must be true."""

    member: Member


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove generations that are no longer kept."""


type Command = Save | Tell | Verify | Stop | Snapshot | Restore | Flip | Start | Confirm | Prune


def forward(record: Record) -> Iterable[Command]:
    """What is done in "switching"."""
    for member in record.members:
        yield Verify(member, member.after)
        if member.before is not None:
            yield Verify(member, member.before)
    yield from map(Stop, record.agents)
    yield from (Snapshot(member) for member in record.agents if member.snapshot)
    yield from (Flip(member, member.after) for member in record.members)
    yield from map(Start, record.agents)


def kept(record: Record) -> Iterable[Command]:
    """What makes sure, in "probation", that what should run does: after the process that had started it was killed."""
    yield from (Verify(member, member.after) for member in record.members)
    yield from (Flip(member, member.after) for member in record.members)
    yield from map(Start, record.agents)


def back(record: Record) -> Iterable[Command]:
    """What is done in "rolling-back"."""
    yield from map(Stop, record.agents)
    for member in record.members:
        if member.before is not None:
            yield Verify(member, member.before)
    yield from (Restore(member) for member in record.agents if member.snapshot)
    yield from (Flip(member, member.before) for member in reversed(record.members))
    yield from again(record)


def again(record: Record) -> Iterable[Command]:
    """What makes sure that those run from the old generation that ran when the switch began."""
    ran = [member for member in record.agents if member.ran and member.before is not None]
    yield from map(Start, ran)
    yield from map(Confirm, ran)


class Switch:
    """One switch. Whoever drives it asks for the `next` command, carries it out, and says `done` or `failed`.

    `record` is what is on disk. `trouble` is what keeps the next step from being made, in one sentence, for whoever
    asks: empty most of the time.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.trouble = ""
        self._left: deque[Command] = deque()
        self._failures = 0  # to save the record, or to tell the ledger, in a row
        self._retry_at: float | None = None  # when the first of `_left` is tried again
        self._back_at: float | None = None  # when the way back is tried again
        self._resumed: float | None = None
        self._probation: Probation | None = None
        self._ended: Probation | None = None  # that was to end with a record which is not saved yet

    @classmethod
    def begin(cls, record: Record) -> Switch:
        """A switch whose record, "staged", has just been made."""
        switch = cls(record)
        switch._left.append(Tell(record.untold))
        return switch

    @classmethod
    def resume(cls, record: Record, now: Moment) -> Switch:
        """The switch of a process that is gone. What it did last may be done, half done, or not begun."""
        switch = cls(record)
        if record.phase == "staged":
            switch._enter("rolling-back", now, "the daemon ended before anything was changed", again(record))
        elif record.phase == "switching":
            switch._enter("rolling-back", now, "the daemon ended in the middle of the switch")
        elif record.phase == "probation" and record.since.boot != now.boot:
            switch._enter("probation", now, "the host was started anew, and so is the probation", kept(record))
        else:
            if record.untold:
                switch._left.append(Tell(record.untold))
            if record.phase == "probation":
                switch._resumed = now.since_boot
                switch._left.extend(kept(record))
            else:
                switch._left.extend([Prune()] if record.finished else back(record))
        return switch

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do or to wait for."""
        return self.record.finished and not self._left

    @property
    def on_probation(self) -> bool:
        """Whether it waits for what agents do."""
        return self._probation is not None

    @property
    def wakes_at(self) -> float | None:
        """When `wake` is wanted, in seconds since boot."""
        if self._retry_at is not None:
            return self._retry_at
        if self._probation is not None:
            return self._probation.deadline
        return self._back_at if not self._left else None

    def next(self, now: Moment) -> Command | None:
        """The command to carry out now; None when there is only to wait: for `wakes_at`, or for what agents do."""
        if self._retry_at is not None:
            return None
        if not self._left and not self.record.finished and self._probation is None and self._back_at is None:
            self._advance(now)
        return self._left[0] if self._left else None

    def _advance(self, now: Moment) -> None:
        """All of the phase has been done."""
        match self.record.phase:
            case "staged":
                self._enter("switching", now, "", forward(self.record))
            case "switching":
                self._enter("probation", now, "")
            case "probation":
                names = [member.name for member in self.record.agents]
                self._probation = Probation(self.record.terms, names, self.record.since, self._resumed)
            case _:
                self._enter("rolled-back", now, self.record.reason)

    def _enter(self, phase: Phase, now: Moment, reason: str, work: Iterable[Command] = (), *, error: str = "") -> None:
        reason, error = text(reason), text(error)
        entered = replace(self.record, phase=phase, since=now, reason=reason, error=error, step=self.record.step + 1)
        entered = replace(entered, untold=(*self.record.untold, entered.entry()))
        self._ended, self._probation = self._probation, None
        self._retry_at = self._back_at = None
        if phase == "rolling-back":
            work = work or back(entered)
        elif entered.finished:
            work = (Prune(),)
        self._left = deque((Save(entered), Tell(entered.untold), *work))

    def _take(self, command: Command) -> None:
        taken = self._left.popleft()
        assert taken is command, "the command that is due is carried out, and no other"

    def done(self, command: Command, now: Moment) -> None:
        """`command` has been carried out."""
        self._take(command)
        if isinstance(command, (Save, Tell)):
            self.trouble, self._failures = "", 0
        if isinstance(command, Save):
            self.record = command.record
        elif isinstance(command, Tell):
            self.record = replace(self.record, untold=())
            if self.record.finished:
                self._left.appendleft(Save(self.record))

    def failed(self, command: Command, error: str, now: Moment) -> None:
        """`command` could not be carried out, or not all of it, for the reason `error`."""
        self._take(command)
        if isinstance(command, Save):
            self._unsaved(command, error, now)
        elif isinstance(command, Tell):
            self._untold(command, error, now)
        elif isinstance(command, Prune):
            self.trouble = error  # what is kept too long does no harm; the next switch tries again
        elif self.record.phase in GOING_BACK:
            self._not_back(error, now)
        elif self.record.phase == "switching" and isinstance(command, Verify):
            self._enter("rolled-back", now, f"{error}; nothing was changed")
        else:
            self._enter("rolling-back", now, error)

    def _unsaved(self, command: Save, error: str, now: Moment) -> None:
        why, phase = f"the record of the switch could not be written: {error}", command.record.phase
        if phase == "switching":
            self._enter("rolled-back", now, f"{why}; nothing was changed")
        elif phase == "probation" and self.record.phase == "switching":
            self._enter("rolling-back", now, why)
        elif phase == "rollback-failed":
            # On disk it is on its way back, which is true as well: the next attempt need not wait for more than its
            # time.
            self._left.clear()
            self.trouble = command.record.error
        elif self.record.phase == "probation" and phase == "committed" and self._ended is not None:
            # It stays on probation, and what agents do goes on to count.
            self._failures += 1
            self._left.clear()
            self.trouble, self._probation = why, self._ended
            self._probation.deadline = now.since_boot + delay(self._failures)
        else:
            self._again(command, why, now)

    def _untold(self, command: Tell, error: str, now: Moment) -> None:
        why = f"the ledger could not be written: {error}"
        if self.record.phase in ("staged", "switching"):
            self._enter("rolled-back", now, f"{why}; nothing was changed")
        elif self.record.finished:
            self._again(command, why, now)
        else:
            self.trouble = why  # told with the next phase

    def _again(self, command: Command, why: str, now: Moment) -> None:
        """Try `command` again after a while; nothing can be done before it."""
        self._left.appendleft(command)
        self.trouble = why
        self._failures += 1
        self._retry_at = now.since_boot + delay(self._failures)

    def _not_back(self, error: str, now: Moment) -> None:
        """The way back has failed at some point; after a while all of it is tried again."""
        known = text(error) == self.record.error or len(self.record.untold) > _MOST_UNTOLD
        told = self.record.phase == "rollback-failed" and known
        self.record = replace(self.record, attempts=self.record.attempts + 1)
        if told:
            self._left = deque((Save(self.record),))  # the same again: counted, but told once
        else:
            self._enter("rollback-failed", now, self.record.reason, error=error)
        self._back_at = now.since_boot + delay(self.record.attempts)

    def wake(self, now: Moment) -> None:
        """The time `wakes_at` may have come."""
        if self._retry_at is not None:
            if now.since_boot >= self._retry_at:
                self._retry_at = None
        elif self._probation is not None:
            if now.since_boot >= self._probation.deadline:
                failure = self._probation.conclude()
                if failure:
                    self._enter("rolling-back", now, failure)
                else:
                    self._enter("committed", now, "it has passed its probation")
        elif self._back_at is not None and now.since_boot >= self._back_at and not self._left:
            self._back_at = None
            self._left.extend(back(self.record))

    def observe(self, name: str, condition: Condition, now: Moment) -> None:
        """How an agent is now."""
        if self._probation is not None:
            failure = self._probation.observe(name, condition, now.since_boot)
            if failure:
                self._enter("rolling-back", now, failure)

    def commit(self, reason: str, now: Moment) -> None:
        """End the probation early. Raises SwitchError where there is none."""
        if self._probation is None:
            raise SwitchError(f"switch {self.record.number} is not on probation: it is {self.record.phase}")
        self._enter("committed", now, reason)

    def go_back(self, reason: str, now: Moment) -> None:
        """Go back by hand; where it is on its way back and waits, try again now. Raises SwitchError at its end."""
        if self.record.finished:
            raise SwitchError(f"switch {self.record.number} is over: it is {self.record.phase}")
        if self.record.phase in GOING_BACK:
            self._retry_at = None
            if self._back_at is not None and not self._left:
                self._back_at = None
                self._left.extend(back(self.record))
        elif self.record.phase == "staged":
            self._enter("rolling-back", now, reason, again(self.record))
        else:
            self._enter("rolling-back", now, reason)


def delay(attempts: int) -> float:
    """Seconds to wait after so many failures."""
    return float(min(2.0 ** min(attempts - 1, 16), MOST_DELAY))
