"""What goes in and comes out: bytes, exit codes and signals, just as without a sandbox."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
from typing import IO

import pytest

from tests.worlds import World

GIB = 1 << 30
CHUNK = 1 << 20


def rotating_chunks(base: bytes) -> list[bytes]:
    """A few different chunks, so that one lost, doubled or out of place changes the digest."""
    return [base[n:] + base[:n] for n in range(7)]


def write_gibibyte(stream: IO[bytes], digest: list[str]) -> None:
    chunks = rotating_chunks(os.urandom(CHUNK))
    written = hashlib.sha256()
    with stream:
        for number in range(GIB // CHUNK):
            chunk = chunks[number % len(chunks)]
            stream.write(chunk)
            written.update(chunk)
    digest.append(written.hexdigest())


def pump_gibibyte(stdin: IO[bytes], stdout: IO[bytes]) -> tuple[str, str, int]:
    """Write to one end while the other is read: both digests, and how many bytes came."""
    digest: list[str] = []
    writer = threading.Thread(target=write_gibibyte, args=(stdin, digest))
    writer.start()
    arrived = hashlib.sha256()
    count = 0
    buffer = bytearray(CHUNK)
    while size := os.readv(stdout.fileno(), [buffer]):
        arrived.update(memoryview(buffer)[:size])
        count += size
    writer.join()
    return digest[0], arrived.hexdigest(), count


def test_a_gibibyte_through_the_command_arrives_unchanged(world: World) -> None:
    command = world.osmoda_argv("run", "--tier", "2", "--", "cat")
    with world.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        sent, arrived, count = pump_gibibyte(process.stdin, process.stdout)
    assert process.returncode == 0
    assert count == GIB
    assert arrived == sent


def gibibyte_through_the_api() -> tuple[str, str, int, int]:
    from osmoda.sandbox import PIPE, Sandbox

    with Sandbox(tier=2).popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # A raw pipe writes what there is room for; the buffer writes all.
        with open(os.dup(process.stdin.fileno()), "wb", buffering=CHUNK) as stdin:
            process.stdin.close()
            sent, arrived, count = pump_gibibyte(stdin, process.stdout)
        return sent, arrived, count, process.wait().status


def test_a_gibibyte_through_the_api_arrives_unchanged(world: World) -> None:
    sent, arrived, count, status = world.call(gibibyte_through_the_api)
    assert (status, count) == (0, GIB)
    assert arrived == sent


def test_stdout_and_stderr_stay_apart(world: World) -> None:
    result = world.osmoda("run", "--tier", "2", "--", "sh", "-c", "cat; echo problem >&2", input="word\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "word\n", "problem\n")


def test_a_failing_command_adds_no_words(world: World) -> None:
    result = world.osmoda("run", "--tier", "2", "--", "sh", "-c", "exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")


def test_stdout_and_stderr_may_be_the_same_file(world: World) -> None:
    log = world.tmp / "log"
    with log.open("wb") as file:
        command = ["run", "--tier", "2", "--", "sh", "-c", "echo one; echo two >&2; echo three"]
        world.osmoda(*command, stdout=file, stderr=subprocess.STDOUT)
    assert log.read_text() == "one\ntwo\nthree\n"


def test_stdin_at_its_end_is_the_end_inside(world: World) -> None:
    result = world.osmoda("run", "--tier", "2", "--", "sh", "-c", "cat; echo over")
    assert (result.returncode, result.stdout) == (0, "over\n")


@pytest.mark.parametrize("number", [0, 1, 2], ids=["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_closed_inside(world: World, number: int) -> None:
    """No descriptor of the monitor's own takes its place; using it fails as it does outside."""
    # A builtin, so that the shell opens nothing that could come to lie there.
    use = "read -r line" if number == 0 else f"echo word >&{number}"
    report = 1 if number == 2 else 2
    there = f"there=$(readlink /proc/$$/fd/{number})"
    code = f"{there}; {use} 2>/dev/null && echo used >&{report}; echo at $there >&{report}"
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", code)
    result = world.run(["sh", "-c", f'exec "$@" {number}<&-', "sh", *command])
    said = result.stdout + result.stderr
    assert [line for line in said.splitlines() if line.startswith(("at", "used"))] in (["at"], ["at /dev/null"])
    assert "Traceback" not in said


