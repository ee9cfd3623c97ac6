"""A host uid for each sandbox that root starts, from a range that nothing else uses.

A lease is a byte-range lock on one file in the runtime directory (F_OFD_SETLK, fcntl(2)). The sandbox's pid 1 holds
the same open file description, so the lease ends when both the monitor and the whole pid namespace are gone, however
they went; no file is left to clean up.
"""

from __future__ import annotations

import fcntl
import posix

from osmoda.host import paths

# Just above what systemd reserves for containers (uid-gid.xml in systemd's documentation: 1879048192 and up is unused).
FIRST_UID = 1879048192
COUNT = 65536

_F_OFD_SETLK = 37
_F_WRLCK = 1

_next = -1


def acquire() -> tuple[int, int]:
    """A free uid and the descriptor that holds it. Raises OSError when all are taken or the file cannot be opened."""
    path = paths.own_directory("runtime") + "/uids"
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    global _next
    # Where the last one was found, and not where the search began: those before it are probably in use still.
    start = _next if _next >= 0 else posix.getpid() * 127
    for step in range(COUNT):
        offset = (start + step) % COUNT
        # struct flock: l_type, l_whence, (padding), l_start, l_len, l_pid
        request = (
            _F_WRLCK.to_bytes(2, "little")
            + bytes(6)
            + offset.to_bytes(8, "little")
            + (1).to_bytes(8, "little")
            + bytes(8)
        )
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            continue
        except OSError:
            posix.close(fd)
            raise
        _next = offset + 1
        return FIRST_UID + offset, fd
    posix.close(fd)
    raise OSError(11, f"all {COUNT} uids reserved for sandboxes are in use")
