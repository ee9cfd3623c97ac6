"""How a service manager ends one supervised command: who hears its signal, and what the command leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

DEADLINE = 30.0
START = """
import sys
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.service_foreground import run_service
number, patience, script = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
said = []
code = run_service(
    Profile.default(1), ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd="/", to_all=number,
    patience=patience, beside=lambda running, tell: said.append("started"),
    after=lambda running, result: said.append(f"ended with {result.status}"),
)
print(*said, sep="\\n", flush=True)
sys.exit(code)
"""
# A program and its child, each of which says what it hears, and when both are there.
TWO = """
sh -c '
    trap "echo child heard; exit" TERM
    # Before it has become sleep(1) it is a shell that a signal does not end.
    sleep 1000 & until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done
    echo child
    wait
' &
child=$!
trap 'echo main heard; wait $child; exit 3' TERM
trap 'echo main alone' HUP
echo main
while :; do wait; done
"""
# It ends, and leaves a child that does not hear what it should.
LEAVES = """
sh -c 'trap "echo child heard" TERM; echo child; while :; do sleep 1000 & wait; done' &
sleep 1000 &
while [ -z "$said" ]; do read said; done
exit 5
"""


def all_below(pid):
    """What a process and its descendants are doing, a line each, for whoever asks why they are still there."""
    found = []
    try:
        with open(f"/proc/{pid}/status") as status:
            wanted = ("Name", "State", "NSpid", "SigPnd", "ShdPnd", "SigBlk", "SigCgt")
            lines = [line.split() for line in status if line.startswith(wanted)]
        with open(f"/proc/{pid}/wchan") as waits:
            found.append(" ".join([str(pid), *(" ".join(words) for words in lines), waits.read()]))
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    found += all_below(int(child))
    except OSError as error:
        found.append(f"{pid}: {error.strerror}")
    return found


def rest(process):
    """What it prints until it ends."""
    try:
        return process.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(["it does not end:", *all_below(process.pid)]))


@pytest.fixture
def started(world):
    """Run a script under run_service: its process, with pipes. Whoever reads from it does not wait for ever."""
    running = []
    too_late = threading.Timer(3 * DEADLINE, lambda: [process.kill() for process in running])
    too_late.start()

    def start(number, patience, script):
        argv = [sys.executable, "-c", START, str(number), str(patience), script]
        process = world.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    too_late.cancel()
    for process in running:
        process.kill()
        process.wait(DEADLINE)
        process.stdin.close()
        process.stdout.close()


def test_one_signal_goes_to_all_that_is_inside_and_the_others_to_the_command(started):
    process = started(int(signal.SIGTERM), 1000, TWO)
    assert sorted(process.stdout.readline() for _ in range(2)) == ["child\n", "main\n"]
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "main alone\n"
    process.send_signal(signal.SIGTERM)
    output = rest(process)
    assert sorted(output.splitlines()) == ["child heard", "ended with 3", "main heard", "started"]
    assert process.returncode == 3


def test_what_the_command_leaves_behind_hears_it_and_is_killed_when_it_stays(started):
    process = started(int(signal.SIGTERM), 7, LEAVES)  # seconds to say what it hears, on a busy machine
    assert process.stdout.readline() == "child\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    output = rest(process)
    assert output.splitlines() == ["child heard", "started", "ended with 5"]
    assert process.returncode == 5


def test_without_such_a_signal_what_is_left_is_killed_at_once(started):
    process = started(0, 0, LEAVES)
    assert process.stdout.readline() == "child\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    output = rest(process)
    assert output.splitlines() == ["started", "ended with 5"]
