"""The event loop: refused calls are answered at a bounded rate, time-outs have a grace, callers hear once."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from osmoda.host import features
from osmoda.sandbox import launch, live_feed, monitor, profile_file
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.init import Command
from osmoda.sandbox.monitor import Monitor, Watched

EPERM = (-1).to_bytes(4, "little", signed=True)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 100.5

    def monotonic(self):
        return self.now

    def time(self):
        return 1_000_000.0


class Listener:
    """The kernel's end of a listener: calls to be refused, and the answers they got."""

    def __init__(self):
        self.waiting = []
        self.answers = []
        self.error = None

    def ioctl(self, fd, operation, argument):
        if self.error is not None:
            raise self.error
        if operation == monitor._NOTIF_RECV:
            number, arguments = self.waiting.pop(0)
            argument[0:8] = len(self.answers).to_bytes(8, "little")
            argument[8:12] = os.getpid().to_bytes(4, "little")
            argument[16:20] = number.to_bytes(4, "little")
            argument[20:24] = (0xC000003E).to_bytes(4, "little")
            for index, value in enumerate(arguments):
                argument[32 + 8 * index : 40 + 8 * index] = value.to_bytes(8, "little")
        else:
            self.answers.append(bytes(argument))
        return 0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


@pytest.fixture
def kernel(monkeypatch):
    kernel = Listener()
    monkeypatch.setattr(monitor, "fcntl", kernel)
    return kernel


@pytest.fixture
def loop():
    loop = Monitor()
    yield loop
    loop.sandboxes.clear()
    loop.close()


