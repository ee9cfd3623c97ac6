"""One sandbox in the foreground: `osmoda-sandbox run`. This process is its monitor."""

from __future__ import annotations

import marshal
import posix

from osmoda.host import cgroup, paths
from osmoda.host.frozen import values_of
from osmoda.sandbox import launch, place, plans
from osmoda.sandbox.errors import LaunchError, LimitReached, ProfileEdited, SandboxError
from osmoda.sandbox.init import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence
    from typing import Protocol

    from osmoda.sandbox.doorway import Doorway, Gateways
    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.monitor import Monitor, Outcome, Watched
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request

    class Signalled(Protocol):
        def send_signal(self, number: int) -> None: ...
else:
    import _signal

# SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM
_FORWARDED = (1, 2, 3, 10, 12, 15)


def run(request: Request) -> int:
    """Run `request` to its end; the exit code by convention. Raises SandboxError when it could not be started."""
    if request.pool:
        from osmoda.sandbox import pooled

        return pooled.run(request)
    directory = posix.getcwd() if not request.profile.startswith("/") else ""
    since = plans.moment()
    plan, cached = plans.for_request(request, directory)
    try:
        return _run(request, plan, since)
    except LimitReached:
        raise
    except ProfileEdited:
        raise  # not started again by itself: the program may have done something by now
    except LaunchError as error:
        if error.exit_code != 125 or not (cached or cgroup.refusal()):
            raise
        # A host that changed under a kept plan looks like this, and so does systemd refusing a scope: compile it anew,
        # and if that makes no difference, say what failed.
        since = plans.moment()
        renewed = plans.compile_again(request, directory)
        if renewed == plan:
            raise
        if cgroup.refusal():
            from osmoda.sandbox.summary import say_degraded

            say_degraded(renewed)
        return _run(request, renewed, since)


def _run(request: Request, plan: Plan, since: tuple[int, int]) -> int:
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
        return _watch(request, plan, since, command, work, layer, lock)
    finally:
        if lock >= 0:
            posix.close(lock)


def _watch(
    request: Request, plan: Plan, since: tuple[int, int], command: Command, work: bytes, layer: bytes, lock: int
) -> int:
    ends: list[Outcome | SandboxError] = []
    identity = launch.new_identity()
    doorway: Doorway | None = None
    gateways: Gateways | None = None

    def ended(outcome: Outcome | SandboxError) -> None:
        # All is over but the tearing down of the namespaces: time to write the record in.
        if not isinstance(outcome, SandboxError):
            _keep(request, identity, outcome)
        if gateways is not None:
            gateways.dismiss()
        ends.append(outcome)

    # As `opening.agent_name`, which not every run needs to load.
    agent = request.agent or request.profile.rpartition("/")[2].removesuffix(".toml")
    signals = Signals()
    try:
        if plan.egress:
            from osmoda.sandbox import doorway as doorways
            from osmoda.sandbox import opening

            held = opening.secrets(plan)
            command = command.with_variables(tuple([(name, placeholder) for name, placeholder, _ in held]))
            gateways = doorways.Gateways()
            token = opening.token_of_request(request, posix.getcwd())
            doorway = doorways.Doorway(
                gateways,
                opening.opening(plan, identity, agent, token, held),
                plans.edits_count_from(since, plans.moment()),
            )
        launched, monitor = _begin(plan, command, work, layer, lock, identity, doorway, agent)
        try:
            watched = monitor.watch(launched, ended, request.timeout)
            signals.forward(monitor, watched)
            attend(monitor, watched, command)
        finally:
            monitor.close()
    finally:
        if gateways is not None:
            gateways.close()
        signals.close()
    outcome = ends[0]
    if isinstance(outcome, SandboxError):
        raise outcome
    if watched.killed and not request.quiet and not request.json:
        posix.write(2, f"osmoda-sandbox: {watched.killed}\n".encode())
    return _conclude(request, plan, identity, outcome)


def _begin(
    plan: Plan,
    command: Command,
    work: bytes,
    layer: bytes,
    lock: int,
    identity: str,
    doorway: Doorway | None,
    agent: str,
) -> tuple[Launched, Monitor]:
    """Launch it, and have a monitor for it; where there is none to be had, for want of descriptors say, it is ended."""
    launched: Launched | None = None
    try:
        launched = launch.launch(plan, command, work, layer, lock, identity, doorway, agent=agent)
        # Only now, while the child sets itself up on another core.
        from osmoda.sandbox.monitor import Monitor

        return launched, Monitor()
    except BaseException:
        if launched is not None:
            launch.abandon(launched)
        launch.dismiss_janitor()
        raise


def conclude(request: Request, plan: Plan, identity: str, outcome: Outcome) -> int:
    """Keep a record of a run and say what there is to say of it; the exit code."""
    _keep(request, identity, outcome)
    return _conclude(request, plan, identity, outcome)


def _conclude(request: Request, plan: Plan, identity: str, outcome: Outcome) -> int:
    if (
        outcome.refused
        or outcome.network
        or outcome.oom_kills
        or outcome.forks_refused
        or request.json
        or outcome.timed_out
    ):
        from osmoda.sandbox.summary import summarise

        summarise(request, plan, identity, outcome)
    return outcome.status


def attend(monitor: Monitor, watched: Watched, command: Command) -> None:
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


class Signals:
    """Signals of this process as events of the loop (a pipe, signal.set_wakeup_fd)."""

    def __init__(self, numbers: Sequence[int] = _FORWARDED) -> None:
        self._numbers = numbers
        self._read, self._write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._before = [
            (number, _signal.signal(number, _noted))
            for number in numbers
            # What the caller ignores (nohup) stays ignored.
            if _signal.getsignal(number) != _signal.SIG_IGN
        ]
        _signal.set_wakeup_fd(self._write)

    def forward(self, monitor: Monitor, watched: Signalled) -> None:
        """From now on, send what this process receives to the command."""

        def received() -> None:
            for number in posix.read(self._read, 256):
                if number in self._numbers:
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
        granted = (request.read, request.write, request.passed, request.allow, request.deny)
        asked = (request.profile, request.tier, request.workspace, request.workspace_mode, *granted)
        refused = (outcome.network, denials)
        data = marshal.dumps((4, identity, directory, asked, request.argv, numbers, refused))
        temporary = f"{folder}/last-run.{posix.getpid()}"
        # One of that name is of a process that was killed here.
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
        fd = posix.open(temporary, flags, 0o600)
        try:
            try:
                complete = posix.write(fd, data) == len(data)
            finally:
                posix.close(fd)
            if complete:
                posix.rename(temporary, f"{folder}/last-run")
                return
        except OSError:
            pass  # a full disk, most likely
        posix.unlink(temporary)
    except (OSError, paths.UntrustedDirectory):
        return
