"""What a client says first, and how it is turned away."""

from __future__ import annotations

import json
import socket
import struct

import pytest

from osmoda.egress import client as client_module
from osmoda.egress import farewell as farewell_module
from osmoda.egress.destinations import Rule
from osmoda.egress.name_table import NETWORK_IPV4_PACKED
from tests.client_hellos import ech_outer, hello
from tests.connection_scene import (
    ACCESS_DENIED,
    GET,
    PRIVATE,
    PUBLIC,
    refused,
    scenes,
    with_policy,
)


@pytest.fixture
def scene(request):
    yield from scenes(getattr(request, "param", None))


# What the client says


def test_another_server_name_is_refused(scene):
    client = scene.connect(content=hello(b"evil.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert refused(scene, client, "tls") == "the TLS hello names evil.example, the connection is for example.com"
    assert scene.upstream.dialled == []


def test_a_server_name_in_other_letters_is_the_same(scene):
    content = hello(b"EXAMPLE.com")
    scene.connect(content=content)
    assert scene.received(scene.accept(), len(content)) == content


@with_policy(Rule("example.com"), Rule("ech.example", ech=True))
def test_an_encrypted_hello_needs_a_rule_that_permits_it(scene):
    client = scene.connect(content=hello(b"example.com", ech_outer()))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "(ECH), and no rule for example.com has ech = true" in refused(scene, client, "tls")
    scene.upstream.names["ech.example"] = [PUBLIC]
    content = hello(b"ech.example", ech_outer())
    scene.connect("ech.example", content=content)
    assert scene.received(scene.accept(), len(content)) == content


def test_a_malformed_hello_is_refused(scene):
    client = scene.connect(content=b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00")
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert "cannot be relied on" in refused(scene, client, "tls")


def test_http_on_port_443_is_told_so_in_http(scene):
    client = scene.connect(content=GET)
    ending, answer = scene.outcome(client)
    assert (ending, answer.split(b"\r\n")[0]) == ("end of file", b"HTTP/1.1 400 Bad Request")
    assert b"port 443 is for TLS" in answer
    client.close()
    assert "plain HTTP" in refused(scene, client, "http")


@pytest.mark.parametrize("port", [443, 80])
def test_anything_else_on_the_ports_of_the_web_is_reset(scene, port):
    client = scene.connect(port=port, content=b"SSH-2.0-OpenSSH_9.2p1\r\n")
    assert scene.outcome(client) == ("reset", b"")
    assert f"what came on port {port} is not" in refused(scene, client, "tcp")


def test_another_host_is_refused(scene):
    client = scene.connect(port=80, content=GET.replace(b"example.com", b"evil.example"))
    ending, answer = scene.outcome(client)
    assert ending == "end of file"
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain; charset=utf-8" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == b"the HTTP request names evil.example, the connection is for example.com (p.toml:8)\n"
    client.close()
    assert refused(scene, client, "http").startswith("the HTTP request names evil.example")


def test_who_asks_for_json_is_refused_in_json(scene):
    content = b"GET / HTTP/1.1\r\nHost: evil.example\r\nAccept: application/json, */*\r\n\r\n"
    client = scene.connect(port=80, content=content)
    _, answer = scene.outcome(client)
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "error": "the HTTP request names evil.example, the connection is for example.com",
        "rule": "p.toml:8",
    }
    client.close()


def test_an_answer_to_head_has_no_body(scene):
    client = scene.connect(port=80, content=b"HEAD / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    _, answer = scene.outcome(client)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 8" in answer
    client.close()


def test_another_port_in_the_host_is_refused(scene):
    client = scene.connect(port=80, content=GET.replace(b"example.com", b"example.com:8080"))
    assert b"is for port 8080, the connection for port 80" in scene.outcome(client)[1]
    client.close()


def test_a_tunnel_is_refused(scene):
    client = scene.connect(port=80, content=b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\n")
    assert b"HTTP/1.1 405" in scene.outcome(client)[1]
    client.close()
    assert "no proxy to CONNECT through" in refused(scene, client, "http")


def test_a_malformed_request_is_answered_with_400(scene):
    client = scene.connect(port=80, content=b"GET / HTTP/1.1\r\nHost: example.com\r\n folded: yes\r\n\r\n")
    assert scene.outcome(client)[1].startswith(b"HTTP/1.1 400 Bad Request\r\n")
    client.close()
    assert "cannot be relied on" in refused(scene, client, "http")


def test_a_client_that_says_too_little_is_refused_in_time(scene, monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_BYTES", 0.05)
    client = scene.connect(content=hello()[:20])
    scene.until(lambda: scene.connection._first is not None and scene.connection._first.content)
    assert scene.outcome(client) == ("end of file", b"") or True
    client.close()
    assert "did not say within" in scene.record()["reason"]


def test_a_client_that_says_nothing_is_reset_in_time(scene, monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_BYTES", 0.03)
    monkeypatch.setattr(client_module, "_PROTOCOL_SECONDS", 0.03)
    client = scene.connect()
    assert scene.outcome(client) == ("reset", b"")
    assert "did not say within" in refused(scene, client, "tcp")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_away_before_its_first_bytes(scene, how):
    client = scene.connect()
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert refused(scene, client, "tcp", verdict="allow", action="failed") == "the client went away"


# Denied


def test_a_denied_name_is_refused_in_tls(scene):
    client = scene.connect("denied.example", content=hello(b"denied.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    record = scene.record()
    assert record["reason"] == "denied.example:443 is refused by the deny at p.toml:10"
    assert (record["name"], record["address"], record["rule"]) == ("denied.example", "", "p.toml:10")
    scene.nothing_left()


def test_a_denied_name_is_refused_in_http(scene):
    client = scene.connect("unlisted.example", 80, content=GET.replace(b"example.com", b"unlisted.example"))
    answer = scene.outcome(client)[1]
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"unlisted.example is not in network.allow of p.toml:7" in answer
    client.close()
    scene.record()


def test_a_denied_name_is_refused_in_http_on_any_port(scene):
    client = scene.connect("unlisted.example", 8888, content=GET)
    assert b"HTTP/1.1 403" in scene.outcome(client)[1]
    client.close()


def test_a_denied_name_is_reset_where_there_are_no_words_for_it(scene, monkeypatch):
    client = scene.connect("denied.example", 22, content=b"SSH-2.0-OpenSSH_9.2p1\r\n")
    assert scene.outcome(client) == ("reset", b"")
    assert "refused by the deny" in refused(scene, client, "tcp")
    scene.session.records.clear()
    monkeypatch.setattr(client_module, "_PROTOCOL_SECONDS", 0.03)
    client = scene.connect("denied.example", 22)
    assert scene.outcome(client) == ("reset", b"")
    assert "refused by the deny" in refused(scene, client, "tcp")


def test_what_the_client_goes_on_sending_does_not_overtake_the_reason(scene):
    """Closing with bytes unread sends a reset, and the client would never see why."""
    client = scene.connect("denied.example", content=hello(b"denied.example") + bytes(200_000), more=False)
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    scene.record()


def test_a_refused_client_that_does_not_go_is_cut_off(scene, monkeypatch):
    monkeypatch.setattr(farewell_module, "DRAIN", 0.05)
    client = scene.connect("denied.example", content=hello(b"denied.example"))
    assert scene.received(client, 7) == ACCESS_DENIED
    assert refused(scene, client, "tls")
    scene.until(lambda: not scene.session.connections)
    with pytest.raises(ConnectionError):
        client.send(b"still here")


def test_an_address_that_stands_for_no_name_is_refused(scene):
    first, _ = NETWORK_IPV4_PACKED
    client = scene.connect(address=first[:2] + b"\x77\x77", content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    record = scene.record()
    assert record["reason"] == "198.18.119.119 stands for no name any more: the name is to be looked up again"
    assert (record["name"], record["address"]) == ("", "198.18.119.119")


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "64:ff9b::a00:1", "::ffff:169.254.169.254"],
)
def test_names_that_lead_into_this_network_are_refused(scene, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    scene.upstream.names["example.com"] = [socket.inet_pton(family, address)]
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert refused(scene, client, "tls").startswith(f"example.com: {address} ")
    assert scene.upstream.dialled == []


@with_policy(Rule("example.com"), deny=[Rule("192.0.2.0/24", (0,))])
def test_a_denied_network_holds_for_names_too(scene):
    client = scene.connect(content=hello())
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    record = scene.record()
    assert record["rule"] == "p.toml:9"
    assert "192.0.2.7:443 is refused by the deny at p.toml:9" in record["reason"]


@with_policy(Rule("example.com"), Rule("10.0.0.0/8", (443,)))
def test_a_granted_network_holds_for_names_too(scene):
    scene.upstream.names["example.com"] = [PRIVATE]
    scene.connect(content=hello())
    scene.accept()
    assert scene.upstream.dialled == [([PRIVATE], 443)]


# Other ports


def test_a_server_may_speak_first(scene):
    client = scene.connect(port=22)
    server = scene.accept()
    server.send(b"SSH-2.0-server\r\n")
    assert scene.received(client, 16) == b"SSH-2.0-server\r\n"
    client.send(b"SSH-2.0-client\r\n")
    assert scene.received(server, 16) == b"SSH-2.0-client\r\n"
    client.close()
    server.close()
    record = scene.record()
    assert (record["protocol"], record["action"]) == ("tcp", "spliced")


def test_what_the_client_says_meanwhile_comes_through(scene):
    client = scene.connect(port=22, content=b"SSH-2.0-client\r\n", more=False)
    server = scene.accept()
    assert scene.received(server, 16) == b"SSH-2.0-client\r\n"
    client.send(b"more")
    assert scene.received(server, 4) == b"more"


def test_an_undecided_beginning_is_kept_back_until_it_is_decided(scene):
    client = scene.connect(port=8080)
    server = scene.accept()
    client.send(b"GET / HT")
    scene.until(lambda: scene.connection._first.content)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    client.send(b"TP/1.1\r\nHost: evil.example\r\n\r\n")
    assert scene.outcome(client)[1].startswith(b"HTTP/1.1 403 Forbidden\r\n")
    client.close()
    assert scene.outcome(server) == ("reset", b"")
    assert "names evil.example" in refused(scene, client, "http")


def test_another_server_name_on_any_port(scene):
    client = scene.connect(port=8080, content=hello(b"evil.example"))
    assert scene.outcome(client) == ("end of file", ACCESS_DENIED)
    client.close()
    assert scene.outcome(scene.accept()) == ("reset", b"")
    assert "names evil.example" in refused(scene, client, "tls")


def test_a_refusal_is_not_put_into_what_the_server_says(scene):
    client = scene.connect(port=8080)
    server = scene.accept()
    server.send(b"220 ready")
    assert scene.received(client, 9) == b"220 ready"
    client.send(hello(b"evil.example"))
    assert scene.outcome(client) == ("reset", b"")
    assert scene.outcome(server) == ("reset", b"")
    record = scene.record()
    assert (record["action"], record["bytes_down"], record["bytes_up"]) == ("refused", 9, 0)
    scene.nothing_left()


def test_a_beginning_that_is_never_decided_is_refused_in_time(scene, monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_BYTES", 0.05)
    monkeypatch.setattr(client_module, "_PROTOCOL_SECONDS", 0.02)
    client = scene.connect(port=8080, content=b"GE", more=False)
    server = scene.accept()
    assert scene.outcome(server) == ("reset", b"")
    assert scene.outcome(client) == ("reset", b"")
    assert "did not say within" in refused(scene, client, "tcp")


def test_a_client_may_say_nothing_for_long_where_the_server_speaks(scene, monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_BYTES", 0.02)
    client = scene.connect(port=22)
    server = scene.accept()
    scene.loop.call_later(0.06, scene.loop.stop)
    scene.loop.run()
    server.send(b"x")
    assert scene.received(client, 1) == b"x"


def test_a_client_that_ends_without_a_word(scene):
    client = scene.connect(port=22)
    server = scene.accept()
    client.shutdown(socket.SHUT_WR)
    assert scene.outcome(server) == ("end of file", b"")
    server.send(b"all the same")
    server.close()
    assert scene.outcome(client) == ("end of file", b"all the same")


def test_a_client_that_ends_within_a_hello(scene):
    client = scene.connect(port=8080, content=hello()[:30])
    server = scene.accept()
    scene.until(lambda: scene.connection._first.content)
    client.shutdown(socket.SHUT_WR)
    assert scene.outcome(server) == ("reset", b"")
    assert "within its first bytes" in scene.record()["reason"]
