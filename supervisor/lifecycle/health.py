"""Health checks: HTTP and TCP on the agent's own loopback, or a command under its own plan.

Each has a deadline, and one that hangs has failed. What a check says is judged without I/O (`Tally`, `HttpAnswer`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

import h11

if TYPE_CHECKING:
    import socket

    from osmoda.supervisor.units.unit import Exec, Health, HealthCheck

type State = Literal["unchecked", "starting", "healthy", "unhealthy"]

_CHUNK = 1 << 16
_MOST_HEAD = 1 << 16  # bytes of an answer until its head is complete, what goes before it (1xx) included


class Agent(Protocol):
    """What checks need of an agent that runs."""

    async def connect(self, port: int) -> socket.socket:
        """A TCP connection to a port of its own loopback, not blocking. Raises OSError."""

    async def run(self, command: Exec) -> int:
        """Run a command in a sandbox of its plan; its exit code. A cancelled one is ended."""


class Tally:
    """What the checks of one run of an agent come to."""

    def __init__(self, health: Health, now: float) -> None:
        self._health = health
        self._began = now
        self._failures = 0
        self.state: State = "starting" if health.checks else "unchecked"
        self.problem = ""
        """Why the last check failed; empty where it did not."""

    def passed(self) -> None:
        """All checks have passed."""
        self._failures = 0
        self.problem = ""
        self.state = "healthy"

    def failed(self, problem: str, now: float) -> bool:
        """A check has failed; whether the agent is unhealthy from now on.

        Until a first one has passed, failures do not count for `start_period` seconds.
        """
        self.problem = problem
        if self.state == "starting" and now - self._began < self._health.start_period:
            return False
        self._failures += 1
        if self._failures < self._health.retries or self.state == "unhealthy":
            return False
        self.state = "unhealthy"
        return True


class HttpAnswer:
    """The answer to `GET target`: bytes in, a verdict out (RFC 9112, by h11)."""

    def __init__(self, host: str, target: str) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self._taken = 0
        request = h11.Request(
            method="GET",
            target=target,
            headers=[("Host", host), ("User-Agent", "osmoda-watch"), ("Connection", "close")],
        )
        self.question = (self._connection.send(request) or b"") + (self._connection.send(h11.EndOfMessage()) or b"")
        """The bytes to send."""

    def feed(self, data: bytes) -> str | None:
        """None while the head is not complete, then a problem or the empty string; b"" is the end of the stream."""
        if not data:
            return "it hangs up"
        self._taken += len(data)
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    return "" if event.status_code < 400 else f"it answers {event.status_code}"
                if not isinstance(event, h11.InformationalResponse):
                    break
        except h11.RemoteProtocolError as error:
            return f"it does not speak HTTP: {error}"
        # While there is more to read nothing else has its turn, not even the deadline (sock_recv of asyncio).
        return None if self._taken < _MOST_HEAD else "its answer has no end"


async def check(one: HealthCheck, agent: Agent, timeout: float) -> str:
    """Make one check within `timeout` seconds: a problem, or the empty string."""
    problem = ""
    try:
        async with asyncio.timeout(timeout):
            match one.kind:
                case "tcp":
                    problem = await _tcp(agent, int(one.target))
                case "http":
                    problem = await _http(agent, one.target)
                case "command":
                    assert one.command is not None
                    code = await agent.run(one.command)
                    problem = f"it exits with {code}" if code else ""
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
    except OSError as error:
        problem = error.strerror or str(error)
    return f"{one.kind} {one.target}: {problem}" if problem else ""


async def check_all(health: Health, agent: Agent) -> str:
    """Make all checks beside each other: the first problem, or the empty string."""
    problems = await asyncio.gather(*(check(one, agent, health.timeout) for one in health.checks))
    return next((problem for problem in problems if problem), "")


async def _tcp(agent: Agent, port: int) -> str:
    (await agent.connect(port)).close()
    return ""


async def _http(agent: Agent, url: str) -> str:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    answer = HttpAnswer(f"localhost:{parts.port or 80}", target)
    loop = asyncio.get_running_loop()
    with await agent.connect(parts.port or 80) as connection:
        await loop.sock_sendall(connection, answer.question)
        while True:
            verdict = answer.feed(await loop.sock_recv(connection, _CHUNK))
            if verdict is not None:
                return verdict
