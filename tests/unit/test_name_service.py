from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import dns.message
import pytest

from osmoda.egress import name_service, resolver
from osmoda.egress.loop import Loop
from osmoda.egress.name_service import DEADLINE, MOST_STREAMS, QUERIES_PER_SECOND, NameService
from osmoda.egress.name_table import NameTable
from osmoda.egress.resolver import Found, Refused

PATIENCE = 30.0


class Serving:
    """A service on the loopback address, its loop in a thread."""

    def __init__(self, family=socket.AF_INET, *, lookup=None, warm=True, start=True):
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.family = family
        self.udp = socket.socket(family, socket.SOCK_DGRAM)
        self.udp.bind((host, 0))
        self.tcp = socket.socket(family)
        self.tcp.bind((host, 0))
        self.tcp.listen(64)
        self.udp_address, self.tcp_address = self.udp.getsockname(), self.tcp.getsockname()
        self.table = NameTable()
        self.loop = Loop()
        self.faults = []
        self.loop.on_error = self._fault
        self.told = []
        self.service = NameService(
            self.loop,
            [self.udp.detach()],
            [self.tcp.detach()],
            lookup or self.look_up,
            reverse=self.table.name_of,
            refused=lambda *what: self.told.append(what),
        )
        if warm:
            self.service.prewarm()
        self.thread = threading.Thread(target=self.loop.run)
        if start:
            self.thread.start()

    def look_up(self, name):
        if not name.endswith("allowed.example"):
            return Refused("NXDOMAIN", 15, f"{name} is not listed")
        index = self.table.bind(name)
        return Found(self.table.ipv4(index), self.table.ipv6(index), 60)

    def _fault(self, callback, error):
        self.faults.append(error)
        getattr(getattr(callback, "__self__", None), "fault", lambda: None)()

    def datagrams(self):
        client = socket.socket(self.family, socket.SOCK_DGRAM)
        client.settimeout(PATIENCE)
        client.connect(self.udp_address)
        return client

    def stream(self):
        client = socket.create_connection(self.tcp_address[:2], PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def in_loop(self, function):
        """What `function` returns in the loop's thread."""
        done, answers = threading.Event(), []

        def call():
            answers.append(function())
            done.set()

        self.loop.call_from_thread(call)
        assert done.wait(PATIENCE)
        return answers[0]

    def close(self):
        if self.thread.is_alive():
            self.in_loop(self.service.close)
            self.loop.stop()
            self.thread.join(PATIENCE)
        else:
            self.service.close()
        self.loop.shut()


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options):
            serving = Serving(*arguments, **options)
            stack.callback(serving.close)
            return serving

        yield make


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def serving(request, serve):
    return serve(request.param)


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


def query(name="api.allowed.example", kind="A", number=None):
    return dns.message.make_query(name, kind, use_edns=0, id=number)


def framed(*queries):
    return b"".join(len(wire).to_bytes(2, "big") + wire for wire in (asked.to_wire() for asked in queries))


def receive(client):
    """One message from a stream; None at its end."""
    with client.makefile("rb", buffering=0) as file:
        length = file.read(2)
        if not length:
            return None
        wire = b""
        while len(wire) < int.from_bytes(length, "big"):
            wire += file.read(int.from_bytes(length, "big") - len(wire))
    return dns.message.from_wire(wire)


def addresses(message):
    return [record.to_text() for records in message.answer for record in records]


# UDP


def test_a_datagram_is_answered(serving):
    with serving.datagrams() as client:
        for kind, expected in (("A", "198.18.1.0"), ("AAAA", "2001:2:0:1::")):
            asked = query(kind=kind)
            client.send(asked.to_wire())
            message = dns.message.from_wire(client.recv(4096))
            assert asked.is_response(message)
            assert addresses(message) == [expected]
        client.send(query("0.1.18.198.in-addr.arpa", "PTR").to_wire())
        assert addresses(dns.message.from_wire(client.recv(4096))) == ["api.allowed.example."]
        client.send(query("denied.example").to_wire())
        message = dns.message.from_wire(client.recv(4096))
        assert message.options[0].text == "denied.example is not listed"
        client.send(query(kind="TXT").to_wire())
        client.recv(4096)
    assert [name for name, _ in serving.told] == ["api.allowed.example"]
    assert (serving.service.queries, serving.service.dropped()) == (5, 0)


