"""One sandbox in the foreground: `osmoda-sandbox run`. This process is its monitor."""

from __future__ import annotations

import marshal
import posix

from osmoda.host import cgroup, paths
from osmoda.host.frozen import values_of
from osmoda.sandbox import launch, place, plans
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.init import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from osmoda.sandbox.monitor import Monitor, Outcome, Watched
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request
else:
    import _signal

# SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM
_FORWARDED = (1, 2, 3, 10, 12, 15)


def run(request: Request) -> int:
    """Run `request` to its end; the exit code by convention. Raises SandboxError when it could not be started."""
    directory = posix.getcwd() if not request.profile.startswith("/") else ""
    plan, cached = plans.for_request(request, directory)
    try:
        return _run(request, plan)
    except LaunchError as error:
        if error.exit_code != 125 or not (cached or cgroup.refusal()):
            raise
        # A host that changed under a kept plan looks like this, and so does systemd refusing a scope: compile it anew,
        # and if that makes no difference, say what failed.
        renewed = plans.compile_again(request, directory)
        if renewed == plan:
            raise
        if cgroup.refusal():
            from osmoda.sandbox.summary import say_degraded

            say_degraded(renewed)
        return _run(request, renewed)


def _run(request: Request, plan: Plan) -> int:
    work = place.workspace(plan, request.workspace)
    terminals = tuple([fd for fd in (0, 1, 2) if posix.isatty(fd)])
    command = Command(
        request.argv,
        place.environment(plan, bool(terminals), request.set),
        place.start_directory(plan, work, request.directory),
        0,
        1,
        2,
        terminals if plan.tier else (),
    )
    layer, lock = b"", -1
    if work and plan.workspace == "overlay":
        from osmoda.sandbox import overlay

        layer, lock = overlay.for_plan(plan, work)
    try:
        return _watch(request, plan, command, work, layer, lock)
    finally:
        if lock >= 0:
            posix.close(lock)


def _watch(request: Request, plan: Plan, command: Command, work: bytes, layer: bytes, lock: int) -> int:
    ends: list[Outcome | SandboxError] = []
    identity = launch.new_identity()

    def ended(outcome: Outcome | SandboxError) -> None:
        # All is over but the tearing down of the namespaces: time to write the record in.
        if not isinstance(outcome, SandboxError):
            _keep(request, identity, outcome)
        ends.append(outcome)

    signals = _Signals()
    try:
        launched = launch.launch(plan, command, work, layer, lock, identity)
        # Only now, while the child sets itself up on another core.
        from osmoda.sandbox.monitor import Monitor

        monitor = Monitor()
        try:
            watched = monitor.watch(launched, ended, request.timeout)
            signals.forward(monitor, watched)
            _attend(monitor, watched, command)
        finally:
            monitor.close()
    finally:
        signals.close()
    outcome = ends[0]
    if isinstance(outcome, SandboxError):
        raise outcome
    if outcome.refused or outcome.oom_kills or outcome.forks_refused or request.json or outcome.timed_out:
        from osmoda.sandbox.summary import summarise

        summarise(request, plan, identity, outcome)
    return outcome.status


def _attend(monitor: Monitor, watched: Watched, command: Command) -> None:
    """Be there until the sandbox is gone."""
    relay = None
    if command.terminals:
        from osmoda.sandbox.terminal import Relay

        relay = Relay(monitor, watched)
    try:
        while monitor.sandboxes:
            monitor.step()
    finally:
        if relay is not None:
            relay.close()


class _Signals:
    """Signals of this process as events of the loop (a pipe, signal.set_wakeup_fd)."""

    def __init__(self) -> None:
        self._read, self._write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._before = [
            (number, _signal.signal(number, _noted))
            for number in _FORWARDED
            # What the caller ignores (nohup) stays ignored.
            if _signal.getsignal(number) != _signal.SIG_IGN
        ]
        _signal.set_wakeup_fd(self._write)

    def forward(self, monitor: Monitor, watched: Watched) -> None:
        """From now on, send what this process receives to the command."""

        def received() -> None:
            for number in posix.read(self._read, 256):
                if number in _FORWARDED:
                    watched.send_signal(number)

        monitor.register(self._read, received)

    def close(self) -> None:
        """Put everything back as it was."""
        _signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            _signal.signal(number, handler)
        posix.close(self._read)
        posix.close(self._write)


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor has the signal already."""


def _keep(request: Request, identity: str, outcome: Outcome) -> None:
    """Leave a record for `osmoda-sandbox why`; a state directory that cannot be used only costs that record."""
    try:
        folder = paths.own_directory("state")
        denials = tuple([values_of(denial) for denial in outcome.denials])
        numbers = (outcome.status, outcome.refused, outcome.oom_kills, outcome.forks_refused, outcome.timed_out)
        directory = posix.getcwd()
        granted = (request.read, request.write, request.passed)
        asked = (request.profile, request.tier, request.workspace, request.workspace_mode, *granted)
        data = marshal.dumps((3, identity, directory, asked, request.argv, numbers, denials))
        temporary = f"{folder}/last-run.{posix.getpid()}"
        fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        try:
            posix.write(fd, data)
        finally:
            posix.close(fd)
        posix.rename(temporary, f"{folder}/last-run")
    except (OSError, paths.UntrustedDirectory):
        return
