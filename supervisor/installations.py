"""What a program needs besides the system's own files: its interpreter, and the installation that this belongs to.

A virtual environment leads to the Python that it was made with (`pyvenv.cfg`, PEP 405), a script to what its first line
names (execve(2)), a program in the `bin` of an installation to that (`/opt/node`, `~/.pyenv/versions/3.12`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.sandbox import system_view
from osmoda.sandbox.granted_paths import within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST_STEPS = 40
_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_FIRST_LINE = 256  # bytes that the kernel reads (BINPRM_BUF_SIZE)


def needed_by(programs: Iterable[str], too_wide: Callable[[str], bool]) -> tuple[str, ...]:
    """Files and trees, sorted, that `programs` need and that not every sandbox shows.

    `too_wide` says of a folder that it is no installation but holds much else, such as a home. What is missing is left
    out: whoever starts the program will say so.
    """
    walk = _Walk(too_wide)
    for program in programs:
        walk.follow(program)
    trees = sorted(walk.found)
    return tuple(path for path in trees if not any(other != path and within(path, other) for other in trees))


class _Walk:
    def __init__(self, too_wide: Callable[[str], bool]) -> None:
        self.found: set[str] = set()
        self._too_wide = too_wide
        self._system = system_view.trees()
        self._seen: set[str] = set()

    def follow(self, program: str) -> None:
        """Add what `program`, a path or a name to look for, needs."""
        path = program if program.startswith("/") else _which(program)
        while path and path not in self._seen and len(self._seen) < _MOST_STEPS:
            self._seen.add(path)
            # The folder without links, the name as it is: a link is a step of its own.
            here = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if not os.path.lexists(here):
                return
            self._add(here)
            target = os.readlink(here) if os.path.islink(here) else ""
            path = os.path.join(os.path.dirname(here), target) if target else _interpreter(here)

    def _add(self, path: str) -> None:
        if any(within(path, tree) for tree in self._system) or system_view.through_link(path):
            return
        folder, prefix = os.path.dirname(path), os.path.dirname(os.path.dirname(path))
        home = _home_of(prefix)
        if home:
            self.found.add(prefix)
            self.follow(os.path.join(home, os.path.basename(path)))
            self.follow(os.path.join(home, "python3"))
        elif os.path.basename(folder) in ("bin", "sbin") and not self._too_wide(prefix):
            self.found.add(prefix)
        else:
            self.found.add(path)


def _which(name: str) -> str:
    return next((found for folder in _PATH if os.access(found := os.path.join(folder, name), os.X_OK)), "")


def _home_of(prefix: str) -> str:
    """The `home` of the virtual environment `prefix`, empty where it is none."""
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                key, equals, value = line.partition("=")
                if equals and key.strip().lower() == "home":
                    return value.strip()
    except OSError:
        return ""
    return ""


def _interpreter(path: str) -> str:
    """The interpreter that the first line of a script names; env(1) looks for it by name."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(_FIRST_LINE)
    except OSError:
        return ""
    if not start.startswith(b"#!"):
        return ""
    words = os.fsdecode(start[2:].partition(b"\n")[0]).split()
    if not words or os.path.basename(words[0]) != "env":
        return words[0] if words else ""
    named = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
    return named if named.startswith("/") else _which(named)