@pytest.fixture
def watched(loop, clock, kernel):
    """A sandbox whose listener always has something to say; nothing of it is real but the descriptors."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.write(write, b"x")
    pidfd = os.open("/dev/null", os.O_RDONLY)
    command = SimpleNamespace(terminals=())
    plan = SimpleNamespace(egress=b"")
    recorded = {"recorded": False, "ticket": None}
    launched = SimpleNamespace(control=ours, pidfd=pidfd, plan=plan, command=command, doorway=None, **recorded)
    made = Watched(loop, launched, lambda outcome: None)
    loop.sandboxes.add(made)
    made.listener = read
    loop.register(read, made.notification_ready)
    yield made
    for fd in (read, write, pidfd):
        os.close(fd)
    ours.close()
    theirs.close()


def test_the_answer_is_an_error_and_never_continue(watched, loop, kernel):
    kernel.waiting = [(165, (1, 2, 3))]
    loop.step()
    (answer,) = kernel.answers
    assert answer == (0).to_bytes(8, "little") + bytes(8) + EPERM + bytes(4)
    (denial,) = watched.denials.values()
    assert (denial.number, denial.architecture, denial.arguments[:3]) == (165, 0xC000003E, (1, 2, 3))
    assert (denial.pid, denial.time) == (os.getpid(), 1_000_000.0)


def test_beyond_the_rate_callers_wait_for_the_next_second(watched, loop, kernel, clock, monkeypatch):
    monkeypatch.setattr(monitor, "_DENIALS_PER_SECOND", 5)
    kernel.waiting = [(165, ())] * 12
    for _ in range(8):
        loop.step(0)
    assert len(kernel.answers) == 5
    assert not loop.watches(watched.listener)
    clock.now = 100.9
    loop.step(0)
    assert len(kernel.answers) == 5
    clock.now = 101.0
    loop.step(0)  # the timer
    assert loop.watches(watched.listener)
    for _ in range(8):
        loop.step(0)
    assert len(kernel.answers) == 10
    clock.now = 102.0
    for _ in range(3):
        loop.step(0)
    assert len(kernel.answers) == 12
    assert watched.refused == 12


def test_a_sandbox_that_ended_meanwhile_is_not_watched_again(watched, loop, kernel, clock, monkeypatch):
    monkeypatch.setattr(monitor, "_DENIALS_PER_SECOND", 0)
    loop.step(0)
    loop.forget(watched)
    clock.now = 105.0
    loop.step(0)
    assert not loop.watches(watched.listener)


def test_the_same_call_is_counted_and_kept_once(watched, loop, kernel):
    kernel.waiting = [(165, (1,)), (165, (1,)), (165, (2,)), (41, (1,))]
    for _ in range(4):
        loop.step(0)
    assert watched.refused == 4
    assert sorted(watched._counts.values()) == [1, 1, 2]


def test_what_is_kept_is_bounded(watched, loop, kernel, monkeypatch):
    monkeypatch.setattr(monitor, "_DISTINCT_DENIALS", 3)
    kernel.waiting = [(number, ()) for number in range(10)]
    for _ in range(10):
        loop.step(0)
    assert (watched.refused, len(watched.denials), len(kernel.answers)) == (10, 3, 10)


@pytest.fixture
def reader(monkeypatch):
    """Somebody who watches live: what each message told, (number, count) of each kind and how many calls beyond."""
    heard = []
    answers = []

    def tell(launched, denials, beyond, limits=(0, 0, False)):
        heard.append((sorted((denial.number, denial.count) for denial in denials), beyond))
        return answers.pop() if answers else True

    monkeypatch.setattr(monitor, "_is_watched", lambda: True)
    monkeypatch.setattr(live_feed, "tell", tell)
    return SimpleNamespace(heard=heard, answers=answers)


def test_a_reader_is_told_a_few_times_a_second_and_of_what_is_new(watched, loop, kernel, clock, reader):
    kernel.waiting = [(165, ())] * 40 + [(41, ())]
    for _ in range(40):
        loop.step(0)
    assert reader.heard == []
    clock.now += monitor._TELLING
    loop.step(0)
    assert reader.heard == [([(41, 1), (165, 40)], 0)]
    clock.now += 10
    kernel.waiting = [(165, ())]
    loop.step(0)
    clock.now += monitor._TELLING
    watched.monitor.unregister(watched.listener)
    loop.step(0)
    loop.step(0)
    assert reader.heard[1:] == [([(165, 41)], 0)]


def test_a_reader_that_was_busy_is_told_again(watched, loop, kernel, clock, reader):
    reader.answers.append(False)
    kernel.waiting = [(165, ())]
    loop.step(0)
    watched.monitor.unregister(watched.listener)
    for _ in range(4):
        clock.now += monitor._TELLING
        loop.step(0)
    assert reader.heard == [([(165, 1)], 0)] * 2


def test_a_reader_is_told_how_many_calls_are_not_kept(watched, loop, kernel, clock, reader, monkeypatch):
    monkeypatch.setattr(monitor, "_DISTINCT_DENIALS", 3)
    kernel.waiting = [(number, ()) for number in range(10)]
    for _ in range(10):
        loop.step(0)
    watched.monitor.unregister(watched.listener)
    clock.now += monitor._TELLING
    loop.step(0)
    assert reader.heard == [([(0, 1), (1, 1), (2, 1)], 7)]


def test_a_caller_that_was_killed_meanwhile_is_nothing(watched, loop, kernel):
    kernel.error = FileNotFoundError(2, "killed")
    loop.step(0)
    assert watched.refused == 0
    assert loop.watches(watched.listener)


def test_a_listener_that_fails_is_not_asked_again(watched, loop, kernel):
    kernel.error = OSError(22, "broken")
    loop.step(0)
    assert not loop.watches(watched.listener)


def test_timers_come_in_time_and_once(loop, clock):
    came = []
    loop.call_at(101.0, lambda: came.append("a"))
    loop.call_at(102.0, lambda: came.append("b"))
    for now, expected in ((100.9, []), (101.0, ["a"]), (101.5, ["a"]), (200.0, ["a", "b"]), (300.0, ["a", "b"])):
        clock.now = now
        loop.step(0)
        assert came == expected


def test_what_has_taken_the_number_of_one_that_ended_is_not_called_for_it(loop):
    """Both pipes have something; whoever is first closes the other one, whose number a silent pipe gets."""
    pipes = [os.pipe(), os.pipe()]
    called = []
    silent = []

    def first(mine, other):
        def callback():
            called.append("first")
            loop.unregister(other)
            os.close(other)
            read, write = os.pipe()
            if read != other:
                os.dup2(read, other)
                os.close(read)
            silent.append(write)
            loop.register(other, lambda: called.append("silent"))
            os.read(mine, 1)

        return callback

    for (mine, write), (other, _) in (pipes, pipes[::-1]):
        os.write(write, b"x")
        loop.register(mine, first(mine, other))
    loop.step(0)
    assert called == ["first"]
    os.write(silent[0], b"x")
    loop.step(0)
    assert called == ["first", "silent"]
    for read, write in pipes:
        loop.unregister(read)
        os.close(read)
        os.close(write)
    os.close(silent[0])


# Real sandboxes, in a process of their own: a launch wants a single thread.


def run(argv, timeout=0.0, grace=2.0, text="tier = 2", at_start=None):
    """Run in a sandbox; what the caller heard, in order, and what was still there at the end."""
    monitor._GRACE = grace
    profile = profile_file.load_text(f"schema = 1\n{text}", "/p/agent.toml", "/p")
    plan = compile_profile(profile, features.probe())
    null = os.open("/dev/null", os.O_RDWR)
    environment = (("PATH", "/usr/bin:/bin"),)
    directory = b"/" if plan.tier else os.fsencode(os.getcwd())
    before = len(os.listdir("/proc/self/fd"))
    command = Command(tuple(argv), environment, directory, null, null, null, ())
    heard = []

    def ended(outcome):
        if isinstance(outcome, Exception):
            heard.append((type(outcome).__name__, str(outcome), outcome.exit_code))
        else:
            heard.append((outcome.status, outcome.signal, outcome.timed_out, outcome.refused))

    watched = None
    loop = Monitor()
    try:
        watched = loop.watch(launch.launch(plan, command, b"", b"", -1, launch.new_identity()), ended, timeout)
        if at_start is not None:
            watched.send_signal(at_start)
        while loop.sandboxes:
            loop.step()
        loop.step(0)
    finally:
        loop.close()
    left = len(os.listdir("/proc/self/fd")) - before
    return heard, left


def test_a_run_is_heard_of_once_and_leaves_nothing(world):
    assert world.call(run, ["sh", "-c", "exit 3"]) == ([(3, 0, False, 0)], 0)


def test_a_command_that_is_not_there(world):
    heard, left = world.call(run, ["no-such-command"])
    assert heard == [("CommandError", "no-such-command: No such file or directory", 127)]
    assert left == 0


def test_a_time_out_ends_the_command_politely_first(world):
    code = 'trap "exit 5" TERM; sleep 60 & wait'
    for seconds in (0.2, 3.0, 20.0):  # on a busy machine it may not get to its trap in the shorter ones
        heard = world.call(run, ["sh", "-c", code], seconds, 60.0)
        if heard != ([(124, 15, True, 0)], 0):
            break
    assert heard == ([(124, 0, True, 0)], 0)


def test_and_then_not(world):
    code = 'trap "" TERM; while :; do sleep 60; done'
    (heard,), left = world.call(run, ["sh", "-c", code], 0.2, 0.2)
    assert (heard[0], heard[2], left) == (124, True, 0)


def test_a_signal_that_comes_before_the_command_has_started_reaches_it(world):
    assert world.call(run, ["sleep", "60"], 0.0, 2.0, "tier = 2", 15) == ([(143, 15, False, 0)], 0)


def test_a_kill_needs_no_command(world):
    assert world.call(run, ["sleep", "60"], 0.0, 2.0, "tier = 2", 9) == ([(137, 9, False, 0)], 0)


def test_refused_calls_are_counted(world):
    ((status, _, _, refused),), left = world.call(run, ["unshare", "--user", "true"])
    assert status != 0
    assert refused >= 1
    assert left == 0


def test_tier_0_ends_with_its_command(world):
    assert world.call(run, ["sh", "-c", "sleep 60 & exit 4"], 0.0, 2.0, "tier = 0") == ([(4, 0, False, 0)], 0)


def test_tier_0_has_the_limits_it_declares(world):
    text = "tier = 0\n[process.limits]\nopen_files = 40\n"
    code = 'test "$(ulimit -n)" = 40'
    assert world.call(run, ["sh", "-c", code], 0.0, 2.0, text) == ([(0, 0, False, 0)], 0)


def close_with_one_running(argv):
    plan = compile_profile(profile_file.load_text("schema = 1\ntier = 2", "/p/agent.toml", "/p"), features.probe())
    null = os.open("/dev/null", os.O_RDWR)
    command = Command(tuple(argv), (("PATH", "/usr/bin:/bin"),), b"/", null, null, null, ())
    heard = []
    loop = Monitor()
    launched = launch.launch(plan, command, b"", b"", -1, launch.new_identity())
    loop.watch(launched, heard.append)
    loop.close()
    return [outcome.status for outcome in heard], os.path.exists(f"/proc/{launched.pid}")


def test_closing_the_loop_ends_what_runs(world):
    assert world.call(close_with_one_running, ["sleep", "60"]) == ([137], False)


# The parent's half, when it fails.


def failing_launch(folder):
    text = f'schema = 1\ntier = 1\n[filesystem]\nread = ["{folder}"]\n'
    plan = compile_profile(profile_file.load_text(text, "/p/agent.toml", "/p"), features.probe())
    os.rename(folder, folder + ".away")
    null = os.open("/dev/null", os.O_RDWR)
    command = Command(("true",), (("PATH", "/usr/bin:/bin"),), b"/", null, null, null, ())
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        launched = launch.launch(plan, command, b"", b"", -1, launch.new_identity())
    except Exception as error:
        return f"{type(error).__name__}: {error}", sorted(os.listdir("/proc/self/fd")) == before
    heard = []
    loop = Monitor()
    loop.watch(launched, heard.append)
    while loop.sandboxes:
        loop.step()
    loop.close()
    return f"{type(heard[0]).__name__}: {heard[0]}", sorted(os.listdir("/proc/self/fd")) == before


def test_a_granted_path_that_went_away_is_said_and_leaves_no_descriptor(world):
    """As root the parent opens it, and has leased a uid by then; else the child does."""
    folder = world.tmp / "granted"
    folder.mkdir()
    world.own(folder)
    message, same = world.call(failing_launch, str(folder))
    assert message.startswith(f"LaunchError: open {folder}: No such file or directory")
    assert same


def test_an_event_of_a_number_that_was_given_to_another_is_nobodys(loop):
    """In one batch the first callback ends the second's descriptor, and a new one gets its number."""
    heard = []
    pipes = [os.pipe(), os.pipe()]

    def replace(own, other):
        def ready():
            heard.append(own)
            loop.unregister(other)
            os.dup2(silent, other)
            loop.register(other, lambda: heard.append("the new one"))

        return ready

    silent, silent_end = os.pipe()
    (first, one), (second, two) = pipes
    loop.register(first, replace(first, second))
    loop.register(second, replace(second, first))
    os.write(one, b"x")
    os.write(two, b"x")
    loop.step()
    assert len(heard) == 1
    assert heard[0] in (first, second)
    for fd in (first, one, second, two, silent, silent_end):
        os.close(fd)