@pytest.mark.parametrize("nothing", [b"", b"short", b"\0\0\x80\0" + bytes(8), bytes(4097), bytes(9000)])
def test_what_deserves_no_answer_gets_none_and_disturbs_nobody(serving, nothing):
    with serving.datagrams() as client:
        client.send(nothing)
        asked = query()
        client.send(asked.to_wire())
        assert asked.is_response(dns.message.from_wire(client.recv(4096)))
    assert serving.service.dropped() == 1


def test_more_queries_than_may_be_are_dropped_and_counted(serve, monkeypatch):
    a_second = 500  # all that are sent would take 40 seconds
    monkeypatch.setattr(name_service, "QUERIES_PER_SECOND", a_second)
    serving = serve(start=False)
    sent = 40 * a_second
    wire = query().to_wire()
    started = time.monotonic()
    serving.thread.start()
    with serving.datagrams() as client:
        for _ in range(sent):
            client.send(wire)
        until(lambda: serving.service.queries + serving.service.dropped() == sent)
        seconds = time.monotonic() - started
        assert serving.service.queries <= a_second * (1 + seconds)
        assert serving.service.dropped() > 0
        with contextlib.suppress(BlockingIOError):
            client.setblocking(False)
            while True:
                client.recv(4096)
        client.settimeout(PATIENCE)
        asked = query(kind="AAAA")
        until(lambda: serving.in_loop(lambda: serving.service.afford(0)))
        client.send(asked.to_wire())
        assert asked.is_response(dns.message.from_wire(client.recv(4096)))


def test_a_long_query_counts_for_many(serve):
    serving = serve(start=False)
    assert [serving.service.afford(size) for size in (0, 63, 64, 271, 4096)] == [1, 1, 2, 5, 65]
    affordable = 0
    while serving.service.afford(4096):
        affordable += 1
    assert affordable == (QUERIES_PER_SECOND - 74) // 65


# TCP


def test_a_stream_carries_many_messages(serving):
    with serving.stream() as client:
        asked = [query(kind=kind) for kind in ("A", "AAAA", "HTTPS", "A")]
        client.sendall(framed(*asked))
        client.sendall(framed(query("denied.example")))
        client.shutdown(socket.SHUT_WR)
        for one in asked:
            assert one.is_response(receive(client))
        assert receive(client).options[0].text == "denied.example is not listed"
        assert receive(client) is None


def test_a_message_may_come_byte_by_byte(serving):
    with serving.stream() as client:
        asked = query()
        for byte in framed(asked):
            client.sendall(bytes([byte]))
        assert asked.is_response(receive(client))


@pytest.mark.parametrize("start", [b"\x10\x01", b"\xff\xff", b"\0\0", b"\0\x05short", b"\0\x0c\0\0\x80\0" + bytes(8)])
def test_a_stream_of_something_else_is_closed(serving, start):
    with serving.stream() as client:
        client.sendall(start)
        assert receive(client) is None


def test_many_messages_at_once_are_all_answered_in_their_order_and_time(serve):
    serving = serve()
    many = QUERIES_PER_SECOND + 400
    asked = framed(*[query(number=number) for number in range(many)])
    started = time.monotonic()
    with serving.stream() as client:
        sender = threading.Thread(target=client.sendall, args=(asked,))
        sender.start()
        assert [receive(client).id for _ in range(many)] == [*range(many)]
        sender.join()
    assert time.monotonic() - started >= 400 / QUERIES_PER_SECOND - 0.1


