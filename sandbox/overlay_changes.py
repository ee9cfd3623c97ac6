"""What an overlay's upper layer would change on disk, file by file (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from osmoda.host import syscalls
from osmoda.sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.sandbox.overlay import Record

type Kind = Literal["added", "modified", "deleted", "type changed", "mode changed"]
type FileType = Literal["file", "directory", "symlink", "device", "fifo", "socket"]

RESOLVE = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
)
_PERMISSIONS = 0o1777
_OPAQUE = "user.overlay.opaque"
# Written only by overlays with other options than ours: what they stand for would be missed.
_UNKNOWN = frozenset({"user.overlay.redirect", "user.overlay.metacopy", "user.overlay.whiteout"})
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """One change that a commit would make.

    `path` is relative to the workspace ("." for itself), `file_type` and `mode` (permission bits) are what the path
    would be, of a deleted one what it is; `size` in bytes of a file, else 0. `denied`: a profile denies the path, no
    commit makes this change. `conflict`: the path has changed in the workspace itself since the layer was empty; a
    commit wants `force`.
    """

    path: str
    kind: Kind
    file_type: FileType
    size: int
    mode: int
    denied: bool = False
    conflict: bool = False

    def within(self, path: str) -> bool:
        """Whether this is about `path` or something below it."""
        return path in (".", self.path) or self.path.startswith(path + "/")


class Closed(Exception):
    """A folder of the layer is closed to its owner, and has to be opened for a while by who holds the lock."""


@dataclass(frozen=True, slots=True)
class Trees:
    """The workspace and its upper layer, as directory descriptors, and what the layer remembers.

    With `locked`, folders that a program has closed to their owner are opened; `closed` holds their modes, which
    `close_again` gives back. Without, they raise Closed. (Root needs no such thing.)
    """

    lower: int
    upper: int
    upper_path: bytes
    record: Record
    locked: bool
    closed: dict[str, int] = field(default_factory=dict)

    def close_again(self) -> None:
        """Give folders that were opened, and are still there, the modes they had."""
        for path, mode in sorted(self.closed.items(), reverse=True):
            try:
                folder = open_directory(self.upper, path)
            except FileNotFoundError:
                continue
            os.fchmod(folder, mode)
            os.close(folder)

    def find(self) -> list[Change]:
        """Every change, parents before what they hold. Raises SandboxError for a layer that cannot be read.

        A file that was written with what it held before is no change, and neither is a time stamp.
        """
        try:
            found = list(self._root())
            pending = [""]
            while pending:
                found.extend(self._directory(pending.pop(), pending))
        except OSError as error:
            raise SandboxError(f"the pending changes cannot be read: {_reason(error)}") from None
        return sorted((self._judged(change) for change in found), key=lambda change: change.path.split("/"))

    def _root(self) -> Iterator[Change]:
        mode, before = os.fstat(self.upper).st_mode, self.record.mode
        if (mode ^ before) & _PERMISSIONS:
            yield Change(".", "mode changed", "directory", 0, mode & _PERMISSIONS)

    def _directory(self, folder: str, pending: list[str]) -> Iterator[Change]:
        """The changes directly in `folder` of the upper layer; its own folders are put on `pending`."""
        upper = open_directory(self.upper, folder)
        lower = -1
        try:
            lower = self._lower_directory(folder)
            names = sorted(os.listdir(upper))
            if lower >= 0 and is_opaque(upper):
                for name in set(os.listdir(lower)).difference(names):
                    yield from self._deleted(join(folder, name))
            for name in names:
                try:
                    yield from self._entry(join(folder, name), name, upper, lower, pending)
                except FileNotFoundError:
                    continue  # a running sandbox has removed it meanwhile
        finally:
            os.close(upper)
            if lower >= 0:
                os.close(lower)

    def _entry(self, path: str, name: str, upper: int, lower: int, pending: list[str]) -> Iterator[Change]:
        new = os.stat(name, dir_fd=upper, follow_symlinks=False)
        old = lstat(lower, name) if lower >= 0 else None
        if is_whiteout(new):
            if old is not None:
                yield from self._deleted(path)
            return
        self._refuse_unknown(path)
        if stat.S_ISDIR(new.st_mode):
            self._open_closed(path, name, upper, new.st_mode)
            pending.append(path)
        if old is None:
            yield self._change(path, "added", new)
        elif stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
            if stat.S_ISDIR(old.st_mode):
                yield from (change for change in self._deleted(path) if change.path != path)
            yield self._change(path, "type changed", new)
        elif _content_differs(name, upper, lower, new, old):
            yield self._change(path, "modified", new)
        elif (self.closed.get(path, new.st_mode) ^ old.st_mode) & _PERMISSIONS:
            yield self._change(path, "mode changed", new)

    def _deleted(self, top: str) -> Iterator[Change]:
        """`top` of the workspace and all that it holds."""
        folder, _, name = top.rpartition("/")
        parent = open_directory(self.lower, folder)
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)
        yield self._change(top, "deleted", status)
        pending = [top] if stat.S_ISDIR(status.st_mode) else []
        while pending:
            folder = pending.pop()
            here = open_directory(self.lower, folder)
            try:
                for name in os.listdir(here):
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                    yield self._change(join(folder, name), "deleted", status)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(join(folder, name))
            finally:
                os.close(here)

    def _change(self, path: str, kind: Kind, status: os.stat_result) -> Change:
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        mode = status.st_mode if kind == "deleted" else self.closed.get(path, status.st_mode)
        return Change(path, kind, _file_type(status.st_mode), size, mode & _PERMISSIONS)

    def _open_closed(self, path: str, name: str, parent: int, mode: int) -> None:
        if mode & 0o500 == 0o500 or os.geteuid() == 0:
            return
        if not self.locked:
            raise Closed
        self.closed[path] = mode & 0o7777
        # No link can be followed: nobody else writes in a layer that is locked.
        os.chmod(name, mode & 0o7777 | 0o700, dir_fd=parent)

    def _judged(self, change: Change) -> Change:
        denied = any(change.within(path) or self._removes(change, path) for path in self._denied())
        conflict = change.path != "." and change.kind != "added" and self._conflicts(change.path)
        if not denied and not conflict:
            return change
        return Change(
            change.path, change.kind, change.file_type, change.size, change.mode, denied=denied, conflict=conflict
        )

    def _denied(self) -> Iterator[str]:
        top = self.record.workspace + b"/"
        for path in self.record.denied:
            if path.startswith(top):
                yield os.fsdecode(path[len(top) :])

    def _removes(self, change: Change, denied: str) -> bool:
        """Whether the change would take away a folder that holds the denied path."""
        if change.kind not in ("deleted", "type changed") or not denied.startswith(change.path + "/"):
            return False
        return self.status(denied) is not None

    def _conflicts(self, path: str) -> bool:
        """Whether the host's file was stamped after the layer was last empty, other than by a commit of ours.

        A folder's stamp changes with every name in it and says nothing about the folder itself.
        """
        status = self.status(path)
        if status is None or stat.S_ISDIR(status.st_mode) or status.st_ctime_ns < self.record.since:
            return False
        return (os.fsencode(path), status.st_ino, status.st_ctime_ns) not in self.record.seen

    def status(self, path: str) -> os.stat_result | None:
        """The host's own `path`, links not followed; None where there is none."""
        folder, _, name = path.rpartition("/")
        parent = self._lower_directory(folder)
        if parent < 0:
            return None
        try:
            return lstat(parent, name)
        finally:
            os.close(parent)

    def _lower_directory(self, folder: str) -> int:
        """The workspace's own `folder`, -1 where it has none of that name."""
        try:
            return open_directory(self.lower, folder)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            if error.errno == 40:  # ELOOP: a link, which is no directory
                return -1
            raise

    def _refuse_unknown(self, path: str) -> None:
        attributes = os.listxattr(self.upper_path + b"/" + os.fsencode(path), follow_symlinks=False)
        unknown = _UNKNOWN.intersection(attributes)
        if unknown:
            raise SandboxError(
                f"the pending changes cannot be read: {path} carries {min(unknown)}, which this overlay never writes"
            )


