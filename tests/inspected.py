"""Connections that are looked into, between a client and a server of the test's own."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives import serialization

from osmoda.egress.authority import Authority
from osmoda.egress.inspection import InspectedConnection, Inspector
from osmoda.egress.loop import Loop
from osmoda.egress.policy import Grant

PATIENCE = 30.0
NAME = "api.example"
PLACEHOLDER = "sk-Ab3dEf6hIj9kLm2nOp5q"
VALUE = "sk-REALrealREALreal1234"
OTHER = ("OTHER", "ghp_0123456789abcdefghij", "ghp_otherotherotherother")
SECRETS = (("KEY", PLACEHOLDER, VALUE), OTHER)

type Handler = Callable[[Any, "Server"], None]


def credentials(authority: Authority, name: str, folder: Any) -> str:
    """The path of a key with its certificate."""
    path = folder / f"{name}-{id(authority)}.pem"
    key = authority.leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(key + authority.leaf(name).public_bytes(serialization.Encoding.PEM))
    return str(path)


class Server:
    """Has each connection handled in a thread. `seen` is what handlers put there."""

    def __init__(self, handler: Handler, context: ssl.SSLContext | None) -> None:
        self.seen: queue.Queue[Any] = queue.Queue()
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self.listener.getsockname()[1]
        self._handler = handler
        self._context = context
        self._threads = [threading.Thread(target=self._serve)]
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            client.settimeout(PATIENCE)
            self._open.add(client)
            thread = threading.Thread(target=self._handle, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._context is None:
                self._handler(client, self)
            else:
                with self._context.wrap_socket(client, server_side=True) as tls:
                    self._open.add(tls)
                    if not self._closing:
                        self._handler(tls, self)

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for client in tuple(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in tuple(self._threads):
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Scene:
    """An inspector whose gateway is a bare loop in a thread."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder
        self.loop = Loop()
        self.inspector = Inspector(self.loop)
        self.authority = Authority.new()  # the sandbox's
        self.world = Authority.new()  # the servers'
        self.bundle = folder / "world.pem"
        self.bundle.write_bytes(self.world.pem)
        self.records: queue.Queue[dict[str, Any]] = queue.Queue()
        self.faults: queue.Queue[dict[str, Any]] = queue.Queue()
        self.closed: queue.Queue[tuple[int, int, int]] = queue.Queue()
        self.taken: list[tuple[Grant, ...]] = []
        self.spent = ""
        self.moved: list[int] = []
        self.servers: list[Server] = []
        self.clients: list[Any] = []
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def server(self, handler: Handler, *, tls: bool = True, name: str = NAME, alpn: tuple[str, ...] = ()) -> Server:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(credentials(self.world, name, self.folder))
            if alpn:
                context.set_alpn_protocols(list(alpn))
        server = Server(handler, context)
        self.servers.append(server)
        return server

    def connect(
        self,
        server: Server | int,
        *grants: Grant,
        tls: bool = True,
        name: str = NAME,
        sni: str | None = NAME,
        alpn: tuple[str, ...] = (),
        peeked: bytes = b"",
        secrets: tuple[tuple[str, str, str], ...] = (),
        addresses: tuple[str, ...] = ("127.0.0.1",),
        authorities: str | None = None,
        flow: int = 7,
    ) -> Any:
        """A client's end of a connection that has been handed over."""
        port = server if isinstance(server, int) else server.port
        with socket.create_server(("127.0.0.1", 0)) as listener:
            mine = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        mine.settimeout(PATIENCE)
        theirs.setblocking(False)
        connection = InspectedConnection(
            id=flow,
            session="1-1",
            name=name,
            port=port,
            tls=tls,
            addresses=addresses,
            grants=grants or (Grant(name, (port,), methods=("GET", "POST"), origin="p.toml:8"),),
            authority=self.authority,
            secrets=secrets,
            upstream_authorities=str(self.bundle) if authorities is None else authorities,
            on_record=self._recorded,
            on_closed=lambda *closed: self.closed.put(closed),
            take_request=self._take,
            on_moved=lambda grants, moved: self.moved.append(moved),
        )
        self.inspector.adopt(theirs.detach(), peeked, connection)
        client: Any = mine
        if tls:
            context = ssl.create_default_context(cadata=self.authority.pem.decode())
            context.check_hostname = sni is not None
            if alpn:
                context.set_alpn_protocols(list(alpn))
            client = context.wrap_socket(mine, server_hostname=sni)
        self.clients.append(client)
        return client

    def _recorded(self, fields: dict[str, Any]) -> None:
        (self.faults if fields["event"] == "fault" else self.records).put(fields)

    def _take(self, grants: tuple[Grant, ...]) -> str:
        assert threading.current_thread() is self._thread
        self.taken.append(grants)
        return self.spent

    def record(self) -> dict[str, Any]:
        return self.records.get(timeout=PATIENCE)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.inspector.close(PATIENCE)
        self.loop.stop()
        self._thread.join(PATIENCE)
        self.loop.shut()
        self.close_servers()
        assert list(self.faults.queue) == []

    def close_servers(self) -> None:
        """Their handlers have ended then."""
        for server in self.servers:
            server.close()
        self.servers.clear()


def scenes(folder: Any) -> Iterator[Scene]:
    scene = Scene(folder)
    try:
        yield scene
    finally:
        scene.close()


def head_of(stream: Any) -> bytes:
    """Read up to the empty line; what comes after it is not touched."""
    content = b""
    while not content.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            return content
        content += byte
    return content


def exactly(stream: Any, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        some = stream.recv(min(size - len(content), 1 << 16))
        if not some:
            break
        content += some
    return bytes(content)


def length_of(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


def body_of(stream: Any, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return exactly(stream, length_of(head))
    content = b""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = stream.recv(1)
            if not byte:
                raise ConnectionError("the body is cut")
            line += byte
        size = int(line, 16)
        piece = exactly(stream, size + 2)
        if not size:
            return content
        content += piece[:-2]


def echo(stream: Any, server: Server) -> None:
    """Answers every request with its head and body."""
    while True:
        head = head_of(stream)
        if not head:
            return
        body = body_of(stream, head)
        server.seen.put((head, body))
        answer = b"" if head.startswith(b"HEAD") else head + body
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head + body) + answer)


def answer_of(stream: Any) -> tuple[int, bytes]:
    """The status and body of one answer."""
    head = head_of(stream)
    assert head.startswith(b"HTTP/1.1 "), head
    return int(head.split()[1]), body_of(stream, head)


def ask(client: Any, content: bytes) -> tuple[int, bytes]:
    client.sendall(content)
    return answer_of(client)


def grant(methods=("GET", "POST"), **options):
    return Grant(NAME, (443,), methods=methods, origin="p.toml:8", **options)


def get(port, path="/", *lines, host=None, method="GET", version="1.1"):
    named = [] if host == "" else [f"Host: {host or f'{NAME}:{port}'}"]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *named, *lines, "", ""]).encode()


def post(port, body, *lines, path="/"):
    return get(port, path, f"Content-Length: {len(body)}", *lines, method="POST") + body


def nothing_delivered(scene, server):
    assert server.seen.empty()
    assert server.accepted == 0


def reset(client):
    """Whether the connection has been reset, after whatever could still be read."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False
