"""Secrets in connections that are looked into, and websockets, in which none is put."""

from __future__ import annotations

import base64
import re
import threading

import pytest

from tests.inspected import (
    OTHER,
    PATIENCE,
    PLACEHOLDER,
    SECRETS,
    VALUE,
    answer_of,
    ask,
    echo,
    exactly,
    get,
    grant,
    head_of,
    post,
    scenes,
)


@pytest.fixture
def scene(tmp_path):
    yield from scenes(tmp_path)


# Websockets

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def websocket(client, server):
    server.seen.put(head_of(client))
    client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                   b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05first")  # fmt: skip
    while True:
        some = client.recv(65536)
        if not some:
            return
        server.seen.put(some)
        client.sendall(b"\x81\x02ok")


def masked(content, mask=b"\x01\x02\x03\x04", first=0x81):
    size = bytes([0x80 | len(content)]) if len(content) < 126 else b"\xfe" + len(content).to_bytes(2)
    return bytes([first]) + size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))


def opened(scene, **options):
    server = scene.server(websocket)
    client = scene.connect(server, **options)
    client.sendall(get(server.port, "/socket", *UPGRADE, "Sec-WebSocket-Extensions: permessage-deflate"))
    assert head_of(client).startswith(b"HTTP/1.1 101")
    assert exactly(client, 7) == b"\x81\x05first"
    return server, client, server.seen.get(timeout=PATIENCE)


@pytest.mark.parametrize("secrets", [(), SECRETS])
def test_a_websocket_passes_both_ways(scene, secrets):
    server, client, head = opened(scene, secrets=secrets)
    assert (b"permessage-deflate" in head) == (not secrets)
    assert scene.record()["status"] == 101
    for content in (b"hello", b"x" * 300, b""):
        client.sendall(masked(content))
        assert exactly(client, 4) == b"\x81\x02ok"
        assert server.seen.get(timeout=PATIENCE) == masked(content)
    client.close()
    assert scene.closed.get(timeout=PATIENCE)[0] == 7


def test_a_placeholder_in_a_websocket_ends_it(scene):
    server, client, _ = opened(scene, secrets=SECRETS)
    assert scene.record()["verdict"] == "allow"
    client.sendall(masked(b'{"text": "' + OTHER[1][:9].encode(), first=0x01))
    exactly(client, 4)
    server.seen.get(timeout=PATIENCE)
    client.sendall(masked(OTHER[1][9:].encode() + b'"}', b"\x0a\x0b\x0c\x0d", 0x80))
    assert client.recv(10) == b""
    record = scene.record()
    assert (record["verdict"], record["action"]) == ("deny", "refused")
    assert "OTHER" in record["reason"]
    assert server.seen.empty()


def test_a_websocket_of_a_server_that_says_no_stays_http(scene):
    server = scene.server(echo)
    client = scene.connect(server)
    assert ask(client, get(server.port, "/", *UPGRADE))[0] == 200
    assert ask(client, get(server.port, "/", method="DELETE"))[0] == 403


# Secrets


def with_key(**options):
    return grant(secret="KEY", **options)


def test_a_secret_is_put_in_on_its_own_host(scene):
    server = scene.server(echo)
    client = scene.connect(server, with_key(), secrets=SECRETS)
    basic = base64.b64encode(f"user:{PLACEHOLDER}".encode()).decode()
    request = post(
        server.port,
        f'{{"key": "{PLACEHOLDER}"}}'.encode(),
        f"Authorization: Bearer {PLACEHOLDER}",
        f"Proxy-Auth: Basic {basic}",
        path=f"/x?key={PLACEHOLDER}&again={PLACEHOLDER.replace('-', '%2D')}",
    )
    assert ask(client, request)[0] == 200
    head, body = server.seen.get(timeout=PATIENCE)
    assert body == f'{{"key": "{VALUE}"}}'.encode()
    assert f"Authorization: Bearer {VALUE}\r\n".encode() in head
    assert base64.b64encode(f"user:{VALUE}".encode()) in head
    assert f"/x?key={VALUE}&again={VALUE} ".encode() in head
    record = scene.record()
    assert record["verdict"] == "allow"
    assert VALUE not in str(record)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_secret_of_another_length_is_put_in_across_pieces(scene, chunked):
    secrets = (("KEY", PLACEHOLDER, "short-one"),)
    server = scene.server(echo)
    client = scene.connect(server, with_key(), secrets=secrets)
    body = f"before {PLACEHOLDER} after sk-Ab".encode()
    if chunked:
        head = get(server.port, "/", "Transfer-Encoding: chunked", method="POST")
        content = b"".join([b"1\r\n%c\r\n" % byte for byte in body]) + b"0\r\n\r\n"
    else:
        head, content = get(server.port, "/", f"Content-Length: {len(body)}", method="POST"), body
    client.sendall(head)
    for at in range(0, len(content), 7):
        client.sendall(content[at : at + 7])
    assert answer_of(client)[0] == 200
    assert server.seen.get(timeout=PATIENCE)[1] == b"before short-one after sk-Ab"


