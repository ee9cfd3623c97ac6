"""The wall clock is set while a sandbox runs, and at the stages of its launch: by a day, either way.

The clock that is set is one of the tests' own (clock.c), which the command is started with; this machine's is not.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pytest

from osmoda.sandbox import plans
from tests.faults.conftest import EVERY_STAGE, Launch
from tests.faults.held import Stage
from tests.faults.test_stages import finished
from tests.worlds import REPOSITORY, World

pytestmark = pytest.mark.orphans
SOURCE = Path(__file__).with_name("clock.c")
DAY = 86400

# Who asks the wall clock, and what for. A deadline is never among it.
WALL = {
    "egress/asking.py": "when a question came, for whoever reads it",
    "egress/gateway.py": "records",
    "egress/session.py": "records",
    "egress/authority.py": "from when to when a certificate is valid",
    "sandbox/api.py": "which edits came after the profile was read, with the clock that is not set beside it",
    "sandbox/doorway.py": "the same",
    "sandbox/egress_words.py": "what is left of a question's time, printed",
    "sandbox/ledger_grammar.py": "how long ago, as somebody asks for events",
    "sandbox/live.py": "when something was refused, printed",
    "sandbox/monitor.py": "when something was refused",
    "sandbox/overlay.py": "which files changed after a layer was made, by the clock that stamps them",
    "sandbox/top.py": "when something was refused, printed",
    "sandbox/plans.py": "which edits came after the profile was read, with the clock that is not set beside it",
}


class Clock:
    """A wall clock for those who are started with `environment`."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.path = folder / "clock"
        self.set(0)
        self.path.chmod(0o644)
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self.path)}

    def set(self, seconds: int) -> None:
        # In place: they have it mapped.
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", made, SOURCE], check=True)
    return made


@pytest.fixture
def clock(world: World, library: Path) -> Clock:
    own = world.tmp / "clock.so"
    own.write_bytes(library.read_bytes())
    own.chmod(0o755)
    return Clock(world.tmp, own)


def with_clock(world: World, clock: Clock) -> World:
    return dataclasses.replace(world, environment={**world.environment, **clock.environment})


def test_the_control_sees_it_set(world: World, clock: Clock) -> None:
    source = """
    import sys, time
    print(time.time(), time.monotonic(), flush=True)
    sys.stdin.readline()
    print(time.time(), time.monotonic(), flush=True)
    """
    with with_clock(world, clock).popen(
        ["/usr/bin/python3", "-c", "\n".join(line.strip() for line in source.splitlines())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = [float(word) for word in process.stdout.readline().split()]
        clock.set(DAY)
        process.stdin.write("\n")
        process.stdin.flush()
        after = [float(word) for word in process.stdout.readline().split()]
    assert DAY <= after[0] - before[0] < DAY + 60
    assert 0 <= after[1] - before[1] < 60


@pytest.mark.parametrize("days", [1, -1])
def test_set_while_a_sandbox_runs(world: World, clock: Clock, days: int) -> None:
    """A time-out comes neither at once nor never, and who has time left keeps it."""
    there = with_clock(world, clock)
    lines = {
        "short": ["run", "--timeout", "8", "--", "sh", "-c", "echo up; exec sleep 60"],
        "long": ["run", "--timeout", "60", "--", "sh", "-c", "echo up; read go; echo done"],
    }
    assert there.osmoda("run", "--", "true").returncode == 0
    began = time.monotonic()
    running = {
        name: there.popen(world.osmoda_argv(*words), stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        for name, words in lines.items()
    }
    for process in running.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    clock.set(days * DAY)
    output, errors = running["long"].communicate("go\n", timeout=50)
    assert (running["long"].returncode, output, errors) == (0, "done\n", "")
    output, errors = running["short"].communicate(timeout=50)
    assert (running["short"].returncode, output) == (124, "")
    assert 7.5 <= time.monotonic() - began < 55


@pytest.mark.parametrize("days", [1, -1])
def test_set_at_the_stages_of_a_launch(launches: Callable[..., Launch], world: World, clock: Clock, days: int) -> None:
    launch = launches(network=True, limits=world.is_root)
    launch.world = with_clock(world, clock)
    launch.warm()
    where = [
        ("monitor", "connect"),
        ("monitor", "clone3"),
        ("init", "sendmsg"),
        ("monitor", "recvmsg"),
        ("init", "wait4"),
    ]
    stages = [stage for stage in dict.fromkeys(launch.stages()) if EVERY_STAGE or (stage.role, stage.call) in where]
    assert len(stages) > 8
    for stage in stages if EVERY_STAGE else stages[::3]:
        launch.each(f"{stage}, {days} days", partial(try_one, launch, stage, clock, days))


def try_one(launch: Launch, stage: Stage, clock: Clock, days: int) -> None:
    try:
        ended = launch.held(stage, lambda _: clock.set(days * DAY))
    finally:
        clock.set(0)
    assert finished(ended), ended
    assert ended.seconds < 25


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_monotonic_clock_that_began_elsewhere(world: World) -> None:
    """In a time namespace, as containers that were moved have one: only differences count."""
    ahead = ["unshare", "--time", "--monotonic", "100000", "--fork"]
    began = time.monotonic()
    ended = world.run([*ahead, *world.osmoda_argv("run", "--timeout", "1", "--", "sleep", "60")])
    assert ended.returncode == 124, ended.stderr
    assert 1 <= time.monotonic() - began < 50


def test_edits_are_not_missed_when_the_clock_is_set_back() -> None:
    then = (1_000_000_000_000, 5_000_000_000)
    second = 1_000_000_000
    assert plans.edits_count_from(then, (then[0] + second, then[1] + second)) == then[0]
    assert plans.edits_count_from(then, (then[0] + DAY * second, then[1] + second)) == then[0], "set forward"
    assert plans.edits_count_from(then, (then[0] - second, then[1] + second)) == 1, "set back"
    assert plans.edits_count_from(then, (then[0] + second, then[1] + 3 * second)) == 1, "set back, and time went by"
    first, later = plans.moment(), plans.moment()
    assert plans.edits_count_from(first, later) == first[0]


def test_no_deadline_is_by_the_wall_clock() -> None:
    """Whoever asks for the time of day is listed, with what for."""
    asking = set()
    for room in ("host", "egress", "sandbox"):
        for path in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                named = node.attr if isinstance(node, ast.Attribute) else ""
                whose = node.value.id if named and isinstance(node.value, ast.Name) else ""
                wall = (
                    named in {"time", "time_ns", "localtime", "clock_gettime_ns", "clock_gettime"} and whose == "time"
                )
                if wall or (named in {"now", "utcnow", "today"} and "date" in whose):
                    asking.add(os.fspath(path.relative_to(REPOSITORY)))
    assert asking <= WALL.keys(), sorted(asking - WALL.keys())
    assert {"sandbox/monitor.py", "sandbox/plans.py"} <= asking, "the control: the list is not empty"
