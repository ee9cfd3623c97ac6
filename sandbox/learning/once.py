"""One run of a plan to its end, observed or not, with this process as its monitor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox import doorway as doorways
from osmoda.sandbox import launch, opening, place
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.foreground import Signals, attend
from osmoda.sandbox.init import Command
from osmoda.sandbox.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan


@dataclass(frozen=True, slots=True)
class Errand:
    """What is run each time: the command, values of variables over the plan's, seconds at most (0: no limit).

    `stdin`, `stdout` and `stderr` are descriptors of this process's.
    """

    argv: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    timeout: float = 0.0
    stdin: int = 0
    stdout: int = 1
    stderr: int = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended, and under which name the gateway has noted it."""

    identity: str
    outcome: Outcome


def run(
    plan: Plan,
    errand: Errand,
    work: bytes,
    layer: bytes = b"",
    observe: Callable[[int], None] | None = None,
    readers: tuple[tuple[int, Callable[[], None]], ...] = (),
) -> Ended:
    """Run it; `work` is the workspace and `layer` the directory of its overlay, empty for none.

    `observe` is called with the pid of the sandbox's first process before that does anything; of `readers` each is a
    descriptor and what to call when it can be read. Raises SandboxError when
    the sandbox could not be set up, or the command not started.
    """
    terminals = tuple(fd for fd, ours in enumerate((errand.stdin, errand.stdout, errand.stderr)) if os.isatty(ours))
    command = Command(
        errand.argv,
        place.environment(plan, bool(terminals), errand.variables),
        place.start_directory(plan, work, ""),
        errand.stdin,
        errand.stdout,
        errand.stderr,
        terminals,
    )
    ends: list[Outcome | SandboxError] = []
    identity = launch.new_identity()
    gateways = doorways.Gateways() if plan.egress else None

    def ended(outcome: Outcome | SandboxError) -> None:
        if gateways is not None:
            gateways.dismiss()
        ends.append(outcome)

    signals = Signals()
    try:
        doorway = None
        if gateways is not None:
            held = opening.secrets(plan)
            command = command.with_variables(tuple((name, placeholder) for name, placeholder, _ in held))
            doorway = doorways.Doorway(gateways, opening.opening(plan, identity, "", b"", held))
        launched = launch.launch(plan, command, work, layer, -1, identity, doorway, observe)
        monitor = Monitor()
        try:
            watched = monitor.watch(launched, ended, errand.timeout)
            signals.forward(monitor, watched)
            for fd, reader in readers:
                monitor.register(fd, reader)
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
    return Ended(identity, outcome)
