"""Whether sandboxes that were built a while ago are still what a launch would build now.

A mount holds what lay at a path when the sandbox was built, and a mask over a denied file is gone once the host has put
another file in its place (rename(2)): what waits is worth nothing after that. So the files of the profile, and all
paths of the host that a plan mounts, masks or pins, are looked at again before each command.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.sandbox import covers, system_view
from osmoda.sandbox.operations import mounting

if TYPE_CHECKING:
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

type _State = tuple[int, int, int] | None


class Witness:
    """What a plan was compiled from and is built from, as it is when this is made: before the first sandbox is."""

    def __init__(self, profile: Profile | None, plan: Plan, workspace: bytes) -> None:
        """Without a `profile` its files are not looked at: whoever holds it says when it is read again."""
        self._held: list[int] = []
        states: dict[bytes, _State] = {}
        of_files: dict[bytes, _State] = {}
        self._edited = False
        self._recorded = paths.has_ledger()
        for name, digest in profile.files if profile is not None else ():
            if os.path.isabs(name):
                # Looked at first, read then: an edit since it was loaded shows here, a later one in the state.
                of_files[os.fsencode(name)] = _state_with_time(os.fsencode(name))
                self._edited = self._edited or _digest(name) != digest
        for name in system_view.copied():
            of_files[os.fsencode(name)] = _state_with_time(os.fsencode(name))
        self._sources = {path for path in _sources(plan, workspace) if path}
        for path in (*self._sources, *[op.path for op in plan.operations if isinstance(op, mounting.Alias)]):
            states[path] = _state(path)
        for path in covers.points(plan.operations, workspace):
            # Held open, so that its number is not given to another one meanwhile.
            with contextlib.suppress(FileNotFoundError):
                self._held.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
            if os.path.isdir(path):
                states[path] = _state(path)
            else:
                of_files[path] = _state_with_time(path)
        self._mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._held.append(self._mountinfo)
        self._changes = select.poll()
        self._changes.register(self._mountinfo, select.POLLPRI)
        self._mounts = self._below()
        # As plain as can be: this is between a command and its start.
        self._known = tuple((path, state) for path, state in states.items() if path not in of_files)
        self._known_files = tuple(of_files.items())

    def holds(self) -> bool:
        """Whether all is as it was."""
        if self._edited:
            return False
        if paths.has_ledger() != self._recorded:
            return False  # one that was made since is to be told of the next command
        for path, state in self._known:
            if _state(path) != state:
                return False
        for path, state in self._known_files:
            if _state_with_time(path) != state:
                return False
        # The kernel tells of each change of the mounts in view once (proc_pid_mountinfo(5)).
        return not self._changes.poll(0) or self._below() == self._mounts

    def close(self) -> None:
        """Let go of what it holds."""
        while self._held:
            os.close(self._held.pop())

    def _below(self) -> list[bytes]:
        """The mounts that a recursive bind of a source would bring along."""
        os.lseek(self._mountinfo, 0, os.SEEK_SET)
        content = b""
        while chunk := os.read(self._mountinfo, 1 << 16):
            content += chunk
        found = []
        for line in content.splitlines():
            point = line.split(b" ", 5)[4]
            if any((point + b"/").startswith(source + b"/") for source in self._sources):
                found.append(line)
        return found


def _sources(plan: Plan, workspace: bytes) -> list[bytes]:
    """What is mounted from the host."""
    mounted = [op.path for op in plan.operations if isinstance(op, (mounting.SystemTree, mounting.Grant))]
    return [workspace, *mounted]


def _state(path: bytes) -> _State:
    """Which file or directory it is; None for none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, 0


def _state_with_time(path: bytes) -> _State:
    """The same of a file, and when it was last written, renamed or linked."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return ""
