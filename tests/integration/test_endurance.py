"""Thousands of sandboxes, one after the other and many at once: what was there before is there after, and no more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from osmoda.host import features, paths
from osmoda.sandbox import DEVNULL, PIPE, LaunchError, Sandbox, close
from osmoda.sandbox.lease import COUNT
from tests.worlds import World

IN_A_ROW = 2000
AT_ONCE = 200
COMMANDS = 100
OPEN_FILES = 1024  # the soft limit that most systems give a program
PATIENCE = 30.0  # seconds for the kernel to take down the last namespaces
F_OFD_GETLK = 36


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found.extend(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    return found


def open_files(pid: int) -> list[str]:
    """Kinds of what a process has open: the numbers of pipes and sockets do not matter, how many there are does."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}").partition(":")[0])
    return sorted(found)


def groups_of(monitors: Iterable[int]) -> list[str]:
    """The control groups of sandboxes of these processes; each is named after its monitor."""
    names = tuple(f"osmoda-{pid:x}-" for pid in monitors)
    found = []
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        found.extend(f"{top}/{name}" for name in folders if name.startswith(names))
    return sorted(found)


def own_files() -> list[str]:
    found = [
        f"/tmp/{name}" for name in os.listdir("/tmp") if name.startswith("osmoda-") and os.path.isfile(f"/tmp/{name}")
    ]
    for kind in ("runtime", "state", "cache"):
        for top, folders, files in os.walk(paths.directory(kind)):
            found.extend(os.path.join(top, name) for name in (*folders, *files) if name != "__pycache__")
    return sorted(found)


def leased_uids() -> int:
    """How many of the reserved uids somebody holds (F_OFD_GETLK, fcntl(2)): 0, or 1 for "at least one"."""
    file = f"{paths.directory('runtime')}/uids"
    if not os.path.exists(file):
        return 0
    with open(file, "rb") as leases:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, COUNT, 0)
        kind: int = struct.unpack_from("h", fcntl.fcntl(leases, F_OFD_GETLK, asked))[0]
    return int(kind != fcntl.F_UNLCK)


def program(pid: int) -> str:
    """What a process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def what_there_is(launcher: int) -> dict[str, Any]:
    return {
        "processes": [Path(f"/proc/{pid}/comm").read_text() for pid in sorted(children(launcher))],
        "own descriptors": open_files(os.getpid()),
        "the launcher's descriptors": open_files(launcher),
        "mounts": Path("/proc/self/mountinfo").read_text().count("osmoda"),
        "cgroups": groups_of([launcher]),
        "files": own_files(),
        "uids": leased_uids(),
    }


def settled(launcher: int, before: dict[str, Any]) -> dict[str, Any]:
    """The difference that is still there when the kernel has had its time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            now = what_there_is(launcher)
        except (FileNotFoundError, ProcessLookupError):  # a process that ended while it was looked at
            continue
        changed = {name: (before[name], now[name]) for name in before if now[name] != before[name]}
        if not changed or time.monotonic() > deadline:
            return changed
        time.sleep(0.01)


