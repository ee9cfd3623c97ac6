"""Rounds of attacks: the control outside, and the same attacks in a sandbox. Both in a fresh, small process.

A sandbox is launched by a process that has loaded little: the attackers are copies of it, and a profile's memory limit
must leave room for them.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmoda.sandbox import battery
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.monitor import Outcome, RawDenial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.sandbox.battery import Answer, Facts, Task
    from osmoda.sandbox.plan import Plan

type Run = Callable[[Sequence[Task], Facts], "Round"]
"""How attacks are made somewhere: what a pool of sandboxes, or another tool, has to offer."""

_BOOT = "import sys; sys.path.append({root!r}); from osmoda.sandbox.verification import {module}; {module}.main()"


@dataclass(frozen=True, slots=True)
class Round:
    """How a list of attacks went: the answers by the index of the task; in a sandbox also how that ended.

    `limits` is what the kernel says of the sandbox's control group: file name to content.
    """

    answers: dict[int, Answer]
    outcome: Outcome | None = None
    limits: dict[str, str] = field(default_factory=dict)


def outside(*, privileged: bool, environment: dict[str, str], left_open: int) -> Run:
    """The control, as the calling user; with `privileged` as somebody who has every capability, in other namespaces."""

    def run(tasks: Sequence[Task], facts: Facts) -> Round:
        order = repr((privileged, list(tasks), dict(facts))).encode()
        done = _process("control", order, environment, left_open)
        return Round(battery.answers(done))

    return run


def inside(plan: Plan, workspace: bytes, layer: bytes, *, environment: dict[str, str], left_open: int) -> Run:
    """In a sandbox of `plan`, as `run` launches it, by a function where the command would be. Raises LaunchError."""

    def run(tasks: Sequence[Task], facts: Facts) -> Round:
        order = marshal.dumps((plan.dump(), workspace, layer, list(tasks), dict(facts)))
        kind, *values = marshal.loads(_process("attacked", order, environment, left_open))
        if kind == "failed":
            raise LaunchError(*values)
        ended, denials, output, limits = values
        outcome = Outcome(*(*ended, tuple(RawDenial(*denial) for denial in denials)))
        return Round(battery.answers(output), outcome, limits)

    return run


def _process(module: str, order: bytes, environment: dict[str, str], left_open: int) -> bytes:
    """The output of one of the small processes. `left_open` is a descriptor that it inherits, as by mistake."""
    program = _BOOT.format(root=_root(), module=module)
    argv = [sys.executable, "-I", "-S", "-c", program]
    # Of a session of its own: attacks on process groups are not to reach the caller's.
    done = subprocess.run(
        argv,
        input=order,
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=(left_open,),
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        raise LaunchError(f"the attacks could not be made ({module} ended with {done.returncode})")
    return done.stdout


def _root() -> str:
    """The folder that holds `osmoda`, as this interpreter found it."""
    import osmoda

    return os.path.dirname(next(iter(osmoda.__path__)))
