"""Commands under a supervisor's hands: `Service` and `Running`, as root and as an ordinary user."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from osmoda.sandbox import CommandError, LaunchError, profile_file
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.resident import RESIDENT
from osmoda.sandbox.running import Running
from osmoda.sandbox.service import Service
from osmoda.sandbox.service_events import Ended, Event, Failed, MainEnded, Notified, Started
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


def several(names: Sequence[str], tier: int, pool: int, *more: str) -> list[Any]:
    """The answers of functions of this module, in one process: most of what such a test costs is its start."""
    return [globals()[name](tier, pool, *more) for name in names]


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


# Signals

STUBBORN = """
trap '' TERM
trap 'echo main was told; exit 3' USR2
sh -c 'trap "echo child was told; exit 0" USR1; echo child; while :; do sleep 1 & wait; done' &
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


def closed(tier: int, pool: int) -> str:
    def act(service: Service) -> str:
        held = Held(service, "sh", "-c", "setsid sh -c 'echo child; exec sleep 1000' & sleep 1000", hold=True)
        held.until(Started)
        assert held.line() == "child"
        held.running.close()
        return held.rest()

    answer: str = in_service(tier, pool, act)
    return answer


# Notifications

PYTHON = "/usr/bin/python3"
TELL = """
import os, socket
def tell(text, *descriptors):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in descriptors))]
        return channel.sendmsg([text], rights if descriptors else [], 0, os.environ["NOTIFY_SOCKET"])
"""


def notified(tier: int, pool: int) -> list[tuple[bytes, bool, bool]]:
    def act(service: Service) -> list[tuple[bytes, bool, bool]]:
        program = TELL + (
            "tell(b'READY=1\\nSTATUS=one')\n"
            "if os.fork() == 0:\n    tell(b'STATUS=child'); os._exit(0)\n"
            "os.wait()\n"
            "tell(b'STOPPING=1')\n"
        )
        held = Held(service, PYTHON, "-c", program, notify=True)
        started = held.until(Started)
        held.until(Ended)
        assert held.rest() == ""
        assert isinstance(held.events[-1], Ended)
        said = [event for event in held.events if isinstance(event, Notified)]
        held.close()
        # The child had gone, or had not: its number is then not told.
        return [(one.data, one.is_main, one.pid == started.inside) for one in said]

    answer: list[tuple[bytes, bool, bool]] = in_service(tier, pool, act)
    return answer


def flooded(tier: int, pool: int) -> tuple[int, int]:
    """How many messages of a flood are read at once, and altogether."""

    def act(service: Service) -> tuple[int, int]:
        program = TELL + "for _ in range(400): tell(b'X=1')\nprint('told', flush=True)\n"
        held = Held(service, PYTHON, "-c", program, notify=True)
        most = total = 0
        deadline = time.monotonic() + DEADLINE
        while not any(isinstance(event, Ended) for event in held.events) and time.monotonic() < deadline:
            select.select([held.running], [], [], DEADLINE)
            found = held.running.events()
            held.events += found
            said = sum(isinstance(event, Notified) for event in found)
            most, total = max(most, said), total + said
        assert held.line() == "told"
        held.close()
        return most, total

    answer: tuple[int, int] = in_service(tier, pool, act)
    return answer


def too_much(tier: int, pool: int) -> list[bytes]:
    program = TELL + (
        "tell(b'x' * 4097)\n"
        "tell(b'y' * 4096)\n"
        "lingering = socket.socket()\n"
        "lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\377\\0\\0\\0')\n"
        "tell(b'FDSTORE=1', 0, 1, 2, lingering.fileno())\n"
        "tell(b'BARRIER=1', os.pipe()[1])\n"
    )

    def act(service: Service) -> list[bytes]:
        open_files, said = [], []
        for _ in range(3):
            held = Held(service, PYTHON, "-c", program, notify=True)
            held.until(Ended)
            assert held.rest() == ""
            said = [event.data for event in held.events if isinstance(event, Notified)]
            held.close()
            open_files.append(len(os.listdir("/proc/self/fd")))
        assert open_files[1] == open_files[2]
        return said

    answer: list[bytes] = in_service(tier, pool, act)
    return answer


def refused_notify() -> str:
    with Service(Profile.default(2)) as service:
        try:
            Held(service, "true", notify=True)
        except LaunchError as error:
            return str(error)
    return ""


# Sockets

