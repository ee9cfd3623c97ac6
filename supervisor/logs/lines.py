"""What a program prints, as lines, and how many of them are kept. Pure: bytes and the time in, lines out."""

from __future__ import annotations

LONGEST = 8192
"""Bytes of a line; a longer one is kept as several."""


class Lines:
    """One stream. Lines are split at newlines only; whatever else they hold stays as it is."""

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, data: bytes, most: int) -> tuple[list[bytes], int]:
        """The first `most` lines that `data` completes, and the number of those after them, which are dropped."""
        if most <= 0:
            # A flood costs no more than looking for newlines.
            dropped = data.count(b"\n")
            if dropped:
                self._begun = data[data.rfind(b"\n") + 1 :][:LONGEST]
            elif len(self._begun) + len(data) > LONGEST:
                dropped, self._begun = 1, b""
            else:
                self._begun += data
            return [], dropped
        *whole, self._begun = (self._begun + data).split(b"\n")
        lines = (
            whole if all(len(line) <= LONGEST for line in whole) else [part for line in whole for part in _cut(line)]
        )
        if len(self._begun) > LONGEST:
            *parts, self._begun = _cut(self._begun)
            lines += parts
        return lines[:most], max(len(lines) - most, 0)

    def end(self) -> list[bytes]:
        """The stream has ended: what was not completed."""
        begun, self._begun = self._begun, b""
        return [begun] if begun else []


def _cut(line: bytes) -> list[bytes]:
    return [line[start : start + LONGEST] for start in range(0, len(line), LONGEST)] or [b""]


class RateLimit:
    """At most `burst` lines in each `interval` seconds, as journald has it (journald.conf(5), RateLimitBurst=).

    No limit where one of them is 0.
    """

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval
        self.burst = burst
        self.dropped = 0
        """Lines that were refused and of which nobody has been told yet."""
        self._began = float("-inf")
        self._taken = 0

    def room(self, now: float) -> int:
        """How many lines may come now."""
        if not self.interval or not self.burst:
            return 1 << 30
        if now - self._began >= self.interval:
            self._began, self._taken = now, 0
        return self.burst - self._taken

    def take(self, kept: int, dropped: int) -> None:
        """So many were kept, and so many refused."""
        self._taken += kept
        self.dropped += dropped

    def reopens(self) -> float:
        """When lines may come again."""
        return self._began + self.interval

    def confess(self) -> int:
        """The number of refused lines that nobody was told of; it is said now."""
        dropped, self.dropped = self.dropped, 0
        return dropped
