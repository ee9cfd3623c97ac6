"""The event loop beside running sandboxes: denials, time-outs, ends.

One `Monitor` watches any number of sandboxes from one thread. It decides nothing about access: the kernel refuses on
its own, and the answer to a reported call is always an error. When the monitor dies, so do its sandboxes
(PR_SET_PDEATHSIG).

The loop (`Monitor`) and a sandbox that it watches (`Watched`) are two ideas in one module: in two they would cost every
launch 0.2 to 0.3 ms of processor time more, a hundredth of all.
"""

from __future__ import annotations

import _socket
import fcntl
import marshal
import posix
import select
import time

from osmoda.host import paths, syscalls
from osmoda.host.frozen import frozen, values_of
from osmoda.sandbox import covers, errors, init, launch
from osmoda.sandbox.errors import CommandError, LaunchError, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from osmoda.ledger.client import Ticket
    from osmoda.sandbox.doorway import Doorway
    from osmoda.sandbox.launch import Launched

    _Timer = tuple[float, Callable[[], None]]

_NOTIF_RECV = 0xC0502100
_NOTIF_SEND = 0xC0182101
_NOTIF_ID_VALID = 0x40082102
_EPERM = 1
_LIMITED = (11, 12, 23, 24)  # EAGAIN, ENOMEM, ENFILE, EMFILE: not the command's fault
_SIGKILL = 9
_SIGTERM = 15
_MSG_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL after a time-out
_SET_UP = 20.0  # seconds for all that comes before the command
_DYING = 10.0  # seconds for a killed sandbox to be gone

# A program that does nothing but provoke refusals must not take a core of the host's with it.
_DENIALS_PER_SECOND = 2000
_DISTINCT_DENIALS = 512
_TELLING = 0.25  # seconds between two times that somebody who watches is told of a sandbox's refusals


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
    `denials` holds the distinct ones. `network` holds what the gateway refused: (time, what, port, reason, origin,
    count).
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
    network: tuple[tuple[Any, ...], ...]
    denials: tuple[RawDenial, ...]


