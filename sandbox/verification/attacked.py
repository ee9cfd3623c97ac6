"""Launches one sandbox, calls the battery in it where the command would be executed, and tells how all went.

The battery is a function of the launcher's copy, not a program: nothing need be added to what the profile shows. Where
it differs from a program that was executed, `init._fork_function` makes it the same: descriptors, signals, session,
environment, the dumpable flag. All that confines is the kernel's by then, and confines this process like any other.
"""

from __future__ import annotations

import marshal
import posix
import sys
from typing import TYPE_CHECKING, Any

from osmoda.host.frozen import values_of
from osmoda.sandbox import opening, place, unattended
from osmoda.sandbox.battery import perform
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.init import Command
from osmoda.sandbox.plan import Plan

if TYPE_CHECKING:
    from osmoda.host import cgroup
    from osmoda.sandbox.battery import Task
    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.monitor import Outcome

_PATIENCE = 60.0  # seconds, after which a sandbox is ended that its own attackers have not
_LIMITS = (
    *("memory.max", "memory.limit_in_bytes", "memory.swap.max", "memory.memsw.limit_in_bytes"),
    *("pids.max", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


def main() -> None:
    """Read an order (see `rounds`) and carry it out."""
    dumped, workspace, layer, tasks, facts = marshal.loads(sys.stdin.buffer.read())
    plan = Plan.load(dumped)
    try:
        outcome, output, limits = _attack(plan, workspace, layer, tasks, facts)
        denials = [values_of(denial) for denial in outcome.denials]
        answer: tuple[Any, ...] = ("ended", values_of(outcome)[:-1], denials, output, limits)
    except SandboxError as error:
        answer = ("failed", str(error))
    sys.stdout.buffer.write(marshal.dumps(answer))


def _attack(
    plan: Plan, workspace: bytes, layer: bytes, tasks: list[Task], facts: dict[str, Any]
) -> tuple[Outcome, bytes, dict[str, str]]:
    output = posix.memfd_create("osmoda-battery", posix.MFD_CLOEXEC)
    nothing = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)

    def function() -> int:
        perform(tasks, facts, lambda line: posix.write(1, line))
        return 0

    limits: dict[str, str] = {}

    def look(launched: Launched) -> None:
        if launched.group is not None:
            limits.update(_limits(launched.group))

    held = opening.secrets(plan) if plan.egress else ()
    environment = place.environment(plan, False, tuple([(name, text) for name, text, _ in held]))
    directory = place.start_directory(plan, workspace, "")
    command = Command(("battery",), environment, directory, nothing, output, nothing, (), function)
    outcome = unattended.run(plan, command, workspace, patience=_PATIENCE, layer=layer, secrets=held, on_launch=look)
    return outcome, posix.pread(output, posix.fstat(output).st_size, 0), limits


def _limits(group: cgroup.Group) -> dict[str, str]:
    """What the kernel says that it holds the group to."""
    found = {}
    for folder in group.directories:
        for name in _LIMITS:
            try:
                with open(f"{folder}/{name}", encoding="ascii") as file:
                    found[name] = file.read().strip()
            except OSError:
                continue  # of the other version, or of a controller that was not asked for
    return found
