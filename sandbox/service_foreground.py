"""One supervised command in the foreground, for a service manager that has started this process for it (systemd).

To the manager this process is the service: what the manager says to it (signals, listening sockets) goes to the
command, what the command says (notifications, how it ended) goes to the manager, as if it were its own. This process
is also the sandbox's launcher and monitor: there is no other one.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.host.frozen import values_of
from osmoda.sandbox import plans
from osmoda.sandbox.doorway import Gateways
from osmoda.sandbox.foreground import Signals
from osmoda.sandbox.launcher import SERVICE
from osmoda.sandbox.monitor import Monitor
from osmoda.sandbox.service import Service
from osmoda.sandbox.service_events import Ended, Failed, MainEnded, Notified, Started
from osmoda.sandbox.service_task import Task
from osmoda.sandbox.streams import write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.process import Result
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.running import Running
    from osmoda.sandbox.service_task import ServiceRequest

_FIRST_SOCKET = 3
_FOR_EVER = 1e9  # seconds
# All but those that cannot be caught, that are about this process itself, and that the kernel sends for a fault of it.
_OWN = ("SIGKILL", "SIGSTOP", "SIGCHLD", "SIGPIPE", "SIGXFSZ", "SIGXCPU", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGSEGV")
_FAULTS = ("SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
_TO_THE_COMMAND = sorted({*signal.valid_signals()} - {signal.Signals[name] for name in (*_OWN, *_FAULTS)})
_OURS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
_PASSED_ON = frozenset(
    (
        "READY",
        "RELOADING",
        "MONOTONIC_USEC",
        "STOPPING",
        "STATUS",
        "ERRNO",
        "BUSERROR",
        "VARLINKERROR",
        "EXIT_STATUS",
        "WATCHDOG",
        "WATCHDOG_USEC",
        "EXTEND_TIMEOUT_USEC",
    )
)


def run_service(
    profile: Profile,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    workspace: str = "",
    agent: str = "",
    from_children: bool = False,
    ready_when_started: bool = False,
    to_all: int = 0,
    patience: float = 0.0,
    beside: Callable[[Running, Callable[[bytes], None]], None] | None = None,
    after: Callable[[Running, Result], None] | None = None,
) -> int:
    """Run `argv` to its end in a sandbox of `profile`: its exit code; where a signal ended it, this process ends so.

    Streams are this process's own. Of the environment that it was started with, LISTEN_FDS, NOTIFY_SOCKET and
    WATCHDOG_USEC are taken up as sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3) say, and `env` is the
    command's. Notifications of the command itself are passed on, with `from_children` those of all that is inside; what
    they say of pids, of descriptors and of who may notify is not. With `ready_when_started` READY=1 is said when the
    command was executed. Signals are passed on to the command, and `to_all` to every process of the sandbox; what the
    command leaves behind gets it, too, and has `patience` seconds before it is killed. `beside` is called once the
    command was executed, with what runs and a way to tell the manager something; it may start a thread. `after` is
    called when all is over, with what has become of it.

    For a single-threaded process. Raises SandboxError when the command could not be started.
    """
    given = _Given.taken(os.environ)
    signals = Signals(_TO_THE_COMMAND)
    monitor = Monitor()
    gateways = Gateways()
    try:
        with Service(
            profile,
            workspace=workspace,
            agent=agent,
            launcher=_Here(monitor, gateways),
            planned=plans.for_profile,
        ) as service:
            variables = dict(env) | ({"WATCHDOG_USEC": given.watchdog} if given.watchdog else {})
            with service.start(
                argv,
                env=variables,
                cwd=cwd,
                stdin=0,
                stdout=1,
                stderr=2,
                listeners=given.listeners,
                notify=bool(given.notify),
                hold=bool(to_all),
            ) as running:
                signals.forward(monitor, _Signalled(running, to_all))
                result = _attend(monitor, running, given, from_children, ready_when_started, to_all, patience, beside)
                if after is not None:
                    after(running, result)
    finally:
        monitor.close()
        gateways.close()
        signals.close()
    if result.signal:
        _end_by(result.signal)
    return result.status


class _Given:
    """What the manager has given this process, taken out of its environment."""

    def __init__(self, listeners: Sequence[tuple[str, int]], notify: str, watchdog: str) -> None:
        self.listeners = listeners
        self.notify = notify
        self.watchdog = watchdog

    @classmethod
    def taken(cls, environment: MutableMapping[str, str]) -> _Given:
        values = {name: environment.pop(name, "") for name in _OURS}
        mine = str(os.getpid())
        listeners: list[tuple[str, int]] = []
        if values["LISTEN_PID"] == mine and values["LISTEN_FDS"].isdigit():
            count = int(values["LISTEN_FDS"])
            names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else []
            names += ["unknown"] * (count - len(names))
            listeners = [(name, _FIRST_SOCKET + number) for number, name in enumerate(names[:count])]
        for _, fd in listeners:
            os.set_inheritable(fd, False)
        watched = values["WATCHDOG_PID"] in ("", mine)
        return cls(listeners, values["NOTIFY_SOCKET"], values["WATCHDOG_USEC"] if watched else "")

    def tell(self, message: bytes) -> None:
        """Say something to the manager."""
        if not self.notify or not message:
            return
        address = "\0" + self.notify[1:] if self.notify.startswith("@") else self.notify
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.sendto(message, address)
            except OSError:
                return  # the manager is being restarted, and asks again when it is back


def passed_on(message: bytes) -> bytes:
    """What of a notification is the manager's business: assignments of the names that it knows, and no pids."""
    lines = [line for line in message.split(b"\n") if line.partition(b"=")[0].decode("ascii", "replace") in _PASSED_ON]
    return b"\n".join(lines)


