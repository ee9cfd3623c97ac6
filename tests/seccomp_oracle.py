"""What a profile says about system calls, in words that know nothing of BPF or of how a filter is made.

Every list here is written down a second time on purpose: what may never be granted, what cannot be taken away, what is
looked at in which argument. Whoever changes the compiler's lists has to say so here too, and in docs/profiles.md where
a user would notice. Names, numbers and groups are the package's tables, which `test_syscall_groups.py` compares with
the kernel's headers, libseccomp and systemd.
"""

from __future__ import annotations

import errno
import stat
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from osmoda.sandbox.syscall_groups import GROUPS
from osmoda.sandbox.syscall_numbers import KNOWN
from osmoda.sandbox.tiers import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ALLOW, NOTIFY, ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
EPERM, ENOSYS, EPROTONOSUPPORT = (ERRNO | n for n in (errno.EPERM, errno.ENOSYS, errno.EPROTONOSUPPORT))

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OTHERS = {"i386": 0x40000003, "arm": 0x40000028, "riscv64": 0xC00000F3, "none": 0, "all ones": 0xFFFFFFFF}
X32 = 1 << 30
NEWEST = 469  # file_setattr, Linux 6.17; there is nothing newer in 6.18

FAMILIES = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The sandbox's own init makes these calls when the filter stands, or libc does before `main`.
KEPT = _words("""
    access arch_prctl brk chdir clock_gettime clock_nanosleep clone close close_range dup dup2 dup3 execve exit
    exit_group faccessat fcntl fstat futex getegid geteuid getgid getpid getppid getrandom gettid getuid ioctl kill
    lseek madvise mmap mprotect mremap munmap newfstatat openat pidfd_open pidfd_send_signal poll ppoll prctl pread64
    prlimit64 read readv recvfrom recvmsg restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait
    sched_yield sendmsg sendto set_robust_list set_tid_address setpgid setsid sigaltstack stat tgkill wait4 waitid
    write writev
""")
_NEVER = _words("""
    chroot fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree open_tree_attr pivot_root
    setns statmount umount2 unshare
    bpf fanotify_init fanotify_mark io_uring_enter io_uring_register io_uring_setup lookup_dcookie perf_event_open
    syslog userfaultfd name_to_handle_at open_by_handle_at lsm_set_self_attr pidfd_getfd add_key keyctl request_key
    acct adjtimex clock_adjtime clock_settime delete_module finit_module init_module ioperm iopl kexec_file_load
    kexec_load quotactl quotactl_fd reboot setdomainname sethostname settimeofday swapoff swapon vhangup
    _sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms getpmsg nfsservctl putpmsg
    query_module security sysfs tuxcall uselib ustat vserver
""")
_REACHING = _words("kcmp process_vm_readv process_vm_writev ptrace")
NEVER = {1: _NEVER, 2: _NEVER | _REACHING | {"modify_ldt"}}

# As on a kernel that does not have them: what they do is decided by memory, which no filter sees.
UNREADABLE = frozenset({"clone3", "openat2", "statmount", "listmount"})


