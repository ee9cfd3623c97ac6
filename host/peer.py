"""Who is at the other end of a unix socket (unix(7): SO_PEERCRED, and SO_PEERPIDFD of Linux 6.5)."""

from __future__ import annotations

import _socket
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SO_PEERPIDFD = 77


def refusal(socket: _socket.socket) -> str:
    """Why the peer of a connected unix socket may not give orders here; empty when it may.

    It must be a process of this user or root. A sandbox's program is that user's too, so it must also live in this
    process's own pid namespace; `/proc` must be readable to know that, and what cannot be known is refused.
    """
    pid, uid = credentials(socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    return _refusal(uid, lambda: _namespaces(socket, pid))


def refusal_of_sender(pid: int, uid: int) -> str:
    """The same for whoever has sent a datagram, as SCM_CREDENTIALS names it (SO_PASSCRED).

    It must still be there: the number may be another process's by now, and of that one the same is asked.
    """
    return _refusal(uid, lambda: _count(f"/proc/{pid}/status"))


def credentials(packed: bytes) -> tuple[int, int]:
    """Process id and user id of a `struct ucred`."""
    return int.from_bytes(packed[:4], "little", signed=True), int.from_bytes(packed[4:8], "little")


def _refusal(uid: int, namespaces: Callable[[], int]) -> str:
    if uid not in (0, posix.geteuid()):
        return f"uid {uid} may not: this is a process of uid {posix.geteuid()}"
    try:
        depth = namespaces()
    except OSError as error:
        return f"it cannot be told who asks: {error.strerror}"
    if depth != 1:
        return "a process in a sandbox may not" if depth > 1 else "the process that asks is not to be seen from here"
    return ""


def _namespaces(socket: _socket.socket, pid: int) -> int:
    """In how many pid namespaces, from this one down, the peer has a number; 0 when it has ended or lives elsewhere."""
    try:
        # A number may be another process's by now, a pidfd stays the peer's.
        fd = int.from_bytes(socket.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD, 4), "little")
    except OSError as error:
        if error.errno != 92:  # ENOPROTOOPT: an older kernel
            raise
        return _count(f"/proc/{pid}/status")
    try:
        return _count(f"/proc/self/fdinfo/{fd}")
    finally:
        posix.close(fd)


def _count(path: str) -> int:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        content = posix.read(fd, 8192)
    finally:
        posix.close(fd)
    _, found, rest = content.partition(b"\nNSpid:")
    numbers = rest.partition(b"\n")[0].split() if found else []
    return len(numbers) if numbers and int(numbers[0]) > 0 else 0
