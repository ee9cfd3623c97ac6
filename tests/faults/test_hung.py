"""A bind source on a file system that answers late, or never.

Who has asked such a one cannot be ended: what is there at the end of a launch is at most the process that asked, which
holds nothing and ends as soon as the file system does. The control is the same command line while it answers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.sandbox import answering
from tests.faults import fuse
from tests.faults.conftest import sentence
from tests.leftovers import PATIENCE, Watch, processes
from tests.worlds import World, make_world

pytestmark = [
    pytest.mark.orphans,
    pytest.mark.usefixtures("own_mounts"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a FUSE file system for others, or aborts one"),
]
FILES = {"agent.toml": b"schema = 1\ntier = 1\n", "notes": b"read me\n", "secret": b"hidden\n"}


@pytest.fixture
def worlds(no_leftovers: Path) -> Iterator[list[World]]:
    """Both at once: a launch that waits ten seconds costs no more than two that do."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("root", "user"):
            tmp = Path(tempfile.mkdtemp(prefix="osmoda-world-"))
            stack.callback(shutil.rmtree, tmp)
            made.append(make_world(name, tmp, no_leftovers / name))
        yield made


def cases(world: World, there: Path) -> dict[str, list[str]]:
    """Command lines that look into the folder `there`; each prints `done`."""
    folder = world.tmp / "profiles"
    folder.mkdir(exist_ok=True)
    profiles = {
        "granted": f'[filesystem]\nread = ["{there}"]',
        "denied": f'[filesystem]\nwrite = ["{there}"]\ndeny = ["{there}/secret"]',
        "extended": f'extends = "{there}/agent.toml"',
    }
    lines = {}
    for name, text in profiles.items():
        path = folder / f"{name}-{there.name}.toml"
        path.write_text(f"schema = 1\ntier = 1\n{text}\n")
        lines[name] = ["--profile", str(path)]
    world.own(folder)
    lines["profile"] = ["--profile", str(there / "agent.toml")]
    lines["workspace"] = ["--tier", "1", "--workspace-mode", "direct", "--workspace", str(there)]
    lines["overlay"] = ["--tier", "1", "--workspace-mode", "overlay", "--workspace", str(there)]
    return {name: world.osmoda_argv("run", *options, "--", "echo", "done") for name, options in lines.items()}


def start(world: World, argv: list[str]) -> subprocess.Popen[str]:
    return world.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_launch_does_not_wait_for_an_answer_for_ever(worlds: list[World], no_leftovers: Path) -> None:
    """Whatever is asked first, by whom, and whether the plan was kept from when there were answers."""
    with contextlib.ExitStack() as stack:
        served, running = [], {}
        for world in worlds:
            for kinds in ([], ["LOOKUP", "GETATTR"], ["OPEN", "OPENDIR", "STATFS"]):
                there = world.tmp / f"mnt-{len(kinds)}"
                one = stack.enter_context(fuse.mounted(there, FILES, world.uid))
                served.append((one, kinds))
                for name, argv in cases(world, there).items():
                    what = f"{world.name}, {name}, {kinds or 'all'}"
                    if not kinds or name in ("profile", "granted"):
                        running[what] = (world, argv, there)
        for what, (world, argv, _) in running.items():
            done = world.run(argv)
            assert (done.returncode, done.stdout) == (0, "done\n"), f"{what}: {done.stderr}"
        for one, kinds in served:
            one.stop(*kinds)
        watch = Watch(no_leftovers, adopts_orphans=True)
        began = time.monotonic()
        started = {what: start(world, argv) for what, (world, argv, _) in running.items()}
        for what, process in started.items():
            output, errors = process.communicate(timeout=100)
            assert (process.returncode, output) == (125, ""), f"{what}: {errors}"
            said = sentence(errors)
            assert f"the file system at {running[what][2]}" in said, f"{what}: {said}"
            assert "does not answer" in said, f"{what}: {said}"
        assert answering.SECONDS <= time.monotonic() - began < answering.SECONDS + 80
        left = watch.leftovers()
        until = time.monotonic() + PATIENCE
        while not all("osmoda-asking" in line for line in left):
            assert time.monotonic() < until, sorted(left)
            time.sleep(0.02)
            left = watch.leftovers()
        assert left, "the positive control: somebody still waits"
        assert all(one.hung.is_set() for one, _ in served)


def test_late_answers_are_waited_for(worlds: list[World]) -> None:
    for world in worlds:
        with fuse.mounted(world.tmp / "mnt", FILES, world.uid) as served:
            lines = cases(world, world.tmp / "mnt")
            served.delay(0.005)
            for name in ("granted", "profile", "workspace"):
                done = world.run(lines[name])
                assert (done.returncode, done.stdout) == (0, "done\n"), f"{world.name}, {name}: {done.stderr}"


def test_where_nothing_of_the_kind_is_mounted_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(answering, "_looked", -1.0)
    monkeypatch.setattr(answering, "_ask", None)
    answering.require(["/usr", tmp_path / "not there"])


def test_a_path_elsewhere_is_not_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[bytes]] = []
    monkeypatch.setattr(answering, "_ask", asked.append)
    link = tmp_path / "link"
    with fuse.mounted(tmp_path / "with space", FILES):
        link.symlink_to(tmp_path / "with space")
        monkeypatch.setattr(answering, "_looked", -1.0)
        os.stat("/usr/bin")
        answering.require(["/usr/bin"])
        assert asked == []
        answering.require([str(tmp_path / "with space" / "notes")])
        answering.require([str(link / "notes")])
    assert asked == [[os.fsencode(tmp_path / "with space" / "notes")], [os.fsencode(link / "notes")]]
    monkeypatch.setattr(answering, "_looked", -1.0)


IMPATIENT = """
import sys, time
from osmoda.sandbox import answering, launch, monitor, plans, request
from osmoda.sandbox.init import Command
monitor._SET_UP = monitor._DYING = float(sys.argv[2])
answering.require = lambda paths: None
there = sys.argv[1]
plan, _ = plans.for_request(request.parse(["--tier", "1", "--workspace-mode", "direct", "--", "true"]), "/")
command = Command(("true",), (("PATH", "/usr/bin"),), there.encode(), 0, 1, 2, ())
loop, began = monitor.Monitor(), time.monotonic()
loop.watch(launch.launch(plan, command, there.encode(), b"", -1, launch.new_identity()), print)
while loop.sandboxes:
    loop.step()
loop.close()
print(time.monotonic() - began)
"""


def run_impatiently(world: World, there: Path, seconds: float) -> list[str]:
    """One launch with the workspace `there`, by a monitor that waits `seconds` at most: its lines.

    They go to a file: what waits in the kernel holds the streams of its command, and a pipe would not end.
    """
    with tempfile.TemporaryFile("w+") as lines:
        world.python(IMPATIENT, str(there), str(seconds), stdout=lines, stderr=lines, check=True)
        lines.seek(0)
        return lines.read().splitlines()


def test_one_that_hangs_only_when_the_sandbox_is_set_up(worlds: list[World]) -> None:
    """It has answered, and then its server died: what is set up can no longer be ended, and is left to the kernel."""
    world = worlds[1]
    with fuse.mounted(world.tmp / "mnt", FILES, world.uid) as served:
        said, _ = run_impatiently(world, world.tmp / "mnt", 20.0)
        assert said.startswith("Outcome(status=0"), said
        served.stop()
        said, seconds = run_impatiently(world, world.tmp / "mnt", 0.5)
        assert "was not set up within 0.5 seconds" in said
        assert "does not answer" in said
        assert 1.0 <= float(seconds) < 50
        assert processes(), "the control: it is still there"
