"""Messages of sd_notify(3) from a sandbox: read from outside, bounded, and each with who has sent it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from osmoda.host import paths, syscalls
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.service_events import Notified

if TYPE_CHECKING:
    import select

MOST_BYTES = 4096  # of a message, as systemd has it
A_SECOND = 200
"""Messages that are read in a second; then whoever sends more waits, as the queue of the socket is full."""

_AT_ONCE = 64
_POLLIN = 1  # EPOLLIN
_FOLDER = "notify"


class Notifications:
    """What comes on one socket, as events of `poll`."""

    def __init__(self, channel: socket.socket, poll: select.epoll, tier: int, path: str = "") -> None:
        self._channel = channel
        self._poll = poll
        self._tier = tier
        self._path = path
        self._timer = -1
        self._main = 0
        self._window, self._count = 0.0, 0

    def listen(self, main: int) -> None:
        """From now on messages are events; `main` is the command's pid on the host."""
        self._main = main
        self._poll.register(self._channel, _POLLIN)

    def read(self) -> list[Notified]:
        """What has come; never waits. Of a flood only a little is read, and the rest later."""
        if not self._main:
            return []  # the next message but one says who that is
        now = time.monotonic()
        if self._timer >= 0:
            if now < self._window + 1.0:
                return []
            self._go_on()
        if now >= self._window + 1.0:
            self._window, self._count = now, 0
        found: list[Notified] = []
        for _ in range(_AT_ONCE):
            if self._count >= A_SECOND:
                self._pause(self._window + 1.0 - now)
                break
            try:
                message = self._receive()
            except BlockingIOError:
                break
            self._count += 1
            if message is not None:
                found.append(message)
        return found

    def _receive(self) -> Notified | None:
        """The next message, None for one that does not count. Raises BlockingIOError."""
        room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 253)
        data, ancillary, flags, _ = self._channel.recvmsg(
            MOST_BYTES, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
        pid, uid = 0, -1
        for _, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS:
                for index in range(0, len(content) - 3, 4):
                    _drop(int.from_bytes(content[index : index + 4], "little"))
            elif kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = struct.unpack("iII", content)
        if flags & socket.MSG_TRUNC or not data:
            return None  # systemd takes no part of a message either
        if self._tier == 0:
            # The directory of the socket is this user's alone; root may have written, as it may do anything.
            return Notified(data, pid, pid == self._main) if uid in (0, os.geteuid()) else None
        inside = _inside(pid)
        return Notified(data, inside, pid == self._main) if inside >= 0 else None

    def _pause(self, seconds: float) -> None:
        self._timer = syscalls.timerfd(max(seconds, 0.001))
        self._poll.unregister(self._channel)
        self._poll.register(self._timer, _POLLIN)

    def _go_on(self) -> None:
        self._poll.unregister(self._timer)
        os.close(self._timer)
        self._timer = -1
        self._poll.register(self._channel, _POLLIN)

    def close(self) -> None:
        """Read no more."""
        self._channel.close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1
        if self._path:
            _remove(self._path)
            self._path = ""


def own_socket(identity: str) -> tuple[socket.socket, str]:
    """A socket on the host and its path, for a command of tier 0, which has no file system of its own.

    Raises LaunchError.
    """
    try:
        folder = paths.own_directory("runtime", _FOLDER)
        for name in os.listdir(folder):
            if _is_dead(name):
                _remove(f"{folder}/{name}")
        path = f"{folder}/{identity}"
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except (OSError, paths.UntrustedDirectory) as error:
        raise LaunchError(f"there is no place for notifications: {error}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        made.bind(path)
    except OSError as error:
        made.close()
        raise LaunchError(f"notifications cannot be received at {path}: {error.strerror}") from None
    return made, path


def _is_dead(name: str) -> bool:
    """Whether the process that has made a socket of this name (`launch.new_identity`) was killed, and left it."""
    try:
        os.kill(int(name.partition("-")[0], 16), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False  # it lives, and is another user's: a process of that number since; or the name is none of ours
    return False


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # the command has done so


def _drop(fd: int) -> None:
    """Close a descriptor that nobody wants (FDSTORE=1), without waiting for what it leads to."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as held:
            # Else close(2) could take as long as whoever has sent it wishes (SO_LINGER); a kind of socket that knows no
            # such thing does not wait.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    os.close(fd)


def _inside(pid: int) -> int:
    """The number of `pid` in its sandbox: 0 when it has ended, -1 when it is a process of the host's."""
    try:
        with open(f"/proc/{pid}/status", "rb") as stream:
            numbers = stream.read().partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
    except OSError:
        return 0
    return int(numbers[-1]) if len(numbers) > 1 else -1
