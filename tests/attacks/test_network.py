"""Ways out of a network of names, other than by its gateway: each fails in the kernel, at a named layer.

The attacker runs inside a sandbox that may reach www.example.test:443 and nothing else, on the tests' own internet.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from osmoda.egress.registration import GATE_PORT
from tests.internet import Internet
from tests.sandboxed import PYTHON, Sandboxed, Step
from tests.servers import names
from tests.worlds import Program

FAMILIES = (4, 6)
ALLOW = ["www.example.test"]
NO_WAY = {"ENETUNREACH", "EACCES", "EPERM", "ECONNREFUSED", "EADDRNOTAVAIL", "EINVAL"}
AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 2, 10, 16, 17
RAW = 3


@pytest.fixture(params=[1, 2], ids=["tier1", "tier2"])
def attacker(request: pytest.FixtureRequest, sandboxed: Sandboxed) -> Sandboxed:
    """Both tiers that promise anything."""
    return replace(sandboxed, tier=request.param)


def ends(answers: list[Step] | tuple[Step, ...]) -> list[str]:
    return [answer["end"] for answer in answers]


def test_addresses_that_no_route_leads_to(attacker: Sandboxed, web: Internet) -> None:
    """TCP to any server by its address. Control: it works outside. Layer: the routes of the network namespace."""
    targets = ["198.51.100.10", "2001:db8:100::10", "203.0.113.10", "10.9.9.9", "169.254.169.254", "fd00:9::9"]
    steps: list[Step] = [{"do": "connect", "host": host, "port": port} for host in targets for port in (443, 80)]
    assert set(ends(attacker.outside(*steps))) == {"connected"}
    before = len(web.pages())
    visit = attacker.visit(*steps, allow=ALLOW)
    # In tier 2 Landlock may answer first.
    assert set(ends(visit.answers)) <= {"ENETUNREACH", "EACCES"}
    assert len(web.pages()) == before


def test_datagrams(attacker: Sandboxed, web: Internet) -> None:
    """UDP (HTTP/3, tunnels, DNS to anybody) to servers, to names, and to the resolver's other ports.

    Control: the name server answers it outside. Layers: routes, and the filter of nftables, at once.
    """
    question = "\x12\x34\x01\0\0\1\0\0\0\0\0\0\3www\7example\4test\0\0\1\0\1"
    outside = attacker.outside({"do": "datagram", "host": names.DNS_IPV4, "port": 53, "send": question})
    assert outside[0]["got"].startswith("\x12\x34")
    before = len(web.dns.asked())
    steps: list[Step] = [
        {"do": "datagram", "host": names.DNS_IPV4, "port": 53, "send": question},
        {"do": "datagram", "host": names.DNS_IPV6, "port": 53, "send": question},
        *[{"do": "datagram", "host": "www.example.test", "port": port, "family": family, "send": question}
          for port in (443, 53) for family in FAMILIES],
        {"do": "datagram", "host": "198.18.0.1", "port": 54, "send": question},
        {"do": "datagram", "host": "198.18.77.77", "port": 53, "send": question},
    ]  # fmt: skip
    visit = attacker.visit(*steps, allow=ALLOW)
    assert set(ends(visit.answers)) <= NO_WAY, visit.answers
    assert len(web.dns.asked()) == before


@contextmanager
def greeting(address: str, port: int, internet: Internet) -> Iterator[None]:
    """Somebody on the machine outside who greets whoever connects."""
    source = (
        "import socket, sys\n"
        "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    with listener.accept()[0] as one: one.sendall(b'hello from the host')\n"
    )
    argv = internet.outside.argv([PYTHON, "-c", source, address, str(port)])
    with Program(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            server.kill()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_services_on_the_loopback_of_the_host(attacker: Sandboxed, web: Internet, address: str) -> None:
    """Control: it greets outside. Layer: the sandbox's own lo, and for names the gateway."""
    step: Step = {"do": "talk", "host": address, "port": 7777, "seconds": 20}
    with greeting(address, 7777, web):
        assert attacker.outside(step)[0]["got"] == "hello from the host"
        visit = attacker.visit(step, allow=ALLOW)
        assert set(ends(visit.answers)) <= NO_WAY


def test_the_listener_of_the_gateway_itself(attacker: Sandboxed, web: Internet) -> None:
    """Connected to without a redirect it knows of no name, and so leads nowhere.

    Control: by way of a name the same bytes are answered. Layers: nftables where lo is closed, the gateway where not.
    """
    said = "GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n"
    sources = ["", "127.0.0.2"]
    steps: list[Step] = [
        {"do": "talk", "host": "127.0.0.1", "port": GATE_PORT, "send": [said], "bound": bound, "seconds": 14}
        for bound in sources
    ]
    steps.append({"do": "talk", "host": "::1", "port": GATE_PORT, "send": [said], "seconds": 14})
    steps.append({"do": "tls", "host": "127.0.0.1", "port": GATE_PORT, "sni": "www.example.test"})
    before = len(web.pages())
    control: Step = {"do": "talk", "host": "www.example.test", "port": 80, "send": [said], "until": "GET"}
    visit = attacker.visit(*steps, control, allow=["www.example.test:80,443"], workers=5)
    *attacks, proof = visit.answers
    assert "www.example.test says" in proof["got"]
    assert not any("says GET" in answer.get("got", "") for answer in attacks), attacks
    assert "agreed" not in ends(attacks)
    assert len(web.pages()) == before + 1
    assert all(record["verdict"] == "deny" for record in visit.records if record["name"] != "www.example.test")


