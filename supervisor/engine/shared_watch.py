"""What agents do in the directories that they share, onto the ledger, where there is one."""

from __future__ import annotations

import asyncio
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.sharing import directories as sharing
from osmoda.supervisor.sharing.shared_files import SharedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from osmoda.supervisor.engine.acts import Acts
    from osmoda.supervisor.engine.supervised import Supervised
    from osmoda.supervisor.sharing.shared_files import Change

A_SECOND = 256
"""Events of one agent that get an entry each; of those beyond one more entry tells how many they were."""

_MOST_PARENTS = 64
_SILENCE = 60.0  # seconds between two lines in the log about gaps: else an agent could push other lines out of it


@dataclass(frozen=True, slots=True)
class _Running:
    """The agents that run: by their main processes, by their pid namespaces; and the daemon's own namespace."""

    mains: Mapping[int, str]
    spaces: Mapping[int, str]
    own: int

    def agent_of(self, change: Change) -> str:
        """The agent whose process it was; empty where that is not certain."""
        if change.pidfd < 0:
            return ""
        space = _pid_namespace(change.pid)
        found = self.spaces.get(space, "")
        if space and space == self.own:
            found = _descendant_of(change.pid, self.mains)
        # Had it ended, the number could be another's by now.
        return "" if _has_ended(change.pidfd) else found


class SharedWatch:
    """Follows the shared directories of `units`, which others add to; `say` is told of what cannot be followed."""

    def __init__(self, units: Mapping[str, Supervised], acts: Acts, say: Callable[[str], None]) -> None:
        self._units = units
        self._acts = acts
        self._say = say
        self._files: SharedFiles | None = None
        self._failed = False
        self._noted: dict[str, int] = {}  # by agent, in this second
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0

    def follow(self) -> None:
        """Watch what the units share now. Where there is no ledger nothing is watched."""
        if not self._acts.is_kept or self._failed:
            return
        trees = sharing.shared(self._grants())
        if not trees or (self._files is not None and {*map(os.path.realpath, trees)} <= {*self._files.trees}):
            return
        try:
            if self._files is None:
                self._files = SharedFiles()
                asyncio.get_running_loop().add_reader(self._files.fileno(), self._heard)
            self._files.watch(trees)
        except SupervisorError as error:
            self._failed = True
            self._say(f"{', '.join(trees)}: what agents do there is not put on the ledger: {error}")
            return
        self._heard()

    def _grants(self) -> list[sharing.Grants]:
        return [
            sharing.grants_of(name.removesuffix(".service"), confined)
            for name, held in self._units.items()
            for confined in held.confined
        ]

    def _heard(self) -> None:
        assert self._files is not None
        grants = self._grants()
        running = self._running()
        for change in self._files.changes():
            if change.operation in ("overflow", "unwatched"):
                lost = "events were lost" if change.operation == "overflow" else f"{change.path} is not followed"
                self._say_gap(lost)
            self._note(self._fields(change, grants, running))

    def _say_gap(self, lost: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + _SILENCE
            self._say(f"the record of shared directories has a gap: {lost}")

    def _note(self, fields: dict[str, object]) -> None:
        agent = str(fields["agent"])
        self._noted[agent] = self._noted.get(agent, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._sum_up)
        if self._noted[agent] <= A_SECOND:
            self._acts.after("file", fields)

    def _sum_up(self) -> None:
        """A second is over."""
        noted, self._noted, self._timer = self._noted, {}, None
        for agent, count in noted.items():
            if count > A_SECOND:
                self._acts.after("file", {"operation": "others", "agent": agent, "others": count - A_SECOND})

    def _running(self) -> _Running:
        mains = {
            held.machine.main_pid: name.removesuffix(".service")
            for name, held in self._units.items()
            if held.machine.main_pid
        }
        spaces = {_pid_namespace(pid): name for pid, name in mains.items()}
        # Without a sandbox a program is in the daemon's own namespace.
        own = _pid_namespace(os.getpid())
        return _Running(mains, {space: name for space, name in spaces.items() if space not in (0, own)}, own)

    def _fields(self, change: Change, grants: Iterable[sharing.Grants], running: _Running) -> dict[str, object]:
        agent = running.agent_of(change)
        fields: dict[str, object] = {
            "operation": change.operation,
            "path": change.path,
            "folder": change.is_folder,
            "agent": agent,
            "pid": change.pid,
        }
        if change.to:
            fields["to"] = change.to
        if not agent:
            # Who it was has ended before it could be asked, or is not told to an ordinary user.
            fields["writers"] = list(sharing.writers(grants, change.path))
        return fields

    def close(self) -> None:
        """Let go of the directories."""
        if self._timer is not None:
            self._timer.cancel()
            self._sum_up()
        if self._files is not None:
            asyncio.get_running_loop().remove_reader(self._files.fileno())
            self._files.close()
            self._files = None


def _pid_namespace(pid: int) -> int:
    """The inode of a process's pid namespace, 0 where it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def _descendant_of(pid: int, mains: Mapping[int, str]) -> str:
    """The agent, of those without a sandbox, whose main process `pid` is or descends from."""
    for _ in range(_MOST_PARENTS):
        if pid in mains:
            return mains[pid]
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return ""
    return ""


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
