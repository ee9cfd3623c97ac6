"""Egress verdicts on the ledger, from a run's own gateway and the standing one; without it nothing new gets out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ledgers import directory_of, end_service, events_of, runtime_of, service_of
from tests.worlds import World

# A service that is started while another one starts ends at once, and is init's to reap.
pytestmark = pytest.mark.orphans

# Inside: one line a question, one line an answer. `keep` asks once more on the connection of before.
PROGRAM = r"""
import socket, sys
kept = None
for line in sys.stdin:
    host, port = line.split()
    try:
        if host == "keep":
            kept.sendall(bytes(5))
            print("heard", kept.recv(100).decode() or "nothing", flush=True)
            continue
        kept = socket.create_connection((host, int(port)), 20)
        print("heard", kept.recv(100).decode() or "nothing", flush=True)
    except OSError as error:
        print("error", type(error).__name__, flush=True)
"""


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def greeter() -> Iterator[int]:
    """A service of the host's on 127.0.0.1 that greets whoever comes, and whoever says something; its port."""
    open_sockets: list[socket.socket] = []

    def attend(one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            one.sendall(b"hello")
            while one.recv(100):
                one.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    open_sockets.append(one)
                    threads.append(threading.Thread(target=attend, args=(one,)))
                    threads[-1].start()

        thread = threading.Thread(target=greet)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        for one in open_sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for one_thread in threads:
            one_thread.join(30)


class Running:
    def __init__(self, world: World, port: int) -> None:
        profile = world.tmp / "agent.toml"
        prefix = json.dumps(os.path.realpath(sys.base_prefix))
        profile.write_text(
            f'schema = 1\ntier = 1\n[filesystem]\nread = [{prefix}]\n[network]\nconnect = ["host:{port}"]\n'
        )
        world.own(profile)
        argv = world.osmoda_argv(
            "run", "--profile", str(profile), "--", os.path.realpath(sys.executable), "-c", PROGRAM
        )
        self.process = world.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, host: str, port: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{host} {port}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        return self.process.communicate(timeout=60)[1]


@contextlib.contextmanager
def running(world: World, port: int) -> Iterator[Running]:
    one = Running(world, port)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@contextlib.contextmanager
def standing(world: World) -> Iterator[subprocess.Popen[str]]:
    argv = world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
    process = world.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "osmoda-egress: serving\n"
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(params=["its own gateway", "the standing one"])
def gateway(request: pytest.FixtureRequest, recorded: World) -> Iterator[str]:
    with standing(recorded) if request.param == "the standing one" else contextlib.nullcontext():
        yield request.param


def verdicts(world: World) -> list[dict[str, object]]:
    return [one["event"] for one in events_of(world) if one["kind"] == "egress"]


def test_what_was_let_through_and_what_was_refused_is_on_it(recorded: World, gateway: str, greeter: int):
    with running(recorded, greeter) as one:
        # A gateway that has not been answered by the ledger within its time refuses, on a machine that is busy.
        eventually(lambda: one.ask("host.osmoda", greeter) == "heard hello")
        assert one.ask("unlisted.example", 443).startswith("error")
        one.end()
    eventually(lambda: {"allow", "deny"} <= {one.get("verdict") for one in verdicts(recorded)})
    allowed = [one for one in verdicts(recorded) if one["verdict"] == "allow"]
    denied = [one for one in verdicts(recorded) if one["verdict"] == "deny" and one["name"] != "host.osmoda"]
    assert [(one["name"], one["port"], one["action"]) for one in allowed] == [("host.osmoda", greeter, "spliced")]
    assert {one["name"] for one in denied} == {"unlisted.example"}
    assert "not in network.allow" in str(denied[0]["reason"])
    (launch,) = [one["event"] for one in events_of(recorded) if one["kind"] == "launch"]
    assert {one["identity"] for one in verdicts(recorded)} == {launch["identity"]}


def test_many_verdicts_of_one_moment_are_summed_up(recorded: World, greeter: int):
    """A program that does nothing but connect must not fill the disk."""
    program = (
        "import socket, sys\n"
        "for _ in range(400):\n"
        "    try: one = socket.create_connection(('host.osmoda', 1), 20); one.sendall(bytes(9)); one.recv(1)\n"
        "    except OSError: pass\n"
    )
    profile = recorded.tmp / "agent.toml"
    prefix = json.dumps(os.path.realpath(sys.base_prefix))
    profile.write_text(
        f'schema = 1\ntier = 1\n[filesystem]\nread = [{prefix}]\n[network]\nconnect = ["host:{greeter}"]\n'
    )
    recorded.own(profile)
    interpreter = os.path.realpath(sys.executable)
    assert recorded.osmoda("run", "--profile", profile, "--", interpreter, "-c", program).returncode == 0
    found = verdicts(recorded)
    single = [one for one in found if "verdict" in one]
    summed = sum(int(str(one["others"])) for one in found if "others" in one)
    assert len(single) + summed == 400


def test_without_it_nothing_new_gets_out_and_what_is_open_goes_on(recorded: World, gateway: str, greeter: int):
    with running(recorded, greeter) as one:
        eventually(lambda: one.ask("host.osmoda", greeter) == "heard hello")
        assert one.ask("keep", 0) == "heard hello"
        # Nobody can write to it from now on.
        os.rename(directory_of(recorded) / "head", recorded.tmp / "head")
        assert end_service(runtime_of(recorded), signal.SIGKILL)
        eventually(lambda: one.ask("keep", 0) == "heard hello")

        def refused() -> bool:
            answer = one.ask("host.osmoda", greeter)
            return answer != "heard hello"

        eventually(refused)
        os.rename(recorded.tmp / "head", directory_of(recorded) / "head")
        eventually(lambda: one.ask("host.osmoda", greeter) == "heard hello")
        errors = one.end()
    assert "cannot be put on the ledger" in errors
    reasons = [str(found.get("reason", "")) for found in verdicts(recorded)]
    assert any("cannot be put on the ledger" in reason for reason in reasons), "that is on it, too, when it can be"


def test_a_service_that_is_killed_costs_a_moment(recorded: World, gateway: str, greeter: int):
    with running(recorded, greeter) as one:
        # A gateway that has not been answered by the ledger within its time refuses, on a machine that is busy.
        eventually(lambda: one.ask("host.osmoda", greeter) == "heard hello")
        assert end_service(runtime_of(recorded), signal.SIGKILL)
        eventually(lambda: one.ask("host.osmoda", greeter) == "heard hello")
        assert service_of(runtime_of(recorded))
        one.end()
    allowed = [one for one in verdicts(recorded) if one.get("verdict") == "allow"]
    assert len(allowed) >= 2


def test_a_question_that_is_answered_is_on_it_first(recorded: World, tmp_path: Path):
    profile = recorded.tmp / "asking.toml"
    prefix = json.dumps(os.path.realpath(sys.base_prefix))
    profile.write_text(f"schema = 1\ntier = 1\n[filesystem]\nread = [{prefix}]\n[network]\nask = true\n")
    recorded.own(profile)
    program = (
        "import socket\ntry: socket.create_connection(('asked.example', 4444), 20).recv(1)\nexcept OSError: pass\n"
    )
    argv = recorded.osmoda_argv("run", "--profile", str(profile), "--", os.path.realpath(sys.executable), "-c", program)
    with recorded.popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        questions: list[dict[str, object]] = []

        def asked() -> bool:
            questions[:] = json.loads(recorded.egress("pending", "--json").stdout or "[]")
            return bool(questions)

        try:
            eventually(asked)
            assert recorded.egress("refuse", str(questions[0]["id"])).returncode == 0
            process.wait(60)
        finally:
            process.kill()
    (decision,) = [one["event"] for one in events_of(recorded) if one["kind"] == "approval"]
    assert (decision["what"], decision["name"], decision["port"]) == ("refuse", "asked.example", 4444)