def test_a_directory_as_a_stream_is_refused(world: World) -> None:
    """Through it a command could walk out of its root (CVE-2024-21626)."""
    command = world.osmoda_argv("run", "--tier", "2", "--", "true")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        result = world.run(["sh", "-c", f'exec "$@" {number}</', "sh", *command])
        assert result.returncode == 125, name
        if number != 2:
            assert result.stderr.count("\n") == 1, result.stderr
            assert f"{name} is a directory" in result.stderr


def test_a_reader_that_leaves_early_ends_the_writer_by_sigpipe(world: World) -> None:
    command = world.osmoda_argv("run", "--tier", "2", "--", "yes")
    with world.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 128 + signal.SIGPIPE
    assert errors == b""


def test_the_reader_sees_the_end_when_the_command_has_gone(world: World) -> None:
    """What the command left running goes with it and holds no stream open."""
    result = world.osmoda("run", "--tier", "2", "--", "sh", "-c", "sleep 1000 & echo started")
    assert (result.returncode, result.stdout) == (0, "started\n")


def exit_codes() -> list[int]:
    from osmoda.sandbox import Sandbox

    sandbox = Sandbox(tier=2)
    return [sandbox.run(["sh", "-c", f"exit {code}"]).status for code in range(256)]


def test_every_exit_code_arrives(world: World) -> None:
    assert world.call(exit_codes) == list(range(256))


@pytest.mark.parametrize("code", [0, 1, 2, 77, 124, 125, 126, 127, 128, 255])
def test_the_command_exits_with_what_ran_inside(world: World, code: int) -> None:
    assert world.osmoda("run", "--tier", "2", "--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "ABRT", "PIPE", "USR1", "ALRM"])
def test_a_signal_that_ended_the_command_adds_128(world: World, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    result = world.osmoda("run", "--tier", "2", "--", "sh", "-c", f"kill -{name} $$; sleep 10")
    assert result.returncode == 128 + number


def timed_out(world: World, script: str, said: str) -> None:
    """It ends by its time-out, and says so. On a busy machine it may not get to all its words in the shorter ones."""
    for seconds in ("0.3", "3", "20"):
        result = world.osmoda("run", "--tier", "2", "--timeout", seconds, "--", "sh", "-c", script)
        assert result.returncode == 124
        assert f"{seconds} s" in result.stderr
        if result.stdout == said:
            break
    assert result.stdout == said


def test_time_out_is_124_and_ends_everything(world: World) -> None:
    timed_out(world, "echo begun; sleep 1000", "begun\n")


def test_a_command_that_ignores_the_time_out_is_killed(world: World) -> None:
    ignoring = "trap '' TERM; echo begun; while :; do sleep 1; done"
    timed_out(world, ignoring, "begun\n")


def test_a_command_that_uses_the_time_out_to_leave_well_is_124_too(world: World) -> None:
    leaving = "trap 'echo saved; exit 0' TERM; echo begun; while :; do sleep 0.02; done"
    timed_out(world, leaving, "begun\nsaved\n")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "USR2", "QUIT"])
def test_signals_go_on_to_the_command(world: World, name: str) -> None:
    waiting = f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.02; done"
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", waiting)
    with world.popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.stdout.read() == f"got {name}\n"
        assert process.wait() == 9


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_that_nobody_handles_ends_both(world: World, name: str) -> None:
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with world.popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait() == 128 + signal.Signals[f"SIG{name}"]


def test_what_the_caller_ignores_stays_ignored(world: World) -> None:
    """As with nohup(1): the monitor does not hand on a SIGHUP that it ignores itself."""
    waiting = "trap 'echo hung up; exit 9' HUP; echo ready; read -r line; echo $line"
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", waiting)
    with world.popen(
        ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate("on\n")
    assert (process.returncode, output) == (0, "on\n")
