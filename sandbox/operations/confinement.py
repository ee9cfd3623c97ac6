"""What is taken away last: nested namespaces, capabilities, descriptors, limits, then Landlock and seccomp."""

from __future__ import annotations

import fcntl
import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup

_REAL_TIME = (1, 2, 6)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE (sched(7))
_RLIMIT_RTPRIO = 14
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_CONNECT_TCP = 0x2  # LANDLOCK_ACCESS_NET_CONNECT_TCP
_WRITE_FILE = 0x2  # LANDLOCK_ACCESS_FS_WRITE_FILE
# LANDLOCK_ACCESS_FS_TRUNCATE, _IOCTL_DEV, of ABI 3 and 5 (landlock(7)).
_LATER = {1 << 14: "truncating (truncate(2))", 1 << 15: "ioctl(2) on devices"}


@frozen
class Terminal(Operation):
    """A pseudo-terminal on the sandbox's own devpts, when the caller has a terminal (pty(7)).

    The host's terminal never enters: a descriptor of it could be written to, or made to type (TIOCSTI).
    """

    layer = "terminal"

    def describe(self) -> str:
        return "a terminal, where there is one, of the sandbox's own; descriptors above 2 are closed"

    def apply(self, setup: Setup) -> None:
        # 0-2 are the command's; those from 3 on (control socket, leases) are pid 1's and closed on exec.
        syscalls.close_range(setup.kept, 0x7FFFFFFF)
        if setup.tty:
            setup.master = posix.open(b"/dev/ptmx", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
            fcntl.ioctl(setup.master, _TIOCSPTLCK, bytes(4))
            number = int.from_bytes(fcntl.ioctl(setup.master, _TIOCGPTN, bytes(4)), "little")
            setup.slave = b"/dev/pts/%d" % number


@frozen
class NoNestedNamespaces(Operation):
    """`max_user_namespaces` at 0 in the sandbox's own user namespace (namespaces(7))."""

    layer = "namespaces"

    def describe(self) -> str:
        return "no further user namespaces, and so no mounts or networks of the program's own making"

    def apply(self, setup: Setup) -> None:
        # Before the capabilities go: afterwards the kernel answers EACCES.
        fd = syscalls.openat2(setup.proc, b"sys/user/max_user_namespaces", posix.O_WRONLY)
        try:
            posix.write(fd, b"0")
        finally:
            posix.close(fd)


@frozen
class Capabilities(Operation):
    """All capabilities dropped, the bounding set too, and no_new_privs set (capabilities(7), prctl(2))."""

    last: int

    layer = "capabilities"

    def describe(self) -> str:
        return "no capabilities, an empty bounding set, no_new_privs: setuid programs gain nothing"

    def apply(self, setup: Setup) -> None:
        syscalls.drop_bounding_set(self.last)
        syscalls.capset_none()
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


# resource numbers are the same on x86-64 and aarch64 (asm-generic/resource.h)
RLIMIT = {
    "file_size": 1,
    "stack": 3,
    "core": 4,
    "processes": 6,
    "open_files": 7,
    "address_space": 9,
}


@frozen
class ProcessLimit(Operation):
    """One rlimit: bytes, or a count (getrlimit(2))."""

    name: str
    value: int

    layer = "limits"

    def describe(self) -> str:
        if self.name == "processes":
            return f"at most {self.value - 1} processes and threads, counted in this sandbox's own user namespace"
        if self.name == "open_files":
            return f"at most {self.value} open files in each process"
        if self.name == "core" and self.value:
            whole = "all of the memory to a program or socket of the host's that core_pattern names"
            return f"core file of each process at most {_size(self.value)}; {whole}"
        return f"{self.name.replace('_', ' ')} of each process at most {_size(self.value)}"

    def apply(self, setup: Setup) -> None:
        # Only ever lowered: raising a hard limit would need a capability on the host.
        hard = syscalls.prlimit_get(RLIMIT[self.name])[1]
        value = self.value if hard < 0 else min(self.value, hard)
        syscalls.prlimit_self(RLIMIT[self.name], value, value)


@frozen
class NoCoreDumps(Operation):
    """No memory of a program that crashes gets out: to no file, and to no program of the host's (core(5)).

    Where core_pattern begins with "|" the kernel starts a program on the host, as root, and gives it all that a crashed
    process had in its memory, whatever RLIMIT_CORE is; but for a limit of 1, which its own handlers have, so that they
    do not call each other (fs/coredump.c). No file is that small. `program` is a filter that leaves the limit so.
    """

    program: bytes

    layer = "limits"

    def describe(self) -> str:
        return (
            "no core dumps: to no file, and to no program of the host's that core_pattern names, unless the caller's "
            'own hard limit of core files is 0; a socket that it names ("@") may still be given them'
        )

    def apply(self, setup: Setup) -> None:
        # A hard limit of 0 stays: raising it would need a capability on the host.
        least = 0 if syscalls.prlimit_get(RLIMIT["core"])[1] == 0 else 1
        syscalls.prlimit_self(RLIMIT["core"], least, least)
        syscalls.seccomp_set_filter(self.program, 0)


@frozen
class Scheduling(Operation):
    """No real-time scheduling, which goes before all else on the host and which cpu.max does not bound (sched(7)).

    The caller's own policy and limit would be inherited.
    """

    layer = "limits"

    def describe(self) -> str:
        return "no real-time scheduling, whatever the caller has"

    def apply(self, setup: Setup) -> None:
        policy = posix.sched_getscheduler(0)
        if policy & ~posix.SCHED_RESET_ON_FORK in _REAL_TIME:
            posix.sched_setscheduler(0, posix.SCHED_OTHER, posix.sched_param(0))
        syscalls.prlimit_self(_RLIMIT_RTPRIO, 0, 0)


def _size(value: int) -> str:
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value} bytes"


