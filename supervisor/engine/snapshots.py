"""How a unit is at one moment, as values that go over the control socket and into `--json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.sandbox.processes import Running
    from osmoda.supervisor.engine.supervised import Supervised

type Snapshot = dict[str, Any]

_STALE = "its files have changed since it was started: until it is restarted its plan is the one from before"


def of(held: Supervised, running: Mapping[str, Running]) -> Snapshot:
    """One unit; `running` are the sandboxes of this host by their names, of which its own is looked up."""
    machine, unit, in_force = held.machine, held.unit, held.in_force
    found: Snapshot = {
        "unit": unit.name,
        "description": unit.description,
        "files": list(unit.files),
        "state": machine.active,
        "sub": machine.sub,
        "result": machine.result,
        "since": held.since,
        "pid": machine.main_pid,
        "exit_code": machine.exit_code,
        "exit_signal": machine.exit_signal,
        "restarts": machine.restarts.count,
        "says": machine.status,
        "problem": held.last_problem if machine.active in ("inactive", "failed", "activating") else "",
        "health": held.tally.state if machine.active in ("active", "reloading") else "unchecked",
        "health_problem": held.tally.problem,
        "group": unit.osmoda.group,
        "sandbox": held.identity if machine.main_pid else "",
        "denials": [denial.sentence() for denial in held.denials],
    }
    if in_force is not None:
        confined = in_force.prepared.confined
        profile = confined.profile
        stale = held.prepared is not None and held.prepared.plan != in_force.plan
        found |= {
            "tier": profile.tier,
            "profile": confined.file,
            "plan": in_force.plan,
            "notes": [*([_STALE] if stale else ()), *confined.notes],
            "limits": {"memory": profile.process.memory, "cpu": profile.process.cpu},
        }
    one = running.get(held.identity) if machine.main_pid else None
    if one is not None:
        found |= {"memory": one.memory, "tasks": one.processes, "cpu_time": one.cpu_time}
    return found
