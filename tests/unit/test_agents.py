"""Visits to other agents' ports: found, connected, handed over, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from osmoda.egress import agents, control, visits
from osmoda.egress.policy import Policy
from osmoda.host import paths
from tests import egress_fakes
from tests.egress_fakes import Gateway, Session
from tests.worlds import Program

# A gateway in a network namespace of its own, in which a server says its name on the ports of argv. Of JSON lines on
# stdin: code to run. Its records are printed.
OTHER = """
import fcntl, json, os, socket, struct, sys, threading
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
from osmoda.egress import control, visits
from osmoda.egress.policy import Policy
from osmoda.host import paths
from tests.egress_fakes import Gateway, Session, policy

name, agent, opened, family, *ports = sys.argv[1:]
def serve(listener):
    while True:
        connection, _ = listener.accept()
        connection.sendall(name.encode())
        connections.append(connection)
connections = []
for port in ports:
    v6 = family == "6"
    listener = socket.create_server(("::1" if v6 else "127.0.0.1", int(port)), family=10 if v6 else 2)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()

gateway = Gateway()
session = Session(gateway, name, agent, serve=[8081, 8082])
session.opened = float(opened)
gateway.log.watchers.add(lambda record: print(json.dumps(record), flush=True))
listening = control.listen(gateway)
def command(events):
    lines = os.read(0, 65536).splitlines()
    for line in lines:
        exec(json.loads(line), globals())
    if not lines:
        gateway.loop.stop()
gateway.loop.register(0, 1, command)
print("ready", flush=True)
gateway.loop.run()
listening.close()
visits.session_ended(session)
gateway.log.close()
"""


class Other:
    def __init__(self, name, agent="writer", opened=100.0, family=4, ports=(8081,)):
        command = [sys.executable, "-c", OTHER, name, agent, str(opened), str(family), *map(str, ports)]
        self.process = Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def do(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def record(self):
        return json.loads(self.process.stdout.readline())

    def path(self):
        return f"{paths.directory('runtime')}/egress/{self.process.pid}.sock"

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.communicate(timeout=30)


@pytest.fixture
def other():
    """Starts other gateways."""
    started = []

    def start(*args, **options):
        started.append(Other(*args, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()
        if os.path.exists(each.path()):  # it was killed
            os.unlink(each.path())


@pytest.fixture
def gateway():
    gateway = Gateway()
    listening = control.listen(gateway)
    yield gateway
    for session in gateway.sessions.values():
        visits.session_ended(session)
    listening.close()
    gateway.loop.call_soon(gateway.loop.stop)
    gateway.loop.run()
    gateway.close()


@pytest.fixture
def caller(gateway):
    return Session(gateway, "caller", "research")


class Visitor:
    def __init__(self, session, target="agent:writer", port=8081):
        self.gateway = session.gateway
        self.outcome = []
        self.revoked = []
        self.over = agents.dial(
            session, target, port, lambda *outcome: self.outcome.append(outcome), self.revoked.append
        )

    def arrive(self):
        self.gateway.turn_until(lambda: self.outcome)
        fd, reason = self.outcome[0]
        assert reason == ""
        assert not os.get_blocking(fd)
        connection = socket.socket(fileno=fd)
        connection.settimeout(30)
        return connection

    def hear(self):
        """What the server inside says; then the visit is over."""
        with self.arrive() as connection:
            said = connection.recv(100).decode()
        self.over()
        return said

    def reason(self):
        self.gateway.turn_until(lambda: self.outcome)
        assert self.outcome[0][0] == -1
        return self.outcome[0][1]


def turn(gateway):
    """A few turns of the loop."""
    done = []
    gateway.loop.call_later(0.01, lambda: done.append(True))
    gateway.turn_until(lambda: done)


@pytest.fixture
def server():
    """On this host's loopback, where the fake's inner sockets are made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        yield listener


# In this gateway


