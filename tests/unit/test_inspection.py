"""Connections that are looked into, from the handover to the record: what is let through, and how they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from osmoda.egress.inspection import Inspector
from tests.inspected import (
    NAME,
    PATIENCE,
    answer_of,
    ask,
    body_of,
    echo,
    exactly,
    get,
    grant,
    head_of,
    nothing_delivered,
    post,
    reset,
    scenes,
)


@pytest.fixture
def scene(tmp_path):
    yield from scenes(tmp_path)


# Let through


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_requests_pass_one_after_another_and_each_leaves_a_record(scene, tls):
    server = scene.server(echo, tls=tls)
    client = scene.connect(server, tls=tls)
    for index in range(3):
        request = get(server.port, f"/items/{index}?secret=1", "Accept: */*")
        assert ask(client, request) == (200, request)
        assert scene.record() == {
            "event": "request",
            "name": NAME,
            "port": server.port,
            "protocol": "tls" if tls else "http",
            "method": "GET",
            "path": f"/items/{index}",
            "status": 200,
            "verdict": "allow",
            "action": "inspected",
            "reason": "",
            "rule": "p.toml:8",
        }
    assert server.accepted == 1
    client.close()
    flow, up, down = scene.closed.get(timeout=PATIENCE)
    assert flow == 7
    assert up > 3 * 60
    assert down > 3 * 60
    assert scene.closed.empty()


def test_bytes_that_were_read_before_the_handover_count(scene):
    server = scene.server(echo, tls=False)
    request = get(server.port)
    client = scene.connect(server, tls=False, peeked=request[:20])
    assert ask(client, request[20:]) == (200, request)
    client.close()
    assert scene.closed.get(timeout=PATIENCE)[1] == len(request)


def test_without_a_server_name_the_bound_name_is_shown_and_asked_for(scene):
    server = scene.server(echo)
    client = scene.connect(server, sni=None)
    assert ("DNS", NAME) in client.getpeercert()["subjectAltName"]
    assert ask(client, get(server.port))[0] == 200


def test_another_server_name_gets_no_handshake(scene):
    server = scene.server(echo)
    with pytest.raises(OSError, match=r"EOF|reset"):
        scene.connect(server, sni="other.example")
    nothing_delivered(scene, server)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_bodies_pass_both_ways(scene, size):
    body = os.urandom(size)
    server = scene.server(echo)
    client = scene.connect(server)
    client.sendall(post(server.port, body))
    status, answer = answer_of(client)
    assert (status, answer[-size:] if size else b"") == (200, body)
    assert server.seen.get(timeout=PATIENCE)[1] == body


def test_a_chunked_body_passes(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    head = get(server.port, "/", "Transfer-Encoding: chunked", method="POST")
    assert ask(client, head + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")[0] == 200
    assert server.seen.get(timeout=PATIENCE)[1] == b"hello world"


def test_a_request_may_expect_to_be_told_to_go_on(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    client.sendall(get(server.port, "/", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    assert head_of(client).startswith(b"HTTP/1.1 100")
    client.sendall(b"hello")
    assert answer_of(client)[0] == 200
    head, body = server.seen.get(timeout=PATIENCE)
    assert body == b"hello"
    assert b"expect" not in head.lower()


def test_events_come_as_the_server_sends_them(scene):
    told = threading.Event()

    def stream(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"9\r\ndata: 1\n\n\r\n")
        assert told.wait(PATIENCE)
        client.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    server = scene.server(stream)
    client = scene.connect(server)
    client.sendall(get(server.port))
    head_of(client)
    assert exactly(client, 14) == b"9\r\ndata: 1\n\n\r\n"
    assert scene.record()["status"] == 200
    told.set()
    assert exactly(client, 19) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"


def test_an_answer_may_last_until_the_connection_ends(scene):
    def until_the_end(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    server = scene.server(until_the_end)
    client = scene.connect(server)
    client.sendall(get(server.port))
    head_of(client)
    assert exactly(client, 100) == b"all of it"


def test_a_large_body_takes_no_memory(scene):
    size = 200 << 20

    def pour(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            client.sendall(block)

    server = scene.server(pour, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    head_of(client)
    before = resident()
    time.sleep(0)
    received = memoryview(bytearray(1 << 16))
    rest = size
    grown = 0
    while rest:
        taken = client.recv_into(received)
        assert taken
        rest -= taken
        if rest % (16 << 20) < taken:
            grown = max(grown, resident() - before)
    assert grown < 32 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# The server


def test_only_the_addresses_given_are_dialled_one_after_another(scene):
    server = scene.server(echo)
    client = scene.connect(server, addresses=("127.0.0.9", "127.0.0.1"))
    assert ask(client, get(server.port))[0] == 200


def test_a_server_that_is_not_there(scene):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    status, text = ask(scene.connect(port), get(port))
    assert status == 502
    assert b"Connect call failed" in text or b"Connection refused" in text
    record = scene.record()
    assert (record["verdict"], record["action"]) == ("allow", "failed")


@pytest.mark.parametrize("wrong", ["name", "authority"])
@pytest.mark.parametrize("content", [b"", b"the body"])
def test_a_server_with_another_certificate_gets_no_request(scene, wrong, content, tmp_path):
    server = scene.server(echo, name="other.example" if wrong == "name" else NAME)
    untrusted = tmp_path / "untrusted.pem"
    untrusted.write_bytes(scene.authority.pem)
    client = scene.connect(server, authorities=None if wrong == "name" else str(untrusted))
    status, text = ask(client, post(server.port, content))
    assert status == 502
    assert b"ertificate verify failed" in text
    assert server.seen.empty()
    record = scene.record()
    assert (record["verdict"], record["action"], record["status"]) == ("allow", "failed", 502)


def test_a_server_that_does_not_finish_its_handshake(scene, monkeypatch):
    from osmoda.egress.inspection import adopted

    monkeypatch.setattr(adopted, "HANDSHAKE", 0.1)
    server = scene.server(lambda client, server: exactly(client, 1 << 30), tls=False)
    status, text = ask(scene.connect(server), get(server.port))
    assert (status, b"handshake in time" in text) == (504, True)


def test_a_server_that_has_no_name_but_an_address(scene):
    server = scene.server(echo, name="127.0.0.1")
    client = scene.connect(server, name="127.0.0.1", sni=None)
    assert ask(client, get(server.port, host=f"127.0.0.1:{server.port}"))[0] == 200
    other = scene.server(echo)
    client = scene.connect(other, name="127.0.0.1", sni=None)
    assert ask(client, get(other.port, host="127.0.0.1"))[0] == 502


def test_a_server_that_goes_without_an_answer(scene):
    server = scene.server(lambda client, server: head_of(client))
    status, text = ask(scene.connect(server), get(server.port))
    assert status == 502
    assert b"closed" in text


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_a_server_whose_answer_cannot_be_relied_on(scene, answer):
    def answering(client, server):
        head_of(client)
        client.sendall(answer)
        client.recv(1)

    server = scene.server(answering)
    status, _ = ask(scene.connect(server), get(server.port))
    assert status == 502


def test_answers_that_only_announce_another_are_left_out(scene):
    def answering(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 10")
        client.sendall(b"2 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        echo(client, server)

    server = scene.server(answering)
    client = scene.connect(server)
    assert ask(client, get(server.port)) == (200, b"ok")
    assert ask(client, get(server.port))[0] == 200
    assert server.accepted == 1


def test_trailers_of_http_1_are_left_out(scene):
    def answering(client, server):
        head = head_of(client)
        server.seen.put(body_of(client, head))
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSum: 1\r\n\r\n")

    server = scene.server(answering)
    client = scene.connect(server)
    head = get(server.port, "/", "Transfer-Encoding: chunked", method="POST")
    assert ask(client, head + b"5\r\nhello\r\n0\r\nSum: 1\r\n\r\n") == (200, b"ok")
    assert server.seen.get(timeout=PATIENCE) == b"hello"


def test_a_server_that_is_reset_under_an_answer_ends_it(scene):
    def half(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    server = scene.server(half)
    client = scene.connect(server)
    client.sendall(get(server.port))
    head_of(client)
    assert exactly(client, 10) == b"half"


def test_a_redirect_is_the_clients_to_follow(scene):
    def redirect(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://denied.example/\r\nContent-Length: 0\r\n\r\n")

    server = scene.server(redirect)
    assert ask(scene.connect(server), get(server.port))[0] == 302
    assert server.accepted == 1


# Budgets


def test_a_budget_is_asked_for_each_request(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(max_requests=2))
    assert ask(client, get(server.port))[0] == 200
    scene.record()
    scene.spent = "p.toml:8 allows 2 requests in all"
    assert ask(client, post(server.port, b"body")) == (403, b"osmoda: p.toml:8 allows 2 requests in all\n")
    assert len(scene.taken) == 2
    assert scene.record()["reason"] == scene.spent
    assert server.seen.qsize() == 1


def test_bytes_are_told_as_they_move(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(max_bytes=1 << 30))
    assert ask(client, post(server.port, bytes(1000)))[0] == 200
    client.close()
    scene.closed.get(timeout=PATIENCE)
    assert sum(scene.moved) > 2000


# Edits, and the end


def test_an_edit_is_in_force_for_the_next_request(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    assert ask(client, get(server.port))[0] == 200
    scene.inspector.recheck(7, (grant(("POST",)),))
    assert ask(client, get(server.port))[0] == 403


def waiting(client, server):
    server.seen.put(head_of(client))
    with_end = client.recv(1)
    server.seen.put(with_end)


def test_an_edit_ends_a_request_that_it_does_not_allow(scene):
    server = scene.server(waiting, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    scene.inspector.recheck(7, (grant(("POST",)),))
    assert reset(client)
    assert scene.closed.get(timeout=PATIENCE)[0] == 7
    record = scene.record()
    assert (record["verdict"], record["action"]) == ("deny", "revoked")


def test_an_edit_leaves_a_request_alone_that_it_still_allows(scene):
    told = threading.Event()

    def slow(client, server):
        server.seen.put(head_of(client))
        assert told.wait(PATIENCE)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = scene.server(slow)
    kept = grant(("GET",))
    client = scene.connect(server, kept, grant(("POST",)))
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    scene.inspector.recheck(7, (kept,))
    told.set()
    assert answer_of(client)[0] == 200


def test_a_revoked_connection_is_reset_on_both_sides(scene):
    server = scene.server(waiting, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    scene.inspector.revoke(7)
    assert reset(client)
    with pytest.raises(Exception, match=r".*"):
        assert server.seen.get(timeout=0.2)
    assert scene.closed.empty()


def test_one_that_is_revoked_before_it_is_served(scene):
    server = scene.server(echo, tls=False)
    scene.inspector.prewarm()
    for _ in range(20):
        client = scene.connect(server, tls=False, peeked=get(server.port))
        scene.inspector.revoke(7)
        assert reset(client)


def test_nothing_is_kept_for_a_server_that_is_not_there_yet(scene):
    with socket.socket() as full:  # its backlog is full, so it does not answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = [socket.socket() for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        client = scene.connect(port, tls=False)
        client.settimeout(1)
        before = resident()
        with pytest.raises(TimeoutError):
            client.sendall(get(port, "/", f"Content-Length: {200 << 20}", method="POST") + bytes(100 << 20))
        assert resident() - before < 32 << 20
        for other in others:
            other.close()


def test_the_next_connection_may_have_the_number_of_a_revoked_one(scene):
    server = scene.server(echo, tls=False)
    first = scene.connect(server, tls=False)
    assert ask(first, get(server.port))[0] == 200
    scene.inspector.revoke(7)
    second = scene.connect(server, tls=False)
    assert reset(first)
    assert ask(second, get(server.port))[0] == 200
    second.close()
    assert scene.closed.get(timeout=PATIENCE)[0] == 7


def test_closing_resets_what_is_open(scene):
    server = scene.server(waiting, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    scene.inspector.close(PATIENCE)
    assert reset(client)


def test_a_closed_inspector_takes_nothing_over(scene):
    scene.inspector.close(PATIENCE)
    client = scene.connect(1, tls=False)
    assert client.recv(1) == b""
    assert scene.closed.get(timeout=PATIENCE) == (7, 0, 0)
    assert scene.faults.get(timeout=PATIENCE)["reason"] == "the gateway ends"


def test_a_thread_that_cannot_start_fails_closed(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "osmoda.egress.inspection.engine", None)
    client = scene.connect(1, tls=False)
    assert client.recv(1) == b""
    assert scene.closed.get(timeout=PATIENCE) == (7, 0, 0)
    assert "has failed" in scene.faults.get(timeout=PATIENCE)["reason"]


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: api"])
def test_a_client_that_says_nothing_is_cut(scene, monkeypatch, said):
    from osmoda.egress.inspection import adopted

    monkeypatch.setattr(adopted, "FIRST_REQUEST", 0.1)
    client = scene.connect(1, tls=False)
    client.sendall(said)
    assert reset(client)


def test_a_mistake_of_ours_cuts_the_connection_and_leaves_a_record(scene, monkeypatch):
    from osmoda.egress.inspection import work

    monkeypatch.setattr(work, "judge", lambda *_: 1 / 0)
    server = scene.server(echo, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    assert reset(client)
    assert "ZeroDivisionError" in scene.faults.get(timeout=PATIENCE)["reason"]
    nothing_delivered(scene, server)


def test_one_that_was_never_started_closes_at_once(scene):
    inspector = Inspector(scene.loop)
    inspector.revoke(1)
    inspector.close(PATIENCE)


def test_importing_it_loads_neither_mitmproxy_nor_asyncio():
    names = ("mitmproxy", "asyncio", "socket")
    code = f"import sys, osmoda.egress.inspection; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_head_that_does_not_end_is_not_kept(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    client.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000)
    assert answer_of(client)[0] == 431


def test_requests_without_end_are_not_kept(scene):
    server = scene.server(waiting)
    client = scene.connect(server)
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    with pytest.raises(OSError, match=r"reset|EOF|closed|pipe"):
        client.sendall(get(server.port, "/" + "x" * 8000) * 5000)


def test_a_client_that_goes_away_is_noted(scene):
    server = scene.server(waiting)
    client = scene.connect(server)
    client.sendall(get(server.port))
    server.seen.get(timeout=PATIENCE)
    client.close()
    record = scene.record()
    assert (record["verdict"], record["action"], record["status"]) == ("allow", "failed", 0)
    assert server.seen.get(timeout=PATIENCE) == b""


def test_body_of_an_unread_answer(scene):
    """A client that does not read holds the server up, and no memory fills."""
    sent = []

    def pour(client, server):
        head_of(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        client.settimeout(1)
        try:
            for _ in range(100):
                client.sendall(bytes(1000000))
                sent.append(1)
        except OSError:
            server.seen.put("held up")

    server = scene.server(pour, tls=False)
    client = scene.connect(server, tls=False)
    client.sendall(get(server.port))
    assert server.seen.get(timeout=PATIENCE) == "held up"
    assert len(sent) < 40
