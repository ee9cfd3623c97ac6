"""The screen of `osmoda-sandbox top`: keys, window size and signals; the terminal is left as it was found."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import time
from typing import TYPE_CHECKING, Any, Self

from rich.live import Live as Screen

from osmoda.sandbox import top
from osmoda.sandbox.live import Live
from osmoda.sandbox.wakeups import ENDING, Wakeups, end_by

if TYPE_CHECKING:
    from rich.console import Console

_NAP = 0.05  # seconds after a drawing: what comes in a burst is drawn at once


def show(console: Console, interval: float) -> int:
    """Show it until it is asked to end; the exit code."""
    with Wakeups((signal.SIGWINCH, signal.SIGTSTP)) as wakeups, Live(interval, wakeups.wake) as live:
        number = _attend(console, interval, wakeups, live)
    return end_by(number)


def _attend(console: Console, interval: float, wakeups: Wakeups, live: Live) -> int:
    """The signal that has ended it, 0 for the key."""
    by, habitual = top.ORDERS[0], False
    with _Terminal(console) as terminal:
        while True:
            live.take()
            terminal.draw(top.page(live, console.size, by=by, habitual=habitual, interval=interval))
            live.refusals.changed()  # seen
            time.sleep(_NAP)
            keys, signals = wakeups.wait(terminal.keyboard)
            for number in signals:
                if number in ENDING:
                    return number
                if number == signal.SIGTSTP:
                    terminal.stop()
            if keys is None or "q" in keys:
                return 0
            for key in keys:
                if key == "s":
                    by = top.ORDERS[(top.ORDERS.index(by) + 1) % len(top.ORDERS)]
                elif key == "h":
                    habitual = not habitual


class _Terminal:
    """The other screen and unbuffered keys without echo, from `__enter__` to `__exit__`."""

    def __init__(self, console: Console) -> None:
        self.keyboard = 0 if os.isatty(0) else -1
        self._console = console
        self._settings: list[Any] | None = None
        self._screen: Screen | None = None

    def __enter__(self) -> Self:
        try:
            if self.keyboard >= 0:
                self._settings = termios.tcgetattr(self.keyboard)
                mode = [*self._settings[:6], list(self._settings[6])]
                mode[3] &= ~(termios.ICANON | termios.ECHO)
                mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
                termios.tcsetattr(self.keyboard, termios.TCSADRAIN, mode)
            self._screen = Screen(
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._screen.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # A terminal that is gone (a closed window, a lost connection) cannot be restored, and need not be.
        if self._screen is not None:
            with contextlib.suppress(OSError):
                self._screen.stop()
            self._screen = None
        if self._settings is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self.keyboard, termios.TCSADRAIN, self._settings)
            self._settings = None

    def draw(self, page: Any) -> None:
        """Show it."""
        assert self._screen is not None
        self._screen.update(page, refresh=True)

    def stop(self) -> None:
        """Ctrl-Z: give the terminal back, stop, and go on in a new screen."""
        self.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()