def test_a_sandbox_of_the_same_gateway(gateway, caller, server):
    port = server.getsockname()[1]
    host = Session(gateway, "host", "writer", serve=[port])
    visitor = Visitor(caller, port=port)
    assert visitor.outcome == []
    with visitor.arrive() as connection, server.accept()[0] as accepted:
        accepted.sendall(b"hello")
        assert connection.recv(10) == b"hello"
        assert len(host.visits) == 1
    visitor.over()
    visitor.over()
    assert host.visits == set()
    assert visitor.revoked == []
    (record,) = gateway.records
    assert {
        "sandbox": "host",
        "agent": "writer",
        "name": "research.agent",
        "port": port,
        "direction": "in",
        "verdict": "allow",
        "action": "served",
        "reason": "from sandbox caller",
    }.items() <= record.items()


def test_a_server_on_the_ipv6_loopback_only(gateway, caller):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        Session(gateway, "host", "writer", serve=[port])
        visitor = Visitor(caller, port=port)
        with visitor.arrive():
            server.accept()[0].close()
        visitor.over()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_nobody_listens_on(family, gateway, caller, server):
    port = server.getsockname()[1]
    server.close()
    host = Session(gateway, "host", "writer", serve=[port])
    host.inner = lambda: socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK).detach()
    assert Visitor(caller, port=port).reason() == f"agent writer does not listen on port {port}"
    assert host.visits == set()
    assert gateway.records[0]["action"] == "failed"


def test_visitors_that_try_on_and_on_have_no_sockets_made_on_and_on(gateway, caller, server, monkeypatch):
    monkeypatch.setattr(visits, "_DEAF_SECONDS", 60.0)
    port = server.getsockname()[1]
    server.close()
    host = Session(gateway, "host", "writer", serve=[port])
    made = []
    host.inner = lambda: made.append(egress_fakes.inner_socket()) or made[-1]
    reasons = {Visitor(caller, port=port).reason() for _ in range(10)}
    assert reasons == {f"agent writer does not listen on port {port}"}
    assert len(made) == 2  # for 127.0.0.1 and for ::1
    host.deaf[port] -= 60.0
    Visitor(caller, port=port).reason()
    assert len(made) == 4


def test_no_socket_is_to_be_had_inside(gateway, caller):
    Session(gateway, "host", "writer", serve=[8081]).inner = lambda: -1
    assert Visitor(caller).reason() == "no socket can be made in the sandbox of agent writer"


def test_a_monitor_that_makes_no_socket_in_time(gateway, caller, monkeypatch):
    monkeypatch.setattr(visits, "CONNECT_SECONDS", 0.05)
    waiting = []
    Session(gateway, "host", "writer", serve=[8081]).take_inner_socket = waiting.append
    assert Visitor(caller).reason() == "agent writer does not answer on port 8081"
    made = egress_fakes.inner_socket()
    waiting[0](made)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made)


def test_a_server_that_accepts_nothing(gateway, caller, monkeypatch):
    monkeypatch.setattr(visits, "CONNECT_SECONDS", 0.1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()):  # the backlog is full
            Session(gateway, "host", "writer", serve=[port])
            assert Visitor(caller, port=port).reason() == f"agent writer does not answer on port {port}"


def test_the_sandbox_that_has_run_longest(gateway, caller, server):
    port = server.getsockname()[1]
    sessions = {
        name: Session(gateway, name, "writer", serve=[port]) for name in ("young", "old", "ended", "not serving")
    }
    for name, opened in (("young", 50.0), ("old", 20.0), ("ended", 10.0), ("not serving", 5.0)):
        sessions[name].opened = opened
    sessions["ended"].ended = True
    sessions["not serving"].policy = Policy.load(egress_fakes.policy())
    Session(gateway, "other", "reader", serve=[port]).opened = 1.0
    for _ in range(2):
        visitor = Visitor(caller, port=port)
        visitor.arrive().close()
        visitor.over()
    assert [record["sandbox"] for record in gateway.records] == ["old", "old"]
    sessions["old"].ended = True
    visitor = Visitor(caller, port=port)
    visitor.arrive().close()
    visitor.over()
    assert gateway.records[-1]["sandbox"] == "young"


@pytest.mark.parametrize(("target", "port"), [("agent:reader", 8081), ("agent:writer", 8083), ("agent:writer", 0)])
def test_nobody_serves_it(target, port, gateway, caller):
    Session(gateway, "host", "writer", serve=[8081])
    assert Visitor(caller, target, port).reason() == (
        f"no running agent {target[6:]} serves port {port} (network.serve of its profile)"
    )


