"""Too few descriptors, processes, or too little memory: each number of them is either enough, or said to be too few.

Where not even an interpreter starts, which is the control, the words are not ours.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import EVERY_STAGE, Launch, sentence
from tests.worlds import World

PIDS = Path("/sys/fs/cgroup/pids")
Prefix = Callable[[int], Sequence[str]]


def files(count: int) -> Sequence[str]:
    return ["prlimit", f"--nofile={count}"]


def processes(count: int) -> Sequence[str]:
    return ["prlimit", f"--nproc={count}"]


def memory(mebibytes: int) -> Sequence[str]:
    return ["prlimit", f"--as={mebibytes << 20}"]


def other_program(launch: Launch) -> Sequence[str]:
    """What needs as much to begin with: an interpreter, and a shell where the command's first lines are for one."""
    python = [sys.executable, "-I", "-S", "-c", "import _ctypes, select, fcntl"]
    if not launch.argv()[0].endswith("osmoda-sandbox"):
        return python
    script = launch.world.tmp / "other"
    script.write_text(f"#!/bin/sh\nexec {shlex.join(python)}\n")
    script.chmod(0o755)
    return [str(script)]


def check(launch: Launch, prefix: Sequence[str], enough: list[bool]) -> None:
    """One launch under a limit; whether it was enough is added to `enough`."""
    done = launch.world.run([*prefix, *launch.argv()])
    enough.append(done.returncode == 0)
    if done.returncode == 0:
        assert (done.stdout, done.stderr) == ("done\n", "")
        return
    if launch.world.run([*prefix, *other_program(launch)]).returncode:
        return  # nor does anything else that is started like it
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    said = sentence(done.stderr)
    named = ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_AS", "failed to map segment")
    assert any(name in said for name in named), f"it does not say what to change: {said}"


def try_all(launch: Launch, limit: Prefix, values: Sequence[int]) -> None:
    enough: list[bool] = []
    for value in values:
        launch.each(" ".join(limit(value)), partial(check, launch, limit(value), enough))
    assert enough[0] is False, "the control: the first is too little"
    assert enough[-1] is True, "the control: the last is enough"


@pytest.mark.orphans
@pytest.mark.parametrize("network", [False, True])
def test_descriptors(launches: Callable[..., Launch], world: World, network: bool) -> None:
    some = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 18, 20, 32]
    try_all(launches(network=network, limits=world.is_root), files, range(3, 48) if EVERY_STAGE else some)


@pytest.mark.orphans
@pytest.mark.parametrize("world", ["user"], indirect=True)
@pytest.mark.parametrize("network", [False, True])
def test_processes_of_a_user(launches: Callable[..., Launch], network: bool) -> None:
    try_all(launches(network=network), processes, range(1, 7))


@contextmanager
def pids_group() -> Iterator[Path]:
    group = PIDS / f"faults-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.orphans
@pytest.mark.parametrize("world", ["root"], indirect=True)
@pytest.mark.skipif(not os.access(PIDS, os.W_OK), reason="the pids controller of cgroup v1 is not root's here")
def test_processes_of_a_control_group(launches: Callable[..., Launch]) -> None:
    """The group that root is in is full: pids.max, as a container or a systemd unit sets it."""
    launch = launches(network=True, limits=True)
    with pids_group() as group:

        def limit(count: int) -> Sequence[str]:
            enter = f"echo {count} > {group}/pids.max; echo $$ > {group}/cgroup.procs"
            return ["sh", "-c", f'{enter}; exec "$@"', "sh"]

        try_all(launch, limit, [1, 2, 3, 4, 5, 6, 12])


@pytest.mark.orphans
def test_memory(launches: Callable[..., Launch], world: World) -> None:
    some = [12, 14, 16, 20, 24, 27, 28, 29, 30, 31, 96]
    try_all(launches(network=world.is_root, limits=world.is_root), memory, range(12, 64) if EVERY_STAGE else some)