class Watched:
    """One running sandbox. `on_end` is called once, with an Outcome or the error that kept it from starting."""

    def __init__(self, monitor: Monitor, launched: Launched, on_end: Callable[[Outcome | SandboxError], None]) -> None:
        self.monitor = monitor
        self.launched = launched
        self.on_end = on_end
        self.on_terminal: Callable[[int], None] | None = None
        self.on_stop: Callable[[], None] | None = None
        self.on_ready: Callable[[], None] | None = None
        """Called when all is applied: a sandbox that waits in a pool can be given its command."""
        self.on_start: Callable[[], None] | None = None
        self.on_main_end: Callable[[int], None] | None = None
        """Called with the wait status of a supervised command that has ended, whatever else is still there."""
        self.by_order = False
        """Its first process must not be killed before it has killed the others itself: tier 0, supervised."""
        self.notify = -1
        """The socket for notifications, as it was made inside: whoever takes it puts -1 in its place."""
        self.sockets: list[int] = []
        """The way out of a waiting sandbox, as it was made inside, until it has a doorway."""
        self.listener = -1
        self._mounts: covers.Mounts | None = None
        self.command = -1
        self.started = time.monotonic()
        self.timed_out = False
        self.refused = 0
        self.denials: dict[tuple[object, ...], RawDenial] = {}
        self._counts: dict[tuple[object, ...], int] = {}
        self._untold: set[tuple[object, ...]] = set()
        self._window = 0
        self._window_count = 0
        self._end: tuple[int, float, float, int] | None = None
        self._error: SandboxError | None = None
        self._pending: list[int] = []
        self._dying: _Timer | None = None
        self.killed = ""
        """How its pid 1 ended while the command ran, where nobody asked this process to end it."""
        self._deadline = monitor.call_at(self.started + _SET_UP, self._not_set_up, self)
        # What the command waits for; a command that waits for nothing is not told to go on.
        self._to_come: set[str] = {"terminal"} if launched.command.terminals else set()
        if launched.doorway is not None or launched.plan.egress:
            self._to_come.add("gateway")
        if launched.doorway is not None:
            launched.doorway.watch(self)
        if launched.recorded:
            self._to_come.add("ledger")
            monitor.recorded = True
        if launched.ticket is not None:
            self._await_ledger(launched.ticket)

    def send_signal(self, number: int) -> None:
        """Signal the command; before it has started, or after it has ended, remember or forget it."""
        if number == _SIGKILL:
            if self._dying is None:
                self._dying = self.monitor.call_at(time.monotonic() + _DYING, self._does_not_end, self)
            if not (self.by_order and self.order(b"K")):
                syscalls.pidfd_send_signal(self.launched.pidfd, _SIGKILL)
        else:
            self.signal_command(number)

    def signal_command(self, number: int) -> None:
        """The same for the command alone, with SIGKILL too."""
        if self.command < 0:
            self._pending.append(number)
        else:
            try:
                syscalls.pidfd_send_signal(self.command, number)
            except ProcessLookupError:
                return

    def order(self, message: bytes) -> bool:
        """Tell the first process of a supervised sandbox what to do; false when it has ended, or does not listen."""
        try:
            self.launched.control.send(message, _socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def may_start(self, thing: str) -> None:
        """`thing` ("terminal", "gateway") is there; with the last of them the command starts."""
        self._to_come.discard(thing)
        if not self._to_come:
            self.go_on()

    def _await_ledger(self, ticket: Ticket) -> None:
        from osmoda.sandbox import recording

        def told(error: str) -> None:
            if error:
                self.fail(recording.not_run(error))
            else:
                self.may_start("ledger")

        recording.recorder().attend(self.monitor, ticket, told)

    def _put_on_ledger(self, argv: tuple[str, ...], words: int, digest: str) -> None:
        """A sandbox that has waited has its command."""
        from osmoda.sandbox import recording

        try:
            self.launched.ticket = recording.recorder().launch(self.launched, argv, words, digest)
        except SandboxError as error:
            self.fail(error)
        else:
            self._await_ledger(self.launched.ticket)

    def fail(self, error: SandboxError) -> None:
        """It cannot go on: what is there of it is ended, and `error` is the outcome."""
        self._error = self._error or error
        self.send_signal(_SIGKILL)

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
            data, ancillary, flags, _ = self.launched.control.recvmsg(65536, 64, _MSG_FLAGS)
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
            self.fail(LaunchError("there are too many open files (RLIMIT_NOFILE): too many sandboxes are running"))
        elif kind == b"L":
            present = list(data[1:])
            if present[0]:
                self.listener = descriptors.pop(0)
                self.monitor.register(self.listener, self.notification_ready)
            if present[1] and self.on_terminal:
                self.on_terminal(descriptors.pop(0))
                if "terminal" in self._to_come:
                    self.may_start("terminal")
            if self.launched.covers:
                self._watch_covers()
            if self.on_ready:
                self.monitor.cancel(self._deadline)
                self.on_ready()
        elif kind == b"G" and self.launched.doorway is None:
            self.sockets, descriptors = descriptors, []
        elif kind == b"G":
            self._attach(descriptors)
            descriptors = []
        elif kind == b"P":
            self.command = descriptors.pop(0)
            self.monitor.cancel(self._deadline)
            if self.on_start:
                self.started = marshal.loads(data[2:])
                self.on_start()
            for number in self._pending:
                self.signal_command(number)
        elif kind == b"A":
            self._put_on_ledger(*marshal.loads(data[1:]))
        elif kind == b"N":
            self.notify = descriptors.pop(0)
        elif kind == b"M":
            self._end = marshal.loads(data[1:])
            if self.on_main_end:
                assert self._end is not None
                self.on_main_end(self._end[0])
        elif kind == b"Z":
            if self.on_stop:
                self.on_stop()
        elif kind == b"S":
            self._end = marshal.loads(data[1:])
            # Every process of the sandbox but its pid 1 is gone: the caller need not wait for the namespaces to be
            # torn down.
            self._report()
            self.send_signal(_SIGKILL)
        elif kind == b"E":
            self._error = self._explain(*marshal.loads(data[1:]))
        for fd in descriptors:
            posix.close(fd)

    def _watch_covers(self) -> None:
        try:
            self._mounts = covers.Mounts(self.launched.pid)
        except ProcessLookupError:
            return  # it has ended already
        except OSError as error:
            self.fail(LaunchError(f"what covers denied paths cannot be watched: {error.strerror}"))
            return
        self.monitor.register(self._mounts.fd, self._mounts_changed, select.EPOLLPRI)
        self._mounts_changed()

    def _mounts_changed(self) -> None:
        assert self._mounts is not None
        try:
            lost = self._mounts.without(self.launched.covers)
        except OSError as error:
            self.fail(LaunchError(f"what covers denied paths cannot be watched: {error.strerror}"))
            return
        if lost:
            path = lost.decode(errors="backslashreplace")
            self.fail(
                LaunchError(
                    f"the sandbox was ended: {path} was replaced on the host, which takes away what covers it inside; "
                    "run it again"
                )
            )

    def lead_out(self, doorway: Doorway) -> None:
        """Give a sandbox that has waited without one its way out; its command starts when the gateway has it."""
        self.launched.doorway = doorway
        self._to_come.add("gateway")
        doorway.watch(self)
        sockets, self.sockets = self.sockets, []
        self._attach(sockets)

    def _attach(self, descriptors: list[int]) -> None:
        from osmoda.sandbox.operations import networking

        names = next(op for op in self.launched.plan.operations if isinstance(op, networking.NamesOnly))
        assert self.launched.doorway is not None
        self.launched.doorway.attach(descriptors, names)

    def _explain(self, step: int, number: int, text: str) -> SandboxError:
        if step == init.COMMAND:
            if text.startswith("execve ") and number not in _LIMITED:
                return CommandError(text.removeprefix("execve "), 127 if number == 2 else 126)
            return errors.refused(OSError(number, text))
        operation = self.launched.plan.operations[step]
        return errors.refused(
            OSError(number, text), f" ({operation.layer}, {operation.origin}): {operation.describe()}"
        )

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
        key: tuple[object, ...] = (number, architecture, arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF)
        if key in self.denials:
            self._counts[key] += 1
        elif len(self.denials) < _DISTINCT_DENIALS:
            name = _first_line(f"/proc/{pid}/comm")
            self.denials[key] = RawDenial(time.time(), pid, name, number, architecture, arguments, 1)
            self._counts[key] = 1
        else:
            key = ()  # one of those beyond what is kept
        if not self._untold:
            self.monitor.call_at(time.monotonic() + _TELLING, self._tell, self)
        self._untold.add(key)

    def _counted(self, key: tuple[object, ...]) -> RawDenial:
        return RawDenial(*[*values_of(self.denials[key])[:-1], self._counts[key]])

    def _told(self, keys: set[tuple[object, ...]]) -> tuple[list[RawDenial], int]:
        return [self._counted(key) for key in keys if key], self.refused - sum(self._counts.values())

    def _tell(self) -> None:
        """Tell `top`, where it runs, what was refused since the last time; where it does not, this is one look."""
        untold, self._untold = self._untold, set()
        if _is_watched():
            from osmoda.sandbox import live_feed

            if not live_feed.tell(self.launched, *self._told(untold)):
                # It has not read the last ones yet. The counts are totals: to be told twice does no harm.
                self._untold = untold
                self.monitor.call_at(time.monotonic() + _TELLING, self._tell, self)

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

    def _not_set_up(self) -> None:
        where = "a file system that it mounts does not answer, or this host has no time for it"
        self.fail(LaunchError(f"the sandbox was not set up within {_SET_UP:g} seconds, and was ended: {where}"))

    def _does_not_end(self) -> None:
        """It was killed, and is still there: no more can be done about it than to say so."""
        error = LaunchError(
            f"the sandbox was killed and has not ended in {_DYING:g} seconds: "
            "a process in it waits for a file system that does not answer, and ends when that does"
        )
        if self.timed_out:
            error.exit_code = 124
        self._error = self._error or error
        self._let_go()
        self._report()
        launch.leave(self.launched)
        self.monitor.forget(self)
        self.monitor.register(self.launched.pidfd, self._ended_late)

    def _ended_late(self) -> None:
        self.monitor.unregister(self.launched.pidfd)
        posix.waitpid(self.launched.pid, 0)
        launch.finish(self.launched)

    def _let_go(self) -> None:
        """Close what there is of it here, but for what `launch.finish` does."""
        monitor = self.monitor
        monitor.cancel(self._deadline)
        if self._dying is not None:
            monitor.cancel(self._dying)
        monitor.unregister(self.launched.control.fileno())
        monitor.unregister(self.launched.pidfd)
        if self.listener >= 0:
            monitor.unregister(self.listener)
            posix.close(self.listener)
        if self.command >= 0:
            posix.close(self.command)
        for fd in self.sockets:
            posix.close(fd)
        if self.notify >= 0:
            posix.close(self.notify)
        if self._mounts is not None:
            self.monitor.unregister(self._mounts.fd)
            self._mounts.close()

    def _died_unasked(self, raw: int) -> None:
        """Its pid 1 has ended without saying how the command did: somebody else's doing, or the kernel's."""
        group = self.launched.group
        if group is not None and group.oom_kills():
            return  # the outcome says so
        how = f"was killed by signal {posix.WTERMSIG(raw)}" if posix.WIFSIGNALED(raw) else "has ended"
        if self.command < 0:
            self._error = LaunchError(f"the sandbox's first process {how} before the command was started")
        else:
            self.killed = f"the sandbox's first process {how}, and the command with it"

    def _init_gone(self) -> None:
        monitor = self.monitor
        self._let_go()
        # The call below keeps the interpreter's lock, and a thread that traces the sandbox may be needed for its end.
        ended = select.poll()
        ended.register(self.launched.pidfd, select.POLLIN)
        ended.poll()
        _, raw, user, system, peak = syscalls.wait4(self.launched.pid, 0)
        if self._end is None:
            self._end = (raw, user, system, peak)
            if self._error is None and self._dying is None:
                self._died_unasked(raw)
        self._report()
        launch.finish(self.launched)
        monitor.forget(self)

    def _report(self) -> None:
        """Tell the caller, once."""
        callback, self.on_end = self.on_end, _told
        if callback is _told:
            return
        if self._error is not None:
            self._record_failure(str(self._error))
            callback(self._error)
            return
        assert self._end is not None
        raw, user, system, peak = self._end
        code = posix.waitstatus_to_exitcode(raw)
        number = -code if code < 0 else 0
        group = self.launched.group
        refusals: tuple[tuple[Any, ...], ...] = ()
        doorway = self.launched.doorway
        if doorway is not None:
            # Nobody is inside any more: its sockets go while the kernel takes the namespaces down.
            refusals = doorway.refusals()
            doorway.close()
        outcome = Outcome(
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
            network=refusals,
            denials=tuple([self._counted(key) for key in self.denials]),
        )
        if (self._untold or outcome.oom_kills or outcome.forks_refused or self.timed_out) and _is_watched():
            from osmoda.sandbox import live_feed

            limits = (outcome.oom_kills, outcome.forks_refused, self.timed_out)
            live_feed.tell(self.launched, *self._told(self._untold), limits)
        if self.launched.ticket is not None:
            from osmoda.sandbox import recording

            recording.recorder().end(self.launched, outcome)
        callback(outcome)

    def _record_failure(self, error: str) -> None:
        if self.launched.ticket is not None:
            from osmoda.sandbox import recording

            recording.recorder().failed(self.launched, error)


def _is_watched() -> bool:
    """Whether `osmoda-sandbox top` may be running."""
    try:
        return bool(posix.listdir(f"{paths.directory('runtime')}/top"))
    except OSError:
        return False  # hardly ever is there one


def _told(_: Outcome | SandboxError) -> None:
    """The caller has had its answer."""


class Monitor:
    """The loop: descriptors and what to call when they can be read, and points in time."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._timers: list[_Timer] = []
        self.sandboxes: set[Watched] = set()
        self.recorded = False
        """Whether something of its sandboxes is put on the ledger."""

    def watch(
        self, launched: Launched, on_end: Callable[[Outcome | SandboxError], None], timeout: float = 0.0
    ) -> Watched:
        """Begin to watch a launched sandbox; `timeout` in seconds, 0 for none."""
        try:
            watched = Watched(self, launched, on_end)
            self.register(launched.control.fileno(), watched.control_ready)
            self.register(launched.pidfd, watched.init_ready)
        except BaseException:
            for fd in (launched.control.fileno(), launched.pidfd):
                self.unregister(fd)
            launch.abandon(launched)
            raise
        self.sandboxes.add(watched)
        if timeout:
            self.call_at(watched.started + timeout, watched.expire, watched)
        return watched

    def register(self, fd: int, callback: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call `callback` whenever `fd` can be read or has ended; other `events` are as epoll_ctl(2) has them."""
        self._poll.register(fd, events)
        self._ready[fd] = callback

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether `fd` is watched."""
        return fd in self._ready

    def call_at(self, when: float, callback: Callable[[], None], owner: Watched | None = None) -> _Timer:
        """Call `callback` at `when` (time.monotonic); not any more once `owner` has ended. For `cancel`."""

        def unless_ended() -> None:
            if owner is None or owner in self.sandboxes:
                callback()

        timer = (when, unless_ended)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: _Timer) -> None:
        """Do not call it, if it was not called yet."""
        if timer in self._timers:
            self._timers.remove(timer)

    def pause(self, fd: int, callback: Callable[[], None], until: float) -> None:
        """Do not watch `fd` before `until`."""
        self.unregister(fd)
        owners = [watched for watched in self.sandboxes if watched.listener == fd]
        for watched in owners:
            self.call_at(until, lambda: self.register(fd, callback), watched)

    def forget(self, watched: Watched) -> None:
        """The sandbox is gone, and all that was its."""
        self.sandboxes.discard(watched)

    def step(self, limit: float | None = None) -> bool:
        """Wait for the next event, `limit` seconds at most, and handle it; whether there was one."""
        if self._timers:
            now = time.monotonic()
            soonest = max(min(when for when, _ in self._timers) - now, 0.0)
            limit = soonest if limit is None else min(limit, soonest)
        events = self._poll.poll(-1 if limit is None else limit)
        for fd, callback in [(fd, self._ready.get(fd)) for fd, _ in events]:
            # An earlier event of the same batch may have ended this one, and given its number to another.
            if callback is not None and self._ready.get(fd) is callback:
                callback()
        if self._timers:
            now = time.monotonic()
            due = [entry for entry in self._timers if entry[0] <= now]
            self._timers = [entry for entry in self._timers if entry[0] > now]
            for _, callback in due:
                callback()
        return bool(events)

    def close(self) -> None:
        """Kill what still runs, wait until it is gone, and close the loop."""
        for watched in tuple(self.sandboxes):
            watched.send_signal(_SIGKILL)
        while self.sandboxes:
            self.step()
        if self.recorded:
            from osmoda.sandbox import recording

            recording.leave(self)
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
