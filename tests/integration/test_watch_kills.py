"""Agents, the launcher and the daemon killed at random moments: no agent is lost, runs twice, or runs unenforced.

`OSMODA_WATCH_KILLS` says how often (default: 12); `OSMODA_WATCH_SEED` repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.watched import Watch, eventually

KILLS = int(os.environ.get("OSMODA_WATCH_KILLS", "12"))
SEED = int(os.environ.get("OSMODA_WATCH_SEED", str(random.randrange(1 << 30))))
AGENTS = ("one", "two", "three")
PROGRAM = "import time\nprint('up', flush=True)\ntime.sleep(100000)\n"


class Onlooker(threading.Thread):
    """Looks at all processes again and again, for what must never be."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(daemon=True)
        self.watch = watch
        self.ended = threading.Event()
        self.looks = 0
        self.seen: set[int] = set()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            found = self.watch.processes()
            folders: dict[str, list[str]] = {}
            for pid, command in found.items():
                with contextlib.suppress(OSError):
                    folder = os.readlink(f"/proc/{pid}/cwd")
                    status = dict(
                        line.split(":\t", 1)
                        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                        if ":\t" in line
                    )
                    if status["State"].startswith(("Z", "X")):
                        continue
                    folders.setdefault(folder, []).append(f"{pid}, {status['State']}, child of {status['PPid']}")
                    enforced = (len(status["NSpid"].split()) == 2, status["Seccomp"], status["NoNewPrivs"])
                    if enforced != (True, "2", "1"):
                        self.wrong.append(f"{pid} ({command}) runs unenforced: {enforced}")
                    self.seen.add(pid)
            self.wrong += [f"{folder} has {several}" for folder, several in folders.items() if len(several) > 1]
            self.looks += 1
            time.sleep(0.001)


@pytest.mark.orphans  # what killed daemons and launchers leave to init
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_random_kills(watch: Watch) -> None:
    chance = random.Random(SEED)
    for name in AGENTS:
        program = watch.program(name, PROGRAM)
        watch.unit(name, unit="StartLimitIntervalSec=0", ExecStart=program, Restart="always", RestartSec="1ms")
    watch.up()
    watch.do("start", *AGENTS)
    onlooker = Onlooker(watch)
    onlooker.start()
    done = Counter[str]()
    try:
        for _ in range(KILLS):
            kind = chance.choices(("agent", "launcher", "daemon", "stop"), (20, 3, 2, 1))[0]
            done[kind] += 1
            kill(watch, kind, chance)
            reap_orphans(watch)
            time.sleep(chance.random() * 0.05)
        eventually(lambda: all(is_up(watch, name) for name in AGENTS), "all were up again")
    finally:
        onlooker.ended.set()
        onlooker.join(30)
    print({"seed": SEED, "kills": dict(done), "programs": len(onlooker.seen), "looks": onlooker.looks})
    assert onlooker.wrong == [], f"seed {SEED}"
    assert len(watch.processes()) == len(AGENTS)
    assert len(onlooker.seen) > len(AGENTS)
    assert onlooker.looks > KILLS
    watch.do("stop", *AGENTS)
    assert watch.processes() == {}


def kill(watch: Watch, kind: str, chance: random.Random) -> None:
    assert watch.process is not None
    match kind:
        case "agent":
            found = [*watch.processes()]
            if found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(found), signal.SIGKILL)
        case "launcher":
            children = Path(f"/proc/{watch.process.pid}/task/{watch.process.pid}/children").read_text().split()
            with contextlib.suppress(ProcessLookupError):
                for pid in map(int, children):
                    os.kill(pid, signal.SIGKILL)
        case "daemon":
            watch.down(signal.SIGKILL)
            watch.up()
        case _:
            name = chance.choice(AGENTS)
            watch.do("stop", name)
            assert watch.processes(name) == {}
            watch.do("start", name)


def reap_orphans(watch: Watch) -> None:
    """Those that killed daemons and launchers have left, which come to the test process."""
    assert watch.process is not None
    for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        if pid != watch.process.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def is_up(watch: Watch, name: str) -> bool:
    return str(watch.status(name)["state"]) == "active"
