"""A host with everything on, for tests that kill any of it: agents, their report on what they could do, and onlookers.

Each agent appends lines to a report outside, which the daemon has opened for it: what it is, and whatever it succeeds
in that its profile refuses. It holds a lock of that file for as long as it executes, so that a second program of the
same agent finds it taken, for however short a moment both run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from osmoda.sandbox import processes
from osmoda.supervisor.switch.record import Records
from tests import leftovers
from tests.ledgers import runtime_of, service_of
from tests.watched import PATIENCE, PYTHON, Watch, eventually
from tests.worlds import World

PORT = 8080  # in the sandbox of the one that is deployed, for its health check
# A generation: what it is, and what becomes of it.
HEAD = "KIND, SERIAL = {kind!r}, {serial}\n"
PROGRAM = """
import fcntl, hashlib, json, os, socket, sys, time

TOKEN, SECRET, OPEN, CLOSED, WAYS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]

def note(what, **more):
    os.write(1, (json.dumps({"what": what, "at": time.time_ns(), **more}) + "\\n").encode())

def content(path):
    with open(path, "rb") as file:
        return file.read()

def greeted(host, port):
    with socket.create_connection((host, port), 5) as one:
        one.settimeout(5)
        return one.recv(16)

def done(act, *arguments):
    try:
        return act(*arguments)
    except OSError:
        return None

