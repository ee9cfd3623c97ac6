"""The agents of this host's own engine, as a switch asks for them (`osmoda.supervisor.switch.agents`)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.switch.agents import Condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from osmoda.supervisor.engine.services import Engine


class EngineAgents:
    """Starts and stops through the engine; `wanted` is told what runs from now on, and what no longer does."""

    def __init__(self, engine: Engine, wanted: Callable[[str, bool], None]) -> None:
        self._engine = engine
        self._wanted = wanted
        self._sick: dict[str, str] = {}
        self._heard: dict[str, Callable[[], None]] = {}
        self._along: dict[str, list[str]] = {}

    async def start(self, name: str) -> None:
        """See `Agents`. What was stopped along with the agent, since it requires it, is started again, too."""
        unit = self._engine.full_name(name)
        self._listen(name)
        self._sick.pop(name, None)
        self.release(name)
        # A generation that could not be started often enough must not keep the one before it from being started.
        self._engine.reset_failed([unit])
        held = self._engine.units.get(unit)
        if held is not None:
            held.last_warning = ""
        outcomes = await self._engine.start([unit])
        refused = next((one.text for one in outcomes if one.unit == unit and not one.ok), None)
        if refused is not None:
            held = self._engine.units.get(unit)
            why = held.last_warning if held is not None else ""
            await self.stop(name)  # whoever switches decides when it is tried again
            raise SupervisorError(f"{name} did not start: {why or refused or 'it ended'}")
        self._wanted(unit, True)
        along = self._along.pop(name, [])
        if along:
            await self._engine.start(along)

    async def stop(self, name: str) -> None:
        """See `Agents`."""
        unit = self._engine.full_name(name)
        before = self._running()
        self._engine.holding.hold(unit, f"{name} is being switched; `osmoda-watch switch status` says how that stands")
        outcomes = await self._engine.stop([unit])
        refused = next((one.text for one in outcomes if one.unit == unit and not one.ok), None)
        if refused is not None:
            raise SupervisorError(f"{name} could not be stopped: {refused}")
        self._wanted(unit, False)
        along = sorted(before - self._running() - {unit})
        self._along[name] = [*self._along.get(name, []), *along]

    def release(self, name: str) -> None:
        """See `Agents`."""
        self._engine.holding.release(self._engine.full_name(name))

    def _running(self) -> set[str]:
        return {name for name, held in self._engine.units.items() if not held.machine.is_down}

    async def condition(self, name: str) -> Condition:
        """See `Agents`. One that was unhealthy is so until it is started on request: the engine restarts it at once."""
        unit = self._engine.full_name(name)
        held = self._engine.units.get(unit)
        coming = unit in self._engine.coming  # as after the start of a daemon: one that is down, and will not be
        if held is None:
            return Condition(running=False, given_up=not coming, health="unchecked", restarts=0)
        machine = held.machine
        return Condition(
            running=machine.active in ("active", "reloading"),
            given_up=machine.is_down and not coming,
            health="unhealthy" if name in self._sick else held.tally.state,
            restarts=machine.restarts.count,
            reason=self._sick.get(name) or held.last_problem or held.tally.problem,
            pid=machine.main_pid,
        )

    def _listen(self, name: str) -> None:
        if name not in self._heard:
            unit = self._engine.full_name(name)

            def heard() -> None:
                held = self._engine.units.get(unit)
                if held is not None and held.tally.state == "unhealthy":
                    self._sick.setdefault(name, held.tally.problem)

            self._heard[name] = self._engine.listen(unit, heard)

    @asynccontextmanager
    async def changes(self, names: frozenset[str]) -> AsyncIterator[AsyncIterator[str]]:
        """See `Agents`."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        stops = []
        for name in sorted(names):
            self._listen(name)
            stops.append(self._engine.listen(self._engine.full_name(name), partial(queue.put_nowait, name)))

        async def told() -> AsyncIterator[str]:
            while True:
                yield await queue.get()

        try:
            yield told()
        finally:
            for stop in stops:
                stop()
