"""A gateway with nothing but what its control socket, its questions and its visits need of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from osmoda.egress.counters import Counters
from osmoda.egress.destinations import parse_rule
from osmoda.egress.loop import Loop
from osmoda.egress.policy import Policy
from osmoda.egress.policy_source import compile_policy
from osmoda.egress.records import Log


def policy(
    *,
    allow: Mapping[str, str] | None = None,
    deny: Mapping[str, str] | None = None,
    serve: Sequence[int] = (),
    ask: bool = False,
) -> bytes:
    """A compiled policy that allows nothing unless the options say so; `allow` and `deny` are texts to origins."""
    return compile_policy(
        allow=[(parse_rule(text, (443,)), origin) for text, origin in (allow or {}).items()],
        deny=[(parse_rule(text, (0,)), origin) for text, origin in (deny or {}).items()],
        connect=(),
        serve=serve,
        ask=ask,
        ask_origin="t.toml:1",
        default_origin="t.toml",
    )


class Session:
    """As `egress.session.Session`, but its sockets are made here, outside of any sandbox."""

    def __init__(self, gateway: Gateway, identity: str, agent: str = "", **options: Any) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.identity = identity
        self.agent = agent
        self.tier = 1
        self.profile = f"{agent}.toml"
        self.token = b"\x00token"
        self.files = (f"/etc/{agent}.toml",)
        self.policy = Policy.load(policy(**options))
        self.connections: set[object] = set()
        self.approved: set[tuple[str, int]] = set()
        self.desk = None
        self.visits: set[Any] = set()
        self.deaf: dict[int, float] = {}
        self.opened = 1000.0 + len(gateway.sessions)
        self.ended = False
        self.closes = 0  # what `replace_policy` says it has closed
        self.inner: Callable[[], int] = inner_socket
        gateway.sessions[identity] = self

    def record(self, **fields: object) -> None:
        self.gateway.write({"sandbox": self.identity, "agent": self.agent, **fields})

    def approve(self, name: str, port: int) -> None:
        self.approved.add((name, port))

    def replace_policy(self, replacement: Policy) -> int:
        self.policy = replacement
        return self.closes

    def take_inner_socket(self, done: Callable[[int], None]) -> None:
        done(self.inner())

    def dropped_queries(self) -> int:
        return 3


class Gateway:
    """As `egress.gateway.Gateway`. `records` has what was written."""

    def __init__(self, folder: str = "") -> None:
        self.loop = Loop()
        self.log = Log(folder)
        self.counters = Counters()
        self.sessions: dict[str, Any] = {}
        self.records: list[dict[str, object]] = []
        self.directory: Any = None
        self.drained: list[float] = []

    def write(self, entry: dict[str, object]) -> None:
        self.records.append(entry)
        self.log.write(entry)

    def drain(self, seconds: float = 0.0) -> None:
        self.drained.append(seconds)
        self.loop.stop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its loop runs in a thread meanwhile."""
        thread = threading.Thread(target=self.loop.run)
        thread.start()
        try:
            yield
        finally:
            self.loop.stop()
            thread.join()

    def do(self, call: Callable[[], Any]) -> Any:
        """Call it in the loop's thread, and wait for its result."""
        done = threading.Event()
        result = []

        def called() -> None:
            try:
                result.append(call())
            finally:
                done.set()

        self.loop.call_from_thread(called)
        assert done.wait(30)
        return result[0]

    def turn_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Run the loop in this thread until something is so."""
        late: list[bool] = []
        deadline = self.loop.call_later(seconds, lambda: late.append(True))

        def look() -> None:
            if condition() or late:
                self.loop.stop()
            else:
                self.loop.call_later(0.001, look)

        look()
        self.loop.run()
        deadline.cancel()
        assert not late, "it did not come to that in time"

    def close(self) -> None:
        self.log.close()
        self.loop.shut()


def inner_socket() -> int:
    """What a monitor makes inside a sandbox."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made.detach()
