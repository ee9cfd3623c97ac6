"""Requests and connections a second through the inspecting half, against stock mitmdump and a direct connection.

    python tests/bench/inspected.py [--rounds N] [--seconds S] [--mitmdump PATH]

On loopback: nginx with a certificate made here, mitmdump as a reverse proxy to it, and an inspector behind a listener
that hands each connection over as a gateway does. The three take turns within each round, with the same client; what
is printed are medians, and ratios to mitmdump. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from osmoda.egress.authority import Authority
from osmoda.egress.inspection import InspectedConnection, Inspector
from osmoda.egress.loop import Loop
from osmoda.egress.policy import Grant

NAME = "origin.test"
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; server_name {name};
    ssl_certificate {folder}/leaf.pem; ssl_certificate_key {folder}/leaf.pem;
    location / {{ return 200 "ok"; }}
  }}
}}
"""
REQUEST = f"GET /v1/models HTTP/1.1\r\nHost: {NAME}:PORT\r\nAccept: */*\r\n\r\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--mitmdump", default=shutil.which("mitmdump", path=os.path.dirname(sys.executable)))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world, port = Authority.new(), free_port()
        write_leaf(world, folder / "leaf.pem")
        (folder / "world.pem").write_bytes(world.pem)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, name=NAME))
        started = [
            subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", folder / "nginx.conf", "-p", name])
        ]
        ways = {"direct": port}
        inspected = Inspected(folder / "world.pem", port)
        try:
            await_port(port)
            if given.mitmdump:
                ways["mitmdump"] = free_port()
                started.append(mitmdump(given.mitmdump, folder, ways["mitmdump"], port))
                await_port(ways["mitmdump"])
            ways["inspected"] = inspected.port
            measure(ways, port, given)
        finally:
            inspected.close()
            for process in started:
                process.send_signal(signal.SIGTERM)
                process.wait()


def measure(ways: dict[str, int], origin: int, given: argparse.Namespace) -> None:
    for way in ways.values():
        asyncio.run(load(way, origin, given.clients, 0.5, keep=True))
    for title, keep in (("requests/s on kept connections", True), ("new connections/s", False)):
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way, port in ways.items():
                found[way].append(asyncio.run(load(port, origin, given.clients, given.seconds, keep=keep)))
        medians = {way: statistics.median(figures) for way, figures in found.items()}
        base = medians.get("mitmdump", 0)
        shown = [
            f"{way} {figure:.0f}" + (f" ({figure / base:.2f}x)" if base else "") for way, figure in medians.items()
        ]
        print(f"{title}, {given.clients} at a time: {', '.join(shown)}", flush=True)


async def load(port: int, origin: int, clients: int, seconds: float, *, keep: bool) -> float:
    """How many requests were answered, a second."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = REQUEST.replace("PORT", str(origin)).encode()
    end = time.monotonic() + seconds
    done = 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
            while True:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(head)
                await reader.readexactly(2)
                done += 1
                if not keep or time.monotonic() >= end:
                    break
            writer.transport.abort()

    began = time.monotonic()
    await asyncio.gather(*[client() for _ in range(clients)])
    return done / (time.monotonic() - began)


class Inspected:
    """An inspector behind a listener, in threads of this process's child: it is to have an interpreter of its own."""

    def __init__(self, bundle: Path, origin: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = listener.getsockname()[1]
        self._pid = os.fork()
        if self._pid == 0:
            serve(listener, bundle, origin)
        listener.close()

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def serve(listener: socket.socket, bundle: Path, origin: int) -> None:
    loop = Loop()
    inspector = Inspector(loop)
    inspector.prewarm()
    authority = Authority.new()
    grants = (Grant(NAME, (origin,), methods=("GET", "POST"), paths=("/v1/*",), origin="p.toml:1"),)
    number = 0

    def accept() -> None:
        nonlocal number
        while True:
            client, _ = listener.accept()
            client.setblocking(False)
            number += 1
            flow = InspectedConnection(
                id=number,
                session="1",
                name=NAME,
                port=origin,
                tls=True,
                addresses=("127.0.0.1",),
                grants=grants,
                authority=authority,
                secrets=(("KEY", "sk-placeholder-0123456789", "sk-value-value-0123456789"),),
                upstream_authorities=str(bundle),
                on_record=lambda fields: None,
                on_closed=lambda *_: None,
                take_request=lambda grants: "",
                on_moved=lambda *_: None,
            )
            inspector.adopt(client.detach(), b"", flow)

    threading.Thread(target=accept, daemon=True).start()
    loop.run()


def mitmdump(path: str, folder: Path, port: int, origin: int) -> subprocess.Popen[bytes]:
    options = {
        "confdir": folder / "mitm",
        "ssl_verify_upstream_trusted_ca": folder / "world.pem",
        "keep_host_header": "true",
    }
    command = [
        path,
        "-q",
        "--mode",
        f"reverse:https://127.0.0.1:{origin}",
        "--listen-host",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    for name, value in {**options, "ssl_insecure": "true"}.items():
        command += ["--set", f"{name}={value}"]
    return subprocess.Popen(command)


def write_leaf(authority: Authority, path: Path) -> None:
    key = authority.leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(authority.leaf(NAME).public_bytes(serialization.Encoding.PEM) + key)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def await_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    main()
