"""One fuzz target under atheris, and what targets make their inputs with.

A target is a module `fuzz_NAME` with a function `one(data: bytes)` that returns, or raises what is a finding, and
perhaps INSTRUMENTED, the packages under test. It runs without atheris too: `tests/unit/test_fuzz_corpus.py` feeds it
the kept corpus.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

USAGE = "usage: python -m tests.fuzz.fuzz_NAME CORPUS SECONDS [-max_len=BYTES] [other options and folders of libFuzzer]"


def run(one: Callable[[bytes], None]) -> None:
    """Fuzz `one` as the command line says, and exit: with 0 when nothing was found.

    New interesting inputs go to the folder CORPUS. The target is imported anew, with the packages under test
    instrumented and nothing else.
    """
    import atheris

    spec = sys.modules[one.__module__].__spec__
    if spec is None or len(sys.argv) < 3 or not sys.argv[2].isdecimal():
        sys.exit(USAGE)
    packages = instrumented(one)
    for name in [name for name in sys.modules if name.startswith(packages)]:
        del sys.modules[name]
    with atheris.instrument_imports(include=list(packages)):
        target = importlib.import_module(spec.name)
    program, corpus, seconds, *others = sys.argv
    atheris.Setup([program, f"-max_total_time={seconds}", corpus, *others], target.one)
    atheris.Fuzz()


def instrumented(one: Callable[[bytes], None]) -> tuple[str, ...]:
    """The packages that a target is about; the network's, where it does not say."""
    found: tuple[str, ...] = getattr(sys.modules[one.__module__], "INSTRUMENTED", ("osmoda.egress",))
    return found


class Choices:
    """Decisions taken from the fuzzer's bytes, front to back; when they are used up, each is the first or the least."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, most: int) -> int:
        """From 0 to `most`, which is below 65536."""
        size = 1 if most < 256 else 2
        return int.from_bytes(self.take(size)) % (most + 1)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or as many as there are."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def piece(self, most: int) -> bytes:
        """Some bytes, up to `most`."""
        return self.take(self.number(most))

    def pick[T](self, options: Sequence[T]) -> T:
        return options[self.number(len(options) - 1)]

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def sizes(self, most: int = 8, largest: int = 256) -> list[int]:
        """Up to `most` sizes from 1 to `largest`."""
        return [self.number(largest - 1) + 1 for _ in range(self.number(most))]


def cut(whole: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`whole` in pieces of `sizes`, and the rest of it."""
    pieces = []
    for size in sizes:
        pieces.append(whole[:size])
        whole = whole[size:]
    return [*pieces, whole]
