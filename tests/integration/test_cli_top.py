"""`top` beside real sandboxes: what runs, its connections, what is refused; the terminal is left as it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osmoda.sandbox.cli import main
from tests.terminals import Terminal
from tests.worlds import SECONDS, World

# Connects and keeps the connection; for each line that it reads it asks for a name and mounts something.
PROGRAM = """
import ctypes, socket, sys
one = socket.create_connection(("host.osmoda", int(sys.argv[1])))
print("ready", flush=True)
for line in sys.stdin:
    try:
        socket.getaddrinfo("evil.example", 443)
    except OSError:
        pass
    ctypes.CDLL(None).mount(None, None, None, 0, None)
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the host's where connections are taken and held."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        thread = threading.Thread(target=take)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in held:
        one.close()


@contextlib.contextmanager
def agent(world: World, port: int) -> Iterator[subprocess.Popen[str]]:
    """A sandbox called "writer" with `PROGRAM` in it, connected."""
    profile = world.tmp / "agent.toml"
    profile.write_text(f'schema = 1\ntier = 1\n[network]\nconnect = ["host:{port}"]\n')
    world.own(profile)
    command = ("/usr/bin/python3", "-c", PROGRAM, str(port))
    argv = world.osmoda_argv("run", "--quiet", "--agent", "writer", "--profile", profile, "--", *command)
    pipe = subprocess.PIPE
    with world.popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS)


def provoke(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("now\n")
    process.stdin.flush()


def looks(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def sockets(world: World) -> list[Path]:
    xdg = world.environment.get("XDG_RUNTIME_DIR", "")
    return [*Path(world.environment.get("OSMODA_RUNTIME_DIR") or f"{xdg}/osmoda").glob("top/*")]


def test_a_real_sandbox_its_connection_and_its_refusals_are_told(world: World, port: int) -> None:
    argv = world.osmoda_argv("top", "--json", "--interval", "0.2")
    with agent(world, port) as process, world.popen(argv, stdout=subprocess.PIPE, text=True) as top:
        refused: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + SECONDS
        for look in looks(top):
            assert time.monotonic() < deadline, f"of what is refused it has told {refused.keys()}, and last {look}"
            (one,) = [one for one in look["sandboxes"] if one["identity"] == f"{process.pid:x}-1"]
            if not refused:
                assert world.is_root or {each["uid"] for each in look["sandboxes"]} == {world.uid}
                assert (one["agent"], one["tier"], one["profile"]) == ("writer", 1, "agent.toml")
                assert (one["connections"], one["processes"]) == (1, 2)
                assert one["cpu_percent"] >= 0
                assert one["memory"] > 0
                assert len(sockets(world)) == 1
            refused |= {entry["operation"]: entry for entry in look["denials"] if entry["sandbox"] == one["identity"]}
            if {"mount", "resolve"} <= refused.keys():
                break
            provoke(process)  # again: the gateway may not have been watched yet
        assert refused["mount"]["layer"] == "seccomp"
        assert "ceiling" in refused["mount"]["advice"]
        assert (refused["resolve"]["layer"], refused["resolve"]["object"]) == ("egress", "evil.example")
        assert "network.allow" in refused["resolve"]["advice"]
        top.terminate()
        assert top.wait(SECONDS) == -signal.SIGTERM
        # Once, and where there is no terminal, the table is printed.
        run = world.osmoda("top", *(["--once"] if world.name == "root" else []), check=True)
        (line,) = [line for line in run.stdout.splitlines() if line.startswith(f"{process.pid:x}-1")]
        cells = line.split()
        assert (cells[1:4], cells[-2:]) == (["writer", "1", "agent.toml"], ["2", "1"])
        assert "\x1b" not in run.stdout
    assert sockets(world) == []


def test_once_as_json_is_one_document(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["denials"], found["missed"], found["note"]) == ([], 0, "")
    assert isinstance(found["sandboxes"], list)


def test_an_interval_that_is_none_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    for interval in ("0", "-1", "61", "nan", "soon"):
        assert main(["top", "--interval", interval]) == 125
        assert "--interval" in capfd.readouterr().err


# On a terminal

XTERM = {"TERM": "xterm-256color"}
ALTERNATE, NORMAL = r"\x1b\[\?1049h", r"\x1b\[\?1049l"


def screen(world: World, **more: str) -> Terminal:
    return Terminal(world, world.osmoda_argv("top", "--interval", "0.2"), env={**XTERM, **more})


def test_the_screen_shows_a_refusal_follows_the_window_and_is_given_back(world: World, port: int) -> None:
    colours = {} if world.name == "root" else {"NO_COLOR": "1"}
    with agent(world, port) as process, screen(world, **colours) as terminal:
        terminal.expect(ALTERNATE)
        terminal.expect(f"{process.pid:x}-1 +writer +1 +agent.toml")
        provoke(process)
        terminal.expect(r"seccomp .{0,20}mount\(\)")
        terminal.expect("every 0.2 s")
        terminal.resize(40, 130)
        terminal.expect(r"conns[^\r\n]*command")  # only a wide one has this column
        terminal.press("s")
        terminal.expect(r"s sort \(cpu\)")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.settings() == terminal.before
        assert terminal.screen.endswith(b"\x1b[?25h\x1b[?1049l")
        assert bool(re.search(rb"\x1b\[[0-9;]*31m", terminal.screen)) == (not colours)
    assert sockets(world) == []


@pytest.mark.parametrize(("key", "number", "status"), [("\x03", 0, 130), ("", signal.SIGTERM, -15)])
def test_however_it_ends_the_terminal_is_as_it_was(world: World, key: str, number: int, status: int) -> None:
    with screen(world) as terminal:
        terminal.expect("every 0.2 s")
        assert terminal.settings() != terminal.before
        terminal.press(key) if key else terminal.process.send_signal(number)
        assert terminal.end() == status
        assert terminal.settings() == terminal.before
        assert terminal.screen.endswith(b"\x1b[?25h\x1b[?1049l")
    assert sockets(world) == []


FAULT = """
from osmoda.sandbox import cli, live, top
def look(self):
    raise ZeroDivisionError("a fault of ours")
live.Sampler.look = look
cli.main(["top"])
"""


def test_so_it_is_after_a_fault(world: World) -> None:
    with Terminal(world, [sys.executable, "-c", FAULT], env=XTERM) as terminal:
        terminal.expect(ALTERNATE)
        terminal.expect(NORMAL)
        terminal.expect("ZeroDivisionError: a fault of ours")
        assert terminal.end() == 1
        assert terminal.settings() == terminal.before
    assert sockets(world) == []


def test_ctrl_z_gives_the_terminal_back_for_as_long(world: World) -> None:
    with screen(world) as terminal:
        terminal.expect("every 0.2 s")
        terminal.press("\x1a")
        terminal.expect(NORMAL)
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert terminal.settings() == terminal.before
        terminal.process.send_signal(signal.SIGCONT)
        terminal.expect(ALTERNATE)
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.settings() == terminal.before
