"""The event loop beside running sandboxes: denials, time-outs, ends.

One `Monitor` watches any number of sandboxes from one thread. It decides nothing about access: the kernel refuses on
its own, and the answer to a reported call is always an error. When the monitor dies, so do its sandboxes
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import _socket
import fcntl
import marshal
import posix
import select
import time

from osmoda.host import syscalls
from osmoda.host.frozen import frozen, values_of
from osmoda.sandbox import init, launch
from osmoda.sandbox.errors import CommandError, LaunchError, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.launch import Launched

_NOTIF_RECV = 0xC0502100
_NOTIF_SEND = 0xC0182101
_NOTIF_ID_VALID = 0x40082102
_EPERM = 1
_SIGKILL = 9
_SIGTERM = 15
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL after a time-out

# A program that does nothing but provoke refusals must not take a core of the host's with it.
_DENIALS_PER_SECOND = 2000
_DISTINCT_DENIALS = 512


@frozen
class RawDenial:
    """A refused system call as the kernel reported it; `denials.interpret` puts it into words.

    `time` is seconds since the epoch, `pid` as the host counts, `arguments` the six registers; `count` tells how often
    the call came with the same first two. What a pointer points to is not looked at: the program could change it.
    """

    time: float
    pid: int
    command: str
    number: int
    architecture: int
    arguments: tuple[int, ...]
    count: int


@frozen
class Outcome:
    """How a run ended.

    `status` is the exit code by convention: the command's own, 128+n when a signal ended it, 124 timed out. CPU times
    are seconds, `peak_memory` bytes, `duration` seconds of wall-clock time. `refused` counts all refused calls;
    `denials` holds the distinct ones.
    """

    status: int
    signal: int
    timed_out: bool
    user_time: float
    system_time: float
    peak_memory: int
    duration: float
    oom_kills: int
    forks_refused: int
    refused: int
    denials: tuple[RawDenial, ...]


class Watched:
    """One running sandbox. `on_end` is called once, with an Outcome or the error that kept it from starting."""

    def __init__(self, monitor: Monitor, launched: Launched, on_end: Callable[[Outcome | SandboxError], None]) -> None:
        self.monitor = monitor
        self.launched = launched
        self.on_end = on_end
        self.on_terminal: Callable[[int], None] | None = None
        self.on_stop: Callable[[], None] | None = None
        self.listener = -1
        self.command = -1
        self.started = time.monotonic()
        self.timed_out = False
        self.refused = 0
        self.denials: dict[tuple[object, ...], RawDenial] = {}
        self._counts: dict[tuple[object, ...], int] = {}
        self._window = 0
        self._window_count = 0
        self._end: tuple[int, float, float, int] | None = None
        self._error: SandboxError | None = None
        self._pending: list[int] = []

    def send_signal(self, number: int) -> None:
        """Signal the command; before it has started, or after it has ended, remember or forget it."""
        if number == _SIGKILL:
            syscalls.pidfd_send_signal(self.launched.pidfd, _SIGKILL)
        elif self.command < 0:
            self._pending.append(number)
        else:
            try:
                syscalls.pidfd_send_signal(self.command, number)
            except ProcessLookupError:
                return

    def go_on(self) -> None:
        """Let pid 1 go on: start the command on its terminal, or continue it with its process group after `on_stop`."""
        try:
            self.launched.control.send(b"C")
        except OSError:
            return  # it was killed meanwhile

    # --- messages of pid 1 ---

    def control_ready(self) -> None:
        data, flags = b"", 0
        ancillary: list[tuple[int, int, bytes]] = []
        try:
            data, ancillary, flags, _ = self.launched.control.recvmsg(65536, 64, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass  # it ended before it had read what was sent to it
        if not data:
            self._init_gone()
            return
        descriptors = [
            int.from_bytes(packed[i : i + 4], "little") for _, _, packed in ancillary for i in range(0, len(packed), 4)
        ]
        kind = data[:1]
        if flags & _socket.MSG_CTRUNC:
            self._error = LaunchError("there are too many open files (RLIMIT_NOFILE): too many sandboxes are running")
            self.send_signal(_SIGKILL)
        elif kind == b"L":
            present = list(data[1:])
            if present[0]:
                self.listener = descriptors.pop(0)
                self.monitor.register(self.listener, self.notification_ready)
            if present[1] and self.on_terminal:
                self.on_terminal(descriptors.pop(0))
                self.go_on()
        elif kind == b"P":
            self.command = descriptors.pop(0)
            for number in self._pending:
                self.send_signal(number)
        elif kind == b"Z":
            if self.on_stop:
                self.on_stop()
        elif kind == b"S":
            self._end = marshal.loads(data[1:])
            # Every process of the sandbox but its pid 1 is gone: the caller need not wait for the namespaces to be
            # torn down.
            self._report()
        elif kind == b"E":
            self._error = self._explain(*marshal.loads(data[1:]))
        for fd in descriptors:
            posix.close(fd)

    def _explain(self, step: int, number: int, text: str) -> SandboxError:
        if step == init.COMMAND:
            if text.startswith("execve "):
                return CommandError(text.removeprefix("execve "), 127 if number == 2 else 126)
            return LaunchError(text)
        operation = self.launched.plan.operations[step]
        return LaunchError(f"{text} ({operation.layer}, {operation.origin}): {operation.describe()}")

    # --- refused calls ---

    def notification_ready(self) -> None:
        now = int(time.monotonic())
        if now != self._window:
            self._window, self._window_count = now, 0
        self._window_count += 1
        if self._window_count > _DENIALS_PER_SECOND:
            # Leave them waiting: each caller is blocked in its refused call until the next second.
            self.monitor.pause(self.listener, self.notification_ready, now + 1)
            return
        # An event of the same batch may have closed this number and given it to another sandbox's listener: what is not
        # pending now would be waited for, and with it every other sandbox.
        look = select.poll()
        look.register(self.listener, select.POLLIN)
        state = look.poll(0)
        if not state or not state[0][1] & select.POLLIN:
            if state:
                self.monitor.unregister(self.listener)
            return
        request = bytearray(80)
        try:
            fcntl.ioctl(self.listener, _NOTIF_RECV, request)
        except OSError as error:
            # ENOENT: the caller was killed meanwhile. Anything else ends the reporting, and the kernel answers ENOSYS.
            if error.errno != 2:
                self.monitor.unregister(self.listener)
            return
        cookie = bytes(request[0:8])
        self._record(request)
        # id, val, error, flags: never SECCOMP_USER_NOTIF_FLAG_CONTINUE.
        answer = cookie + bytes(8) + (-_EPERM).to_bytes(4, "little", signed=True) + bytes(4)
        try:
            fcntl.ioctl(self.listener, _NOTIF_SEND, answer)
        except OSError as error:
            if error.errno != 2:
                raise

    def _record(self, request: bytearray) -> None:
        self.refused += 1
        pid = int.from_bytes(request[8:12], "little")
        number = int.from_bytes(request[16:20], "little", signed=True)
        architecture = int.from_bytes(request[20:24], "little")
        arguments = tuple([int.from_bytes(request[i : i + 8], "little") for i in range(32, 80, 8)])
        key = (number, architecture, arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF)
        if key in self.denials:
            self._counts[key] += 1
            return
        if len(self.denials) >= _DISTINCT_DENIALS:
            return
        name = _first_line(f"/proc/{pid}/comm")
        self.denials[key] = RawDenial(time.time(), pid, name, number, architecture, arguments, 1)
        self._counts[key] = 1

    # --- the end ---

    def expire(self) -> None:
        """The time is up: ask the command to end, and end it a little later."""
        self.timed_out = True
        self.send_signal(_SIGTERM)
        self.monitor.call_at(time.monotonic() + _GRACE, lambda: self.send_signal(_SIGKILL), self)

    def init_ready(self) -> None:
        """Its pid 1 is dead, and with it every process of its namespace."""
        while self.monitor.watches(self.launched.control.fileno()):
            self.control_ready()

    def _init_gone(self) -> None:
        monitor = self.monitor
        monitor.unregister(self.launched.control.fileno())
        monitor.unregister(self.launched.pidfd)
        if self.listener >= 0:
            monitor.unregister(self.listener)
            posix.close(self.listener)
        if self.command >= 0:
            posix.close(self.command)
        _, raw, user, system, peak = syscalls.wait4(self.launched.pid, 0)
        if self._end is None:
            self._end = (raw, user, system, peak)
        self._report()
        launch.finish(self.launched)
        monitor.forget(self)

    def _report(self) -> None:
        """Tell the caller, once."""
        callback, self.on_end = self.on_end, _told
        if callback is _told:
            return
        if self._error is not None:
            callback(self._error)
            return
        assert self._end is not None
        raw, user, system, peak = self._end
        code = posix.waitstatus_to_exitcode(raw)
        number = -code if code < 0 else 0
        group = self.launched.group
        callback(
            Outcome(
                status=124 if self.timed_out else 128 + number if number else code,
                signal=number,
                timed_out=self.timed_out,
                user_time=user,
                system_time=system,
                peak_memory=(group.peak_memory() if group else 0) or peak,
                duration=time.monotonic() - self.started,
                oom_kills=group.oom_kills() if group else 0,
                forks_refused=group.pids_refused() if group else 0,
                refused=self.refused,
                denials=tuple(
                    [RawDenial(*[*values_of(denial)[:-1], self._counts[key]]) for key, denial in self.denials.items()]
                ),
            )
        )


def _told(_: Outcome | SandboxError) -> None:
    """The caller has had its answer."""


class Monitor:
    """The loop: descriptors and what to call when they can be read, and points in time."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.sandboxes: set[Watched] = set()

    def watch(
        self, launched: Launched, on_end: Callable[[Outcome | SandboxError], None], timeout: float = 0.0
    ) -> Watched:
        """Begin to watch a launched sandbox; `timeout` in seconds, 0 for none."""
        watched = Watched(self, launched, on_end)
        self.sandboxes.add(watched)
        self.register(launched.control.fileno(), watched.control_ready)
        self.register(launched.pidfd, watched.init_ready)
        if timeout:
            self.call_at(watched.started + timeout, watched.expire, watched)
        return watched

    def register(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` can be read or has ended."""
        self._ready[fd] = callback
        self._poll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether `fd` is watched."""
        return fd in self._ready

    def call_at(self, when: float, callback: Callable[[], None], owner: Watched | None = None) -> None:
        """Call `callback` at `when` (time.monotonic); not any more once `owner` has ended."""

        def unless_ended() -> None:
            if owner is None or owner in self.sandboxes:
                callback()

        self._timers.append((when, unless_ended))

    def pause(self, fd: int, callback: Callable[[], None], until: float) -> None:
        """Do not watch `fd` before `until`."""
        self.unregister(fd)
        owners = [watched for watched in self.sandboxes if watched.listener == fd]
        for watched in owners:
            self.call_at(until, lambda: self.register(fd, callback), watched)

    def forget(self, watched: Watched) -> None:
        """The sandbox is gone, and all that was its."""
        self.sandboxes.discard(watched)

    def step(self, limit: float | None = None) -> None:
        """Wait for the next event, `limit` seconds at most, and handle it."""
        if self._timers:
            now = time.monotonic()
            soonest = max(min(when for when, _ in self._timers) - now, 0.0)
            limit = soonest if limit is None else min(limit, soonest)
        for fd, _ in self._poll.poll(-1 if limit is None else limit):
            # An earlier event of the same batch may have ended this one.
            callback = self._ready.get(fd)
            if callback is not None:
                callback()
        if self._timers:
            now = time.monotonic()
            due = [entry for entry in self._timers if entry[0] <= now]
            self._timers = [entry for entry in self._timers if entry[0] > now]
            for _, callback in due:
                callback()

    def close(self) -> None:
        """Kill what still runs, wait until it is gone, and close the loop."""
        for watched in tuple(self.sandboxes):
            watched.send_signal(_SIGKILL)
        while self.sandboxes:
            self.step()
        launch.dismiss_janitor()
        self._poll.close()


def _first_line(path: str) -> str:
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return posix.read(fd, 256).decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
    finally:
        posix.close(fd)
