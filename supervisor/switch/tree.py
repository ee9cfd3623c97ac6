"""Trees of files: copied, described by digests, compared, removed.

No link is followed: a symbolic link is copied as the text that it is. All below the top of a tree is reached through
descriptors of its folders, so that nothing is led elsewhere by whoever writes the tree, or around it, and puts a link
into the place of a folder meanwhile. A copy shares blocks with its original where the file system can (FICLONE,
copy_file_range(2)), but never the file: through a hard link whoever writes the one would change the other.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

type Entry = tuple[str, int, int, str]
"""Of a file ("f", mode, bytes, SHA-256), of a folder ("d", mode, 0, ""), of a link ("l", 0, 0, where it leads)."""

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CANNOT_CLONE = (
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
)
_CHUNK = 1 << 20
_SPARE_BYTES = 16 << 20  # left free on the disk by a copy: records and ledgers live there too
_DEEPEST = 256  # folders within each other
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that is copied: bytes, and files, folders and links together."""

    size: int = 8 << 30
    entries: int = 500_000


@dataclass(frozen=True, slots=True)
class Found:
    """One name in a tree; `folder` is a descriptor of what holds it, valid until the next one is asked for."""

    path: str
    name: str
    folder: int
    status: os.stat_result


def open_folder(path: str) -> int:
    """A descriptor of the folder `path`, whose name holds no link: none is followed. Raises OSError."""
    return syscalls.openat2(-100, os.fsencode(path), _FOLDER, syscalls.RESOLVE_NO_SYMLINKS)


def walk(top: str, *, settled: bool = False) -> Iterator[Found]:
    """All that is below the folder `top`, each folder before what it holds. Raises OSError, SwitchError.

    `top` itself may be a link, but for `settled`: then no link is followed on the way to it. A device, a pipe or a
    socket below it is refused, and so is what is deeper than 256 folders.
    """
    fd = open_folder(top) if settled else os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for root, folders, files, folder in os.fwalk(".", dir_fd=fd, onerror=_raise):
            folders.sort()
            for name in sorted((*folders, *files)):
                path = os.path.normpath(os.path.join(root, name))
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    raise SwitchError(f"{os.path.join(top, path)} is neither a file, a folder nor a symbolic link")
                if path.count("/") >= _DEEPEST:
                    raise SwitchError(f"{top} has more than {_DEEPEST} folders within each other")
                yield Found(path, name, folder, status)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    raise error


def measure(top: str, bounds: Bounds, *, settled: bool = False) -> int:
    """The bytes of all files below `top`. Raises SwitchError for a tree beyond `bounds`."""
    size = 0
    for entries, found in enumerate(walk(top, settled=settled), 1):
        size += found.status.st_size if stat.S_ISREG(found.status.st_mode) else 0
        _within(top, size, entries, bounds)
    return size


def require_room(folder: str, size: int, what: str) -> None:
    """Raise SwitchError when a copy of `size` bytes would not fit into `folder`: before anything is written."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if size + _SPARE_BYTES > free:
        raise SwitchError(
            f"a copy of {what} needs {size >> 20} MiB, and {folder} has {free >> 20} MiB left, of which "
            f"{_SPARE_BYTES >> 20} are kept free; remove files there, or keep fewer generations (--keep)"
        )


def _within(top: str, size: int, entries: int, bounds: Bounds) -> None:
    if size > bounds.size:
        raise SwitchError(f"{top} is larger than {bounds.size} bytes; --max-size allows more")
    if entries > bounds.entries:
        raise SwitchError(f"{top} holds more than {bounds.entries} files, folders and links")


def copy(
    source: str, target: str, bounds: Bounds, *, sealed: bool, settled: bool = False, folder: int | None = None
) -> dict[str, Entry]:
    """Copy the folder `source` to `target`, which must not be there, durably; what it holds, by path below it.

    `sealed`: nobody may write to the copy, which belongs to this process's user; else modes and, as root, owners are
    kept. `settled` is about `source`, as in `walk`; `folder` is a descriptor of what `target` is a name in. Raises
    OSError, and SwitchError for what cannot be copied, or has changed meanwhile.
    """
    entries: dict[str, Entry] = {}
    status = os.stat(source, follow_symlinks=not settled)
    os.mkdir(target, 0o700, dir_fd=folder)
    top = os.open(target, _FOLDER, dir_fd=folder)
    try:
        with _Folders(top) as made:
            folders = [("", status)]
            size = 0
            for found in walk(source, settled=settled):
                into, status = made.of(found.path), found.status
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(found.name, 0o700, dir_fd=into)
                    folders.append((found.path, status))
                    entries[found.path] = ("d", _mode(status, sealed), 0, "")
                elif stat.S_ISLNK(status.st_mode):
                    leads_to = os.readlink(found.name, dir_fd=found.folder)
                    os.symlink(leads_to, found.name, dir_fd=into)
                    _own(found.name, into, status, sealed)
                    entries[found.path] = ("l", 0, 0, leads_to)
                else:
                    length, digest = _copy_file(found, os.path.join(source, found.path), into, sealed)
                    size += length
                    entries[found.path] = ("f", _mode(status, sealed), length, digest)
                _within(source, size, len(entries), bounds)
        for path, status in reversed(folders):
            fd = _below(top, path)
            try:
                _finish(fd, status, sealed)
            finally:
                os.close(fd)
    finally:
        os.close(top)
    return entries


def _below(top: int, path: str) -> int:
    """A descriptor of the folder `path` below `top`. Raises OSError."""
    rules = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH
    return syscalls.openat2(top, os.fsencode(path or "."), _FOLDER, rules)


class _Folders:
    """The folder of a copy that is being filled: what lies in one folder comes in a row."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._path = ""
        self._fd = -1

    def of(self, path: str) -> int:
        """A descriptor of the folder that is to hold `path`."""
        folder = os.path.dirname(path)
        if self._fd < 0 or folder != self._path:
            self._close()
            self._fd, self._path = _below(self._top, folder), folder
        return self._fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _mode(status: os.stat_result, sealed: bool) -> int:
    return status.st_mode & (0o555 if sealed else 0o1777)


