"""The way out of a sandbox, from launch to end: who holds it, what its end costs, and what comes back."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import World

# Inside: one line a question, one line an answer.
PROGRAM = r"""
import socket, sys
for line in sys.stdin:
    host, port = line.split()
    try:
        with socket.create_connection((host, int(port)), 30) as one:
            print("heard", one.recv(100).decode() or "nothing", flush=True)
    except socket.gaierror:
        print("no such name", flush=True)
    except OSError as error:
        print("error", error.errno, flush=True)
"""


# Inside: a service that greets whoever comes, and says when it is there.
SERVICE = r"""
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print("serving", flush=True)
    while True:
        with listener.accept()[0] as one:
            one.sendall(b"hello from inside")
"""


@pytest.fixture
def greeter() -> Iterator[int]:
    """A service of the host's on 127.0.0.1 that greets whoever comes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as one:
                        one.sendall(b"hello")

        thread = threading.Thread(target=greet)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def records(world: World) -> list[dict[str, Any]]:
    """What the gateways of this world have logged."""
    (log,) = world.tmp.glob("state/**/connections.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


class Running:
    """A sandbox with `PROGRAM` in it."""

    def __init__(
        self, world: World, text: str, *options: str, name: str = "agent", tier: int = 1, program: tuple[str, ...]
    ) -> None:
        profile = world.tmp / f"{name}.toml"
        prefix = os.path.realpath(sys.base_prefix)
        profile.write_text(
            f"schema = 1\ntier = {tier}\n[filesystem]\nread = [{json.dumps(prefix)}]\n[network]\n{text}\n"
        )
        world.own(profile)
        interpreter = os.path.realpath(sys.executable)
        argv = world.osmoda_argv("run", "--profile", str(profile), *options, "--", interpreter, "-c", *program)
        self.process = world.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, host: str, port: int) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{host} {port}\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def gateways(self) -> list[int]:
        """The gateways that this run has forked."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        return [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "osmoda-egress\n"]

    def end(self) -> str:
        _, errors = self.process.communicate(timeout=60)
        return errors


@contextlib.contextmanager
def running(
    world: World, text: str, *options: str, program: tuple[str, ...] = (PROGRAM,), **more: Any
) -> Iterator[Running]:
    one = Running(world, text, *options, program=program, **more)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def test_a_declared_port_of_the_host_is_reached_and_its_neighbour_is_not(world: World, greeter: int):
    with socket.create_server(("127.0.0.1", 0)) as other, running(world, f'connect = ["host:{greeter}"]') as one:
        neighbour = other.getsockname()[1]
        assert one.ask("host.osmoda", greeter) == "heard hello"
        assert one.ask("host", greeter) == "heard hello"
        assert one.ask("host.osmoda", neighbour) in {"error 104", "heard nothing"}
        assert one.ask("127.0.0.1", greeter) == "error 111"
        assert one.ask("unlisted.example", 443) == "no such name"
        errors = one.end()
        assert one.process.returncode == 0
    assert f"host.osmoda:{neighbour} by egress" in errors
    assert "the name unlisted.example by egress; unlisted.example is not in network.allow" in errors


def test_without_a_network_there_is_no_gateway(world: World):
    with running(world, "") as one:
        assert one.ask("host.osmoda", 1) == "no such name"
        assert one.gateways() == []
        one.end()


def test_a_killed_gateway_costs_the_network_and_only_until_there_is_another(world: World, greeter: int):
    with running(world, f'connect = ["host:{greeter}"]') as one:
        assert one.ask("host.osmoda", greeter) == "heard hello"
        (gateway,) = one.gateways()
        os.kill(gateway, signal.SIGKILL)
        # A question waits in the socket that is held meanwhile.
        assert one.ask("host.osmoda", greeter) == "heard hello"
        (another,) = one.gateways()
        assert another != gateway
        one.end()
        assert one.process.returncode == 0


@pytest.mark.orphans
def test_a_killed_monitor_takes_its_gateway_along(world: World, greeter: int):
    with running(world, f'connect = ["host:{greeter}"]') as one:
        assert one.ask("host.osmoda", greeter) == "heard hello"
        (gateway,) = one.gateways()
        pidfd = os.pidfd_open(gateway)
        one.process.kill()
        one.process.wait()
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        assert ended.poll(30_000)
        os.close(pidfd)


def test_many_runs_leave_nothing(world: World, greeter: int):
    for _ in range(10):
        with running(world, f'connect = ["host:{greeter}"]') as one:
            assert one.ask("host.osmoda", greeter) == "heard hello"
            one.end()


def test_whoever_reads_the_output_sees_its_end_when_the_run_ends(world: World, greeter: int):
    """A gateway that kept a copy of the pipe would keep the reader waiting."""
    with running(world, f'connect = ["host:{greeter}"]') as one:
        one.ask("host.osmoda", greeter)
        (gateway,) = one.gateways()
        kept = set()
        for fd in os.listdir(f"/proc/{gateway}/fd"):
            with contextlib.suppress(FileNotFoundError):  # of the connection that has just ended
                kept.add(os.readlink(f"/proc/{gateway}/fd/{fd}"))
        assert kept
        streams = {os.readlink(f"/proc/{one.process.pid}/fd/{fd}") for fd in (0, 1, 2)}
        assert not kept & streams
        one.end()


# Between agents


@contextlib.contextmanager
def serving(world: World, port: int, text: str, **more: Any) -> Iterator[Running]:
    with running(world, text, program=(SERVICE, str(port)), **more) as one:
        assert one.hear() == "serving"
        yield one
        one.process.send_signal(signal.SIGTERM)
        one.end()


@pytest.mark.parametrize("loopback", [True, False])
def test_another_agents_port_is_reached_where_both_say_so(world: World, loopback: bool):
    served = f"serve = [8082]\nloopback = {json.dumps(loopback)}"
    asked = 'connect = ["agent:writer:8082", "localhost:8081=agent:writer:8082"]'
    with serving(world, 8082, served, name="writer"), running(world, asked) as one:
        for _ in range(20):  # more than sockets are made inside at a time
            assert one.ask("writer.agent", 8082) == "heard hello from inside"
        assert one.ask("localhost", 8081) == "heard hello from inside"
        assert one.ask("writer.agent", 8083) in {"error 104", "heard nothing"}
        assert one.ask("research.agent", 8082) == "no such name"
        one.end()


def test_a_port_that_its_agent_does_not_serve_is_not_reached(world: World):
    """The control is the test above: only `serve` is another."""
    with (
        serving(world, 8082, "serve = [9999]\nloopback = true", name="writer"),
        running(world, 'connect = ["agent:writer:8082"]') as one,
    ):
        assert one.ask("writer.agent", 8082) in {"error 104", "heard nothing"}
        one.end()
    reasons = [record["reason"] for record in records(world) if record["name"] == "writer.agent"]
    assert any("writer" in reason and "8082" in reason for reason in reasons), reasons


# Edits of what runs


def test_an_edit_is_in_force_in_what_runs_and_keeps_what_it_does_not_concern(world: World, greeter: int):
    with running(world, f'# why\nconnect = ["host:{greeter}"]\nallow = ["a.example"] # one') as one:
        profile = world.tmp / "agent.toml"
        assert one.ask("b.example", 443) == "no such name"
        made = world.egress("allow", profile, "b.example", check=True).stdout
        assert "b.example added to network.allow" in made
        assert "in force in sandbox" in made
        # The name leads nowhere outside either: but it is a name now.
        assert one.ask("b.example", 443) != "no such name"
        assert one.ask("host", greeter) == "heard hello"
        assert "# why" in profile.read_text()
        assert "# one" in profile.read_text()
        world.egress("remove", profile, "b.example", check=True)
        assert one.ask("b.example", 443) == "no such name"
        world.egress("deny", profile, f"host:{greeter}", check=True)
        assert one.ask("host", greeter) in {"no such name", "error 104", "heard nothing"}
        one.end()


def test_an_edit_that_would_break_the_profile_changes_nothing(world: World, greeter: int):
    with running(world, f'connect = ["host:{greeter}"]\nallow = ["a.example"]') as one:
        profile = world.tmp / "agent.toml"
        before = profile.read_text()
        refused = world.egress("allow", profile, "b.example", "--method", "get")
        assert refused.returncode == 125
        assert "capitals" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert profile.read_text() == before
        assert one.ask("b.example", 443) == "no such name"
        one.end()


def test_editors_take_turns(world: World):
    profile = world.tmp / "agent.toml"
    profile.write_text("schema = 1\ntier = 2\n")
    world.own(profile)
    argv = [world.osmoda_argv("allow", profile, f"n{number}.example", command="osmoda-egress") for number in range(8)]
    editors = [world.popen(one, stdout=subprocess.DEVNULL) for one in argv]
    assert [editor.wait(60) for editor in editors] == [0] * 8

    allowed = tomllib.loads(profile.read_text())["network"]["allow"]
    assert sorted(allowed) == sorted(f"n{number}.example" for number in range(8))


# The standing service


@contextlib.contextmanager
def standing(world: World) -> Iterator[subprocess.Popen[str]]:
    argv = world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
    service = world.popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        assert service.stderr is not None
        assert service.stderr.readline() == "osmoda-egress: serving\n"
        yield service
    finally:
        service.terminate()
        service.wait(30)
        assert service.stderr is not None
        service.stderr.close()


def test_where_the_service_runs_sandboxes_use_it(world: World, greeter: int):
    with standing(world), running(world, f'connect = ["host:{greeter}"]') as one:
        assert one.ask("host", greeter) == "heard hello"
        assert one.gateways() == []
        (served,) = json.loads(world.egress("status", "--json", check=True).stdout)
        assert served["agent"] == "agent"
        metrics = world.egress("metrics", check=True).stdout
        assert "osmoda_egress" in metrics
        one.end()


def test_a_service_that_ends_costs_the_network_and_one_that_starts_brings_it_back(world: World, greeter: int):
    with running_under_service(world, greeter) as one:
        with standing(world):
            assert one.ask("host", greeter) == "heard hello"
        one.end()


def test_an_edit_outlives_the_gateway_that_it_was_given_to(world: World, greeter: int):
    """The next gateway gets what the profile says then, and not what it said at the launch."""
    with running(world, f'connect = ["host:{greeter}"]') as one:
        profile = world.tmp / "agent.toml"
        assert one.ask("host", greeter) == "heard hello"
        world.egress("allow", profile, "b.example", check=True)
        world.egress("deny", profile, f"host:{greeter}", check=True)
        assert one.ask("host", greeter) != "heard hello"
        (gateway,) = one.gateways()
        os.kill(gateway, signal.SIGKILL)
        assert one.ask("b.example", 443) != "no such name"
        assert one.ask("host", greeter) != "heard hello"
        world.egress("remove", profile, f"host:{greeter}", check=True)
        assert one.ask("host", greeter) == "heard hello"
        one.end()


@contextlib.contextmanager
def running_under_service(world: World, greeter: int) -> Iterator[Running]:
    """A sandbox that a service took, which has ended since."""
    with standing(world) as service, running(world, f'connect = ["host:{greeter}"]') as one:
        assert one.ask("host", greeter) == "heard hello"
        service.terminate()
        service.wait(30)
        yield one


# From Python


def through_the_api(folder: str, port: int, interpreter: str, times: int) -> list[object]:
    from osmoda.sandbox import Profile, Sandbox

    sandbox = Sandbox(Profile.load(f"{folder}/agent.toml"))
    found: list[object] = []
    for _ in range(times):
        asked = f"host {port}\nunlisted.example 443\n".encode()
        result = sandbox.run([interpreter, "-c", PROGRAM], input=asked, capture_output=True, timeout=50)
        assert result.stdout is not None
        found.append(
            (
                result.stdout.decode().split("\n")[:-1],
                [denial.object for denial in result.denials if denial.layer == "egress"],
            )
        )
    return found


def test_sandboxes_of_a_python_program_share_a_gateway(world: World, greeter: int):
    prefix = os.path.realpath(sys.base_prefix)
    (world.tmp / "agent.toml").write_text(
        f'schema = 1\ntier = 1\n[filesystem]\nread = ["{prefix}"]\n[network]\nconnect = ["host:{greeter}"]\n'
    )
    interpreter = os.path.realpath(sys.executable)
    found = world.call(through_the_api, str(world.tmp), greeter, interpreter, 3)
    assert found == [(["heard hello", "no such name"], ["unlisted.example"])] * 3


def after_edits(file: str, port: int, interpreter: str, edits: list[list[str]]) -> list[bool]:
    from osmoda.sandbox import Profile, Sandbox

    sandbox = Sandbox(Profile.load(file))
    found: list[bool] = []
    for edit in edits:
        subprocess.run(edit, check=True, stdout=subprocess.DEVNULL)
        result = sandbox.run(
            [interpreter, "-c", PROGRAM], input=f"host {port}\n".encode(), capture_output=True, timeout=50
        )
        assert result.stdout is not None
        found.append(result.stdout.decode().strip() == "heard hello")
    return found


def test_a_sandbox_object_that_is_older_than_an_edit_runs_under_what_the_profile_says_now(world: World, greeter: int):
    prefix = os.path.realpath(sys.base_prefix)
    profile = world.tmp / "agent.toml"
    profile.write_text(
        f'schema = 1\ntier = 1\n[filesystem]\nread = ["{prefix}"]\n[network]\nconnect = ["host:{greeter}"]\n'
    )
    world.own(profile)
    interpreter = os.path.realpath(sys.executable)
    edits = [
        world.osmoda_argv(*edit, command="osmoda-egress")
        for edit in (("list", profile), ("deny", profile, f"host:{greeter}"), ("remove", profile, f"host:{greeter}"))
    ]
    assert world.call(after_edits, str(profile), greeter, interpreter, edits) == [True, False, True]


# Asking


def waiting(world: World) -> dict[str, Any]:
    """The one question that is open, once it is."""
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        found = json.loads(world.egress("pending", "--json", check=True).stdout)
        if found:
            assert len(found) == 1
            return dict(found[0])
    pytest.fail("no connection came to wait for a decision")


def test_a_connection_to_an_unlisted_name_waits_for_a_decision(world: World, greeter: int):
    with running(world, "ask = true  # somebody is there") as one:
        profile = world.tmp / "agent.toml"
        assert one.process.stdin is not None
        one.process.stdin.write("other.example 8443\n")
        one.process.stdin.flush()
        question = waiting(world)
        assert (question["name"], question["port"], question["agent"]) == ("other.example", 8443, "agent")
        world.egress("refuse", question["id"], check=True)
        assert one.hear() in {"error 104", "heard nothing"}
        again = world.egress("approve", question["id"])
        assert again.returncode == 125
        assert "is open" in again.stderr

        one.process.stdin.write("third.example 8443\n")
        one.process.stdin.flush()
        world.egress("approve", waiting(world)["id"], "--save", check=True)
        # It leads nowhere outside, but it was let through, and is written down.
        assert one.hear() in {"error 104", "heard nothing"}
        assert '"third.example:8443"' in profile.read_text()
        assert "# somebody is there" in profile.read_text()
        one.end()
    actions = {(record["name"], record.get("verdict")) for record in records(world) if record.get("port") == 8443}
    assert ("other.example", "deny") in actions
    assert ("third.example", "allow") in actions
