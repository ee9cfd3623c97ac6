"""Requests of connections that are looked into, against the rules: methods, paths, hosts, bodies."""

from __future__ import annotations

import threading

import pytest

from osmoda.egress.policy import Grant
from tests.inspected import (
    NAME,
    PATIENCE,
    answer_of,
    ask,
    echo,
    get,
    grant,
    head_of,
    nothing_delivered,
    post,
    scenes,
)


@pytest.fixture
def scene(tmp_path):
    yield from scenes(tmp_path)


# Judged by method and path


def test_a_method_that_no_rule_allows(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(("GET",)))
    status, text = ask(client, post(server.port, b"x"))
    assert (status, text) == (403, b"osmoda: POST is not allowed for api.example: p.toml:8 allows only GET\n")
    record = scene.record()
    assert (record["verdict"], record["action"], record["rule"], record["status"]) == (
        "deny",
        "refused",
        "p.toml:8",
        403,
    )
    nothing_delivered(scene, server)


def test_a_refusal_without_a_body_says_so_to_head(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(("GET",)))
    client.sendall(get(server.port, method="HEAD"))
    assert head_of(client).startswith(b"HTTP/1.1 403")
    assert client.recv(100) == b""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", True),
        ("/v1/models?x=/../", True),
        ("/v1/a%20b", True),
        ("/v2/models", False),
        ("/v1", False),
        ("/v1/../admin", False),
        ("/v1/..", False),
        ("/v1/./x", False),
        ("/v1/..;/admin", False),
        ("/v1/%2e%2e/admin", False),
        ("/v1/.%2E/admin", False),
        ("/v1/..%2fadmin", False),
        ("/v1/..%5cadmin", False),
        ("/v1/..\\admin", False),
        ("/v1//admin", False),
        ("/v1/%00", False),
        ("/v1/%252e%252e%252fadmin", False),
        ("/v1/%c0%ae%c0%ae/admin", False),
        ("/v1/%zz", False),
        ("/v1/x#y", False),
        ("/v1/" + "x" * 9000, False),
    ],
)
def test_paths(scene, path, allowed):
    server = scene.server(echo)
    client = scene.connect(server, grant(paths=("/v1/*",)))
    status, text = ask(client, get(server.port, path))
    assert status in ((200,) if allowed else (400, 403)), text
    assert scene.record()["verdict"] == ("allow" if allowed else "deny")
    if not allowed:
        nothing_delivered(scene, server)


