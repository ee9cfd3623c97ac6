"""Taking what the host needs, up to a bound: processes, memory, files, descriptors; and staying when all is over."""

from __future__ import annotations

import _thread
import posix
import time
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.battery.attacks import Facts, attack
from osmoda.sandbox.battery.kernel import Absent, Refused, call

if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

FAMILY = "resources"

_RLIMIT_FSIZE, _RLIMIT_NOFILE = 1, 7
_STEP = 4 << 20
_SIGCHLD, _SIGXFSZ = 17, 25


def _count(at: int, most: int, refused: Refused | None) -> str:
    """All of them were had, or it was stopped at `at`."""
    if refused is None:
        return f"{most} were had"
    raise Refused(refused.number, refused.call, refused.registers, ("limit", at))


@attack("limits", "make more processes than process.pids")
def processes(_: Facts, most: int) -> str:
    """Each waits for the end of the pipe, and so do all the others."""
    hold, release = posix.pipe()
    made, refused = 0, None
    children = []
    while made < most and refused is None:
        try:
            pid = call("clone", _SIGCHLD, 0, 0, 0, 0, about=("limit",))
        except Refused as stopped:
            refused = stopped
            break
        if pid == 0:
            posix.close(release)
            posix.read(hold, 1)
            posix._exit(0)
        children.append(pid)
        made += 1
    posix.close(release)
    for pid in children:
        posix.waitpid(pid, 0)
    return _count(made, most, refused)


@attack("limits", "make more threads than process.pids")
def threads(_: Facts, most: int) -> str:
    hold, release = posix.pipe()
    _thread.stack_size(65536)
    made, refused = 0, None
    while made < most:
        try:
            _thread.start_new_thread(posix.read, (hold, 1))
        except RuntimeError:
            refused = Refused(11, "clone", (), ("limit",))  # pthread_create(3): EAGAIN, or Python would have said more
            break
        made += 1
    posix.close(release)
    return _count(made, most, refused)


@attack("limits", "open more files than process.limits.open_files")
def descriptors(_: Facts, most: int) -> str:
    soft, hard = syscalls.prlimit_get(_RLIMIT_NOFILE)
    if 0 <= soft != hard:
        syscalls.prlimit_self(_RLIMIT_NOFILE, hard, hard)
    refused = None
    made = 0
    while made < most:
        try:
            call("dup", 0, about=("limit",))
        except Refused as stopped:
            refused = stopped
            break
        made += 1
    return _count(made, most, refused)


@attack("limits", "take more memory than process.memory")
def memory(_: Facts, most: int) -> str:
    """Touched page by page; where a control group limits it, the kernel ends this process."""
    taken = []
    for _step in range(0, most, _STEP):
        try:
            taken.append(b"x" * _STEP)
        except MemoryError:
            raise Refused(12, "mmap", (), ("limit", len(taken) * _STEP)) from None
    return f"{most >> 20}M were had"


@attack("limits", "take more address space than process.limits.address_space")
def address_space(_: Facts, most: int) -> str:
    call("mmap", 0, most, 0, 0x22, 0xFFFFFFFFFFFFFFFF, 0, about=("limit", most))  # MAP_PRIVATE | MAP_ANONYMOUS
    return f"{most >> 20}M were had"


@attack("limits", "write a larger file than process.limits.file_size")
def file_size(facts: Facts, most: int) -> str:
    _signal.signal(_SIGXFSZ, _signal.SIG_IGN)  # else it ends the process before the error is seen (setrlimit(2))
    path = f"{facts['scratch']}/large"
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT)
    try:
        posix.ftruncate(fd, 0)
        call("ftruncate", fd, most, about=("limit", most))
    finally:
        posix.unlink(path)
    return "the file is larger"


@attack("limits", "fill more of a scratch place than filesystem.tmp")
def scratch(facts: Facts, place: str, most: int) -> str:
    """Blocks are reserved, not written: tmpfs counts both. Where no file may be so large, the kernel is asked."""
    folder = place if facts["inside"] else facts["scratch"]
    if 0 <= syscalls.prlimit_get(_RLIMIT_FSIZE)[0] < most:
        found = posix.statvfs(folder)
        if found.f_blocks * found.f_frsize < most:
            raise Refused(28, "statfs", (), ("limit", found.f_blocks * found.f_frsize))  # ENOSPC
        return f"{most >> 20}M can be had"
    path = f"{folder}/fill"
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT)
    try:
        call("fallocate", fd, 0, 0, most, about=("limit", most))
    finally:
        posix.unlink(path)
    return f"{most >> 20}M were had"


@attack("limits", "make more files than a scratch place may hold")
def inodes(facts: Facts, place: str, most: int) -> str:
    folder = place if facts["inside"] else facts["scratch"]
    made, refused = 0, None
    for number in range(most):
        try:
            posix.close(call("openat", -100, f"{folder}/{number}".encode(), 0o101, 0o600, about=("limit",)))
        except Refused as stopped:
            refused = stopped
            break
        made += 1
    for number in range(made):
        posix.unlink(f"{folder}/{number}")
    return _count(made, most, refused)


@attack(FAMILY, "stay when the sandbox has ended (a daemon)")
def stay(facts: Facts) -> str:
    """In a session of its own, deaf to signals. Whether it stays is seen outside, when all is over."""
    up, started = posix.pipe()
    if posix.fork() == 0:
        posix.setsid()
        if posix.fork() == 0:
            syscalls.prctl_set_name(facts["daemon"].encode())
            syscalls.close_range(0, started - 1)
            syscalls.close_range(started + 1, 0x7FFFFFFF)
            posix.write(started, b"x")
            posix.close(started)
            while True:
                time.sleep(60)
        posix._exit(0)
    posix.close(started)
    if posix.read(up, 1) != b"x":
        raise Absent("no daemon could be started")
    return "a daemon runs"
