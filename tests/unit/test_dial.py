"""Connecting: to the first address that answers, with the error that says most when none does."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import time

import pytest

from osmoda.egress import dial as module
from osmoda.egress.dial import Dial, UpstreamError
from osmoda.egress.loop import ERR, IN, OUT, Loop
from osmoda.egress.upstream import Upstream
from tests.looping import until

LOCAL = socket.inet_aton("127.0.0.1")
LOCAL6 = socket.inet_pton(socket.AF_INET6, "::1")


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.shut()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port(listener):
    return listener.getsockname()[1]


@pytest.fixture
def silent():
    """An address that does not answer: a listener whose backlog is full drops what comes (on Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener


class Outcome:
    def __init__(self):
        self.results = []
        self.addresses = []

    def __call__(self, result, address=b""):
        self.results.append(result)
        self.addresses.append(address)


def connected(outcome):
    (end,) = outcome.results
    return socket.socket(fileno=end.detach())


def test_a_connected_socket_is_non_blocking_and_sends_at_once(loop, listener):
    outcome = Outcome()
    Upstream(loop).dial(LOCAL, port(listener), outcome)
    until(loop, lambda: outcome.results)
    with connected(outcome) as end:
        assert end.getpeername() == listener.getsockname()
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(end.fileno())
        with pytest.raises(BlockingIOError):
            end.recv(1)
        # Whoever gets it may register it.
        loop.register(end.fileno(), IN, lambda events: None)
        loop.unregister(end.fileno())


def test_ipv6(loop):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        outcome = Outcome()
        Upstream(loop).dial(LOCAL6, port(listener), outcome)
        until(loop, lambda: outcome.results)
        with connected(outcome) as end:
            assert end.getpeername()[:2] == listener.getsockname()[:2]


def test_nobody_listens(loop, listener):
    free = port(listener)
    listener.close()
    outcome = Outcome()
    Upstream(loop).dial(LOCAL, free, outcome)
    until(loop, lambda: outcome.results)
    (error,) = outcome.results
    assert (error.kind, error.text) == ("refused", f"127.0.0.1 port {free}: Connection refused")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EACCES, "unreachable"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.ECONNRESET, "reset"),
        (errno.EADDRNOTAVAIL, "busy"),
    ],
)
def test_the_kernels_reasons(loop, monkeypatch, number, kind):
    monkeypatch.setattr(module._Attempt, "connect", lambda self: number)
    outcome = Outcome()
    Upstream(loop).dial(LOCAL, 1, outcome)
    (error,) = outcome.results
    assert error.kind == kind
    assert os.strerror(number) in error.text


def test_no_descriptors(loop, listener):
    outcome = Outcome()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        Upstream(loop).dial(LOCAL, port(listener), outcome)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (error,) = outcome.results
    assert error.kind == "busy"


def test_nobody_answers(loop, silent):
    outcome = Outcome()
    began = time.monotonic()
    Upstream(loop).dial(socket.inet_aton("127.0.0.2"), port(silent), outcome, timeout=0.05)
    until(loop, lambda: outcome.results)
    (error,) = outcome.results
    assert error.kind == "timeout"
    assert time.monotonic() - began >= 0.05


def test_the_next_address_is_tried_when_one_refuses(loop, listener):
    outcome = Outcome()
    refusing = socket.inet_aton("127.0.0.3")
    Upstream(loop).dial_any((refusing, refusing, LOCAL), port(listener), outcome)
    until(loop, lambda: outcome.results)
    connected(outcome).close()
    assert outcome.addresses == [LOCAL]


