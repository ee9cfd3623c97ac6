"""The network inside, in a namespace of the test's own: what is redirected, what is answered at once, what passes."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from osmoda.egress.registration import GATE_PORT, SOCKETS
from osmoda.sandbox import names_only
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.names_only import Encoding
from osmoda.sandbox.operations import Setup, networking
from tests.worlds import World

SO_ORIGINAL_DST = 80


def encoded(*networks, localhost=(), serve=(), loopback=False, ipv6=True):
    with Encoding("agent.toml:4", networks, localhost, serve, loopback=loopback, ipv6=ipv6) as encoding:
        return encoding.operation()


# What runs in a fresh process, in a user and network namespace of its own.


def enter(operation):
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    setup = Setup(b"", b"", 0, 0, False)
    operation.apply(setup)
    return [socket.socket(fileno=fd) if kind in SOCKETS else fd for kind, fd in zip(kinds(setup), setup.sockets)]  # noqa: B905


def kinds(setup):
    families = len(setup.sockets) // 3
    return [*SOCKETS[: families * 3], "user", "net"][: len(setup.sockets)]


def tried(family, kind, address, port, seconds=5):
    """The errno of a connect, or of a datagram's answer; 0 when it went through."""
    with socket.socket(family, kind) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
                client.send(b"x")
            return 0
        except OSError as error:
            return error.errno or -1


def original_destinations(operation, destinations):
    """Where connections to `destinations` said that they wanted to go."""
    gate, _, _, gate6, *_ = enter(operation)
    found = []
    for family, address, port in destinations:
        listener = gate if family == socket.AF_INET else gate6
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect((address, port))
            accepted, _ = listener.accept()
            with accepted:
                if family == socket.AF_INET:
                    raw = accepted.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
                    found.append((socket.inet_ntop(family, raw[4:8]), struct.unpack("!H", raw[2:4])[0]))
                else:
                    raw = accepted.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
                    found.append((socket.inet_ntop(family, raw[8:24]), struct.unpack("!H", raw[2:4])[0]))
                client.sendall(b"over")
                assert accepted.recv(4) == b"over"
                accepted.sendall(b"back")
                assert client.recv(4) == b"back"
    return found


def refusals(operation, attempts):
    held = enter(operation)
    result = [tried(*attempt) for attempt in attempts]
    del held
    return result


def queries(operation):
    _, udp, tcp, _, udp6, tcp6 = enter(operation)
    answered = []
    for family, address, datagram, stream in (
        (socket.AF_INET, "198.18.0.1", udp, tcp),
        (socket.AF_INET6, "2001:2::1", udp6, tcp6),
    ):
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(b"question", (address, 53))
            question, who = datagram.recvfrom(100)
            datagram.sendto(b"answer to " + question, who)
            answered.append(client.recv(100))
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect((address, 53))
            accepted, _ = stream.accept()
            with accepted:
                accepted.sendall(b"hello")
                answered.append(client.recv(100))
    return answered


def served(operation, port):
    """A program inside listens on `port` of both loopback addresses; who reaches it."""
    held = enter(operation)
    reached = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, port))
            listener.listen()
            reached.append(tried(family, socket.SOCK_STREAM, address, port))
    del held
    return reached


def the_namespaces(operation):
    held = enter(operation)
    own = [os.stat(f"/proc/self/ns/{name}").st_ino for name in ("user", "net")]
    return [os.fstat(fd).st_ino for fd in held[-2:]] == own


def tracked_after(operation, count):
    gate, *_ = enter(operation)
    for _ in range(count):
        with socket.create_connection(("198.18.1.1", 443)):
            accepted, _ = gate.accept()
            accepted.close()
    with open("/proc/sys/net/netfilter/nf_conntrack_count") as file:
        return int(file.read())


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6 = socket.AF_INET, socket.AF_INET6


def test_every_port_of_every_name_leads_to_the_gate_which_sees_where_it_was_meant_for(world: World):
    wanted = [(V4, "198.18.1.0", 443), (V4, "198.19.255.255", 65535), (V6, "2001:2:0:1::7", 22)]
    assert world.call(original_destinations, encoded(), wanted) == [(address, port) for _, address, port in wanted]


def test_networks_of_rules_lead_to_the_gate_and_their_neighbours_nowhere(world: World):
    operation = encoded("10.1.0.0/16", "2001:db8:5::/48")
    wanted = [(V4, "10.1.2.3", 5432), (V6, "2001:db8:5::1", 80)]
    assert world.call(original_destinations, operation, wanted) == [(address, port) for _, address, port in wanted]
    neighbours = [(V4, STREAM, "10.2.0.1", 5432), (V6, STREAM, "2001:db8:6::1", 80)]
    assert world.call(refusals, operation, neighbours) == [errno.ENETUNREACH] * 2


