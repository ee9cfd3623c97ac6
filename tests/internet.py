"""A small internet in network namespaces: `internet`, its servers, and `online`, a world that is connected to it.

    def test_a_page(online, web):
        assert online.run(["curl", "-s", "https://www.example.test/"]).returncode == 0

`online` is `world` (root, and an ordinary user) on a machine with addresses, a resolver, and an authority in its trust
store; on the far end of a cable is another machine, on which all servers run (`tests/servers/names.py` says under which
names). Both are namespaces of this test process's own: nothing of the host's network is touched, and they end with it,
however it ends. Each worker of a parallel run has an internet of its own.

A server starts when the first test asks for it (`tests/internet_servers.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.servers import names
from tests.servers.certificates import TestAuthority
from tests.worlds import World

SERVERS = Path(__file__).with_name("servers")
SECONDS = 30.0  # for a server to start, on a busy machine
CERTIFICATES = Path("/etc/ssl/certs")
BUNDLE = CERTIFICATES / "ca-certificates.crt"


def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """What `condition` returns as soon as that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)
    return value


class Machine:
    """A network and a mount namespace, and for `servers` a process namespace, which ends all that runs in it."""

    def __init__(self, folder: Path, *, processes: bool) -> None:
        # The signal at this process's end reaches the namespace's first process by way of unshare(1).
        first = "trap '' CHLD; echo ready; exec sleep infinity"
        own = ["--pid", "--fork", "--kill-child", "--mount-proc"] if processes else []
        unshare = ["unshare", "--net", "--mount", "--propagation", "private", *own]
        argv = ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", first]
        with open(folder / "machines.log", "ab") as log:
            self.holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd="/")
        leftovers.SPARED.add(self.holder.pid)
        self.pid = self.holder.pid
        assert self.holder.stdout is not None
        with self.holder.stdout:
            if self.holder.stdout.readline() != b"ready\n":
                self.end()
                pytest.fail(f"no namespaces for the tests' internet: {(folder / 'machines.log').read_text()}")
        if processes:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())
        self.processes = processes

    def argv(self, command: Sequence[str], cwd: str | os.PathLike[str] = "/") -> list[str]:
        """The argument vector that, started by this process, runs `command` on this machine."""
        join = ["nsenter", f"--target={self.pid}", "--net", "--mount", *(["--pid"] if self.processes else [])]
        return [*join, "--", "sh", "-c", 'cd "$0" && exec "$@"', os.fspath(cwd), *command]

    def run(self, *command: str, input: str | None = None) -> str:
        done = subprocess.run(self.argv(command), input=input, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Commands of ip(8)."""
        self.run("ip", "-batch", "-", input="".join(f"{line}\n" for line in lines))

    def bind(self, source: Path, target: Path) -> None:
        self.run("mount", "--bind", str(source), str(target.resolve()))

    def end(self) -> None:
        """The first process ends, with it the namespaces, and with those every process in them (pid_namespaces(7))."""
        if self.holder.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.holder.wait()
        leftovers.SPARED.discard(self.holder.pid)


class Resolution:
    """What the name server answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._zone = folder / "zone.json"
        self._log = folder / "dns.jsonl"
        self._log.touch()
        self._names: dict[str, dict[str, object]] = dict(names.ZONE)
        self._publish()

    @property
    def arguments(self) -> list[str]:
        return [str(self._zone), str(self._log), names.DNS_IPV4, names.DNS_IPV6]

    def _publish(self) -> None:
        fresh = self._zone.with_suffix(".new")
        fresh.write_text(json.dumps(self._names))
        fresh.rename(self._zone)

    @contextmanager
    def answering(self, **records: Mapping[str, object]) -> Iterator[None]:
        """For the length of the block, other records (see `dns_server.py`); `name_example` is name.example.test."""
        before = self._names
        named = {name.replace("_example", ".example.test"): dict(record) for name, record in records.items()}
        self._names = {**before, **named}
        self._publish()
        try:
            yield
        finally:
            self._names = before
            self._publish()

    def asked(self, name: str = "") -> list[dict[str, Any]]:
        """Every question, or those for one name and what is below it, in order."""
        found = read_lines(self._log)
        return [line for line in found if not name or line["name"] == name or line["name"].endswith(f".{name}")]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@dataclass
class Internet:
    """The two machines, and what they share: a folder, an authority."""

    folder: Path
    outside: Machine
    servers: Machine
    authority: TestAuthority
    dns: Resolution
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve(self, name: str, *command: str, ready: Callable[[], Any] | None = None, **options: Any) -> None:
        """Start a server. It says "ready", or `ready` becomes true."""
        with open(self.folder / f"{name}.log", "ab") as log:
            output = subprocess.PIPE if ready is None else log
            process = subprocess.Popen(
                self.servers.argv(command), stdin=subprocess.DEVNULL, stdout=output, stderr=log, **options
            )
        leftovers.SPARED.add(process.pid)
        self.started[name] = process
        if ready is None:
            assert process.stdout is not None
            with process.stdout:
                said = process.stdout.readline()
            assert said == b"ready\n", f"{name} did not start: {self.log(name)}"
        else:
            there = ready

            def listening() -> bool:
                assert process.poll() is None, f"{name} did not start: {self.log(name)}"
                return bool(there())

            eventually(listening, f"the start of {name}")

    def serve_python(self, name: str, *arguments: str) -> None:
        self.serve(name, sys.executable, str(SERVERS / f"{name}.py"), *arguments)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def listens(self, port: int) -> bool:
        """Whether somebody on the machine of the servers listens on a TCP port."""
        return bool(self.servers.run("ss", "-Hltn", f"sport = :{port}"))

    def pages(self, server: str = "") -> list[dict[str, Any]]:
        """nginx's log, or one server's part of it: each request that reached it, in order."""
        # A line is written after the answer; there is one process, so what was answered before this one is there.
        self.servers.run("curl", "-s", "-o", "/dev/null", "http://127.0.0.1:8080/until-here")
        found = [line for line in read_lines(self.folder / "access.jsonl") if line["uri"] != "/until-here"]
        return [line for line in found if not server or line["server"] == server]

    def connections(self) -> list[dict[str, Any]]:
        """Each connection that the servers of `tcp` have accepted, in order."""
        return read_lines(self.folder / "tcp.jsonl")

    def end(self) -> None:
        self.outside.end()
        self.servers.end()
        for process in self.started.values():
            process.wait()
            leftovers.SPARED.discard(process.pid)


@contextmanager
def make_internet() -> Iterator[Internet]:
    """Both machines with their cable, names and trust; the name server runs."""
    if os.getuid() != 0:
        pytest.skip("needs to be root, to make network namespaces with an ordinary user in one of them")
    before = set(leftovers.processes())
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="osmoda-internet-")))
        folder.chmod(0o711)
        outside = Machine(folder, processes=False)
        cleanup.callback(outside.end)
        servers = Machine(folder, processes=True)
        cleanup.callback(servers.end)
        _connect(outside, servers)
        authority = TestAuthority.make()
        _furnish(outside, folder, authority)
        internet = Internet(folder, outside, servers, authority, Resolution(folder))
        cleanup.callback(internet.end)
        internet.serve_python("dns_server", *internet.dns.arguments)
        yield internet
    left = leftovers.processes().keys() - before
    assert not left, f"the tests' internet left behind: {sorted(left)}"


