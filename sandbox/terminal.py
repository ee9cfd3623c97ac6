"""The relay between the caller's terminal and the sandbox's own (pty(7), termios(3))."""

from __future__ import annotations

import fcntl
import posix
import select
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from osmoda.sandbox.monitor import Monitor, Watched
    from osmoda.sandbox.pooled import Remote
else:
    import _signal

_CHUNK = 65536
_SIGTSTP, _SIGWINCH = 20, 28


class Relay:
    """Bytes both ways, window size, job control.

    The caller's terminal is raw while the command runs, so that Ctrl-C and Ctrl-Z are the inner terminal's affair;
    `close` restores it.
    """

    def __init__(self, monitor: Monitor, watched: Watched | Remote) -> None:
        self._monitor = monitor
        self._watched = watched
        self._master = -1
        self._input = 0 if posix.isatty(0) else -1
        self._output = next((fd for fd in (1, 2, 0) if posix.isatty(fd)), 1)
        self._saved = termios.tcgetattr(self._input) if self._input >= 0 else None
        self._before = _signal.signal(_SIGWINCH, lambda *_: self._resize())
        watched.on_terminal = self._begin
        watched.on_stop = self._stop

    def _begin(self, master: int) -> None:
        self._master = master
        posix.set_blocking(master, False)
        if self._saved is not None:
            termios.tcsetattr(master, termios.TCSANOW, self._saved)
        self._resize()
        self._raw()
        self._monitor.register(master, self._from_sandbox)
        if self._input >= 0:
            self._monitor.register(self._input, self._from_caller)

    def _raw(self) -> None:
        if self._saved is None or not self._in_foreground():
            return
        mode = [*self._saved[:6], list(self._saved[6])]
        iflag, oflag, cflag, lflag = mode[0], mode[1], mode[2], mode[3]
        iflag &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        oflag &= ~termios.OPOST
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        lflag &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[:4] = [iflag, oflag, cflag, lflag]
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._input, termios.TCSADRAIN, mode)

    def _in_foreground(self) -> bool:
        try:
            return posix.tcgetpgrp(self._input) == posix.getpgrp()
        except OSError:
            return False

    def _resize(self) -> None:
        if self._master < 0:
            return
        size = fcntl.ioctl(self._output, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _from_sandbox(self) -> None:
        try:
            data = posix.read(self._master, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            # EIO: the last process that had the inner terminal open is gone.
            data = b""
        if not data:
            self._monitor.unregister(self._master)
            return
        _write_all(self._output, data)

    def _from_caller(self) -> None:
        try:
            data = posix.read(self._input, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The caller's terminal is gone: for the command, a hang-up.
            self._monitor.unregister(self._input)
            self._watched.send_signal(1)
            return
        _write_all(self._master, data)

    def _stop(self) -> None:
        """The command was stopped (Ctrl-Z): give the terminal back and stop too; go on together."""
        self._restore()
        # The whole job, as the terminal would; what no shell could continue, the kernel does not stop (setpgid(2)).
        posix.kill(0, _SIGTSTP)
        self._raw()
        self._resize()
        self._watched.go_on()

    def _restore(self) -> None:
        if self._saved is not None and self._in_foreground():
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._saved)

    def close(self) -> None:
        """Write what the sandbox still had to say, and give the caller its terminal back."""
        while self._master >= 0 and self._monitor.watches(self._master):
            self._from_sandbox_now()
        if self._input >= 0:
            self._monitor.unregister(self._input)
        self._restore()
        _signal.signal(_SIGWINCH, self._before)
        if self._master >= 0:
            posix.close(self._master)
            self._master = -1

    def _from_sandbox_now(self) -> None:
        ready = select.select([self._master], [], [], 0)[0]
        if ready:
            self._from_sandbox()
        else:
            self._monitor.unregister(self._master)


def _write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, waiting while the other end is slow."""
    while data:
        try:
            data = data[posix.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            # The other end is gone; its own event says so.
            return
