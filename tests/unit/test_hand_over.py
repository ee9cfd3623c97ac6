"""Connections that are looked into by another worker; what looks into them is a stand-in here."""

from __future__ import annotations

import os
import queue
import socket
import sys
import types

import pytest

from osmoda.egress import hand_over
from osmoda.egress.authority import Authority
from osmoda.egress.hand_over import BUSY, Spread
from osmoda.egress.inspection import InspectedConnection
from osmoda.egress.verdicts import Grant
from tests.egress_fakes import Gateway

ENGINES = []


class Engine:
    """As `inspection.engine.Engine`: it keeps what it is told."""

    def __init__(self, loop):
        self.calls = queue.SimpleQueue()
        self.flows = {}
        self.peeked = {}
        self.revoked = []
        self.rechecked = []
        ENGINES.append(self)

    def run(self, ready):
        ready(self)
        while (call := self.calls.get()) is not None:
            call(self)
        for fd, _ in self.flows.values():
            os.close(fd)

    def call(self, call):
        self.calls.put(call)

    def stop(self):
        self.calls.put(None)

    def adopt(self, fd, peeked, flow):
        self.peeked[flow.id] = peeked
        self.flows[flow.id] = fd, flow

    def revoke(self, flow):
        os.close(self.flows.pop(flow)[0])
        self.revoked.append(flow)

    def recheck(self, flow, grants):
        self.rechecked.append((flow, grants))

    def end(self, flow, up, down):
        """The connection has been closed by its client."""
        fd, inspected = self.flows.pop(flow)
        os.close(fd)
        inspected.on_closed(flow, up, down)


@pytest.fixture
def gateway(monkeypatch):
    module = types.ModuleType("osmoda.egress.inspection.engine")
    module.Engine = Engine
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ENGINES.clear()
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def spreads(gateway):
    """Two workers on one loop, each other's neighbours."""
    pair = [Spread(gateway.loop), Spread(gateway.loop)]
    for spread, end in zip(pair, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), strict=True):
        spread.join(end)
    yield pair
    for spread in pair:
        spread.close(10)
    gateway.loop.call_soon(gateway.loop.stop)
    gateway.loop.run()


AUTHORITY = Authority.new()
GRANT = Grant("api.example.com", (443,), ("GET",), ("/v1/*",), "KEY", 1000, origin="t.toml:4")


class Flow:
    last = 100

    def __init__(self, spread, grants=(GRANT,)):
        Flow.last += 1
        self.id = Flow.last
        self.records = []
        self.closed = []
        self.client, given = socket.socketpair()
        spread.adopt(
            given.detach(),
            b"GET / HTTP/1.1\r\n",
            InspectedConnection(
                id=self.id,
                session="box",
                name="api.example.com",
                port=443,
                tls=True,
                addresses=("192.0.2.1",),
                grants=grants,
                authority=AUTHORITY,
                secrets=(("KEY", "placeholder", "value"),),
                upstream_authorities="/etc/ca.pem",
                on_record=self.records.append,
                on_closed=lambda *end: self.closed.append(end),
                take_request=lambda grants: "used up",
                on_moved=lambda grants, moved: None,
            ),
        )

    def is_cut(self):
        self.client.settimeout(30)
        found = self.client.recv(10)
        self.client.close()
        return found == b""


def busy(spread):
    """As many connections as it takes to pass on the next one."""
    return [Flow(spread) for _ in range(BUSY)]


def close(flows):
    for flow in flows:
        flow.client.close()


def warm(gateway, spreads):
    """Both have loaded what it takes; the first's engine comes first."""
    for number, spread in enumerate(spreads):
        spread.prewarm()
        gateway.turn_until(lambda number=number: len(ENGINES) > number and spreads[number].warm)
    gateway.turn_until(lambda: all(neighbour.is_ready() for spread in spreads for neighbour in spread.neighbours))
    return ENGINES


def there(gateway, engines):
    """The connection that the second looks into for the first."""
    gateway.turn_until(lambda: engines[1].flows)
    ((identity, (_, flow)),) = engines[1].flows.items()
    return identity, flow


def test_a_worker_that_is_not_busy_passes_nothing_on(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = busy(spreads[0])
    gateway.turn_until(lambda: len(engines[0].flows) == BUSY)
    assert engines[1].flows == {}
    close(flows)


def test_nor_to_one_that_would_have_to_load_first(gateway, spreads):
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    gateway.turn_until(lambda: spreads[1].warm)
    assert len(spreads[0].here) == BUSY + 1
    close(flows)


def test_a_busy_one_shares(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), *[Flow(spreads[0]) for _ in range(16)]]
    gateway.turn_until(lambda: len(engines[0].flows) + len(engines[1].flows) == len(flows))
    assert len(engines[0].flows) == len(engines[1].flows) == len(flows) // 2
    close(flows)


