"""What an agent prints, from its pipes to its log: never waited for, and no more than a unit may print."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.supervisor.logs.lines import Lines, RateLimit

if TYPE_CHECKING:
    import asyncio

    from osmoda.supervisor.logs.writer import Logs

INTERVAL, BURST = 30.0, 10_000
"""The limit of lines of one unit, which is journald's own default."""

_CHUNK = 1 << 16
_MOST_CHUNKS = 16  # a pipe's worth
_WARNING = 4


class Outlet:
    """The log of one unit, with the limit that all its streams share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, logs: Logs, unit: str) -> None:
        self._loop = loop
        self._logs = logs
        self._unit = unit
        self._limit = RateLimit(INTERVAL, BURST)
        self._timer: asyncio.TimerHandle | None = None
        self.pipes: set[Pipe] = set()
        """Those whose other end may still be open."""

    def say(self, text: str, level: int = 6) -> None:
        """A line of the daemon's own."""
        self._logs.say(self._unit, text, level)

    def take(self, stream: str, pid: int, lines: Lines, data: bytes) -> None:
        """What has come on a stream; b"" is its end."""
        room = self._limit.room(self._loop.time())
        if room > 0 and self._limit.dropped:
            self._confess()
        kept, dropped = (lines.end()[: max(room, 0)], 0) if not data else lines.feed(data, room)
        if kept:
            self._logs.write(self._unit, stream, pid, kept)
        if dropped and not self._limit.dropped and self._timer is None:
            self.say(
                f"it prints more than {BURST} lines within {INTERVAL:g} s: what is beyond that is dropped", _WARNING
            )
            self._timer = self._loop.call_at(self._limit.reopens(), self._reopened)
        self._limit.take(len(kept), dropped)

    def _reopened(self) -> None:
        self._timer = None
        self._confess()

    def _confess(self) -> None:
        dropped = self._limit.confess()
        if dropped:
            self.say(f"{dropped} lines of it were dropped", _WARNING)

    def close(self) -> None:
        """The daemon ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._confess()
        for pipe in tuple(self.pipes):
            pipe.close()


class Pipe:
    """One stream of one program, read once that is known (`listen`).

    Its writing end is the caller's to close once the program has it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outlet: Outlet, stream: str) -> None:
        self.pid = 0
        self._loop = loop
        self._outlet = outlet
        self._stream = stream
        self._lines = Lines()
        self._read, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        outlet.pipes.add(self)

    def listen(self, pid: int) -> None:
        """Take what comes, as that of `pid`: what it had printed before this was known has waited."""
        self.pid = pid
        if self._read >= 0:
            self._loop.add_reader(self._read, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._read, _CHUNK)
        except BlockingIOError:
            return
        self._outlet.take(self._stream, self.pid, self._lines, data)
        if not data:
            self._shut()

    def drain(self) -> None:
        """Take what is there, for the program has ended; what else holds the other end may still print."""
        for _ in range(_MOST_CHUNKS):
            if self._read < 0:
                return
            try:
                data = os.read(self._read, _CHUNK)
            except BlockingIOError:
                return
            self._outlet.take(self._stream, self.pid, self._lines, data)
            if not data:
                self._shut()

    def given(self) -> None:
        """The program has the writing end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def _shut(self) -> None:
        self._loop.remove_reader(self._read)
        os.close(self._read)
        self._read = -1
        self._outlet.pipes.discard(self)

    def close(self) -> None:
        """Let go of both ends."""
        self.given()
        if self._read >= 0:
            self._shut()