def test_without_a_path_rule_any_path_passes(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    assert ask(client, get(server.port, "/group%2fproject//x"))[0] == 200


def test_rules_are_united(scene):
    server = scene.server(echo)
    client = scene.connect(
        server,
        Grant(NAME, methods=("GET",), origin="p:1"),
        Grant(NAME, methods=("POST",), paths=("/up",), origin="p:2"),
    )
    assert ask(client, get(server.port, "/anything"))[0] == 200
    assert ask(client, post(server.port, b"x", path="/up"))[0] == 200
    assert [scene.record()["rule"] for _ in range(2)] == ["p:1", "p:2"]
    assert ask(client, post(server.port, b"x", path="/down"))[0] == 403


# Hosts, and heads that two servers could read differently


@pytest.mark.parametrize(
    "host", ["other.example", "allowed@evil", f"{NAME}@evil.example", f"{NAME}:1", f"{NAME}.evil", f"evil.{NAME}",
             "[::1]", "127.0.0.1", f"{NAME}:0443", ""],
)  # fmt: skip
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_another_host(scene, host, tls):
    server = scene.server(echo, tls=tls)
    client = scene.connect(server, tls=tls)
    status, text = ask(client, get(server.port, host=host))
    assert status in (400, 403)
    assert text.startswith(b"osmoda: ")
    record = scene.record()
    assert (record["verdict"], record["action"], record["status"]) == ("deny", "refused", status)
    nothing_delivered(scene, server)


@pytest.mark.parametrize("host", [NAME, NAME.upper(), f"{NAME}.", f"{NAME}:PORT", f"{NAME}.:PORT"])
def test_spellings_of_the_same_host(scene, host):
    server = scene.server(echo)
    client = scene.connect(server)
    assert ask(client, get(server.port, host=host.replace("PORT", str(server.port))))[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        "GET http://evil.example/ HTTP/1.1|Host: HOST",
        "GET http://HOST/ HTTP/1.1|Host: evil.example",
        "GET https://evil.example/ HTTP/1.1|Host: HOST",
        "GET / HTTP/1.1|Host: HOST|Host: evil.example",
        "GET / HTTP/1.1|Host: api.exam\0ple",
        "GET / HTTP/1.1|Host: HOST|Content-Length: 5|Transfer-Encoding: chunked",
        "GET / HTTP/1.1|Host: HOST|Content-Length: 5|Content-Length: 6",
        "GET / HTTP/1.1|Host: HOST|Content-Length: +5",
        "GET / HTTP/1.1|Host: HOST|Transfer-Encoding: chunked, identity",
        "GET / HTTP/1.1|Host: HOST|Transfer-Encoding: xchunked",
        "GET / HTTP/1.1|Host: HOST|X: a| b",
        "GET / HTTP/1.1|Host: HOST|X: a\rb",
        "GET / HTTP/1.1|Host : HOST",
        "GET / HTTP/1.1|Host: HOST|Connection: host",
        "GET / HTTP/1.1|Host: HOST|Content_Length: 5",
        "GET  / HTTP/1.1|Host: HOST",
        "get / HTTP/1.1|Host: HOST",
        "GET / HTTP/1.2|Host: HOST",
        "CONNECT HOST HTTP/1.1|Host: HOST",
        "CONNECT api.example:22 HTTP/1.1|Host: api.example:22",
        "GET / HTTP/1.1|Host: HOST|Upgrade: h2c|Connection: Upgrade, HTTP2-Settings|HTTP2-Settings: AAMAAABkAAQAAP__",
        "GET / HTTP/1.1|Host: HOST|Upgrade: tls/1.2|Connection: Upgrade",
        "TRACE / HTTP/1.1|Host: HOST",
        "PRI * HTTP/2.0||SM||",
        "\x16nonsense",
        "GET / HTTP/1.1|Host: HOST|X: " + "x" * 20000,
    ],
)
def test_heads_that_are_not_let_through(scene, lines):
    server = scene.server(echo)
    client = scene.connect(server, grant(()))
    host = f"{NAME}:{server.port}"
    client.sendall(lines.replace("|", "\r\n").replace("HOST", host).encode("latin-1") + b"\r\n\r\n")
    status, text = answer_of(client)
    assert 400 <= status < 600
    assert text.startswith(b"osmoda: ")
    assert client.recv(100) == b""
    assert scene.record()["verdict"] == "deny"
    nothing_delivered(scene, server)


def test_no_second_request_hides_in_a_body(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(("POST",)))
    inner = get(server.port, "/hidden", method="DELETE")
    assert ask(client, post(server.port, inner))[0] == 200
    assert server.seen.get(timeout=PATIENCE)[1] == inner
    client.sendall(post(server.port, b"", path="/a") + get(server.port, "/hidden", method="DELETE"))
    assert answer_of(client)[0] == 200
    assert answer_of(client)[0] == 403


# Bodies of a limited size


def test_a_body_that_is_announced_too_large_is_refused_at_once(scene):
    server = scene.server(echo)
    client = scene.connect(server, grant(max_body=10))
    status, text = ask(client, get(server.port, "/", "Content-Length: 11", "Expect: 100-continue", method="POST"))
    assert (status, text) == (413, b"osmoda: p.toml:8 allows bodies of 10 bytes (max_body)\n")
    nothing_delivered(scene, server)


def test_a_body_of_just_that_size_passes(scene):
    server = scene.server(echo)
    assert ask(scene.connect(server, grant(max_body=10)), post(server.port, bytes(10)))[0] == 200


def test_a_body_that_turns_out_too_large_is_cut(scene):
    cut = threading.Event()

    def read(client, server):
        server.seen.put(head_of(client))
        while True:
            try:
                some = client.recv(100)
            except OSError:
                some = b""
            if not some:
                cut.set()
                return

    server = scene.server(read)
    client = scene.connect(server, grant(max_body=10))
    head = get(server.port, "/", "Transfer-Encoding: chunked", method="POST")
    client.sendall(head + b"5\r\nhello\r\n")
    server.seen.get(timeout=PATIENCE)
    client.sendall(b"6\r\nworld!\r\n")
    assert answer_of(client)[0] == 413
    assert cut.wait(PATIENCE)
    assert scene.record()["status"] == 413
