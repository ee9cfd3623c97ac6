"""What real programs make of the resolver's answers: glibc, curl, Node's c-ares and Java.

The resolver stands in a network namespace of the test's own, as it does in a sandbox: its sockets are bound to the
resolver's addresses, and resolv.conf leads to them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from osmoda.egress import name_table
from osmoda.egress.loop import Loop
from osmoda.egress.name_service import NameService
from osmoda.egress.name_table import NameTable
from osmoda.egress.resolver import Found, Refused

QUICK = 18.0  # seconds, with the start of an interpreter on a busy machine; one query unanswered would take 20

GETADDRINFO = """
import socket, sys
try:
    print(*sorted({found[4][0] for found in socket.getaddrinfo(sys.argv[1], 443)}))
except socket.gaierror as error:
    print(error.strerror)
"""
GETNAMEINFO = "import socket, sys; print(socket.gethostbyaddr(sys.argv[1])[0])"
NODE = """
const dns = require('dns'), [method, name] = process.argv.slice(1)
dns[method](name, (error, found) => console.log(error ? error.code : found[0]))
"""
JAVA = """
public class Resolve {
    public static void main(String[] names) throws Exception {
        try { System.out.println(java.net.InetAddress.getByName(names[0]).getHostAddress()); }
        catch (java.net.UnknownHostException error) { System.out.println(error.getMessage()); }
    }
}
"""


def enter_namespaces():
    """Of user, network and mounts; then root inside."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.CLONE_NEWUSER | os.CLONE_NEWNET | os.CLONE_NEWNS
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    for command in (
        "ip link set lo up",
        f"ip address add {name_table.RESOLVER_IPV4_TEXT}/32 dev lo",
        f"ip address add {name_table.RESOLVER_IPV6_TEXT}/128 dev lo nodad",
        f"ip route add local {name_table.NETWORK_IPV4} dev lo",
        f"ip -6 route add local {name_table.NETWORK_IPV6} dev lo",
    ):
        subprocess.run(command.split(), check=True)


def put(path, content):
    """Another content for a file, in this mount namespace."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        subprocess.run(["mount", "--bind", file.name, path], check=True)


def serve():
    """A service on both of the resolver's addresses; its loop in a thread."""
    sockets = {socket.SOCK_DGRAM: [], socket.SOCK_STREAM: []}
    for family, address in (
        (socket.AF_INET, name_table.RESOLVER_IPV4_TEXT),
        (socket.AF_INET6, name_table.RESOLVER_IPV6_TEXT),
    ):
        for kind, made in sockets.items():
            bound = socket.socket(family, kind)
            bound.bind((address, 53))
            if kind == socket.SOCK_STREAM:
                bound.listen()
            made.append(bound.detach())
    table = NameTable()

    def look_up(name):
        if name.endswith(".allowed.example"):
            index = table.bind(name)
            return Found(table.ipv4(index), table.ipv6(index), 60)
        rcode = "REFUSED" if name.startswith("budget") else "NXDOMAIN"
        return Refused(rcode, 15, f"{name} is not listed")

    loop = Loop()
    service = NameService(loop, *sockets.values(), look_up, reverse=table.name_of)
    service.prewarm()
    threading.Thread(target=loop.run, daemon=True).start()
    return service


def ask(options, commands):
    """What each command prints, how long it took and how many queries it asked."""
    enter_namespaces()
    put("/etc/nsswitch.conf", "hosts: files dns\n")
    put("/etc/resolv.conf", options)
    service = serve()
    found = []
    for command in commands:
        before, start = service.queries, time.monotonic()
        result = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        seconds = time.monotonic() - start
        found.append((result.stdout.strip() + result.stderr.strip(), seconds, service.queries - before))
    return found


RESOLV = {
    "IPv4": f"nameserver {name_table.RESOLVER_IPV4_TEXT}\noptions timeout:20 attempts:2\n",
    "IPv6": f"nameserver {name_table.RESOLVER_IPV6_TEXT}\noptions timeout:20 attempts:2\n",
    "TCP": f"nameserver {name_table.RESOLVER_IPV4_TEXT}\noptions timeout:20 attempts:2 use-vc\n",
    "EDNS": f"nameserver {name_table.RESOLVER_IPV4_TEXT}\noptions timeout:20 attempts:2 edns0\n",
}


@pytest.mark.parametrize("options", RESOLV.values(), ids=RESOLV.keys())
def test_glibc(world, options):
    python = [sys.executable, "-I", "-S", "-c"]
    found = world.call(
        ask,
        options,
        [
            [*python, GETADDRINFO, "api.allowed.example"],
            [*python, GETADDRINFO, "denied.example"],
            [*python, GETADDRINFO, "denied"],
            [*python, GETADDRINFO, "budget.example"],
            [*python, GETNAMEINFO, "198.18.1.0"],
            [*python, GETNAMEINFO, "2001:2:0:1::"],
            ["getent", "ahostsv4", "other.allowed.example"],
        ],
    )
    assert [printed.partition(" ")[0] if "STREAM" in printed else printed for printed, _, _ in found] == [
        "198.18.1.0 2001:2:0:1::",
        "Name or service not known",
        "Name or service not known",
        # Over TCP, glibc takes REFUSED for the end of it.
        "Name or service not known" if "use-vc" in options else "Temporary failure in name resolution",
        "api.allowed.example",
        "api.allowed.example",
        "198.18.1.1",
    ]
    assert max(seconds for _, seconds, _ in found) < QUICK
    # A name that is refused for good is asked for once, in both families.
    assert [queries for _, _, queries in found[:3]] == [2, 2, 2]
    assert found[3][2] == (2 if "use-vc" in options else 4)


def test_curl(world):
    command = ["curl", "-sS", "--max-time", "45"]
    allowed, denied = world.call(
        ask, RESOLV["IPv4"], [[*command, "http://api.allowed.example:9/"], [*command, "http://denied.example/"]]
    )
    assert allowed[0].startswith("curl: (7) Failed to connect to api.allowed.example port 9")
    assert denied[0] == "curl: (6) Could not resolve host: denied.example"
    assert max(allowed[1], denied[1]) < QUICK


def test_node(world):
    """`lookup` is glibc's; the others are c-ares, which has its own mind about when to ask again."""
    questions = {
        ("lookup", "denied.example"): "ENOTFOUND",
        ("resolve4", "api.allowed.example"): "198.18.1.0",
        ("resolve6", "api.allowed.example"): "2001:2:0:1::",
        ("resolve4", "denied.example"): "ENOTFOUND",
        ("resolveSrv", "api.allowed.example"): "ENODATA",
        ("resolveTxt", "api.allowed.example"): "EREFUSED",
        ("resolveAny", "api.allowed.example"): "EREFUSED",
        ("reverse", "198.18.1.0"): "api.allowed.example",
        ("reverse", "192.0.2.1"): "ENOTFOUND",
    }
    found = world.call(ask, RESOLV["IPv4"], [["node", "-e", NODE, *question] for question in questions])
    assert [printed for printed, _, _ in found] == [*questions.values()]
    assert max(seconds for _, seconds, _ in found) < QUICK
    assert [queries for _, _, queries in found] == [2, *[1] * 8]


def test_java(world):
    source = world.tmp / "Resolve.java"
    source.write_text(JAVA)
    world.own(source)
    names = ["api.allowed.example", "denied.example"]
    found = world.call(ask, RESOLV["IPv4"], [["java", str(source), name] for name in names], timeout=120)
    assert [printed for printed, _, _ in found] == ["198.18.1.0", "denied.example: Name or service not known"]
    assert [queries for _, _, queries in found] == [2, 2]
