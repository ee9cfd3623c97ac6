"""A unit that is read before a switch and started after it: what was read is not what is started."""

from __future__ import annotations

import asyncio
import threading

import pytest

from osmoda.supervisor.engine.holding import Holding
from osmoda.supervisor.switch.engine_agents import EngineAgents
from osmoda.supervisor.units import jobs
from tests.unit.test_engine import PATIENCE, Scene


class Switched(Scene):
    """An engine whose next reading of units ends only when `gate` is set, and whoever switches its one agent."""

    def __init__(self, folder, monkeypatch):
        super().__init__(folder, monkeypatch)
        self.agents = EngineAgents(self.engine, lambda unit, runs: None)
        self.waits = False
        self.has_read = threading.Event()
        self.gate = threading.Event()
        self.generation("old")
        closure = jobs.closure

        def slowly(source, names):
            found = closure(source, names)
            if self.waits:
                self.waits = False
                self.has_read.set()
                assert self.gate.wait(PATIENCE)
            return found

        monkeypatch.setattr(jobs, "closure", slowly)

    def generation(self, name):
        text = f"[Service]\nExecStart=/bin/agent {name}\nRestart=always\nRestartSec=0\n"
        (self.folder / "a.service").write_text(text)

    async def asked_for(self, work):
        """`work`, which has read its units, as they are now, and done nothing yet."""
        self.waits = True
        task = asyncio.create_task(work)
        await self.until(self.has_read.is_set)
        return task

    async def ends(self, task):
        self.gate.set()
        return await asyncio.wait_for(task, PATIENCE)

    def ran(self):
        """What was started, in order."""
        return [act.removeprefix("started ") for act in self.happened if act.startswith("started ")]


@pytest.fixture
def playing(tmp_path, monkeypatch):
    def play(scene):
        async def run():
            one = Switched(tmp_path, monkeypatch)
            try:
                await scene(one)
            finally:
                one.gate.set()
                await one.engine.close()

        asyncio.run(run())

    return play


def test_a_start_of_a_unit_that_nobody_knew_when_it_was_switched(playing):
    async def scene(one):
        starting = await one.asked_for(one.engine.start(["a"]))
        await one.agents.stop("a")
        one.generation("new")
        one.agents.release("a")
        (outcome,) = await one.ends(starting)
        assert outcome.ok
        assert one.ran() == ["new"]

    playing(scene)


def test_a_start_that_comes_to_it_while_it_is_switched(playing):
    async def scene(one):
        starting = await one.asked_for(one.engine.start(["a"]))
        await one.agents.stop("a")
        (outcome,) = await one.ends(starting)
        assert not outcome.ok
        assert outcome.text.startswith("a is being switched")
        one.generation("new")
        await one.agents.start("a")
        assert one.ran() == ["new"]

    playing(scene)


def test_a_restart_of_a_unit_that_was_switched_meanwhile(playing):
    async def scene(one):
        await one.engine.start(["a"])
        restarting = await one.asked_for(one.engine.restart(["a"]))
        await one.agents.stop("a")
        one.generation("new")
        await one.agents.start("a")
        (outcome,) = await one.ends(restarting)
        assert outcome.ok
        assert one.ran() == ["old", "new"]

    playing(scene)


def test_a_restart_of_a_unit_that_is_switched_while_it_is_prepared(playing):
    async def scene(one):
        await one.engine.start(["a"])
        gate = one.gates["a.service"] = threading.Event()
        restarting = asyncio.create_task(one.engine.restart(["a"]))
        await one.until(one.engine.compiling.locked)
        await one.agents.stop("a")
        gate.set()
        (outcome,) = await asyncio.wait_for(restarting, PATIENCE)
        assert not outcome.ok
        assert outcome.text.startswith("a is being switched")
        assert one.ran() == ["old"]

    playing(scene)


def test_files_that_were_read_again_before_a_switch_do_not_count_after_it(playing):
    async def scene(one):
        await one.engine.start(["a"])
        reading = await one.asked_for(one.engine.read_again())
        await one.agents.stop("a")
        one.generation("new")
        await one.agents.start("a")
        await one.ends(reading)
        one.started[-1].end(code=1)  # it is started again, by itself, from what was prepared last
        await one.until(lambda: len(one.ran()) == 3)
        assert one.ran() == ["old", "new", "new"]

    playing(scene)


def test_what_is_read_counts_until_the_unit_is_let_go():
    holding = Holding()
    before = holding.now()
    holding.hold("a.service", "it is switched")
    assert (holding.reason("a.service"), holding.reason("b.service")) == ("it is switched", "")
    during = holding.now()
    holding.release("a.service")
    assert holding.reason("a.service") == ""
    assert [holding.is_void("a.service", read) for read in (before, during, holding.now())] == [True, True, False]
    assert not holding.is_void("b.service", before)
