"""A store with an agent in it, and a program that switches it, to be killed at any point.

The program is a process of one thread that forks for each trial, so that a trial costs no start of an interpreter:

    with Trials(scene) as trials:
        ended = trials.run({"do": "switch", "code": 2, "then": "commit", "kill_at": 7})
        outcome = trials.run({"do": "recover"})
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from osmoda.supervisor.switch import place, tree
from osmoda.supervisor.switch.driver import Proposed, Switches
from osmoda.supervisor.switch.phases import Command
from osmoda.supervisor.switch.record import Record, Terms
from osmoda.supervisor.switch.store import Content, Store
from tests.leftovers import PR_SET_CHILD_SUBREAPER
from tests.switch_engine import PlainAgents, libc
from tests.worlds import REPOSITORY

NAME = "research"
UNIT = "[Service]\nType=notify\nWorkingDirectory={place}\nExecStart=/bin/sh main.sh\nRestart=always\n"
MAIN = """\
cd "${0%/*}" || exit 9
read -r generation < generation
[ -e fails ] && exit 3
[ -e data ] && echo "of $generation" > "$(cat data)/state"
echo "ready $generation"
[ -e loops ] && exit 4
exec sleep 1000
"""


class FileLedger:
    """As `osmoda.ledger.client.Ledger`: a line an event, on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, kind: str, fields: Mapping[str, Any]) -> int:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps({"kind": kind, **fields}).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        return 1

    def close(self) -> None: ...


class Scene:
    """Where everything of one store lies."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.places = top / "agents"
        self.data = top / "data"
        self.ledger = top / "ledger"
        self.code = top / "code"
        for folder in (self.places, self.data, self.code):
            folder.mkdir(exist_ok=True)

    def store(self) -> Store:
        return Store(str(self.top / "switch"))

    @property
    def place(self) -> Path:
        return self.places / NAME

    def make(self, generation: int, *files: str, **contents: str) -> Path:
        """New code, that says it is `generation`; `files` are empty files that decide what it does."""
        folder = self.code / str(generation)
        if folder.exists():
            tree.remove(str(folder))
        folder.mkdir()
        (folder / "main.sh").write_text(MAIN)
        (folder / "generation").write_text(f"{generation}\n")
        (folder / "data").write_text(f"{self.data}\n")
        for name in files:
            (folder / name).touch()
        for name, text in contents.items():
            (folder / name).write_text(text)
        return folder

    def content(self, code: Path) -> Content:
        unit = {f"{NAME}.service": UNIT.format(place=self.place).encode()}
        return Content(unit, None, str(code), str(self.place))

    def first(self) -> None:
        """Generation 1 is the current one."""
        store = self.store()
        generation = store.stage(NAME, self.content(self.make(1)), time.time())
        store.flip(NAME, generation.number)
        place.settle(store, NAME, generation.place)

    def entries(self) -> list[dict[str, Any]]:
        """What is on the ledger."""
        if not self.ledger.exists():
            return []
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]

    def running(self) -> list[tuple[int, str]]:
        """The processes of the agent: pid and generation, as the kernel has them."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    here = os.readlink(f"/proc/{entry}/cwd")
                    state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if here.startswith(f"{self.top}/switch/agents/{NAME}/generations/") and state != "Z":
                    found.append((int(entry), here.split("/")[-2]))
        return found


# --- what a trial does, in a process of its own ---


async def trial(scene: Scene, what: Mapping[str, Any]) -> dict[str, Any]:
    store = scene.store()
    agents = PlainAgents(store, scene.places)
    left = [int(what.get("kill_at", -1))]

    def killer(when: str, record: Record, command: Command) -> None:
        if when == "before":
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    def written(_: str) -> list[str]:
        return [str(scene.data)]

    async with Switches(store, agents, lambda: FileLedger(scene.ledger), written, observer=killer) as switches:
        # Data belongs to what a profile grants; here there is none.
        switches._effects.data_of = partial(data_of, scene)  # type: ignore[method-assign]
        await switches.recover()
        await autostart(store, agents, switches)
        if what["do"] == "switch":
            await switch(scene, switches, what)
        elif what["do"] == "go back":
            await go_back(switches)
        elif what["do"] == "many":
            await many(scene, switches, random.Random(what["seed"]))
        for running in switches.running():
            if (scene.place / "loops").exists():  # it is on its way back, some restarts later
                await switches.settled(running.record.number, over=True)
        outcome = look(scene, switches, agents)
    await agents.close()
    return outcome