def endure(kind: str) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """Run many: the exit codes that were seen, what differs afterwards, and what is left without the launcher."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    files = own_files()
    # Limits bring a control group into play, where this user has any.
    limits = 'memory = "512M"\npids = 20\n' if "memory" in features.probe().controllers else "pids = 20\n"
    Path("profile.toml").write_text(f"schema = 1\ntier = 2\n[process]\n{limits}")
    sandbox = Sandbox("profile.toml")
    sandbox.run(["true"], check=True)
    (launcher,) = children(os.getpid())
    deadline = time.monotonic() + PATIENCE
    while leased_uids() or any(program(pid) == "osmoda-init\n" for pid in children(launcher)):
        assert time.monotonic() < deadline
    before = what_there_is(launcher)
    statuses = in_a_row(sandbox) if kind == "in a row" else at_once(sandbox)
    changed = settled(launcher, before)
    close()
    left = {
        "processes": children(os.getpid()),
        "cgroups": groups_of([launcher]),
        "files": [file for file in sorted(set(own_files()) - set(files)) if os.path.basename(file) != "uids"],
        "uids": leased_uids(),
    }
    return sorted(set(statuses)), changed, {name: found for name, found in left.items() if found}


def in_a_row(sandbox: Sandbox) -> list[int]:
    return [sandbox.run(["true"]).status for _ in range(IN_A_ROW)]


def at_once(sandbox: Sandbox) -> list[int]:
    """All of them run before the first may end."""
    running = [
        sandbox.popen(["sh", "-c", "echo $$; read -r go; exit $go"], stdin=PIPE, stdout=PIPE) for _ in range(AT_ONCE)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.read(10), "it has begun"
    statuses = [process.communicate(b"7\n").status for process in running]
    for process in running:
        process.close()
    return statuses


def test_two_thousand_in_a_row_leave_nothing(world: World) -> None:
    assert world.call(endure, "in a row", timeout=280) == ([0], {}, {})


def test_two_hundred_at_once_leave_nothing(world: World) -> None:
    assert world.call(endure, "at once", timeout=280) == ([7], {}, {})


def beyond_open_files() -> tuple[set[str], int, int]:
    """More at once than the launcher can hold: those that run go on, the others say why they do not."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    sandbox = Sandbox(tier=2)
    running = [sandbox.popen(["sleep", "1000"], stdin=DEVNULL) for _ in range(100)]
    errors, killed = set(), 0
    for process in running:
        process.kill()
        try:
            killed += process.wait().signal == signal.SIGKILL
        except LaunchError as error:
            errors.add(str(error))
        process.close()
    return errors, killed, sandbox.run(["true"]).status


def test_too_many_at_once_is_an_error_of_those(world: World) -> None:
    errors, killed, after = world.call(beyond_open_files)
    assert errors
    # ETOOMANYREFS: as many descriptors as may be open are on their way (unix(7)).
    assert all("open files" in error or "Too many references" in error for error in errors), errors
    assert killed > 5
    assert after == 0


def test_a_hundred_commands_leave_nothing(world: World) -> None:
    """The cache of plans is what stays by design; the record of the last run is replaced, not added to."""
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", "exit 5")
    first = world.run(command)
    assert (first.returncode, first.stderr) == (5, "")
    before = sorted(world.tmp.rglob("*"))
    running: list[subprocess.Popen[Any]] = []
    statuses: list[int] = []
    monitors = []
    for number in range(COMMANDS):
        running.append(world.popen(command, stdin=subprocess.DEVNULL))
        monitors.append(running[-1].pid)
        if number % 4 == 3:
            statuses.extend(process.wait(60) for process in running)
            running.clear()
    assert statuses == [5] * COMMANDS
    assert sorted(world.tmp.rglob("*")) == before
    assert groups_of(monitors) == []


@pytest.mark.orphans
def test_monitors_that_are_killed_leave_nothing(world: World) -> None:
    """SIGKILL, which nobody can clean up after in person: the kernel and the janitor do."""
    profile = world.tmp / "profile.toml"
    limits = 'memory = "512M"\n' if world.is_root and "memory" in features.probe().controllers else ""
    profile.write_text(f"schema = 1\ntier = 2\n[process]\npids = 20\n{limits}")
    script = "echo ready; (setsid sleep 1000 &) ; sleep 1000"
    command = world.osmoda_argv("run", "--profile", profile, "--", "sh", "-c", script)
    monitors = []
    for _ in range(20):
        with world.popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            monitors.append(process.pid)
            process.kill()
            # The end of the pipe: the command and its orphan, which hold it, are gone.
            assert process.stdout.read() == b""
    deadline = time.monotonic() + PATIENCE
    while groups_of(monitors) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert groups_of(monitors) == []
