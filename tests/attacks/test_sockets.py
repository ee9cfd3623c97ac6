"""Services of the host, by every kind of socket that leads to one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attacks.conftest import Attacker, as_root

GREETING = "hello from the host"
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK = 1, 2, 10, 16, 17, 40
STREAM, DGRAM, RAW = 1, 2, 3
SOCKET = 41 if os.uname().machine == "x86_64" else 198


@contextmanager
def service(listener: socket.socket) -> Iterator[None]:
    """Greets whoever connects, until the end of the block."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(GREETING.encode())

    listener.listen()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@contextmanager
def unix_service(address: str | Path) -> Iterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(address))
    if not os.fspath(address).startswith("\0"):
        os.chmod(address, 0o777)
    with service(listener):
        yield


def expect_unix(attacker: Attacker, address: str, answer: str, options: list[str]) -> None:
    """Tier 1 gets `answer` of the kernel; tier 2 has no unix sockets at all."""
    ended = attacker.inside("connect", address, options=options)
    if attacker.tier == 2:
        assert (ended.line, ended.refused()) == ("EPERM", {"socket"})
    else:
        assert (ended.line, ended.refused()) == (answer, set())


def test_an_abstract_unix_socket(attacker: Attacker) -> None:
    """It has no path that a mount or a mode could keep: only the network namespace does (and Landlock's scope)."""
    name = f"osmoda-attack-{os.getpid()}"
    with unix_service(f"\0{name}"):
        assert attacker.outside("connect", f"@{name}").line == f"OK {GREETING}"
        expect_unix(attacker, f"@{name}", "ECONNREFUSED", [])


def test_a_unix_socket_in_a_tree_granted_for_reading(attacker: Attacker) -> None:
    """Connecting writes nothing, so a read-only mount would let it be: docker.sock, D-Bus, an agent's keys."""
    path = attacker.folder / "service.sock"
    with unix_service(path):
        assert attacker.outside("connect", str(path)).line == f"OK {GREETING}"
        seen = attacker.run("stat", "-c", "%F", str(path))
        assert seen.output == "socket\n", "it is in view"
        expect_unix(attacker, str(path), "ECONNREFUSED", [])


def test_a_unix_socket_in_an_overlay_workspace(attacker: Attacker) -> None:
    work = attacker.world.tmp / "work"
    work.mkdir()
    attacker.world.own(work)
    with unix_service(work / "service.sock"):
        assert attacker.outside("connect", str(work / "service.sock")).line == f"OK {GREETING}"
        options = ["--workspace-mode", "overlay", "--workspace", str(work)]
        expect_unix(attacker, str(work / "service.sock"), "ECONNREFUSED", options)


@as_root
def test_a_unix_socket_in_run(attacker: Attacker) -> None:
    """Where docker.sock and D-Bus lie; and no profile can grant it."""
    folder = Path(f"/run/osmoda-attack-{os.getpid()}")
    folder.mkdir()
    path = folder / "docker.sock"
    try:
        with unix_service(path):
            assert attacker.outside("connect", str(path)).line == f"OK {GREETING}"
            expect_unix(attacker, str(path), "ENOENT", [])
            for grant in (path, folder, Path("/run")):
                ended = attacker.run("true", options=["--read", str(grant)])
                assert ended.status == 125
                assert "which no profile of this tier may grant" in ended.errors or "ceiling" in ended.errors
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()


TCP = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as connection:
            print(connection.recv(100).decode())
    except OSError as error:
        print(errno.errorcode.get(error.errno, error))
"""


def own_address() -> str | None:
    """An address of this host beside the loopback's, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def test_tcp_services_of_the_host_and_beyond(attacker: Attacker) -> None:
    """On its loopback and on its own address; and any other address has no route."""
    listener = socket.socket()
    listener.bind(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    mine = own_address()
    targets = [f"127.0.0.1:{port}", *([f"{mine}:{port}"] if mine else [])]
    python = ["/usr/bin/python3", "-c", TCP]
    with service(listener):
        assert attacker.world.run([*python, *targets]).stdout.splitlines() == [GREETING] * len(targets)
        ended = attacker.run(*python, *targets, "192.0.2.1:80", "[2001:db8::1]:80".replace("[", "").replace("]", ""))
    found = ended.output.splitlines()
    # Tier 1 has a loopback of its own, where nobody listens; in tier 2 Landlock lets no port be connected to.
    loopback = "ECONNREFUSED" if attacker.tier == 1 else "EACCES"
    beyond = "ENETUNREACH" if attacker.tier == 1 else "EACCES"
    assert found == [loopback, *([beyond] if mine else []), beyond, beyond], ended.errors
    interfaces = attacker.run("cat", "/proc/net/dev").output.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"], "the network namespace has nothing else"


@as_root
def test_kinds_of_sockets_that_no_program_needs(attacker: Attacker) -> None:
    """Raw ones forge packets and read all of them, vsock reaches a hypervisor, netlink sets up networks."""
    attacks = {
        "packet": ["call", str(SOCKET), str(AF_PACKET), str(RAW), "0x0300"],
        "raw": ["call", str(SOCKET), str(AF_INET), str(RAW), "1"],
        "raw6": ["call", str(SOCKET), str(AF_INET6), str(RAW), "58"],
        "sock-packet": ["call", str(SOCKET), str(AF_INET), "10", "0x0300"],
        "vsock": ["call", str(SOCKET), str(AF_VSOCK), str(STREAM), "0"],
        "netlink-route": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "0"],
        "netlink-audit": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "9"],
        "netlink-netfilter": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "12"],
        "netlink-uevent": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "15"],
        "alg": ["call", str(SOCKET), "38", "5", "0"],
        "bluetooth": ["call", str(SOCKET), "31", str(RAW), "1"],
    }
    outside = attacker.all_outside(attacks, privileged=True)
    absent = {name for name, answer in outside.items() if answer in ("EAFNOSUPPORT", "EPROTONOSUPPORT")}
    assert {name: answer for name, answer in outside.items() if name not in absent} == dict.fromkeys(
        (name for name in attacks if name not in absent), "OK"
    )
    assert absent <= {"vsock", "alg", "bluetooth", "netlink-audit", "netlink-netfilter"}, "not in this kernel"
    ended = attacker.all_inside(attacks)
    assert ended.each() == dict.fromkeys(attacks, "EPERM")
    assert ended.refused() == {"socket"}


@pytest.mark.parametrize("tier", [1], ids=["tier1"], indirect=True)
def test_netlink_where_a_profile_allows_it(attacker: Attacker) -> None:
    """Of netlink only the routing tables, and they are those of the sandbox's own network."""
    profile = attacker.profile('[network]\nfamilies = ["unix", "inet", "netlink"]\n')
    attacks = {
        "route": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "0"],
        "uevent": ["call", str(SOCKET), str(AF_NETLINK), str(RAW), "15"],
    }
    assert attacker.all_outside(attacks) == {"route": "OK", "uevent": "OK"}
    ended = attacker.all_inside(attacks, ["--profile", profile])
    assert ended.each() == {"route": "OK", "uevent": "EPERM"}
    names = "import socket; print([name for _, name in socket.if_nameindex()])"
    seen = attacker.run("/usr/bin/python3", "-c", names, options=["--profile", profile])
    assert seen.output == "['lo']\n", seen.errors