def test_all_that_is_needed_goes_along(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    identity, flow = there(gateway, engines)
    assert identity < 0
    assert (flow.session, flow.name, flow.port, flow.tls) == ("box", "api.example.com", 443, True)
    assert (flow.addresses, flow.secrets) == (("192.0.2.1",), (("KEY", "placeholder", "value"),))
    assert flow.upstream_authorities == "/etc/ca.pem"
    assert flow.grants == (GRANT,)
    assert flow.authority.pem == AUTHORITY.pem
    assert flow.take_request(flow.grants) == ""
    assert engines[1].peeked[identity] == b"GET / HTTP/1.1\r\n"
    # And the connection itself.
    os.write(engines[1].flows[identity][0], b"hello")
    assert flows[-1].client.recv(10) == b"hello"
    close(flows)


def test_records_and_the_end_come_back(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    identity, flow = there(gateway, engines)
    flow.on_record({"event": "request", "status": 200, "path": "/v1/x", "odd": ["x"]})
    engines[1].end(identity, 10, 20)
    last = flows[-1]
    gateway.turn_until(lambda: last.closed)
    assert last.records == [{"event": "request", "status": 200, "path": "/v1/x", "odd": "['x']"}]
    assert last.closed == [(last.id, 10, 20)]
    assert spreads[1].here == set()
    # The place is free again.
    flows.append(Flow(spreads[0]))
    assert there(gateway, engines)[0] != identity
    close(flows)


def test_revoking(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    identity, _ = there(gateway, engines)
    spreads[0].revoke(flows[-1].id)
    gateway.turn_until(lambda: engines[1].revoked)
    assert engines[1].revoked == [identity]
    assert flows[-1].is_cut()
    assert flows[-1].closed == []
    spreads[0].revoke(flows[0].id)
    gateway.turn_until(lambda: engines[0].revoked)
    assert engines[0].revoked == [flows[0].id]
    close(flows)


def test_rechecking(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    identity, _ = there(gateway, engines)
    edited = (Grant("api.example.com", (443,), ("GET", "POST"), origin="t.toml:9"),)
    spreads[0].recheck(flows[-1].id, edited)
    spreads[0].recheck(flows[0].id, edited)
    gateway.turn_until(lambda: engines[0].rechecked and engines[1].rechecked)
    assert engines[1].rechecked == [(identity, edited)]
    assert engines[0].rechecked == [(flows[0].id, edited)]
    close(flows)


@pytest.mark.parametrize("budget", [{"max_bytes": 5}, {"max_requests": 0}])
def test_what_has_a_budget_stays_where_it_is_counted(budget, gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0], (GRANT, Grant("api.example.com", **budget)))]
    gateway.turn_until(lambda: len(engines[0].flows) == BUSY + 1)
    # One that gets a budget while it is elsewhere is reset.
    flows.append(Flow(spreads[0]))
    identity, _ = there(gateway, engines)
    spreads[0].recheck(flows[-1].id, (Grant("api.example.com", **budget),))
    gateway.turn_until(lambda: engines[1].revoked)
    assert engines[1].revoked == [identity]
    assert flows[-1].closed == [(flows[-1].id, 0, 0)]
    close(flows)


def test_the_death_of_the_one_that_looks_into_it_ends_it(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    there(gateway, engines)
    spreads[1].close(10)
    gateway.turn_until(lambda: flows[-1].closed)
    assert flows[-1].is_cut()
    assert spreads[0].neighbours == set()
    flows.append(Flow(spreads[0]))
    gateway.turn_until(lambda: len(engines[0].flows) == BUSY + 1)
    close(flows)


def test_the_death_of_the_one_it_belongs_to_resets_it(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    there(gateway, engines)
    spreads[0].close(10)
    gateway.turn_until(lambda: engines[1].revoked)
    assert flows[-1].is_cut()
    assert spreads[1].here == set()
    close(flows)


def test_one_that_does_not_listen_gets_nothing_more_and_is_parted_from(gateway, spreads, monkeypatch):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    there(gateway, engines)
    (neighbour,) = spreads[0].neighbours
    (mirror,) = spreads[1].neighbours
    gateway.loop.unregister(mirror._socket.fileno())  # as if its process were stopped
    while neighbour.is_ready():
        neighbour.say("warm")
    flows.append(Flow(spreads[0]))
    assert len(spreads[0].here) == BUSY + 1
    monkeypatch.setattr(hand_over, "_MOST_QUEUED", 50)
    for _ in range(60):
        neighbour.say("warm")
    assert spreads[0].neighbours == set()
    assert flows[BUSY].closed == [(flows[BUSY].id, 0, 0)]
    mirror.part()
    close(flows)


def test_messages_that_had_to_wait_come_in_order(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), Flow(spreads[0])]
    _, flow = there(gateway, engines)
    for number in range(5000):
        flow.on_record({"n": number})
    gateway.turn_until(lambda: len(flows[-1].records) == 5000)
    assert [record["n"] for record in flows[-1].records] == list(range(5000))
    close(flows)


def test_authorities_are_loaded_once(gateway, spreads):
    engines = warm(gateway, spreads)
    flows = [*busy(spreads[0]), *[Flow(spreads[0]) for _ in range(2)]]
    gateway.turn_until(lambda: len(engines[1].flows) == 2)
    first, second = (flow for _, flow in engines[1].flows.values())
    assert first.authority is second.authority
    close(flows)