@dataclass(frozen=True)
class Declared:
    """What a profile says: its own list of system calls (None where it has none), and the families of sockets."""

    tier: int
    syscalls: tuple[str, ...] | None
    families: tuple[str, ...]
    arch: str
    notify: bool = True

    @cached_property
    def may(self) -> frozenset[str]:
        """The calls that it can make, if their arguments let them through."""
        ceiling, default = _tier(self.tier)
        entries = default if self.syscalls is None else self.syscalls
        if entries and all(entry.startswith("~") for entry in entries):
            entries = (*entries, *default)
        granted = [entry for entry in entries if not entry.startswith("~")]
        taken = [entry[1:] for entry in (*entries, *ceiling) if entry.startswith("~")]
        found = _calls(granted) - NEVER[self.tier]
        if "@debug" not in granted:
            found -= _REACHING - set(granted)  # they must be named: no wider group brings them
        return (found - _calls(taken)) | KEPT

    @property
    def refused(self) -> int:
        """The answer to what it may not do."""
        return NOTIFY if self.notify else EPERM

    def answer(self, nr: int, arch: int, args: Sequence[int]) -> int:
        """The answer to a call."""
        if arch != ARCHITECTURES[self.arch] or not 0 <= nr <= NEWEST:
            return ENOSYS
        name = names(self.arch).get(nr)
        if name in UNREADABLE:
            return ENOSYS
        if name == "seccomp" and args[1] & 0x8:  # SECCOMP_FILTER_FLAG_NEW_LISTENER
            return EPERM  # and never a notification
        if name not in self.may:
            return self.refused
        if name == "socket":
            return self._socket(*(value & 0xFFFFFFFF for value in args[:3]))
        return self.refused if name in REFUSES and REFUSES[name](args) else ALLOW

    def _socket(self, domain: int, kind: int, protocol: int) -> int:
        family = next((name for name in self.families if FAMILIES[name] == domain), "")
        kind &= 0xF  # the rest are SOCK_NONBLOCK and SOCK_CLOEXEC
        stream, datagram, raw, packets = 1, 2, 3, 5
        if family == "unix" and kind in (stream, datagram, packets):
            return ALLOW
        if family == "netlink" and kind in (datagram, raw) and protocol == 0:
            return ALLOW
        if family in ("inet", "inet6"):
            if (kind, protocol) in ((stream, 0), (stream, 6), (datagram, 0), (datagram, 17)):
                return ALLOW
            if (kind, protocol) == (stream, 262):  # MPTCP: programs go on with TCP
                return EPROTONOSUPPORT
        return self.refused


def _calls(entries: Sequence[str]) -> frozenset[str]:
    return frozenset(call for entry in entries for call in GROUPS.get(entry, (entry,)))


@cache
def names(arch: str) -> dict[int, str]:
    """The calls of an architecture by their numbers."""
    return {nr: name for name, nr in KNOWN[arch].items()}


@cache
def _tier(tier: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    with open(f"{SHIPPED}/tier{tier}.toml", "rb") as file:
        table = tomllib.load(file)
    return tuple(table["ceiling"]["process"]["syscalls"]), tuple(table["default"]["process"]["syscalls"])


def _set_id(mode: int) -> bool:
    return bool(mode & (stat.S_ISUID | stat.S_ISGID))


def _creates(flags: int, mode: int) -> bool:
    makes = flags & 0o100 or flags & 0o20000000  # O_CREAT, __O_TMPFILE
    return bool(makes) and _set_id(mode)


def _device(mode: int) -> bool:
    return _set_id(mode) or stat.S_IFMT(mode & 0xFFFF) in (stat.S_IFCHR, stat.S_IFBLK)


def _makes_namespace(flags: int) -> bool:
    """Mount, cgroup, UTS, IPC, user, PID and network namespaces (clone(2))."""
    bits = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
    return any(flags & bit for bit in bits)


REFUSES: dict[str, Callable[[Sequence[int]], bool]] = {
    "clone": lambda args: _makes_namespace(args[0]),
    # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD; snapshots of btrfs, with two structures, and of bcachefs
    "ioctl": lambda args: args[1] & 0xFFFFFFFF in (0x5412, 0x541C, 0x541D, 0x5423, 0x50009401, 0x50009417, 0x4020BC10),
    "open": lambda args: _creates(args[1], args[2]),
    "openat": lambda args: _creates(args[2], args[3]),
    "creat": lambda args: _set_id(args[1]),
    "chmod": lambda args: _set_id(args[1]),
    "fchmod": lambda args: _set_id(args[1]),
    "fchmodat": lambda args: _set_id(args[2]),
    "fchmodat2": lambda args: _set_id(args[2]),
    "mkdir": lambda args: _set_id(args[1]),
    "mkdirat": lambda args: _set_id(args[2]),
    "mknod": lambda args: _device(args[1]),
    "mknodat": lambda args: _device(args[2]),
    "memfd_create": lambda args: not args[1] & 0x8,  # MFD_NOEXEC_SEAL
    "personality": lambda args: args[0] & 0xFFFFFFFF not in (0, 0xFFFFFFFF),
    "socketpair": lambda args: args[0] & 0xFFFFFFFF != 1 or args[1] & 0xF not in (1, 2, 5),
}
"""Calls that may be made with some arguments only: whether these are refused. (`socket` and `seccomp` apart.)"""

LOOKED_AT = frozenset(REFUSES) | {"socket", "seccomp"}
