"""Refusals as they happen: who may tell of them, what is kept, and what costs a monitor nothing."""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import time
from types import SimpleNamespace

import pytest

from osmoda.host import features, paths
from osmoda.sandbox import live_denials, live_feed, monitor, profile_file
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.live_denials import Listener, Refusals, Told
from osmoda.sandbox.monitor import RawDenial
from tests.worlds import World

X86 = 0xC000003E
MOUNT, UNSHARE = 165, 272


def raw(number=MOUNT, *, count=1, moment=50.0, arguments=(1, 2, 3, 4, 5, 6), command="sh"):
    return RawDenial(moment, 4321, command, number, X86, arguments, count)


@functools.cache
def compiled(text="tier = 2"):
    return compile_profile(profile_file.load_text(f"schema = 1\n{text}", "/p/agent.toml", "/p"), features.probe())


def launched(identity, plan=None):
    return SimpleNamespace(identity=identity, plan=plan or compiled())


def told(*denials, identity="1a-1", beyond=0, limits=(0, 0, False), plan=None):
    return Told(live_feed._message(launched(identity, plan), denials, beyond, limits))


# Who may tell


def child(send, *, unshare=0, uid=-1):
    """A child that says something and stays until the pipe is closed; what to write to, once it has spoken."""
    ours, theirs = os.pipe()
    spoken, speaks = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.close(theirs)
            os.close(spoken)
            if uid >= 0:
                os.setuid(uid)
            if unshare:
                os.unshare(unshare)
                inner = os.fork()
                if inner:
                    os.close(speaks)
                    os.waitpid(inner, 0)
                    os._exit(0)
            send()
            os.write(speaks, b"x")
            os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    os.close(speaks)
    assert os.read(spoken, 1) == b"x", "the child could not speak"
    os.close(spoken)
    return pid, theirs


def listen_to_forgers():
    """In a process of its own: who was heard, and how many were not."""
    plan = compiled()
    folder = paths.own_directory("runtime", live_feed.FOLDER)

    def say(message):
        def send():
            import socket

            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.sendto(message, f"{folder}/{os.getppid() if ppid is None else ppid}.sock")

        return send

    def honest():
        live_feed.tell(launched(f"{os.getpid():x}-1", plan), [raw()], 0)

    def in_anothers_name():
        live_feed.tell(launched(f"{os.getppid():x}-1", plan), [raw()], 0)

    ppid = os.getpid()
    children = []
    with Listener() as listener:
        # Opened wide, so that it is not the folder that keeps the others out.
        for path, mode in ((os.path.dirname(folder), 0o711), (folder, 0o711), (f"{folder}/{ppid}.sock", 0o666)):
            os.chmod(path, mode)
        forgers = [
            child(in_anothers_name),
            child(honest, unshare=os.CLONE_NEWUSER | os.CLONE_NEWPID),
            child(say(b"\x00garbage")),
            child(say(b"")),
            child(say(marshal.dumps((live_feed.FORMAT + 1, "1-1", b"", (), 0, (0, 0, False))))),
        ]
        if os.geteuid() == 0:
            message = live_feed._message(launched("1-1", plan), [raw()], 0, (0, 0, False))
            forgers.append(child(say(message), uid=54321))
        children = [*forgers, child(honest)]
        heard = listener.hear()
        dropped = listener.dropped
        for _, hold in children:
            os.close(hold)
        for pid, _ in children:
            os.waitpid(pid, 0)
    return heard.identity, f"{children[-1][0]:x}-1", len(heard.raw), dropped, len(forgers), os.path.exists(folder)


def test_only_the_monitor_of_the_sandbox_itself_is_heard(world: World):
    heard, honest, count, dropped, forgers, left = world.call(listen_to_forgers)
    assert (heard, count) == (honest, 1)
    assert dropped == forgers >= 5
    assert not left


