"""Commands under a supervisor's hands: `Service` and `Running`, as root and as an ordinary user."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

import pytest

from osmoda.sandbox import CommandError
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.running import Running
from osmoda.sandbox.service import Service
from osmoda.sandbox.service_events import Ended, Event, Failed, MainEnded, Started
from tests.worlds import World

PATH = {"PATH": "/usr/bin:/bin"}
DEADLINE = 30.0


class Held:
    """A command, what it wrote, and every event so far. In the process that the world has made for it."""

    def __init__(self, service: Service, *argv: str, **more: Any) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        self._reading, writing = os.pipe()
        self.running: Running = service.start(
            argv, env=PATH, cwd="/", stdin=null, stdout=writing, stderr=writing, **more
        )
        os.close(null)
        os.close(writing)
        self.events: list[Event] = []
        self._coming: list[Event] = []

    def until[Kind](self, kind: type[Kind]) -> Kind:
        """The next event of that kind; those before it are kept."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            while self._coming:
                self.events.append(self._coming.pop(0))
                if isinstance(self.events[-1], kind):
                    return self.events[-1]
            select.select([self.running], [], [], max(deadline - time.monotonic(), 0))
            self._coming += self.running.events()
        raise TimeoutError(f"no {kind.__name__} after {self.events}")

    def line(self) -> str:
        """The next line that it writes."""
        found = b""
        while not found.endswith(b"\n"):
            if not select.select([self._reading], [], [], DEADLINE)[0]:
                raise TimeoutError(f"no line after {found!r}")
            chunk = os.read(self._reading, 1)
            if not chunk:
                break
            found += chunk
        return found.decode().rstrip("\n")

    def rest(self) -> str:
        """All that it still writes, until nobody can any more."""
        found = []
        while line := self.line():
            found.append(line)
        return "\n".join(found)

    def close(self) -> None:
        self.running.close()
        os.close(self._reading)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def in_service(tier: int, pool: int, act: Callable[[Service], Any]) -> Any:
    with Service(Profile.default(tier), pool=pool) as service:
        return act(service)


def plain(tier: int, pool: int) -> list[list[str]]:
    def act(service: Service) -> list[list[str]]:
        found = []
        for _ in range(3):
            held = Held(service, "sh", "-c", "echo here; read line; exit 7")
            started = held.until(Started)
            assert held.line() == "here"
            ended = held.until(Ended)
            assert ended.result.status == 7
            assert held.running.identity
            assert gone(started.pid)
            found.append([type(event).__name__ for event in held.events])
            held.close()
        return found

    answer: list[list[str]] = in_service(tier, pool, act)
    return answer


TIERS = pytest.mark.parametrize(("tier", "pool"), [(0, 0), (1, 0), (2, 0), (2, 2)])


@TIERS
def test_a_command_again_and_again(world: World, tier: int, pool: int) -> None:
    assert world.call(plain, tier, pool) == [["Started", "Ended"]] * 3


def missing(tier: int, pool: int) -> str:
    def act(service: Service) -> str:
        held = Held(service, "no-such-program")
        error = held.until(Failed).error
        held.close()
        assert isinstance(error, CommandError)
        assert error.exit_code == 127
        return str(error)

    answer: str = in_service(tier, pool, act)
    return answer


@TIERS
def test_a_program_that_is_not_there(world: World, tier: int, pool: int) -> None:
    assert "no-such-program" in world.call(missing, tier, pool)


# Signals

STUBBORN = """
trap '' TERM
sh -c 'trap "echo child was told; exit 0" USR1; echo child; while :; do sleep 1 & wait; done' &
trap 'echo main was told; exit 3' USR2
while :; do sleep 1 & wait; done
"""


def to_main_alone(tier: int, pool: int) -> tuple[str, int]:
    def act(service: Service) -> tuple[str, int]:
        held = Held(service, "sh", "-c", STUBBORN)
        held.until(Started)
        assert held.line() == "child"
        held.running.signal_main(12)
        status = held.until(Ended).result.status
        rest = held.rest()
        held.close()
        return rest, status

    answer: tuple[str, int] = in_service(tier, pool, act)
    return answer


@TIERS
def test_a_signal_to_the_command_alone(world: World, tier: int, pool: int) -> None:
    assert world.call(to_main_alone, tier, pool) == ("main was told", 3)


def killed_alone(tier: int, pool: int) -> tuple[int, int]:
    def act(service: Service) -> tuple[int, int]:
        held = Held(service, "sh", "-c", STUBBORN)
        held.until(Started)
        assert held.line() == "child"
        held.running.signal_main(9)
        result = held.until(Ended).result
        assert held.rest() == ""
        held.close()
        return result.status, result.signal

    answer: tuple[int, int] = in_service(tier, pool, act)
    return answer


@TIERS
def test_the_command_killed(world: World, tier: int, pool: int) -> None:
    """Its children go with it where nobody asked to hold them."""
    assert world.call(killed_alone, tier, pool) == (137, 9)


def left_behind(tier: int, pool: int) -> tuple[int, str, int]:
    """As KillMode=control-group has it: the main ends, the rest is told, and only then it is over."""

    def act(service: Service) -> tuple[int, str, int]:
        held = Held(service, "sh", "-c", STUBBORN, hold=True)
        held.until(Started)
        assert held.line() == "child"
        held.running.signal_main(9)
        main = held.until(MainEnded)
        assert main.signal == 9
        # Nothing but the order ends what is left: it is still there to hear of it.
        held.running.signal_all(10)
        result = held.until(Ended).result
        rest = held.rest()
        held.close()
        return main.status, rest, result.status

    answer: tuple[int, str, int] = in_service(tier, pool, act)
    return answer


@TIERS
def test_what_a_command_leaves_behind_is_held(world: World, tier: int, pool: int) -> None:
    assert world.call(left_behind, tier, pool) == (137, "child was told", 137)


def kill_the_rest(tier: int, pool: int) -> tuple[int, int, str]:
    def act(service: Service) -> tuple[int, int, str]:
        # The child has a session of its own and no parent by then.
        script = "setsid sh -c 'echo child; exec sleep 1000' & read line; sleep 0.1; exit 5"
        held = Held(service, "sh", "-c", script, hold=True)
        held.until(Started)
        assert held.line() == "child"
        main = held.until(MainEnded)
        held.running.kill()
        result = held.until(Ended).result
        rest = held.rest()  # the end of file comes when nobody holds the other end
        held.close()
        return main.status, result.status, rest

    answer: tuple[int, int, str] = in_service(tier, pool, act)
    return answer


@TIERS
def test_what_is_held_is_killed(world: World, tier: int, pool: int) -> None:
    assert world.call(kill_the_rest, tier, pool) == (5, 5, "")


def closed(tier: int, pool: int) -> str:
    def act(service: Service) -> str:
        held = Held(service, "sh", "-c", "setsid sh -c 'echo child; exec sleep 1000' & sleep 1000", hold=True)
        held.until(Started)
        assert held.line() == "child"
        held.running.close()
        return held.rest()

    answer: str = in_service(tier, pool, act)
    return answer


@TIERS
def test_closed_it_leaves_nothing(world: World, tier: int, pool: int) -> None:
    assert world.call(closed, tier, pool) == ""
