"""Moving out of a v2 group's way and back, in this kernel's own hierarchy. It needs no controller."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import Program

MOUNT = next((path for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(path, "cgroup.procs").exists()), "")
NAME = f"osmoda-test-{os.getpid():x}"
pytestmark = pytest.mark.skipif(
    not MOUNT or not os.access(MOUNT, os.W_OK), reason="no cgroup v2 hierarchy that this user may write to"
)

# A launcher in a group that it has for itself; it says where it is, step by step.
LAUNCHER = """
import os, sys
from osmoda.host import cgroup, delegation
place = sys.argv[1]
with open(place + "/cgroup.procs", "w") as file:
    file.write("0")
cgroup.settle(cgroup.Hierarchy(2, (("pids", place),)))
assert cgroup.find().places == (("pids", place),)
def step(word):
    print(word, cgroup.own_group(), flush=True)
    return sys.stdin.readline().strip()
"""


@pytest.fixture
def place():
    path = Path(MOUNT, NAME)
    path.mkdir()
    yield path
    for below in path.iterdir():
        if below.is_dir():
            below.rmdir()
    path.rmdir()


def start(place, code):
    argv = [sys.executable, "-c", LAUNCHER + code, str(place)]
    return Program(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def folders(place):
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def test_into_a_leaf_and_back(place):
    code = 'step("settled"); assert cgroup.leave(); step("left"); assert cgroup.leave()'
    with start(place, code) as launcher:
        leaf = f"osmoda-monitor-{launcher.pid:x}"
        assert launcher.stdout.readline() == f"settled /{NAME}/{leaf}\n"
        assert (place / "cgroup.procs").read_text() == ""
        assert folders(place) == [leaf]
        launcher.stdin.write("\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == f"left /{NAME}\n"
        assert folders(place) == []
        _, errors = launcher.communicate("\n", timeout=30)
        assert launcher.returncode == 0, errors


def test_limits_that_are_in_use_stay(place):
    code = """
other = place + "/osmoda-other"
os.mkdir(other)
assert not cgroup.leave()
step("stays")
os.rmdir(other)
assert cgroup.leave()
"""
    with start(place, code) as launcher:
        assert launcher.stdout.readline() == f"stays /{NAME}/osmoda-monitor-{launcher.pid:x}\n"
        _, errors = launcher.communicate("\n", timeout=30)
        assert launcher.returncode == 0, errors
    assert folders(place) == []


def test_a_second_launcher_does_not_come_in_while_the_first_is_there(place):
    with start(place, 'step("first"); cgroup.leave()') as first:
        assert first.stdout.readline().startswith("first ")
        with start(place, "") as second:
            _, errors = second.communicate(timeout=30)
            assert second.returncode == 1
            assert f"flock {place}: Resource temporarily unavailable" in errors
        assert folders(place) == [f"osmoda-monitor-{first.pid:x}"]
        _, errors = first.communicate("\n", timeout=30)
        assert first.returncode == 0, errors


def test_the_janitor_tidies_up_after_a_launcher_that_was_killed(place):
    code = """
from osmoda.sandbox.janitor import Janitor
group = cgroup.Group.create(cgroup.find(), "osmoda-killed", 0, 0.0, 0)
Janitor().mind(group)
step("ready")
"""
    with start(place, code) as launcher:
        assert launcher.stdout.readline().startswith("ready ")
        (janitor,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert folders(place) == ["osmoda-killed", f"osmoda-monitor-{launcher.pid:x}"]
        pidfd = os.pidfd_open(int(janitor))
        launcher.kill()
        launcher.wait(30)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # the test process adopts it
    os.close(pidfd)
    assert folders(place) == []