@pytest.mark.parametrize(
    "values",
    [
        (50.0, 1, "sh", 165, X86, (1, 2, 3, 4, 5)),
        (50.0, 1, "sh", 165, X86, (1, 2, 3, 4, 5), 1),
        (50.0, 1, b"sh", 165, X86, (1, 2, 3, 4, 5, 6), 1),
        (50.0, 1, "sh", 165, X86, (1, 2, 3, 4, 5, "6"), 1),
    ],
)
def test_what_is_no_refusal_is_not_taken(values):
    with pytest.raises(ValueError, match="that is none"):
        Told(marshal.dumps((live_feed.FORMAT, "1a-1", compiled().dump(), (values,), 0, (0, 0, False))))


@pytest.mark.parametrize("identity", ["", "1a", "1a-", "1a-1\x1b[2J", "g-1", 5, "../1-1"])
def test_nor_a_sandbox_that_has_no_such_name(identity):
    with pytest.raises(ValueError, match="that is none"):
        Told(marshal.dumps((live_feed.FORMAT, identity, compiled().dump(), (), 0, (0, 0, False))))


def test_of_the_plan_only_what_explains_refusals_is_told(monkeypatch):
    plan = compiled('tier = 1\n[environment]\nset = { KEY = "very secret" }\n[network]\nallow = ["secret.example"]')
    message = live_feed._message(launched("1a-1", plan), [raw()], 0, (0, 0, False))
    assert b"secret" not in message
    assert b"secret" in plan.dump()
    assert len(message) < 16384


# The sockets


def test_the_socket_goes_with_its_reader_and_the_folder_with_the_last():
    folder = f"{paths.directory('runtime')}/{live_feed.FOLDER}"
    with Listener():
        assert os.listdir(folder) == [f"{os.getpid()}.sock"]
        assert os.stat(folder).st_mode & 0o777 == 0o700
    assert not os.path.exists(folder)


def readers_that_do_not_read():
    """What a monitor meets: the socket of one that was killed, and one that takes its time."""
    pid = os.fork()
    if not pid:
        Listener()
        os._exit(0)
    os.waitpid(pid, 0)
    folder = f"{paths.directory('runtime')}/{live_feed.FOLDER}"
    one = launched(f"{os.getpid():x}-1")
    killed = os.listdir(folder) == [f"{pid}.sock"], live_feed.tell(one, [raw()], 0), os.listdir(folder)
    with Listener() as listener:
        told = 0
        while live_feed.tell(one, [raw()], 0):
            told += 1
            assert told < 1000
        assert listener.hear() is not None
        return killed, told, live_feed.tell(one, [raw()], 0)


def test_the_socket_of_one_that_was_killed_is_removed_and_a_slow_one_keeps_nobody_waiting(world: World):
    killed, told, again = world.call(readers_that_do_not_read)
    assert killed == (True, True, [])
    assert told > 0
    assert again


def test_while_nobody_watches_a_refusal_costs_one_look(monkeypatch):
    looked = []

    def listdir(path):
        looked.append(path)
        raise FileNotFoundError(2, "none")

    monkeypatch.setattr(monitor.posix, "listdir", listdir)
    monkeypatch.setattr(live_feed, "tell", None)
    assert not monitor._is_watched()
    assert looked == [f"{paths.directory('runtime')}/top"]


# What is kept


def test_a_refusal_in_words_with_the_line_that_would_allow_it():
    plan = compiled('tier = 1\n[process]\nsyscalls = ["@system-service", "~getpriority"]')
    refusals = Refusals()
    refusals.take(told(raw(140, count=1), plan=plan), 99.0)
    (one,) = refusals.changed()
    assert (one.sandbox, one.layer, one.operation, one.time, one.count) == ("1a-1", "seccomp", "getpriority", 50.0, 1)
    assert one.origin == "/p/agent.toml:4"
    assert one.line == 'syscalls = [..., "getpriority"]'
    assert refusals.changed() == []


