"""Two sockets joined: what arrives, in which order, how it ends, and what it costs while nothing happens."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import socket
import struct
import threading
import time
import tracemalloc

import pytest

from osmoda.egress import relay as module
from osmoda.egress.loop import ERR, HUP, IN, OUT, PRI, RDHUP, Loop
from osmoda.egress.relay import ENDED, FAULT, IDLE, RESET_BY_CLIENT, RESET_BY_SERVER, REVOKED, USED_UP, Relay
from tests import looping
from tests.looping import PATIENCE


def connected():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other.setblocking(False)
    one.settimeout(PATIENCE)
    return one, other


def reset(end):
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class Scene:
    """A relay with a client and a server at its ends."""

    def __init__(self, loop):
        self.loop = loop
        self.causes = []
        self.client, self.accepted = connected()
        self.server, self.dialled = connected()
        self.relay = None

    def begin(self, first=b"", *, unread=False, **options):
        self.relay = Relay(self.loop, self.accepted.detach(), self.dialled.detach(), self.causes.append, **options)
        self.relay.start(first, unread=unread)
        return self

    def until(self, condition):
        looping.until(self.loop, condition)

    def run_for(self, seconds):
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()

    def received(self, end, size):
        return looping.received(self.loop, end, size)

    def outcome(self, end):
        return looping.outcome(self.loop, end)

    def close(self):
        if self.relay is not None:
            self.relay.revoke()
        for end in (self.client, self.server, self.accepted, self.dialled):
            end.close()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.shut()


@pytest.fixture
def scene(loop):
    scene = Scene(loop)
    yield scene
    scene.close()


# What arrives


def test_bytes_go_both_ways_and_are_counted(scene):
    scene.begin()
    scene.client.send(b"question")
    assert scene.received(scene.server, 8) == b"question"
    scene.server.send(b"an answer")
    assert scene.received(scene.client, 9) == b"an answer"
    assert (scene.relay.bytes_up, scene.relay.bytes_down) == (8, 9)
    assert scene.causes == []


def test_the_first_bytes_come_before_all_others(scene):
    scene.client.send(b" and the rest")
    scene.begin(b"the first")
    assert scene.received(scene.server, 22) == b"the first and the rest"
    assert scene.relay.bytes_up == 22


def test_what_was_told_before_the_relay_is_read_when_it_starts(scene):
    """An edge that another callback has seen is not told again."""
    scene.loop.register(scene.accepted.fileno(), module._loop.STREAM, lambda events: None)
    scene.client.send(b"early")
    scene.run_for(0.01)
    scene.begin(b"hello ", unread=True)
    assert scene.received(scene.server, 11) == b"hello early"


def test_many_small_messages_keep_their_order(scene):
    scene.begin()
    text = b"".join(b"%d," % number for number in range(3000))
    sent = 0
    while sent < len(text):
        sent += scene.client.send(text[sent : sent + 7])
        if sent % 700 == 0:
            scene.run_for(0)
    assert scene.received(scene.server, len(text)) == text


@pytest.mark.parametrize("size", [65535, 65536, 65537, 131072, (1 << 20) + 1])
def test_sizes_around_the_buffers(scene, size):
    scene.begin()
    content = os.urandom(size)
    thread = threading.Thread(target=scene.server.sendall, args=(content,))
    thread.start()
    assert scene.received(scene.client, size) == content
    thread.join()
    scene.client.send(b"still there")
    assert scene.received(scene.server, 11) == b"still there"


def test_large_streams_in_both_directions_at_once(scene):
    """Through pipes, which are all given back."""
    scene.begin(b"x" * 1000)
    block = os.urandom(1 << 20)
    amount = 48
    hashes = {}

    def send(end, prefix=b""):
        for _ in range(amount):
            end.sendall(block)
        end.shutdown(socket.SHUT_WR)

    def read(name, end):
        seen = hashlib.sha256()
        while part := end.recv(1 << 18):
            seen.update(part)
        hashes[name] = seen.hexdigest()

    threads = [
        threading.Thread(target=send, args=(scene.client,)),
        threading.Thread(target=send, args=(scene.server,)),
        threading.Thread(target=read, args=("up", scene.server)),
        threading.Thread(target=read, args=("down", scene.client)),
    ]
    for thread in threads:
        thread.start()
    scene.until(lambda: scene.causes)
    for thread in threads:
        thread.join()
    whole = block * amount
    assert hashes == {
        "up": hashlib.sha256(b"x" * 1000 + whole).hexdigest(),
        "down": hashlib.sha256(whole).hexdigest(),
    }
    assert scene.causes == [ENDED]
    assert (scene.relay.bytes_up, scene.relay.bytes_down) == (1000 + len(whole), len(whole))
    assert scene.loop.pipes._taken == 0


def test_without_pipes_it_copies(scene, monkeypatch):
    monkeypatch.setattr(type(scene.loop.pipes), "take", lambda self: None)
    scene.begin()
    content = os.urandom(4 << 20)
    thread = threading.Thread(target=scene.server.sendall, args=(content,))
    thread.start()
    assert scene.received(scene.client, len(content)) == content
    thread.join()


def test_a_bulky_direction_holds_no_pipe_while_nothing_is_in_flight(scene):
    scene.begin()
    for size in (1 << 20, 100, 1 << 20):
        thread = threading.Thread(target=scene.server.sendall, args=(b"x" * size,))
        thread.start()
        scene.received(scene.client, size)
        thread.join()
        scene.until(lambda: scene.loop.pipes._taken == 0)
    assert scene.relay.down.pipe is None


def test_urgent_data_does_not_stop_the_stream(scene):
    """A read stops at the urgent mark, though more has come."""
    scene.begin()
    scene.client.send(b"before")
    scene.client.send(b"!", socket.MSG_OOB)
    scene.client.send(b"after")
    assert scene.received(scene.server, 11) == b"beforeafter"


# Back-pressure


def fill(scene, end):
    """Send at `end` until nothing moves any more; how much that was."""
    end.setblocking(False)
    block = b"z" * 65536
    sent = 0
    still = 0
    while still < 5:
        try:
            sent += end.send(block)
            still = 0
        except BlockingIOError:
            before = scene.relay.bytes_up + scene.relay.bytes_down
            scene.run_for(0.01)
            still = still + 1 if scene.relay.bytes_up + scene.relay.bytes_down == before else 0
    return sent


def test_a_side_that_does_not_read_stops_the_other(scene):
    for end in (scene.client, scene.server, scene.accepted, scene.dialled):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    scene.begin()
    sent = fill(scene, scene.server)
    assert sent < 4 << 20
    assert scene.relay.down.blocked
    got = scene.received(scene.client, sent)
    assert got == b"z" * sent
    assert scene.loop.pipes._taken == 0
    scene.client.send(b"on it goes")
    assert scene.received(scene.server, 10) == b"on it goes"


def test_a_stopped_direction_costs_no_wake_ups(scene):
    """Each segment that comes for it would be one."""
    scene.begin()
    fill(scene, scene.server)
    calls = []
    ready = scene.relay.down.ready
    scene.loop.take_over(scene.relay.down.source_fd, 0, lambda events: (calls.append(events), ready(events)))
    # Make room at the server's end, so that it can send more and more.
    os.set_blocking(scene.server.fileno(), False)
    scene.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    for _ in range(50):
        with contextlib.suppress(BlockingIOError):
            scene.server.send(b"z" * 1000)
        scene.run_for(0)
    assert len(calls) <= 1


def test_the_other_direction_goes_on_while_one_is_stopped(scene):
    scene.begin()
    fill(scene, scene.server)
    scene.client.send(b"upwards")
    assert scene.received(scene.server, 7) == b"upwards"


def test_a_reset_is_passed_on_while_a_direction_is_stopped(scene):
    scene.begin()
    fill(scene, scene.server)
    reset(scene.server)
    scene.until(lambda: scene.causes)
    assert scene.causes == [RESET_BY_SERVER]
    assert scene.outcome(scene.client)[0] == "reset"
    assert scene.loop.pipes._taken == 0


def test_the_end_of_file_comes_after_all_that_was_stopped(scene):
    scene.begin()
    sent = fill(scene, scene.server)
    scene.server.shutdown(socket.SHUT_WR)
    scene.run_for(0.01)
    outcome, got = scene.outcome(scene.client)
    assert (outcome, len(got)) == ("end of file", sent)


# Ends


def test_one_side_may_end_before_the_other(scene):
    scene.begin()
    scene.client.send(b"all I have")
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.outcome(scene.server) == ("end of file", b"all I have")
    scene.server.send(b"and yet an answer")
    assert scene.received(scene.client, 17) == b"and yet an answer"
    assert scene.causes == []
    scene.server.close()
    assert scene.outcome(scene.client) == ("end of file", b"")
    scene.until(lambda: scene.causes)
    assert scene.causes == [ENDED]


def test_the_server_may_end_first(scene):
    scene.begin()
    scene.server.send(b"bye")
    scene.server.shutdown(socket.SHUT_WR)
    assert scene.outcome(scene.client) == ("end of file", b"bye")
    scene.client.send(b"one more")
    scene.client.close()
    assert scene.outcome(scene.server) == ("end of file", b"one more")
    scene.until(lambda: scene.causes)
    assert scene.causes == [ENDED]


@pytest.mark.parametrize("bulky", [False, True])
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_passed_on_as_one(scene, who, bulky):
    scene.begin()
    end, other = (scene.client, scene.server) if who == "client" else (scene.server, scene.client)
    if bulky:
        thread = threading.Thread(target=end.sendall, args=(b"x" * (2 << 20),))
        thread.start()
        scene.received(other, 2 << 20)
        thread.join()
    reset(end)
    assert scene.outcome(other) == ("reset", b"")
    scene.until(lambda: scene.causes)
    assert scene.causes == [RESET_BY_CLIENT if who == "client" else RESET_BY_SERVER]


def test_what_was_said_before_a_reset_is_passed_on(scene):
    """An early answer, then a reset because the question was not read."""
    scene.begin()
    scene.client.send(b"a long question")
    scene.until(lambda: scene.relay.bytes_up == 15)
    scene.server.send(b"413")
    scene.server.close()  # with unread bytes: a reset
    outcome, got = scene.outcome(scene.client)
    assert got == b"413"
    assert outcome in {"reset", "end of file"}


def test_an_answer_comes_through_when_the_question_no_longer_does(scene):
    """Sending fails before the answer has been read."""
    scene.begin()
    scene.server.send(b"too much")
    scene.server.close()
    # Both sides' events in one batch, the client's first.
    scene.client.send(b"more")
    assert scene.outcome(scene.client)[1] == b"too much"


def test_revoking_resets_both_sides_and_discards_what_is_queued(scene):
    scene.begin()
    sent = fill(scene, scene.server)
    moved = scene.relay.bytes_down
    scene.relay.revoke()
    scene.relay.revoke()
    assert scene.causes == [REVOKED]
    outcome, got = scene.outcome(scene.client)
    assert outcome == "reset"
    assert len(got) < moved < sent
    assert scene.outcome(scene.server)[0] == "reset"
    assert scene.loop.pipes._taken == 0


def test_closing_alone_would_have_delivered_them(scene):
    """The control: why a revoked connection is reset and not just closed."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += scene.accepted.send(b"z" * 65536)
    scene.accepted.close()
    outcome, got = scene.outcome(scene.client)
    assert (outcome, len(got)) == ("end of file", sent)
    assert sent > 1 << 20


