"""Refused system calls in words: the arguments that decided, under the kernel's own names."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from osmoda.sandbox.seccomp_arguments import SNAPSHOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# linux/socket.h, linux/net.h, linux/in.h, linux/netlink.h
FAMILY_NAMES: Mapping[int, str] = MappingProxyType(
    {
        0: "AF_UNSPEC",
        1: "AF_UNIX",
        2: "AF_INET",
        10: "AF_INET6",
        15: "AF_KEY",
        16: "AF_NETLINK",
        17: "AF_PACKET",
        29: "AF_CAN",
        31: "AF_BLUETOOTH",
        38: "AF_ALG",
        40: "AF_VSOCK",
        44: "AF_XDP",
    }
)
_TYPES = {1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW", 4: "SOCK_RDM", 5: "SOCK_SEQPACKET", 10: "SOCK_PACKET"}
_SOCK_TYPE_MASK, SOCK_CLOEXEC, SOCK_NONBLOCK = 0xF, 0o2000000, 0o4000
_INTERNET_PROTOCOLS = {
    1: "IPPROTO_ICMP",
    6: "IPPROTO_TCP",
    17: "IPPROTO_UDP",
    58: "IPPROTO_ICMPV6",
    132: "IPPROTO_SCTP",
}
_INTERNET_PROTOCOLS |= {136: "IPPROTO_UDPLITE", 255: "IPPROTO_RAW"}
_NETLINK = {0: "NETLINK_ROUTE", 4: "NETLINK_SOCK_DIAG", 9: "NETLINK_AUDIT", 12: "NETLINK_NETFILTER"}
_NETLINK |= {15: "NETLINK_KOBJECT_UEVENT", 16: "NETLINK_GENERIC"}

# linux/sched.h
_CLONE_FLAGS = {
    0x00000080: "CLONE_NEWTIME",
    0x00020000: "CLONE_NEWNS",
    0x02000000: "CLONE_NEWCGROUP",
    0x04000000: "CLONE_NEWUTS",
    0x08000000: "CLONE_NEWIPC",
    0x10000000: "CLONE_NEWUSER",
    0x20000000: "CLONE_NEWPID",
    0x40000000: "CLONE_NEWNET",
}
_NEWTIME = 0x80
# asm-generic/ioctls.h
_REQUESTS = {0x5412: "TIOCSTI", 0x541C: "TIOCLINUX", 0x541D: "TIOCCONS", 0x5423: "TIOCSETD"}
_SNAPSHOT_NAMES = ("BTRFS_IOC_SNAP_CREATE", "BTRFS_IOC_SNAP_CREATE_V2", "BCH_IOCTL_SUBVOLUME_CREATE")
_REQUESTS |= dict(zip(SNAPSHOTS, _SNAPSHOT_NAMES, strict=True))
# linux/ptrace.h
_PTRACE = {0: "PTRACE_TRACEME", 16: "PTRACE_ATTACH", 0x4206: "PTRACE_SEIZE"}
# linux/bpf.h, linux/keyctl.h
_BPF = {0: "BPF_MAP_CREATE", 5: "BPF_PROG_LOAD"}
_KEYCTL = {0: "KEYCTL_GET_KEYRING_ID", 1: "KEYCTL_JOIN_SESSION_KEYRING", 11: "KEYCTL_READ"}
_SECCOMP = {0: "SECCOMP_SET_MODE_STRICT", 1: "SECCOMP_SET_MODE_FILTER", 2: "SECCOMP_GET_ACTION_AVAIL"}
_FILE_TYPES = {0o020000: "a character device", 0o060000: "a block device", 0o010000: "a FIFO", 0o140000: "a socket"}
_SET_ID_BITS = 0o6000


def _low(value: int) -> int:
    """The 32 bits that the kernel takes for an int."""
    return value & 0xFFFFFFFF


def _named(table: Mapping[int, str], value: int) -> str:
    return table.get(value, f"{value:#x}" if value > 255 else str(value))


def _flags(table: Mapping[int, str], value: int) -> str:
    names = [name for bit, name in table.items() if value & bit]
    rest = value & ~sum(table)
    return "|".join([*names, *([f"{rest:#x}"] if rest else [])]) or "0"


def socket_type(value: int) -> int:
    """The type in the second argument of socket(2), without SOCK_CLOEXEC and SOCK_NONBLOCK."""
    return _low(value) & _SOCK_TYPE_MASK


def _socket(arguments: tuple[int, ...]) -> str:
    family, kind, protocol = _low(arguments[0]), socket_type(arguments[1]), _low(arguments[2])
    words = [_named(FAMILY_NAMES, family), _named(_TYPES, kind)]
    if protocol and family in (2, 10):
        words.append(_named(_INTERNET_PROTOCOLS, protocol))
    elif family == 16:
        words.append(_named(_NETLINK, protocol))
    return ", ".join(words)


def _namespaces(arguments: tuple[int, ...]) -> str:
    return _flags(_CLONE_FLAGS, _low(arguments[0]))


def _clone(arguments: tuple[int, ...]) -> str:
    # In clone(2) the low byte is the exit signal.
    return _flags(_CLONE_FLAGS, _low(arguments[0]) & sum(bit for bit in _CLONE_FLAGS if bit != _NEWTIME))


def _mode(index: int) -> Callable[[tuple[int, ...]], str]:
    def words(arguments: tuple[int, ...]) -> str:
        mode = arguments[index] & 0xFFFF
        kind = _FILE_TYPES.get(mode & 0o170000, "")
        text = f"mode {mode & 0o7777:04o}" + (f", {kind}" if kind else "")
        return text + (" with a set-id bit" if mode & _SET_ID_BITS else "")

    return words


def _first(table: Mapping[int, str]) -> Callable[[tuple[int, ...]], str]:
    return lambda arguments: _named(table, _low(arguments[0]))


_WORDS: Mapping[str, Callable[[tuple[int, ...]], str]] = MappingProxyType(
    {
        "socket": _socket,
        "socketpair": _socket,
        "unshare": _namespaces,
        "setns": lambda arguments: _flags(_CLONE_FLAGS, _low(arguments[1])),
        "clone": _clone,
        "ioctl": lambda arguments: _named(_REQUESTS, _low(arguments[1])),
        "chmod": _mode(1),
        "fchmod": _mode(1),
        "fchmodat": _mode(2),
        "fchmodat2": _mode(2),
        "creat": _mode(1),
        "open": _mode(2),
        "openat": _mode(3),
        "mkdir": _mode(1),
        "mkdirat": _mode(2),
        "mknod": _mode(1),
        "mknodat": _mode(2),
        "personality": lambda arguments: f"{_low(arguments[0]):#x}",
        "ptrace": _first(_PTRACE),
        "bpf": _first(_BPF),
        "keyctl": _first(_KEYCTL),
        "seccomp": _first(_SECCOMP),
        "kill": lambda arguments: f"signal {_low(arguments[1])}",
        "setuid": lambda arguments: f"uid {_low(arguments[0])}",
        "setgid": lambda arguments: f"gid {_low(arguments[0])}",
    }
)


def arguments_of(call: str, arguments: tuple[int, ...]) -> str:
    """The telling arguments of a refused `call`, empty where none tells anything."""
    words = _WORDS.get(call)
    return words(arguments) if words else ""


def _exact_socket(family: int, kind: int, protocols: tuple[int, ...]) -> Callable[[tuple[int, ...]], bool]:
    def matches(arguments: tuple[int, ...]) -> bool:
        return (_low(arguments[0]), _low(arguments[1])) == (family, kind) and _low(arguments[2]) in protocols

    return matches


_HABITS: Mapping[str, tuple[Callable[[tuple[int, ...]], bool], ...]] = MappingProxyType(
    {
        "socket": (
            # glibc asks nscd at the first look-up of a user, a group or a host, and reads the files when it cannot.
            _exact_socket(1, 1 | SOCK_CLOEXEC | SOCK_NONBLOCK, (0,)),
            # getaddrinfo(3) and if_nameindex(3) of glibc list the interfaces; without, they assume both IP versions.
            _exact_socket(16, 3 | SOCK_CLOEXEC, (0,)),
        ),
        # libuv (Node.js) tries it at its start and goes on with epoll.
        "io_uring_setup": (lambda _: True,),
    }
)


def habitual(call: str, arguments: tuple[int, ...]) -> bool:
    """Whether C libraries and run-times make this very call out of habit, and do without it when it is refused."""
    return any(matches(arguments) for matches in _HABITS.get(call, ()))
