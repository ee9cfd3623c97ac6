"""All switches of a store: begun, taken up again after a kill, driven to their ends, told what is asked of them.

One process drives the switches of a store, and holds its lock. What takes long (copying, comparing, waiting for the
disk) is done in threads, so the loop that supervises agents goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.switch import phases, place, tree
from osmoda.supervisor.switch.effects import Effects, in_thread
from osmoda.supervisor.switch.errors import SwitchError, in_words
from osmoda.supervisor.switch.live import Live
from osmoda.supervisor.switch.members import NixosSystem
from osmoda.supervisor.switch.record import MOST_MEMBERS, Member, Record, Records, Terms, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from osmoda.supervisor.switch.agents import Agents
    from osmoda.supervisor.switch.effects import Ledger
    from osmoda.supervisor.switch.members import Generations
    from osmoda.supervisor.switch.store import Content, Generation, Store

_RECOVERY = 30.0  # seconds that others wait for the recovery


@dataclass(frozen=True, slots=True)
class Proposed:
    """An agent that is to be switched: to a generation made from `to`, or to the one of that number.

    `baseline` is what it runs from now, where it has no generation yet; `snapshot`: its data is copied, and put back
    with the old generation.
    """

    name: str
    to: Content | int
    baseline: Content | None = None
    snapshot: bool = False


class Switches:
    """All switches of a store. A context manager: on leaving it nothing is driven any more, and all is as on disk.

    `open_ledger` gives the ledger or None where there is none, and raises LedgerError where it cannot be written.
    `written` says which paths an agent may write under the profile in a file. `observer`, for tests, is called before
    and after each command.
    """

    def __init__(
        self,
        store: Store,
        agents: Agents,
        open_ledger: Callable[[], Ledger | None],
        written: Callable[[str], Sequence[str]],
        *,
        nixos: Generations | None = None,
        reading: asyncio.Lock | None = None,
        observer: Callable[[str, Record, phases.Command], None] = lambda *_: None,
    ) -> None:
        self.store = store
        self.records = Records(store.records)
        self._agents = agents
        self._open_ledger = open_ledger
        self._nixos = nixos or NixosSystem()
        self.reading = reading or asyncio.Lock()
        self._effects = Effects(store, self.records, agents, self._nixos, open_ledger, written, self.reading)
        self._observer = observer
        self._live: dict[int, Live] = {}
        self._beginning = asyncio.Lock()
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self.store.lock())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stack.close()

    # --- what is asked for ---

    async def recover(self) -> list[str]:
        """Take up what a process before this one has left, before agents are started.

        Waits until each is settled, but not for long: other agents want to be started. What cannot be taken up, since
        it cannot be read, is told in sentences.
        """
        problems = []
        async with self._beginning:
            try:
                await in_thread(self.store.clean)
            except OSError as error:
                problems.append(f"what a killed daemon has left half made stays there: {in_words(error)}")
            for number in self.records.numbers():
                try:
                    record = await in_thread(self.records.load, number)
                except SwitchError as error:
                    problems.append(str(error))
                    continue
                if not record.finished or record.untold:
                    self._drive(phases.Switch.resume(record, moment()))
        waits = [asyncio.create_task(self.settled(number)) for number in tuple(self._live)]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_RECOVERY)
            for one in late:
                one.cancel()
        return problems

    async def begin(
        self,
        proposed: Sequence[Proposed],
        terms: Terms,
        *,
        system: int | None = None,
        keep: int = 5,
        keep_seconds: float = 0.0,
        bounds: tree.Bounds | None = None,
    ) -> Record:
        """Make the generations that are missing, and begin to switch; the record of the switch. Raises SwitchError.

        Returns when it has begun, which `settled` waits for the outcome of.
        """
        async with self._beginning:
            names = [one.name for one in proposed]
            if len(names) > MOST_MEMBERS:
                raise SwitchError(f"at most {MOST_MEMBERS} agents are switched together, not {len(names)}")
            if len({*names}) != len(names):
                raise SwitchError("an agent takes part in a switch once")
            for name in names:
                self._require_free(name)
            if system is not None:
                self._require_free("system", "nixos")
            await in_thread(self._require_ledger)
            made: list[Generation] = []
            try:
                members = [await self._member(one, made, bounds or tree.Bounds()) for one in proposed]
                if system is not None:
                    await in_thread(self._nixos.verify, system)
                    members.append(Member("nixos", "system", self._nixos.current(), system))
                now = moment()
                record = Record(0, tuple(members), terms, "staged", now, now, keep=keep, keep_seconds=keep_seconds)
                number = max(self.records.numbers(), default=0) + 1
                record = replace(record, untold=({**record.entry(), "switch": number},))
                record = await in_thread(self.records.create, record)
            except BaseException as error:
                for generation in made:
                    with contextlib.suppress(OSError):  # it is complete, and stays until it is pruned
                        await in_thread(tree.remove, generation.directory)
                if isinstance(error, OSError):
                    raise SwitchError(f"nothing is switched: {in_words(error)}") from None
                raise
            self._drive(phases.Switch.begin(record))
            return record

    async def commit(self, name: str, reason: str = "by hand") -> int:
        """End the probation of an agent's switch early; its number. Raises SwitchError."""
        number = self._of(name)
        await self._live[number].ask(lambda now: self._live[number].switch.commit(reason, now))
        return number

    async def go_back(self, name: str, reason: str = "by hand") -> int:
        """Go back from an agent's switch that is not over; its number. Raises SwitchError."""
        number = self._of(name)
        await self._live[number].ask_back(reason)
        return number

    async def settled(self, number: int, *, over: bool = False) -> Record:
        """The record of a switch, once it is over or waits: on probation, or to try again; with `over`, at its end."""
        live = self._live.get(number)
        return await live.settled(over=over) if live is not None else self.records.load(number)

    def running(self) -> list[phases.Switch]:
        """Those that are not over, in order."""
        return [live.switch for _, live in sorted(self._live.items())]

    def held(self) -> frozenset[str]:
        """Agents that a switch starts and stops now: nobody else should, but by hand."""
        return frozenset(member.name for switch in self.running() for member in switch.record.agents)

    def _of(self, name: str) -> int:
        for number, live in self._live.items():
            if any(member.name == name for member in live.switch.record.members):
                return number
        raise SwitchError(f"{name} is not being switched; `osmoda-watch switch history` shows what was")

    def _require_free(self, name: str, kind: str = "agent") -> None:
        for number, live in self._live.items():
            record = live.switch.record
            if any(member.name == name and member.kind == kind for member in record.members):
                raise SwitchError(
                    f"{name} is in switch {number}, which is {record.phase}: "
                    "`osmoda-watch switch commit` or `rollback` ends it"
                )

    def _require_ledger(self) -> None:
        """Before anything is changed: raise SwitchError where there is a ledger and it cannot be written."""
        try:
            ledger = self._open_ledger()
        except LedgerError as error:
            raise SwitchError(f"nothing is switched, since the ledger cannot be written: {error}") from None
        if ledger is not None:
            ledger.close()

    async def _member(self, one: Proposed, made: list[Generation], bounds: tree.Bounds) -> Member:
        now = time.time()
        before = self.store.current(one.name)
        if before is None and one.baseline is not None:
            await self._require_place(one.baseline.place)
            baseline = await in_thread(self.store.stage, one.name, one.baseline, now, bounds)
            made.append(baseline)
            before = baseline.number
        if isinstance(one.to, int):
            after = await in_thread(self.store.generation, one.name, one.to)
            if one.to == before:
                raise SwitchError(f"generation {one.to} of {one.name} is the current one already")
        else:
            await self._require_place(one.to.place)
            after = await in_thread(self.store.stage, one.name, one.to, now, bounds)
            made.append(after)
        old = await in_thread(self.store.generation, one.name, before) if before is not None else None
        if old is not None and old.place != after.place:
            raise SwitchError(
                f"{one.name} finds its code at {old.place or 'no place of its own'}, and by the new unit at "
                f"{after.place or 'none'}: an agent keeps its place (WorkingDirectory=)"
            )
        if one.snapshot:
            await self._effects.data_of(old, after)
        condition = await self._agents.condition(one.name)
        seals = (old.seal if old is not None else "", after.seal)
        ran = condition.running or not condition.given_up
        return Member("agent", one.name, before, after.number, seals, ran, one.snapshot)

    async def _require_place(self, where: str) -> None:
        if where:
            await in_thread(place.require_place, where)

    # --- driving ---

    def _drive(self, switch: phases.Switch) -> None:
        live = Live(switch, self._agents, self._effects, self._observer)
        self._live[switch.record.number] = live
        live.task = asyncio.create_task(self._to_its_end(live), name=f"switch {switch.record.number}")

    async def _to_its_end(self, live: Live) -> None:
        try:
            await live.run()
        finally:
            del self._live[live.switch.record.number]
            await live.leave()