def test_an_idle_relay_is_reset(scene):
    scene.begin(idle=0.04)
    began = time.monotonic()
    scene.until(lambda: scene.causes)
    assert scene.causes == [IDLE]
    assert time.monotonic() - began >= 0.04
    assert scene.outcome(scene.client) == ("reset", b"")
    assert scene.outcome(scene.server) == ("reset", b"")


def test_a_relay_that_is_used_is_not_idle(loop):
    for idle in (0.2, 2.0, 20.0):
        with contextlib.closing(Scene(loop)) as scene:
            scene.begin(idle=idle)
            pauses = []
            for _ in range(10):
                began = time.monotonic()
                with contextlib.suppress(ConnectionError):
                    scene.client.send(b"x")
                scene.run_for(idle / 5)
                pauses.append(time.monotonic() - began)
            if max(pauses) > idle / 2:
                continue  # this process itself stood still for so long
            assert scene.causes == []
            scene.until(lambda: scene.causes)
            assert scene.causes == [IDLE]
            return
    pytest.fail("this process stands still for seconds again and again")


def test_a_used_up_budget_resets_both_before_the_bytes_are_passed_on(scene):
    left = [10]

    def meter(count):
        left[0] -= count
        return left[0] >= 0

    scene.begin(b"12345", meter=meter)
    scene.server.send(b"12345")
    assert scene.received(scene.client, 5) == b"12345"
    scene.client.send(b"6")
    scene.until(lambda: scene.causes)
    assert scene.causes == [USED_UP]
    assert scene.outcome(scene.server) == ("reset", b"12345")
    assert scene.outcome(scene.client) == ("reset", b"")


