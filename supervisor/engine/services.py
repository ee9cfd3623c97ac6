"""The engine of a host without systemd: units are loaded, started in order and beside each other, and looked after."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.capacity.admission import Admission
from osmoda.supervisor.confining import preparation
from osmoda.supervisor.engine.activation import Sockets
from osmoda.supervisor.engine.holding import Holding
from osmoda.supervisor.engine.shared_watch import SharedWatch
from osmoda.supervisor.engine.supervised import Supervised, Surroundings
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.lifecycle.restarts import Group
from osmoda.supervisor.lifecycle.state_messages import (
    GaveUp,
    ReloadAsked,
    ResetAsked,
    RestartAsked,
    StartAsked,
    StopAsked,
)
from osmoda.supervisor.logs.writer import DAEMON
from osmoda.supervisor.units import jobs
from osmoda.supervisor.units.files import search_path
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from osmoda.supervisor.confining.preparation import Prepared
    from osmoda.supervisor.engine.acts import Acts
    from osmoda.supervisor.lifecycle.states import Active
    from osmoda.supervisor.logs.writer import Logs
    from osmoda.supervisor.units.unit import Unit

type Reporter = Callable[[str, str], None]
"""Told of a unit, and of what becomes of it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of what was asked for one unit; `text` says why it has not."""

    unit: str
    ok: bool
    text: str = ""


class Engine:
    """All services of one daemon. To be used in one event loop; `close` ends what runs."""

    def __init__(
        self, search: Sequence[str], logs: Logs, acts: Acts, generations: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._search = tuple(search)
        self._generations = generations  # folders of units that go before all others
        self._logs = logs
        self._acts = acts
        self.units: dict[str, Supervised] = {}
        self.groups: dict[str, Group] = {}
        self.admission = Admission()
        self.sockets = Sockets(lambda service: self.soon(self._activate(service)), logs)
        self._listening: dict[str, list[Callable[[], None]]] = {}
        self.holding = Holding()
        """Units that are not started now."""
        self.coming: set[str] = set()
        """Units that are about to be started, and of which their machines have not heard yet."""
        # One at a time: the interpreter has one lock, and msgspec dies of two threads that need a new type's schema.
        self.compiling = asyncio.Lock()
        self._background: set[asyncio.Task[object]] = set()
        self._around = Surroundings(logs, acts, self._changed, self._end_group, self.sockets.of)
        self._closing = False
        self.shared = SharedWatch(self.units, acts, lambda text: logs.say(DAEMON, text, 4))

    # --- units ---

    def loader(self) -> Loader:
        """The units as they are on disk now."""
        generations = tuple(self._generations())
        return Loader((*generations, *(self._search or search_path())) if generations else self._search)

    async def _read(self, names: Iterable[str]) -> tuple[dict[str, Unit], dict[str, str]]:
        """Units by name with all that they pull in; and why some could not be read. Another thread reads."""
        return await asyncio.to_thread(lambda: jobs.closure(self.loader(), names))

    def _held(self, unit: Unit) -> Supervised:
        """The service of `unit`, made where there is none yet."""
        found = self.units.get(unit.name)
        if found is None:
            found = self.units[unit.name] = Supervised(unit, self._around, self._group(unit))
        return found

    def _group(self, unit: Unit) -> Group | None:
        name = unit.osmoda.group
        if not name:
            return None
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, unit.osmoda.group_interval, unit.osmoda.group_burst)
        elif unit.osmoda.group_burst:
            group.change(unit.osmoda.group_interval, unit.osmoda.group_burst)
        return group

    async def _prepare(self, unit: Unit) -> Prepared:
        """Compile it in another thread. Raises SupervisorError, SandboxError."""
        async with self.compiling:
            return await asyncio.to_thread(preparation.prepare, unit)

    async def look_up(self, names: Sequence[str]) -> list[Supervised]:
        """Services by name, whether they were ever started or not; those that cannot be read are left out."""
        missing = [name for name in names if name not in self.units and name.endswith(".service")]
        if missing:
            units, _ = await self._read(missing)
            for unit in units.values():
                if unit.name in missing:
                    self._held(unit)
        return [self.units[name] for name in names if name in self.units]

    # --- what can be asked ---

    async def start(
        self, names: Sequence[str], *, by_hand: bool = True, report: Reporter | None = None, forced: bool = False
    ) -> list[Outcome]:
        """Start units and what they need, as they are on disk now, each as soon as those before it are up.

        One more than this host has room for is refused, unless `forced`.
        """
        wanted = [*map(self.full_name, names)]
        self.coming |= {*wanted}
        try:
            outcomes = [await self._listen(name) for name in wanted if name.endswith(".socket")]
            read = self.holding.now()
            units, problems = await self._read(name for name in wanted if name.endswith(".service"))
            outcomes += [self._refused(name, text) for name, text in problems.items()]

            async def one(unit: Unit, waited: Mapping[str, Outcome]) -> Outcome:
                try:
                    if self.holding.is_void(unit.name, read):
                        again = await self.start([unit.name], by_hand=by_hand, report=report, forced=forced)
                        of_all = Outcome(unit.name, all(outcome.ok for outcome in again))  # where it has another name
                        return next((outcome for outcome in again if outcome.unit == unit.name), of_all)
                    return await self._start_one(unit, waited, by_hand=by_hand, report=report, forced=forced)
                finally:
                    self.coming.discard(unit.name)

            return outcomes + await self._in_order(units, jobs.before_start(units), one)
        finally:
            self.coming -= {*wanted}

    async def _listen(self, name: str) -> Outcome:
        """Listen at what a socket unit names, and start its service when somebody connects."""
        try:
            await self.sockets.listen(self.loader, name)
        except SupervisorError as error:
            return self._refused(name, str(error))
        return Outcome(name, True)

    async def _start_one(
        self, unit: Unit, waited: Mapping[str, Outcome], *, by_hand: bool, report: Reporter | None, forced: bool
    ) -> Outcome:
        if reason := self.holding.reason(unit.name):
            return self._refused(unit.name, reason)
        needed = {*unit.dependencies.requires, *unit.dependencies.binds_to}
        failed = next((name for name in needed if name in waited and not waited[name].ok), None)
        if failed is not None:
            return self._refused(unit.name, f"{failed}, which it requires, did not start")
        missing = next((name for name in unit.dependencies.requisite if not self._is_up(name)), None)
        if missing is not None:
            return self._refused(unit.name, f"{missing}, without which it does not start (Requisite=), is not up")
        held = self._held(unit)
        stops = held.stops
        if held.machine.active in ("active", "reloading"):
            return Outcome(unit.name, True)
        if held.machine.is_down:
            held.machine.read_again(unit)  # what it needed before is not what it needs now
        # Whichever of the two says so (systemd.unit(5)).
        others = {name for name, one in self.units.items() if unit.name in one.unit.dependencies.conflicts}
        await self._stop_all(others | {name for name in unit.dependencies.conflicts if name in self.units})
        if report is not None:
            report(unit.name, "starting")
        # One that is still ending is started when it has: as its files are now, and not as they were before.
        if held.machine.sub in ("dead", "failed", "auto-restart") or held.machine.active == "deactivating":
            try:
                prepared = await self._prepare(unit)
                self.admission.admit(unit.name, prepared.confined.profile, forced=forced)
                await self.sockets.open(self.loader, unit)
            except preparation.Skipped as skipped:
                self._logs.say(unit.name, f"it is not started: {skipped}")
                return Outcome(unit.name, True, str(skipped))
            except (SupervisorError, SandboxError) as error:
                return self._refused(unit.name, str(error))
            if self._closing or held.stops != stops:
                prepared.service.close()
                return self._refused(unit.name, "it was stopped before it was started")
            held.read_again(unit, prepared, self._group(unit))
            self.shared.follow()
        if by_hand and held.machine.restarts.group is not None:
            held.machine.restarts.group.reset()
        self.coming.discard(unit.name)  # from here on its machine tells
        done = await held.ask(StartAsked(by_hand), "start")
        if done.ok:
            held.last_problem = ""
        if report is not None:
            report(unit.name, "up" if done.ok else "failed")
        return Outcome(unit.name, done.ok, done.text)

    def _refused(self, name: str, text: str) -> Outcome:
        self._logs.say(name, text, 3)
        held = self.units.get(name)
        if held is not None:
            held.last_problem = text
        return Outcome(name, False, text)

    async def stop(self, names: Sequence[str], *, report: Reporter | None = None) -> list[Outcome]:
        """Stop units and those that cannot be without them; each after those that were started after it."""
        known = {name: held.unit for name, held in self.units.items()}
        wanted = jobs.stopped_with(known, [self.full_name(name) for name in names])
        listening = self.sockets.names()
        unknown = [
            Outcome(name, True, "" if name in listening else "it does not run")
            for name in map(self.full_name, names)
            if name not in known
        ]

        async def one(unit: Unit, _: Mapping[str, Outcome]) -> Outcome:
            if report is not None:
                report(unit.name, "stopping")
            return await self._stop_one(self.units[unit.name])

        units = {name: known[name] for name in wanted}
        for name in map(self.full_name, names):
            self.sockets.close(name)
        return unknown + await self._in_order(units, jobs.before_stop(units), one)

    async def _stop_one(self, held: Supervised) -> Outcome:
        held.stops += 1
        if not held.machine.is_down:
            self._acts.after("stop", {"unit": held.name})
        done = await held.ask(StopAsked(), "stop")
        return Outcome(held.name, done.ok, done.text)

    async def restart(self, names: Sequence[str], *, report: Reporter | None = None) -> list[Outcome]:
        """Restart units as they are on disk now. One that could not be started as it is there goes on as it was."""
        read = self.holding.now()
        units, problems = await self._read(names)
        asked = {
            name: unit for name, unit in units.items() if name in set(map(self.full_name, names)) or unit.name in names
        }
        outcomes = [Outcome(name, False, text) for name, text in problems.items() if name in names]
        ready: dict[str, Prepared] = {}
        for name, unit in asked.items():
            if name in self.units and not self.units[name].machine.is_down:
                try:
                    prepared = await self._prepare(unit)
                    self.admission.admit(name, prepared.confined.profile)
                    ready[name] = prepared
                except (SupervisorError, SandboxError) as error:
                    outcomes.append(self._refused(name, f"it goes on as it was: {error}"))
        known = {name: held.unit for name, held in self.units.items() if not held.machine.is_down}
        others = [name for name in jobs.stopped_with(known, [*ready]) if name not in ready]
        await self.stop(others)
        for name, prepared in ready.items():
            if self.holding.reason(name) or self.holding.is_void(name, read):
                prepared.service.close()
                continue  # it is started with the rest, from what is there then, unless the switch has done so
            if report is not None:
                report(name, "restarting")
            held = self.units[name]
            held.read_again(prepared.unit, prepared, self._group(prepared.unit))
            self.shared.follow()
            done = await held.ask(RestartAsked(), "start")
            outcomes.append(Outcome(name, done.ok, done.text))
        refused = {outcome.unit for outcome in outcomes}
        rest = [name for name in asked if name not in refused]
        started = await self.start([*rest, *others], report=report) if rest or others else []
        return outcomes + [outcome for outcome in started if outcome.unit in asked]

    async def reload(self, names: Sequence[str]) -> list[Outcome]:
        """Have units read their own configuration again (ExecReload=)."""
        outcomes = []
        for name in map(self.full_name, names):
            held = self.units.get(name)
            if held is None:
                outcomes.append(Outcome(name, False, "it does not run"))
                continue
            done = await held.ask(ReloadAsked(), "reload")
            outcomes.append(Outcome(name, done.ok, done.text))
        return outcomes

    def reset_failed(self, names: Sequence[str]) -> list[Outcome]:
        """Forget that units failed, and how often they were started; without names of all."""
        wanted = [self.full_name(name) for name in names] or [*self.units]
        for name in wanted:
            if name in self.units:
                self.units[name].hear(ResetAsked())
        return [Outcome(name, name in self.units, "" if name in self.units else "it is not loaded") for name in wanted]

    async def read_again(self) -> list[Outcome]:
        """Read the files of all units again; what runs is not touched, and is restarted under what they say now."""
        read = self.holding.now()
        units, problems = await self._read([*self.units])
        outcomes = [self._refused(name, f"it stays as it was read before: {text}") for name, text in problems.items()]
        for name, unit in units.items():
            held = self.units.get(name)
            if held is None:
                continue
            try:
                prepared = None if held.machine.is_down else await self._prepare(unit)
            except preparation.Skipped as skipped:
                # Of what was not compiled no command may run: it would, under the plan of the reading before.
                text = f"it stays as it was read before: {skipped}"
                self._logs.say(name, text)
                outcomes.append(Outcome(name, True, text))
                continue
            except (SupervisorError, SandboxError) as error:
                outcomes.append(self._refused(name, f"it stays as it was read before: {error}"))
                continue
            if self.holding.reason(name) or self.holding.is_void(name, read):
                if prepared is not None:
                    prepared.service.close()  # whoever switches it has it read again
            else:
                held.read_again(unit, prepared, self._group(unit))
            outcomes.append(Outcome(name, True))
        return outcomes

    # --- order ---

    async def _in_order(
        self,
        units: Mapping[str, Unit],
        before: Mapping[str, frozenset[str]],
        do: Callable[[Unit, Mapping[str, Outcome]], Awaitable[Outcome]],
    ) -> list[Outcome]:
        """Do something with all units beside each other, with each after those that come before it."""
        tasks: dict[str, asyncio.Task[Outcome]] = {}

        async def one(unit: Unit) -> Outcome:
            earlier = [name for name in before[unit.name] if name in tasks]
            waited = dict(zip(earlier, await asyncio.gather(*(tasks[name] for name in earlier)), strict=True))
            return await do(unit, waited)

        for name, unit in units.items():
            tasks[name] = asyncio.create_task(one(unit))
        try:
            return list(await asyncio.gather(*tasks.values()))
        finally:
            for task in tasks.values():
                task.cancel()

    async def _stop_all(self, names: Iterable[str]) -> None:
        running = [name for name in names if not self.units[name].machine.is_down]
        if running:
            await self.stop(running)

    def full_name(self, name: str) -> str:
        """A unit as a person names it, with its suffix."""
        return name if name.endswith((".service", ".socket")) else f"{name}.service"

    def _is_up(self, name: str) -> bool:
        held = self.units.get(name)
        return held is not None and held.machine.active in ("active", "reloading")

    # --- what happens ---

    def _changed(self, held: Supervised, before: Active, after: Active) -> None:
        for hear in tuple(self._listening.get(held.name, ())):
            hear()
        if self._closing or before == after:
            return
        if after in ("inactive", "failed"):
            self.admission.leave(held.name)
            self.sockets.resume(held.unit, gave_up=held.machine.result == "start-limit-hit")
            bound = [name for name, one in self.units.items() if held.name in one.unit.dependencies.binds_to]
            if bound:
                self.soon(self._stop_all(bound))

    def listen(self, name: str, hear: Callable[[], None]) -> Callable[[], None]:
        """Have `hear` called at once whenever state or health of a unit changes; the value ends that."""
        self._listening.setdefault(name, []).append(hear)
        return lambda: self._listening[name].remove(hear)

    def _end_group(self, first: Supervised, text: str) -> None:
        name = first.unit.osmoda.group
        for held in self.units.values():
            if held is not first and held.unit.osmoda.group == name:
                held.hear(GaveUp(text))

    async def _activate(self, service: str) -> None:
        """Somebody has connected to a socket of `service`."""
        outcomes = await self.start([service], by_hand=False)
        held = self.units.get(service)
        if held is None or (held.machine.is_down and not self.sockets.is_waiting(service)):
            # It could not even be tried: the connection that waits would have it tried for ever.
            text = next((outcome.text for outcome in outcomes if not outcome.ok), "")
            self.sockets.give_up(service, text)

    def soon(self, work: Awaitable[object]) -> None:
        """Have something done beside what is going on."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the end ---

    async def close(self) -> None:
        """Stop all in reverse order, and let go of it."""
        self._closing = True
        self.sockets.close_all()
        for task in self._background:
            task.cancel()
        await self.stop([*self.units])
        for held in self.units.values():
            await held.close()
        self.shared.close()
        self.units.clear()
