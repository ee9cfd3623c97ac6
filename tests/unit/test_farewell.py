"""How a connection is refused: the words for it, and that they arrive."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct

import h11
import pytest

from osmoda.egress import farewell as module
from osmoda.egress.farewell import Farewell, Refusal, words
from osmoda.egress.loop import STREAM, Loop
from tests import looping

REFUSAL = Refusal("deny", "refused", "evil.example is not in network.allow", "p.toml:7")
GET = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"


def response(content, method=b"GET"):
    """What an HTTP client makes of it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "evil.example")]))
    client.send(h11.EndOfMessage())
    client.receive_data(content)
    client.receive_data(b"")
    head, body = client.next_event(), b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head.status_code, {name.decode(): value.decode() for name, value in head.headers}, body


# Words


def test_a_tls_client_reads_the_alert():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(words(REFUSAL, "tls"))
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        client.do_handshake()


def test_without_an_alert_there_are_no_words_for_tls():
    assert words(Refusal("allow", "failed", "refused", "", alert=0), "tls") == b""


def test_an_http_client_reads_the_reason():
    status, headers, body = response(words(REFUSAL, "http", GET))
    assert status == 403
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert (headers["connection"], headers["cache-control"]) == ("close", "no-store")
    assert body == b"evil.example is not in network.allow (p.toml:7)\n"


def test_the_rule_is_named_once():
    refusal = Refusal("deny", "refused", "refused by the deny at p.toml:7", "p.toml:7")
    assert response(words(refusal, "http", GET))[2] == b"refused by the deny at p.toml:7\n"


@pytest.mark.parametrize("status", [400, 403, 405, 431, 501, 502, 503, 504, 505])
def test_each_status_has_its_phrase(status):
    content = words(Refusal("deny", "refused", "so", "", status=status), "http", GET)
    assert response(content)[0] == status
    assert b" Refused\r\n" not in content


@pytest.mark.parametrize("accept", [b"Accept: application/json", b"ACCEPT: text/html, application/problem+json;q=0.5"])
def test_who_accepts_json_gets_json(accept):
    request = b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + accept + b"\r\n\r\n"
    status, headers, body = response(words(REFUSAL, "http", request))
    assert (status, headers["content-type"]) == (403, "application/json")
    assert json.loads(body) == {"error": REFUSAL.reason, "rule": "p.toml:7"}


def test_an_answer_to_head_has_a_length_and_no_body():
    content = words(REFUSAL, "http", GET.replace(b"GET", b"HEAD"))
    _, headers, body = response(content, b"HEAD")
    assert body == b""
    assert int(headers["content-length"]) == len(response(words(REFUSAL, "http", GET))[2])


def test_other_protocols_have_no_words():
    assert words(REFUSAL, "tcp") == words(REFUSAL, "") == b""


def test_a_reason_stays_in_the_body():
    refusal = Refusal("deny", "refused", "a\r\nSet-Cookie: x=y\r\n\r\n<b>\udcff", "")
    _, headers, body = response(words(refusal, "http", GET))
    assert "set-cookie" not in headers
    assert body.startswith(b"a\r\nSet-Cookie")


# Arriving


class Scene:
    def __init__(self, content=b"reason"):
        self.loop = Loop()
        self.ended = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.client.setblocking(False)
        accepted.setblocking(False)
        self.loop.register(accepted.fileno(), STREAM, lambda events: None)
        self.farewell = Farewell(self.loop, accepted, content, lambda: self.ended.append(1))

    def until(self, condition):
        looping.until(self.loop, condition)

    def outcome(self):
        return looping.outcome(self.loop, self.client)


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.farewell.cut()
    scene.client.close()
    scene.loop.call_later(0, scene.loop.stop)
    scene.loop.run()
    scene.loop.shut()


def test_it_arrives_and_ends_when_the_client_does(scene):
    scene.farewell.begin()
    assert scene.outcome() == ("end of file", b"reason")
    assert scene.ended == []
    scene.client.close()
    scene.until(lambda: scene.ended)
    assert scene.ended == [1]


def test_what_the_client_has_sent_is_thrown_away_first(scene):
    """The control is the kernel's: closing with bytes unread would have sent a reset."""
    scene.client.send(bytes(100_000))
    scene.farewell.begin()
    scene.client.send(bytes(100_000))
    assert scene.outcome() == ("end of file", b"reason")


def test_a_client_that_stays_is_reset_in_time(monkeypatch):
    monkeypatch.setattr(module, "DRAIN", 0.02)
    scene = Scene()
    scene.farewell.begin()
    scene.until(lambda: scene.ended)
    assert scene.outcome() in (("end of file", b"reason"), ("reset", b"reason"), ("reset", b""))
    scene.client.close()
    scene.loop.shut()


def test_a_client_that_sends_on_and_on_is_reset(scene, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 100_000)
    scene.farewell._left = 100_000
    scene.farewell.begin()

    def send():
        with contextlib.suppress(BlockingIOError, ConnectionError):
            scene.client.send(bytes(65536))
        return scene.ended

    scene.until(send)
    assert scene.ended == [1]


def test_a_client_that_has_gone(scene):
    scene.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    scene.client.close()
    scene.farewell.begin()
    assert scene.ended == [1]
    scene.farewell.ready(1)
    scene.farewell.cut()
    assert scene.ended == [1]


def test_a_fault_cuts_it(scene):
    scene.farewell.begin()
    scene.farewell.fault()
    assert scene.ended == [1]
