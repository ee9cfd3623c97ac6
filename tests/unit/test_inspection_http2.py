"""HTTP/2 on both sides of a connection that is looked into, and on one."""

from __future__ import annotations

import os
import threading

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from osmoda.egress.policy import Grant
from tests.inspected import NAME, OTHER, PATIENCE, PLACEHOLDER, SECRETS, VALUE, echo, scenes


@pytest.fixture
def scene(tmp_path):
    yield from scenes(tmp_path)


class Peer:
    """One end of a connection: sends at once, and reads until something has come."""

    def __init__(self, stream, *, client: bool, window: int = 1 << 24) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.received = 0
        self.over = False
        self.flush()

    def flush(self):
        self.stream.sendall(self.http.data_to_send())

    def read(self):
        """Read once; the events."""
        data = self.stream.recv(65536)
        if not data:
            self.over = True
            return []
        events = self.http.receive_data(data)
        for event in events:
            if isinstance(event, (h2.events.ResponseReceived, h2.events.RequestReceived)):
                self.heads[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.received += len(event.data)
                self.bodies.setdefault(event.stream_id, bytearray()).extend(event.data)
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.reset[event.stream_id] = event.error_code
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.over = True
        self.flush()
        return events

    def until(self, condition):
        while not condition() and not self.over:
            self.read()

    def ask(self, port, path="/", *fields, method="GET", body=b"", authority=None, wait=True, scheme="https"):
        stream = self.http.get_next_available_stream_id()
        named = [(":authority", authority or f"{NAME}:{port}")] if authority != "" else []
        head = [(":method", method), (":scheme", scheme), *named, (":path", path), *fields]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.flush()
        if wait:
            self.until(lambda: stream in self.ended or stream in self.reset)
        return stream

    def status(self, stream):
        return int(self.heads[stream][":status"])


def served(stream, server):
    """Answers each request with its head and body, and trailers, as gRPC does."""
    peer = Peer(stream, client=False)
    while not peer.over:
        for event in peer.read():
            if isinstance(event, h2.events.StreamEnded):
                number = event.stream_id
                server.seen.put((peer.heads[number], bytes(peer.bodies.get(number, b"")), peer.trailers.get(number)))
                peer.http.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
                peer.http.send_data(number, bytes(peer.bodies.get(number, b"none"))[:60000])
                peer.http.send_headers(number, [("grpc-status", "0")], end_stream=True)
        peer.flush()


def grant(methods=("GET", "POST"), **options):
    return Grant(NAME, (443,), methods=methods, origin="p.toml:8", **options)


def both(scene, *grants, handler=served, window=1 << 24, alpn=("h2",), **options):
    server = scene.server(handler, alpn=alpn)
    stream = scene.connect(server, *grants, alpn=("h2",), **options)
    assert stream.selected_alpn_protocol() == "h2"
    return server, Peer(stream, client=True, window=window)


def test_requests_and_trailers_pass_side_by_side(scene):
    server, client = both(scene)
    streams = [client.ask(server.port, f"/{index}", wait=False) for index in range(20)]
    client.until(lambda: set(streams) <= client.ended)
    assert [client.status(stream) for stream in streams] == [200] * 20
    assert all(client.trailers[stream] == {"grpc-status": "0"} for stream in streams)
    assert server.accepted == 1
    paths = {server.seen.get(timeout=PATIENCE)[0][":path"] for _ in streams}
    assert paths == {f"/{index}" for index in range(20)}
    assert {scene.record()["path"] for _ in streams} == paths


def test_trailers_of_a_request_pass(scene):
    server, client = both(scene)
    stream = client.http.get_next_available_stream_id()
    head = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/"), ("te", "trailers")]
    client.http.send_headers(stream, head)
    client.http.send_data(stream, b"message")
    client.http.send_headers(stream, [("checksum", "1")], end_stream=True)
    client.flush()
    client.until(lambda: stream in client.ended)
    _, body, trailers = server.seen.get(timeout=PATIENCE)
    assert (body, trailers) == (b"message", {"checksum": "1"})


def test_a_placeholder_in_trailers_is_refused(scene):
    server, client = both(scene, secrets=SECRETS)
    stream = client.http.get_next_available_stream_id()
    head = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
    client.http.send_headers(stream, head)
    client.http.send_data(stream, b"message")
    client.http.send_headers(stream, [("x", OTHER[1])], end_stream=True)
    client.flush()
    client.until(lambda: stream in client.ended)
    assert client.status(stream) == 403
    scene.close_servers()
    assert server.seen.empty()


def test_messages_go_both_ways_before_either_is_done(scene):
    told = threading.Event()

    def talk(stream, server):
        peer = Peer(stream, client=False)
        peer.until(lambda: peer.bodies.get(1))
        peer.http.send_headers(1, [(":status", "200")])
        peer.http.send_data(1, b"first")
        peer.flush()
        peer.until(lambda: 1 in peer.ended)
        peer.http.send_data(1, b"second", end_stream=True)
        peer.flush()
        told.wait(PATIENCE)

    key = grant(secret="KEY")
    _server, client = both(scene, key, handler=talk, secrets=SECRETS)
    head = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
    client.http.send_headers(1, head)
    client.http.send_data(1, b"x")
    client.flush()
    client.until(lambda: client.bodies.get(1) == b"first")
    client.http.end_stream(1)
    client.flush()
    client.until(lambda: 1 in client.ended)
    assert client.bodies[1] == b"firstsecond"
    told.set()


def test_one_that_is_refused_leaves_the_others_alone(scene):
    server, client = both(scene, grant(("GET",)))
    refused = client.ask(server.port, method="POST", body=b"x" * 10000)
    assert (client.status(refused), bytes(client.bodies[refused])) == (
        403,
        b"osmoda: POST is not allowed for api.example: p.toml:8 allows only GET\n",
    )
    assert client.status(client.ask(server.port)) == 200
    assert server.seen.qsize() == 1


def test_a_refused_request_that_goes_on_is_told_to_stop(scene):
    server, client = both(scene, grant(("GET",)))
    head = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
    client.http.send_headers(1, head)
    client.flush()
    client.until(lambda: 1 in client.reset)
    assert (client.status(1), client.reset[1]) == (403, 0)
    assert client.status(client.ask(server.port)) == 200


@pytest.mark.parametrize(
    ("authority", "fields"),
    [
        ("evil.example", []),
        ("", [("host", "evil.example")]),
        ("", []),
        (NAME, [("host", "evil.example")]),
        (f"allowed@{NAME}", []),
        (f"{NAME}:1", []),
    ],
)
def test_another_authority(scene, authority, fields):
    server, client = both(scene)
    stream = client.ask(server.port, "/", *fields, authority=authority)
    assert client.over or stream in client.reset or client.status(stream) in (400, 403)
    assert server.seen.empty()


@pytest.mark.parametrize(
    ("path", "fields", "method"),
    [
        ("/", [("connection", "x")], "GET"),
        ("/", [("content_length", "5")], "GET"),
        ("/", [("transfer_encoding", "chunked")], "GET"),
        ("/", [("transfer-encoding", "chunked")], "GET"),
        ("/", [("upgrade", "websocket")], "GET"),
        ("/", [("x", "a\r\nhost: evil.example")], "GET"),
        ("/", [("x", "a\0b")], "GET"),
        ("/", [("x y", "a")], "GET"),
        ("/ HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /", [], "GET"),
        ("/a b", [], "GET"),
        ("", [], "GET"),
        ("evil", [], "GET"),
        ("/", [], "GET /x HTTP/1.1\r\nX:"),
        ("/", [("content-length", "5"), ("content-length", "6")], "GET"),
        ("/", [("content-length", "5")], "GET"),
    ],
)
@pytest.mark.parametrize("alpn", [("h2",), ("http/1.1",)], ids=["to-http2", "to-http1"])
def test_heads_that_are_not_let_through(scene, path, fields, method, alpn):
    server, client = both(scene, grant(()), handler=served if alpn == ("h2",) else echo, alpn=alpn)
    stream = client.ask(server.port, path, *fields, method=method)
    assert client.over or stream in client.reset or client.status(stream) in (400, 403, 502)
    scene.close_servers()
    assert server.seen.empty()


def test_connect_is_refused(scene):
    server, client = both(scene, grant(()))
    client.http.send_headers(1, [(":method", "CONNECT"), (":authority", f"{NAME}:22")])
    client.flush()
    client.until(lambda: 1 in client.ended or 1 in client.reset)
    assert client.over or 1 in client.reset or client.status(1) in (400, 403)
    assert server.accepted == 0


def test_to_a_server_of_http_1(scene):
    server, client = both(scene, handler=echo, alpn=("http/1.1",))
    streams = [client.ask(server.port, f"/{index}", wait=False, method="POST", body=b"text") for index in range(8)]
    client.until(lambda: set(streams) <= client.ended)
    assert [client.status(stream) for stream in streams] == [200] * 8
    assert all(client.bodies[stream].endswith(b"text") for stream in streams)


@pytest.mark.parametrize("length", [None, 3, 4000])
def test_no_request_hides_in_a_body_for_a_server_of_http_1(scene, length):
    server, client = both(scene, grant(("POST",)), handler=echo, alpn=("http/1.1",))
    hidden = f"DELETE /hidden HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    fields = [] if length is None else [("content-length", str(length))]
    stream = client.ask(server.port, "/", *fields, method="POST", body=hidden)
    if length is None:
        assert client.status(stream) == 200
        assert server.seen.get(timeout=PATIENCE)[1] == hidden
    else:
        assert client.over or stream in client.reset or client.status(stream) in (400, 502)
    scene.close_servers()
    assert all(head.startswith(b"POST / ") for head, _ in list(server.seen.queue))


def test_secrets_are_put_in(scene):
    server, client = both(scene, grant(secret="KEY"), secrets=SECRETS)
    body = f"key={PLACEHOLDER}".encode()
    client.ask(server.port, f"/?k={PLACEHOLDER}", ("authorization", f"Bearer {PLACEHOLDER}"), method="POST", body=body)
    head, content, _ = server.seen.get(timeout=PATIENCE)
    assert (head["authorization"], head[":path"], content) == (
        f"Bearer {VALUE}",
        f"/?k={VALUE}",
        f"key={VALUE}".encode(),
    )
    assert client.status(client.ask(server.port, "/", ("x", OTHER[1]))) == 403


def test_an_edit_resets_only_the_request_that_it_does_not_allow(scene):
    told = threading.Event()

    def slow(stream, server):
        peer = Peer(stream, client=False)
        peer.until(lambda: {1, 3} <= set(peer.heads))
        numbers = {head[":method"]: number for number, head in peer.heads.items()}
        server.seen.put("both")
        peer.until(lambda: peer.reset)
        server.seen.put(set(peer.reset) == {numbers["POST"]})
        peer.http.send_headers(numbers["GET"], [(":status", "200")], end_stream=True)
        peer.flush()
        told.wait(PATIENCE)

    kept = grant(("GET",))
    server, client = both(scene, kept, grant(("POST",)), handler=slow)
    first = client.ask(server.port, wait=False)
    second = client.ask(server.port, method="POST", body=b"x", wait=False)
    assert server.seen.get(timeout=PATIENCE) == "both"
    scene.inspector.recheck(7, (kept,))
    client.until(lambda: {first, second} <= client.ended | set(client.reset))
    assert (client.status(first), client.status(second)) == (200, 403)
    assert server.seen.get(timeout=PATIENCE)
    record = scene.record()
    assert (record["method"], record["action"]) == ("POST", "revoked")
    told.set()


def test_a_body_too_large_is_cut(scene):
    server, client = both(scene, grant(max_body=1000))
    stream = client.ask(server.port, method="POST", body=bytes(1001))
    assert client.status(stream) == 413
    assert client.status(client.ask(server.port, method="POST", body=bytes(1000))) == 200


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_what_windows_hold_back_is_not_kept(scene):
    """The client opens no window: the server is held up, rather than the gateway filled."""

    def pour(stream, server):
        peer = Peer(stream, client=False)
        peer.until(lambda: 1 in peer.ended)
        peer.http.send_headers(1, [(":status", "200")])
        sent = 0
        stream.settimeout(1.5)
        try:
            while sent < 200 << 20:
                peer.http.send_data(1, bytes(16384))
                sent += 16384
                peer.flush()
        except OSError:
            server.seen.put(sent)
            return
        server.seen.put(sent)

    before = resident()
    server, client = both(scene, handler=pour, window=1000)
    client.ask(server.port, wait=False)
    sent = server.seen.get(timeout=30)
    assert sent < 50 << 20
    assert resident() - before < 60 << 20


def test_a_large_upload_to_a_server_that_does_not_read_is_held_up(scene):
    told = threading.Event()

    def unread(stream, server):
        peer = Peer(stream, client=False, window=1000)
        peer.until(lambda: peer.heads)
        told.wait(PATIENCE)

    _server, client = both(scene, handler=unread)
    client.until(lambda: client.http.remote_settings.initial_window_size > 1 << 20)
    head = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
    client.http.send_headers(1, head)
    client.flush()
    client.stream.settimeout(1.5)
    before, sent = resident(), 0
    try:
        while sent < 200 << 20:
            client.http.send_data(1, bytes(16384))
            sent += 16384
            client.flush()
    except TimeoutError:
        told.set()
    assert sent < 50 << 20
    assert resident() - before < 60 << 20
    assert told.is_set()
