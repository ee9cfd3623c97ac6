"""The standing gateway killed, or stopped, while it is asked for a way out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import EVERY_STAGE, Launch, sentence
from tests.faults.held import Stage
from tests.faults.test_stages import LAST, gateway_died
from tests.worlds import World

pytestmark = pytest.mark.orphans

WHERE = [
    *[("monitor", "connect", 1), ("init", "sendmsg", 1), ("monitor", "recvmsg", 2), ("init", "recvfrom", LAST)],
    ("init", "wait4", 1),
]


class Service:
    """`osmoda-egress serve` with one worker, until the end of the test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: subprocess.Popen[str] | None = None
        self.killed = False
        self.start()

    def start(self) -> None:
        argv = self.world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
        self.process = self.world.popen(argv, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "osmoda-egress: serving\n"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def worker(self) -> int:
        """The worker that there is; waits for it, since one that was killed is replaced."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            workers = [pid for pid in map(int, text.split()) if alive(pid)]
            if workers:
                return workers[0]
            os.sched_yield()
        raise AssertionError("the service has not replaced its worker")

    def kill(self, pid: int) -> None:
        """Kill it, or its worker."""
        self.killed |= pid == self.pid
        os.kill(pid, signal.SIGKILL)

    def end(self, number: int) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self.process.wait(30)
        self.process.stderr.close()


@contextlib.contextmanager
def standing(world: World) -> Iterator[Service]:
    """A service from its start to its end; one that was killed leaves its name, which the next one takes."""
    one = Service(world)
    try:
        yield one
    finally:
        one.end(signal.SIGTERM)
        if one.killed:
            runtime = world.environment.get("OSMODA_RUNTIME_DIR") or f"{world.environment['XDG_RUNTIME_DIR']}/osmoda"
            for socket in Path(runtime, "egress").glob("*.sock"):
                socket.unlink()


def stages_of(launch: Launch) -> list[Stage]:
    there = list(dict.fromkeys(launch.stages()))
    if EVERY_STAGE:
        return there
    found = []
    for role, call, nth in WHERE:
        same = [stage for stage in there if (stage.role, stage.call) == (role, call)]
        found += [stage for stage in same if nth in (stage.nth, LAST) and (nth or stage is same[-1])]
    assert len(found) > 3, "the stages have other names than are listed here"
    return found


@pytest.mark.parametrize("victim", ["worker", "service"])
def test_killed_at_each_stage(launches: Callable[..., Launch], world: World, victim: str) -> None:
    """Before the program has started it is said; afterwards it goes on without a network, until there is one again."""
    launch = launches(network=True, own=False)
    with standing(world):
        stages = stages_of(launch)
    for stage in stages:
        launch.each(f"{victim}, {stage}", partial(try_one, launch, stage, victim))


def try_one(launch: Launch, stage: Stage, victim: str) -> None:
    with standing(launch.world) as service:
        worker = service.worker()
        pid = worker if victim == "worker" else service.pid
        ended = launch.held(stage, lambda _: service.kill(pid))
        assert ended.seconds < 25
        gateway_died(ended)
        until = time.monotonic() + 30
        while ended.held and alive(worker):
            assert time.monotonic() < until, "the worker outlives the service"
            time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_a_service_that_is_stopped_is_not_waited_for_for_ever(launches: Callable[..., Launch], world: World) -> None:
    launch = launches(network=True, own=False)
    with standing(world) as service:
        stopped = (service.pid, service.worker())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            done = launch.world.run(launch.argv())
            assert time.monotonic() - began < 50
            assert (done.returncode, done.stdout) == (125, "")
            assert "the gateway has not answered within" in sentence(done.stderr)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
