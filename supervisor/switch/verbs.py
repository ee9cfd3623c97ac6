"""What the daemon does for `osmoda-watch switch`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from osmoda.supervisor.switch import candidate, tree
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.record import Terms
from osmoda.supervisor.switch.store import check_name
from osmoda.supervisor.switch.views import view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from osmoda.supervisor.control.server import Request, Say, Verb
    from osmoda.supervisor.switch.driver import Switches
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
    max_size: int = 8 << 30
    wait: bool = False


_BEGIN = msgspec.json.Decoder(Begin)


def verbs(switches: Switches, search: Callable[[], Sequence[str]]) -> dict[str, Verb]:
    """What can be asked of the daemon, by verb. `search` is where installed units are looked for."""

    async def begin(request: Request, say: Say) -> Mapping[str, Any]:
        try:
            asked = _BEGIN.decode(str(request.options.get("begin", "")))
        except msgspec.DecodeError as error:
            raise SwitchError(f"that is no switch: {error}") from None
        if not asked.agents and asked.system is None:
            raise SwitchError("a switch has at least one agent")
        if not 0 < asked.probation <= 30 * 86400 or asked.restarts < 1 or asked.window <= 0 or asked.keep < 1:
            raise SwitchError(
                "a probation lasts up to 30 days, and restarts that lead back and generations kept are at least 1"
            )
        async with switches.reading:
            where = search()
            try:
                proposed = [
                    await asyncio.to_thread(candidate.proposed, one, switches.store, where) for one in asked.agents
                ]
            except OSError as error:
                raise SwitchError(f"nothing is switched: {error.filename}: {error.strerror}") from None
        record = await switches.begin(
            proposed,
            Terms(asked.probation, asked.restarts, asked.window),
            system=asked.system,
            keep=asked.keep,
            keep_seconds=asked.keep_for,
            bounds=tree.Bounds(asked.max_size),
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
