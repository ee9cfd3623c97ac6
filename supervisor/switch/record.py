"""What is on disk about a switch.

A record has room of its own from the start: two files of the same size, of which one is written in place, synced and
then put in the other's place in one step (renameat2(2), RENAME_EXCHANGE). So a switch that has begun can still write
down that it goes back when the disk has filled up since, and whoever reads sees one state or the next.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from osmoda.host import syscalls
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Mapping

type Phase = Literal["staged", "switching", "probation", "committed", "rolling-back", "rollback-failed", "rolled-back"]
type Kind = Literal["agent", "nixos"]

FINISHED: frozenset[Phase] = frozenset({"committed", "rolled-back"})
GOING_BACK: frozenset[Phase] = frozenset({"rolling-back", "rollback-failed"})
_SIZE = 1 << 18
MOST_MEMBERS = 32
_LONGEST = 500  # characters of a reason
_KEPT = 100  # records of finished switches


@dataclass(frozen=True, slots=True)
class Member:
    """One of those that are switched together.

    `before` and `after` are generations: where it goes back to (None: there was nothing, or it was not osmoda's) and
    where it goes. `seals` are the SHA-256 of their manifests, empty where a generation has none. `ran`: whether the
    agent ran when the switch began, and so runs again after a rollback. `snapshot`: data is copied before and put back
    with `before`.
    """

    kind: Kind
    name: str
    before: int | None
    after: int
    seals: tuple[str, str] = ("", "")
    ran: bool = True
    snapshot: bool = False

    def seal_of(self, generation: int | None) -> str:
        """The SHA-256 of the manifest that `generation` had when the switch began."""
        return self.seals[1] if generation == self.after else self.seals[0]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a probation demands: `seconds` without a failed check, and fewer than `restarts` within `window` seconds."""

    seconds: float
    restarts: int = 3
    window: float = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time: seconds since the epoch for people, and of CLOCK_BOOTTIME within the boot called `boot` for waiting."""

    wall: float
    since_boot: float
    boot: str


def moment() -> Moment:
    """Now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


@dataclass(frozen=True, slots=True)
class Record:
    """The state of a switch.

    `phase` began at `since`, for `reason`. `attempts` of a rollback have failed, the last one for `error`. `step`
    counts the phases; with `number` it names an entry on the ledger. `untold` are entries that the ledger does not have
    yet.
    """

    number: int
    members: tuple[Member, ...]
    terms: Terms
    phase: Phase
    began: Moment
    since: Moment
    reason: str = ""
    attempts: int = 0
    error: str = ""
    step: int = 0
    keep: int = 5
    keep_seconds: float = 0.0
    untold: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def finished(self) -> bool:
        """Whether it has come to its end; it may still owe the ledger an entry."""
        return self.phase in FINISHED

    @property
    def agents(self) -> tuple[Member, ...]:
        """Those of the members that are agents."""
        return tuple(member for member in self.members if member.kind == "agent")

    def entry(self) -> dict[str, Any]:
        """What the ledger is told of this state: JSON values."""
        return {
            "switch": self.number,
            "step": self.step,
            "phase": self.phase,
            "reason": self.reason,
            "error": self.error,
            "at": int(self.since.wall * 1000),
            "members": [
                {
                    "kind": member.kind,
                    "name": member.name,
                    "before": member.before,
                    "after": member.after,
                    "seals": [*member.seals],
                }
                for member in self.members
            ],
        }


def text(words: str) -> str:
    """What is said of a switch as it can be kept, by the ledger too: valid UTF-8, and not too long."""
    safe = words.encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]}…"


def dump(record: Record) -> bytes:
    """The record as JSON, padded to the size of its file. Raises SwitchError for one that is too long."""
    content = _compact(record)
    if len(content) >= _SIZE:
        raise SwitchError(f"the record of switch {record.number} is too long")
    return content.ljust(_SIZE - 1) + b"\n"


def _compact(record: Record) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode()


def load(content: bytes) -> Record:
    """The record that `dump` has written. Raises SwitchError."""
    try:
        values = json.loads(content)
        values["members"] = tuple(Member(**{**member, "seals": tuple(member["seals"])}) for member in values["members"])
        values["terms"] = Terms(**values["terms"])
        values["began"], values["since"] = Moment(**values["began"]), Moment(**values["since"])
        values["untold"] = tuple(values["untold"])
        return Record(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise SwitchError(f"the record of a switch cannot be read: {error}") from None


class Records:
    """The records in a directory, which is made by whoever owns the store."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, f"{number}.json")

    def _spare(self, number: int) -> str:
        return os.path.join(self._directory, f".{number}.spare")

    def create(self, record: Record) -> Record:
        """Write a new record, with its room; it is numbered here. Raises OSError, and leaves nothing behind then."""
        record = replace(record, number=max(self.numbers(), default=0) + 1)
        spare, path = self._spare(record.number), self._path(record.number)
        try:
            for name in (spare, path + ".new"):
                _write(name, dump(record), os.O_CREAT | os.O_TRUNC)
            os.rename(path + ".new", path)
            _sync(self._directory)
        except BaseException:
            for name in (spare, path + ".new", path):
                if os.path.lexists(name):
                    os.unlink(name)
            raise
        return record

    def save(self, record: Record) -> None:
        """Put `record` in the place of its last state; durable when it returns. Raises OSError."""
        spare, path = self._spare(record.number), self._path(record.number)
        _write(spare, dump(record), 0)
        syscalls.renameat2(os.fsencode(spare), os.fsencode(path), syscalls.RENAME_EXCHANGE)
        _sync(self._directory)

    def numbers(self) -> list[int]:
        """Those of all records, in order."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def load(self, number: int) -> Record:
        """One record. Raises SwitchError."""
        try:
            with open(self._path(number), "rb") as file:
                return load(file.read(_SIZE))
        except FileNotFoundError:
            raise SwitchError(f"there is no switch {number}; `osmoda-watch switch history` lists them") from None
        except OSError as error:
            raise SwitchError(f"{self._path(number)} cannot be read: {error.strerror}") from None

    def all(self) -> list[Record]:
        """All of them, in order."""
        return [self.load(number) for number in self.numbers()]

    def prune(self) -> None:
        """Take back the room of those that are over, and remove the oldest of them, beyond a hundred."""
        finished = [record for record in self.all() if record.finished and not record.untold]
        for record in finished:
            path, spare = self._path(record.number), self._spare(record.number)
            if os.path.lexists(spare):
                _write(f"{path}.new", _compact(record), os.O_CREAT | os.O_TRUNC)
                os.rename(f"{path}.new", path)
                os.unlink(spare)
        for record in finished[:-_KEPT]:
            os.unlink(self._path(record.number))


def _write(path: str, content: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
