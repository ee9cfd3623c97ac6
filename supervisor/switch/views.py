"""Switches and generations as values, for words and for `--json`: of the daemon, or read from the disk without one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from osmoda.host import paths
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.record import Records, moment
from osmoda.supervisor.switch.store import Store, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.switch.phases import Switch
    from osmoda.supervisor.switch.record import Record


def view(record: Record, switch: Switch | None = None) -> dict[str, Any]:
    """A switch as JSON has it; of one that is driven also what comes next, and when (`seconds_left`)."""
    found: dict[str, Any] = {
        "switch": record.number,
        "phase": record.phase,
        "reason": record.reason,
        "error": record.error,
        "attempts": record.attempts,
        "began": record.began.wall,
        "since": record.since.wall,
        "not_on_ledger": len(record.untold),
        "trouble": "",
        "seconds_left": None,
        "members": [
            {
                "kind": member.kind,
                "name": member.name,
                "before": member.before,
                "after": member.after,
                "snapshot": member.snapshot,
            }
            for member in record.members
        ],
    }
    if switch is not None:
        found["trouble"] = switch.trouble
        if switch.wakes_at is not None:
            found["seconds_left"] = max(switch.wakes_at - moment().since_boot, 0.0)
    return found


def _store() -> Store | None:
    """This user's store; None where nothing was ever switched."""
    return Store() if os.path.isdir(os.path.join(paths.directory("state"), "switch")) else None


def records() -> list[dict[str, Any]]:
    """All switches that are kept, in order."""
    store = _store()
    return [view(record) for record in Records(store.records).all()] if store is not None else []


def generations(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The generations of all agents, or of some, in order; `verdict` is what the last switch to each came to."""
    store = _store()
    if store is None:
        return []
    verdicts = {
        (member.name, member.after): record.phase
        for record in Records(store.records).all()
        for member in record.members
    }
    found = []
    for name in map(check_name, names) if names else store.agents():
        for number in store.numbers(name):
            one: dict[str, Any] = {
                "agent": name,
                "generation": number,
                "current": store.current(name) == number,
                "verdict": verdicts.get((name, number), ""),
            }
            with contextlib.suppress(SwitchError):  # a manifest that cannot be read: the number is still there
                generation = store.generation(name, number)
                one |= {"made": generation.made, "size": generation.size, "seal": generation.seal}
                one |= {"note": generation.note, "place": generation.place, "directory": generation.directory}
            found.append(one)
    return found
