"""`osmoda-watch capacity`: what fits, in words or as JSON.

The verb calls `found(options.plan)` and prints `as_dict` of it with --json, `words` otherwise.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from osmoda.supervisor.capacity import fitting as capacity
from osmoda.supervisor.capacity import host_room, plans_file
from osmoda.supervisor.capacity.fitting import Fit, Need, number, size
from osmoda.supervisor.capacity.plans_file import Amount
from osmoda.supervisor.command.status_words import table
from osmoda.supervisor.control import client as control_client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BOOTED_BY_SYSTEMD = "/run/systemd/system"  # sd_booted(3)


def found(plan: str = "") -> tuple[Fit, plans_file.Plans, bool]:
    """What runs on this host, in its room or in that of `plan`; the file; and whether a daemon could be asked.

    Raises SupervisorError.
    """
    plans = plans_file.load()
    units, asked = _running()
    needs = [need for one in units if (need := _need(one, plans)) is not None]
    chosen = plans.plan(plan) if plan else None
    return capacity.fit(needs, chosen.room if chosen else host_room.room(), plans, chosen), plans, asked


def _running() -> tuple[list[dict[str, Any]], bool]:
    """The units of this user's daemon, or of systemd where that is the engine; and whether there was one to ask."""
    try:
        return control_client.ask("status", brief=True)["units"], True
    except control_client.NoDaemon:
        if not os.path.isdir(_BOOTED_BY_SYSTEMD):
            return [], False
    from osmoda.supervisor.systemd import engine as systemd_engine

    found: list[dict[str, Any]] = systemd_engine.converse(lambda engine: engine.snapshots([], brief=False))
    return found, True


def _need(one: Mapping[str, Any], plans: plans_file.Plans) -> Need | None:
    """What a unit counts as that is up; its limits are what the daemon says of it."""
    if one["state"] in ("inactive", "failed") or "limits" not in one:
        return None
    limits = {name: value for name, value in one["limits"].items() if value is not None}
    standard = {"memory": plans.agent.memory, "cpu": plans.agent.cpu}
    return Need(str(one["unit"]), Amount(**{**standard, **limits}, disk=plans.agent.disk), tuple(limits))


def as_dict(fit: Fit, plans: plans_file.Plans, asked: bool) -> dict[str, Any]:
    """For --json: sizes in bytes, CPU in cores."""
    return {
        "room": msgspec.to_builtins(fit.room),
        "plan": fit.plan.name if fit.plan else None,
        "system": msgspec.to_builtins(fit.system),
        "agent": msgspec.to_builtins(fit.agent),
        "agents": [asdict(need) | {"amount": msgspec.to_builtins(need.amount)} for need in fit.needs],
        "left": msgspec.to_builtins(fit.left),
        "more": fit.more,
        "daemon": asked,
        "file": plans.path,
    }


def words(fit: Fit, plans: plans_file.Plans, asked: bool) -> Iterator[str]:
    """For a person: the rows of the sum, then what they come to."""
    rows = [(_title(fit), *_amount(fit.room))]
    rows.append(("kept for the system", *_amount(fit.system)))
    rows += [(need.name, *_amount(need.amount, need.declared)) for need in fit.needs]
    rows.append(("left", *_amount(fit.left)))
    yield from table(("", "memory", "cpu", "disk"), rows)
    if any(len(need.declared) < 2 for need in fit.needs):
        yield "* no limit declared: counted as plans.toml says; [process] memory and cpu of a profile declare one"
    if not asked:
        yield "no daemon runs, so that no agent is counted"
    each = f"{size(fit.agent.memory)}, {number(fit.agent.cpu)} cores and {size(fit.agent.disk)} of disk"
    yield f"{fit.more} more {'agent fits' if fit.more == 1 else 'agents fit'}, at {each} each"
    if fit.plan is None:
        fitting = _nearest(fit, plans.plans)
        if fitting is not None:
            yield f"this host has what the plan {fitting.name} has, which is meant for {fitting.meant_for}"
    else:
        yield f"the plan is meant for {fit.plan.meant_for}"


def _title(fit: Fit) -> str:
    return f"plan {fit.plan.name}" if fit.plan else "this host (free disk)"


def _amount(amount: Amount, declared: Sequence[str] | None = None) -> tuple[str, str, str]:
    def mark(kind: str) -> str:
        return "" if declared is None or kind in declared else "*"

    return f"{size(amount.memory)}{mark('memory')}", f"{number(amount.cpu)}{mark('cpu')}", size(amount.disk)


def _nearest(fit: Fit, plans: Sequence[plans_file.Plan]) -> plans_file.Plan | None:
    """The largest plan that this host is at least as large as, by memory and CPU."""
    held = [one for one in plans if one.room.memory <= fit.room.memory and one.room.cpu <= fit.room.cpu]
    return max(held, key=lambda one: one.room.memory, default=None)
