"""Names as a traced process gives them, resolved as the kernel resolves them: below its root, link by link.

The answer is what stood there at that moment. It decides what is written into a proposal, never what is allowed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from osmoda.sandbox.learning.calls import AT_FDCWD

_MOST_LINKS = 40  # path_resolution(7)


@dataclass(frozen=True, slots=True)
class Walked:
    """Where a name led: `path` without links, and each link on the way with where that led."""

    path: bytes
    links: tuple[tuple[bytes, bytes], ...]


class Walker:
    """Resolves names of the processes of one sandbox, which share a root; remembers which of them are links."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes | None] = {}

    def walk(self, thread: int, folder: int, name: bytes, *, follow: bool) -> Walked | None:
        """Where `name` leads from the folder with the descriptor `folder`; None where that cannot be said.

        `follow`: a link in the last place is followed.
        """
        if name.startswith(b"/"):
            return self.from_folder(thread, b"/", name, follow=follow)
        base = base_of(thread, folder)
        return None if base is None else self.from_folder(thread, base, name, follow=follow)

    def from_folder(self, thread: int, base: bytes, name: bytes, *, follow: bool) -> Walked | None:
        """The same from a folder whose name is known. None for a circle of links."""
        here = base
        pending = [part for part in reversed(name.split(b"/")) if part not in (b"", b".")]
        links: list[tuple[bytes, bytes]] = []
        while pending:
            part = pending.pop()
            if part == b"..":
                here = os.path.dirname(here)
                continue
            path = os.path.join(here, part)
            target = None if not pending and not follow else self._target(thread, path)
            if target is None:
                here = path
                continue
            if len(links) >= _MOST_LINKS:
                return None
            links.append((path, os.path.normpath(os.path.join(here, target))))
            if target.startswith(b"/"):
                here = b"/"
            pending.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
        return Walked(here, tuple(links))

    def forget(self, path: bytes, *, tree: bool = False) -> None:
        """`path` has become another thing, or with `tree` all that lies in it."""
        if tree:
            self._known.clear()
        else:
            self._known.pop(path, None)

    def _target(self, thread: int, path: bytes) -> bytes | None:
        if path.startswith(b"/proc/"):
            return None  # its links are each process's own, and no profile can grant them
        if path in self._known:
            return self._known[path]
        try:
            target = os.readlink(inside(thread, path))
        except OSError:
            target = None  # no link, or nothing at all
        self._known[path] = target
        return target


def inside(thread: int, path: bytes) -> bytes:
    """A name, for this process, of what `path` is to the traced one; every folder on the way must be no link."""
    return b"/proc/%d/root%s" % (thread, path)


def base_of(thread: int, folder: int) -> bytes | None:
    """The folder that a relative name starts from; None where that cannot be said."""
    # The kernel takes the register for an int.
    number = folder & 0xFFFFFFFF
    if number == AT_FDCWD & 0xFFFFFFFF or folder < 0:
        return linked(thread, b"cwd")
    return linked(thread, b"fd/%d" % number)


def linked(thread: int, what: bytes) -> bytes | None:
    """The file behind a link of /proc/PID, by its name inside; None for what has none, or is deleted."""
    try:
        path = os.readlink(b"/proc/%d/%s" % (thread, what))
    except OSError:
        return None
    return path if path.startswith(b"/") and not path.endswith(b" (deleted)") else None
