"""Questions, edits, secrets, slow clients and limits of the network, end to end (beside its names and protocols)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from tests.internet import Internet
from tests.sandboxed import Sandboxed, Step, visitor
from tests.servers import names

FAMILIES = (4, 6)
DENIED = "tlsv1 alert access denied"
REFUSED_QUESTIONS = {3, 5}  # NXDOMAIN, REFUSED
A, TXT, AAAA, ANY = 1, 16, 28, 255


def each_family(**step: object) -> list[Step]:
    return [{"family": family, **step} for family in FAMILIES]


def tls(host: str, **more: object) -> list[Step]:
    return each_family(do="tls", host=host, **more)


def request(target: str, host: str, more: str = "") -> str:
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"


# DNS


def test_questions_leave_nothing_behind(sandboxed: Sandboxed, web: Internet) -> None:
    """Neither a denied name nor an allowed one is asked of anybody because a program looks it up."""
    denied = ["carried-out.evil.test", "other.example.test"]
    steps: list[Step] = [
        {"do": "dns", "name": name, "kind": kind, "tcp": tcp, "family": family}
        for name in denied
        for kind in (A, AAAA, TXT, ANY)
        for tcp in (False, True)
        for family in FAMILIES
    ]
    allowed = each_family(do="dns", name="a.tunnel.test") + each_family(do="dns", name="a.tunnel.test", kind=TXT)
    control = sandboxed.outside({"do": "resolve", "name": "control.tunnel.test"})
    assert control[0]["addresses"]
    assert web.dns.asked("control.tunnel.test")
    before = len(web.dns.asked())
    visit = sandboxed.visit(*steps, *allowed, allow=["*.tunnel.test"])
    refused, found, texts = visit.answers[: len(steps)], visit.answers[-4:-2], visit.answers[-2:]
    assert {answer["rcode"] for answer in refused} <= REFUSED_QUESTIONS, refused
    assert all(answer["answers"] == 0 for answer in (*refused, *texts))
    assert all("network.allow" in answer["text"] for answer in refused if answer.get("text"))
    assert any(answer.get("text") for answer in refused), "the reason is in the answer (RFC 8914)"
    assert [(answer["rcode"], answer["answers"]) for answer in found] == [(0, 1)] * 2
    assert web.dns.asked()[before:] == []


def test_names_as_a_tunnel_have_a_budget(sandboxed: Sandboxed, web: Internet) -> None:
    """Whoever answers for an allowed domain reads what stands before it."""
    wanted: list[Step] = [{"do": "dns", "name": f"data{number:04}.tunnel.test"} for number in range(300)]
    visit = sandboxed.visit(
        *wanted, {"do": "dns", "name": "www.example.test"}, allow=["*.tunnel.test", "www.example.test"]
    )
    *answers, listed = visit.answers
    assert sum(answer["answers"] for answer in answers) == 256
    refused = [answer for answer in answers if not answer["answers"]]
    assert all("one name too many" in answer["text"] for answer in refused)
    assert listed["answers"] == 1, "a name that is listed in full costs nothing"
    assert any("one name too many" in reason for reason in visit.reasons())


def test_other_resolvers(sandboxed: Sandboxed, web: Internet) -> None:
    """DNS over TLS, over HTTPS, and plain DNS with any other server."""
    steps: list[Step] = [
        *tls("www.example.test", port=853),
        *tls("other.example.test", send=request("/dns-query?dns=x", "other.example.test")),
        *[{"do": "tls", "host": host, "port": 443, "sni": ""} for host in (names.DNS_IPV4, names.DNS_IPV6)],
        *[{"do": "dns", "name": "www.example.test", "server": server, "tcp": tcp}
          for server in (names.DNS_IPV4, names.DNS_IPV6) for tcp in (False, True)],
    ]  # fmt: skip
    assert [answer["answers"] for answer in sandboxed.outside(*steps[6:])] == [1] * 4
    before = len(web.dns.asked())
    visit = sandboxed.visit(*steps, allow=["www.example.test"])
    ends = [answer["end"] for answer in visit.answers]
    assert ends[:2] == [DENIED] * 2
    assert ends[2:4] == ["no such name"] * 2
    assert set(ends[4:]) == {"ENETUNREACH"}
    assert web.dns.asked()[before:] == []


# Edits

KEEPING = """
import json, socket, ssl, sys
context = ssl._create_unverified_context()
open_ones = {}
def ask(connection, host):
    connection.sendall(f"GET /small HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".encode())
    got = b""
    while len(got) < 1024 or not got.endswith(b"x\\n"):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("ended")
        got += part