def test_a_visitor_that_hangs_up_before_anything_has_happened(gateway, caller, server):
    port = server.getsockname()[1]
    host = Session(gateway, "host", "writer", serve=[port])
    visitor = Visitor(caller, port=port)
    visitor.over()
    turn(gateway)
    assert visitor.outcome == []
    assert host.visits == set()


def test_a_port_that_is_no_longer_served(gateway, caller, server):
    port = server.getsockname()[1]
    host = Session(gateway, "host", "writer", serve=[port])
    visitor = Visitor(caller, port=port)
    with visitor.arrive():
        host.policy = Policy.load(egress_fakes.policy())
        assert visits.policy_changed(host) == 1
        assert visitor.revoked == [f"agent writer no longer serves port {port}"]
        visitor.over()
    assert host.visits == set()
    assert "no running agent" in Visitor(caller, port=port).reason()


def test_an_edit_while_it_is_being_connected(gateway, caller, server):
    port = server.getsockname()[1]
    host = Session(gateway, "host", "writer", serve=[port])
    waiting = []
    host.take_inner_socket = waiting.append
    visitor = Visitor(caller, port=port)
    gateway.turn_until(lambda: waiting)
    host.policy = Policy.load(egress_fakes.policy())
    waiting[0](egress_fakes.inner_socket())
    assert visitor.reason() == f"agent writer no longer serves port {port}"


def test_the_end_of_the_sandbox_ends_its_visits(gateway, caller, server):
    host = Session(gateway, "host", "writer", serve=[server.getsockname()[1]])
    visitor = Visitor(caller, port=server.getsockname()[1])
    with visitor.arrive():
        visits.session_ended(host)
        assert visitor.revoked == ["agent writer has ended"]
    visitor.over()


# In other gateways


def patient(monkeypatch):
    """On a busy machine the one that is meant may answer last, and late."""
    monkeypatch.setattr(agents, "_ENOUGH_SECONDS", 20.0)
    monkeypatch.setattr(agents, "SEARCH_SECONDS", 20.0)


def test_a_sandbox_of_another_gateway(gateway, caller, other):
    there = other("there")
    assert Visitor(caller).hear() == "there"
    record = there.record()
    assert (record["name"], record["reason"], record["action"]) == ("research.agent", "from sandbox caller", "served")


def test_a_server_on_the_ipv6_loopback_there(gateway, caller, other):
    other("there", family=6)
    assert Visitor(caller).hear() == "there"


@pytest.mark.parametrize(
    ("opened", "expected"), [((300, 100, 200), "b"), ((100, 300, 200), "a"), ((300, 200, 100), "c")]
)
def test_of_all_gateways_the_sandbox_that_has_run_longest(opened, expected, gateway, caller, other, monkeypatch):
    patient(monkeypatch)
    for name, since in zip("abc", opened, strict=True):
        other(name, opened=since)
    assert [Visitor(caller).hear() for _ in range(3)] == [expected] * 3


def test_a_sandbox_of_this_gateway_when_it_has_run_longer(gateway, caller, other, server):
    port = server.getsockname()[1]
    other("there", opened=5000.0).do(f"session.policy = Policy.load(policy(serve=[{port}]))")
    Session(gateway, "host", "writer", serve=[port])
    visitor = Visitor(caller, port=port)
    with visitor.arrive():
        server.accept()[0].close()
    visitor.over()


def test_where_it_was_is_remembered_until_it_ends(gateway, caller, other, monkeypatch):
    patient(monkeypatch)
    first, second = other("first", opened=1.0), other("second", opened=2.0)
    assert Visitor(caller).hear() == "first"
    assert gateway.directory.places == {("writer", 8081): first.path()}
    assert Visitor(caller).hear() == "first"
    first.end()
    assert Visitor(caller).hear() == "second"
    second.do("session.policy = Policy.load(policy())")
    assert "no running agent" in Visitor(caller).reason()
    assert gateway.directory.places == {}


