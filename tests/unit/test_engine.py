"""The engine with sandboxes of paper: units on disk, everything else as the test says."""

from __future__ import annotations

import asyncio
import os
import threading
from types import SimpleNamespace

import pytest

from osmoda.sandbox.errors import CommandError
from osmoda.sandbox.process import Result
from osmoda.sandbox.service import Ended, Failed, Started
from osmoda.supervisor.confining import preparation
from osmoda.supervisor.engine.services import Engine
from osmoda.supervisor.errors import SupervisorError

PATIENCE = 30.0


class Running:
    """A command that runs until it is told to end."""

    def __init__(self, scene, argv):
        self.scene, self.argv = scene, argv
        self.identity = f"paper-{len(scene.started)}"
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = []

    def fileno(self):
        return self._fd

    def events(self):
        os.eventfd_read(self._fd)
        events, self._events = self._events, []
        return events

    def tell(self, event):
        self._events.append(event)
        os.eventfd_write(self._fd, 1)

    def end(self, code=0, number=0):
        result = Result(128 + number if number else code, number, False, None, None, 0.0, 0.0, 0, 0.0, 0, ())
        self.tell(Ended(result))

    def signal_all(self, number):
        self.scene.happened.append(f"stopped {self.argv[-1]}")
        self.end(number=number)

    signal_main = signal_all

    def kill(self):
        self.end(number=9)

    def close(self):
        os.close(self._fd)