def test_the_next_address_is_tried_beside_one_that_does_not_answer(loop, silent):
    with socket.create_server(("127.0.0.1", port(silent))):
        outcome = Outcome()
        began = time.monotonic()
        before = len(os.listdir("/proc/self/fd"))
        Upstream(loop).dial_any((socket.inet_aton("127.0.0.2"), LOCAL), port(silent), outcome)
        until(loop, lambda: outcome.results)
        assert 0.2 < time.monotonic() - began < 8, "it is not waited for to the end"
        connected(outcome).close()
        assert outcome.addresses == [LOCAL]
        # The other attempt has been given up.
        loop.call_later(0, loop.stop)
        loop.run()
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_error_is_that_of_the_first_that_failed(loop, silent, listener):
    free = port(listener)
    listener.close()
    outcome = Outcome()
    Upstream(loop).dial_any((LOCAL, socket.inet_aton("127.0.0.3")), free, outcome)
    until(loop, lambda: outcome.results)
    assert outcome.results[0].text.startswith("127.0.0.1 port")
    outcome = Outcome()
    Upstream(loop).dial_any((LOCAL, socket.inet_aton("127.0.0.2")), port(silent), outcome, timeout=0.05)
    until(loop, lambda: outcome.results)
    assert (outcome.results[0].kind, outcome.addresses) == ("refused", [b""])


def test_no_address_at_all(loop):
    outcome = Outcome()
    Upstream(loop).dial_any((), 443, outcome)
    assert outcome.results[0].kind == "unreachable"


def test_only_so_many_addresses_are_tried(loop, monkeypatch):
    tried = []
    monkeypatch.setattr(module._Attempt, "connect", lambda self: tried.append(self.address) or errno.ENETUNREACH)
    outcome = Outcome()
    Upstream(loop).dial_any([bytes([192, 0, 2, index]) for index in range(20)], 443, outcome)
    assert len(tried) == module._MOST_TRIED
    assert outcome.results[0].kind == "unreachable"


def test_cancelling_tells_nobody_and_closes_everything(loop, silent):
    outcome = Outcome()
    before = len(os.listdir("/proc/self/fd"))
    dial = Upstream(loop).dial_any((socket.inet_aton("127.0.0.2"),) * 2, port(silent), outcome)
    loop.call_later(0.3, loop.stop)
    loop.run()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    dial.cancel()
    dial.cancel()
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert len(os.listdir("/proc/self/fd")) == before
    assert outcome.results == []


def test_a_remote_address_is_connected_when_the_kernel_says_so(loop, listener, monkeypatch):
    """Not on this host the answer comes later, as an event."""
    connect = module._Attempt.connect
    asked = []

    def slow(self):
        asked.append(1)
        return errno.EINPROGRESS if len(asked) == 1 else errno.EALREADY if len(asked) == 2 else connect(self)

    monkeypatch.setattr(module._Attempt, "connect", slow)
    outcome = Outcome()
    dial = Dial(loop, (LOCAL,), port(listener), outcome, 5.0)
    (attempt,) = dial._attempts
    assert connect(attempt) == errno.EINPROGRESS
    until(loop, lambda: outcome.results)
    connected(outcome).close()
    assert outcome.addresses == [LOCAL]


def test_events_that_are_not_true_do_nothing(loop, silent):
    outcome = Outcome()
    dial = Upstream(loop).dial_any((socket.inet_aton("127.0.0.2"),), port(silent), outcome)
    for events in (IN, OUT, ERR):
        dial._attempts[0].ready(events)
    assert outcome.results == []
    dial.cancel()


def test_a_fault_is_told(loop, silent):
    outcome = Outcome()
    dial = Upstream(loop).dial_any((socket.inet_aton("127.0.0.2"),), port(silent), outcome)
    dial._attempts[0].fault()
    assert isinstance(outcome.results[0], UpstreamError)


def test_who_fails_over_the_result_is_told(loop, listener, monkeypatch):
    connect = module._Attempt.connect
    asked = []

    def slow(self):
        asked.append(1)
        return (errno.EINPROGRESS, errno.EALREADY)[len(asked) - 1] if len(asked) < 3 else connect(self)

    monkeypatch.setattr(module._Attempt, "connect", slow)

    class Dialler:
        failed = False

        def hear(self, result, address):
            result.close()
            raise RuntimeError("on purpose")

        def fault(self):
            self.failed = True

    dialler = Dialler()
    loop.on_error = lambda callback, error: module._loop.fault(callback)
    dial = Dial(loop, (LOCAL,), port(listener), dialler.hear, 5.0)
    assert connect(dial._attempts[0]) == errno.EINPROGRESS
    until(loop, lambda: dialler.failed)