def test_visitors_that_come_at_once_have_one_search_made_for_them(gateway, caller, other, monkeypatch):
    monkeypatch.setattr(agents, "_ABSENT_SECONDS", 60.0)
    there = other("there")
    there.do("session.policy = Policy.load(policy())")
    there.do(
        "asked = []; serving = visits.serving; visits.serving = lambda *what: (asked.append(what), serving(*what))[1]"
    )
    for visitor in [Visitor(caller) for _ in range(20)]:
        assert "no running agent" in visitor.reason()
    # And what nobody has is not asked for again at once.
    assert "no running agent" in Visitor(caller).reason()
    there.do("gateway.write({'asked': len(asked)})")
    assert there.record() == {"asked": 1}


def test_visitors_that_come_at_once_are_all_let_in(gateway, caller, other):
    other("there")
    visitors = [Visitor(caller) for _ in range(20)]
    visitors.pop(0).over()  # and one that hangs up takes nobody along
    assert [visitor.hear() for visitor in visitors] == ["there"] * 19


def test_a_refusal_of_the_other_gateway(gateway, caller, other):
    other("there", ports=())
    assert Visitor(caller).reason() == "agent writer does not listen on port 8081"


def test_an_edit_there_ends_the_visit(gateway, caller, other):
    there = other("there")
    visitor = Visitor(caller)
    with visitor.arrive():
        there.do("session.policy = Policy.load(policy(serve=[8082])); visits.policy_changed(session)")
        gateway.turn_until(lambda: visitor.revoked)
        assert visitor.revoked == ["agent writer no longer serves port 8081"]
    visitor.over()


def test_the_end_of_the_visit_is_known_there(gateway, caller, other):
    there = other("there")
    visitor = Visitor(caller)
    visitor.arrive().close()
    there.record()
    count = "gateway.write({'visits': len(session.visits), 'held': len(listening.visits)})"
    there.do(count)
    assert there.record()["visits"] == 1
    visitor.over()
    turn(gateway)
    for _ in range(1000):
        turn(gateway)
        there.do(count)
        found = there.record()
        if found == {"visits": 0, "held": 0}:
            break
    assert found == {"visits": 0, "held": 0}


def test_the_death_of_the_other_gateway_ends_the_visit(gateway, caller, other):
    there = other("there")
    visitor = Visitor(caller)
    with visitor.arrive():
        there.process.kill()
        gateway.turn_until(lambda: visitor.revoked)
        assert visitor.revoked == ["the gateway of agent writer has ended"]
    visitor.over()


def test_a_gateway_that_hangs_holds_nobody_up_for_long(gateway, caller, other, monkeypatch):
    hung, there = other("hung"), other("there", opened=200.0)
    hung.process.send_signal(signal.SIGSTOP)
    assert Visitor(caller).hear() == "there"
    there.end()
    monkeypatch.setattr(agents, "SEARCH_SECONDS", 0.5)
    assert "no running agent" in Visitor(caller).reason()


def test_a_gateway_that_hangs_when_it_is_to_connect(gateway, caller, other, monkeypatch):
    monkeypatch.setattr(agents, "_CONNECT_SECONDS", 0.1)
    there = other("there")
    there.do("session.take_inner_socket = lambda done: None")
    assert Visitor(caller).reason() == "the gateway of agent writer does not answer"


def test_a_visitor_that_hangs_up_meanwhile(gateway, caller, other):
    there = other("there")
    there.do("waiting = []; session.take_inner_socket = waiting.append")
    visitor = Visitor(caller)
    for _ in range(1000):
        turn(gateway)
        there.do("gateway.write({'asked': len(waiting)})")
        if asked := there.record()["asked"]:
            break
    assert asked
    visitor.over()
    turn(gateway)
    there.do("waiting[0](session.inner()); gateway.write({'visits': len(session.visits)})")
    assert there.record() == {"visits": 0}
    assert visitor.outcome == []


def test_too_many_visits(gateway, caller, other):
    there = other("there")
    there.do("visits.MOST_VISITS = 1")
    first = Visitor(caller)
    with first.arrive():
        assert "too many connections" in Visitor(caller).reason()
    first.over()
    turn(gateway)
    assert Visitor(caller).hear() == "there"
