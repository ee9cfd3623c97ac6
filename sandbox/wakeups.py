"""Signals, keys and news of threads as one thing to wait for (signal.set_wakeup_fd), for a verb that goes on and on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals after which the verb is over: it cleans up, and ends by the same signal (`end_by`)."""


class Wakeups:
    """While it is entered, `ENDING` and `others` do nothing but show in `wait`; what was ignored stays ignored."""

    def __init__(self, others: tuple[int, ...] = ()) -> None:
        self._numbers = (*ENDING, *others)
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: list[tuple[int, Any]] = []
        self._woken = -1

    def __enter__(self) -> Self:
        self._woken = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before.append((number, signal.signal(number, _noted)))
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before:
            signal.signal(number, handler)
        # The pipe stays open: a thread may still `wake`, and must not write to what has the number next.

    def wake(self) -> None:
        """There is news; from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: somebody will wake up
            os.write(self._write, b"\0")

    def wait(self, keyboard: int = -1) -> tuple[str | None, list[int]]:
        """Keys that were pressed (None: `keyboard` is gone) and numbers of signals that came; neither when woken."""
        readable, _, _ = select.select([self._read, *([keyboard] if keyboard >= 0 else [])], [], [])
        signals = [number for number in os.read(self._read, 4096) if number] if self._read in readable else []
        if keyboard not in readable:
            return "", signals
        try:
            return os.read(keyboard, 4096).decode(errors="replace") or None, signals
        except OSError:
            return None, signals


def end_by(number: int) -> int:
    """End as if signal `number` had not been caught; for 0, the exit code 0."""
    if number:
        signal.raise_signal(number)
    return 128 + number if number else 0


def _noted(number: int, frame: FrameType | None) -> None:
    """The pipe has the signal already."""
