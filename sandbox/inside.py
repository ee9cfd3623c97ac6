"""TCP sockets made in a sandbox's network, by a child that joins it for as long as that takes (setns(2)).

A socket stays in the network that it was made in, so it can be connected from outside. The child has no number in the
sandbox's pid namespace: nothing inside can signal it, or look into it.
"""

from __future__ import annotations

import _socket
import posix

from osmoda.host import messages, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SIGCHLD = 17


def sockets(namespaces: Sequence[tuple[int, int]], count: int) -> list[int]:
    """`count` of them; none where the child could not join, or no descriptors are left. For a single-threaded process.

    `namespaces` are descriptors of namespaces, or pidfds of a process in them, each with what to join (CLONE_NEW*).
    """
    try:
        mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    except OSError:
        return []  # no open files are left
    try:
        pid, pidfd = syscalls.clone3(0, _SIGCHLD)
    except OSError:
        mine.close()
        theirs.close()
        return []
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            for fd, kinds in namespaces:
                posix.setns(fd, kinds)
            messages.send(theirs, b"S", tuple([_made() for _ in range(count)]))
        finally:
            posix._exit(0)
    theirs.close()
    try:
        return messages.receive(mine)[1]
    except OSError:
        return []
    finally:
        mine.close()
        posix.waitpid(pid, 0)
        posix.close(pidfd)


def _made() -> int:
    """A TCP socket that reaches ::1 and, as ::ffff:127.0.0.1, 127.0.0.1; without IPv6 the latter only."""
    flags = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    try:
        made = _socket.socket(_socket.AF_INET6, flags, _socket.IPPROTO_TCP)
        made.setsockopt(_socket.IPPROTO_IPV6, 26, 0)  # IPV6_V6ONLY
    except OSError:
        made = _socket.socket(_socket.AF_INET, flags, _socket.IPPROTO_TCP)
    return made.detach()
