"""Namespaces, identity, host name and loopback: what the sandbox is apart from."""

from __future__ import annotations

import _socket
import fcntl
import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup

_FLAGS = {
    "user": syscalls.CLONE_NEWUSER,
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}


@frozen
class Namespaces(Operation):
    """The namespaces that the child is cloned into (namespaces(7)); applied by clone3 itself."""

    names: tuple[str, ...]

    layer = "namespaces"

    def describe(self) -> str:
        return f"own {', '.join(self.names)} namespaces: host processes, mounts, sockets and IPC do not exist inside"

    def flags(self) -> int:
        """The CLONE_NEW* bits for clone3(2)."""
        flags = 0
        for name in self.names:
            flags |= _FLAGS[name]
        return flags

    def apply(self, setup: Setup) -> None:
        """Nothing is left to do in the child: it was born in them."""


@frozen
class Identity(Operation):
    """Who the sandbox is: uid and gid inside, and on the host (user_namespaces(7))."""

    uid: int
    gid: int
    own_host_uid: bool

    layer = "identity"

    def describe(self) -> str:
        host = "a uid of its own that no other process has" if self.own_host_uid else "the caller"
        return f"user agent ({self.uid}:{self.gid}) inside; on the host, {host}"

    def apply(self, setup: Setup) -> None:
        if self.own_host_uid:
            posix.setgroups([])
        else:
            # An unprivileged process may map itself, and only once setgroups is given up (user_namespaces(7)).
            write_file(b"/proc/self/setgroups", b"deny")
            write_file(b"/proc/self/gid_map", b"%d %d 1" % (self.gid, setup.host_gid))
            write_file(b"/proc/self/uid_map", b"%d %d 1" % (self.uid, setup.host_uid))
        posix.setresgid(self.gid, self.gid, self.gid)
        posix.setresuid(self.uid, self.uid, self.uid)
        # A change of credentials clears the parent-death signal.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        syscalls.keyctl_join_session_keyring()


@frozen
class Hostname(Operation):
    """The host name inside."""

    name: str

    layer = "namespaces"

    def describe(self) -> str:
        return f"host name {self.name}"

    def apply(self, setup: Setup) -> None:
        syscalls.sethostname(self.name.encode())


_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


@frozen
class Loopback(Operation):
    """Whether `lo`, the only interface of the sandbox's network namespace, is up (netdevice(7))."""

    up: bool

    layer = "network"

    def describe(self) -> str:
        if self.up:
            return "a network of its own holding only lo, up: programs inside reach each other, no route leads out"
        return "a network of its own holding only lo, down: no address can be bound or reached"

    def apply(self, setup: Setup) -> None:
        if not self.up:
            return
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            fcntl.ioctl(probe.fileno(), _SIOCSIFFLAGS, b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(24, "little"))
        finally:
            probe.close()


def write_file(path: bytes, content: bytes) -> None:
    """Write a file of /proc in one go; the error names it."""
    try:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, content)
        finally:
            posix.close(fd)
    except OSError as error:
        raise syscalls.explained(error, f"write {path.decode()}") from None
