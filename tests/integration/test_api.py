"""Sandboxes from Python, blocking and with asyncio. Each test calls a function in a fresh process of the world."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from osmoda.sandbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    CommandError,
    CommandFailed,
    LaunchError,
    Profile,
    ProfileError,
    Sandbox,
    TimedOut,
    close,
)
from tests.worlds import World


def children(pid: int = 0) -> list[int]:
    """The processes that a process of ours has started and not reaped."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid or os.getpid()}/task"):
        text = Path(f"/proc/{pid or os.getpid()}/task/{task}/children").read_text()
        found.extend(map(int, text.split()))
    return found


def descriptors() -> list[str]:
    """What this process has open above 2, as the links of /proc show it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir itself had open
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def caught(kind: type[BaseException], call: Any, *arguments: Any, **options: Any) -> BaseException:
    try:
        call(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


# Streams


def streams() -> dict[str, Any]:
    sandbox = Sandbox(tier=2)
    script = ["sh", "-c", "cat; echo problem >&2; exit 3"]
    captured = sandbox.run(script, input=b"a\0b", capture_output=True)
    merged = sandbox.run(["sh", "-c", "echo one; echo two >&2"], stdout=PIPE, stderr=STDOUT)
    silent = sandbox.run(["sh", "-c", "cat; echo word"], stdin=DEVNULL, stdout=DEVNULL)
    with open("given", "w+b") as file:
        sandbox.run(["echo", "to a file"], stdout=file)
        file.seek(0)
        written = file.read()
    large = sandbox.run(["cat"], input=bytes(3_000_000), capture_output=True)
    unwanted = sandbox.run(["true"], input=bytes(3_000_000), capture_output=True)
    return {
        "captured": (captured.status, captured.stdout, captured.stderr, captured.signal, captured.timed_out),
        "merged": (merged.stdout, merged.stderr),
        "silent": (silent.status, silent.stdout, silent.stderr),
        "written": written,
        "large": large.stdout == bytes(3_000_000),
        "unwanted": unwanted.status,
    }


def test_streams(world: World) -> None:
    assert world.call(streams) == {
        "captured": (3, b"a\0b", b"problem\n", 0, False),
        "merged": (b"one\ntwo\n", None),
        "silent": (0, None, None),
        "written": b"to a file\n",
        "large": True,
        "unwanted": 0,
    }


def test_streams_are_inherited_when_nothing_is_said(world: World) -> None:
    program = "from osmoda.sandbox import Sandbox; Sandbox(tier=2).run(['sh', '-c', 'cat; echo out; echo err >&2'])"
    result = world.python(program, input="in\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "in\nout\n", "err\n")


def conversation() -> list[bytes]:
    with Sandbox(tier=2).popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = []
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            said.append(process.stdout.read(100))
        process.stdin.close()
        said.append(process.stdout.read(100))
        assert process.wait().status == 0
    return said


def test_a_conversation_with_a_running_command(world: World) -> None:
    assert world.call(conversation) == [b"one\n", b"two\n", b""]


def directory_as_stdin() -> str:
    folder = os.open("/", os.O_RDONLY)
    try:
        return str(caught(LaunchError, Sandbox(tier=2).run, ["ls"], stdin=folder))
    finally:
        os.close(folder)


def test_a_directory_is_no_stream(world: World) -> None:
    assert world.call(directory_as_stdin) == "stdin is a directory, which would let the command out of its root"


# The surroundings of a command


def surroundings(home: str) -> dict[str, Any]:
    os.mkdir(f"{home}/work")
    Path(home, "profile.toml").write_text(
        'schema = 1\ntier = 1\nfilesystem.workspace = "direct"\nenvironment.set = { KIND = "profile", OTHER = "x" }\n'
        'environment.pass = ["PASSED"]\n'
    )
    os.environ["SECRET"] = os.environ["PASSED"] = "hunter2"
    sandbox = Sandbox(f"{home}/profile.toml", workspace=f"{home}/work")
    script = "pwd; echo $KIND $OTHER $MORE; echo ${SECRET-none} ${PASSED-none}; touch made"
    result = sandbox.run(["sh", "-c", script], env={"KIND": "call", "MORE": "y"}, capture_output=True)
    elsewhere = sandbox.run(["pwd"], cwd="/tmp", capture_output=True)
    del os.environ["PASSED"]
    removed = sandbox.run(["sh", "-c", "echo ${PASSED-none}"], capture_output=True)
    loaded = Sandbox(Profile.load(f"{home}/profile.toml"), workspace=f"{home}/work").run(["test", "-e", "made"])
    assert result.stdout is not None
    return {
        "said": result.stdout.decode().splitlines(),
        "elsewhere": elsewhere.stdout,
        "removed": removed.stdout,
        "owner": os.stat(f"{home}/work/made").st_uid,
        "loaded": loaded.status,
    }


def test_profile_workspace_environment_and_directory(world: World) -> None:
    home = str(world.home)
    assert world.call(surroundings, home) == {
        "said": [f"{home}/work", "call x y", "none hunter2"],
        "elsewhere": b"/tmp\n",
        "removed": b"none\n",
        "owner": world.uid,
        "loaded": 0,
    }


# Ends


def ends() -> dict[str, Any]:
    sandbox = Sandbox(tier=2)
    killed = sandbox.run(["sh", "-c", "kill -KILL $$"])
    failed = caught(CommandFailed, sandbox.run, ["sh", "-c", "echo said; exit 5"], check=True, capture_output=True)
    missing = caught(CommandError, sandbox.run, ["no-such-command"])
    forbidden = caught(CommandError, sandbox.run, ["/etc/passwd"])
    nothing = caught(LaunchError, sandbox.run, [])
    nowhere = caught(LaunchError, sandbox.run, ["true"], cwd="/nonexistent")
    assert isinstance(failed, CommandFailed)
    assert isinstance(missing, CommandError)
    assert isinstance(forbidden, CommandError)
    return {
        "killed": (killed.status, killed.signal),
        "failed": (str(failed), failed.result.status, failed.result.stdout),
        "missing": (missing.exit_code, str(missing)),
        "forbidden": (forbidden.exit_code, str(forbidden)),
        "nothing": str(nothing),
        "nowhere": str(nowhere),
        "after": sandbox.run(["true"], check=True).status,
    }


def test_every_kind_of_end(world: World) -> None:
    found = world.call(ends)
    assert found["killed"] == (137, 9)
    assert found["failed"] == ("sh ended with 5", 5, b"said\n")
    assert found["missing"] == (127, "no-such-command: No such file or directory")
    assert found["forbidden"] == (126, "/etc/passwd: Permission denied")
    assert found["nothing"] == "there is no command to run"
    assert "/nonexistent" in found["nowhere"]
    assert found["after"] == 0


# Time-outs in seconds: on a busy machine a program may not get to its first word in the shorter ones.
TIMES = (0.2, 3.0, 20.0)


def timing_out() -> dict[str, Any]:
    sandbox = Sandbox(tier=2)
    script = "echo begun; sleep 1000 & sleep 1000"
    for seconds in TIMES:
        error = caught(TimedOut, sandbox.run, ["sh", "-c", script], timeout=seconds, capture_output=True)
        assert isinstance(error, TimedOut)
        assert str(error) == f"sh did not end within {seconds:g} s"
        if error.result.stdout:
            break
    return {"said": error.result.stdout, "flag": error.result.timed_out, "signal": error.result.signal}


def test_a_time_out_tells_what_was_written(world: World) -> None:
    # It is asked to end, which it does; two seconds later it would have been killed.
    assert world.call(timing_out) == {"said": b"begun\n", "flag": True, "signal": signal.SIGTERM}


def signalled() -> list[int]:
    sandbox = Sandbox(tier=2)
    found = []
    for action in ("terminate", "kill"):
        with sandbox.popen(
            ["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"], stdout=PIPE
        ) as it:
            assert it.stdout is not None
            assert it.stdout.read(100) == b"ready\n"
            getattr(it, action)()
            found.append(it.wait().status)
            it.send_signal(signal.SIGTERM)  # too late, and no error
    return found


def test_signals_from_the_caller(world: World) -> None:
    assert world.call(signalled) == [7, 137]


def leaving_early() -> bool:
    with Sandbox(tier=2).popen(["sh", "-c", "echo ready; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(100)
    return process.wait().signal == signal.SIGKILL


def test_leaving_the_context_ends_the_command(world: World) -> None:
    assert world.call(leaving_early)


# What a run cost, and what was refused


def costs() -> dict[str, float]:
    sandbox = Sandbox(tier=2)
    busy = sandbox.run(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"])
    # 64 MiB in one variable of the shell's.
    large = sandbox.run(["bash", "-c", "x=$(head -c 64M /dev/zero | tr '\\0' x); echo ${#x} >/dev/null"])
    idle = sandbox.run(["sleep", "0.3"])
    return {
        "busy": busy.user_time + busy.system_time,
        "busy_wall": busy.duration,
        "large": large.peak_memory,
        "small": idle.peak_memory,
        "idle": idle.user_time + idle.system_time,
        "idle_wall": idle.duration,
    }


def test_times_and_memory_are_plausible(world: World) -> None:
    found = world.call(costs)
    assert 0.01 < found["busy"] <= found["busy_wall"] * os.cpu_count() + 0.05
    assert found["idle"] < 0.2
    assert 0.3 <= found["idle_wall"] < 50
    assert found["large"] >= 64 << 20
    assert 100_000 < found["small"] < 32 << 20


def refusals() -> list[Any]:
    code = "unshare --user true; unshare --user true; mount -t tmpfs none /mnt; exit 0"
    result = Sandbox(tier=2).run(["sh", "-c", code], capture_output=True)
    return [result.status, result.refused, [(denial.layer, denial.operation) for denial in result.denials]]


def test_refused_calls_are_told(world: World) -> None:
    status, refused, denials = world.call(refusals)
    assert status == 0
    assert refused >= 3
    assert ("seccomp", "unshare") in denials


def bad_profile(path: str) -> str:
    Path(path).write_text("schema = 1\ntier = 2\n[filesystem]\nworkspace = 'sideways'\n")
    return str(caught(ProfileError, Sandbox, path))


def test_a_bad_profile_is_an_error_with_its_place(world: World) -> None:
    path = str(world.tmp / "bad.toml")
    assert world.call(bad_profile, path).startswith(f"{path}:4:")


# asyncio


def with_asyncio() -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        sandbox = Sandbox(tier=2)
        one = await sandbox.run_async(["sh", "-c", "cat; echo err >&2; exit 4"], input=b"in", capture_output=True)
        large = await sandbox.run_async(["cat"], input=bytes(3_000_000), capture_output=True)
        said = None
        for seconds in TIMES:
            try:
                await sandbox.run_async(["sh", "-c", "echo begun; sleep 1000"], timeout=seconds, capture_output=True)
            except TimedOut as error:
                said = error.result.stdout
            if said:
                break
        try:
            await sandbox.run_async(["false"], check=True)
        except CommandFailed as error:
            failed = error.result.status
        try:
            await sandbox.run_async(["no-such-command"])
        except CommandError as error:
            missing = error.exit_code
        plain = await sandbox.run_async(["true"])
        return {
            "one": (one.status, one.stdout, one.stderr),
            "large": large.stdout == bytes(3_000_000),
            "said": said,
            "failed": failed,
            "missing": missing,
            "plain": (plain.status, plain.stdout),
        }

    return asyncio.run(main())


def test_asyncio(world: World) -> None:
    assert world.call(with_asyncio) == {
        "one": (4, b"in", b"err\n"),
        "large": True,
        "said": b"begun\n",
        "failed": 1,
        "missing": 127,
        "plain": (0, None),
    }


def cancelling() -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        sandbox = Sandbox(tier=2)
        await sandbox.run_async(["true"])
        before = descriptors()
        (launcher,) = children()
        read, write = os.pipe()
        script = ["sh", "-c", "echo ready; sleep 1000"]
        task = asyncio.create_task(sandbox.run_async(script, stdout=write))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, os.read, read, 100) == b"ready\n"
        os.close(write)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            ended = True
        # The end of the pipe: nobody inside holds it any more.
        rest = os.read(read, 100)
        os.close(read)
        await loop.shutdown_default_executor()
        for _ in range(3000):  # pid 1 is killed; the launcher reaps it a moment later
            if not children(launcher):
                break
            await asyncio.sleep(0.01)
        return {"ended": ended, "rest": rest, "same": descriptors() == before, "gone": not children(launcher)}

    return asyncio.run(main())


def test_cancelling_a_task_kills_the_sandbox(world: World) -> None:
    assert world.call(cancelling) == {"ended": True, "rest": b"", "same": True, "gone": True}


# Many at once


def fifty_tasks() -> list[bytes | None]:
    async def main() -> list[bytes | None]:
        sandbox = Sandbox(tier=2)
        runs = (sandbox.run_async(["echo", str(number)], capture_output=True) for number in range(50))
        return [result.stdout for result in await asyncio.gather(*runs)]

    return asyncio.run(main())


def fifty_threads() -> list[bytes | None]:
    sandbox = Sandbox(tier=2)
    # All are inside at once before any may go on.
    barrier = threading.Barrier(50)

    def one(number: int) -> bytes | None:
        with sandbox.popen(["sh", "-c", "read -r go; echo $go"], stdin=PIPE, stdout=PIPE) as process:
            barrier.wait(50)
            return process.communicate(f"{number}\n".encode()).stdout

    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(one, range(50)))


@pytest.mark.parametrize("function", [fifty_tasks, fifty_threads])
def test_fifty_at_once(world: World, function: Any) -> None:
    assert world.call(function) == [f"{number}\n".encode() for number in range(50)]


def many_profiles() -> list[int]:
    """More plans than the launcher keeps, and then the first of them again."""
    sandboxes = []
    for number in range(70):
        path = f"profile{number}.toml"
        Path(path).write_text(f"schema = 1\ntier = 2\n[process]\npids = {number + 10}\n")
        sandboxes.append(Sandbox(path))
    return [sandbox.run(["true"]).status for sandbox in (*sandboxes, *sandboxes[:3])]


def test_more_profiles_than_the_launcher_keeps(world: World) -> None:
    assert world.call(many_profiles) == [0] * 73


# The launcher


def killed_launcher() -> dict[str, Any]:
    sandbox = Sandbox(tier=2)
    with sandbox.popen(["sh", "-c", "echo ready; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(100)
        (launcher,) = children()
        os.kill(launcher, signal.SIGKILL)
        rest = process.stdout.read(100)
        error = caught(LaunchError, process.wait)
    return {"rest": rest, "error": str(error), "next": sandbox.run(["echo", "on"], capture_output=True).stdout}


@pytest.mark.orphans
def test_after_the_launcher_was_killed_the_next_call_works(world: World) -> None:
    assert world.call(killed_launcher) == {
        "rest": b"",
        "error": "the launcher was killed, or ran out of open files; this sandbox is gone",
        "next": b"on\n",
    }


def forking() -> dict[str, Any]:
    sandbox = Sandbox(tier=2)
    assert sandbox.run(["true"]).status == 0
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        found = sandbox.run(["echo", "child"], capture_output=True)
        theirs.send(json.dumps([found.status, (found.stdout or b"").decode()]).encode())
        close()
        os._exit(0)
    theirs.close()
    mine = sandbox.run(["echo", "parent"], capture_output=True)
    theirs_said = json.loads(ours.recv(1000))
    _, status = os.waitpid(child, 0)
    ours.close()
    again = sandbox.run(["echo", "again"], capture_output=True)
    return {"parent": mine.stdout, "child": theirs_said, "status": status, "again": again.stdout}


def test_a_forked_child_has_a_launcher_of_its_own(world: World) -> None:
    expected = {"parent": b"parent\n", "child": [0, "child\n"], "status": 0, "again": b"again\n"}
    assert world.call(forking) == expected


def closing() -> dict[str, Any]:
    before = descriptors()
    sandbox = Sandbox(tier=2)
    running = sandbox.popen(["sh", "-c", "echo ready; sleep 1000"], stdout=PIPE)
    assert running.stdout is not None
    running.stdout.read(100)
    close()
    alone = children() == []
    killed = running.wait().signal if running.stdout.read(1) == b"" else 0
    running.close()
    same = descriptors() == before
    again = sandbox.run(["true"]).status
    close()
    return {
        "alone": alone,
        "killed": killed,
        "same": same,
        "again": again,
        "end": (children(), descriptors() == before),
    }


def test_close_leaves_nothing(world: World) -> None:
    expected = {"alone": True, "killed": 9, "same": True, "again": 0, "end": ([], True)}
    assert world.call(closing) == expected


@pytest.mark.orphans
def test_a_program_that_is_killed_takes_its_sandboxes_along(world: World) -> None:
    program = (
        "from osmoda.sandbox import Sandbox, PIPE\n"
        "process = Sandbox(tier=2).popen(['sh', '-c', 'echo ready; sleep 1000'])\n"
        "process.wait()"
    )
    with world.popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        # The last holder of the pipe is inside the sandbox.
        assert process.stdout.read() == b""
    assert process.returncode == -signal.SIGKILL


def on_a_terminal() -> list[Any]:
    """A terminal of the host never enters: stdin is empty, output is copied."""
    master, slave = os.openpty()
    script = "for n in 0 1 2; do test -t $n && echo terminal $n; done; cat; echo out; echo err >&2"
    status = Sandbox(tier=2).run(["sh", "-c", script], stdin=slave, stdout=slave, stderr=slave).status
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while data := os.read(master, 1000):
            shown += data
    os.close(master)
    return [status, sorted(shown.split())]


def test_a_terminal_never_enters(world: World) -> None:
    assert world.call(on_a_terminal) == [0, [b"err", b"out"]]