class _Here:
    """This process as the launcher."""

    def __init__(self, monitor: Monitor, gateways: Gateways) -> None:
        self._monitor = monitor
        self._gateways = gateways
        self._plans: dict[bytes, Plan] = {}

    def send(self, request: ServiceRequest, descriptors: list[int], kind: bytes = SERVICE) -> socket.socket:
        assert kind == SERVICE
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        body = os.memfd_create("osmoda-request", os.MFD_CLOEXEC)
        write_all(body, marshal.dumps(values_of(request)))
        # All of them are the task's to close.
        Task(self._monitor, self._gateways, self._plans, [theirs.detach(), body, *map(os.dup, descriptors)])
        return mine

    def forget_plan(self, name: bytes) -> None:
        self._plans.pop(name, None)

    def times_started(self) -> int:
        return 1


def _attend(
    monitor: Monitor,
    running: Running,
    given: _Given,
    from_children: bool,
    ready_when_started: bool,
    to_all: int,
    patience: float,
    beside: Callable[[Running, Callable[[bytes], None]], None] | None,
) -> Result:
    """Be there until it has ended. Raises SandboxError."""
    ends: list[Ended | Failed] = []

    def heard() -> None:
        for event in running.events():
            if isinstance(event, (Ended, Failed)):
                ends.append(event)
            elif isinstance(event, Notified) and (from_children or event.is_main):
                given.tell(passed_on(event.data))
            elif isinstance(event, Started):
                if ready_when_started:
                    given.tell(b"READY=1")
                if beside is not None:
                    beside(running, given.tell)
            elif isinstance(event, MainEnded):
                running.signal_all(to_all)
                if patience < _FOR_EVER:
                    monitor.call_at(time.monotonic() + patience, running.kill)

    monitor.register(running.fileno(), heard)
    while not ends:
        monitor.step()
    monitor.unregister(running.fileno())
    if isinstance(ends[0], Failed):
        raise ends[0].error
    return ends[0].result


class _Signalled:
    """What `Signals` sends to."""

    def __init__(self, running: Running, to_all: int) -> None:
        self._running = running
        self._to_all = to_all

    def send_signal(self, number: int) -> None:
        if number == self._to_all:
            self._running.signal_all(number)
        else:
            self._running.signal_main(number)


def _end_by(number: int) -> None:
    """End by the signal that has ended the command, so that the manager sees the same; without a core of this."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