def test_told_again_it_counts_and_moves_to_the_end():
    refusals = Refusals()
    refusals.take(told(raw(MOUNT), raw(UNSHARE, moment=51.0)), 60.0)
    refusals.take(told(raw(MOUNT)), 61.0)  # told twice: nothing new
    assert [one.operation for one in refusals.latest(9)] == ["mount", "unshare"]
    refusals.take(told(raw(MOUNT, count=7)), 62.0)
    assert [(one.operation, one.count) for one in refusals.latest(9)] == [("unshare", 1), ("mount", 7)]


def test_what_is_refused_out_of_habit_is_not_shown_unless_asked_for():
    refusals = Refusals()
    refusals.take(told(raw(425)), 60.0)  # io_uring_setup
    assert refusals.latest(9) == []
    assert [one.operation for one in refusals.latest(9, habitual=True)] == ["io_uring_setup"]


def test_limits_are_told_once_whoever_tells_of_them():
    refusals = Refusals()
    refusals.take_limits("1a-1", 0, 0, 40.0)
    assert refusals.changed() == []
    refusals.take_limits("1a-1", 0, 3, 41.0)
    refusals.take_limits("1a-1", 0, 3, 42.0)
    (live,) = refusals.changed()
    assert (live.layer, live.operation, live.count, live.time) == ("cgroup", "fork", 3, 41.0)
    refusals.take(told(limits=(0, 3, True)), 43.0)
    assert {one.layer for one in refusals.latest(9)} == {"cgroup", "time-out"}


def test_calls_beyond_what_is_kept_are_counted():
    refusals = Refusals()
    refusals.take(told(beyond=7), 43.0)
    refusals.take(told(beyond=9), 44.0)
    assert [(one.layer, one.operation, one.count) for one in refusals.latest(9)] == [("seccomp", "other", 9)]


def test_what_a_gateway_refused():
    refusals = Refusals()
    record = {"sandbox": "1a-1", "verdict": "deny", "time": 70.0, "name": "evil.example", "reason": "not allowed"}
    refusals.take_record(record | {"verdict": "allow"})
    refusals.take_record(record)
    refusals.take_record(record | {"port": 443, "rule": "/p/agent.toml:9"})
    refusals.take_record(record | {"port": 443, "rule": "/p/agent.toml:9", "time": 71.0})
    refusals.take_record({"event": "missed", "missed": 4})
    found = [(one.operation, one.object, one.count, one.origin) for one in refusals.latest(9)]
    assert found == [("resolve", "evil.example", 1, ""), ("connect", "evil.example:443", 2, "/p/agent.toml:9")]
    assert refusals.missed == 4


def test_one_sandbox_cannot_push_the_others_off_the_list():
    refusals = Refusals()
    refusals.take(told(raw(UNSHARE, moment=1.0), identity="1-1"), 1.0)
    for number in range(200):
        arguments = (number, number, 0, 0, 0, 0)
        refusals.take(told(raw(arguments=arguments, moment=10.0 + number), identity="2-1"), 10.0)
    shown = refusals.latest(10)
    assert len(shown) == 10
    assert [one.sandbox for one in shown] == ["1-1"] + ["2-1"] * 9
    assert len(refusals.changed()) == live_denials.MOST_OF_ONE + 1
    assert refusals.missed == 200 - live_denials.MOST_OF_ONE


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(live_denials, "MOST_SANDBOXES", 3)
    refusals = Refusals()
    for number in range(6):
        record = {"sandbox": f"{number}-1", "verdict": "deny", "time": number, "name": "a.example"}
        refusals.take_record(record)
    assert [one.sandbox for one in refusals.latest(100)] == ["3-1", "4-1", "5-1"]
    assert refusals.missed == 3


def test_a_full_message_is_read_quickly_and_fits():
    numbers = range(monitor._DISTINCT_DENIALS)
    large = (1 << 64) - 1
    denials = [raw(165, command="x" * 15, arguments=(number, *[large] * 5)) for number in numbers]
    message = live_feed._message(launched("1a-1"), denials, 0, (0, 0, False))
    assert len(message) < live_feed.MOST_BYTES
    before = time.process_time()
    Refusals().take(Told(message), 1.0)
    assert time.process_time() - before < 10