def test_a_connection_too_many_waits_for_its_turn(serve, monkeypatch):
    monkeypatch.setattr(name_service, "DEADLINE", 60.0)
    serving = serve()
    asked = query()
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(serving.stream()) for _ in range(MOST_STREAMS)]
        for client in first:
            client.sendall(framed(asked))
            assert asked.is_response(receive(client))
        late = stack.enter_context(serving.stream())
        late.sendall(framed(asked))
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(1)
        late.settimeout(PATIENCE)
        first[3].close()
        assert asked.is_response(receive(late))


def test_a_connection_that_asks_nothing_is_closed_at_its_deadline(serve, monkeypatch):
    for deadline in (1.0, 10.0):
        monkeypatch.setattr(name_service, "DEADLINE", deadline)
        if asks_in_time(serve(), deadline):
            break
    else:
        pytest.fail("this process stands still for seconds again and again")
    assert DEADLINE == 5.0


def asks_in_time(serving, deadline):
    """Three connections, of which one asks again and again; false where it came to that too late itself."""
    with serving.stream() as idle, serving.stream() as slow, serving.stream() as busy:
        slow.sendall(framed(query())[:10])
        moments = [time.monotonic()]
        answers, ended = [], []

        def ask():
            asked = query()
            moments.append(time.monotonic())
            with contextlib.suppress(ConnectionError):
                busy.sendall(framed(asked))
            answer = receive(busy)
            moments.append(time.monotonic())
            answers.append(answer is not None and asked.is_response(answer))

        for _ in range(5):
            time.sleep(deadline / 4)
            ask()
        ended += [idle.recv(1), slow.recv(1)]
        ask()
        if max(later - earlier for earlier, later in itertools.pairwise(moments)) > deadline / 2:
            return False
        assert ended == [b"", b""]
        assert answers == [True] * 6
        return True


def test_a_client_that_reads_nothing_is_no_burden(serve, monkeypatch):
    """It is read no further than what it lets be sent, and goes at its deadline."""
    monkeypatch.setattr(name_service, "DEADLINE", 1.0)
    monkeypatch.setattr(name_service, "QUERIES_PER_SECOND", 1000000)
    serving = serve(lookup=lambda name: Refused("NXDOMAIN", 15, "x" * 500))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(serving.tcp_address)
        asked = framed(*[query()] * 100)

        def ask_on():
            while True:
                client.sendall(asked)

        with pytest.raises(ConnectionError):
            ask_on()
    assert serving.service.queries < 50000
    with serving.stream() as other:
        one = query()
        other.sendall(framed(one))
        assert one.is_response(receive(other))


def test_a_connection_that_waited_for_descriptors_is_answered(serve):
    serving = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = query()
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        serving.in_loop(lambda: None)
        spare = os.dup(client.fileno())
        os.close(spare)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))  # the next descriptor is one too many
            client.connect(serving.tcp_address)
            client.sendall(framed(asked))
            until(lambda: serving.in_loop(lambda: serving.service._shortage is not None))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert asked.is_response(receive(client))


# Faults, and its end


