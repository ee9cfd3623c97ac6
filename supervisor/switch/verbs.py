"""What the daemon does for `osmoda-watch switch`, and what it answers: values for words and for `--json`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import msgspec

from osmoda.host import paths
from osmoda.supervisor.switch import candidate
from osmoda.supervisor.switch.driver import moment
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.record import Records, Terms
from osmoda.supervisor.switch.store import Store, check_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from osmoda.supervisor.control import Request, Say, Verb
    from osmoda.supervisor.switch.driver import Switches
    from osmoda.supervisor.switch.phases import Switch
    from osmoda.supervisor.switch.record import Record


class Begin(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `begin` sends; times are seconds."""

    agents: tuple[candidate.Asked, ...]
    system: int | None = None
    probation: float = 600.0
    restarts: int = 3
    window: float = 60.0
    keep: int = 5
    keep_for: float = 0.0
    wait: bool = False


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


def verbs(switches: Switches, search: Callable[[], Sequence[str]]) -> dict[str, Verb]:
    """What can be asked of the daemon, by verb. `search` is where installed units are looked for."""

    async def begin(request: Request, say: Say) -> Mapping[str, Any]:
        try:
            asked = msgspec.json.decode(str(request.options.get("begin", "")), type=Begin)
        except msgspec.ValidationError as error:
            raise SwitchError(f"that is no switch: {error}") from None
        if not asked.agents and asked.system is None:
            raise SwitchError("a switch has at least one agent")
        if not 0 < asked.probation <= 30 * 86400 or asked.restarts < 1 or asked.window <= 0 or asked.keep < 1:
            raise SwitchError(
                "a probation lasts up to 30 days, and restarts that lead back and generations kept are at least 1"
            )
        async with switches.reading:
            wanted = [await asyncio.to_thread(candidate.wanted, one, switches.store, search()) for one in asked.agents]
        record = await switches.begin(
            wanted,
            Terms(asked.probation, asked.restarts, asked.window),
            system=asked.system,
            keep=asked.keep,
            keep_seconds=asked.keep_for,
        )
        say({"switch": record.number})
        return answer(await switches.settled(record.number, over=asked.wait))

    async def commit(request: Request, _: Say) -> Mapping[str, Any]:
        number = await switches.commit(_one(request))
        return answer(await switches.settled(number))

    async def rollback(request: Request, _: Say) -> Mapping[str, Any]:
        number = await switches.go_back(_one(request))
        return answer(await switches.settled(number))

    async def status(_: Request, __: Say) -> Mapping[str, Any]:
        return {"done": True, "switches": [view(one.record, one) for one in switches.running()]}

    def answer(record: Record) -> Mapping[str, Any]:
        live = next((one for one in switches.running() if one.record.number == record.number), None)
        return {"done": True, "switch": view(record, live)}

    named: dict[str, Callable[[Request, Say], Awaitable[Mapping[str, Any]]]] = {
        "switch-begin": begin,
        "switch-commit": commit,
        "switch-rollback": rollback,
        "switch-status": status,
    }
    return named


def _one(request: Request) -> str:
    if len(request.units) != 1:
        raise SwitchError("name one agent; those that are switched with it go along")
    return request.units[0] if request.units[0] == "system" else check_name(request.units[0])


# Read from the disk, with or without a daemon


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