def test_a_budget_used_up_by_the_first_bytes(scene):
    scene.begin(b"12345", meter=lambda count: count < 5)
    assert scene.causes == [USED_UP]
    assert scene.outcome(scene.server) == ("reset", b"")
    assert scene.relay.bytes_up == 0


def test_a_budget_holds_for_spliced_bytes(scene):
    passed = []

    def meter(count):
        if sum(passed) + count > 3 << 20:
            return False
        passed.append(count)
        return True

    scene.begin(meter=meter)
    content = os.urandom(8 << 20)

    def send():
        with contextlib.suppress(ConnectionError):
            scene.server.sendall(content)

    thread = threading.Thread(target=send)
    thread.start()
    outcome, got = scene.outcome(scene.client)
    thread.join()
    assert outcome == "reset"
    assert len(got) <= sum(passed) == scene.relay.bytes_down <= 3 << 20
    assert content.startswith(got)
    assert scene.loop.pipes._taken == 0


# Looking at the client's first bytes


def test_bytes_are_kept_back_until_they_are_judged(scene):
    held = []

    def check(some):
        held.append(some)
        return b"".join(held) if b"\n" in some else None

    scene.begin(check=check)
    scene.server.send(b"220 ready")
    assert scene.received(scene.client, 9) == b"220 ready"
    scene.client.send(b"EHLO ")
    scene.until(lambda: held)
    assert scene.relay.bytes_up == 0
    scene.client.send(b"me\n")
    assert scene.received(scene.server, 8) == b"EHLO me\n"
    scene.client.send(b"unseen")
    assert scene.received(scene.server, 6) == b"unseen"
    assert b"".join(held) == b"EHLO me\n"