@pytest.mark.parametrize(
    ("path", "lines", "body"),
    [
        ("/", [f"X-Key: {OTHER[1]}"], b""),
        ("/", [f"Cookie: a=b; k={OTHER[1]}"], b""),
        (f"/?k={OTHER[1]}", [], b""),
        ("/?k=" + "".join(f"%{ord(char):02x}" for char in OTHER[1]), [], b""),
        (f"/{OTHER[1]}", [], b""),
        (f"/{PLACEHOLDER}", [], b""),
        ("/", [f"X-{PLACEHOLDER}: x"], b""),
        ("/", ["Authorization: Basic " + base64.b64encode(f"u:{OTHER[1]}".encode()).decode()], b""),
        ("/", ["X: " + base64.b64encode(f"a{OTHER[1]}b".encode()).decode()], b""),
        ("/", [], f"text {OTHER[1]}".encode()),
        ("/", [], b"text " + base64.b64encode(f"aa{OTHER[1]}b".encode())),
        ("/", [], OTHER[1].encode().hex().upper().encode()),
        ("/", [], "".join(f"\\u{ord(char):04x}" for char in OTHER[1]).encode()),
    ],
)
def test_a_placeholder_where_it_may_not_be(scene, path, lines, body):
    server = scene.server(echo)
    client = scene.connect(server, with_key(), secrets=SECRETS)
    content = post(server.port, body, *lines, path=path)
    status, text = ask(client, content)
    assert status == 403
    assert re.search(rb"the secret (OTHER|KEY) is on its way to api.example", text)
    record = scene.record()
    assert (record["verdict"], record["status"]) == ("deny", 403)
    # Of a body, what comes before it may have been delivered, with the head.
    scene.close_servers()
    assert not any(body for _, body in list(server.seen.queue))


def test_a_secret_is_not_put_in_by_a_rule_that_does_not_have_it(scene):
    server = scene.server(echo)
    client = scene.connect(server, with_key(paths=("/v1/*",)), grant(paths=("/v2/*",)), secrets=SECRETS)
    request = get(server.port, "/v1/x", f"X-Key: {PLACEHOLDER}")
    assert VALUE.encode() in ask(client, request)[1]
    status, _ = ask(client, request.replace(b"/v1/", b"/v2/"))
    assert status == 403


def test_a_secret_goes_out_under_the_limits_of_its_own_rule(scene):
    server = scene.server(echo)
    client = scene.connect(server, with_key(max_body=50), grant(), secrets=SECRETS)
    head = get(server.port, "/", "Transfer-Encoding: chunked", f"X: {PLACEHOLDER}", method="POST")
    piece = b"a" * 40
    content = b"28\r\n" + piece + b"\r\n"
    assert ask(client, head + content + b"0\r\n\r\n")[0] == 200
    assert VALUE.encode() in server.seen.get(timeout=PATIENCE)[0]
    client.sendall(head + content + content)
    assert answer_of(client)[0] == 413


def test_what_looks_like_a_placeholder_is_not_held_back_for_long(scene):
    told = threading.Event()

    def answering(client, server):
        head_of(client)
        server.seen.put(exactly(client, 9))
        assert told.wait(PATIENCE)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = scene.server(answering)
    client = scene.connect(server, with_key(), secrets=SECRETS)
    client.sendall(get(server.port, "/", "Content-Length: 100", method="POST") + b"ends in s")
    assert server.seen.get(timeout=PATIENCE) == b"ends in s"
    told.set()