def test_a_mistake_of_ours_costs_one_query(serve):
    answers = [KeyError("a mistake"), KeyError("another"), Refused("NXDOMAIN", 15, "")]

    def lookup(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    serving = serve(lookup=lookup)
    with serving.stream() as client:
        client.sendall(framed(query()))
        assert receive(client) is None
    with serving.datagrams() as client:
        client.send(query().to_wire())
        asked = query("other.example")
        client.send(asked.to_wire())
        assert asked.is_response(dns.message.from_wire(client.recv(4096)))
    assert [type(fault) for fault in serving.faults] == [KeyError, KeyError]


def test_closing_ends_everything(serve):
    serving = serve()
    with serving.stream() as client, serving.datagrams() as datagrams:
        asked = query()
        client.sendall(framed(asked))
        assert asked.is_response(receive(client))
        serving.in_loop(serving.service.close)
        assert client.recv(1) == b""
        serving.in_loop(serving.service.close)
        serving.in_loop(serving.service.prewarm)
        with pytest.raises(ConnectionRefusedError):
            serving.stream()
        datagrams.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            datagrams.recv(1)
    assert serving.service.dropped() == 0


def test_sockets_that_somebody_else_still_has_are_let_alone(serve):
    """The events of a shared socket do not end with the descriptor: they would keep the loop awake for ever."""
    serving = serve()
    kept = socket.socket(fileno=os.dup(serving.service._listeners[0].fileno()))
    with kept, serving.stream():
        serving.in_loop(serving.service.close)
        with socket.create_connection(serving.tcp_address, PATIENCE):
            before = serving.in_loop(time.thread_time)
            time.sleep(0.2)
            assert serving.in_loop(time.thread_time) - before < 0.05


# Getting ready

COLD = """
import socket, sys
from osmoda.egress.loop import Loop
before = set(sys.modules)
from osmoda.egress.name_service import NameService
sockets = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
sockets[1].listen()
udp, tcp = (one.getsockname() for one in sockets)
loop = Loop()
def lookup(name):
    from osmoda.egress.resolver import Refused
    return Refused("NXDOMAIN", 15, name)
service = NameService(loop, [sockets[0].detach()], [sockets[1].detach()], lookup)
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - {"osmoda"})
if sys.argv[1] == "prewarm":
    service.prewarm()
# Asked before anybody can answer.
wire = bytes.fromhex("00070100000100000000000004") + b"name\\7example\\0\\0\\1\\0\\1"
clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
for client in clients:
    client.connect(udp)
    client.settimeout(10)
    client.send(wire)
stream = socket.create_connection(tcp, 10)
stream.sendall(len(wire).to_bytes(2, "big") + wire)
assert "dns" not in sys.modules or sys.argv[1] == "prewarm"
import threading
thread = threading.Thread(target=loop.run)
thread.start()
for client in clients:
    assert client.recv(512)[:4] == b"\\0\\7\\x81\\x83"
assert stream.recv(6)[2:] == b"\\0\\7\\x81\\x83"
loop.call_from_thread(lambda: (service.close(), loop.stop()))
thread.join()
"""


@pytest.mark.parametrize("start", ["prewarm", "first query"])
def test_queries_wait_until_the_library_is_there(start):
    command = [sys.executable, "-c", COLD, start]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == []  # what loads the service loads no library


def test_where_the_library_cannot_be_had_it_is_tried_again(serve, monkeypatch):
    monkeypatch.setattr(name_service, "_RETRY", 0.05)
    monkeypatch.setattr(name_service, "_answer", None)
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "osmoda.egress.resolver", None)
        broken.delattr("osmoda.egress.resolver")
        serving = serve()
        with serving.datagrams() as client:
            client.send(query().to_wire())
            until(lambda: len(serving.faults) >= 2)
            assert all(isinstance(fault, ImportError) for fault in serving.faults)
            broken.undo()
            assert addresses(dns.message.from_wire(client.recv(4096))) == ["198.18.1.0"]


def test_one_import_is_enough_for_many(serve, monkeypatch):
    monkeypatch.setattr(name_service, "_answer", None)
    many = [serve() for _ in range(5)]
    for serving in many:
        with serving.datagrams() as client:
            asked = query()
            client.send(asked.to_wire())
            assert asked.is_response(dns.message.from_wire(client.recv(4096)))
    assert name_service._importing == []


def test_closing_while_the_library_is_on_its_way(serve, monkeypatch):
    monkeypatch.setattr(name_service, "_answer", None)
    serving = serve(start=False)
    serving.service.close()
    until(lambda: name_service._importing == [])
    serving.thread.start()
    assert serving.in_loop(lambda: serving.faults) == []


def test_no_thread_to_be_had(serve, monkeypatch):
    def none(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(name_service, "_answer", None)
    monkeypatch.setattr(name_service, "start_new_thread", none)
    serving = serve()
    with serving.datagrams() as client:
        client.send(query().to_wire())
        assert addresses(dns.message.from_wire(client.recv(4096))) == ["198.18.1.0"]


def test_both_halves_read_queries_of_the_same_length():
    assert name_service.MOST_QUERY == resolver.MOST_QUERY
