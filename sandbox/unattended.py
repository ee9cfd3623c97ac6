"""One sandbox from its launch to its end, by a process that does nothing else: trials and attacks of osmoda's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.sandbox import launch, opening
from osmoda.sandbox.doorway import Doorway, Gateways
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.monitor import Monitor, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.init import Command
    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.plan import Plan


def run(
    plan: Plan,
    command: Command,
    workspace: bytes,
    *,
    patience: float,
    layer: bytes = b"",
    secrets: tuple[tuple[str, str, str], ...] = (),
    on_launch: Callable[[Launched], None] | None = None,
) -> Outcome:
    """How `command` ended under `plan`; it is ended itself after `patience` seconds. Raises SandboxError.

    `layer` is that of an overlay workspace, `secrets` are as `opening.secrets` gives them; `on_launch` may look at the
    sandbox while it is set up.
    """
    ends: list[Outcome | SandboxError] = []
    monitor, gateways = Monitor(), Gateways()
    identity = launch.new_identity()
    try:
        doorway = Doorway(gateways, opening.opening(plan, identity, "", b"", secrets)) if plan.egress else None
        launched = launch.launch(plan, command, workspace, layer, -1, identity, doorway)
        if on_launch is not None:
            on_launch(launched)
        monitor.watch(launched, ends.append, patience)
        while monitor.sandboxes:
            monitor.step()
    finally:
        monitor.close()
        gateways.close()
    outcome = ends[0]
    if isinstance(outcome, SandboxError):
        raise outcome
    return outcome
