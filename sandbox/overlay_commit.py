"""The writing half of a commit: changes are made in the workspace, as its owner, one rename each."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Self

from osmoda.host import syscalls
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.overlay_changes import lstat, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from osmoda.sandbox.overlay_changes import Change, Trees

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN_ATTRIBUTES = "user.overlay."
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_CHUNK = 1 << 20


class Writer:
    """Makes changes. On leaving its context folders have their final modes, and all is on disk unless it failed."""

    def __init__(self, trees: Trees, temporary: str) -> None:
        self._trees = trees
        self._temporary = temporary
        self._modes: dict[str, int] = {}
        self._linked: dict[tuple[int, int], str] = {}
        self._written: list[str] = []
        self._owner = os.fstat(trees.lower)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with self._as_owner():
                for path, mode in sorted(self._modes.items(), reverse=True):
                    self._set_mode(path, mode)
            if error is None:
                with _explained("the committed files could not be written to disk"):
                    syscalls.syncfs(self._trees.lower)
        except OSError as failed:
            if error is None:
                raise SandboxError(f"the mode of a committed folder could not be set: {failed.strerror}") from None

    def write(self, changes: Sequence[Change]) -> None:
        """Make `changes`: what goes, innermost first, then what comes. Raises SandboxError at the first refusal."""
        for change in reversed(changes):
            if change.kind == "deleted":
                self._make(change, self._delete)
        for change in changes:
            if change.kind == "deleted":
                continue
            if change.file_type == "directory":
                self._make(change, self._directory)
            elif change.file_type == "symlink":
                self._make(change, self._symlink)
            else:
                self._make(change, self._file)

    def stamps(self) -> tuple[tuple[bytes, int, int], ...]:
        """Path, inode and ctime in ns of each file that was written: changes of our own, not of somebody else."""
        found = []
        for path in self._written:
            status = self._trees.status(path)
            if status is not None:
                found.append((os.fsencode(path), status.st_ino, status.st_ctime_ns))
        return tuple(found)

    def _make(self, change: Change, how: Callable[[Change, str, int], None]) -> None:
        folder, _, name = change.path.rpartition("/")
        with _explained(f"{change.path} could not be committed"):
            if change.path == ".":
                self._modes["."] = change.mode
                return
            with self._as_owner(), self._open(folder) as parent:
                how(change, name, parent)

    @contextlib.contextmanager
    def _as_owner(self) -> Iterator[None]:
        """Be the workspace's owner to the file system: root's rights are no business of what a sandbox has written."""
        uid, gid = self._owner.st_uid, self._owner.st_gid
        if os.geteuid() != 0 or uid == 0:
            yield
            return
        groups = tuple(os.getgroups())
        try:
            syscalls.set_filesystem_ids(uid, gid, ())
            yield
        finally:
            syscalls.set_filesystem_ids(0, os.getegid(), groups)

    @contextlib.contextmanager
    def _as_caller(self) -> Iterator[None]:
        """Within `_as_owner`, be oneself again: a sandbox may have closed its own files to their owner."""
        if os.geteuid() != 0 or self._owner.st_uid == 0:
            yield
            return
        syscalls.set_filesystem_ids(0, os.getegid(), ())
        try:
            yield
        finally:
            syscalls.set_filesystem_ids(self._owner.st_uid, self._owner.st_gid, ())

    @contextlib.contextmanager
    def _open(self, folder: str) -> Iterator[int]:
        """A folder of the workspace to write in; one that its owner has closed is opened until the end."""
        fd = open_directory(self._trees.lower, folder)
        try:
            status = os.fstat(fd)
            acting = self._owner.st_uid if os.geteuid() == 0 else os.geteuid()
            if status.st_mode & 0o300 != 0o300 and acting == status.st_uid and acting != 0:
                self._modes.setdefault(folder or ".", status.st_mode & 0o1777)
                os.fchmod(fd, status.st_mode & 0o7777 | 0o700)
            yield fd
        finally:
            os.close(fd)

    def _set_mode(self, path: str, mode: int) -> None:
        fd = open_directory(self._trees.lower, path)
        try:
            # A set-group-id bit is the host's: it was there before, or the folder around it gave it.
            os.fchmod(fd, mode | os.fstat(fd).st_mode & 0o6000)
        finally:
            os.close(fd)

    def _delete(self, change: Change, name: str, parent: int) -> None:
        status = lstat(parent, name)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    def _directory(self, change: Change, name: str, parent: int) -> None:
        status = lstat(parent, name)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            status = None
        if status is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        self._modes[change.path] = change.mode

    def _symlink(self, change: Change, name: str, parent: int) -> None:
        folder, _, _ = change.path.rpartition("/")
        with self._as_caller():
            upper = open_directory(self._trees.upper, folder)
        try:
            with self._as_caller():
                target = os.readlink(name, dir_fd=upper)
        finally:
            os.close(upper)
        self._clear(parent)
        os.symlink(target, self._temporary, dir_fd=parent)
        self._put(change, name, parent)

    def _file(self, change: Change, name: str, parent: int) -> None:
        source, status = self._source(change.path)
        try:
            self._clear(parent)
            earlier = self._linked.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
            if earlier is not None:
                self._link(earlier, parent)
            else:
                target = os.open(self._temporary, _CREATE, 0o600, dir_fd=parent)
                try:
                    _copy(source, target, status)
                except BaseException:
                    os.unlink(self._temporary, dir_fd=parent)
                    raise
                finally:
                    os.close(target)
                self._linked[status.st_dev, status.st_ino] = change.path
            self._put(change, name, parent)
        finally:
            os.close(source)

    def _source(self, path: str) -> tuple[int, os.stat_result]:
        """The written file in the layer, opened for reading whatever mode it was given, and its status."""
        folder, _, name = path.rpartition("/")
        with self._as_caller():
            upper = open_directory(self._trees.upper, folder)
            try:
                status = os.stat(name, dir_fd=upper, follow_symlinks=False)
                if status.st_mode & 0o400 == 0 and os.geteuid() != 0:
                    os.chmod(name, status.st_mode & 0o7777 | 0o400, dir_fd=upper)
                    try:
                        return os.open(name, _READ, dir_fd=upper), status
                    finally:
                        os.chmod(name, status.st_mode & 0o7777, dir_fd=upper)
                return os.open(name, _READ, dir_fd=upper), status
            finally:
                os.close(upper)

    def _link(self, earlier: str, parent: int) -> None:
        folder, _, name = earlier.rpartition("/")
        there = open_directory(self._trees.lower, folder)
        try:
            os.link(name, self._temporary, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(there)

    def _clear(self, parent: int) -> None:
        """Remove what an interrupted commit has left under the temporary name."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=parent)

    def _put(self, change: Change, name: str, parent: int) -> None:
        """Let the temporary file take the place of `name`."""
        status = lstat(parent, name)
        try:
            if status is not None and stat.S_ISDIR(status.st_mode):
                os.rmdir(name, dir_fd=parent)
            os.rename(self._temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            # rename(2) of two links to one file does nothing.
            self._clear(parent)
        except BaseException:
            self._clear(parent)
            raise
        self._written.append(change.path)


def _copy(source: int, target: int, status: os.stat_result) -> None:
    """Content with its holes, attributes of the user's, time stamps and mode; never the set-id bits."""
    os.ftruncate(target, status.st_size)
    position = 0
    while position < status.st_size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                break
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, position)
    for name in os.listxattr(source):
        if name.startswith("user.") and not name.startswith(_OWN_ATTRIBUTES):
            os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(status.st_mode) & 0o777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, end - start, start, start)
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                in_kernel = False
                continue
            if copied == 0:
                return
        else:
            chunk = os.pread(source, min(_CHUNK, end - start), start)
            if not chunk:
                return
            copied = os.pwrite(target, chunk, start)
        start += copied


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a refusal of the kernel into a sentence."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOTEMPTY:
            reason = "something was put into it meanwhile"
        elif error.errno == errno.EXDEV:
            reason = "another file system is mounted there"
        raise SandboxError(f"{what}: {reason}; what is not committed stays pending") from None
