"""A host in memory on which a switch can be tried: agents, links, data, a record on disk, a ledger. Each command is
carried out, refused, or cut off before, within or after what it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from osmoda.supervisor.switch import phases
from osmoda.supervisor.switch.agents import Condition
from osmoda.supervisor.switch.record import Member, Moment, Record, Terms

RUNS = Condition(running=True, given_up=False, health="healthy", restarts=0)


class Cut(Exception):
    """The process that switches has been killed."""


@dataclass
class Host:
    """What there is. `current` is which generation of each member, `runs` which one each agent runs from."""

    record: Record
    current: dict[str, int | None]
    runs: dict[str, int | None]
    data: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    ledger: list[dict[str, object]] = field(default_factory=list)
    time: float = 1000.0
    boot: str = "first"
    done: list[phases.Command] = field(default_factory=list)

    def now(self) -> Moment:
        self.time += 0.001
        return Moment(1_700_000_000 + self.time, self.time, self.boot)

    def carry_out(self, command: phases.Command, cut: float | None = None) -> None:
        """Do it; with `cut` only so much of it (0 to 1), and then the process is gone."""
        parts = list(self._parts(command))
        if cut is None:
            for part in parts:
                part()
            self.done.append(command)
            return
        for part in parts[: round(cut * len(parts))]:
            part()
        raise Cut

    def _parts(self, command: phases.Command) -> Iterable[object]:
        match command:
            case phases.Save(record):
                yield lambda: self._save(record)
            case phases.Tell(entries):
                for entry in entries:
                    yield lambda entry=entry: self.ledger.append(dict(entry))
            case phases.Stop(member):
                yield lambda: self.runs.update({member.name: None})
            case phases.Start(member):
                yield lambda: self._start(member)
            case phases.Flip(member, generation):
                yield lambda: self._flip(member, generation)
            case phases.Snapshot(member):
                assert self.runs[member.name] is None, "data is copied while nobody writes it"
                yield lambda: self.copies.update({member.name: self.data[member.name]})
            case phases.Restore(member):
                assert self.runs[member.name] is None
                if member.name in self.copies:
                    yield lambda: self.data.update({member.name: self.copies[member.name]})
            case phases.Confirm(member):
                assert self.runs[member.name] == member.before
                yield lambda: None
            case _:
                yield lambda: None

    def _save(self, record: Record) -> None:
        """What the record says is so when it says it."""
        self.record = record
        if record.phase == "committed":
            self.require(record.members, "after")
        elif record.phase == "rolled-back":
            self.require(record.members, "before")

    def require(self, members: Iterable[Member], which: str) -> None:
        for member in members:
            wanted = getattr(member, which)
            assert self.current[member.name] == wanted, (member, self)
            if member.kind == "agent":
                runs = wanted if which == "after" or member.ran else None
                assert self.runs[member.name] == runs, (member, self)
                if member.snapshot and which == "before":
                    assert self.data[member.name] == "as before", "data went back with its generation"

    def _start(self, member: Member) -> None:
        if self.runs[member.name] is None:
            self.runs[member.name] = self.current[member.name]
        if self.runs[member.name] == member.after:
            self.data[member.name] = "of the new one"

    def _flip(self, member: Member, generation: int | None) -> None:
        if member.kind == "agent":
            assert self.runs[member.name] is None or self.runs[member.name] == generation, (
                "it is flipped while it is stopped"
            )
        self.current[member.name] = generation

    def is_truthful(self) -> None:
        """The ledger tells one story, step by step, and it is the record's."""
        story: dict[int, object] = {}
        for entry in self.ledger:
            told = story.setdefault(int(str(entry["step"])), entry["phase"])
            assert told == entry["phase"], f"step {entry['step']} is told in two ways"
        assert [*story] == [*range(len(story))], f"steps are told in order: {story}"
        if not self.record.untold:
            assert story.get(self.record.step) == self.record.phase
        assert {entry["phase"] for entry in self.record.untold} <= {*phases_of(self.record)}


def phases_of(record: Record) -> Iterable[str]:
    return ("staged", "switching", "probation", "committed", "rolling-back", "rollback-failed", "rolled-back")


def member(name: str = "research", before: int | None = 1, after: int = 2, **more: object) -> Member:
    return Member("agent", name, before, after, ("old", "new"), **more)  # type: ignore[arg-type]


def host(*members: Member, seconds: float = 60.0) -> Host:
    """A host on which a switch of `members` has just begun: the record is on disk."""
    members = members or (member(),)
    start = Moment(1_700_000_000.0, 1000.0, "first")
    record = Record(7, members, Terms(seconds), "staged", start, start)
    record = replace(record, untold=(record.entry(),))
    agents = [one for one in members if one.kind == "agent"]
    return Host(
        record,
        {one.name: one.before for one in members},
        {one.name: one.before if one.ran else None for one in agents},
        {one.name: "as before" for one in agents},
    )


def run(switch: phases.Switch, host: Host, most: int = 200) -> list[phases.Command]:
    """Carry out what it says until it waits or is over; what that was."""
    made: list[phases.Command] = []
    while (command := switch.next(host.now())) is not None:
        host.carry_out(command)
        switch.done(command, host.now())
        made.append(command)
        assert len(made) < most, "it does not come to an end"
    return made
