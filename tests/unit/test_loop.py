"""The event loop: order, timers, threads, closes after the batch, and callbacks that fail."""

from __future__ import annotations

import _thread
import errno
import os
import resource
import socket
import threading
import time

import pytest

from osmoda.egress import loop as module
from osmoda.egress.loop import IN, OUT, STREAM, Acceptor, Loop


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.shut()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    yield one, other
    one.close()
    other.close()


def settle(loop):
    """One batch of events, and what is due after it."""
    loop.call_later(0.0, loop.stop)
    loop.run()


# Descriptors


def test_a_readable_descriptor_is_told(loop, pair):
    seen = []
    loop.register(pair[0].fileno(), IN, lambda events: (seen.append((events, pair[0].recv(9))), loop.stop()))
    pair[1].send(b"x")
    loop.run()
    assert seen == [(IN, b"x")]


def test_an_unregistered_descriptor_is_not_told_and_stays_open(loop, pair):
    seen = []
    loop.register(pair[0].fileno(), IN, seen.append)
    loop.unregister(pair[0].fileno())
    loop.unregister(pair[0].fileno())
    pair[1].send(b"x")
    settle(loop)
    assert seen == []
    assert pair[0].recv(9) == b"x"


def test_modified_events_are_told_even_when_they_were_true_before(loop, pair):
    seen = []
    loop.register(pair[0].fileno(), STREAM, seen.append)
    settle(loop)
    assert seen == [OUT]
    loop.modify(pair[0].fileno(), STREAM)
    settle(loop)
    assert seen == [OUT, OUT]


def test_taking_over_replaces_the_callback_or_registers(loop, pair):
    first, second = [], []
    loop.take_over(pair[0].fileno(), IN, first.append)
    loop.take_over(pair[0].fileno(), IN, second.append)
    pair[1].send(b"x")
    settle(loop)
    assert first == []
    assert second


def test_a_number_closed_in_a_batch_is_not_reused_in_it(loop):
    """The last event of a closed connection would be taken for one of the connection accepted after it."""
    pairs = [socket.socketpair() for _ in range(2)]
    ends = [os.dup(one.fileno()) for one, _ in pairs]
    opened, told = [], []

    def first(events):
        # Whichever comes first closes the other, whose event is in the batch already, and opens a descriptor.
        for fd in ends:
            loop.close(fd)
        new, other = socket.socketpair()
        opened.extend([new, other])
        loop.register(new.fileno(), IN, lambda events: told.append(new.fileno()))

    for fd in ends:
        loop.register(fd, IN, first)
    for _, other in pairs:
        other.send(b"x")
    settle(loop)
    assert not {*ends} & {one.fileno() for one in opened}
    assert told == []
    for fd in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    settle(loop)
    assert told == []
    for one in (*opened, *(one for two in pairs for one in two)):
        one.close()


