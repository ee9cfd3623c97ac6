"""`ps` shows the sandboxes that run, and nothing that only looks like one; `kill` ends them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator

from tests.worlds import SECONDS, World

# Names itself as a sandbox's pid 1 does, by thread name and by command line, and waits.
IMPOSTOR = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"osmoda-init", 0, 0, 0)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def sandbox(world: World, *command: str, profile: str = "tier2") -> Iterator[subprocess.Popen[str]]:
    """A running sandbox whose command has printed a line; its standard input ends it."""
    argv = world.osmoda_argv("run", "--quiet", "--profile", profile, "--", *command)
    pipe = subprocess.PIPE
    with world.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS)


def listed(world: World) -> dict[str, dict[str, object]]:
    """The sandboxes of this world's user, by id."""
    run = world.osmoda("ps", "--json", check=True)
    return {entry["identity"]: entry for entry in json.loads(run.stdout) if is_of(world, entry)}


def is_of(world: World, entry: dict[str, object]) -> bool:
    # As root a sandbox has a uid of its own, from the range that is reserved for them.
    uid = entry["uid"]
    assert isinstance(uid, int)
    return uid >= 1879048192 if world.is_root else uid == world.uid


def mine(world: World, marker: str) -> list[dict[str, object]]:
    return [entry for entry in listed(world).values() if marker in str(entry["command"])]


def test_ps_shows_what_runs_under_which_profile(world: World) -> None:
    marker = f"mark-{world.name}-{os.getpid()}"
    with sandbox(world, "sh", "-c", "sleep 60 & echo ready; read line; exit 0", marker) as process:
        (entry,) = mine(world, marker)
        assert (entry["tier"], entry["profile"]) == (2, "tier2")
        assert str(entry["identity"]).startswith(f"{process.pid:x}-")
        assert entry["processes"] == 3  # pid 1, the shell, its sleep
        memory, age = entry["memory"], entry["age"]
        assert isinstance(memory, int)
        assert isinstance(age, float)
        assert 1 << 16 < memory < 1 << 28
        assert 0 <= age < SECONDS
        words = world.osmoda("ps", check=True).stdout
        assert str(entry["identity"]) in words
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    assert mine(world, marker) == []


def test_a_payload_cannot_add_an_entry_or_take_anothers_place(world: World) -> None:
    marker = f"osmoda-init 1-1 tier-1 forged-{world.name}-{os.getpid()}"
    with sandbox(world, "/usr/bin/python3", "-c", IMPOSTOR, marker):
        entries = [entry for entry in listed(world).values() if marker in json.dumps(entry)]
        assert len(entries) == 1
        assert entries[0]["identity"] != "1-1"
        assert entries[0]["profile"] == "tier2"


def test_nor_can_a_process_that_is_in_no_sandbox(world: World) -> None:
    pipe = subprocess.PIPE
    argv = ["/usr/bin/python3", "-c", IMPOSTOR, "osmoda-init 1-1 tier-1 forged"]
    with world.popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert "1-1" not in listed(world)
        process.kill()


def test_kill_ends_one_sandbox_and_no_other(world: World) -> None:
    first, second = f"first-{world.name}-{os.getpid()}", f"second-{world.name}-{os.getpid()}"
    command = ("sh", "-c", "echo ready; read line; exit 7")
    with sandbox(world, *command, first) as ended, sandbox(world, *command, second) as kept:
        (entry,) = mine(world, first)
        world.osmoda("kill", str(entry["identity"]), check=True)
        assert ended.wait(SECONDS) == 137
        assert mine(world, first) == []
        assert len(mine(world, second)) == 1
        assert kept.stdin is not None
        kept.stdin.close()
        assert kept.wait(SECONDS) == 7


# The pid 1 of a namespace of its own, whose title is that of a sandbox.
IMITATION = """
import ctypes, os, sys
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000000) == 0  # CLONE_NEWUSER, CLONE_NEWPID
if os.fork() == 0:
    os.execv("/usr/bin/python3", [f"osmoda-init {sys.argv[1]} tier-2 imitated", "-c", sys.argv[2]])
os.wait()
"""


@contextlib.contextmanager
def imitation(identity: str) -> Iterator[subprocess.Popen[str]]:
    """Another user's imitation of a sandbox; where the tests run as an ordinary user, this one's."""
    argv = ["/usr/bin/python3", "-c", IMITATION, identity, IMPOSTOR]
    pipe = subprocess.PIPE
    other = {"user": 65533, "group": 65533, "extra_groups": ()} if os.geteuid() == 0 else {}
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd="/", **other) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(SECONDS)


def test_kill_ends_the_sandbox_and_not_who_imitates_it(world: World) -> None:
    marker = f"imitated-{world.name}"
    with sandbox(world, "sh", "-c", "echo ready; read line; exit 7", marker) as process:
        (entry,) = mine(world, marker)
        identity = str(entry["identity"])
        with imitation(identity) as other:
            shown = json.loads(world.osmoda("ps", "--json", check=True).stdout)
            assert [one["identity"] for one in shown].count(identity) == 2, "the imitation is one"
            world.osmoda("kill", identity, check=True)
            assert process.wait(SECONDS) == 137
            assert other.poll() is None


def test_kill_with_a_signal_leaves_the_choice_to_the_command(world: World) -> None:
    marker = f"trap-{world.name}-{os.getpid()}"
    script = "trap 'exit 42' HUP; echo ready; while :; do sleep 0.05; done"
    with sandbox(world, "sh", "-c", script, marker) as process:
        (entry,) = mine(world, marker)
        world.osmoda("kill", "--signal", "HUP", str(entry["identity"]), check=True)
        assert process.wait(SECONDS) == 42