class Scene:
    """An engine whose units lie in a folder, and what has happened in it."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.started, self.happened, self.lines = [], [], []
        self.gates = {}
        self.broken = set()
        monkeypatch.setattr(preparation, "prepare", self.prepare)
        self.engine = Engine([str(folder)], self, self)

    def unit(self, name, *lines, section="Service"):
        text = "\n".join(["[Unit]", *lines, "[Service]", f"ExecStart=/bin/agent {name}", ""])
        (self.folder / f"{name}.service").write_text(text)

    def prepare(self, unit):
        if unit.name in self.gates:
            assert self.gates[unit.name].wait(PATIENCE)
        if unit.name in self.broken:
            raise SupervisorError(f"{unit.files[0]}:9: it cannot be enforced")
        profile = SimpleNamespace(tier=1, file="", process=SimpleNamespace(memory=1 << 20, cpu=0.01))
        service = SimpleNamespace(
            start=self.start, close=lambda: None, plan=SimpleNamespace(fingerprint=lambda: b"plan")
        )
        confined = SimpleNamespace(profile=profile, file="", workspace="", notes=(), written=())
        return preparation.Prepared(unit, confined, service)

    def start(self, argv, **_):
        running = Running(self, argv)
        self.started.append(running)
        if argv[-1] in self.broken:
            running.tell(Failed(CommandError(f"{argv[0]} was not found", 127)))
        else:
            self.happened.append(f"started {argv[-1]}")
            running.tell(Started(os.getpid(), 2))
        return running

    # As the logs and the ledger

    def say(self, unit, text, level=6):
        self.lines.append((unit, text))

    def write(self, *_):
        raise AssertionError("nothing prints here")

    is_kept = False

    def after(self, kind, fields):
        self.happened.append(f"{kind} {fields['unit'].removesuffix('.service')} is written")

    # What a test does

    def state(self, name):
        return self.engine.units[f"{name}.service"].machine.active

    async def until(self, look):
        for _ in range(int(PATIENCE * 100)):
            if look():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it took too long")


def play(tmp_path, monkeypatch, scene):
    async def run():
        one = Scene(tmp_path, monkeypatch)
        try:
            await scene(one)
        finally:
            await one.engine.close()

    asyncio.run(run())


@pytest.fixture
def playing(tmp_path, monkeypatch):
    return lambda scene: play(tmp_path, monkeypatch, scene)


def test_what_is_needed_is_started_first_and_what_is_not_ordered_beside_it(playing):
    async def scene(one):
        one.unit("a", "Requires=b.service", "After=b.service", "Wants=c.service")
        one.unit("b")
        one.unit("c")
        outcomes = await one.engine.start(["a"])
        assert {outcome.unit: outcome.ok for outcome in outcomes} == {f"{name}.service": True for name in "abc"}
        assert one.happened.index("started b") < one.happened.index("started a")
        one.happened.clear()
        await one.engine.stop(["b"])
        assert one.happened == ["stop a is written", "stopped a", "stop b is written", "stopped b"]
        assert (one.state("a"), one.state("b"), one.state("c")) == ("inactive", "inactive", "active")

    playing(scene)


def test_what_requires_a_unit_that_fails_is_not_started(playing):
    async def scene(one):
        one.unit("a", "Requires=b.service", "After=b.service")
        one.unit("b")
        one.broken.add("b")
        outcomes = {outcome.unit: outcome for outcome in await one.engine.start(["a"])}
        assert outcomes["b.service"].text == "/bin/agent was not found"
        assert outcomes["a.service"].text == "b.service, which it requires, did not start"
        assert one.happened == []

    playing(scene)


def test_a_stop_that_comes_while_a_unit_is_prepared_holds(playing):
    async def scene(one):
        one.unit("a")
        gate = one.gates["a.service"] = threading.Event()
        starting = asyncio.create_task(one.engine.start(["a"]))
        await one.until(lambda: "a.service" in one.engine.units)
        await one.engine.stop(["a"])
        gate.set()
        (outcome,) = await starting
        assert (outcome.ok, outcome.text) == (False, "it was stopped before it was started")
        assert one.started == []

    playing(scene)


def test_a_restart_that_is_refused_costs_nothing(playing):
    async def scene(one):
        one.unit("a")
        await one.engine.start(["a"])
        one.broken.add("a.service")
        (outcome,) = await one.engine.restart(["a"])
        assert not outcome.ok
        assert outcome.text.startswith("it goes on as it was: ")
        assert one.happened == ["started a"]
        one.broken.clear()
        (outcome,) = await one.engine.restart(["a"])
        assert outcome.ok
        assert one.happened[-2:] == ["stopped a", "started a"]

    playing(scene)


def test_a_restart_takes_along_what_requires_the_unit(playing):
    async def scene(one):
        one.unit("a")
        one.unit("b", "Requires=a.service", "After=a.service")
        await one.engine.start(["b"])
        one.happened.clear()
        await one.engine.restart(["a"])
        acts = [act for act in one.happened if not act.endswith("written")]
        assert acts == ["stopped b", "stopped a", "started a", "started b"]

    playing(scene)


def test_what_conflicts_is_stopped_first(playing):
    async def scene(one):
        one.unit("a")
        one.unit("b", "Conflicts=a.service")
        await one.engine.start(["a"])
        await one.engine.start(["b"])
        assert (one.state("a"), one.state("b")) == ("inactive", "active")
        assert one.happened.index("stopped a") < one.happened.index("started b")

    playing(scene)


def test_what_is_bound_goes_with_a_unit_that_ends_by_itself(playing):
    async def scene(one):
        one.unit("a")
        one.unit("b", "BindsTo=a.service", "After=a.service")
        one.unit("c", "Requires=a.service")
        await one.engine.start(["b", "c"])
        next(running for running in one.started if running.argv[-1] == "a").end()
        await one.until(lambda: one.state("b") == "inactive")
        assert one.state("c") == "active"  # it was not stopped by anybody

    playing(scene)


def test_a_requisite_is_not_started(playing):
    async def scene(one):
        one.unit("a", "Requisite=b.service")
        one.unit("b")
        (outcome,) = await one.engine.start(["a"])
        assert "b.service, without which it does not start (Requisite=), is not up" in outcome.text
        assert one.started == []

    playing(scene)


def test_at_the_end_all_are_stopped_in_reverse_order(tmp_path, monkeypatch):
    found = []

    async def scene(one):
        one.unit("a")
        one.unit("b", "After=a.service", "Wants=a.service")
        await one.engine.start(["b"])
        one.happened.clear()
        found.append(one)

    play(tmp_path, monkeypatch, scene)
    assert [act for act in found[0].happened if act.startswith("stopped")] == ["stopped b", "stopped a"]
