"""A day of traffic in small: connections of every kind, edits, a service that is killed and started, slow clients.

`OSMODA_SOAK_CONNECTIONS=200000` makes it a long one. The server's own log is the witness of what got out, and when.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.internet import Internet, OnlineWorld, eventually
from tests.sandboxed import PYTHON, Sandboxed

CONNECTIONS = int(os.environ.get("OSMODA_SOAK_CONNECTIONS", "3000"))
MOST_GROWTH = 24 << 20  # bytes of memory that the service may grow by, caches and all
CYCLE = 1.0  # seconds between two edits
LOGGED = CYCLE / 2  # seconds in which the server gets to a request that had come to it, and logs it

# Inside: connections until the input ends, a progress line every hundred, and the sums at the end.
CLIENT = r"""
import collections, json, select, socket, ssl, sys, threading, time
sums, lock, slow = collections.Counter(), threading.Lock(), collections.deque()
context = ssl.create_default_context()
ended = threading.Event()

def fetch(host, port, path, tls=False):
    with socket.create_connection((host, port), 30) as plain:
        plain.settimeout(30)
        with context.wrap_socket(plain, server_hostname=host) if tls else plain as one:
            one.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            got = b""
            while part := one.recv(65536):
                got += part
    return "ok" if got.startswith(b"HTTP/1.1 200") else "refused" if got.startswith(b"HTTP/1.1 403") else "cut"

def one(number):
    kind = number % 20
    if kind < 15:
        return "http", fetch("www.example.test", 80, "/small")
    if kind < 17:
        return "tls", fetch("www.example.test", 443, "/small", tls=True)
    if kind == 17:
        return "toggled", fetch("other.example.test", 80, f"/toggled-{number}")
    if kind == 18:
        return "port", fetch("www.example.test", 8080, "/small")
    if number % 400 == 19:
        hanging = socket.create_connection(("www.example.test", 80), 30)
        hanging.sendall(b"G")
        slow.append(hanging)
        while len(slow) > 40:
            slow.popleft().close()
        return "slow", "ok"
    return "unlisted", fetch("unlisted.example.test", 80, "/small")

def work(first, step):
    number = first
    while not ended.is_set():
        try:
            kind, how = one(number)
        except socket.gaierror:
            kind, how = "name", "refused"
        except TimeoutError:
            kind, how = str(number % 20), "STUCK"
        except OSError as error:
            kind, how = str(number % 20), type(error).__name__
        with lock:
            sums[f"{kind} {how}"] += 1
            total = sum(sums.values())
        if total % 100 == 0:
            print(total, flush=True)
        number += step

threads = [threading.Thread(target=work, args=(n, 4)) for n in range(4)]
for thread in threads: thread.start()
sys.stdin.read()
ended.set()
for thread in threads: thread.join()
for hanging in slow: hanging.close()
print(json.dumps(sums), flush=True)
"""


class Service:
    """The standing service of a world; killed and started."""

    def __init__(self, world: OnlineWorld) -> None:
        self.world = world
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        argv = self.world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
        self.process = self.world.popen(argv, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line == "osmoda-egress: serving\n", line

    def worker(self) -> int:
        """The process that serves: of the two, the one that was forked."""
        assert self.process is not None
        return next(pid for pid in descendants(self.process.pid) if not descendants(pid) and is_egress(pid))

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def kill(self) -> None:
        """As by the OOM killer; its workers see that their parent is gone, and end."""
        assert self.process is not None
        workers = descendants(self.process.pid)
        self.end(signal.SIGKILL)
        for pid in workers:
            # Orphans come to the test process; as long as they are zombies, their sockets look like those of the busy.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def descendants(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def is_egress(pid: int) -> bool:
    return "egress" in Path(f"/proc/{pid}/comm").read_text() or "python" in Path(f"/proc/{pid}/comm").read_text()


def memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LookupError(pid)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def standing(world: OnlineWorld) -> Iterator[Service]:
    service = Service(world)
    service.start()
    try:
        yield service
    finally:
        service.end(signal.SIGTERM)
        # Whoever asks removes the sockets of those that were killed.
        world.egress("status", check=True)


@pytest.mark.orphans  # the workers of a service that is killed
def test_a_day_of_traffic_in_small(sandboxed: Sandboxed, web: Internet) -> None:
    world = sandboxed.world
    sandboxed = replace(sandboxed, tier=2)
    profile = sandboxed.profile('allow = ["www.example.test:80,443"]\n')
    allowed: list[tuple[float, float]] = []
    start = time.time()
    argv = world.osmoda_argv("run", "--quiet", "--profile", str(profile), "--workspace", str(sandboxed.work))
    command = [*argv, "--", PYTHON, "-c", CLIENT]
    with (
        standing(world) as service,
        world.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        made, cycle = follow(client, 0, 0.1), 0
        early: dict[int, int] = {}
        while made < CONNECTIONS:
            cycle += 1
            began = time.time()
            world.egress("allow", profile, "other.example.test:80", check=True)
            made = follow(client, made, CYCLE)
            world.egress("remove", profile, "other.example.test", check=True)
            allowed.append((began, time.time()))
            made = follow(client, made, CYCLE)
            pid = service.worker()
            early.setdefault(pid, memory(pid))
            if cycle % 6 == 3:
                service.kill()
                service.start()
        pid = service.worker()
        grown = memory(pid) - early.get(pid, memory(pid))
        client.stdin.close()
        sums = json.loads(client.stdout.read().strip().rpartition("\n")[2])
        client.stdout.close()
        assert client.wait(60) == 0
        # Nothing of the sandbox is left with the service.
        idle = eventually(lambda: open_files(pid) if open_files(pid) < 40 else 0, "the service lets go")
    print(json.dumps({"made": sum(sums.values()), "cycles": cycle, "grown": grown, "open": idle, **sums}))

    assert not [kind for kind in sums if kind.endswith("STUCK")], sums
    assert sums["http ok"] > 0.6 * sum(sums.values())
    for kind in ("tls ok", "toggled ok", "name refused", "slow ok"):
        assert sums[kind], (kind, sums)
    assert not any(sums.get(f"{kind} ok") for kind in ("port", "unlisted")), sums
    assert grown < MOST_GROWTH
    # What got to the other name did so while it was allowed, and nothing else got anywhere.
    seen = [page for page in web.pages() if page["time"] >= start]
    pages = [page for page in seen if "/toggled-" in page["uri"]]
    assert pages
    for page in pages:
        assert any(began <= page["time"] <= ended + LOGGED for began, ended in allowed), page
    assert {page["server"] for page in seen} <= {"www.example.test", "other.example.test"}
    assert not [page for page in seen if page["port"] == 8080]


def follow(client: subprocess.Popen[str], made: int, seconds: float) -> int:
    """Read the client's progress for about that long; how many connections it has made."""
    assert client.stdout is not None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        line = client.stdout.readline()
        assert line, "the client has ended"
        made = max(made, int(line))
    return made
