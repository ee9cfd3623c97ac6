"""The calls whose arguments decide: BPF instructions that stand before the plain allow-list.

They are our own and not libseccomp's because it compares 64 bits where the kernel takes 32 (an `ioctl` request with
high bits set passed filters so made, CVE-2019-10063), and because "all but these values" is awkward there. Everything
here looks at the low 32 bits, as the kernel does for `int` and `unsigned int` arguments, and the low 16 of a mode.
"""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import TYPE_CHECKING

from osmoda.sandbox import bpf
from osmoda.sandbox.bpf import AND, JA, JEQ, JSET, LD_ABS, RET, Instruction, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FAMILIES: Mapping[str, int] = MappingProxyType({"unix": 1, "inet": 2, "inet6": 10, "netlink": 16})
"""Socket families that a profile can allow, with their AF_ numbers."""

type Lines = list[Line]

# asm-generic/ioctls.h: push input into a terminal, console functions, console output, line discipline.
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
SNAPSHOTS = (0x50009401, 0x50009417, 0x4020BC10)
"""Requests of ioctl(2) that make another name for all that lies in a subvolume, also for what is denied there or beside
the granted tree; they need no privilege: BTRFS_IOC_SNAP_CREATE, its _V2 (linux/btrfs.h), BCH_IOCTL_SUBVOLUME_CREATE."""
# linux/sched.h: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME (0x80) lies in the bits that
# clone(2) takes for the exit signal; only clone3 and unshare know it.
_CLONE_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_SET_ID_BITS = 0o6000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000  # __O_TMPFILE alone; O_TMPFILE adds O_DIRECTORY
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SOCK_TYPE_MASK, _STREAM, _DGRAM, _RAW, _SEQPACKET = 0xF, 1, 2, 3, 5
_IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_MPTCP = 6, 17, 262
_PER_LINUX, _PERSONALITY_QUERY = 0, 0xFFFFFFFF
_MFD_NOEXEC_SEAL = 0x8


def _argument(index: int) -> Instruction:
    return Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 8 * index)


def _equal(value: int, then: str, otherwise: str = "") -> tuple[int, int, str, str]:
    return (JEQ, value, then, otherwise)


def _any_bit(mask: int, then: str, otherwise: str = "") -> tuple[int, int, str, str]:
    return (JSET, mask, then, otherwise)


def _and(mask: int) -> Instruction:
    return Instruction(AND, 0, 0, mask)


def _mode(index: int) -> Lines:
    """No set-user-id or set-group-id bit: a file with one, left in a workspace, would outlive the sandbox.

    Directories with the set-group-id bit are refused with it (as systemd's RestrictSUIDSGID= does).
    """
    return [_argument(index), _any_bit(_SET_ID_BITS, "deny", "allow")]


def _open(index: int) -> Lines:
    """As `_mode`, where a file may be created; otherwise the mode argument is whatever was in the register."""
    flags: Lines = [_argument(index), _any_bit(_O_CREAT | _O_TMPFILE, "", "allow")]
    return [*flags, *_mode(index + 1)]


def _mknod(index: int) -> Lines:
    """As `_mode`, and no device nodes (an overlay whiteout, device 0:0, needs no capability)."""
    device: Lines = [_and(_S_IFMT), _equal(_S_IFCHR, "deny"), _equal(_S_IFBLK, "deny", "allow")]
    return [_argument(index), _any_bit(_SET_ID_BITS, "deny"), *device]


def _ioctl() -> Lines:
    refused = (_TIOCSTI, _TIOCLINUX, _TIOCCONS, *SNAPSHOTS)
    return [_argument(1), *(_equal(request, "deny") for request in refused), _equal(_TIOCSETD, "deny", "allow")]


def _clone() -> Lines:
    return [_argument(0), _any_bit(_CLONE_NAMESPACES, "deny", "allow")]


def _personality() -> Lines:
    """As systemd's LockPersonality=: ask, or set what is set already."""
    return [_argument(0), _equal(_PER_LINUX, "allow"), _equal(_PERSONALITY_QUERY, "allow", "deny")]


def _memfd_create() -> Lines:
    """Only files that can never be executed: a program run from one has no path that a rule could name.

    What vm.memfd_noexec does (Linux 6.3), which only root can set for a pid namespace. A kernel that does not know the
    flag refuses it with EINVAL.
    """
    return [_argument(1), _any_bit(_MFD_NOEXEC_SEAL, "allow", "deny")]


