"""Switches with real agents, from beginning to end: in this process, with a small engine (`switch_engine`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from osmoda.ledger.errors import LedgerError
from osmoda.sandbox import api
from osmoda.supervisor.switch import candidate
from osmoda.supervisor.switch.candidate import Asked
from osmoda.supervisor.switch.driver import Proposed, Switches
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.members import NixosSystem
from osmoda.supervisor.switch.record import Record, Terms
from osmoda.supervisor.switch.store import Content, Store
from tests.switch_engine import ConfinedAgents, PlainAgents, SmallEngine
from tests.switch_scene import MAIN, NAME, FileLedger, Scene

PATIENCE = 30.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    found = Scene(tmp_path)
    found.first()
    return found


@dataclass
class Going:
    """Switches that are driven, and their agents."""

    scene: Scene
    switches: Switches
    agents: SmallEngine

    async def begin(self, code: Path, seconds: float = 600.0, **more: Any) -> Record:
        proposed = Proposed(NAME, self.scene.content(code))
        record = await self.switches.begin([proposed], Terms(seconds), **more)
        return await asyncio.wait_for(self.switches.settled(record.number), PATIENCE)

    async def over(self, record: Record) -> Record:
        return await asyncio.wait_for(self.switches.settled(record.number, over=True), PATIENCE)

    async def nothing(self) -> None:
        """Until no switch is going on: what could not be done is tried again after a second or two."""
        while self.switches.running():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)

    async def generation(self) -> str:
        """The one that runs."""
        assert (await self.agents.condition(NAME)).running
        return self.agents.agents[NAME].generation


class Refusing:
    """A ledger that cannot be written, as long as a file is there."""

    def __init__(self, scene: Scene) -> None:
        self._ledger = FileLedger(scene.ledger)
        self.flag = scene.top / "full"

    def append(self, kind: str, fields: Any) -> int:
        if self.flag.exists():
            raise LedgerError("the disk of the ledger is full")
        return self._ledger.append(kind, fields)

    def close(self) -> None: ...


@asynccontextmanager
async def going(scene: Scene, *, start: bool = True, ledger: Any = None, **more: Any) -> AsyncIterator[Going]:
    store = scene.store()
    agents = PlainAgents(store, scene.places)
    ledger = ledger or FileLedger(scene.ledger)
    async with Switches(store, agents, lambda: ledger, lambda _: [str(scene.data)], **more) as switches:
        await switches.recover()
        if start:
            await agents.start(NAME)
        try:
            yield Going(scene, switches, agents)
        finally:
            await agents.close()


def told(scene: Scene) -> list[str]:
    return [entry["phase"] for entry in scene.entries()]


def run(what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 3 * PATIENCE))


def test_a_generation_that_is_healthy_is_committed_by_itself(scene: Scene) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            record = await now.begin(scene.make(2, health="healthy"), seconds=0.5)
            assert record.phase == "probation"
            assert await now.generation() == "2"
            record = await now.over(record)
            assert (record.phase, record.reason) == ("committed", "it has passed its probation")
            assert await now.generation() == "2"

    run(switch)
    assert told(scene) == ["staged", "switching", "probation", "committed"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["fails"], "research did not start: it ended with 3"),
        (["loops"], "research was restarted 3 times within 60 s: it ended with 4"),
    ],
)
def test_a_generation_that_fails_is_switched_back(scene: Scene, files: list[str], why: str) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            record = await now.over(await now.begin(scene.make(2, *files)))
            assert (record.phase, record.reason) == ("rolled-back", why)
            assert await now.generation() == "1"
            assert scene.store().current(NAME) == 1

    run(switch)
    assert told(scene)[-2:] == ["rolling-back", "rolled-back"]


@pytest.mark.parametrize(
    ("health", "why"),
    [
        ("unhealthy", "research is not healthy"),
        ("starting", "research did not become healthy within its probation of 0.3 s"),
    ],
)
def test_a_generation_that_is_not_healthy_is_switched_back(scene: Scene, health: str, why: str) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            record = await now.over(await now.begin(scene.make(2, health=health), seconds=0.3))
            assert (record.phase, record.reason) == ("rolled-back", why)
            assert await now.generation() == "1"

    run(switch)


def test_a_rollback_that_cannot_be_made_says_so_until_it_can(scene: Scene) -> None:
    """Generation 2 does not start while the folder of its data is away."""
    away = scene.top / "away"

    async def switch() -> None:
        async with going(scene) as now:
            code = scene.make(2)
            text = (code / "main.sh").read_text()
            (code / "main.sh").write_text(
                text.replace("[ -e fails ]", f"[ ! -d {scene.data} ] && exit 7\n[ -e fails ]")
            )
            first = await now.begin(code)
            await now.switches.commit(NAME)
            await now.over(first)
            record = await now.begin(scene.make(3))
            scene.data.rename(away)
            await now.switches.go_back(NAME)
            record = await asyncio.wait_for(now.switches.settled(record.number), PATIENCE)
            assert (record.phase, record.error) == ("rollback-failed", "research did not start: it ended with 7")
            assert not (await now.agents.condition(NAME)).running
            with pytest.raises(SwitchError, match="is in switch 2, which is rollback-failed"):
                await now.begin(code)
            assert told(scene)[-2:] == ["rolling-back", "rollback-failed"]
            away.rename(scene.data)
            record = await now.over(record)
            assert record.phase == "rolled-back"
            assert record.attempts >= 1
            assert await now.generation() == "2"

    run(switch)
    assert told(scene)[-3:] == ["rolling-back", "rollback-failed", "rolled-back"]


def test_nothing_begins_without_a_ledger_that_is_there(scene: Scene) -> None:
    def refuse() -> None:
        raise LedgerError("the ledger's service cannot be reached")

    async def switch() -> None:
        store = scene.store()
        agents = PlainAgents(store, scene.places)
        async with Switches(store, agents, refuse, lambda _: []) as switches:  # type: ignore[arg-type, return-value]
            with pytest.raises(
                SwitchError, match="nothing is switched, since the ledger cannot be written: the ledger's"
            ):
                await switches.begin([Proposed(NAME, scene.content(scene.make(2)))], Terms(60))
        assert store.numbers(NAME) == [1], "nothing was made"
        assert not os.listdir(store.records)

    run(switch)


def test_a_full_ledger_stops_no_way_back_and_gets_it_later(scene: Scene) -> None:
    ledger = Refusing(scene)

    async def switch() -> None:
        async with going(scene, ledger=ledger) as now:
            record = await now.begin(scene.make(2))
            ledger.flag.touch()
            await now.switches.go_back(NAME)
            record = await asyncio.wait_for(now.switches.settled(record.number), PATIENCE)
            assert (record.phase, len(record.untold)) == ("rolled-back", 2)
            assert await now.generation() == "1"
            assert told(scene) == ["staged", "switching", "probation"]
            (live,) = now.switches.running()
            assert live.trouble == "the ledger could not be written: the disk of the ledger is full"
            ledger.flag.unlink()
            await now.nothing()
        assert told(scene) == ["staged", "switching", "probation", "rolling-back", "rolled-back"]

    run(switch)


def test_a_ledger_that_fills_up_at_the_beginning_changes_nothing(scene: Scene) -> None:
    ledger = Refusing(scene)

    async def switch() -> None:
        async with going(scene, ledger=ledger) as now:
            pid = (await now.agents.condition(NAME)).pid
            ledger.flag.touch()
            record = await now.begin(scene.make(2))
            assert record.phase == "rolled-back"
            assert record.reason.endswith("the disk of the ledger is full; nothing was changed")
            assert (await now.agents.condition(NAME)).pid == pid, "it was not touched"
            ledger.flag.unlink()
            await now.nothing()

    run(switch)
    assert told(scene) == ["staged", "rolled-back"]


def change(main: Path) -> None:
    main.chmod(0o644)
    main.write_text(MAIN.replace("sleep 1000", "sleep 2000"))


def test_a_generation_that_somebody_changed_is_not_gone_to(scene: Scene) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            made = scene.store().stage(NAME, scene.content(scene.make(2)), time.time())
            assert made.code is not None
            change(Path(made.code, "main.sh"))
            record = await now.switches.begin([Proposed(NAME, 2)], Terms(60))
            record = await now.over(record)
            assert record.phase == "rolled-back"
            assert "code/main.sh has another content; nothing was changed" in record.reason
            assert await now.generation() == "1"

    run(switch)


def test_agents_that_cannot_be_watched_are_on_no_probation(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more descriptors")

    async def switch() -> None:
        async with going(scene) as now:
            monkeypatch.setattr(now.agents, "changes", broken)
            record = await now.over(await now.begin(scene.make(2)))
            assert record.phase == "rolled-back"
            assert record.reason == "its agents could not be watched: RuntimeError: no more descriptors"
            assert await now.generation() == "1"

    run(switch)


def test_one_switch_at_a_time(scene: Scene) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            record = await now.begin(scene.make(2))
            with pytest.raises(SwitchError, match="research is in switch 1, which is probation"):
                await now.begin(scene.make(3))
            assert scene.store().numbers(NAME) == [1, 2]
            await now.switches.commit(NAME)
            record = await now.over(record)
            with pytest.raises(SwitchError, match="is the current one already"):
                await now.switches.begin([Proposed(NAME, 2)], Terms(60))

    run(switch)


def test_all_or_none_with_a_system(scene: Scene, tmp_path: Path) -> None:
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    for number in (41, 42):
        folder = tmp_path / f"system-{number}" / "bin"
        folder.mkdir(parents=True)
        script = folder / "switch-to-configuration"
        script.write_text(f"#!/bin/sh\necho {number} >> {tmp_path}/activated\n[ ! -e {tmp_path}/refuses-{number} ]\n")
        script.chmod(0o755)
        (profiles / f"system-{number}-link").symlink_to(folder.parent)
    (profiles / "system").symlink_to("system-41-link")

    async def switch() -> None:
        async with going(scene, nixos=NixosSystem(str(profiles))) as now:
            record = await now.begin(scene.make(2), system=42)
            assert record.phase == "probation"
            assert os.readlink(profiles / "system") == "system-42-link"
            await now.switches.go_back(NAME)
            record = await now.over(record)
            assert record.phase == "rolled-back"
            assert os.readlink(profiles / "system") == "system-41-link"
            (tmp_path / "refuses-42").touch()
            record = await now.begin(scene.make(3), system=42)
            assert record.phase == "rolled-back"
            assert "switch-to-configuration switch ended with 1" in record.reason
            assert os.readlink(profiles / "system") == "system-41-link"
            assert await now.generation() == "1"

    run(switch)
    assert (tmp_path / "activated").read_text().split() == ["42", "41", "42", "41"]


def test_old_generations_are_removed_and_the_way_back_is_kept(scene: Scene) -> None:
    async def switch() -> None:
        async with going(scene) as now:
            for number in range(2, 6):
                record = await now.begin(scene.make(number), keep=2)
                await now.switches.commit(NAME)
                await now.over(record)
            assert scene.store().numbers(NAME) == [4, 5]

    run(switch)


# As a person asks for it, in sandboxes


PROFILE = 'schema = 1\ntier = 1\n[filesystem]\nread = ["{place}"]\nwrite = ["{data}"]\n'


@pytest.fixture
def installed(tmp_path: Path) -> Scene:
    """An agent as it is installed, without generations: a unit, a profile and a folder."""
    scene = Scene(tmp_path)
    (tmp_path / "units").mkdir()
    scene.make(1).rename(scene.place)
    profile = tmp_path / "research.toml"
    profile.write_text(PROFILE.format(place=scene.place, data=scene.data))
    (tmp_path / "units" / f"{NAME}.service").write_text(
        f"[Service]\nWorkingDirectory={scene.place}\nExecStart=/bin/sh {scene.place}/main.sh\n"
        f"[X-Osmoda]\nProfile={profile}\n"
    )
    return scene


def test_an_installed_agent_is_switched_with_its_data_and_back(installed: Scene) -> None:
    """In sandboxes of tier 1, under the profile of each generation."""
    search = [str(installed.top / "units")]

    async def switch() -> None:
        store = Store()
        agents = ConfinedAgents(store, installed.places, search)
        ledger = FileLedger(installed.ledger)
        async with Switches(store, agents, lambda: ledger, candidate.written) as switches:
            await agents.start(NAME)
            assert agents.agents[NAME].generation == "1"
            assert (installed.data / "state").read_text() == "of 1\n"
            asked = Asked(NAME, code=str(installed.make(2)), snapshot=True)
            record = await switches.begin([candidate.proposed(asked, store, search)], Terms(600))
            record = await asyncio.wait_for(switches.settled(record.number), PATIENCE)
            assert (record.phase, record.reason) == ("probation", "")
            assert agents.agents[NAME].generation == "2"
            assert (installed.data / "state").read_text() == "of 2\n"
            pid = agents.agents[NAME].pid
            assert f"{NAME}/generations/2/code" in os.readlink(f"/proc/{pid}/cwd")
            await switches.go_back(NAME)
            record = await asyncio.wait_for(switches.settled(record.number, over=True), PATIENCE)
            assert (record.phase, record.error) == ("rolled-back", "")
            assert agents.agents[NAME].generation == "1"
            assert (installed.data / "state").read_text() == "of 1\n"
            await agents.close()

    try:
        run(switch)
    finally:
        api.close()
    store = Store()
    assert store.numbers(NAME) == [1, 2]
    assert store.generation(NAME, 1).note == "as it was before the first switch"
    assert os.path.islink(installed.place)
    assert sorted(path.name for path in installed.places.iterdir()) == [NAME, f"{NAME}.before-osmoda"]


@pytest.mark.parametrize(
    ("asked", "profile", "said"),
    [
        ({"unit": "missing.service"}, "", "missing.service cannot be read: No such file or directory"),
        ({"unit": "bad.service"}, "", "bad.service:2: "),
        ({"code": "none"}, "", "none is no folder; --code names one with the new code"),
        ({}, 'write = ["{place}/cache"]', "the code of a generation is not written, and"),
        (
            {},
            'write = ["{data}"]\nworkspace = "direct"',
            "the code of a generation is not written, and the workspace is",
        ),
        ({}, 'read = ["lib"]', "has paths relative to its folder, which a generation does not keep"),
        ({}, "reed = []", "research.toml:4:1: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    installed: Scene, asked: dict[str, str], profile: str, said: str
) -> None:
    top = installed.top
    (top / "bad.service").write_text("[Service]\nExecStartt=/bin/true\n")
    (top / "lib").mkdir()
    if profile:
        lines = profile.format(place=installed.place, data=installed.data)
        (top / "new.toml").write_text(f"schema = 1\ntier = 1\n[filesystem]\n{lines}\n")
        if "reed" in profile:
            (top / "new.toml").rename(top / "research.toml")
        else:
            asked = {"profile": str(top / "new.toml")}
    given = {key: value if value.startswith("/") else str(top / value) for key, value in asked.items()}
    with pytest.raises(SwitchError) as caught:
        candidate.proposed(Asked(NAME, **given), Store(), [str(top / "units")])
    assert said in str(caught.value)
    assert Store().numbers(NAME) == []


def test_the_first_generation_of_a_new_agent(installed: Scene) -> None:
    top = installed.top
    unit = top / "writer.service"
    unit.write_text(f"[Service]\nWorkingDirectory={installed.places}/writer\nExecStart=/bin/sh main.sh\n")
    proposed = candidate.proposed(
        Asked("writer", unit=str(unit), code=str(installed.make(1))), Store(), [str(top / "units")]
    )
    assert proposed.baseline is None
    assert isinstance(proposed.to, Content)
    assert proposed.to.place == f"{os.path.realpath(installed.places)}/writer"
    with pytest.raises(SwitchError, match="writer has no unit yet; give the file of one"):
        candidate.proposed(Asked("writer", code=str(installed.make(1))), Store(), [str(top / "units")])