SERVED = """
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert sorted(os.listdir("/proc/self/fd")) == [str(fd) for fd in range(3 + int(os.environ["LISTEN_FDS"]) + 1)]
print(os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"], flush=True)
for fd in range(3, 3 + int(os.environ["LISTEN_FDS"])):
    with socket.socket(fileno=fd) as listening:
        client, _ = listening.accept()
        with client:
            client.sendall(b"from %d" % fd)
"""


def activated(tier: int, pool: int, folder: str) -> tuple[str, list[bytes]]:
    def act(service: Service) -> tuple[str, list[bytes]]:
        made = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        listeners = []
        for number, listening in enumerate(made):
            listening.bind(f"{folder}/{number}.sock")
            listening.listen()
            listeners.append((f"name{number}", listening.fileno()))
        held = Held(service, PYTHON, "-c", SERVED, listeners=listeners)
        heard = []
        for number in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(DEADLINE)
                client.connect(f"{folder}/{number}.sock")
                heard.append(client.recv(100))
        held.until(Ended)
        line = held.rest()
        held.close()
        for listening in made:
            listening.close()
        return line, heard

    answer: tuple[str, list[bytes]] = in_service(tier, pool, act)
    return answer


# Connections

LISTENS = """
import socket, sys
with socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as server:
    print(server.getsockname()[1], flush=True)
    client, address = server.accept()
    with client:
        client.sendall(b"hello")
    print(address[0], flush=True)
"""


def visited(tier: int, pool: int, address: str) -> tuple[bytes, str, bool]:
    def act(service: Service) -> tuple[bytes, str, bool]:
        held = Held(service, PYTHON, "-c", LISTENS, address)
        held.until(Started)
        port = int(held.line())
        with held.running.connect(port, DEADLINE) as visit:
            visit.settimeout(DEADLINE)
            heard = visit.recv(100)
        came_from = held.line()
        held.until(Ended)
        refused = False
        try:
            held.running.connect(port, DEADLINE)
        except (LaunchError, ConnectionRefusedError):
            refused = True
        held.close()
        return heard, came_from, refused

    answer: tuple[bytes, str, bool] = in_service(tier, pool, act)
    return answer


def nothing_listens() -> tuple[str, str]:
    found = []
    for tier in (1, 2):
        with Service(Profile.default(tier)) as service:
            held = Held(service, "sleep", "1000")
            held.until(Started)
            try:
                held.running.connect(9, DEADLINE)
            except (ConnectionRefusedError, LaunchError) as error:
                found.append(str(error))
            held.close()
    return found[0], found[1]


def refusals() -> tuple[str, tuple[str, str]]:
    return refused_notify(), nothing_listens()


def reached(tier: int, pool: int) -> list[tuple[bytes, str, bool]]:
    return [visited(tier, pool, address) for address in ("127.0.0.1", "::1")]


# The tests

TIERS = pytest.mark.parametrize(("tier", "pool"), [(0, 0), (1, 0), (2, 2)])
WITH_UNIX_SOCKETS = pytest.mark.parametrize(("tier", "pool"), [(0, 0), (1, 1)])


@TIERS
def test_a_command_again_and_again(world: World, tier: int, pool: int) -> None:
    times, text, rest = world.call(several, ["plain", "missing", "closed"], tier, pool)
    assert times == [["Started", "Ended"]] * 3
    assert "no-such-program" in text
    assert rest == ""


@TIERS
def test_signals_and_what_a_command_leaves_behind(world: World, tier: int, pool: int) -> None:
    names = ["to_main_alone", "killed_alone", "left_behind", "kill_the_rest"]
    to_main, killed, left, rest = world.call(several, names, tier, pool)
    assert to_main == ("main was told", 3)
    # Its children go with it where nobody asked to hold them.
    assert killed == (137, 9)
    assert left == (137, "child was told", 137)
    assert rest == (5, 5, "")


@WITH_UNIX_SOCKETS
def test_notifications(world: World, tier: int, pool: int) -> None:
    found, (most, total), dropped = world.call(several, ["notified", "flooded", "too_much"], tier, pool)
    # In order, and with who has sent them.
    assert [data for data, _, _ in found] == [b"READY=1\nSTATUS=one", b"STATUS=child", b"STOPPING=1"]
    assert [is_main for _, is_main, _ in found] == [True, False, True]
    assert not found[1][2]
    # A flood is read little by little: how much of it is not sent before its time, the length of the queue decides
    # (net.unix.max_dgram_qlen), and what is left at the end is dropped.
    assert 200 <= total <= 400
    assert most <= 200
    # What is too long is dropped, and descriptors are.
    assert dropped == [b"y" * 4096, b"FDSTORE=1", b"BARRIER=1"]


