"""Who has done something in a shared directory, as it comes onto the ledger."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from osmoda.sandbox import profile_file
from osmoda.supervisor.confining.confinement import Confined
from osmoda.supervisor.engine import shared_watch
from osmoda.supervisor.engine.shared_watch import SharedWatch
from osmoda.supervisor.errors import SupervisorError

# Writes a file at each line of its input, itself or by another process, and says so.
PROGRAM = """
import subprocess, sys
for line in sys.stdin:
    how, path = line.split()
    if how == "itself":
        open(path, "w").close()
    else:
        subprocess.run(["/bin/sh", "-c", f": > {path}"], check=True)
    print("done", flush=True)
"""


class Acts:
    """What would be put on the ledger; `kept` says whether there is one."""

    def __init__(self, kept=True):
        self.is_kept = kept
        self.events = []

    def after(self, kind, fields):
        assert kind == "file"
        self.events.append(fields)


def held(profile, main=0):
    text = f"schema = 1\n{profile}\n"
    confined = Confined(profile_file.load_text(text, "a.toml", "/"), "", ())
    return SimpleNamespace(confined=(confined,), machine=SimpleNamespace(main_pid=main))


def units_of(tree, operator=0):
    return {
        "writer.service": held(f'tier = 1\n[filesystem]\nwrite = ["{tree}"]'),
        "reader.service": held(f'tier = 1\n[filesystem]\nread = ["{tree}"]'),
        "operator.service": held("tier = 0", operator),
    }


async def until(events, enough):
    deadline = asyncio.get_running_loop().time() + 30
    while not enough(events):
        assert asyncio.get_running_loop().time() < deadline, events
        await asyncio.sleep(0.01)


@pytest.fixture
def operator():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True) as process:
        yield process
        process.stdin.close()


def write(process, how, path):
    process.stdin.write(f"{how} {path}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root who it was")
def test_an_agent_without_a_sandbox_is_known_by_its_processes(tmp_path, operator):
    acts = Acts()

    async def look():
        watch = SharedWatch(units_of(tmp_path, operator.pid), acts, pytest.fail)
        watch.follow()
        write(operator, "itself", tmp_path / "one")
        await until(acts.events, lambda events: any(event["operation"] == "write" for event in events))
        assert {event["agent"] for event in acts.events} == {"operator"}
        assert {event["pid"] for event in acts.events} == {operator.pid}
        acts.events.clear()
        # Another process, which has ended by now: not certain any more, and nothing is guessed.
        write(operator, "another", tmp_path / "two")
        await until(acts.events, lambda events: any(event["operation"] == "write" for event in events))
        assert {event["agent"] for event in acts.events} == {""}
        assert all(event["writers"] == ["writer"] for event in acts.events)
        watch.close()

    asyncio.run(look())


def test_without_a_ledger_nothing_is_followed(tmp_path):
    acts = Acts(kept=False)

    async def look():
        watch = SharedWatch(units_of(tmp_path), acts, pytest.fail)
        watch.follow()
        (tmp_path / "file").write_text("x")
        await asyncio.sleep(0)
        watch.close()

    asyncio.run(look())
    assert acts.events == []


def test_what_cannot_be_followed_is_said_once(tmp_path, monkeypatch):
    def refuse():
        raise SupervisorError("it cannot")

    monkeypatch.setattr(shared_watch, "SharedFiles", refuse)
    said = []

    async def look():
        watch = SharedWatch(units_of(tmp_path), Acts(), said.append)
        watch.follow()
        watch.follow()
        watch.close()

    asyncio.run(look())
    assert said == [f"{tmp_path}: what agents do there is not put on the ledger: it cannot"]


def test_a_flood_costs_a_bounded_number_of_entries_and_none_of_the_log(tmp_path, monkeypatch):
    """An agent could fill the disk that the ledger is on, and push what the daemon has said out of its log."""
    monkeypatch.setattr(shared_watch, "A_SECOND", 3)
    monkeypatch.setattr("osmoda.supervisor.sharing.shared_files.MOST_FOLDERS", 1)
    said, acts = [], Acts()

    async def look():
        watch = SharedWatch(units_of(tmp_path), acts, said.append)
        watch.follow()
        for number in range(100):
            (tmp_path / f"folder-{number}").mkdir()
        await until(acts.events, lambda events: sum(event.get("others", 1) for event in events) >= 200)
        watch.close()

    asyncio.run(look())
    assert len(said) == 1
    assert {event["operation"] for event in acts.events} == {"create", "unwatched", "others"}
    assert len(acts.events) <= 40, "a second may have come in between"
    assert sum(event.get("others", 1) for event in acts.events) == 200


def test_a_gap_is_said_and_on_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr("osmoda.supervisor.sharing.shared_files.MOST_FOLDERS", 1)
    (tmp_path / "in").mkdir()
    said, acts = [], Acts()

    async def look():
        watch = SharedWatch(units_of(tmp_path), acts, said.append)
        watch.follow()
        await until(acts.events, bool)
        watch.close()

    asyncio.run(look())
    assert [event["operation"] for event in acts.events] == ["unwatched"]
    assert said == [f"the record of shared directories has a gap: {tmp_path}/in is not followed"]