def join(folder: str, name: str) -> str:
    """A path relative to the workspace; its own is the empty string here."""
    return f"{folder}/{name}" if folder else name


def open_directory(root: int, path: str) -> int:
    """Open a directory below `root` without following a link or leaving the file system (openat2(2))."""
    return syscalls.openat2(root, os.fsencode(path or "."), os.O_RDONLY | os.O_DIRECTORY, RESOLVE)


def lstat(folder: int, name: str) -> os.stat_result | None:
    """The status of `name`, None where there is none."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark of a deleted name: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(folder: int) -> bool:
    """Whether a directory of the upper layer hides the one below it. Raises SandboxError for a value unknown to us."""
    try:
        value = os.getxattr(folder, _OPAQUE)
    except OSError:
        return False
    if value != b"y":
        raise SandboxError(
            f"the pending changes cannot be read: {_OPAQUE} is {value!r}, which this overlay never writes"
        )
    return True


def _file_type(mode: int) -> FileType:
    kinds: tuple[tuple[int, FileType], ...] = (
        (stat.S_IFREG, "file"),
        (stat.S_IFDIR, "directory"),
        (stat.S_IFLNK, "symlink"),
        (stat.S_IFIFO, "fifo"),
        (stat.S_IFSOCK, "socket"),
    )
    return next((kind for number, kind in kinds if stat.S_IFMT(mode) == number), "device")


def _content_differs(name: str, upper: int, lower: int, new: os.stat_result, old: os.stat_result) -> bool:
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(name, dir_fd=upper) != os.readlink(name, dir_fd=lower)
    if not stat.S_ISREG(new.st_mode):
        return False
    if new.st_size != old.st_size:
        return True
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        ours = os.open(name, flags, dir_fd=upper)
    except PermissionError:
        return True  # closed to its own owner: it cannot be compared
    try:
        theirs = os.open(name, flags, dir_fd=lower)
    except PermissionError:
        os.close(ours)
        return True
    try:
        while chunk := os.read(ours, _CHUNK):
            if os.read(theirs, _CHUNK) != chunk:
                return True
        return bool(os.read(theirs, 1))
    finally:
        os.close(ours)
        os.close(theirs)


def _reason(error: OSError) -> str:
    name = error.filename
    return f"{name}: {error.strerror}" if name and not isinstance(name, int) else str(error.strerror)
