"""The streams of runs that are repeated: input that can be read again, output of the same kind that is kept back."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from osmoda.sandbox.learning.once import Errand

_KEPT = 2000  # bytes, the last ones


class Said:
    """What a repeated run says. `readers` are descriptors to watch meanwhile, each with what to call."""

    def __init__(self) -> None:
        self.readers: tuple[tuple[int, Callable[[], None]], ...] = ()
        self._kept = b""
        self._files: list[int] = []

    def stream(self, like: int, cleanup: contextlib.ExitStack) -> int:
        """A descriptor for the command, of the kind of `like`: programs copy to a file and to a pipe by other calls."""
        if not stat.S_ISFIFO(os.fstat(like).st_mode):
            file = cleanup.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            self._files.append(file.fileno())
            return file.fileno()
        read, write = os.pipe()
        cleanup.callback(os.close, read)
        cleanup.callback(os.close, write)
        os.set_blocking(read, False)
        self.readers = (*self.readers, (read, partial(self._drain, read)))
        return write

    def text(self) -> str:
        """The end of it, once the run is over."""
        for read, drain in self.readers:
            del read
            drain()
        for file in self._files:
            os.lseek(file, max(os.fstat(file).st_size - _KEPT, 0), os.SEEK_SET)
            self._keep(os.read(file, _KEPT))
        return self._kept.decode(errors="replace")

    def _drain(self, read: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(read, 1 << 16):
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_KEPT:]


@contextlib.contextmanager
def again(errand: Errand) -> Iterator[tuple[Errand, Said]]:
    """`errand` from the start of its input, with output of its own; as it is where somebody sits at a terminal."""
    said = Said()
    if os.isatty(errand.stdin):
        yield errand, said
        return
    with contextlib.suppress(OSError):  # /dev/null and the like have no place to go back to
        os.lseek(errand.stdin, 0, os.SEEK_SET)
    with contextlib.ExitStack() as cleanup:
        yield (
            replace(errand, stdout=said.stream(errand.stdout, cleanup), stderr=said.stream(errand.stderr, cleanup)),
            said,
        )


@contextlib.contextmanager
def repeatable() -> Iterator[int]:
    """The standard input in a form that can be read again: a terminal, a file, or a copy of what comes."""
    try:
        os.lseek(0, 0, os.SEEK_CUR)
        seekable = True
    except OSError:
        seekable = False
    if seekable or os.isatty(0):
        yield 0
        return
    with tempfile.TemporaryFile() as copy:
        while data := os.read(0, 1 << 16):
            copy.write(data)
        copy.flush()
        copy.seek(0)
        yield copy.fileno()
