"""What is done to files in directories that agents share: told by the kernel as it happens, with who has done it.

Each folder of a tree is marked by itself (fanotify(7)), so that an ordinary user may do it, too, and nothing is heard
of the rest of the file system. For an ordinary user the kernel does not say which process it was.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from osmoda.host import syscalls
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.sharing import file_events
from osmoda.supervisor.sharing.file_events import FAN_MOVED_FROM, FAN_MOVED_TO, FAN_RENAME, WATCHED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from osmoda.supervisor.sharing.file_events import FileEvent, Place

MOST_FOLDERS = 4096
"""Folders that are marked at most, in all shared trees together."""

MOST_ENTRIES = 1 << 15
"""Names that are looked at in folders that have come, each time that `changes` is called: whoever moves a large tree in
and out again must not keep the caller busy."""

_READ = 1 << 14  # bytes of events that one call of `changes` takes: who asks has other things to do

type Operation = Literal["create", "write", "delete", "rename", "overflow", "unwatched"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done.

    `path` lies in a shared tree; `to` is where a rename led, empty where it led out of all of them or is no rename.
    "overflow": events were lost, and what they were is not known. "unwatched": a folder that could not be marked; what
    is done in it is not told. `pid` is 0 where it is not known, `pidfd` -1 or a descriptor that is valid until the
    next change is asked for.
    """

    operation: Operation
    path: str
    to: str
    is_folder: bool
    pid: int
    pidfd: int