def _socketpair() -> Lines:
    return [_argument(0), _equal(FAMILIES["unix"], "", "deny"), *_unix()]


def _unix() -> Lines:
    return [
        "unix:",
        _argument(1),
        _and(_SOCK_TYPE_MASK),
        _equal(_STREAM, "allow"),
        _equal(_DGRAM, "allow"),
        _equal(_SEQPACKET, "allow", "deny"),
    ]


def _socket(families: Sequence[str]) -> Lines:
    """TCP and UDP in the inet families; no raw sockets, no ICMP, no SOCK_PACKET; of netlink only the routing tables.

    MPTCP is answered as a kernel without it does, and programs (Go listens with it by default) go on with TCP.
    """
    rules = {"unix": "unix", "inet": "inet", "inet6": "inet", "netlink": "netlink"}
    domains = [_equal(FAMILIES[family], rules[family]) for family in sorted(set(families))]
    lines: Lines = [_argument(0), *domains, (JA, 0, "deny", "")]
    if "unix" in families:
        lines += _unix()
    if "inet" in families or "inet6" in families:
        lines += [
            "inet:",
            _argument(1),
            _and(_SOCK_TYPE_MASK),
            _equal(_STREAM, "stream"),
            _equal(_DGRAM, "dgram", "deny"),
            "stream:",
            _argument(2),
            _equal(0, "allow"),
            _equal(_IPPROTO_TCP, "allow"),
            _equal(_IPPROTO_MPTCP, "unsupported", "deny"),
            "dgram:",
            _argument(2),
            _equal(0, "allow"),
            _equal(_IPPROTO_UDP, "allow", "deny"),
            "unsupported:",
            Instruction(RET, 0, 0, bpf.ERRNO | errno.EPROTONOSUPPORT),
        ]
    if "netlink" in families:
        lines += [
            "netlink:",
            _argument(2),
            _equal(0, "", "deny"),  # NETLINK_ROUTE
            _argument(1),
            _and(_SOCK_TYPE_MASK),
            _equal(_RAW, "allow"),
            _equal(_DGRAM, "allow", "deny"),
        ]
    return lines


# The most frequent first: each call that no block decides pays one comparison a block on kernels without the bitmap of
# constant answers (before Linux 5.11).
_RULES: Mapping[str, Callable[[], Lines]] = MappingProxyType(
    {
        "openat": lambda: _open(2),
        "open": lambda: _open(1),
        "ioctl": _ioctl,
        "clone": _clone,
        "socketpair": _socketpair,
        "chmod": lambda: _mode(1),
        "fchmod": lambda: _mode(1),
        "fchmodat": lambda: _mode(2),
        "fchmodat2": lambda: _mode(2),
        "creat": lambda: _mode(1),
        "mkdir": lambda: _mode(1),
        "mkdirat": lambda: _mode(2),
        "mknod": lambda: _mknod(1),
        "mknodat": lambda: _mknod(2),
        "memfd_create": _memfd_create,
        "personality": _personality,
    }
)

CHECKED: tuple[str, ...] = (*_RULES, "socket", "seccomp")
"""The calls whose arguments are looked at when they are allowed at all."""


def checks(name: str, *, allowed: bool, families: Sequence[str], denied: int) -> tuple[Instruction, ...]:
    """The instructions that decide the call `name`, every path of which returns; none when nothing is to be checked.

    `denied` is the answer for a refused call.
    """
    if name == "seccomp":
        # Always an errno, also where refused calls are notified: a filter with a listener of its own could answer
        # "continue" to a call that this filter only notifies, and the kernel would execute it.
        lines: Lines = [
            _argument(1),
            _any_bit(_SECCOMP_FILTER_FLAG_NEW_LISTENER, "never", "allow" if allowed else "deny"),
        ]
        lines += ["never:", Instruction(RET, 0, 0, bpf.ERRNO | errno.EPERM)]
    elif not allowed or name not in CHECKED:
        return ()
    elif name == "socket":
        lines = _socket(families)
    else:
        lines = _RULES[name]()
    answers: Lines = ["allow:", Instruction(RET, 0, 0, bpf.ALLOW), "deny:", Instruction(RET, 0, 0, denied)]
    return bpf.assemble([*lines, *answers])
