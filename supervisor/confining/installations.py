"""What a program needs besides the system's own files: its interpreter, and the installation that this belongs to.

A virtual environment leads to the Python that it was made with (`pyvenv.cfg`, PEP 405), a script to what its first line
names (execve(2)), a program in the `bin` of an installation to that (`/opt/node`, `~/.pyenv/versions/3.12`).

What such a file says is granted with the daemon's rights. So a file that somebody else may write leads to what is shown
anyway, and to nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.sandbox import system_view
from osmoda.sandbox.granted_paths import within
from osmoda.supervisor.confining.ownership import other_writer_of_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_MOST_STEPS = 40
_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_FIRST_LINE = 256  # bytes that the kernel reads (BINPRM_BUF_SIZE)


class NotTrusted(Exception):
    """A file that somebody else may write says that something is needed which only the operator can grant."""


def needed_by(programs: Iterable[str], too_wide: Callable[[str], bool], shown: Sequence[str] = ()) -> tuple[str, ...]:
    """Files and trees, sorted, that `programs` need and that not every sandbox shows.

    `too_wide` says of a folder that it is no installation but holds much else, such as a home; `shown` are trees that
    are granted already. What is missing is left out: whoever starts the program will say so. Raises NotTrusted.
    """
    walk = _Walk(too_wide, shown)
    for program in programs:
        walk.follow(program)
    trees = sorted(walk.found)
    return tuple(path for path in trees if not any(other != path and within(path, other) for other in trees))


class _Walk:
    def __init__(self, too_wide: Callable[[str], bool], shown: Sequence[str]) -> None:
        self.found: set[str] = set()
        self._too_wide = too_wide
        self._shown = shown
        self._system = system_view.trees()
        self._led_by = ""  # the file that leads on from here, and who may write it; empty where nobody else may
        self._seen: set[str] = set()

    def follow(self, program: str) -> None:
        """Add what `program`, a path or a name to look for, needs. Raises NotTrusted."""
        self._led_by = ""
        self._go_on(program)

    def _go_on(self, program: str) -> None:
        path = program if program.startswith("/") else _which(program)
        while path.startswith("/") and path not in self._seen and len(self._seen) < _MOST_STEPS:
            self._seen.add(path)
            # The folder without links, the name as it is: a link is a step of its own.
            folder = os.path.dirname(path)
            real = os.path.realpath(folder)
            if real != folder:
                self._trust(folder)
            here = os.path.join(real, os.path.basename(path))
            if not os.path.lexists(here):
                return
            self._add(here)
            self._trust(here)
            target = os.readlink(here) if os.path.islink(here) else ""
            path = os.path.join(os.path.dirname(here), target) if target else _interpreter(here)

    def _trust(self, path: str) -> None:
        """Whether what the file `path` says counts from here on."""
        writer = other_writer_of_name(path)
        if writer is not None and not self._led_by:
            self._led_by = f"{path} leads there, and {writer}"

    def _add(self, path: str) -> None:
        if any(within(path, tree) for tree in self._system) or system_view.through_link(path):
            return
        if self._led_by:
            if any(within(path, tree) for tree in (*self.found, *self._shown)):
                return
            raise NotTrusted(f"{path} is not shown to the agent: {self._led_by}")
        folder, prefix = os.path.dirname(path), os.path.dirname(os.path.dirname(path))
        home = _home_of(prefix)
        if home:
            self.found.add(prefix)
            self._trust(os.path.join(prefix, "pyvenv.cfg"))
            self._go_on(os.path.join(home, os.path.basename(path)))
            self._go_on(os.path.join(home, "python3"))
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