def test_every_network_may_be_a_rules(world: World):
    operation = encoded("0.0.0.0/0", "::/0")
    wanted = [(V4, "192.0.2.1", 80), (V6, "2001:db8::1", 80)]
    assert world.call(original_destinations, operation, wanted) == [(address, port) for _, address, port in wanted]


def test_declared_ports_of_localhost_lead_to_the_gate(world: World):
    wanted = [(V4, "127.0.0.1", 8081), (V6, "::1", 8081)]
    found = world.call(original_destinations, encoded(localhost=(8081,)), wanted)
    assert found == [(address, port) for _, address, port in wanted]


def test_other_addresses_have_no_route(world: World):
    attempts = [(V4, STREAM, "192.0.2.1", 443), (V4, DATAGRAM, "8.8.8.8", 53), (V6, STREAM, "2001:db8::1", 443)]
    assert world.call(refusals, encoded(), attempts) == [errno.ENETUNREACH] * 3


def test_what_is_not_tcp_is_refused_at_once(world: World):
    attempts = [
        (V4, DATAGRAM, "198.18.1.0", 443),
        (V4, DATAGRAM, "198.18.1.0", 53),
        (V4, DATAGRAM, "198.18.0.1", 123),
        (V6, DATAGRAM, "2001:2:0:1::1", 443),
    ]
    # A packet that the output hook drops is an error of the call itself.
    assert world.call(refusals, encoded(), attempts) == [errno.EPERM] * 4


def test_without_loopback_only_the_way_out_is_there(world: World):
    assert world.call(served, encoded(), 8000) == [errno.ECONNREFUSED] * 2


def test_with_loopback_programs_inside_reach_each_other(world: World):
    assert world.call(served, encoded(loopback=True), 8000) == [0, 0]
    assert world.call(served, encoded("0.0.0.0/0", "::/0", loopback=True), 8000) == [0, 0]


def test_a_served_port_is_reached_without_loopback_and_its_neighbour_is_not(world: World):
    operation = encoded(serve=(8000,))
    assert world.call(served, operation, 8000) == [0, 0]
    assert world.call(served, operation, 8001) == [errno.ECONNREFUSED] * 2
    assert world.call(the_namespaces, operation)


def test_questions_reach_the_resolver(world: World):
    assert world.call(queries, encoded()) == [b"answer to question", b"hello"] * 2


def test_without_ipv6_there_is_none(world: World):
    operation = encoded(ipv6=False)
    assert world.call(refusals, operation, [(V6, STREAM, "2001:2:0:1::1", 443)]) == [errno.ENETUNREACH]
    assert len(operation.rules) < len(encoded().rules)


def test_the_last_change_asks_for_an_answer(world: World):
    operation = encoded()
    begin, *changes, end = operation.rules
    for messages in (operation.links, changes):
        assert [bool(message[6] & 4) for message in messages] == [False] * (len(messages) - 1) + [True]
    assert begin[4] == 16
    assert end[4] == 17


def test_a_ruleset_that_the_kernel_refuses_is_an_error_that_names_the_line(monkeypatch):
    broken = {"nftables": [{"add": {"chain": {"family": "inet", "table": "missing", "name": "out"}}}]}
    monkeypatch.setattr(names_only, "ruleset", lambda *_, **__: broken)
    with pytest.raises(CompileError, match=r"agent\.toml:4: this host cannot enforce a network of names \(nftables"):
        encoded()


def broken(operation, kind):
    """Which error comes of one message in the middle that the kernel refuses."""
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    networking._bring_up()
    messages = list(getattr(operation, kind))
    # A route or rule to what is not there: an interface, or a chain of another name.
    messages[2] = messages[2].replace(
        *([b"redirect", b"nowhere!"] if kind == "rules" else [b"\x01\0\0\0", b"\x63\0\0\0"])
    )
    try:
        networking._converse(12 if kind == "rules" else 0, tuple(messages), kind)
    except OSError as error:
        return error.errno, error.strerror
    return 0, ""


@pytest.mark.parametrize("kind", ["links", "rules"])
def test_an_error_in_the_middle_is_an_error(world: World, kind: str):
    number, text = world.call(broken, encoded(), kind)
    assert number
    assert text.startswith(f"{kind}: ")


def test_it_says_what_it_does():
    operation = encoded("10.1.0.0/16", localhost=(8081,), serve=(9000,))
    text = operation.describe()
    assert "10.1.0.0/16" in text
    assert "localhost:8081" in text
    assert "9000" in text
    assert "lo is for the way out only" in text
    assert GATE_PORT < 1024
