"""Health: what checks come to, answers of HTTP servers, and checks that hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from osmoda.supervisor.lifecycle.health import HttpAnswer, Tally, check, check_all
from osmoda.supervisor.units.unit import Health, HealthCheck
from tests.plain_units import ORIGIN, command

TCP = HealthCheck("tcp", "8080", ORIGIN)
HTTP = HealthCheck("http", "http://:8080/health?x=1", ORIGIN)
COMMAND = HealthCheck("command", "/bin/check", ORIGIN, command("/bin/check"))


def health(*checks, start_period=0.0, retries=2):
    return Health(checks, interval=30.0, timeout=5.0, start_period=start_period, retries=retries)


# What they come to


def test_failures_in_a_row_make_an_agent_unhealthy_once():
    tally = Tally(health(TCP, retries=3), 0.0)
    assert tally.state == "starting"
    tally.passed()
    assert tally.state == "healthy"
    assert [tally.failed("no", 1.0), tally.failed("no", 2.0)] == [False, False]
    tally.passed()
    assert [tally.failed(str(n), 3.0) for n in range(5)] == [False, False, True, False, False]
    assert (tally.state, tally.problem) == ("unhealthy", "4")


def test_until_a_first_check_has_passed_there_is_time():
    tally = Tally(health(TCP, start_period=10.0, retries=1), 100.0)
    assert not tally.failed("not yet", 109.9)
    assert tally.state == "starting"
    assert tally.failed("still not", 110.0)
    tally = Tally(health(TCP, start_period=10.0, retries=1), 100.0)
    tally.passed()
    assert tally.failed("no more", 101.0)


def test_an_agent_without_checks():
    assert Tally(health(), 0.0).state == "unchecked"


# HTTP


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "it answers 404"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "it answers 503"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000, "it does not speak HTTP"),
        (b"", "it hangs up"),
    ],
)
def test_answers(data, verdict):
    answer = HttpAnswer("localhost:8080", "/health")
    found = answer.feed(data)
    assert found is not None
    assert found.startswith(verdict)
    assert bool(found) == bool(verdict)


def test_an_answer_in_pieces():
    answer = HttpAnswer("localhost:8080", "/health?x=1")
    assert answer.question.startswith(b"GET /health?x=1 HTTP/1.1\r\nHost: localhost:8080\r\n")
    *pieces, last = [bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\n\r\n"]
    assert [answer.feed(piece) for piece in pieces] == [None] * len(pieces)
    assert answer.feed(last) == ""


# Agents


class Agent:
    """One whose loopback is a socket pair, and whose commands end as a test says."""

    def __init__(self, *, answer=b"", code=0, hangs=False, refuses=False):
        self.answer, self.code, self.hangs, self.refuses = answer, code, hangs, refuses
        self.asked = []
        self.ended = False

    async def connect(self, port):
        self.asked.append(port)
        if self.refuses:
            raise ConnectionRefusedError(111, "Connection refused")
        if self.hangs:
            await asyncio.sleep(1000)
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        if self.answer:
            theirs.sendall(self.answer)
        threading.Thread(target=self._serve, args=(theirs,)).start()
        return mine

    def _serve(self, theirs):
        with theirs:
            while theirs.recv(65536):
                pass

    async def run(self, command):
        self.asked.append(command.program)
        try:
            if self.hangs:
                await asyncio.sleep(1000)
            return self.code
        finally:
            self.ended = True


@pytest.mark.parametrize(
    ("one", "agent", "problem"),
    [
        (TCP, Agent(), ""),
        (TCP, Agent(refuses=True), "tcp 8080: Connection refused"),
        (TCP, Agent(hangs=True), "tcp 8080: no answer within 0.05 s"),
        (HTTP, Agent(answer=b"HTTP/1.1 200 OK\r\n\r\n"), ""),
        (HTTP, Agent(answer=b"HTTP/1.1 500 No\r\n\r\n"), "http http://:8080/health?x=1: it answers 500"),
        (HTTP, Agent(), "http http://:8080/health?x=1: no answer within 0.05 s"),
        (HTTP, Agent(refuses=True), "http http://:8080/health?x=1: Connection refused"),
        (COMMAND, Agent(), ""),
        (COMMAND, Agent(code=3), "command /bin/check: it exits with 3"),
        (COMMAND, Agent(hangs=True), "command /bin/check: no answer within 0.05 s"),
    ],
)
def test_a_check(one, agent, problem):
    # What answers has time; what does not must not take it.
    assert asyncio.run(check(one, agent, 0.05 if "no answer" in problem else 30.0)) == problem
    assert agent.asked == [8080 if one is not COMMAND else "/bin/check"]
    assert one is not COMMAND or agent.ended  # also one whose time was up


def test_checks_are_made_beside_each_other():
    agent = Agent(hangs=True)
    wanted = Health((TCP, COMMAND), interval=1.0, timeout=0.05, start_period=0.0, retries=1)
    assert asyncio.run(check_all(wanted, agent)) == "tcp 8080: no answer within 0.05 s"
    assert agent.asked == [8080, "/bin/check"]


def test_an_answer_without_end_holds_nobody_up():
    """Nothing else would have its turn as long as there is something to read, not even the check's own deadline."""
    mine, theirs = socket.socketpair()
    until = time.monotonic() + 60

    def flood():
        with theirs, contextlib.suppress(OSError):
            while time.monotonic() < until:
                theirs.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)

    class Flooding:
        async def connect(self, port):
            mine.setblocking(False)
            return mine

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert asyncio.run(check(HTTP, Flooding(), 30.0)) == "http http://:8080/health?x=1: its answer has no end"
    finally:
        mine.close()
        thread.join()
