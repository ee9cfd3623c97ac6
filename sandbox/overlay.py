"""The layer of an overlay workspace: where it lies, who holds it, what it remembers.

A layer is a directory `overlays/<name>` of the state directory, the name being a digest of the workspace's path. It
holds `upper` (what was written), `work` (overlayfs's own) and `record`. A lock (flock(2)) on the directory keeps it
to one sandbox or command at a time; pid 1 of the sandbox holds it too, so a killed monitor does not free a layer that
is still in use.
"""

from __future__ import annotations

import fcntl
import marshal
import posix
import time

from osmoda.host import paths
from osmoda.host.frozen import frozen
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.operations import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256

    from osmoda.sandbox.plan import Plan
else:
    from _sha2 import sha256

_FORMAT = 1
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_CLOCK_REALTIME_COARSE = 5
_MOST_BYTES = 1 << 24


@frozen
class Record:
    """What a layer remembers.

    `workspace` is the canonical path and `inode` that directory's number; `mode` the mode it had, and `since` the
    time (ns since the epoch, by the clock that file systems stamp with) when the layer was last empty: what is
    stamped later has changed under it. `seen` are files that a commit itself has written since, each with inode and
    ctime in ns. `denied` are absolute paths that a profile of one of its runs denies, `holder` the pid of who opened
    it last.
    """

    workspace: bytes
    inode: int
    mode: int
    since: int
    denied: tuple[bytes, ...]
    holder: int
    seen: tuple[tuple[bytes, int, int], ...] = ()


def for_plan(plan: Plan, work: bytes) -> tuple[bytes, int]:
    """The layer of a run of `plan` in the workspace `work` and its lock; (b"", -1) where it needs none.

    Raises LaunchError as `open_layer`, and for a workspace in a tree that is granted for writing: that would be mounted
    over the layer.
    """
    layered = [operation for operation in plan.operations if isinstance(operation, mounting.OverlayWorkspace)]
    if not work or not layered:
        return b"", -1
    for operation in plan.operations:
        if isinstance(operation, mounting.WriteTree) and (work + b"/").startswith(operation.path + b"/"):
            raise LaunchError(
                f"the workspace {_text(work)} cannot be an overlay: it lies in {_text(operation.path)}, "
                f"which {operation.origin} grants writing directly"
            )
    return open_layer(work, layered[0].masked)


def open_layer(work: bytes, denied: tuple[bytes, ...] = ()) -> tuple[bytes, int]:
    """The canonical path of the layer for the workspace `work`, made where missing, and the descriptor of its lock.

    `denied` are absolute paths that no commit may touch. Raises LaunchError when another run holds the layer, when it
    belongs to another directory that had this name, and when it cannot be written.
    """
    try:
        path, lock = _locked(work)
        try:
            _prepare(path, work, denied)
        except BaseException:
            posix.close(lock)
            raise
        return path, lock
    except OSError as error:
        # Most likely a full disk: the record is written whole or not at all.
        what = error.filename or b""
        name = what if isinstance(what, str) else what.decode(errors="backslashreplace")
        raise LaunchError(
            f"the layer of the workspace {_text(work)} cannot be written: "
            f"{name or 'write'}: {posix.strerror(error.errno or 0)}"
        ) from None


def layer_path(work: bytes) -> bytes:
    """Where the layer of `work` lies; it need not exist."""
    folder = paths.own_directory("state", "overlays")
    return f"{folder}/{sha256(work).hexdigest()[:32]}".encode("utf-8", "surrogateescape")


def lock_layer(path: bytes, work: bytes) -> int:
    """Lock an existing layer; the descriptor holds it. Raises FileNotFoundError, and LaunchError when it is in use."""
    while True:
        lock = posix.open(path, _DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A discard removes the directory before it lets go of it: what was opened may be gone from its place.
            if posix.fstat(lock).st_ino == posix.lstat(path).st_ino:
                return lock
        except BlockingIOError:
            posix.close(lock)
            held = read_record(path)
            holder = f" (process {held.holder})" if held else ""
            raise LaunchError(
                f"the workspace {_text(work)} is in use by another sandbox{holder}, and an overlay takes one at a time"
            ) from None
        except FileNotFoundError:
            posix.close(lock)
            raise
        except BaseException:
            posix.close(lock)
            raise
        posix.close(lock)


def read_record(path: bytes) -> Record | None:
    """The record of the layer at `path`, or None when there is none that can be read."""
    try:
        fd = posix.open(path + b"/record", posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        number, *fields = marshal.loads(posix.read(fd, _MOST_BYTES))
        return Record(*fields) if number == _FORMAT else None
    except (ValueError, EOFError, TypeError):
        return None
    finally:
        posix.close(fd)


def write_record(path: bytes, record: Record) -> None:
    """Replace the record of the layer at `path`, whole or not at all. Raises OSError."""
    fields = (record.workspace, record.inode, record.mode, record.since, record.denied, record.holder, record.seen)
    data = marshal.dumps((_FORMAT, *fields))
    temporary = path + b"/record.new"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        try:
            if posix.write(fd, data) != len(data):
                raise OSError(28, posix.strerror(28))
        finally:
            posix.close(fd)
        posix.rename(temporary, path + b"/record")
    except OSError:
        posix.unlink(temporary)
        raise


def _locked(work: bytes) -> tuple[bytes, int]:
    path = layer_path(work)
    while True:
        try:
            return path, lock_layer(path, work)
        except FileNotFoundError:
            _make(path)


def _make(path: bytes) -> None:
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        return


def _prepare(path: bytes, work: bytes, denied: tuple[bytes, ...]) -> None:
    status = posix.stat(work)
    upper = path + b"/upper"
    for name in (path, upper, path + b"/work"):
        _make(name)
        if posix.geteuid() == 0:
            # The launch maps the layer by its owner, who must be the workspace's.
            posix.chown(name, status.st_uid, status.st_gid, follow_symlinks=False)
    before = read_record(path)
    pristine = before is None or posix.lstat(upper).st_mode & 0o7777 == before.mode
    if pristine and not posix.listdir(upper):
        mode = status.st_mode & 0o7777
        posix.chmod(upper, mode)
        now = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        write_record(path, Record(work, status.st_ino, mode, now, denied, posix.getpid()))
        return
    if before is None:
        raise LaunchError(
            f"the pending changes of {_text(work)} have lost their record; discard them (osmoda-sandbox discard)"
        )
    if before.inode != status.st_ino:
        raise LaunchError(
            f"{_text(work)} is not the directory that its pending changes were made in; "
            "discard them (osmoda-sandbox discard)"
        )
    # Denied once, never committed: until the changes are discarded the union holds.
    union = tuple(sorted({*before.denied, *denied}))
    write_record(path, Record(work, before.inode, before.mode, before.since, union, posix.getpid(), before.seen))


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
