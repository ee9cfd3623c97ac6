"""One service as the engine holds it: its state machine, what runs of it, its log, its health."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import service as sandboxes
from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.confining import preparation
from osmoda.supervisor.engine.slot import Slot
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.lifecycle import health, notifications, state_messages
from osmoda.supervisor.lifecycle.machine import Machine
from osmoda.supervisor.lifecycle.restarts import Restarts
from osmoda.supervisor.lifecycle.state_messages import Done, Elapsed, EndGroup, Kill, NotStarted, Run, Say, Signal
from osmoda.supervisor.logs.capture import Outlet
from osmoda.supervisor.units.environment import expand

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from osmoda.sandbox.denials import Denial
    from osmoda.supervisor.confining.confinement import Confined
    from osmoda.supervisor.confining.preparation import Prepared
    from osmoda.supervisor.engine.acts import Acts
    from osmoda.supervisor.lifecycle.restarts import Group
    from osmoda.supervisor.lifecycle.state_messages import Command, Event, Job, Which
    from osmoda.supervisor.lifecycle.states import Active
    from osmoda.supervisor.logs.writer import Logs
    from osmoda.supervisor.units.unit import Exec, Unit

_KEPT_DENIALS = 10
_FIRST_CHECKS = 1.0  # seconds between checks until one has passed, where the interval is longer


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all services share, and whom they tell."""

    logs: Logs
    acts: Acts
    changed: Callable[[Supervised, Active, Active], None]
    end_group: Callable[[Supervised, str], None]
    listeners: Callable[[Unit], Sequence[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class InForce:
    """What a program runs under: its unit as it was prepared, and the digest of the plan at that moment."""

    prepared: Prepared
    plan: str


class Supervised:
    """One service. To be used in the event loop that it was made in."""

    def __init__(self, unit: Unit, around: Surroundings, group: Group | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._around = around
        self.name = unit.name
        self.outlet = Outlet(self._loop, around.logs, unit.name)
        self.machine = Machine(unit, Restarts(unit, random.random, group))
        self.prepared: Prepared | None = None
        """What the next command of it is run under."""
        self._ran: InForce | None = None
        self.tally = health.Tally(unit.osmoda.health, 0.0)
        self.since = time.time()
        """When its state became what it is, in seconds since the epoch."""
        self.last_problem = ""
        self.stops = 0
        """How often somebody has asked for its end: whoever is about to start it looks whether that has changed."""
        self.last_warning = ""
        """The last that its log was told of it and that is no mere note."""
        self.denials: deque[Denial] = deque(maxlen=_KEPT_DENIALS)
        self.identity = ""
        """Its sandbox, as `osmoda-sandbox ps` names it."""
        self._slots: dict[Which, Slot] = {}
        self._events: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Job, asyncio.Future[Done]]] = []
        self._checks: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def unit(self) -> Unit:
        """The unit as it was read last."""
        return self.machine.unit

    @property
    def in_force(self) -> InForce | None:
        """What its program runs under, whatever was read since; where none runs, what the next one would."""
        main = self._slots.get("main")
        if main is not None and main.running is not None:
            return self._ran
        return InForce(self.prepared, self.prepared.plan) if self.prepared is not None else None

    @property
    def confined(self) -> tuple[Confined, ...]:
        """What it may do: as it runs, and as its next start will."""
        in_force = self.in_force
        found = [in_force.prepared.confined] if in_force is not None else []
        if self.prepared is not None and self.prepared.confined not in found:
            found.append(self.prepared.confined)
        return tuple(found)

    def read_again(self, unit: Unit, prepared: Prepared | None, group: Group | None) -> None:
        """Go on under another reading of the unit's files; what runs is not touched until its next start."""
        self.machine.read_again(unit)
        self.machine.restarts.group = group
        if prepared is not None:
            old, self.prepared = self.prepared, prepared
            if old is not None:
                old.service.close()
            if old is None or old.confined.notes != prepared.confined.notes:
                for note in prepared.confined.notes:
                    self.outlet.say(note)

    # --- events in ---

    def hear(self, event: Event) -> None:
        """Tell the machine, and do what it orders; what follows from that, too."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events and not self._closed:
                before = self.machine.active
                for command in self.machine.handle(self._events.popleft(), self._loop.time()):
                    self._carry_out(command)
                self._look_after_health()
                if self.machine.active != before:
                    self.since = time.time()
                    self._around.changed(self, before, self.machine.active)
        finally:
            self._busy = False
        self._set_timer()

    async def ask(self, event: Event, job: Job) -> Done:
        """Tell the machine what somebody asks for, and wait for the end of that."""
        future: asyncio.Future[Done] = self._loop.create_future()
        waiter = job, future
        self._waiters.append(waiter)
        try:
            self.hear(event)
            return await future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _set_timer(self) -> None:
        deadline = self.machine.deadline()
        if self._timer is not None:
            if self._timer.when() <= deadline < math.inf:
                return  # it comes in time, and sets the next one
            self._timer.cancel()
            self._timer = None
        if deadline < math.inf and not self._closed:
            self._timer = self._loop.call_at(deadline, self._elapsed)

    def _elapsed(self) -> None:
        self._timer = None
        self.hear(Elapsed())

    # --- commands out ---

    def _carry_out(self, command: Command) -> None:
        match command:
            case Run():
                self._run(command)
            case Signal(which, number, everyone):
                slot = self._slots.get(which)
                if slot is not None and not slot.signal(number, everyone=everyone):
                    self._call_off(slot)
            case Kill(which):
                slot = self._slots.get(which)
                if slot is not None and not slot.kill():
                    self._call_off(slot)
            case Say(text, level):
                if level <= 4:
                    self.last_problem = self.last_warning = text
                self.outlet.say(text, level)
            case Done():
                if command.job == "start" and not command.ok:
                    self.last_problem = command.text
                for job, future in self._waiters:
                    if job == command.job and not future.done():
                        future.set_result(command)
                self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]
            case EndGroup(text):
                self._around.end_group(self, text)

    def _call_off(self, slot: Slot) -> None:
        """It has not been started yet, and will not be."""
        if slot.task is not None and not slot.task.done():
            slot.task.cancel()
            self._events.append(state_messages.Ended(slot.which, 143, 15))

    def _run(self, command: Run) -> None:
        prepared = self.prepared
        assert prepared is not None, "a unit is prepared before it is started"
        slot = self._slots[command.which] = Slot(command.which, self.outlet, self._slot_heard)
        number = preparation.signal_to_main(command.command) if command.which == "control" else 0
        if number:
            main = self._slots.get("main")
            sent = main is not None and main.signal(number, everyone=False)
            self._events.append(state_messages.Ended("control", 0 if sent else 1))
        elif prepared.unit.environment_files or (command.kind == "start" and self._around.acts.is_kept):
            slot.task = self._loop.create_task(self._start_later(slot, command, prepared))
        else:
            self._start(slot, command, prepared, None)

    async def _start_later(self, slot: Slot, command: Run, prepared: Prepared) -> None:
        """Start it when what has to be read, and written, is: another thread waits for the disk."""
        try:
            ignored: list[str] = []
            env = await asyncio.to_thread(
                preparation.variables, prepared.unit, prepared.confined, self._told(prepared.unit, command), ignored
            )
            for text in ignored:
                self.outlet.say(text, 4)
            if command.kind == "start":
                kind = "restart" if self.machine.restarts.count else "start"
                await self._around.acts.before(kind, self._fields(prepared))
        except SupervisorError as error:
            slot.task = None
            self.hear(NotStarted(slot.which, str(error)))  # nothing of it is on the ledger
        else:
            slot.task = None
            self._start(slot, command, prepared, env)

    def _start(self, slot: Slot, command: Run, prepared: Prepared, env: dict[str, str] | None) -> None:
        is_main = command.which == "main"
        try:
            if env is None:
                env = preparation.variables(prepared.unit, prepared.confined, self._told(prepared.unit, command))
            slot.start(
                prepared,
                expand(command.command, env),
                env,
                listeners=self._around.listeners(prepared.unit) if is_main else (),
                notify=prepared.unit.notify_access != "none",
                hold=is_main and prepared.unit.type != "oneshot",
            )
            if is_main:
                self._ran = InForce(prepared, prepared.plan)
        except (SandboxError, SupervisorError) as error:
            self._not_started(slot, command, str(error), getattr(error, "exit_code", 125))
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            self._not_started(slot, command, f"{name}{error.strerror or error}", 125)

    def _not_started(self, slot: Slot, command: Run, text: str, code: int) -> None:
        """Nothing was launched: where there is a ledger, it has a start of it that must not stay without its end."""
        if command.kind == "start":
            self._around.acts.after("not-started", {"unit": self.name, "error": text})
        self.hear(NotStarted(slot.which, text, code))

    def _told(self, unit: Unit, command: Run) -> dict[str, str]:
        """What the supervisor says to a program in its environment (systemd.exec(5))."""
        told = {}
        if command.which == "main" and unit.watchdog and not math.isinf(unit.watchdog):
            told["WATCHDOG_USEC"] = str(int(unit.watchdog * 1e6))
        if command.kind == "stop-post":
            machine = self.machine
            told["SERVICE_RESULT"] = machine.result
            if machine.exit_signal:
                told |= {"EXIT_CODE": "killed", "EXIT_STATUS": str(machine.exit_signal)}
            elif machine.exit_code is not None:
                told |= {"EXIT_CODE": "exited", "EXIT_STATUS": str(machine.exit_code)}
        return told

    # --- what its sandboxes tell ---

    def _slot_heard(self, slot: Slot, event: sandboxes.Event) -> None:
        if isinstance(event, sandboxes.Ended):
            self._note_denials(event)
        if self._slots.get(slot.which) is not slot:
            return  # another one has taken its place
        match event:
            case sandboxes.Started():
                self._has_started(slot, event)
            case sandboxes.Notified():
                access = self.unit.notify_access
                if access in ("all", "exec") or (access == "main" and slot.which == "main" and event.is_main):
                    self.hear(state_messages.Notified(notifications.parse(event.data)))
            case sandboxes.MainEnded():
                self.hear(state_messages.MainEnded(event.status, event.signal))
            case sandboxes.Ended():
                result = event.result
                short = any(one.operation == "memory" and one.layer == "cgroup" for one in result.denials)
                self.hear(state_messages.Ended(slot.which, result.status, result.signal, short and result.signal == 9))
            case sandboxes.Failed():
                if slot.started:
                    self.outlet.say(str(event.error), 3)
                    self.hear(state_messages.Ended(slot.which, 137, 9))
                else:
                    self.hear(NotStarted(slot.which, str(event.error), event.error.exit_code))

    def _has_started(self, slot: Slot, event: sandboxes.Started) -> None:
        if slot.which == "main" and slot.running is not None and self._ran is not None:
            self.identity = slot.running.identity
            confined = self._ran.prepared.confined
            tier = confined.profile.tier
            name = confined.file.rpartition("/")[2] or f"tier{tier}"
            self.outlet.say(f"started, pid {event.pid}, in sandbox {self.identity}: tier {tier}, profile {name}")
        self.hear(state_messages.Started(slot.which, event.pid))

    def _note_denials(self, event: sandboxes.Ended) -> None:
        for denial in event.result.denials:
            if denial.habitual:
                continue
            self.denials.append(denial)
            self.outlet.say(denial.sentence(), 4)

    def _fields(self, prepared: Prepared) -> dict[str, Any]:
        """What the ledger keeps of a start."""
        profile = prepared.confined.profile
        return {
            "unit": self.name,
            "files": list(prepared.unit.files),
            "tier": profile.tier,
            "profile": prepared.confined.file,
            "plan": prepared.plan,
            "restarts": self.machine.restarts.count,
        }

    # --- health ---

    def _look_after_health(self) -> None:
        looked_after = self.machine.sub in ("running", "reload", "reload-notify")
        if looked_after and self._checks is None and self.unit.osmoda.health.checks:
            self.tally = health.Tally(self.unit.osmoda.health, self._loop.time())
            self._checks = self._loop.create_task(self._check())
        elif not looked_after and self._checks is not None:
            self._checks.cancel()
            self._checks = None

    async def _check(self) -> None:
        wanted = self.unit.osmoda.health
        tally = self.tally
        while True:
            problem = await health.check_all(wanted, self)
            before = tally.state
            if not problem:
                tally.passed()
            elif tally.failed(problem, self._loop.time()):
                self._note_health(before)
                self._checks = None  # it ends here, not by the machine's doing
                self.hear(state_messages.Unhealthy(problem))
                return
            if tally.state != before:
                self._note_health(before)
            await asyncio.sleep(min(wanted.interval, _FIRST_CHECKS) if tally.state == "starting" else wanted.interval)

    def _note_health(self, before: health.State) -> None:
        now = self.tally.state
        if now == "healthy":
            self.outlet.say("it is healthy" if before == "starting" else "it is healthy again")
        self._around.acts.after("health", {"unit": self.name, "state": now, "problem": self.tally.problem})
        self._around.changed(self, self.machine.active, self.machine.active)

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to a port of its own loopback. Raises OSError."""
        main = self._slots.get("main")
        if main is None or main.running is None:
            raise ConnectionRefusedError(111, "it does not run")
        try:
            connection = await asyncio.to_thread(main.running.connect, port, self.unit.osmoda.health.timeout)
        except SandboxError as error:
            raise OSError(0, str(error)) from None
        connection.setblocking(False)
        return connection

    async def run(self, command: Exec) -> int:
        """Run a command in a sandbox of its own, under the same plan; its exit code."""
        assert self.prepared is not None
        ended: asyncio.Future[int] = self._loop.create_future()

        def heard(_: Slot, event: sandboxes.Event) -> None:
            if isinstance(event, sandboxes.Ended) and not ended.done():
                ended.set_result(event.result.status)
            elif isinstance(event, sandboxes.Failed) and not ended.done():
                ended.set_exception(OSError(0, str(event.error)))

        slot = Slot("control", self.outlet, heard)
        try:
            env = await asyncio.to_thread(preparation.variables, self.prepared.unit, self.prepared.confined, {})
            slot.start(self.prepared, expand(command, env), env)
            return await ended
        except (SandboxError, SupervisorError) as error:
            raise OSError(0, str(error)) from None
        finally:
            slot.close()

    # --- the end ---

    async def close(self) -> None:
        """Let go of it: whatever still runs is ended, and nobody is told."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._checks is not None:
            self._checks.cancel()
            with suppress(asyncio.CancelledError):
                await self._checks
        for slot in self._slots.values():
            slot.close()
        for _, future in self._waiters:
            future.cancel()
        self.outlet.close()
        if self.prepared is not None:
            self.prepared.service.close()