for line in sys.stdin:
    command, family, host = line.split()
    try:
        if command == "open":
            address = socket.getaddrinfo(host, 443, socket.AF_INET if family == "4" else socket.AF_INET6)[0][4]
            plain = socket.create_connection(address[:2], 30)
            open_ones[family, host] = context.wrap_socket(plain, server_hostname=host)
        ask(open_ones[family, host], host)
        print("ok", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def test_an_edit_counts_for_open_connections(sandboxed: Sandboxed, web: Internet) -> None:
    """What is no longer allowed is cut, and nothing else; it never fails open, and comes back with its rule."""
    world = sandboxed.world
    command = sandboxed.argv(
        "/usr/bin/python3", "-u", "-c", KEEPING, network='allow = ["www.example.test", "api.example.test"]  # kept'
    )
    profile = world.tmp / "agent.toml"
    with world.popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None

        def say(what: str, host: str) -> set[str]:
            answers = set()
            for family in FAMILIES:
                assert inside.stdin is not None
                assert inside.stdout is not None
                inside.stdin.write(f"{what} {family} {host}\n")
                inside.stdin.flush()
                answers.add(inside.stdout.readline().strip())
            return answers

        assert say("open", "www.example.test") == say("open", "api.example.test") == {"ok"}
        world.egress("deny", profile, "www.example.test", check=True)
        assert "ok" not in say("ask", "www.example.test")
        assert say("open", "www.example.test") == {"gaierror"}
        assert say("ask", "api.example.test") == {"ok"}, "the same connection as before"
        world.egress("remove", profile, "api.example.test", check=True)
        assert "ok" not in say("ask", "api.example.test")
        world.egress("allow", profile, "api.example.test", "other.example.test", check=True)
        assert say("open", "api.example.test") == say("open", "other.example.test") == {"ok"}
        # An edit that does not hold changes nothing.
        before = profile.read_text()
        assert world.egress("allow", profile, "no such host!").returncode != 0
        assert profile.read_text() == before
        assert "# kept" in before
        assert say("ask", "other.example.test") == {"ok"}
        output, errors = inside.communicate(timeout=60)
    ended = sandboxed.ended(inside.returncode, output, errors)
    revoked = [record for record in ended.records if record.get("action") == "revoked"]
    assert {record["name"] for record in revoked} == {"www.example.test", "api.example.test"}
    assert len(revoked) == 4
    tested = world.egress("test", profile, "https://www.example.test/")
    assert tested.returncode == 1


# Secrets


def test_a_secret_goes_to_its_own_host_and_nowhere_else(sandboxed: Sandboxed, web: Internet) -> None:
    value = "sk-live-0123456789abcdef"
    network = (
        'allow = [{ host = "api.example.test", ports = [80, 443], secret = "API_KEY" },'
        ' { host = "www.example.test", methods = ["GET"] }]'
    )
    script = """
        curl -sS -H "Authorization: Bearer $API_KEY" https://api.example.test/echo; echo
        curl -sS -o /dev/null -w '%{http_code}\\n' -H "Authorization: Bearer $API_KEY" https://www.example.test/own
        curl -sS -o /dev/null -w '%{http_code}\\n' "https://www.example.test/?k=$API_KEY"
        curl -sS -o /dev/null -w '%{http_code}\\n' https://www.example.test/clean
        echo "$API_KEY"
    """
    before = len(web.pages())
    ended = sandboxed.run("sh", "-c", script, network=network, env={"API_KEY": value})
    seen, header, query, clean, inside = ended.output.splitlines()
    assert ["authorization", f"Bearer {value}"] in [[name.lower(), text] for name, text in json.loads(seen)["headers"]]
    assert [header, query, clean] == ["403", "403", "200"]
    assert inside != value
    assert len(inside) == len(value), "a placeholder of the same shape"
    pages = web.pages()[before:]
    assert [page["uri"] for page in pages] == ["/echo", "/clean"]
    assert [page["authorization"] for page in pages] == [f"Bearer {value}", ""]
    assert any("API_KEY" in reason for reason in ended.reasons())
    told = json.dumps([dict(record) for record in ended.records]) + ended.errors + json.dumps(dict(ended.report))
    assert value not in told


# Slow clients, and many


def test_clients_that_say_nothing_or_too_little(sandboxed: Sandboxed, web: Internet) -> None:
    """A deadline ends them; others go on meanwhile."""
    quiet = [
        *each_family(do="talk", host="www.example.test", port=443, seconds=50),
        *each_family(do="talk", host="www.example.test", port=80, send=["GET / HT"], seconds=50),
        *each_family(do="talk", host="www.example.test", port=443, send=["\x16\x03\x01\x02\x00\x01\x00"], seconds=50),
    ]
    visit = sandboxed.visit(*quiet, *tls("www.example.test"), allow=["www.example.test:80,443"], workers=8)
    slow, others = visit.answers[:6], visit.answers[6:]
    assert [answer["end"] for answer in others] == ["agreed"] * 2
    assert {answer["end"] for answer in slow} <= {"eof", "reset"}
    assert all(8 < answer["seconds"] < 40 for answer in slow), [answer["seconds"] for answer in slow]
    assert len([reason for reason in visit.reasons() if "seconds" in reason]) == 1


def test_a_limit_of_connections_is_said(sandboxed: Sandboxed, web: Internet) -> None:
    """1,024 of one sandbox; what is beyond is refused with a reason, and the rest stays."""
    greedy = 'ulimit -n 4096; exec "$@"'
    network = 'allow = ["www.example.test:80"]\n[process]\nlimits = { open_files = 4096 }'
    hold: Step = {"do": "hold", "host": "www.example.test", "port": 80, "count": 1030, "family": 4, "seconds": 8}
    ended = sandboxed.run("sh", "-c", greedy, "sh", *visitor([hold]), network=network)
    assert ended.status == 0, ended.errors
    (answer,) = json.loads(ended.output)
    assert answer["opened"] == 1030
    assert answer["ends"], "some were ended"
    assert all(int(number) >= 1024 for number in answer["ends"])
    assert any("1024 are the most" in record["reason"] for record in ended.denied)


def test_one_gateway_for_many_sandboxes(sandboxed: Sandboxed, web: Internet) -> None:
    """With `osmoda-egress serve`: each has a policy of its own."""
    world = sandboxed.world
    argv = world.osmoda_argv("serve", "--workers", "1", command="osmoda-egress")
    with world.popen(argv, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        assert service.stderr.readline() == "osmoda-egress: serving\n"
        try:
            steps = [*tls("www.example.test"), *tls("api.example.test")]
            other = replace(sandboxed, tier=1)
            assert [answer["end"] for answer in sandboxed.visit(*steps, allow=["www.example.test"]).answers] == [
                *["agreed"] * 2,
                *["no such name"] * 2,
            ]
            assert [answer["end"] for answer in other.visit(*steps, allow=["api.example.test"]).answers] == [
                *["no such name"] * 2,
                *["agreed"] * 2,
            ]
            # The inspecting half is loaded by the confined service.
            inspected = 'allow = [{ host = "www.example.test", methods = ["GET"] }]'
            curl = "curl -sS -o /dev/null -w '%{http_code} ' https://www.example.test/small"
            ended = sandboxed.run("sh", "-c", f"{curl}; {curl} -d x", network=inspected)
            assert ended.output == "200 403 ", ended.errors
        finally:
            service.terminate()
            service.wait(30)
    assert service.returncode == 0


TEN_AT_ONCE = """
import socket, ssl, sys
trusted = ssl.create_default_context()
for line in sys.stdin:
    held = []
    for _ in range(10):
        client = socket.create_connection(("www.example.test", 443), 20)
        held.append(trusted.wrap_socket(client, server_hostname="www.example.test"))
        held[-1].sendall(b"GET /small HTTP/1.1\\r\\nHost: www.example.test\\r\\n\\r\\n")
    print([client.recv(12).decode() for client in held].count("HTTP/1.1 200"), flush=True)
    sys.stdin.readline()
    for client in held:
        client.close()
"""


def sockets(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(entry).startswith("socket:")
    return found


def test_two_confined_workers_look_into_the_connections_of_one_sandbox(sandboxed: Sandboxed, web: Internet) -> None:
    """What one of them passes on is answered as what it keeps."""
    world = sandboxed.world
    argv = world.osmoda_argv("serve", "--workers", "2", command="osmoda-egress")
    command = sandboxed.argv(
        "/usr/bin/python3", "-c", TEN_AT_ONCE, network='allow = [{ host = "www.example.test", methods = ["GET"] }]'
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with world.popen(argv, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        assert service.stderr.readline() == "osmoda-egress: serving\n"
        workers = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        try:
            with world.popen(command, **pipes) as run:
                assert run.stdin is not None
                assert run.stdout is not None
                try:
                    before = [sockets(int(worker)) for worker in workers]
                    deadline = time.monotonic() + 60
                    both = False
                    # The second joins in when it has loaded what that takes.
                    while not both and time.monotonic() < deadline:
                        run.stdin.write("\n")
                        run.stdin.flush()
                        assert run.stdout.readline() == "10\n"
                        more = [sockets(int(worker)) - held for worker, held in zip(workers, before, strict=True)]
                        both = min(more) >= 3
                        run.stdin.write("\n")
                        run.stdin.flush()
                    assert both, more
                finally:
                    run.stdin.close()
                    run.wait(30)
        finally:
            service.terminate()
            service.wait(30)
