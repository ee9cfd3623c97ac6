"""The system call surface: calls that reach kernel interfaces a sandbox has no business with, and other ABIs."""

from __future__ import annotations

import mmap
import posix
from ctypes import CFUNCTYPE, addressof, c_char, c_long
from functools import partial
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.battery.attacks import Facts, add_attack, attack
from osmoda.sandbox.battery.kernel import MACHINE, Absent, Refused, buffer, call, open_path, reach, read

if TYPE_CHECKING:
    from osmoda.sandbox.battery.kernel import Argument

FAMILY = "system calls"

_ENOSYS, _EACCES = 38, 13
_MFD_CLOEXEC, _MFD_NOEXEC_SEAL, _MFD_EXEC = 0x1, 0x8, 0x10
_X32_BIT = 0x40000000
_I386 = 0x40000003  # AUDIT_ARCH_I386
_SECCOMP_FILTER, _NEW_LISTENER = 1, 8
_RET_ALLOW = 0x7FFF0000

_NOBODY = -1 & 0xFFFFFFFFFFFFFFFF  # a descriptor, or a key ring, that is none
_HERE = -100 & 0xFFFFFFFFFFFFFFFF  # AT_FDCWD


def _words(*values: int) -> bytes:
    return b"".join([value.to_bytes(4, "little") for value in values])


# The call, its arguments, whether the control needs capabilities, and the errors that only the kernel's own code for
# the call gives, after it has looked at the arguments.
_CALLS: tuple[tuple[str, tuple[Argument, ...], bool, str], ...] = (
    ("io_uring_setup", (1, bytes(120)), False, ""),
    ("bpf", (0, _words(2, 4, 4, 1), 16), True, ""),
    ("perf_event_open", (_words(1, 112) + bytes(104), 0, _NOBODY, _NOBODY, 0), True, ""),
    ("userfaultfd", (0,), True, ""),
    ("add_key", (b"user", b"osmoda-battery", b"x", 1, _NOBODY), False, ""),
    ("request_key", (b"user", b"no-such-key", 0, 0), False, "ENOKEY"),
    ("keyctl", (1, b"osmoda-battery"), False, ""),
    ("fsopen", (b"tmpfs", 0), True, ""),
    ("open_tree", (_HERE, b"/usr", 1), True, ""),
    ("mount_setattr", (_NOBODY, b"x", 0, bytes(32), 32), True, "EBADF EINVAL"),
    ("move_mount", (_NOBODY, b"", _NOBODY, b"", 0x44), True, "EBADF"),
    ("fspick", (_HERE, b"/no-such-mount", 0), True, "ENOENT"),
    ("pivot_root", (b"/no-such-mount", b"/no-such-mount"), True, "ENOENT"),
    ("init_module", (b"rubbish", 7, b""), True, "ENOEXEC"),
    ("finit_module", (_NOBODY, b"", 0), True, "EBADF"),
    ("delete_module", (b"no-such-module", 0), True, "ENOENT"),
    ("kexec_load", (0, 0, 0, 0xFF), True, "EINVAL"),
    ("kexec_file_load", (_NOBODY, _NOBODY, 0, b"", 0xFF00), True, "EINVAL"),
    ("reboot", (1, 2, 3, 0), True, "EINVAL"),
    ("syslog", (10, 0, 0), True, ""),
    ("acct", (b"/no-such-file",), True, "ENOENT"),
    ("swapon", (b"/no-such-file", 0), True, "ENOENT"),
    ("quotactl", (0x80000100, b"/no-such-device", 0, 0), True, "ENOENT EINVAL"),
    ("fanotify_init", (0, 0), True, ""),
    ("settimeofday", (1, 0), True, "EFAULT"),
    ("open_by_handle_at", (_HERE, _words(8, 1, 0, 0), 0), True, "ESTALE EINVAL EBADF EOPNOTSUPP"),
    ("name_to_handle_at", (_HERE, b"/usr", _words(128) + bytes(132), bytes(8), 0), False, ""),
)


