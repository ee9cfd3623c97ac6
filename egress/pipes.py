"""Pipes for splice(2): taken while bytes are in flight, given back empty.

A pipe with bytes in it is never given back: they would reach another connection.
"""

from __future__ import annotations

import fcntl
import posix

SIZE = 1 << 20
"""Bytes of a large pipe; /proc/sys/fs/pipe-max-size unless somebody changed it."""

_F_SETPIPE_SZ = 1031
# An ordinary user has 64 MiB of pipes (/proc/sys/fs/pipe-user-pages-soft); what is beyond has 8 KiB each. So some large
# ones, the rest as they come, and then none: who gets none copies.
_LARGE = 24
_MOST = 256
_KEPT = 16


class Pipe:
    """Both ends, and how many bytes are in it. Non-blocking, close-on-exec."""

    __slots__ = ("inside", "large", "read", "write")

    def __init__(self, read: int, write: int) -> None:
        self.read = read
        self.write = write
        self.inside = 0
        self.large = False


class Pipes:
    """What a loop has of them."""

    __slots__ = ("_free", "_large", "_refused", "_taken")

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._taken = 0
        self._large = 0
        self._refused = False

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there are enough."""
        if self._taken >= _MOST:
            return None
        if self._free:
            pipe = self._free.pop()
        else:
            try:
                pipe = Pipe(*posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK))
            except OSError:
                return None  # out of descriptors: copying needs none
            self._enlarge(pipe)
        self._taken += 1
        return pipe

    def _enlarge(self, pipe: Pipe) -> None:
        if self._large >= _LARGE or self._refused:
            return
        try:
            fcntl.fcntl(pipe.write, _F_SETPIPE_SZ, SIZE)
        except OSError:
            self._refused = True  # this user has used up what pipes may have (EPERM), or the host has a lower maximum
        else:
            pipe.large = True
            self._large += 1

    def give_back(self, pipe: Pipe) -> None:
        """Done with it; what is still inside is lost."""
        self._taken -= 1
        if pipe.inside or len(self._free) >= _KEPT:
            self._close(pipe)
        else:
            self._free.append(pipe)

    def _close(self, pipe: Pipe) -> None:
        posix.close(pipe.read)
        posix.close(pipe.write)
        if pipe.large:
            self._large -= 1
            self._refused = False

    def close(self) -> None:
        """Close those that nobody has."""
        while self._free:
            self._close(self._free.pop())
