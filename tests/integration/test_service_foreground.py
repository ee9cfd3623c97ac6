"""One command for a service manager: what the manager says goes to the command, what the command says to the manager.

The manager is the test: it does what systemd does with a service that it starts (sd_notify(3), sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from tests.worlds import World

DEADLINE = 30.0
PYTHON = "/usr/bin/python3"
START = """
import os, sys
if len(sys.argv) > 3:
    os.dup2(int(sys.argv[3]), 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.service_foreground import run_service
env = {"PATH": "/usr/bin:/bin"}
sys.exit(run_service(Profile.default(int(sys.argv[1])), ["%s", "-c", sys.argv[2]], env=env, cwd="/"))
"""
TELL = """
import os, signal, socket, sys
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(text, os.environ["NOTIFY_SOCKET"])
"""


class Manager:
    """The service manager's end, as `world` reaches it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.path = world.tmp / "notify"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.settimeout(DEADLINE)
        self.notify.bind(os.fspath(self.path))
        world.own(self.path)

    @contextmanager
    def start(self, tier: int, program: str, listening: socket.socket | None = None) -> Iterator[subprocess.Popen[str]]:
        """The service, which is killed on the way out should it still run."""
        more = [str(listening.fileno())] if listening is not None else []
        with self.world.popen(
            [sys.executable, "-c", START % PYTHON, str(tier), TELL + program, *more],
            env={"NOTIFY_SOCKET": os.fspath(self.path), "WATCHDOG_USEC": "30000000"},
            pass_fds=[int(fd) for fd in more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def message(self) -> tuple[bytes, int]:
        """The next notification, and who has sent it."""
        data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(12))
        pid: int = struct.unpack("iII", ancillary[0][2])[0]
        return data, pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.notify.close()


@pytest.mark.parametrize("tier", [0, 1])
def test_a_service_of_a_service_manager(world: World, tier: int) -> None:
    program = """
assert os.environ["LISTEN_FDNAMES"] == "web" and os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["WATCHDOG_USEC"] == "30000000" and "WATCHDOG_PID" not in os.environ
signal.signal(signal.SIGHUP, lambda *_: tell(b"STATUS=reloaded"))
with socket.socket(fileno=3) as listening:
    tell(b"MAINPID=1\\nREADY=1\\nFDSTORE=1\\nNOTIFYACCESS=all")
    client, _ = listening.accept()
with client:
    client.sendall(b"hello")
sys.exit(7)
"""
    with Manager(world) as manager, socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        path = os.fspath(world.tmp / "web.sock")
        listening.bind(path)
        world.own(world.tmp / "web.sock")
        listening.listen()
        with manager.start(tier, program, listening) as process:
            # As from the service itself, and nothing of pids and descriptors.
            assert manager.message() == (b"READY=1", process.pid)
            process.send_signal(signal.SIGHUP)
            assert manager.message() == (b"STATUS=reloaded", process.pid)
            client.settimeout(DEADLINE)
            client.connect(path)
            assert client.recv(100) == b"hello"
            assert process.wait(DEADLINE) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_by_a_signal_is_one_for_the_manager_too(world: World, number: int) -> None:
    with Manager(world) as manager:
        program = f"tell(b'READY=1')\nos.kill(os.getpid(), {int(number)})"
        with manager.start(1, program) as process:
            assert process.wait(DEADLINE) == -number


def test_the_manager_ends_it(world: World) -> None:
    with Manager(world) as manager, manager.start(1, "tell(b'READY=1')\nsignal.pause()") as process:
        assert manager.message()[0] == b"READY=1"
        process.terminate()
        assert process.wait(DEADLINE) == -signal.SIGTERM