status = dict(line.split(":\\t", 1) for line in content("/proc/self/status").decode().splitlines() if ":\\t" in line)
enforced = {key: status[key] for key in ("Seccomp", "NoNewPrivs", "CapEff", "CapBnd")}
digest, first = hashlib.sha256(content("main.py")).hexdigest(), content("/proc/1/cmdline").decode()
note("start", digest=digest, init=first, **enforced)
try:
    fcntl.lockf(1, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("twice")
listener = socket.create_server(("127.0.0.1", int(WAYS))) if WAYS.isdigit() and KIND == "good" else None
if listener is not None:
    listener.setblocking(False)
rounds = 0
while True:
    if done(content, SECRET):
        note("breach", by="reading")
    if rounds % 10 == 0:
        if done(greeted, "127.0.0.1", CLOSED):
            note("breach", by="connecting")
        if WAYS == "net":
            if done(greeted, "host.osmoda", CLOSED):
                note("breach", by="name")
            if done(greeted, "host.osmoda", OPEN):
                note("reached")
    if KIND == "loops":
        raise SystemExit(3)
    rounds += 1
    if listener is not None:
        visitor = done(listener.accept)
        if visitor is not None:
            visitor[0].close()
    time.sleep(0.02)
"""


class Greeter(threading.Thread):
    """A service of the host's on a port of the loopback: it greets, and counts whom."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.visits = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):  # its end
            while True:
                visitor, _ = self.listener.accept()
                self.visits += 1
                with contextlib.suppress(OSError), visitor:
                    visitor.sendall(b"hello")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join(PATIENCE)
        self.listener.close()


class StandingGateway:
    """`osmoda-egress serve` with one worker, killed and started as a test likes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.errors = world.tmp / "gateway.err"
        self.process: subprocess.Popen[Any] | None = None

    def up(self) -> None:
        argv = self.world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
        said = self._said()
        with open(self.errors, "a") as errors:
            self.process = self.world.popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        eventually(lambda: self._said() > said or self._ended(), "the gateway served")

    def _said(self) -> int:
        return self.errors.read_text().count("osmoda-egress: serving\n") if self.errors.exists() else 0

    def _ended(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway has ended:\n{self.errors.read_text()}"
        return False

    def down(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.send_signal(number)
            process.wait(PATIENCE)

    def workers(self) -> list[int]:
        return leftovers.children(self.process.pid) if self.process is not None else []


class Onlooker(threading.Thread):
    """Looks at all processes again and again, for programs of agents: two of one, or one outside of a sandbox."""

    def __init__(self, token: str) -> None:
        super().__init__(daemon=True)
        self.token = token.encode()
        self.ended = threading.Event()
        self.looks = 0
        self.seen: set[int] = set()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.look()

    def programs(self) -> dict[int, str]:
        """All that execute a program of an agent: pid, and the agent."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                    marks = [word for word in words if word.startswith(self.token)]
                    if marks:
                        found[int(entry)] = marks[0].decode().rpartition("/")[2]
        return found

    def look(self) -> None:
        """Two that were both found, and of which the first is still alive afterwards, were alive at once."""
        alive: dict[str, list[str]] = {}
        for pid, agent in self.programs().items():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                if status["State"].startswith(("Z", "X")):
                    continue
                alive.setdefault(agent, []).append(f"{pid}, {status['State']}, child of {status['PPid']}")
                enforced = (len(status["NSpid"].split()) == 2, status["Seccomp"], status["NoNewPrivs"])
                if enforced != (True, "2", "1"):
                    self.wrong.append(f"{pid} of {agent} runs unenforced: {enforced}")
                self.seen.add(pid)
        self.wrong += [f"{agent} runs several times: {several}" for agent, several in alive.items() if len(several) > 1]
        self.looks += 1


class Host:
    """All that runs. `agents` are the names; "deployed" is the one that is switched to and fro."""

    agents = ("plain", "net", "isolated", "pooled", "deployed")
    enabled = ("plain", "net")  # which the daemon starts by itself

    def __init__(self, watch: Watch, token: str) -> None:
        self.watch = watch
        self.token = f"{token}/"
        self.open, self.closed = Greeter(), Greeter()
        self.gateway = StandingGateway(watch.world)
        self.reports = watch.world.tmp / "reports"
        self.secret = watch.world.tmp / "secret"
        self.first = ""
        for greeter in (self.open, self.closed):
            greeter.start()
        self.reports.mkdir()
        self.secret.write_text("nobody's business")

    def close(self) -> None:
        self.gateway.down()
        for name in (self.directory("runtime") / "egress").glob("*.sock"):
            name.unlink()  # of gateways that were killed
        for greeter in (self.open, self.closed):
            greeter.close()

    def directory(self, kind: str) -> Path:
        """Where all of osmoda in this world keeps things of a kind."""
        return self.watch.directory(kind).parent

    # --- agents ---

    def install(self) -> None:
        """Write all units, profiles and programs."""
        for name in self.agents:
            self.watch.program(name, HEAD.format(kind="good", serial=0) + PROGRAM)
        tier1, tier2 = self.watch.world.tmp / "net.toml", self.watch.world.tmp / "isolated.toml"
        read = json.dumps([str(self.watch.folder("net"))])
        network = f'[network]\nconnect = ["host:{self.open.port}"]\n'
        tier1.write_text(f"schema = 1\ntier = 1\n[filesystem]\nread = {read}\n{network}")
        tier2.write_text('schema = 1\ntier = 2\n[filesystem]\nworkspace = "direct"\n')
        self._unit("plain")
        self._unit("net", f"Profile={tier1}", ways="net")
        self._unit("isolated", f"Profile={tier2}")
        self._unit("pooled", "Pool=2")
        health = f"HealthCheck=tcp:{PORT}\nHealthInterval=200ms\nHealthRetries=2"
        self._unit("deployed", health, ways=str(PORT))
        links = self.watch.units / "multi-user.target.wants"
        links.mkdir()
        for name in self.enabled:
            (links / f"{name}.service").symlink_to(f"../{name}.service")

    def words(self, name: str, ways: str = "-") -> list[str]:
        """The words of an agent's command line behind its program."""
        return [self.token + name, str(self.secret), str(self.open.port), str(self.closed.port), ways]

    def _unit(self, name: str, section: str = "", ways: str = "-") -> None:
        self.watch.unit(
            name,
            unit="StartLimitIntervalSec=0",
            ExecStart=" ".join([PYTHON, "main.py", *self.words(name, ways)]),
            StandardOutput=f"append:{self.reports / name}",
            Restart="always",
            RestartSec="1ms",
            section=section,
        )

    def notes(self, name: str) -> list[dict[str, Any]]:
        """What an agent has reported."""
        path = self.reports / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def starts(self, name: str) -> list[dict[str, Any]]:
        return [note for note in self.notes(name) if note["what"] == "start"]

    def is_up(self, name: str) -> bool:
        return str(self.watch.status(name)["state"]) == "active"

    def outside(self, until: Callable[[], bool]) -> None:
        """Two programs of one agent without a sandbox, until a condition is met; they report as "outside"."""
        argv = [PYTHON, "main.py", *self.words("outside")]
        with open(self.reports / "outside", "a") as output, contextlib.ExitStack() as both:
            for _ in range(2):
                process = self.watch.world.popen(argv, cwd=self.watch.folder("plain"), stdout=output)
                both.callback(process.wait)
                both.callback(process.kill)
            eventually(until, "the programs did outside what they do")

    # --- whom to kill ---

    def first_processes(self) -> list[int]:
        """The first processes of the daemon's sandboxes, also of those that wait in a pool."""
        assert self.watch.process is not None
        daemon = f"{self.watch.process.pid:x}-"
        return [pid for pid, identity in processes.identities() if identity.startswith(daemon)]

    def launchers(self) -> list[int]:
        assert self.watch.process is not None
        return [pid for pid in leftovers.children(self.watch.process.pid) if b"sandbox.launcher" in _command(pid)]

    def own_gateways(self) -> list[int]:
        """Those that the launcher has forked while there was no other."""
        found = [pid for launcher in self.launchers() for pid in leftovers.children(launcher)]
        return [pid for pid in found if _name(pid) == "osmoda-egress"]

    def ledger(self) -> int:
        """The ledger's service; 0 where none runs now."""
        with contextlib.suppress(OSError):
            return service_of(runtime_of(self.watch.world))
        return 0

    def reap(self) -> None:
        """Those that the killed have left to this process, which init would have reaped."""
        own = {one.pid for one in (self.watch.process, self.gateway.process) if one is not None}
        for pid in leftovers.children(os.getpid()):
            if pid not in own | leftovers.SPARED:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    # --- switches ---

    def records(self) -> Records:
        return Records(str(self.directory("state") / "switch" / "records"))

    def _generations(self) -> Path:
        return self.directory("state") / "switch" / "agents" / "deployed" / "generations"

    def is_switched(self) -> bool:
        """Whether a generation is the current one."""
        return (self._generations().parent / "current").is_symlink()

    def is_good(self, generation: int) -> bool:
        """Whether it is one that becomes healthy."""
        with contextlib.suppress(FileNotFoundError):  # it is kept no longer
            head = (self._generations() / str(generation) / "code" / "main.py").read_text().partition("\n")[0]
            return "'good'" in head
        return False

    def generations(self) -> Iterator[tuple[int, str]]:
        """Each generation that there is, and the digest of its program."""
        for path in self._generations().glob("*/code/main.py"):
            with contextlib.suppress(FileNotFoundError, ValueError):  # it is made, or removed, just now
                yield int(path.parent.parent.name), sha256(path.read_bytes()).hexdigest()


class Deployer(threading.Thread):
    """Switches "deployed" from generation to generation; some are no good. A daemon that is killed is asked again."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.chance = chance
        self.ended = threading.Event()
        self.begun = threading.Event()
        self.made: dict[int, set[str]] = {}
        """Digests by generation; a number is used again where a daemon was killed before the generation counted."""
        self.failure: BaseException | None = None
        self._serial = 0

    def run(self) -> None:
        try:
            while not self.ended.wait(0.02):
                with contextlib.suppress(OSError):
                    self._turn()
                self.note_generations()
        except BaseException as error:
            self.failure = error
            raise

    def note_generations(self) -> None:
        """To be called between two switches: the newest generations are kept for so long."""
        for number, digest in self.host.generations():
            self.made.setdefault(number, set()).add(digest)

    def _turn(self) -> None:
        switches = self.host.watch.ask("switch-status")["switches"]
        if not switches:
            self._begin(self.chance.choices(("good", "loops", "sick"), (4, 1, 1))[0])
        elif self.chance.random() < 0.02:
            good = self.host.is_good(switches[0]["members"][0]["after"]) and self.chance.random() < 0.5
            # Refused where there is nothing of that kind to end now.
            self.host.watch.ask("switch-commit" if good else "switch-rollback", "deployed")

    def _begin(self, kind: str) -> None:
        """To new code or, at times, to a generation that there is: that takes no time to make."""
        earlier = [number for number in sorted({*self.made}) if self.host.is_good(number)]
        if earlier and self.chance.random() < 0.3:
            asked: dict[str, Any] = {"name": "deployed", "to": self.chance.choice(earlier)}
        else:
            asked = {"name": "deployed", "code": str(self._build(kind))}
        begin = {"agents": [asked], "probation": 1.0, "window": 2.0, "keep": 3}
        self.begun.set()
        answer = self.host.watch.ask("switch-begin", begin=json.dumps(begin))
        # What is wrong is only ever that it is there already, or that a switch which a killed daemon has left goes on.
        known = ("is in switch", "is the current one already", "has no generation")
        assert "done" in answer or any(words in answer["error"] for words in known), answer

    def _build(self, kind: str) -> Path:
        self._serial += 1
        code = self.host.watch.world.tmp / "build"
        shutil.rmtree(code, ignore_errors=True)
        code.mkdir()
        (code / "main.py").write_text(HEAD.format(kind=kind, serial=self._serial) + PROGRAM)
        return code


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    return ""