def test_nothing_is_called_for_a_descriptor_closed_earlier_in_the_batch(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    seen = []

    def ready(events):
        seen.append(events)
        for one, _ in pairs:
            if one.fileno() >= 0:
                loop.close(one.detach())

    for one, other in pairs:
        loop.register(one.fileno(), IN, ready)
        other.send(b"x")
    settle(loop)
    assert seen == [IN]
    for _, other in pairs:
        other.close()


# Calls and timers


def test_soon_comes_after_the_events_of_the_batch(loop, pair):
    order = []
    loop.register(
        pair[0].fileno(), IN, lambda events: (loop.call_soon(lambda: order.append("soon")), order.append("event"))
    )
    loop.register(pair[1].fileno(), OUT, lambda events: order.append("other event"))
    pair[1].send(b"x")
    loop.call_later(0.0, loop.stop)
    loop.run()
    assert order[-1] == "soon"
    assert {*order} == {"event", "other event", "soon"}


def test_what_is_called_soon_again_and_again_does_not_keep_events_away(loop, pair):
    def again():
        loop.call_soon(again)

    again()
    loop.register(pair[0].fileno(), IN, lambda events: loop.stop())
    pair[1].send(b"x")
    loop.run()


def test_timers_are_called_in_their_order_and_not_too_early(loop):
    called = []
    began = time.monotonic()
    for seconds in (0.03, 0.01, 0.02):
        loop.call_later(seconds, lambda seconds=seconds: called.append((seconds, time.monotonic() - began)))
    loop.call_later(0.04, loop.stop)
    loop.run()
    assert [seconds for seconds, _ in called] == [0.01, 0.02, 0.03]
    assert all(at >= seconds for seconds, at in called)


def test_a_cancelled_timer_is_not_called(loop):
    called = []
    timer = loop.call_later(0.0, lambda: called.append("cancelled"))
    timer.cancel()
    timer.cancel()
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert called == []


def test_a_timer_may_cancel_the_next_one_that_is_due(loop):
    called = []
    timers = []
    for name in "ab":
        timers.append(loop.call_later(0.0, lambda name=name: (called.append(name), [t.cancel() for t in timers])))
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert called == ["a"]


def test_cancelled_timers_do_not_pile_up(loop):
    """A deadline of an hour for each of many short connections must not be kept for an hour."""
    kept = [loop.call_later(3600, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) < 200
    for timer in kept:
        timer.cancel()
    called = []
    loop.call_later(0.0, lambda: (called.append(1), loop.stop()))
    loop.run()
    assert called == [1]


def test_now_is_the_time_of_the_batch(loop):
    before = time.monotonic()
    seen = []
    loop.call_later(0.01, lambda: (seen.append(loop.now), time.sleep(0.01), seen.append(loop.now), loop.stop()))
    loop.run()
    assert seen[0] == seen[1] >= before + 0.01


# Threads


def test_threads_are_heard_while_the_loop_waits(loop):
    seen = []

    def elsewhere():
        for index in range(1000):
            loop.call_from_thread(lambda index=index: seen.append((index, _thread.get_ident())))
        loop.call_from_thread(loop.stop)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    loop.run()
    thread.join()
    assert seen == [(index, _thread.get_ident()) for index in range(1000)]


def test_many_threads_lose_nothing(loop):
    seen = []

    def elsewhere():
        for _ in range(500):
            loop.call_from_thread(lambda: seen.append(1))

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()

    def ended():
        if len(seen) == 2000:
            loop.stop()
        else:
            loop.call_later(0.001, ended)

    loop.call_later(0.001, ended)
    loop.run()
    for thread in threads:
        thread.join()
    assert len(seen) == 2000


def test_a_shut_loop_hears_no_thread():
    loop = Loop()
    loop.shut()
    loop.call_from_thread(lambda: None)
    loop.shut()


# Stopping and failing


def test_stopping_before_it_runs_lets_it_take_one_turn(loop):
    called = []
    loop.call_soon(lambda: called.append(1))
    loop.stop()
    loop.run()
    loop.stop()
    loop.run()
    assert called == [1]


def test_a_failing_callback_leaves_run_and_the_rest_of_the_batch_comes_next(loop):
    pairs = [socket.socketpair() for _ in range(3)]
    seen = []

    def ready(events):
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("on purpose")

    for one, other in pairs:
        loop.register(one.fileno(), IN | module.EDGE, ready)
        other.send(b"x")
    with pytest.raises(RuntimeError, match="on purpose"):
        loop.run()
    assert len(seen) == 2
    settle(loop)
    assert len(seen) == 3
    for one in (one for two in pairs for one in two):
        one.close()


def test_the_hook_hears_of_failures_and_the_loop_goes_on(loop, pair):
    heard, called = [], []
    loop.on_error = lambda callback, error: heard.append((callback, str(error)))

    def fails(events=0):
        pair[0].recv(9)
        raise ValueError("an event")

    def fails_too():
        raise ValueError("a timer")

    def fails_soon():
        raise ValueError("soon")

    loop.register(pair[0].fileno(), IN, fails)
    pair[1].send(b"x")
    loop.call_soon(fails_soon)
    loop.call_soon(lambda: called.append("soon"))
    loop.call_later(0.005, fails_too)
    loop.call_later(0.01, lambda: called.append("timer"))
    loop.call_later(0.02, loop.stop)
    loop.run()
    assert {*heard} == {(fails, "an event"), (fails_soon, "soon"), (fails_too, "a timer")}
    assert called == ["soon", "timer"]


def test_a_failing_call_of_a_thread_is_told_too(loop):
    heard = []

    def fails():
        raise ValueError("from a thread")

    loop.on_error = lambda callback, error: (heard.append((callback, str(error))), loop.stop())
    loop.call_from_thread(fails)
    loop.run()
    assert heard == [(fails, "from a thread")]


def test_shutting_closes_what_is_the_loops_own():
    before = {*os.listdir("/proc/self/fd")}
    loop = Loop()
    loop.close(os.open("/dev/null", os.O_RDONLY))
    pipe = loop.pipes.take()
    loop.pipes.give_back(pipe)
    loop.shut()
    assert {*os.listdir("/proc/self/fd")} == before


# Accepting


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_connections_are_accepted_non_blocking_and_close_on_exec(loop, listener):
    accepted = []
    acceptor = Acceptor(loop, listener, lambda fd: (accepted.append(socket.socket(fileno=fd)), loop.stop()))
    with socket.create_connection(listener.getsockname()):
        loop.run()
        (connection,) = accepted
        assert not connection.get_inheritable()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.close()
    acceptor.close()
    acceptor.close()
    settle(loop)
    assert listener.fileno() == -1


def test_without_descriptors_it_pauses_and_then_serves_who_waited(loop, listener):
    accepted, shortages = [], []

    def came(fd):
        accepted.append(fd)
        loop.stop()

    acceptor = Acceptor(loop, listener, came, shortages.append)
    client = socket.create_connection(listener.getsockname())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    filling = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, hard))
    try:
        while True:
            try:
                filling.append(os.dup(listener.fileno()))
            except OSError:
                break
        loop.call_later(module._PAUSE / 2, loop.stop)
        loop.run()
        assert [error.errno for error in shortages] == [errno.EMFILE]
        assert accepted == []
    finally:
        for fd in filling:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    loop.run()
    assert len(accepted) == 1
    os.close(accepted[0])
    client.close()
    acceptor.close()


def test_closing_while_it_pauses_leaves_nothing(loop, listener):
    acceptor = Acceptor(loop, listener, os.close)

    class Short:
        def __init__(self, socket):
            self.socket = socket

        def __getattr__(self, name):
            return getattr(self.socket, name)

        def _accept(self):
            raise OSError(errno.ENFILE, "too many open files in the system")

    acceptor.socket = Short(listener)
    with socket.create_connection(listener.getsockname()):
        settle(loop)
        settle(loop)
        acceptor.close()
    loop.call_later(module._PAUSE * 1.5, loop.stop)
    loop.run()
    assert listener.fileno() == -1