def _own(name: str, folder: int, status: os.stat_result, sealed: bool) -> None:
    if not sealed and os.geteuid() == 0:
        os.chown(name, status.st_uid, status.st_gid, dir_fd=folder, follow_symlinks=False)


def _finish(fd: int, status: os.stat_result, sealed: bool) -> None:
    """Give a copy its owner, mode and time, and see it on disk."""
    if not sealed and os.geteuid() == 0:
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, _mode(status, sealed))
    # Python takes a compiled module for stale by its source's time.
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.fsync(fd)


def _copy_file(found: Found, source: str, into: int, sealed: bool) -> tuple[int, str]:
    """Copy one file into the folder `into`; its length and digest, as read from the copy."""
    from_fd = os.open(found.name, _READ, dir_fd=found.folder)
    try:
        # What has taken its place since could be read without end.
        _require_same(from_fd, found, source)
        to_fd = os.open(found.name, _CREATE, 0o600, dir_fd=into)
        try:
            _copy_content(from_fd, to_fd, found.status.st_size)
            _require_same(from_fd, found, source)
            digest, length = digest_of(to_fd)
            _finish(to_fd, found.status, sealed)
            return length, digest
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)


def _require_same(fd: int, found: Found, source: str) -> None:
    if _identity(os.fstat(fd)) != _identity(found.status):
        raise SwitchError(f"{source} has changed while it was copied; copy it when nobody writes to it")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def _copy_content(from_fd: int, to_fd: int, size: int) -> None:
    """Copy `size` bytes, and no more of a file that grows meanwhile."""
    try:
        fcntl.ioctl(to_fd, _FICLONE, from_fd)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
    else:
        return
    left = size
    try:
        while left and (copied := os.copy_file_range(from_fd, to_fd, min(left, _CHUNK << 6))):
            left -= copied
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        while left and (chunk := os.read(from_fd, min(left, _CHUNK))):
            left -= len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(to_fd, rest) :]


def digest_of(fd: int) -> tuple[str, int]:
    """SHA-256, in hex, and length of an open file."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest(), offset


def describe(top: str) -> dict[str, Entry]:
    """What a tree holds now, as `copy` describes it."""
    entries: dict[str, Entry] = {}
    for found in walk(top):
        status = found.status
        if stat.S_ISDIR(status.st_mode):
            entries[found.path] = ("d", stat.S_IMODE(status.st_mode), 0, "")
        elif stat.S_ISLNK(status.st_mode):
            entries[found.path] = ("l", 0, 0, os.readlink(found.name, dir_fd=found.folder))
        else:
            fd = os.open(found.name, _READ, dir_fd=found.folder)
            try:
                digest, length = digest_of(fd)
            finally:
                os.close(fd)
            entries[found.path] = ("f", stat.S_IMODE(status.st_mode), length, digest)
    return entries


def difference(expected: Mapping[str, Entry], found: Mapping[str, Entry]) -> str:
    """The first thing that is not as expected, in words; empty when all is."""
    for path in sorted({*expected, *found}):
        if path not in found:
            return f"{path} is missing"
        if path not in expected:
            return f"{path} was added"
        (kind, mode, *what), (kind_now, mode_now, *what_now) = expected[path], found[path]
        if kind != kind_now or what != what_now:
            return f"{path} has another content"
        if mode != mode_now:
            return f"{path} has mode {mode_now:o} in place of {mode:o}"
    return ""


def remove(path: str, folder: int | None = None) -> None:
    """Remove a tree, also one that nobody may write to; nothing when it is not there. Raises OSError.

    With `folder`, a descriptor, `path` is a name in it.
    """
    try:
        status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path, dir_fd=folder)
        return
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        # A folder must be opened to its owner before it can be emptied; this name leads to it, whatever has its own.
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
        inner = os.open(".", _FOLDER, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        for name in os.listdir(inner):
            remove(name, inner)
    finally:
        os.close(inner)
    os.rmdir(path, dir_fd=folder)


def sync_folder(path: str) -> None:
    """See the names in a folder on disk (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
