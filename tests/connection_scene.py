"""A sandbox's connections without a sandbox: a client, the gateway's half of it in this process, and a server."""

from __future__ import annotations

import contextlib
import socket
from types import SimpleNamespace

import pytest

from osmoda.egress.budgets import Budgets
from osmoda.egress.connection import Connection
from osmoda.egress.counters import Counters
from osmoda.egress.destinations import Rule
from osmoda.egress.loop import Acceptor, Loop
from osmoda.egress.name_table import NameTable
from osmoda.egress.policy import Policy
from osmoda.egress.policy_source import compile_policy
from osmoda.egress.upstream import Upstream, UpstreamError
from tests import looping

PUBLIC = socket.inet_aton("192.0.2.7")
OTHER_PUBLIC = socket.inet_aton("198.51.100.7")
PRIVATE = socket.inet_aton("10.1.2.3")
ALERT = b"\x15\x03\x03\x00\x02\x02"
ACCESS_DENIED, UNRECOGNIZED_NAME = ALERT + b"\x31", ALERT + b"\x70"
GET = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"


def policy(*allow, deny=(), connect=(), ask=False):
    """A policy whose rules stand in the lines of p.toml."""
    lines = iter(range(8, 100))
    return Policy.load(
        compile_policy(
            allow=[(rule, f"p.toml:{next(lines)}") for rule in allow],
            deny=[(rule, f"p.toml:{next(lines)}") for rule in deny],
            connect=[(text, f"p.toml:{next(lines)}") for text in connect],
            serve=[],
            ask=ask,
            ask_origin="p.toml:5",
            default_origin="p.toml:7",
        )
    )


class Exit(Upstream):
    """The world outside: addresses of names, and which of this host's ports stands for a port out there."""

    def __init__(self, loop):
        super().__init__(loop, lookup=self.look_up)
        self.names = {"example.com": [PUBLIC]}
        self.ports = {}
        self.dialled = []

    def look_up(self, name):
        answer = self.names[name]
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    def dial_any(self, addresses, port, done, timeout=10.0):
        self.dialled.append(([*addresses], port))
        route = self.ports.get(port)
        if isinstance(route, UpstreamError):
            self.loop.call_soon(lambda: done(route, b""))
            return super().dial_any([], port, lambda *_: None)
        real = [socket.inet_aton("127.0.0.1")]
        return super().dial_any(real, route, lambda result, _: done(result, addresses[0]), timeout)


class Gateway:
    def __init__(self):
        self.loop = Loop()
        self.loop.on_error = self.failed
        self.upstream = Exit(self.loop)
        self.upstream_authorities = "/etc/authorities.pem"
        self.counters = Counters()
        self.faults = []
        self.questions = []
        self.visits = []
        self.flows = []

    def failed(self, callback, error):
        self.faults.append(error)
        callback.__self__.fault()

    def ask(self, session, name, port, done):
        question = SimpleNamespace(name=name, port=port, done=done, withdrawn=False)
        question.withdraw = lambda done: setattr(question, "withdrawn", True)
        self.questions.append(question)
        return question

    def dial_agent(self, session, target, port, done, revoked):
        visit = SimpleNamespace(target=target, port=port, done=done, revoked=revoked, over=False)
        self.visits.append(visit)
        return lambda: setattr(visit, "over", True)

    def inspector(self):
        return SimpleNamespace(
            adopt=lambda fd, peeked, flow: self.flows.append([fd, peeked, flow]),
            revoke=lambda identity: self.flows[-1].append("revoked"),
            recheck=lambda identity, grants: self.flows[-1].append(grants),
        )


class Session:
    def __init__(self, gateway, policy):
        self.ledger = None
        self.gateway = gateway
        self.loop = gateway.loop
        self.identity = "7-1"
        self.policy = policy
        self.table = NameTable()
        self.budgets = Budgets()
        self.connections = set()
        self.checked = {}
        self.secrets = {"KEY": ("placeholder", "value")}
        self.authority = "an authority"
        self.records = []

    def record(self, **fields):
        self.records.append(fields)


class Scene:
    """A sandbox's side (`client`), the gateway between, and a server."""

    def __init__(self, policy):
        self.gateway = Gateway()
        self.loop = self.gateway.loop
        self.upstream = self.gateway.upstream
        self.session = Session(self.gateway, policy)
        self.inside = socket.create_server(("127.0.0.1", 0))
        self.outside = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.outside.setblocking(False)
        self.original = None
        self.made = []
        self.stack = contextlib.ExitStack()
        listener = self.inside.dup()
        self.acceptor = Acceptor(
            self.loop, listener, lambda fd: self.made.append(Connection(self.session, fd, self.original))
        )
        self.stack.callback(self.inside.close)
        self.stack.callback(self.outside.close)

    # The sandbox's side

    def connect(self, name="example.com", port=443, content=b"", *, address=None, more=True):
        """A client that means to go there, and sends `content`."""
        if address is None:
            address = self.session.table.ipv4(self.session.table.bind(name))
        self.original = address, port
        if port not in self.upstream.ports:
            self.upstream.ports[port] = self.outside.getsockname()[1]
        client = self.stack.enter_context(socket.create_connection(self.inside.getsockname()))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if content:
            client.sendall(content)
        client.setblocking(False)
        if more:
            before = len(self.made)
            self.until(lambda: len(self.made) > before)
        return client

    def accept(self):
        """The server's end."""
        found = []

        def look():
            with contextlib.suppress(BlockingIOError):
                found.append(self.outside.accept()[0])
            return found

        self.until(look)
        server = self.stack.enter_context(found[0])
        server.setblocking(False)
        return server

    # What happens

    def until(self, condition):
        looping.until(self.loop, condition)

    def received(self, end, size):
        return looping.received(self.loop, end, size)

    def outcome(self, end):
        return looping.outcome(self.loop, end)

    @property
    def connection(self):
        return self.made[-1]

    def record(self):
        """The record of the only connection."""
        self.until(lambda: self.session.records)
        (record,) = self.session.records
        return record

    def nothing_left(self):
        self.until(lambda: not self.session.connections)
        assert self.session.table._held == {}
        assert self.gateway.faults == []

    def close(self):
        for connection in tuple(self.session.connections):
            connection.revoke("the test is over")
        self.acceptor.close()
        self.stack.close()
        self.until(lambda: len(self.upstream._idle) == self.upstream._workers)
        self.upstream.close()
        self.loop.shut()


def scenes(rules=None):
    """What a fixture `scene` yields from; `rules` is its parameter, if it has one."""
    scene = Scene(
        rules
        or policy(
            Rule("example.com", (22, 80, 443, 8080)),
            Rule("inspected.example", (80, 443, 8080), methods=("GET",)),
            deny=[Rule("denied.example", (0,))],
        )
    )
    yield scene
    scene.close()


def with_policy(*allow, **options):
    return pytest.mark.parametrize("scene", [policy(*allow, **options)], indirect=True, ids=["policy"])


def refused(scene, client, protocol, *, verdict="deny", action="refused"):
    """The reason of a connection that was turned away; nothing was dialled, nothing is left."""
    record = scene.record()
    assert (record["verdict"], record["action"], record["protocol"]) == (verdict, action, protocol)
    scene.until(lambda: not scene.session.connections)
    scene.nothing_left()
    return record["reason"]