def test_a_judgement_may_end_the_relay(scene):
    scene.begin(check=lambda some: scene.relay.revoke())
    scene.client.send(b"something forbidden")
    scene.until(lambda: scene.causes)
    assert scene.causes == [REVOKED]
    assert scene.outcome(scene.server) == ("reset", b"")


def test_an_end_of_file_is_judged_too(scene):
    seen = []
    scene.begin(check=lambda some: seen.append(some) or (some or None))
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.outcome(scene.server) == ("end of file", b"")
    assert seen == [b""]
    scene.server.send(b"fine")
    assert scene.received(scene.client, 4) == b"fine"


# What may go wrong around it


@pytest.mark.parametrize("events", [IN, OUT, RDHUP, PRI, ERR, HUP, IN | OUT | ERR | HUP | RDHUP | PRI])
def test_events_that_are_not_true_do_nothing(scene, events):
    scene.begin()
    scene.relay.up.ready(events)
    scene.relay.down.ready(events)
    scene.client.send(b"x")
    assert scene.received(scene.server, 1) == b"x"
    assert scene.causes == []


def test_events_that_are_not_true_do_nothing_when_a_direction_is_stopped(scene):
    scene.begin()
    sent = fill(scene, scene.server)
    for events in (IN, OUT, RDHUP, PRI, ERR, HUP, IN | OUT | ERR | HUP | RDHUP | PRI):
        scene.relay.up.ready(events)
        scene.relay.down.ready(events)
    assert scene.causes == []
    assert len(scene.received(scene.client, sent)) == sent


def test_a_fault_cuts_its_own_relay(scene):
    def meter(count):
        raise RuntimeError("on purpose")

    failed = []
    scene.loop.on_error = lambda callback, error: (failed.append(str(error)), callback.__self__.fault())
    scene.begin(meter=meter)
    scene.client.send(b"x")
    scene.until(lambda: scene.causes)
    assert scene.causes == [FAULT]
    assert failed == ["on purpose"]
    assert scene.outcome(scene.client)[0] == "reset"


def test_without_room_in_the_loop_it_ends(scene, monkeypatch):
    def refuse(fd, events, callback):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scene.loop, "take_over", refuse)
    scene.begin(b"hello")
    assert scene.causes == [FAULT]
    assert scene.outcome(scene.client) == ("reset", b"")


def test_a_server_that_is_gone_at_the_start(scene):
    reset(scene.server)
    scene.begin(b"hello")
    scene.until(lambda: scene.causes)
    assert scene.causes == [RESET_BY_SERVER]
    assert scene.outcome(scene.client) == ("reset", b"")


def test_a_relay_that_has_ended_is_freed_without_the_garbage_collector(scene):
    import gc
    import weakref

    class Watched(Relay):
        __slots__ = ("__weakref__",)

    relay = Watched(scene.loop, scene.accepted.detach(), scene.dialled.detach(), scene.causes.append)
    relay.start()
    scene.client.send(b"x")
    scene.received(scene.server, 1)
    gc.disable()
    try:
        watch = weakref.ref(relay)
        relay.revoke()
        del relay
        scene.run_for(0)
        assert watch() is None
    finally:
        gc.enable()


