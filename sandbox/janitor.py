"""A small process that removes the control groups of a monitor that was killed.

Everything else of a sandbox goes by itself when its monitor dies: processes by the parent-death signal, mounts and
networks with their namespaces, the uid's lease with the last descriptor. A cgroup directory stays until somebody
removes it, and the monitor may have left its own place for a leaf below it.
"""

from __future__ import annotations

import posix
import time

from osmoda.host import cgroup, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal

_SIGCHLD = 17
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 1.0  # seconds
_AS_LONG = 30.0  # seconds for the kernel to end a killed pid namespace


class Janitor:
    """The other end: tell it of groups with `mind` and `release`. It ends when this process does, or on `close`."""

    def __init__(self) -> None:
        """Start it. Raises OSError."""
        self._minded: dict[str, None] = {}
        self._start()

    def _start(self) -> None:
        read, self._write = posix.pipe2(posix.O_CLOEXEC)
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (1, 2, 3, 10, 12, 15))
        try:
            self._pid, pidfd = syscalls.clone3(0, _SIGCHLD)
            if self._pid == 0:
                posix.dup2(read, 0, inheritable=False)
                _wait_for_the_end()
        except OSError:
            posix.close(self._write)
            raise
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
            posix.close(read)
        posix.close(pidfd)

    def mind(self, group: cgroup.Group) -> None:
        """Remove `group` should this process die; to be called before it is made. Raises OSError."""
        line = _line(group)
        try:
            self._tell("+", line)
        except BrokenPipeError:
            # It was killed: another one, which is told all.
            posix.close(self._write)
            posix.waitpid(self._pid, 0)
            self._start()
            for text in (*self._minded, line):
                self._tell("+", text)
        self._minded[line] = None

    def release(self, group: cgroup.Group) -> None:
        """This process has removed `group` itself."""
        line = _line(group)
        self._minded.pop(line, None)
        try:
            self._tell("-", line)
        except BrokenPipeError:
            return  # it was killed; the next one will not be told of this group

    def _tell(self, sign: str, line: str) -> None:
        posix.write(self._write, f"{sign}{line}\n".encode())

    def close(self) -> None:
        """End it; where groups could not be removed yet, it ends when they are."""
        idle = not self._minded
        if idle:
            self._dismiss()
        posix.close(self._write)
        if idle:
            posix.waitpid(self._pid, 0)

    def _dismiss(self) -> None:
        """Nothing is left for it: in its monitor's own leaf, the two would wait for each other to leave that."""
        try:
            self._tell(".", "")
        except BrokenPipeError:
            return  # it was killed


def _line(group: cgroup.Group) -> str:
    return f"{group.version} {' '.join(group.directories)}"


def _wait_for_the_end() -> NoReturn:
    """The janitor itself: it holds the pipe and the place's lock; its signals blocked, only SIGKILL ends it early."""
    try:
        syscalls.close_range(cgroup.keep_lock(1), 0x7FFFFFFF)
        syscalls.prctl_set_name(b"osmoda-janitor")
        posix.setsid()
        posix.chdir(b"/")
        pending = b""
        left: dict[bytes, None] = {}
        while True:
            data = posix.read(0, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line[:1] == b"+":
                    left[line[1:]] = None
                elif line[:1] == b".":
                    posix._exit(0)  # the place is its monitor's to leave
                else:
                    left.pop(line[1:], None)
        for line in left:
            version, _, directories = line.decode().partition(" ")
            _remove(cgroup.Group(int(version), tuple(directories.split(" "))))
        _patiently(cgroup.leave)
    finally:
        posix._exit(0)


def _remove(group: cgroup.Group) -> None:
    def removed() -> bool:
        try:
            if group.remove():
                return True
            group.kill()
        except OSError:
            return False  # tried again
        return False

    # A process that waits for a file system which does not answer is killed and stays until that does: so does this.
    _patiently(removed, lambda: bool(group.processes()))


def _patiently(done: Callable[[], bool], occupied: Callable[[], bool] = lambda: False) -> None:
    """Until it is done: for a while, and then as long as it is `occupied`."""
    pause, end = _FIRST_PAUSE, time.monotonic() + _AS_LONG
    while not done() and (time.monotonic() < end or occupied()):
        time.sleep(pause)
        pause = min(pause * 1.1, _LONGEST_PAUSE)
