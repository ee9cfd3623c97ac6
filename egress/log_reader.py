"""The log read back, also while gateways write it: the other end of `records`."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from osmoda.egress.records import KEPT, NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

type Record = dict[str, Any]

_PERIOD = 0.2  # seconds between looks at a file that is followed
_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 16  # a longer one is none of a gateway's


def read(
    folder: str,
    *,
    matching: Callable[[Record], bool] | None = None,
    last: int | None = None,
    follow: bool = False,
    wait: Callable[[float], object] = time.sleep,
    name: str = NAME,
) -> Iterator[Record]:
    """Records of the log in `folder`, the oldest first: those for which `matching` holds, of these the `last` ones.

    `name` is its newest file; older ones have a number after it. With `follow` it goes on with those to come, until it
    is closed; `wait` is called with the seconds between two looks. Lines that are no records are passed over. A folder
    without a log has no records.
    """
    files = _open_all(folder, name)
    try:
        if last is None:
            for _, file in files:
                yield from _matching(_forward(file), matching)
        else:
            yield from _last(files, matching, last)
        if follow:
            yield from _follow(folder, name, files, matching, wait)
    finally:
        for _, file in files:
            os.close(file)


def _open_all(folder: str, name: str, after: int | None = None) -> list[tuple[int, int]]:
    """The log's files as (inode, descriptor), the oldest first; with `after` those that are newer than that inode.

    One that is moved aside between two opens is found under its next name, and left out the second time.
    """
    found: dict[int, int] = {}
    for one in (name, *[f"{name}.{number}" for number in range(1, KEPT + 1)]):
        try:
            file = os.open(os.path.join(folder, one), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        inode = os.fstat(file).st_ino
        if inode in found or inode == after:
            os.close(file)
            if inode == after:
                break
            continue
        found[inode] = file
    return list(reversed(found.items()))


def _matching(lines: Iterator[bytes], matching: Callable[[Record], bool] | None) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and (matching is None or matching(record)):
            yield record


def _forward(file: int) -> Iterator[bytes]:
    """The whole lines from where the descriptor stands; a line that is still being written is left for later."""
    pending = b""
    while data := os.read(file, _BLOCK):
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
        if len(pending) > _LONGEST_LINE:
            pending = b""
    if pending:
        os.lseek(file, -len(pending), os.SEEK_CUR)


def _last(files: list[tuple[int, int]], matching: Callable[[Record], bool] | None, last: int) -> Iterator[Record]:
    found: deque[Record] = deque()
    for _, file in reversed(files):
        size = _after_the_last_line(file)
        if len(found) < last:
            for record in _matching(_backward(file, size), matching):
                found.appendleft(record)
                if len(found) >= last:
                    break
        os.lseek(file, size, os.SEEK_SET)
    yield from found


def _after_the_last_line(file: int) -> int:
    end = os.lseek(file, 0, os.SEEK_END)
    while end > 0:
        start = max(end - _BLOCK, 0)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _backward(file: int, end: int) -> Iterator[bytes]:
    """The lines of the first `end` bytes, the last one first."""
    pending: list[bytes] = []  # the parts of a line whose start is still to come, the last part first
    while end > 0:
        start = max(end - _BLOCK, 0)
        first, *lines = os.pread(file, end - start, start).split(b"\n")
        end = start
        if lines:
            pending.append(lines.pop())
            yield b"".join(reversed(pending))
            yield from reversed(lines)
            pending = []
        pending.append(first)
    yield b"".join(reversed(pending))


def _follow(
    folder: str,
    name: str,
    files: list[tuple[int, int]],
    matching: Callable[[Record], bool] | None,
    wait: Callable[[float], object],
) -> Iterator[Record]:
    """The records to come after those of `files`, which always holds what is open, for the caller to close."""
    while True:
        newer = yield from _news(folder, name, files, matching)
        if not newer:
            wait(_PERIOD)


def _news(
    folder: str, name: str, files: list[tuple[int, int]], matching: Callable[[Record], bool] | None
) -> Generator[Record, None, bool]:
    """The records that have come since the last look; returns whether there is a newer file."""
    # A file that was moved aside gets no more lines: what is newer is looked for before the rest of it is read.
    newer = _open_all(folder, name, files[-1][0] if files else None)
    files.extend(newer)
    while len(files) > 1:
        yield from _matching(_forward(files[0][1]), matching)
        os.close(files.pop(0)[1])
    for _, file in files:
        yield from _matching(_forward(file), matching)
    return bool(newer)


class Tail:
    """A log that is looked at again and again, beside others. A context manager: it holds its files open."""

    def __init__(self, folder: str, name: str = NAME) -> None:
        self._folder = folder
        self._name = name
        self._files = _open_all(folder, name)

    def last(self, matching: Callable[[Record], bool] | None, last: int) -> list[Record]:
        """The last records, the oldest first; what `news` has after that comes later."""
        return list(_last(self._files, matching, last))

    def news(self, matching: Callable[[Record], bool] | None = None) -> list[Record]:
        """The records that have come since the last look."""
        return list(_news(self._folder, self._name, self._files, matching))

    def close(self) -> None:
        """Close its files."""
        while self._files:
            os.close(self._files.pop()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
