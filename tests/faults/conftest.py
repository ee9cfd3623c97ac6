"""A launch that something goes wrong with, and a look at what is left of it after each try."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from osmoda.host import syscalls
from tests.faults.held import Ended, Stage, Tracer
from tests.leftovers import Watch
from tests.worlds import World

EVERY_STAGE = os.environ.get("OSMODA_TEST_STAGES") == "all"


def sentence(errors: str) -> str:
    """The one line that a launch which came to nothing says; it fails the test when that is anything else."""
    lines = errors.splitlines()
    assert len(lines) == 1, f"one sentence was to be said:\n{errors}"
    assert lines[0].startswith("osmoda-sandbox: "), errors
    assert "Traceback" not in errors
    assert "Error:" not in errors, "no name of a Python class"
    return lines[0].removeprefix("osmoda-sandbox: ")


@dataclass
class Launch:
    """One command line, run again and again; each run must leave nothing, whatever became of it."""

    world: World
    runtime: Path
    tier: int
    network: bool
    limits: bool
    own: bool = True
    """Whether a launch with a network forks a gateway of its own."""
    workspace: str = "direct"
    command: Sequence[str] = ("echo", "done")
    failures: list[str] = field(default_factory=list)
    watch: Watch | None = None

    @property
    def work(self) -> Path:
        return self.world.tmp / "work"

    def argv(self) -> list[str]:
        options = ["--profile", os.fspath(self.profile()), "--workspace", os.fspath(self.work)]
        return self.world.osmoda_argv("run", *options, "--", *self.command)

    def profile(self) -> Path:
        path = self.world.tmp / f"tier{self.tier}-{self.network}.toml"
        if not path.exists():
            lines = ["schema = 1", f"tier = {self.tier}", "[filesystem]", f'workspace = "{self.workspace}"']
            if self.network:
                lines += ["[network]", 'allow = ["www.example.test"]']
            if self.limits:
                lines += ["[process]", 'memory = "512M"', "pids = 64"]
            path.write_text("\n".join(lines) + "\n")
            self.work.mkdir(exist_ok=True)
            self.world.own(path, self.work)
        return path

    def clones(self) -> list[str]:
        return ["gateway"] * (self.network and self.own) + ["janitor"] * self.limits

    def warm(self) -> None:
        """The control: undisturbed it runs; twice, since the first may compile modules of osmoda's own."""
        for _ in range(2):
            done = self.world.run(self.argv())
            assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", ""), done

    def stages(self) -> Sequence[Stage]:
        """All that an undisturbed launch goes through."""
        return self.held(None, None).stages

    def held(self, stage: Stage | None, act: Callable[[Tracer], None] | None) -> Ended:
        return Tracer(self.world, self.argv(), self.clones()).run(stage, act)

    def each(self, what: str, act: Callable[[], None]) -> None:
        """Try `act`; what it fails with, or leaves, is noted under the name `what`."""
        if self.watch is None:
            self.watch = Watch(self.runtime, adopts_orphans=True)
        watch = self.watch
        try:
            act()
        except AssertionError as error:
            self.failures.append(f"{what}: {error}")
        left = watch.settle()
        for remove in left.values():
            remove()
        if left:
            self.failures.append(f"{what}: left behind {', '.join(sorted(left))}")

    def conclude(self) -> None:
        assert not self.failures, f"{len(self.failures)}:\n" + "\n".join(self.failures)


@pytest.fixture
def launches(world: World, no_leftovers: Path) -> Iterator[Callable[..., Launch]]:
    made: list[Launch] = []

    def make(**what: object) -> Launch:
        launch = Launch(world, no_leftovers, **{"tier": 2, "network": False, "limits": False, **what})  # type: ignore[arg-type]
        made.append(launch)
        launch.warm()
        return launch

    yield make
    for launch in made:
        launch.conclude()


def back_to(namespace: int) -> None:
    """Leave a mount namespace of the test's own.

    The kernel lets nobody do that who shares root and working directory with a thread, and one that was joined ends a
    moment later only (setns(2), EINVAL).
    """
    deadline = time.monotonic() + 30
    while True:
        try:
            os.setns(namespace, os.CLONE_NEWNS)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if time.monotonic() > deadline:
                # Every test after this one would look at the wrong mounts: another worker takes them.
                os.write(2, f"no way back to the mounts of before: threads {os.listdir('/proc/self/task')}\n".encode())
                os._exit(1)
        time.sleep(0.001)


@pytest.fixture
def own_mounts(no_leftovers: Path) -> Iterator[None]:
    """A mount namespace of the test's own: whoever runs tests beside it neither sees what is mounted nor removes it."""
    here = os.getcwd()
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNS)
        try:
            syscalls.mount_private()
            yield
        finally:
            back_to(before)
            os.chdir(here)
    finally:
        os.close(before)