def test_an_address_that_was_another_names(attacker: Sandboxed, web: Internet) -> None:
    """Every address of the ranges that stand for names, without asking for a name first: it is nobody's."""
    steps: list[Step] = [
        {"do": "tls", "host": host, "sni": "www.example.test"}
        for host in ("198.18.0.2", "198.18.0.3", "198.18.1.1", "198.19.255.254", "2001:2::2", "2001:2::ffff")
    ]
    visit = attacker.visit(*steps, allow=ALLOW)
    assert "agreed" not in ends(visit.answers)
    assert {record["verdict"] for record in visit.records} <= {"deny"}


def test_the_original_destination_is_the_kernels(attacker: Sandboxed, web: Internet) -> None:
    """A client may ask for it, and learns what it asked for itself; it cannot be set."""
    ask: list[Step] = [
        {"do": "original", "host": "www.example.test", "port": 443, "family": family} for family in FAMILIES
    ]
    SOL_IP, SO_ORIGINAL_DST = 0, 80
    forge: Step = {
        "do": "mark", "host": "198.18.0.2", "port": 443, "level": SOL_IP, "option": SO_ORIGINAL_DST,
        "value": "\x02\0\x01\xbb\xc6\x33\x64\x0a" + "\0" * 8,
    }  # fmt: skip
    visit = attacker.visit(*ask, forge, allow=ALLOW)
    for answer in visit.answers[:2]:
        assert answer.get("port", 443) == 443
    assert visit.answers[2]["end"] in {"ENOPROTOOPT", "EPERM", "EACCES"}


def test_options_of_sockets_that_choose_a_way(attacker: Sandboxed, web: Internet) -> None:
    """A mark, another device, transparency, source routes: what leads around rules and routes elsewhere.

    Control: root may set them outside. Layers: capabilities, which the sandbox has none of; and no other way exists.
    """
    SO_MARK, SO_BINDTODEVICE, IP_TRANSPARENT, IP_FREEBIND, IP_OPTIONS = 36, 25, 19, 15, 4
    target = {"do": "mark", "host": "198.51.100.10", "port": 443}
    privileged: list[Step] = [
        {**target, "option": SO_MARK, "value": 1},
        {**target, "level": 0, "option": IP_TRANSPARENT, "value": 1},
    ]
    others: list[Step] = [
        {**target, "option": SO_BINDTODEVICE, "value": "lo\0"},
        {**target, "level": 0, "option": IP_FREEBIND, "value": 1},
        {**target, "level": 0, "option": IP_OPTIONS, "value": "\x83\x07\x04\xc6\x33\x64\x0a\x00"},
    ]
    if attacker.world.is_root:
        assert ends(attacker.outside(*privileged)) == ["connected"] * 2
    visit = attacker.visit(*privileged, *others, allow=ALLOW)
    assert ends(visit.answers)[:2] == ["EPERM"] * 2
    assert "connected" not in ends(visit.answers)


def test_raw_sockets(attacker: Sandboxed, web: Internet) -> None:
    """Packets that no rule of TCP or UDP sees. Control: root makes them outside. Layer: seccomp."""
    kinds = [
        (AF_INET, RAW, 1),
        (AF_INET, RAW, 255),
        (AF_INET6, RAW, 58),
        (AF_PACKET, RAW, 0x0300),
        (AF_NETLINK, RAW, 12),
    ]
    steps: list[Step] = [{"do": "make", "domain": domain, "kind": kind, "protocol": protocol}
                         for domain, kind, protocol in kinds]  # fmt: skip
    if attacker.world.is_root:
        assert ends(attacker.outside(*steps)) == ["made"] * len(steps)
    assert set(ends(attacker.visit(*steps, allow=ALLOW).answers)) == {"EPERM"}


@pytest.mark.parametrize("attacker", [1], indirect=True, ids=["tier1"])
def test_the_rules_and_routes_inside(attacker: Sandboxed, web: Internet) -> None:
    """Even where a profile lets a program have netlink, it may look at most.

    Control: each of them works in a network namespace of root's own, and `ip` shows links inside. Layers: no capability
    in the namespace that owns the network; seccomp for nftables and for new namespaces.
    """
    attempts = {
        "route": "ip link set lo up && ip route add default dev lo",
        "address": "ip address add 198.51.100.10/32 dev lo",
        "link": "ip link add extra type veth",
        "rules": "nft flush ruleset",
        "sysctl": "{ echo 1 >/proc/sys/net/ipv4/ip_forward; }",
        "namespace": "unshare --user --net true",
    }
    script = "\n".join(f"if {command} >/dev/null 2>&1; then echo {name} done; fi" for name, command in attempts.items())
    outside = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin\n{script}"], check=True, stdout=subprocess.PIPE
    )
    assert outside.stdout.decode().split("\n")[:-1] == [f"{name} done" for name in attempts]
    network = 'allow = ["www.example.test"]\nfamilies = ["unix", "inet", "inet6", "netlink"]'
    ended = attacker.run("sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin\n{script}\nip link", network=network)
    assert "done" not in ended.output, ended.output
    stopped = {(denial["command"], denial["layer"]) for denial in ended.report["denials"]}
    assert {("nft", "seccomp"), ("unshare", "seccomp")} <= stopped
    assert "lo: <LOOPBACK,UP" in ended.output
    # And everything is as it was: what is listed can be reached, what is not cannot.
    visit = attacker.visit({"do": "tls", "host": "www.example.test"}, network=network)
    assert ends(visit.answers) == ["agreed"]


