"""Whether the file systems that a launch is about to look into answer at all.

A file system whose server hangs (FUSE, NFS) keeps whoever asks it something, and not even SIGKILL ends that process
before it answers. So a child asks first, and this process waits for the child no longer than it wants to. Where
nothing of that kind is mounted, which one look at the mounts tells, nobody is asked.
"""

from __future__ import annotations

import posix
import select
import time

from osmoda.host import syscalls
from osmoda.sandbox.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

SECONDS = 10.0
"""How long an answer may take: a disk that has to spin up behind a network needs most of it."""

_SIGCHLD = 17
# As in mountinfo, between the fields for the kernel and the source (proc_pid_mountinfo(5)): on a network, or with a
# server that is a process.
_ASKING = tuple(
    [
        b" - " + kind
        for kind in (
            *(b"fuse ", b"fuse.", b"fuseblk ", b"virtiofs ", b"nfs ", b"nfs4 ", b"cifs ", b"smb3 ", b"9p ", b"ceph "),
            *(b"afs ", b"coda ", b"lustre ", b"gfs2 ", b"ocfs2 ", b"orangefs ", b"autofs "),
        )
    ]
)
_SAME_LAUNCH = 0.5  # seconds
_looked = -1.0
_found: dict[bytes, bytes] = {}


def require(paths: Iterable[str | bytes]) -> None:
    """Raise LaunchError where one of `paths` lies on a file system that does not answer; what it answers is all one."""
    asked = _asked()
    if not asked:
        return
    questions = [path for path in dict.fromkeys(map(_bytes, paths)) if not _elsewhere(path, asked)]
    if questions:
        _ask(questions)


def _asked() -> dict[bytes, bytes]:
    """Mounts whose file system has somebody else answer: id to mount point. A launch looks once."""
    global _looked, _found
    now = time.monotonic()
    if now >= _looked + _SAME_LAUNCH or _looked < 0:
        _looked, _found = now, {}
        content = _read(b"/proc/self/mountinfo")
        if any(kind in content for kind in _ASKING):
            for line in content.splitlines():
                if any(kind in line for kind in _ASKING):
                    number, _, _, _, point, _ = line.split(b" ", 5)
                    _found[number] = _unescaped(point)
    return _found


def _elsewhere(path: bytes, asked: dict[bytes, bytes]) -> bool:
    """Whether it is known, without asking anybody, that `path` lies on none of the mounts `asked`."""
    if any((path + b"/").startswith(point.rstrip(b"/") + b"/") for point in asked.values()):
        return False
    try:
        # The kernel has all of the way in its cache, or says that it would have to ask (openat2(2)).
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, posix.O_PATH, syscalls.RESOLVE_CACHED)
    except OSError:
        return False
    try:
        # fstat(2) would ask.
        mount = _read(b"/proc/self/fdinfo/%d" % fd).partition(b"mnt_id:\t")[2].partition(b"\n")[0]
    finally:
        posix.close(fd)
    return bool(mount) and mount not in asked


def _ask(paths: list[bytes]) -> None:
    if len(posix.listdir("/proc/self/task")) > 1:
        return  # a program with threads cannot clone itself; its launcher, which has none, asks when it launches
    answers, writing = posix.pipe2(posix.O_CLOEXEC)
    try:
        try:
            parent = posix.getpid()
            pid, pidfd = syscalls.clone3(0, _SIGCHLD)
            if pid == 0:
                _touch(paths, writing, parent)
        finally:
            posix.close(writing)
        try:
            answered = _count(answers, len(paths))
            syscalls.pidfd_send_signal(pidfd, 9)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            # One that waits for an answer still stays until it has it, holding nothing; init reaps it once this process
            # has ended.
            if ended.poll(1000 if answered == len(paths) else 100):
                posix.waitpid(pid, 0)
        finally:
            posix.close(pidfd)
    except OSError as error:
        raise LaunchError(f"whether the file systems answer cannot be found out: {error.strerror}") from None
    finally:
        posix.close(answers)
    if answered < len(paths):
        where = paths[answered].decode(errors="backslashreplace")
        raise LaunchError(f"the file system at {where} does not answer: it was asked {SECONDS:g} seconds ago")


def _count(answers: int, wanted: int) -> int:
    """How many answers came in time."""
    count = 0
    until = time.monotonic() + SECONDS
    ready = select.poll()
    ready.register(answers, select.POLLIN)
    while count < wanted:
        if not ready.poll(max(until - time.monotonic(), 0) * 1000):
            break
        data = posix.read(answers, 4096)
        if not data:
            break
        count += len(data)
    return count


def _touch(paths: list[bytes], writing: int, parent: int) -> NoReturn:
    """The child: it holds none of its parent's descriptors, whose readers would wait for their end."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        posix.dup2(writing, 0, inheritable=False)
        syscalls.close_range(1, 0x7FFFFFFF)
        syscalls.prctl_set_name(b"osmoda-asking")
        for path in paths:
            if posix.getppid() != parent:
                break
            _look_into(path)
            posix.write(0, b".")
    finally:
        posix._exit(0)


def _look_into(path: bytes) -> None:
    """Ask what a launch asks: where it is, what it is, what file system that is; of a file, its beginning."""
    try:
        status = posix.stat(path)
        posix.statvfs(path)
        kind = status.st_mode & 0o170000
        if kind == 0o040000:
            posix.close(posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC))
        elif kind == 0o100000:
            fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
            posix.read(fd, 1)
            posix.close(fd)
    except OSError:
        return  # an answer, too: whoever needs the path gets it again, and says what it means


def _read(path: bytes) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        content = b""
        while chunk := posix.read(fd, 1 << 16):
            content += chunk
        return content
    finally:
        posix.close(fd)


def _unescaped(point: bytes) -> bytes:
    first, *rest = point.split(b"\\")
    return b"".join([first, *[bytes([int(part[:3], 8)]) + part[3:] for part in rest]])


def _bytes(path: str | bytes) -> bytes:
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
