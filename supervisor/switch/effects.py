"""What the commands of a switch do on this host. What takes long is done in threads."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from osmoda.supervisor.switch import data, phases, place
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from osmoda.supervisor.switch.agents import Agents
    from osmoda.supervisor.switch.members import Generations
    from osmoda.supervisor.switch.record import Member, Record, Records
    from osmoda.supervisor.switch.store import Generation, Store


class Ledger(Protocol):
    """What is needed of `osmoda.ledger.client.Ledger`."""

    def append(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Put an event on the ledger; it is on the disk when this returns. Raises LedgerError."""

    def close(self) -> None:
        """Let go of it."""


class Effects:
    """Carries commands out, each of them once or again. Raises SupervisorError, LedgerError, OSError."""

    def __init__(
        self,
        store: Store,
        records: Records,
        agents: Agents,
        nixos: Generations,
        open_ledger: Callable[[], Ledger | None],
        written: Callable[[str], Sequence[str]],
        reading: asyncio.Lock,
    ) -> None:
        self._store = store
        self._records = records
        self._agents = agents
        self._nixos = nixos
        self._open_ledger = open_ledger
        self._written = written
        self._reading = reading

    async def carry_out(self, command: phases.Command, record: Record) -> None:
        match command:
            case phases.Save(saved):
                await in_thread(self._records.save, saved)
            case phases.Tell(entries):
                await in_thread(self._tell, entries)
            case phases.Prune():
                await in_thread(self._prune, record)
            case phases.Stop(member):
                await self._agents.stop(member.name)
            case phases.Start(member):
                await self._agents.start(member.name)
            case phases.Confirm(member):
                condition = await self._agents.condition(member.name)
                if not condition.running:
                    raise SwitchError(f"{member.name} does not run: {condition.reason or 'it has ended'}")
            case phases.Verify(member, generation):
                if member.kind == "nixos":
                    await in_thread(self._nixos.verify, generation)
                else:
                    await in_thread(self._store.verify, member.name, generation, member.seal_of(generation))
            case phases.Flip(member, generation):
                await self._flip(member, generation)
            case phases.Snapshot(member):
                await self._snapshot(member, record.number)
            case phases.Restore(member):
                if member.before is not None:
                    await in_thread(data.restore, self._store.data(member.name, member.before), record.number)

    async def _flip(self, member: Member, generation: int | None) -> None:
        if member.kind == "nixos":
            if generation is not None:
                await self._nixos.activate(generation)
            return
        await in_thread(self._flip_agent, member, generation)

    def _flip_agent(self, member: Member, generation: int | None) -> None:
        self._store.flip(member.name, generation)
        where = self._store.generation(member.name, member.after if generation is None else generation).place
        if not where:
            return
        if generation is None:
            place.leave(self._store, member.name, where)
        else:
            place.settle(self._store, member.name, where)

    async def _snapshot(self, member: Member, number: int) -> None:
        if member.before is not None:
            old = self._store.generation(member.name, member.before)
            new = self._store.generation(member.name, member.after)
            target = self._store.data(member.name, member.before)
            await in_thread(data.snapshot, target, number, await self.data_of(old, new))

    def _tell(self, entries: Sequence[Mapping[str, Any]]) -> None:
        ledger = self._open_ledger()
        if ledger is not None:
            try:
                for entry in entries:
                    ledger.append("switch", entry)
            finally:
                ledger.close()

    def _prune(self, record: Record) -> None:
        for member in record.agents:
            needed = {generation for generation in (member.before, member.after) if generation is not None}
            if record.phase == "rolled-back":
                needed.discard(member.after)
            self._store.prune(member.name, record.keep, record.keep_seconds, needed, time.time())
        self._records.prune()

    async def data_of(self, *generations: Generation | None) -> list[str]:
        """The folders of data that generations of an agent may write. Raises SwitchError."""
        profiles = [one.profile for one in generations if one is not None and one.profile is not None]
        async with self._reading:
            paths = [path for profile in profiles for path in await in_thread(self._written, profile)]
        return data.folders(paths)


async def in_thread[**P, T](function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` in a thread; a task that is cancelled waits for its end, since nobody else could."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
