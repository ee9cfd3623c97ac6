"""A connection from its accept to its end: decided, dialled, relayed or handed over, and always recorded."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from types import SimpleNamespace

import pytest

from osmoda.egress import client as client_module
from osmoda.egress import connection as module
from osmoda.egress import farewell as farewell_module
from osmoda.egress import upstream as upstream_module
from osmoda.egress.budgets import Budgets
from osmoda.egress.destinations import Rule
from osmoda.egress.upstream import UpstreamError
from tests.client_hellos import ech_outer, hello, message, records
from tests.connection_scene import (
    ACCESS_DENIED,
    GET,
    OTHER_PUBLIC,
    PRIVATE,
    PUBLIC,
    UNRECOGNIZED_NAME,
    policy,
    refused,
    scenes,
    with_policy,
)
from tests.looping import PATIENCE


@pytest.fixture
def scene(request):
    yield from scenes(getattr(request, "param", None))


# Allowed


def test_a_tls_connection_is_relayed_from_its_first_byte(scene):
    client = scene.connect(content=hello())
    server = scene.accept()
    assert scene.received(server, len(hello())) == hello()
    server.send(b"server hello")
    assert scene.received(client, 12) == b"server hello"
    client.send(b"finished")
    assert scene.received(server, 8) == b"finished"
    assert scene.session.records == []
    client.close()
    server.close()
    record = scene.record()
    duration = record.pop("duration")
    assert 0 < duration < PATIENCE
    assert record == {
        "event": "connection",
        "name": "example.com",
        "address": "192.0.2.7",
        "port": 443,
        "protocol": "tls",
        "verdict": "allow",
        "action": "spliced",
        "reason": "",
        "rule": "p.toml:8",
        "bytes_up": len(hello()) + 8,
        "bytes_down": 12,
    }
    scene.nothing_left()
    counters = scene.gateway.counters
    assert (counters.bytes_up, counters.bytes_down, sum(counters.setup)) == (len(hello()) + 8, 12, 1)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_hello_may_come_in_pieces(scene, size):
    whole = records(message([]), [7])
    client = scene.connect()
    for at in range(0, len(whole), size):
        client.send(whole[at : at + size])
        scene.until(lambda: True)
    client.send(b"early data")
    server = scene.accept()
    assert scene.received(server, len(whole) + 10) == whole + b"early data"


def test_what_follows_the_hello_at_once_is_relayed(scene):
    early = os.urandom(100_000)
    client = scene.connect(more=False)
    sent = 0
    content = hello() + early
    while sent < len(content):
        with contextlib.suppress(BlockingIOError):
            sent += client.send(content[sent:])
        scene.until(lambda: True)
    server = scene.accept()
    assert scene.received(server, len(content)) == content


def test_without_a_server_name_the_bound_name_decides(scene):
    content = records(message([]))
    scene.connect(content=content)
    assert scene.received(scene.accept(), len(content)) == content


def test_plain_http_is_relayed_on_port_80(scene):
    client = scene.connect(port=80, content=GET)
    server = scene.accept()
    assert scene.received(server, len(GET)) == GET
    server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert scene.received(client, 27)
    client.close()
    server.close()
    assert scene.record()["protocol"] == "http"


def test_a_client_may_end_its_half_with_its_request(scene):
    client = scene.connect(port=80, content=GET, more=False)
    client.shutdown(socket.SHUT_WR)
    server = scene.accept()
    assert scene.outcome(server) == ("end of file", GET)
    server.send(b"answer")
    server.close()
    assert scene.outcome(client) == ("end of file", b"answer")


def test_tls_on_port_80(scene):
    scene.connect(port=80, content=hello())
    assert scene.received(scene.accept(), len(hello())) == hello()


def test_http_without_a_host_is_decided_by_the_bound_name(scene):
    content = b"GET / HTTP/1.0\r\n\r\n"
    scene.connect(port=80, content=content)
    assert scene.received(scene.accept(), len(content)) == content


def test_another_permitted_address_is_dialled_and_recorded(scene):
    scene.upstream.names["example.com"] = [PRIVATE, PUBLIC, socket.inet_aton("127.0.0.1"), OTHER_PUBLIC]
    scene.connect(content=hello())
    scene.accept()
    assert scene.upstream.dialled == [([PUBLIC, OTHER_PUBLIC], 443)]


def test_the_check_of_addresses_is_kept_for_as_long_as_answer_and_verdict(scene, monkeypatch):
    asked = []
    objection = module.objection
    monkeypatch.setattr(module, "objection", lambda *args, **more: asked.append(args) or objection(*args, **more))
    for _ in range(3):
        scene.connect(content=hello())
        scene.accept()
    assert len(asked) == 1
    scene.session.policy = policy(Rule("example.com"), deny=[Rule("192.0.2.0/24", (0,))])
    client = scene.connect(content=hello())
    assert scene.outcome(client)[1] == ACCESS_DENIED
    assert len(asked) == 2


@with_policy(Rule("db.example", (5432,), addresses=("10.0.0.0/8",)))
def test_a_rule_may_name_a_private_network_for_its_name(scene):
    scene.upstream.names["db.example"] = [PRIVATE]
    scene.connect("db.example", 5432)
    scene.accept()
    assert scene.upstream.dialled == [([PRIVATE], 5432)]


# Addresses of their own


@with_policy(Rule("10.0.0.0/8", (443, 5432)), deny=[Rule("denied.example", (0,))])
def test_a_granted_address_is_dialled_itself(scene):
    client = scene.connect(address=PRIVATE, port=5432)
    server = scene.accept()
    client.send(b"\0\0\0\x08\x04\xd2\x16\x2f")
    assert len(scene.received(server, 8)) == 8
    assert scene.upstream.dialled == [([PRIVATE], 5432)]
    client.close()
    server.close()
    record = scene.record()
    assert (record["name"], record["address"], record["rule"]) == ("", "10.1.2.3", "p.toml:8")


@with_policy(Rule("10.0.0.0/8", (443, 5432)), deny=[Rule("denied.example", (0,))])
def test_any_name_may_be_asked_for_at_a_granted_address_but_a_denied_one(scene):
    content = hello(b"internal.example")
    scene.connect(address=PRIVATE, content=content)
    assert scene.received(scene.accept(), len(content)) == content
    client = scene.connect(address=PRIVATE, content=hello(b"denied.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "refused by the deny at p.toml:9" in scene.record()["reason"]


@with_policy(Rule("10.0.0.0/8", (443,)))
def test_an_address_that_no_rule_grants_is_refused(scene):
    client = scene.connect(address=socket.inet_aton("192.168.0.1"), content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()


# The way out fails


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("refused", b"502 Bad Gateway"),
        ("unreachable", b"502 Bad Gateway"),
        ("reset", b"502 Bad Gateway"),
        ("timeout", b"504 Gateway Timeout"),
        ("busy", b"503 Service Unavailable"),
    ],
)
def test_a_server_that_cannot_be_reached(scene, kind, status):
    scene.upstream.ports[80] = UpstreamError(kind, "192.0.2.7 port 80: so it is")
    client = scene.connect(port=80, content=GET)
    ending, answer = scene.outcome(client)
    assert (ending, answer.split(b"\r\n")[0]) == ("end of file", b"HTTP/1.1 " + status)
    assert b"192.0.2.7 port 80: so it is" in answer
    client.close()
    assert refused(scene, client, "http", verdict="allow", action="failed") == "192.0.2.7 port 80: so it is"


def test_a_tls_client_sees_a_reset_when_the_server_cannot_be_reached(scene):
    scene.upstream.ports[443] = UpstreamError("refused", "192.0.2.7 port 443: Connection refused")
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("reset", b"")
    assert "refused" in refused(scene, client, "tls", verdict="allow", action="failed")


def test_a_real_refusal(scene):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        scene.upstream.ports[443] = gone.getsockname()[1]
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("reset", b"")
    assert "Connection refused" in scene.record()["reason"]


def test_a_name_that_does_not_exist(scene):
    scene.upstream.names["example.com"] = UpstreamError("unresolvable", "example.com has no address")
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("end of file", UNRECOGNIZED_NAME)
    client.close()
    assert scene.record()["reason"] == "example.com has no address"
    client = scene.connect(port=80, content=GET)
    assert b"HTTP/1.1 502 Bad Gateway" in scene.outcome(client)[1]
    client.close()


def test_a_failure_on_any_port_is_told_in_http_to_who_speaks_it(scene):
    scene.upstream.ports[8080] = UpstreamError("refused", "nobody there")
    client = scene.connect(port=8080, content=GET)
    assert b"HTTP/1.1 502" in scene.outcome(client)[1]
    client.close()


def test_a_client_that_goes_away_while_its_name_is_looked_up(scene):
    import threading

    release = threading.Event()
    answer = scene.upstream.look_up
    scene.upstream._look_up = lambda name: release.wait(PATIENCE) and answer(name)
    client = scene.connect(content=hello())
    scene.until(lambda: scene.connection.state == "resolving")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert refused(scene, client, "tls", verdict="allow", action="failed") == "the client went away"
    release.set()
    scene.until(lambda: scene.upstream.cached("example.com"))
    assert scene.upstream.dialled == []


# Names of ours


@with_policy(connect=["host:5432", "agent:writer:8082", "localhost:8081=agent:research:9000"])
def test_a_port_of_the_host(scene):
    client = scene.connect("host.osmoda", 5432)
    server = scene.accept()
    assert [list(addresses) for addresses, _ in scene.upstream.dialled] == [
        [socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")]
    ]
    client.send(b"\0\0\0\x08\x04\xd2\x16\x2f")
    assert len(scene.received(server, 8)) == 8


@with_policy(connect=["host:5432", "agent:writer:8082", "localhost:8081=agent:research:9000"])
def test_a_port_of_another_agent(scene):
    client = scene.connect("writer.agent", 8082, content=b"GET / HTTP/1.1\r\nHost: writer.agent:8082\r\n\r\n")
    (visit,) = scene.gateway.visits
    assert (visit.target, visit.port) == ("agent:writer", 8082)
    one, other = socket.socketpair()
    one.setblocking(False)
    visit.done(one.detach(), "")
    with other:
        other.setblocking(False)
        assert scene.received(other, 4) == b"GET "
        assert not visit.over
        client.close()
        other.close()
    scene.until(lambda: visit.over)
    assert scene.record()["name"] == "writer.agent"
    scene.nothing_left()


@with_policy(connect=["host:5432", "agent:writer:8082", "localhost:8081=agent:research:9000"])
def test_a_port_of_the_sandboxes_own_localhost(scene):
    client = scene.connect(
        address=socket.inet_aton("127.0.0.1"), port=8081, content=b"GET / HTTP/1.1\r\nHost: localhost:8081\r\n\r\n"
    )
    (visit,) = scene.gateway.visits
    assert (visit.target, visit.port) == ("agent:research", 9000)
    one, other = socket.socketpair()
    one.setblocking(False)
    visit.done(one.detach(), "")
    with other:
        other.setblocking(False)
        assert scene.received(other, 4) == b"GET "
        visit.revoked("agent research has ended")
        assert scene.outcome(client)[0] == "reset"
    assert visit.over
    assert (scene.record()["action"], scene.record()["reason"]) == ("revoked", "agent research has ended")


@with_policy(connect=["agent:writer:8082"])
def test_an_agent_that_cannot_be_reached(scene):
    client = scene.connect("writer.agent", 8082, content=b"GET / HTTP/1.1\r\nHost: writer.agent:8082\r\n\r\n")
    scene.gateway.visits[0].done(-1, "no running agent writer serves port 8082")
    assert b"no running agent writer" in scene.outcome(client)[1]
    client.close()
    assert scene.gateway.visits[0].over


@with_policy(connect=["agent:writer:8082"])
def test_a_client_that_goes_away_while_an_agent_is_looked_for(scene):
    client = scene.connect("writer.agent", 8082)
    (visit,) = scene.gateway.visits
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    scene.until(lambda: visit.over)
    scene.nothing_left()
    one, other = socket.socketpair()
    other.setblocking(False)
    with other:
        visit.done(one.detach(), "")
        assert scene.outcome(other) == ("end of file", b"")


# Asking

asking = with_policy(Rule("example.com"), deny=[Rule("denied.example", (0,))], ask=True)


def ask(scene, port=443, content=None):
    scene.upstream.names["new.example"] = [PUBLIC]
    client = scene.connect("new.example", port, hello(b"new.example") if content is None else content)
    scene.until(lambda: scene.gateway.questions)
    (question,) = scene.gateway.questions
    assert (question.name, question.port) == ("new.example", port)
    return client, question


@asking
def test_an_unlisted_name_is_held_until_somebody_approves(scene):
    client, question = ask(scene)
    assert scene.upstream.dialled == []
    client.send(b"early")
    question.done(True, "approved once")
    server = scene.accept()
    content = hello(b"new.example") + b"early"
    assert scene.received(server, len(content)) == content
    client.close()
    server.close()
    record = scene.record()
    assert (record["verdict"], record["action"], record["rule"]) == ("allow", "spliced", "p.toml:5")
    scene.nothing_left()


@asking
def test_a_refused_question(scene):
    client, question = ask(scene)
    question.done(False, "it was asked about and refused")
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert refused(scene, client, "tls") == "it was asked about and refused"


@asking
def test_nobody_is_asked_about_what_is_denied(scene):
    client = scene.connect("denied.example", content=hello(b"denied.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert scene.gateway.questions == []


@asking
def test_nobody_is_asked_before_the_client_has_named_the_same(scene):
    client = scene.connect("new.example", content=hello(b"evil.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert scene.gateway.questions == []


@asking
def test_a_held_server_first_connection(scene):
    client, question = ask(scene, 22, b"")
    client.send(b"SSH-2.0-client\r\n")
    scene.until(lambda: scene.connection._unread)
    question.done(True, "approved once")
    server = scene.accept()
    assert scene.received(server, 16) == b"SSH-2.0-client\r\n"


@asking
@pytest.mark.parametrize("how", ["reset", "end of file"])
def test_a_client_that_hangs_up_while_it_is_held(scene, how):
    client, question = ask(scene)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    scene.until(lambda: question.withdrawn)
    question.done(True, "too late")
    assert refused(scene, client, "tls", verdict="allow", action="failed") == "the client went away"


@asking
def test_an_approved_connection_stays_through_edits_unless_it_is_denied(scene):
    client, question = ask(scene)
    question.done(True, "approved once")
    server = scene.accept()
    scene.session.policy = policy(Rule("example.com"), ask=True)
    scene.connection.recheck()
    server.send(b"x")
    assert scene.received(client, 1) == b"x"
    scene.session.policy = policy(Rule("example.com"), deny=[Rule("new.example", (0,))], ask=True)
    scene.connection.recheck()
    assert scene.outcome(client)[0] == "reset"
    assert (scene.record()["action"], scene.record()["rule"]) == ("revoked", "p.toml:9")


@asking
def test_an_approved_private_address_is_still_refused(scene):
    client, question = ask(scene)
    scene.upstream.names["new.example"] = [PRIVATE]
    question.done(True, "approved once")
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()


# Budgets


@with_policy(Rule("example.com", max_requests=2))
def test_a_budget_of_connections(scene):
    for _ in range(2):
        scene.connect(content=hello())
        scene.accept()
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "allows 2 requests in all (max_requests)" in scene.record()["reason"]


@with_policy(Rule("example.com", max_bytes=2000))
def test_a_budget_of_bytes(scene):
    client = scene.connect(content=hello())
    server = scene.accept()
    server.send(bytes(1000))
    scene.received(client, 1000)
    server.send(bytes(1000))
    assert scene.outcome(client) == ("reset", b"")
    assert scene.outcome(server)[0] == "reset"
    record = scene.record()
    assert (record["verdict"], record["action"], record["bytes_down"]) == ("deny", "revoked", 1000)
    assert "allows 2000 bytes in all (max_bytes)" in record["reason"]
    scene.nothing_left()


def test_only_so_many_connections(scene):
    scene.session.budgets = Budgets(connections=2)
    for _ in range(2):
        scene.connect(content=hello())
        scene.accept()
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "2 are the most" in scene.record()["reason"]


def test_connections_far_beyond_the_limit_are_reset_at_once(scene, monkeypatch):
    monkeypatch.setattr(module, "_REFUSED_MOST", 1)
    scene.session.budgets = Budgets(connections=1)
    scene.connect(content=hello())
    waiting = scene.connect()
    client = scene.connect()
    assert scene.outcome(client) == ("reset", b"")
    assert len(scene.session.connections) == 2
    waiting.close()


# Edits


def relayed(scene, port=443, content=None):
    client = scene.connect(port=port, content=hello() if content is None else content)
    server = scene.accept()
    scene.received(server, len(hello()) if content is None else len(content))
    return client, server


def test_an_edit_that_still_allows_it_leaves_it_alone(scene):
    client, server = relayed(scene)
    scene.session.policy = policy(Rule("*.example.com"), Rule("example.com"))
    scene.connection.recheck()
    server.send(b"x")
    assert scene.received(client, 1) == b"x"
    client.close()
    server.close()
    assert scene.record()["rule"] == "p.toml:9"


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(policy(Rule("other.example")), id="removed"),
        pytest.param(policy(Rule("example.com", (80,))), id="port removed"),
        pytest.param(policy(Rule("example.com"), deny=[Rule("example.com", (0,))]), id="denied"),
        pytest.param(policy(Rule("example.com"), deny=[Rule("192.0.2.0/24", (0,))]), id="network denied"),
        pytest.param(policy(Rule("example.com", methods=("GET",))), id="inspected"),
    ],
)
def test_an_edit_that_no_longer_allows_it_resets_both_sides(scene, edited):
    client, server = relayed(scene)
    server.send(bytes(100))
    scene.session.policy = edited
    scene.connection.recheck()
    assert scene.session.connections == set()
    assert scene.outcome(client)[0] == "reset"
    assert scene.outcome(server)[0] == "reset"
    record = scene.record()
    assert (record["verdict"], record["action"]) == ("deny", "revoked")
    assert record["reason"]
    scene.nothing_left()


@with_policy(Rule("example.com", ech=True, addresses=("10.0.0.0/8",)))
@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(policy(Rule("example.com", addresses=("10.0.0.0/8",))), id="ech"),
        pytest.param(policy(Rule("example.com", ech=True)), id="addresses"),
    ],
)
def test_an_edit_that_takes_back_what_the_connection_needed(scene, edited):
    scene.upstream.names["example.com"] = [PRIVATE]
    content = hello(b"example.com", ech_outer())
    client, _ = relayed(scene, content=content)
    scene.session.policy = edited
    scene.connection.recheck()
    assert scene.outcome(client)[0] == "reset"
    assert scene.record()["action"] == "revoked"


def test_an_edit_that_takes_back_an_address_of_this_host(scene, monkeypatch):
    """It is public, and only a rule that names it leads there."""
    client, _ = relayed(scene)
    monkeypatch.setattr(module, "is_of_this_host", lambda address: address == PUBLIC)
    scene.session.policy = policy(Rule("example.com", addresses=("192.0.2.7/32",)))
    scene.connection.recheck()
    assert scene.session.connections
    scene.session.policy = policy(Rule("example.com"))
    scene.connection.recheck()
    assert scene.outcome(client)[0] == "reset"
    assert "an address of this host" in scene.record()["reason"]


def test_an_edit_may_bring_a_budget(scene):
    client, server = relayed(scene)
    scene.session.policy = policy(Rule("example.com", max_bytes=10))
    scene.connection.recheck()
    server.send(bytes(11))
    assert scene.outcome(client) == ("reset", b"")
    assert "10 bytes" in scene.record()["reason"]


def test_an_edit_while_the_first_bytes_are_awaited(scene):
    client = scene.connect()
    scene.session.policy = policy(Rule("other.example"))
    scene.connection.recheck()
    assert scene.outcome(client)[0] == "reset"
    assert scene.record()["action"] == "revoked"


def test_an_edit_while_the_server_is_dialled_decides_about_its_address_again(scene):
    import threading

    release = threading.Event()
    scene.upstream._look_up = lambda name: release.wait(PATIENCE) and [PUBLIC, OTHER_PUBLIC]
    scene.connect(content=hello())
    scene.until(lambda: scene.connection.state == "resolving")
    scene.session.policy = policy(Rule("example.com"), deny=[Rule("192.0.2.0/24", (0,))])
    scene.connection.recheck()
    release.set()
    scene.accept()
    assert scene.upstream.dialled == [([OTHER_PUBLIC], 443)]


def test_what_is_being_dialled_is_given_up_for_what_the_edit_leaves(scene):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        scene.upstream.ports[443] = silent.getsockname()[1]
        scene.upstream.names["example.com"] = [PUBLIC, OTHER_PUBLIC]
        scene.connect(content=hello())
        scene.until(lambda: scene.connection.state == "dialling")
        scene.upstream.ports[443] = scene.outside.getsockname()[1]
        scene.session.policy = policy(Rule("example.com"), deny=[Rule("192.0.2.0/24", (0,))])
        scene.connection.recheck()
        assert scene.received(scene.accept(), len(hello())) == hello()
        assert scene.upstream.dialled[-1] == ([OTHER_PUBLIC], 443)
        for filler in fillers:
            filler.close()


# Revoking, failing


@pytest.mark.parametrize("state", ["reading", "relaying", "refused"])
def test_revoking_in_any_state(scene, state):
    name = "denied.example" if state == "refused" else "example.com"
    client = scene.connect(name, content=b"" if state == "reading" else hello(name.encode()))
    scene.until(lambda: scene.connection.state == state)
    scene.connection.revoke("the sandbox has ended")
    scene.connection.revoke("the sandbox has ended")
    assert scene.session.connections == set()
    assert scene.outcome(client)[0] in ({"reset", "end of file"} if state == "refused" else {"reset"})
    record = scene.record()
    if state != "refused":
        assert (record["action"], record["reason"]) == ("revoked", "the sandbox has ended")
    scene.nothing_left()


def test_a_fault_cuts_only_its_own_connection(scene):
    other, other_server = relayed(scene)
    broken = scene.connect(content=hello()[:10])
    scene.until(lambda: scene.connection._first.content)

    def fails(some):
        raise RuntimeError("on purpose")

    class Failing:
        protocol = ""
        content = b""
        feed = staticmethod(fails)

    scene.connection._first = Failing()
    broken.send(hello()[10:])
    assert scene.outcome(broken)[0] == "reset"
    assert scene.record()["action"] == "failed"
    assert [str(error) for error in scene.gateway.faults] == ["on purpose"]
    other_server.send(b"x")
    assert scene.received(other, 1) == b"x"


def test_an_end_of_both_sides_by_a_reset_of_the_server_is_recorded(scene):
    client, server = relayed(scene)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    assert scene.outcome(client)[0] == "reset"
    record = scene.record()
    assert (record["verdict"], record["action"], record["reason"]) == ("allow", "spliced", "reset by the server")


def test_a_name_is_held_in_the_table_for_as_long_as_it_is_connected_to(scene):
    client, server = relayed(scene)
    assert [*scene.session.table._held] == ["example.com"]
    client.close()
    server.close()
    scene.record()
    assert scene.session.table._held == {}


# Inspection


@pytest.fixture
def inspection(monkeypatch):
    """The other half, which is tested by itself."""
    import sys

    fake = SimpleNamespace(InspectedConnection=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "osmoda.egress.inspection", fake)


def inspected(scene, port=443, content=None):
    scene.upstream.names["inspected.example"] = [PRIVATE, PUBLIC]
    content = hello(b"inspected.example") if content is None else content
    client = scene.connect("inspected.example", port, content)
    scene.until(lambda: scene.gateway.flows or scene.session.records)
    return client


def test_an_inspected_connection_is_handed_over(scene, inspection):
    client = inspected(scene)
    ((fd, peeked, flow),) = scene.gateway.flows
    assert peeked == hello(b"inspected.example")
    assert (flow.session, flow.name, flow.port, flow.tls) == ("7-1", "inspected.example", 443, True)
    assert flow.addresses == ("192.0.2.7",)
    assert [grant.methods for grant in flow.grants] == [("GET",)]
    assert flow.secrets == (("KEY", "placeholder", "value"),)
    assert (flow.authority, flow.upstream_authorities) == ("an authority", "/etc/authorities.pem")
    with socket.socket(fileno=fd) as adopted:
        client.send(b"more")
        scene.until(lambda: True)
        assert adopted.recv(10) == b"more"
    flow.on_record({"event": "request", "method": "GET"})
    assert scene.session.records.pop() == {"event": "request", "method": "GET"}
    flow.on_closed(flow.id, 5, 7)
    record = scene.record()
    assert (record["verdict"], record["action"], record["bytes_up"], record["bytes_down"]) == (
        "allow",
        "inspected",
        5,
        7,
    )
    scene.nothing_left()


def test_an_inspected_connection_on_any_port_waits_for_the_first_bytes(scene, inspection):
    content = b"GET / HTTP/1.1\r\nHost: inspected.example:8080\r\n\r\n"
    inspected(scene, 8080, content)
    ((fd, peeked, flow),) = scene.gateway.flows
    os.close(fd)
    assert (peeked, flow.tls) == (content, False)
    assert scene.upstream.dialled == []
    flow.on_closed(flow.id, 0, 0)


def test_what_cannot_be_inspected_is_refused(scene, inspection):
    client = inspected(scene, 8080, b"SSH-2.0-client\r\n")
    assert scene.outcome(client)[0] == "reset"
    assert "neither TLS nor HTTP" in scene.record()["reason"]


def test_a_sandbox_that_trusts_no_authority_is_not_inspected(scene, inspection):
    scene.session.authority = None
    client = inspected(scene)
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "started anew" in scene.record()["reason"]


def test_edits_reach_an_inspected_connection(scene, inspection):
    inspected(scene)
    scene.session.policy = policy(Rule("inspected.example", methods=("PUT",)))
    scene.connection.recheck()
    fd, _, flow, grants = scene.gateway.flows[0]
    os.close(fd)
    assert [grant.methods for grant in grants] == [("PUT",)]
    scene.session.policy = policy(Rule("example.com"))
    scene.connection.recheck()
    assert scene.gateway.flows[0][-1] == "revoked"
    assert scene.record()["action"] == "revoked"
    flow.on_closed(flow.id, 1, 1)
    assert len(scene.session.records) == 1
    scene.nothing_left()


def test_an_edit_that_denies_an_address_ends_what_is_inspected_on_its_way_there(scene, inspection):
    inspected(scene)
    os.close(scene.gateway.flows[0][0])
    scene.session.policy = policy(Rule("inspected.example", methods=("GET",)), deny=[Rule("192.0.2.0/24", (0,))])
    scene.connection.recheck()
    assert scene.gateway.flows[0][-1] == "revoked"
    record = scene.record()
    assert record["action"] == "revoked"
    assert "192.0.2.7" in record["reason"]


def test_limits_of_time():
    """What the bench and the documentation say."""
    assert (client_module.FIRST_BYTES, module.IDLE, farewell_module.DRAIN, upstream_module.PATIENCE) == (
        10,
        3600,
        2,
        10,
    )
