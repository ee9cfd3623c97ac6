"""What stays covered as long as a sandbox runs: masks over denied paths, and pins, in trees that it writes itself.

Such a cover is a mount. When the host puts another file in the place of what is covered (rename(2), as most editors
save), the kernel takes the mount away in all other namespaces, and what was denied is in view. Nothing can hinder the
host; so the monitor looks at the mounts of the sandbox whenever the kernel says that they have changed
(proc_pid_mountinfo(5)), and ends a sandbox that has lost a cover.
"""

from __future__ import annotations

import posix

from osmoda.sandbox.operations import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from osmoda.sandbox.operations import Operation

_ENDING = (2, 3, 22)  # ENOENT, ESRCH, EINVAL: the process has left its namespaces on its way out


def points(operations: Iterable[Operation], workspace: bytes) -> tuple[bytes, ...]:
    """The paths inside at which `operations` put a cover."""
    covering = (mounting.Mask, mounting.Pinned)
    return tuple([place for op in operations if isinstance(op, covering) for place in op.places(workspace)])


class Mounts:
    """The mounts that process `pid` has in view; `fd` has a priority event whenever they change."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when it is ending, OSError otherwise."""
        try:
            self.fd = posix.open(f"/proc/{pid}/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            if error.errno in _ENDING:
                raise ProcessLookupError(error.errno, f"process {pid} is ending") from None
            raise

    def without(self, wanted: Iterable[bytes]) -> bytes:
        """One of the paths in `wanted` at which nothing is mounted; empty when there is none. Raises OSError."""
        content, offset = b"", 0
        while chunk := posix.pread(self.fd, 1 << 16, offset):
            content += chunk
            offset += len(chunk)
        mounted = {line.split(b" ", 5)[4] for line in content.splitlines()}
        return next((path for path in wanted if _escaped(path) not in mounted), b"")

    def close(self) -> None:
        """Look no more."""
        posix.close(self.fd)


def _escaped(path: bytes) -> bytes:
    """As the kernel writes it (seq_path of show_mountinfo, fs/proc_namespace.c)."""
    for byte in (b"\\", b" ", b"\t", b"\n"):
        path = path.replace(byte, b"\\%03o" % ord(byte))
    return path