def _connect(outside: Machine, servers: Machine) -> None:
    outside.ip(
        "link set lo up",
        f"link add cable type veth peer name cable netns {servers.pid}",
        f"address add {names.HOST_IPV4}/24 dev cable",
        f"address add {names.HOST_LAN}/24 dev cable",
        f"address add {names.HOST_IPV6}/64 dev cable nodad",
        "link set cable up",
    )
    servers.ip(
        "link set lo up",
        f"address add {names.GATEWAY_IPV4}/24 dev cable",
        f"address add {names.GATEWAY_IPV6}/64 dev cable nodad",
        "link set cable up",
        *(
            f"address add {address}/128 dev lo nodad" for address in (names.DNS_IPV6, names.HTTP1_IPV6)
        ),  # to be bound to
        *(f"route add local {network} dev lo" for network in names.IPV4_NETWORKS),
        *(f"route add local {network} dev lo" for network in names.IPV6_NETWORKS),
        f"route add blackhole {names.SILENT[0]} table local",
        f"route add blackhole {names.SILENT[1]} table local",
    )
    outside.ip(
        f"route add default via {names.GATEWAY_IPV4}",
        f"route add default via {names.GATEWAY_IPV6}",
        f"route add unreachable {names.UNREACHABLE[0]}",
        f"route add unreachable {names.UNREACHABLE[1]}",
    )


def _furnish(outside: Machine, folder: Path, authority: TestAuthority) -> None:
    """The files by which programs find names and trust, in this machine's own view."""
    files = {
        "resolv.conf": f"nameserver {names.DNS_IPV4}\noptions timeout:2 attempts:4\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    }
    for name, content in files.items():
        path = folder / name
        path.write_text(content)
        path.chmod(0o644)
        outside.bind(path, Path("/etc", name))
    # OpenSSL looks up its folder by a hash of the name; GnuTLS, Go and curl read the bundle; Java has a store.
    trust = folder / "certs"
    shutil.copytree(CERTIFICATES, trust, symlinks=True)
    (trust / "osmoda-test.pem").write_bytes(authority.pem)
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(trust / "osmoda-test.pem")]
    digest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (trust / f"{digest}.0").symlink_to("osmoda-test.pem")
    with open(trust / BUNDLE.name, "ab") as bundle:
        bundle.write(authority.pem)
    (trust / "java").mkdir(exist_ok=True)
    (trust / "java" / "cacerts").write_bytes(authority.java_store())
    outside.bind(trust, CERTIFICATES)


@dataclass(frozen=True)
class OnlineWorld(World):
    """A world whose commands run on the machine `outside`."""

    machine: Machine | None = None

    def argv(self, command: Sequence[str | os.PathLike[str]], cwd: str | os.PathLike[str] | None = None) -> list[str]:
        assert self.machine is not None
        return self.machine.argv(super().argv(command, cwd), cwd or self.tmp)

    @classmethod
    def of(cls, world: World, machine: Machine) -> OnlineWorld:
        return cls(world.name, world.uid, world.gid, world.tmp, world.environment, machine)


@pytest.fixture(scope="session")
def internet() -> Iterator[Internet]:
    """The internet of this test process."""
    with make_internet() as made:
        yield made


@pytest.fixture
def online(internet: Internet, world: World) -> OnlineWorld:
    """`world`, connected."""
    return OnlineWorld.of(world, internet.outside)
