"""A disk that fills up, or becomes read-only, under the generations: before, within and after a switch."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from osmoda.host import syscalls
from osmoda.supervisor.switch import tree
from osmoda.supervisor.switch.driver import Proposed, Switches
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.record import Record, Terms
from tests.switch_engine import PlainAgents
from tests.switch_scene import NAME, FileLedger, Scene

pytestmark = [
    pytest.mark.usefixtures("own_mounts"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small file system"),
]
MS_REMOUNT, MS_RDONLY = 0x20, 0x1
PATIENCE = 30.0


@pytest.fixture
def scene(tmp_path: Path, own_mounts: None) -> Iterator[Scene]:
    """The store is a file system of its own, of 40 MB."""
    found = Scene(tmp_path)
    disk = tmp_path / "switch"
    disk.mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"mode=0700,size=40m,nr_inodes=4096")
    try:
        found.first()
        yield found
    finally:
        syscalls.umount2(os.fsencode(disk), syscalls.MNT_DETACH)


def fill(scene: Scene) -> None:
    """From now on the disk takes nothing more."""
    with contextlib.suppress(OSError), open(scene.top / "switch" / "ballast", "ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), open(scene.top / "switch" / "ballast", "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


def read_only(scene: Scene, on: bool) -> None:
    flags = MS_REMOUNT | (MS_RDONLY if on else 0)
    syscalls.mount(b"", os.fsencode(scene.top / "switch"), b"", flags, b"")


async def probation(scene: Scene, then: Callable[[Switches, PlainAgents, Record], object]) -> None:
    """A switch to generation 2 that is on probation; `then` takes over."""
    store = scene.store()
    agents = PlainAgents(store, scene.places)
    ledger = FileLedger(scene.ledger)
    async with Switches(store, agents, lambda: ledger, lambda _: []) as switches:
        await agents.start(NAME)
        try:
            record = await switches.begin([Proposed(NAME, scene.content(scene.make(2)))], Terms(600))
            record = await asyncio.wait_for(switches.settled(record.number), PATIENCE)
            assert record.phase == "probation"
            await then(switches, agents, record)  # type: ignore[misc]
        finally:
            await agents.close()


def test_a_disk_that_fills_up_while_code_is_copied(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    code = scene.make(2)
    for number in range(4):
        (code / f"large-{number}").write_bytes(bytes(1 << 20))
    copied: list[str] = []
    real = tree._copy_file

    def filling(found: tree.Found, *rest: object) -> tuple[int, str]:
        if copied[-1:] == ["large-1"]:
            fill(scene)
        copied.append(found.name)
        return real(found, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tree, "_copy_file", filling)
    with pytest.raises(SwitchError, match=r"no generation 2 of research was made: the disk is full"):
        scene.store().stage(NAME, scene.content(code), 1.0)
    assert "large-2" in copied
    assert scene.store().numbers(NAME) == [1]
    assert sorted(os.listdir(scene.top / "switch" / "agents" / NAME / "generations")) == ["1"]


def test_a_way_back_needs_no_room(scene: Scene) -> None:
    async def back(switches: Switches, agents: PlainAgents, record: Record) -> None:
        fill(scene)
        with pytest.raises(SwitchError, match="is in switch 1"):
            await switches.begin([Proposed(NAME, scene.content(scene.make(3)))], Terms(600))
        await switches.go_back(NAME)
        record = await asyncio.wait_for(switches.settled(record.number, over=True), PATIENCE)
        assert (record.phase, record.error) == ("rolled-back", "")
        assert agents.agents[NAME].generation == "1"
        assert scene.store().current(NAME) == 1
        with pytest.raises(SwitchError, match="MiB left, of which 16 are kept free"):
            await switches.begin([Proposed(NAME, scene.content(scene.make(3)))], Terms(600))

    asyncio.run(probation(scene, back))


def test_what_cannot_be_written_down_is_not_done_and_not_said(scene: Scene) -> None:
    async def back(switches: Switches, agents: PlainAgents, record: Record) -> None:
        read_only(scene, True)
        await switches.go_back(NAME)
        record = await asyncio.wait_for(switches.settled(record.number), PATIENCE)
        (live,) = switches.running()
        assert record.phase == "probation"
        assert "the record of the switch could not be written" in live.trouble
        assert "Read-only file system" in live.trouble
        assert agents.agents[NAME].generation == "2", "no step was made that the disk does not know of"
        read_only(scene, False)
        record = await asyncio.wait_for(switches.settled(record.number, over=True), PATIENCE)
        assert record.phase == "rolled-back"
        assert agents.agents[NAME].generation == "1"

    asyncio.run(probation(scene, back))
    assert [entry["phase"] for entry in scene.entries()][-2:] == ["rolling-back", "rolled-back"]


def test_a_store_that_is_read_only_from_the_start(scene: Scene) -> None:
    async def begin() -> None:
        store = scene.store()
        agents = PlainAgents(store, scene.places)
        async with Switches(store, agents, lambda: None, lambda _: []) as switches:
            read_only(scene, True)
            with pytest.raises(SwitchError, match=r"no generation 2 of research was made: .*Read-only file system"):
                await switches.begin([Proposed(NAME, scene.content(scene.make(2)))], Terms(600))
            read_only(scene, False)

    asyncio.run(begin())