def _reach(_: Facts, name: str, arguments: tuple[Argument, ...], answers: str) -> str:
    return reach(name, *arguments, answers=answers, about=("call",))


for _name, _arguments, _privileged, _answers in _CALLS:
    add_attack(
        f"call-{_name}",
        FAMILY,
        f"reach the kernel's {_name}",
        partial(_reach, name=_name, arguments=_arguments, answers=_answers),
        privileged=_privileged,
    )


@attack(FAMILY, "call by the 32-bit ABI (int 0x80)")
def int80(_: Facts) -> str:
    """Where another architecture's numbers hold: 20 is getpid there, and writev here."""
    if MACHINE != "x86_64":
        raise Absent("only x86 has this ABI")
    # mov $20, %eax; int $0x80; cltq; ret. The gate clobbers r8 to r11, which are the caller's to save.
    code = bytes.fromhex("b814000000cd804898c3")
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except PermissionError as error:
        raise Refused(error.errno or 0, "mmap", (), ("call",)) from None
    page.write(code)
    place = (c_char * mmap.PAGESIZE).from_buffer(page)
    result = int(CFUNCTYPE(c_long)(addressof(place))())
    if result != posix.getpid():
        raise Refused(-result, "getpid", (), ("abi", _I386, 20))
    return "getpid by the gate of 32-bit programs"


@attack(FAMILY, "call by the x32 ABI")
def x32(_: Facts) -> str:
    if MACHINE != "x86_64":
        raise Absent("only x86 has this ABI")
    number = _X32_BIT | 39  # getpid
    result, error = syscalls.syscall(number)
    if result != posix.getpid():
        raise Refused(error, "getpid", (), ("abi", 0xC000003E, number))
    return "getpid by an x32 number"


def _nameless(facts: Facts, flags: int) -> str:
    """Execute a program from a file without a name, which no rule of paths can hold (memfd_create(2))."""
    fd = call("memfd_create", b"nameless", flags, about=("call",))
    source = open_path(facts["program"], posix.O_RDONLY)
    while chunk := read(source, 65536):
        posix.write(fd, chunk)
    if flags & _MFD_NOEXEC_SEAL:
        posix.fchmod(fd, 0o700)
    failed, report = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            posix.execve(f"/proc/self/fd/{fd}", ["nameless"], {})
        except OSError as error:
            posix.write(report, bytes([error.errno or 0]))
        finally:
            posix._exit(1)
    posix.close(report)
    number = posix.read(failed, 1)
    _, status = posix.waitpid(pid, 0)
    if number:
        raise Refused(number[0], "execve", (), ("nameless",))
    if status:
        raise OSError(status, "the nameless program failed")
    return "a program without a name ran"


for _kind, _flags in (("plain", 0), ("marked", _MFD_EXEC)):
    add_attack(
        f"nameless-{_kind}",
        FAMILY,
        "execute a file that has no name" + (" (MFD_EXEC)" if _flags else " (memfd_create)"),
        partial(_nameless, flags=_flags),
    )


@attack(FAMILY, "answer refused calls in the monitor's place (seccomp)")
def listen_instead(_: Facts) -> str:
    """A filter with a listener of one's own could let calls continue that an outer filter has reported."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    allow = buffer((0x06).to_bytes(2, "little") + bytes(2) + _RET_ALLOW.to_bytes(4, "little"))
    program = (1).to_bytes(8, "little") + addressof(allow).to_bytes(8, "little")
    call("seccomp", _SECCOMP_FILTER, _NEW_LISTENER, program, about=("call",))
    return "it has a listener"


@attack(FAMILY, "weaken memory protection (personality)")
def personality(_: Facts) -> str:
    call("personality", 0x0040000, about=("call",))  # ADDR_NO_RANDOMIZE
    return "addresses are no longer random"