def test_abstract_sockets_of_the_host(attacker: Sandboxed, web: Internet) -> None:
    """They have no path that a mount could hide. Control: the same user connects outside. Layer: network namespace."""
    name = f"osmoda-test-{os.getpid()}"
    source = (
        "import socket, sys\n"
        "try:\n one = socket.socket(socket.AF_UNIX); one.connect('\\0' + sys.argv[1]); print('connected')\n"
        "except OSError as error: print('no', error.errno)\n"
    )
    held = (
        "import socket, sys\n"
        "one = socket.socket(socket.AF_UNIX); one.bind('\\0' + sys.argv[1]); one.listen()\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    argv = web.outside.argv([PYTHON, "-c", held, name])
    with Program(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert attacker.world.run([PYTHON, "-c", source, name]).stdout == "connected\n"
        assert attacker.run(PYTHON, "-c", source, name, allow=ALLOW).output.startswith("no ")
        server.communicate()


def test_ports_of_another_sandbox(attacker: Sandboxed, web: Internet) -> None:
    """A port that another sandbox serves, and that this one does not list under `connect`.

    Control: the serving sandbox reaches it itself. Layers: its own network namespace, and the gateway for its name.
    """
    source = (
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', 8082))\n"
        "socket.create_connection(('127.0.0.1', 8082)).close(); listener.accept()[0].close()\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    with listener.accept()[0] as one: one.sendall(b'hello from another')\n"
    )
    serving = replace(attacker, tier=1)
    profile = serving.profile('allow = ["www.example.test"]\nserve = [8082]', name="writer")
    words = ["run", "--profile", str(profile), "--workspace", str(attacker.work), "--", PYTHON, "-u", "-c", source]
    steps: list[Step] = [
        {"do": "talk", "host": host, "port": 8082, "family": family, "seconds": 20}
        for host in ("writer.agent", "localhost", "www.example.test")
        for family in FAMILIES
    ]
    with attacker.world.popen(attacker.world.osmoda_argv(*words), stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            visit = attacker.visit(*steps, allow=ALLOW)
            assert not any(answer.get("got") for answer in visit.answers), visit.answers
            connect = 'allow = ["www.example.test"]\nconnect = ["agent:writer:8082"]'
            listed = attacker.visit(*steps[:2], network=connect)
            assert [answer["got"] for answer in listed.answers] == ["hello from another"] * 2
        finally:
            server.terminate()


def test_every_port_of_the_ways_out(attacker: Sandboxed, web: Internet) -> None:
    """Of a listed name, of the resolver and of an own address: nothing is open but what has to be."""
    ports = 200
    steps: list[Step] = [
        {"do": "ports", "host": "198.18.0.1", "first": 1, "last": ports},
        {"do": "ports", "host": "2001:2::1", "first": 1, "last": ports, "family": 6},
        {"do": "ports", "host": "127.0.0.1", "first": 1, "last": ports},
        {"do": "ports", "host": "::1", "first": 1, "last": ports, "family": 6},
    ]
    visit = attacker.visit(*steps, allow=ALLOW, workers=4)
    resolver4, resolver6, lo4, lo6 = [
        {int(port) for port, how in answer["found"].items() if how == "connected"} for answer in visit.answers
    ]
    assert resolver4 == resolver6 == {53}
    assert lo4 <= {GATE_PORT}
    assert lo6 <= {GATE_PORT}


def test_threads_that_race_for_anothers_address(attacker: Sandboxed, web: Internet) -> None:
    """Many names at once, under a wildcard: each connection reaches the server of its own name, or none."""
    steps: list[Step] = [
        {
            "do": "tls",
            "host": f"n{number}.wild.test",
            "send": f"GET /n{number} HTTP/1.1\r\nHost: n{number}.wild.test\r\nConnection: close\r\n\r\n",
            "until": f"/n{number}\n",
        }
        for number in range(60)
    ]
    before = len(web.pages())
    visit = attacker.visit(*steps, allow=["*.wild.test"], workers=12)
    for number, answer in enumerate(visit.answers):
        assert f"GET /n{number}\n" in answer["got"], answer
    for page in web.pages()[before:]:
        assert page["sni"] == page["host"] == f"{page['uri'][1:]}.wild.test"
