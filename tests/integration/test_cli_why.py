"""A real run is refused something, and `why` tells what, by which layer, and the line that would allow it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.worlds import World

TRY = """
import ctypes, os, socket
libc = ctypes.CDLL(None)
libc.unshare(0x10000000)
try:
    socket.socket(socket.AF_VSOCK)
except OSError:
    pass
libc.ptrace(0x4206, 1, 0, 0)  # PTRACE_SEIZE
"""


def write_profile(world: World, text: str) -> Path:
    path = world.tmp / "agent.toml"
    path.write_text("schema = 1\ntier = 1\n" + text)
    world.own(path)
    return path


def denials(world: World) -> list[dict[str, object]]:
    found = json.loads(world.osmoda("why", "--json", check=True).stdout)["denials"]
    assert isinstance(found, list)
    return found


def test_the_last_runs_refusals_with_layer_object_and_line(world: World) -> None:
    profile = write_profile(world, '[process]\nsyscalls = ["@system-service"]\n')
    run = world.osmoda("run", "--profile", str(profile), "--", "/usr/bin/python3", "-c", TRY)
    assert run.returncode == 0
    assert "osmoda-sandbox: python3[" in run.stderr
    found = {denial["operation"]: denial for denial in denials(world)}
    assert set(found) == {"unshare", "socket", "ptrace"}
    assert found["unshare"]["object"] == "CLONE_NEWUSER"
    assert str(found["unshare"]["advice"]).startswith("above tier 1's ceiling")
    assert found["socket"]["object"] == "AF_VSOCK, SOCK_STREAM"
    assert found["ptrace"]["origin"] == f"{profile}:4"
    assert all(denial["layer"] == "seccomp" for denial in found.values())


def test_the_line_that_why_tells_allows_the_call(world: World) -> None:
    profile = write_profile(world, '[process]\nsyscalls = ["@system-service"]\n')
    command = ("--", "/usr/bin/python3", "-c", TRY)
    world.osmoda("run", "--profile", str(profile), *command)
    (line,) = [str(denial["line"]) for denial in denials(world) if denial["operation"] == "ptrace"]
    write_profile(world, f"[process]\n{line}\n")
    world.osmoda("run", "--profile", str(profile), *command)
    assert {denial["operation"] for denial in denials(world)} == {"unshare", "socket"}


def test_in_words_on_one_page(world: World) -> None:
    world.osmoda("run", "--tier", "2", "--quiet", "--", "/usr/bin/python3", "-c", TRY)
    page = world.osmoda("why", check=True).stdout
    words = " ".join(page.split())
    assert "unshare(CLONE_NEWUSER)" in words
    assert "above tier 2's ceiling" in words
    assert "osmoda-sandbox why --path PATH" in words
    assert max(map(len, page.splitlines())) <= 100


def test_a_memory_limit_that_ended_the_command_is_told_with_its_line(world: World) -> None:
    if not world.is_root:
        pytest.skip("needs a cgroup with the memory controller, which is delegated to root only here")
    profile = write_profile(world, '[process]\nmemory = "32M"\n')
    command = ("/usr/bin/python3", "-c", "len(b'x' * (256 << 20))")
    run = world.osmoda("run", "--profile", str(profile), "--", *command)
    assert run.returncode == 137
    (denial,) = [denial for denial in denials(world) if not denial["habitual"]]
    assert (denial["layer"], denial["operation"], denial["object"]) == ("cgroup", "memory", "beyond 32M")
    assert (denial["origin"], denial["line"]) == (f"{profile}:4", 'memory = "64M"')


def test_a_question_without_a_profile_is_about_the_last_run(world: World) -> None:
    notes = world.tmp / "notes"
    notes.mkdir()
    world.own(notes)
    profile = write_profile(world, f'[filesystem]\nread = ["{notes}"]\n')
    assert world.osmoda("why", "--path", str(notes)).returncode == 1
    world.osmoda("run", "--profile", str(profile), "--", "true", check=True)
    asked = world.osmoda("why", "--path", str(notes))
    assert asked.returncode == 0
    assert asked.stderr == "for the last run, true\n"
    assert f"({profile}:4)" in asked.stdout


def test_the_workspace_of_the_last_run_is_remembered(world: World) -> None:
    work = world.tmp / "work"
    work.mkdir()
    world.own(work)
    profile = write_profile(world, '[filesystem]\nworkspace = "direct"\n')
    world.osmoda("run", "--profile", str(profile), "--workspace", "work", "--", "true", cwd=world.tmp, check=True)
    asked = world.osmoda("why", "--path", str(work / "new"), "--write", cwd=world.home)
    assert (asked.returncode, asked.stderr) == (0, "for the last run, true\n")
    assert world.osmoda("why", "--path", str(world.tmp / "new"), "--write").returncode == 0  # a private /tmp
    assert world.osmoda("why", "--path", "/srv/new", "--write").returncode == 1


def test_what_a_program_could_put_on_the_terminal_is_escaped(world: World) -> None:
    script = "import ctypes; l = ctypes.CDLL(None); l.prctl(15, b'\\x1b[31mred', 0, 0, 0); l.unshare(0x10000000)"
    run = world.osmoda("run", "--tier", "2", "--", "/usr/bin/python3", "-c", script)
    page = world.osmoda("why", check=True).stdout
    for text in (run.stderr, page):
        assert "\x1b" not in text
        assert "\\x1b[31mred" in text
