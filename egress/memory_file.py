"""Files in memory, for what does not fit into a message (memfd_create(2)).

Nobody can execute one: the filter of the standing service allows no others, and none of ours is a program.
"""

from __future__ import annotations

import posix

_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3
_EINVAL = 22


def create(name: str, content: bytes) -> int:
    """A file with this content, read from its start on; `name` only shows in /proc. Raises OSError."""
    try:
        fd = posix.memfd_create(name, posix.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        # An older kernel knows no seal; in a confined service the filter refuses this one.
        fd = posix.memfd_create(name, posix.MFD_CLOEXEC)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[posix.write(fd, rest) :]
        posix.lseek(fd, 0, 0)
    except OSError:
        posix.close(fd)
        raise
    return fd