def _group(flags: int) -> int:
    """A group that says who it was, which it does for root only, and since Linux 5.15."""
    if os.geteuid() == 0:
        try:
            return syscalls.fanotify_init(flags | syscalls.FAN_REPORT_PIDFD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return syscalls.fanotify_init(flags)


class SharedFiles:
    """Marks on trees; a context manager. `watch` says which, `changes` what has happened in them."""

    def __init__(self) -> None:
        flags = syscalls.FAN_NONBLOCK | syscalls.FAN_REPORT_DIR_FID | syscalls.FAN_REPORT_NAME
        self._folders: dict[bytes, str] = {}
        self._trees: tuple[str, ...] = ()
        self._moves = FAN_RENAME
        self._unwatched: list[Change] = []
        # Names that may still be looked at; in what the caller names, all of them.
        self._looks: float = math.inf
        try:
            self._group = _group(flags)
        except OSError as error:
            raise SupervisorError(f"what is done in shared directories cannot be followed: {error}") from None

    def fileno(self) -> int:
        """Readable when something has happened."""
        return self._group

    @property
    def trees(self) -> tuple[str, ...]:
        """What is watched."""
        return self._trees

    def watch(self, trees: Sequence[str]) -> None:
        """Watch these trees, besides those that are watched already; one that is not there is left out."""
        for tree in trees:
            real = os.path.realpath(tree)
            if os.path.isdir(real) and real not in self._trees:
                self._looks = math.inf
                self._trees = (*self._trees, real)
                self._mark(real)

    def changes(self) -> Iterator[Change]:
        """What has happened since; never blocks. More may be left: then `fileno` is readable still."""
        yield from self._told()
        self._looks = MOST_ENTRIES
        try:
            data = os.read(self._group, _READ)
        except BlockingIOError:
            return
        for event in file_events.parse(data):
            try:
                yield from self._changes(event)
            finally:
                if event.pidfd >= 0:
                    os.close(event.pidfd)
            yield from self._told()

    def _told(self) -> Iterator[Change]:
        told, self._unwatched = self._unwatched, []
        yield from told

    def _changes(self, event: FileEvent) -> Iterator[Change]:
        for kind in event.kinds:
            if kind == "overflow":
                self._mark_again()
                yield Change("overflow", "", "", False, 0, -1)
                continue
            path, to = self._path(event.place), self._path(event.to)
            match kind:
                case "create" | "write" | "delete":
                    if path:
                        yield Change(kind, path, "", event.is_folder, event.pid, event.pidfd)
                        yield from self._followed(event, kind, path)
                case "rename":
                    if event.is_folder:
                        self._moved(path, to)
                    if path or to:
                        yield self._rename(event, path, to)
                case "move-from" | "move-to":
                    # Before Linux 5.17: two halves, of which nothing says that they are one.
                    if path:
                        if event.is_folder:
                            self._moved(*((path, "") if kind == "move-from" else ("", path)))
                        yield self._rename(event, *((path, "") if kind == "move-from" else ("", path)))

    def _rename(self, event: FileEvent, path: str, to: str) -> Change:
        """A file that comes from outside of all trees is one that is made."""
        if not path:
            return Change("create", to, "", event.is_folder, event.pid, event.pidfd)
        return Change("rename", path, to, event.is_folder, event.pid, event.pidfd)

    def _followed(self, event: FileEvent, kind: str, path: str) -> Iterator[Change]:
        """A folder that is made is marked, and what was made in it before that is told; one that is gone is let go."""
        if not event.is_folder:
            return
        if kind == "delete":
            self._folders = {key: folder for key, folder in self._folders.items() if folder != path}
        elif kind == "create":
            for found, is_folder in self._mark(path):
                yield Change("create", found, "", is_folder, event.pid, event.pidfd)

    def _moved(self, path: str, to: str) -> None:
        """The folder `path` is called `to` now, empty for a place outside of all trees."""
        if not path:
            self._mark(to)
        for key, folder in tuple(self._folders.items()):
            if path and (folder == path or folder.startswith(path + "/")):
                if to:
                    self._folders[key] = to + folder[len(path) :]
                else:
                    # The mark stays, which is the kernel's to remove with the folder; its events have no path any more.
                    del self._folders[key]

    def _path(self, place: Place | None) -> str:
        """Where it is, empty for a folder that is not (any more) in a shared tree."""
        folder = self._folders.get(place.folder) if place is not None else None
        return os.path.join(folder, os.fsdecode(place.name)) if folder is not None and place is not None else ""

    # Marks

    def _mark(self, top: str) -> list[tuple[str, bool]]:
        """Mark `top` and every folder in it; what lies in them, with whether it is a folder. No link is followed."""
        found: list[tuple[str, bool]] = []
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            fd = self._mark_one(folder)
            if fd < 0:
                continue
            try:
                with contextlib.suppress(OSError), os.scandir(fd) as entries:  # not to be listed
                    for entry in entries:
                        self._looks -= 1
                        if self._looks < 0:
                            self._unwatched.append(Change("unwatched", folder, "", True, 0, -1))
                            return found
                        path, is_folder = os.path.join(folder, entry.name), entry.is_dir(follow_symlinks=False)
                        found.append((path, is_folder))
                        if is_folder:
                            waiting.append(path)
            finally:
                os.close(fd)
        return found

    def _mark_one(self, folder: str) -> int:
        """Mark one folder: a descriptor of it; -1 where it is gone, or cannot be marked, which is told.

        It is opened without following any link: whoever writes in the tree may have put one into the place of a folder
        on the way, and what is done elsewhere would be told as done here.
        """
        if len(self._folders) >= MOST_FOLDERS:
            self._unwatched.append(Change("unwatched", folder, "", True, 0, -1))
            return -1
        fd = -1
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
            fd = syscalls.openat2(-100, os.fsencode(folder), flags, syscalls.RESOLVE_NO_SYMLINKS)
            name = b"/proc/self/fd/%d/." % fd
            self._add(name)
            handle = syscalls.name_to_handle_at(name)
            self._folders[os.fstatvfs(fd).f_fsid.to_bytes(8, "little") + handle] = folder
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if not isinstance(error, FileNotFoundError):
                self._unwatched.append(Change("unwatched", folder, "", True, 0, -1))
            return -1
        return fd

    def _add(self, name: bytes) -> None:
        flags = syscalls.FAN_MARK_ADD | syscalls.FAN_MARK_ONLYDIR | syscalls.FAN_MARK_DONT_FOLLOW
        try:
            syscalls.fanotify_mark(self._group, flags, WATCHED | self._moves, name)
        except OSError as error:
            if error.errno != errno.EINVAL or self._moves != FAN_RENAME:  # a kernel that does not know FAN_RENAME
                raise
            self._moves = FAN_MOVED_FROM | FAN_MOVED_TO
            syscalls.fanotify_mark(self._group, flags, WATCHED | self._moves, name)

    def _mark_again(self) -> None:
        """After lost events: folders that were made, moved or removed meanwhile."""
        self._looks = 8 * MOST_ENTRIES  # the whole of it, which agents can bring about, too
        self._folders = {}
        for tree in self._trees:
            self._mark(tree)

    def close(self) -> None:
        """Let go of all marks."""
        if self._group >= 0:
            os.close(self._group)
            self._group = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
