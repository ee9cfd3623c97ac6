"""The two worlds that tests run in: each is who it says it is, and sees what a test needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def identity() -> dict[str, object]:
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {"ids": os.getresuid() + os.getresgid(), "groups": os.getgroups(), "effective": int(status["CapEff"], 16)}


def failing() -> None:
    raise ValueError("said over there")


def test_a_world_has_its_uid_and_no_more(world):
    found = world.call(identity)
    assert found["ids"] == (world.uid,) * 3 + (world.gid,) * 3
    if not world.is_root:
        assert found["effective"] == 0
        assert world.uid != 0


def test_the_interpreter_sees_the_packages_of_the_tests(world):
    result = world.python("import osmoda.host, pytest; print(osmoda.host.__file__)", check=True)
    assert result.stdout.strip().endswith("host/__init__.py")


def test_a_command_gets_the_pid_that_popen_returns(world):
    with world.popen(["sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


def test_home_and_tmp_belong_to_the_user(world):
    result = world.run(["sh", "-c", "cd && pwd && : >file && stat -c %u file"], check=True)
    assert result.stdout.split() == [str(world.home), str(world.uid)]
    assert (world.home / "file").exists(), "what a world writes is seen from outside"


def test_a_command_starts_in_tmp_or_where_it_is_told(world):
    assert world.run(["pwd"]).stdout.strip() == str(world.tmp)
    assert world.run(["pwd"], cwd=world.home).stdout.strip() == str(world.home)
    assert world.run(["pwd"], cwd=REPOSITORY).stdout.strip() == str(REPOSITORY)


def test_input_exit_status_and_environment(world):
    result = world.run(["sh", "-c", 'cat; echo "$WORD" >&2; exit 7'], input="in", env={"WORD": "set"})
    assert (result.stdout, result.stderr, result.returncode) == ("in", "set\n", 7)


def test_a_command_that_does_not_exist(world):
    if world.uid == os.getuid():
        with pytest.raises(FileNotFoundError):
            world.run(["no-such-command"])
    else:
        result = world.run(["no-such-command"])
        assert result.returncode == 1
        assert result.stderr == "no-such-command: No such file or directory\n"


def test_an_exception_in_a_call_fails_the_test_with_its_message(world):
    with pytest.raises(pytest.fail.Exception, match="ValueError: said over there"):
        world.call(failing)


def test_the_user_cannot_read_what_is_closed_to_others(world):
    closed = world.tmp / "closed"
    closed.write_text("x")
    os.chown(closed, os.getuid(), os.getgid())
    closed.chmod(0o600)
    readable = world.run(["cat", closed]).returncode == 0
    assert readable == (world.uid == os.getuid())


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to have a directory closed to somebody else")
@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_only_the_paths_needed_come_into_view_in_a_closed_directory(world):
    """The interpreter's own tree is the case in point: it may lie in root's home."""
    base = Path(sys.base_prefix).resolve()
    closed = next((d for d in reversed(base.parents) if not d.stat().st_mode & 0o001), None)
    if closed is None:
        pytest.skip("the interpreter lies in an open directory here")
    needed = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, REPOSITORY)}
    expected = {path.relative_to(closed).parts[0] for path in needed if path.is_relative_to(closed)}
    assert set(world.run(["ls", "-A", closed], check=True).stdout.split()) == expected


def runtime_directory() -> tuple[str, int]:
    from osmoda.host import paths

    made = paths.own_directory("runtime")
    return made, os.stat(made).st_uid


def test_runtime_files_go_where_leftovers_are_looked_for(world, no_leftovers):
    path, owner = world.call(runtime_directory)
    assert Path(path).is_relative_to(no_leftovers)
    assert owner == world.uid