async def data_of(scene: Scene, *_: object) -> list[str]:
    return [str(scene.data)]


async def autostart(store: Store, agents: PlainAgents, switches: Switches) -> None:
    """What a daemon does once switches are settled."""
    if store.current(NAME) is not None and NAME not in switches.held():
        await agents.start(NAME)


async def switch(scene: Scene, switches: Switches, what: Mapping[str, Any]) -> None:
    proposed = Proposed(NAME, scene.content(scene.code / str(what["code"])), snapshot=bool(what.get("snapshot")))
    record = await switches.begin([proposed], Terms(float(what.get("seconds", 600))))
    record = await switches.settled(record.number)
    if what["then"] == "commit":
        await switches.commit(NAME)
    elif what["then"] == "back":
        await switches.go_back(NAME)
    await switches.settled(record.number, over=True)


async def go_back(switches: Switches) -> None:
    for held in switches.running():
        await switches.go_back(NAME)
        await switches.settled(held.record.number, over=True)


async def many(scene: Scene, switches: Switches, chance: random.Random) -> None:
    """Switch after switch, until somebody kills it."""
    await go_back(switches)
    while True:
        then = chance.choice(["commit", "back", "fails", "loops"])
        code = (scene.store().numbers(NAME) or [0])[-1] + 1
        scene.make(code, *([then] if then in ("fails", "loops") else []))
        await switch(scene, switches, {"code": code, "then": then, "snapshot": chance.random() < 0.5})


def look(scene: Scene, switches: Switches, agents: PlainAgents) -> dict[str, Any]:
    live = {running.record.number: running.record for running in switches.running()}
    records = [live.get(record.number, record) for record in switches.records.all()]
    agent = agents.agents.get(NAME)
    return {
        "phase": records[-1].phase if records else "",
        "reason": records[-1].reason if records else "",
        "untold": len(records[-1].untold) if records else 0,
        "before": records[-1].members[0].before if records else None,
        "after": records[-1].members[0].after if records else None,
        "number": records[-1].number if records else 0,
        "current": scene.store().current(NAME),
        "generation": agent.generation if agent is not None and agent.up else "",
        "running": scene.running(),
        "data": (scene.data / "state").read_text().strip() if (scene.data / "state").exists() else "",
        "started": agents.started,
    }


def serve(scene: Scene) -> None:
    """A line of JSON for each trial, and one back."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # agents of a process that was killed come here to be reaped
    for line in sys.stdin:
        what = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                outcome = asyncio.run(trial(scene, what))
            except BaseException as error:
                outcome = {"error": f"{type(error).__name__}: {error}"}
            os.write(writer, json.dumps(outcome).encode())
            os._exit(0)
        os.close(writer)
        if "kill_after" in what:
            time.sleep(what["kill_after"])
            os.kill(pid, signal.SIGKILL)
        with open(reader, "rb") as answers:
            answer = answers.read()
        status = os.waitpid(pid, 0)[1]
        killed = os.WIFSIGNALED(status)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        print(json.dumps({"killed": killed, **(json.loads(answer) if answer and not killed else {})}), flush=True)


class Trials:
    """The program, started once. As a context manager it is ended on the way out."""

    def __init__(self, scene: Scene) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.switch_scene", str(scene.top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )

    def run(self, what: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def points() -> Iterator[int]:
    """Every point at which a trial can be killed."""
    number = 0
    while True:
        yield number
        number += 1


if __name__ == "__main__":
    serve(Scene(Path(sys.argv[1])))