def test_what_tier_2_refuses(world: World) -> None:
    """It has no unix sockets to notify with, and its loopback interface is down."""
    notify, (refused, unreachable) = world.call(refusals)
    assert "network.families" in notify
    assert "refused" in refused
    assert "network.loopback = false" in unreachable


@TIERS
def test_listening_sockets_come_with_the_command(world: World, tier: int, pool: int) -> None:
    """Of tier 2, too, which can make none of that family itself."""
    assert world.call(activated, tier, pool, str(world.tmp)) == ("2 name0:name1", [b"from 3", b"from 4"])


@WITH_UNIX_SOCKETS
def test_a_port_of_its_own_loopback(world: World, tier: int, pool: int) -> None:
    v4, v6 = world.call(reached, tier, pool)
    assert v4 == (b"hello", "127.0.0.1", True)
    assert v6 == (b"hello", "::1", True)


# The launcher killed


def launcher_killed(tier: int, pool: int) -> tuple[str, bool, int]:
    def act(service: Service) -> tuple[str, bool, int]:
        held = Held(service, "sh", "-c", "setsid sh -c 'echo child; exec sleep 1000' & exec sleep 1000", hold=True)
        held.until(Started)
        assert held.line() == "child"
        process = RESIDENT._process
        assert process is not None
        process.kill()
        text = str(held.until(Failed).error)
        # The end of file comes when nobody who could write is left: neither the command nor its child.
        ended = held.rest() == ""
        held.close()
        process.wait(DEADLINE)  # its files are closed before it has ended
        again = Held(service, "sh", "-c", "exit 4")
        status = again.until(Ended).result.status
        again.close()
        return text, ended, status

    answer: tuple[str, bool, int] = in_service(tier, pool, act)
    return answer


@pytest.mark.orphans
@TIERS
def test_a_launcher_that_is_killed_takes_all_along(world: World, tier: int, pool: int) -> None:
    """In tier 0, too, where no pid namespace does it."""
    text, ended, status = world.call(launcher_killed, tier, pool)
    assert text == "the launcher was killed, or ran out of open files; this sandbox is gone"
    assert ended
    assert status == 4


# Networks, and paths that lead elsewhere

NAMED = """
import socket
with socket.create_server(("127.0.0.1", 18080)) as server:
    print("up", flush=True)
    client, _ = server.accept()
    client.close()
try:
    socket.create_connection(("not-listed.test", 80), 20)
except OSError:
    print("refused")
"""


def on_a_network(tier: int, pool: int) -> list[str]:
    profile = profile_file.load_text(
        f'schema = 1\ntier = {tier}\n[network]\nallow = ["listed.test:80"]\nserve = [18080]\n', "/p/agent.toml", "/p"
    )
    found = []
    with Service(profile, pool=pool) as service:
        for _ in range(2):
            held = Held(service, PYTHON, "-c", NAMED)
            held.until(Started)
            assert held.line() == "up"
            held.running.connect(18080, DEADLINE).close()
            assert held.rest() == "refused"
            result = held.until(Ended).result
            found += [denial.object for denial in result.denials if denial.layer == "egress"]
            held.close()
    return found


@pytest.mark.parametrize(("tier", "pool"), [(1, 1), (2, 0)])
def test_a_network_of_names(world: World, tier: int, pool: int) -> None:
    assert world.call(on_a_network, tier, pool) == ["not-listed.test"] * 2


def switched(pool: int, folder: str) -> list[str]:
    """What lies at a granted link, before and after that is switched."""
    for version in ("one", "two"):
        os.mkdir(f"{folder}/{version}")
        with open(f"{folder}/{version}/text", "w") as stream:
            stream.write(version)
    os.symlink("one", f"{folder}/current")
    profile = profile_file.load_text(
        f'schema = 1\ntier = 1\n[filesystem]\nread = ["{folder}/current"]\nworkspace = "none"\n', "/p/agent.toml", "/p"
    )
    found = []
    with Service(profile, pool=pool) as service:
        for version in ("one", "one", "two"):
            os.symlink(version, f"{folder}/next")
            os.rename(f"{folder}/next", f"{folder}/current")
            held = Held(service, "cat", f"{folder}/current/text")
            found.append(held.rest())
            held.until(Ended)
            held.close()
    return found


@pytest.mark.parametrize("pool", [0, 1])
def test_a_link_that_was_switched_is_followed(world: World, pool: int) -> None:
    folder = world.tmp / "code"
    folder.mkdir()
    world.own(folder)
    assert world.call(switched, pool, str(folder)) == ["one", "one", "two"]
