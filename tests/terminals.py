"""A program on a pseudo-terminal of the test's own, and what it shows (pty(7))."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pytest

from tests.worlds import World

SECONDS = 30.0


class Terminal:
    """Runs a command in a world, with a terminal of `rows` and `columns` as its controlling one and its three streams.

    What comes to the screen is kept in `screen`; `expect` waits for a pattern that has not been seen yet.
    """

    def __init__(
        self, world: World, command: Sequence[str | os.PathLike[str]], rows: int = 24, columns: int = 80, **options: Any
    ) -> None:
        self.master, slave = os.openpty()
        self.resize(rows, columns)
        self.screen = b""
        self._seen = 0
        try:
            self.process = world.popen(
                command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_control, **options
            )
            # A program's own settings of the terminal are the ones to compare with, not those of its end.
            self.before = termios.tcgetattr(slave)
        finally:
            os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window, as a terminal emulator does: the foreground process group gets SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, text: str | bytes) -> None:
        """Type it, all of it."""
        left = text.encode() if isinstance(text, str) else text
        while left:
            left = left[os.write(self.master, left) :]

    def expect(self, pattern: str, seconds: float = SECONDS) -> re.Match[bytes]:
        """Wait until `pattern` appears behind what was expected before."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern.encode(), self.screen[self._seen :], re.DOTALL)
            if found:
                self._seen += found.end()
                return found
            if not self._read(deadline):
                pytest.fail(f"{pattern!r} did not come, but\n{self.screen[self._seen :].decode(errors='replace')}")

    def end(self, seconds: float = SECONDS) -> int:
        """Read to the end of the program; its exit status."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            continue
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def settings(self) -> list[Any]:
        """How the terminal is set (termios(3))."""
        return termios.tcgetattr(self.master)

    def _read(self, deadline: float) -> bool:
        """Take what has come; False at the end, or when the time is over."""
        if not select.select([self.master], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.screen += data
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def _control() -> None:
    """In the child: the terminal becomes its session's."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