# Many at once


class Talker:
    """One end: sends its text in pieces, reads in pieces, pauses, ends its half when all is sent; or resets."""

    def __init__(self, end, text, chance, resets):
        self.end = end
        self.end.setblocking(False)
        self.left = memoryview(text)
        self.chance = chance
        self.resets = resets
        self.got = bytearray()
        self.ending = ""
        self.sending = True

    def act(self):
        """Take a step. Whether it is done."""
        chance = self.chance
        if self.resets and not self.ending and len(self.got) > self.resets:
            reset(self.end)
            self.sending, self.ending = False, "own"
        if self.sending and chance.random() < 0.7:
            try:
                sent = self.end.send(self.left[: chance.choice((1, 100, 16384, 65536, 1 << 20))])
                self.left = self.left[sent:]
                if not self.left:
                    self.end.shutdown(socket.SHUT_WR)
                    self.sending = False
            except BlockingIOError:
                pass
            except ConnectionError:
                self.sending = False
        if not self.ending and chance.random() < 0.7:
            try:
                part = self.end.recv(chance.choice((100, 16384, 1 << 20)))
                self.got.extend(part)
                if not part:
                    self.ending = "end of file"
            except BlockingIOError:
                pass
            except ConnectionError:
                self.ending = "reset"
        return self.ending and not self.sending


@pytest.mark.parametrize("seed", range(4))
def test_many_relays_with_ends_of_all_kinds(loop, seed):
    """Nothing is lost, mixed up, or stuck."""
    chance = random.Random(seed)
    content = chance.randbytes(2 << 20)
    scenes, talkers, texts = [Scene(loop) for _ in range(16)], [], []
    for index, scene in enumerate(scenes):
        sizes = [chance.choice((1, 1000, 65536, 200_000, 2 << 20)) for _ in range(2)]
        up, down = (content[-size:] for size in sizes)
        scene.begin(up[:1])
        resets = [0, 0]
        if index % 4 == 0:
            resets[chance.randrange(2)] = chance.choice((1, 100_000))
        talkers.append((Talker(scene.client, up[1:], chance, resets[0]), Talker(scene.server, down, chance, resets[1])))
        texts.append((up, down))
        if not up[1:]:
            scene.client.shutdown(socket.SHUT_WR)
            talkers[-1][0].sending = False
    deadline = time.monotonic() + 30
    busy = [talker for pair in talkers for talker in pair]
    while busy := [talker for talker in busy if not talker.act()]:
        loop.call_later(0, loop.stop)
        loop.run()
        assert time.monotonic() < deadline, "something is stuck"
    for scene, (client, server), (up, down) in zip(scenes, talkers, texts, strict=True):
        assert down.startswith(client.got)
        assert up.startswith(server.got)
        if client.ending == server.ending == "end of file":
            assert (len(client.got), len(server.got)) == (len(down), len(up))
            scene.until(lambda scene=scene: scene.causes)
            assert scene.causes == [ENDED]
        else:
            assert "own" in (client.ending, server.ending)
        scene.close()
    assert loop.pipes._taken == 0


# What it costs


def test_an_idle_relay_is_small(loop):
    """2,000 of them in 40 MiB are 20 KiB each; these are a tenth of that, without what a connection adds."""
    scenes = [Scene(loop) for _ in range(100)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for scene in scenes:
            scene.begin(b"hello")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for scene in scenes:
        scene.close()
    assert (after - before) / len(scenes) < 2048


def test_errors_that_are_not_resets_end_it_too(scene):
    """A route that goes away, a peer that stops answering."""

    class Failing:
        def __init__(self, socket):
            self.socket = socket

        def __getattr__(self, name):
            return getattr(self.socket, name)

        def recv_into(self, buffer):
            raise OSError(errno.EHOSTUNREACH, "No route to host")

    scene.relay = Relay(scene.loop, scene.accepted.detach(), scene.dialled.detach(), scene.causes.append)
    scene.relay.down.source = Failing(scene.relay.down.source)
    scene.relay.start()
    scene.server.send(b"x")
    scene.until(lambda: scene.causes)
    assert scene.causes == [RESET_BY_SERVER]
    assert scene.outcome(scene.client) == ("reset", b"")