@frozen
class Landlock(Operation):
    """The file rules once more, as a second layer that knows nothing of mounts (landlock(7)).

    `paths` pairs a path inside with the rights below it; the empty one is the workspace. `bind` and `connect` are the
    TCP ports with that right, where `handled_net` is not 0.
    """

    handled_fs: int
    handled_net: int
    scoped: int
    abi: int
    paths: tuple[tuple[bytes, int], ...]
    bind: tuple[int, ...]
    connect: tuple[int, ...]

    layer = "landlock"

    def describe(self) -> str:
        # What is written to a device is kept nowhere.
        written = [path for path, rights in self.paths if rights & _WRITE_FILE and path != b"/dev"]
        writable = [path.decode(errors="backslashreplace") or "the workspace" for path in written]
        parts = [f"writing only below {', '.join(writable)}" if writable else "no writing"]
        parts.append("reading only what the mounts show")
        if self.handled_net:
            parts.append(f"TCP bind {_ports(self.bind)}")
            if self.handled_net & _CONNECT_TCP:
                parts.append(f"connect {_ports(self.connect)}")
        parts += [f"{what} left to the mounts" for right, what in _LATER.items() if not self.handled_fs & right]
        if self.scoped:
            parts.append("no signals or abstract sockets to outside")
        return f"Landlock ABI {self.abi}: {'; '.join(parts)}"

    def apply(self, setup: Setup) -> None:
        ruleset = syscalls.landlock_create_ruleset(self.handled_fs, self.handled_net, self.scoped, self.abi)
        for path, rights in self.paths:
            path = path or setup.workspace
            fd = syscalls.openat2(syscalls.AT_FDCWD, path, posix.O_PATH)
            syscalls.landlock_add_path(ruleset, rights, fd, path)
            posix.close(fd)
        for port in self.bind:
            syscalls.landlock_add_port(ruleset, 1, port)
        for port in self.connect:
            syscalls.landlock_add_port(ruleset, 2, port)
        syscalls.landlock_restrict_self(ruleset)
        posix.close(ruleset)


def _ports(ports: tuple[int, ...]) -> str:
    return ", ".join(map(str, ports)) if ports else "none"


@frozen
class Seccomp(Operation):
    """The system call filter, installed last (seccomp(2)). `notify`: refused calls are reported to the monitor."""

    program: bytes
    allowed: int
    notify: bool

    layer = "seccomp"

    def describe(self) -> str:
        answer = "answered EPERM and reported" if self.notify else "answered EPERM"
        return (
            f"{self.allowed} system calls allowed, every other {answer}; "
            f"other ABIs refused ({len(self.program) // 8} instructions)"
        )

    def apply(self, setup: Setup) -> None:
        flags = 0
        if self.notify:
            flags = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER | syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        setup.listener = syscalls.seccomp_set_filter(self.program, flags) if flags else -1
        if not flags:
            syscalls.seccomp_set_filter(self.program, 0)
