"""The tests' own internet: what tests of the network take for granted works without a sandbox."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.internet import Internet, OnlineWorld
from tests.internet_servers import Database, Ssh, postgres_programs
from tests.servers import names, tcp_server

CURL = ["curl", "--silent", "--show-error", "--max-time", "10"]
BOTH = pytest.mark.parametrize("family", ["-4", "-6"])

RESOLVE = """
import json, socket, sys
found = []
for name in sys.argv[1:]:
    try:
        answers = socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
        found.append(sorted({answer[4][0] for answer in answers}))
    except socket.gaierror as error:
        found.append(error.strerror)
print(json.dumps(found))
"""


def resolve(online: OnlineWorld, *wanted: str) -> list[list[str] | str]:
    found: list[list[str] | str] = json.loads(online.python(RESOLVE, *wanted, check=True).stdout)
    return found


def test_a_command_runs_as_its_user_on_the_machine_outside(online: OnlineWorld) -> None:
    done = online.run(["sh", "-c", "id -u; pwd; ip -brief address show dev cable; echo $$"], check=True)
    uid, here, addresses, _ = done.stdout.splitlines()
    assert (int(uid), here) == (online.uid, str(online.tmp))
    assert {names.HOST_IPV4 + "/24", names.HOST_IPV6 + "/64"} <= set(addresses.split())
    with online.popen(["sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


def test_names_lead_where_the_table_says(online: OnlineWorld) -> None:
    wanted = ["www.example.test", "v4.example.test", "alias.example.test", "a.b.wild.test", "absent.example.test"]
    www, v4, alias, wild, absent = resolve(online, *wanted)
    assert www == ["198.51.100.10", "2001:db8:100::10"]
    assert v4 == ["198.51.100.21"]
    assert alias == ["10.9.9.9", "fd00:9::9"]
    assert wild == ["198.51.100.18", "2001:db8:100::18"]
    assert "not known" in str(absent)


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_answers_can_be_changed_flipped_and_withheld(online: OnlineWorld, internet: Internet) -> None:
    first, second = {"A": ["198.51.100.10"]}, {"A": ["10.9.9.9"]}
    with internet.dns.answering(flip_example={"answers": [first, second]}, gone_example={"rcode": "SERVFAIL"}):
        assert resolve(online, "flip.example.test", "flip.example.test", "flip.example.test") == [
            ["198.51.100.10"],
            ["10.9.9.9"],
            ["10.9.9.9"],
        ]
        assert "failure" in str(resolve(online, "gone.example.test")[0])
    assert "not known" in str(resolve(online, "flip.example.test")[0])
    assert {question["type"] for question in internet.dns.asked("flip.example.test")} == {"A", "AAAA"}


@BOTH
def test_https_is_verified_and_speaks_http2(online: OnlineWorld, web: Internet, family: str) -> None:
    report = ["--write-out", "%{http_version} %{remote_ip}", "--output", "/dev/null"]
    done = online.run([*CURL, family, *report, "https://www.example.test/small"], check=True)
    version, address = done.stdout.split()
    assert version == "2"
    assert (":" in address) == (family == "-6")
    done = online.run([*CURL, family, *report, "https://h1.example.test/small"], check=True)
    assert done.stdout.split()[0] == "1.1"
    page = web.pages("www.example.test")[-1]
    assert (page["sni"], page["status"], page["port"], page["address"]) == ("www.example.test", 200, 443, address)


@pytest.mark.parametrize("name", names.INVALID)
def test_invalid_certificates_are_refused_by_a_client(online: OnlineWorld, web: Internet, name: str) -> None:
    assert online.run([*CURL, f"https://{name}/"]).returncode == 60
    assert online.run([*CURL, "--insecure", f"https://{name}/"], check=True).stdout.startswith(f"{name} says GET /")


@BOTH
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_every_misleading_name_leads_to_a_server(online: OnlineWorld, web: Internet, family: str) -> None:
    """A test of their refusal would mean nothing otherwise. Those of this machine itself have no server here."""
    kind = "A" if family == "-4" else "AAAA"
    here = {"loopback.example.test", "zero.example.test", "lan.example.test", "mapped.example.test"}
    wanted = [name for name, record in names.MISLEADING.items() if kind in record and record[kind] and name not in here]
    assert len(wanted) >= 6
    for name in wanted:
        done = online.run([*CURL, family, f"https://{name}/"])
        assert done.stdout == f"{name} says GET /\n", (name, done.stderr)


def test_what_lies_behind_nginx(online: OnlineWorld, web: Internet) -> None:
    done = online.run([*CURL, "-d", "some=thing", "https://api.example.test/echo/a%2fb?q"], check=True)
    seen = json.loads(done.stdout)
    assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/echo/a%2fb?q", "some=thing")
    done = online.run([*CURL, "https://events.example.test/events?count=2&pause=0"], check=True)
    assert done.stdout.count("data: event") == 2
    done = online.run([*CURL, "-o", "/dev/null", "-w", "%{size_download}", "https://api.example.test/bytes/3000000"])
    assert done.stdout == "3000000"
    done = online.run([*CURL, "-L", "https://api.example.test/redirect?to=http://other.example.test/there"], check=True)
    assert done.stdout == "other.example.test says GET /there\n"


WEBSOCKET = """
import asyncio, aiohttp, ssl
async def main():
    context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect("https://events.example.test/socket", ssl=context) as socket:
            await socket.send_str("there and back")
            print(await socket.receive_str())
asyncio.run(main())
"""


def test_a_websocket(online: OnlineWorld, web: Internet) -> None:
    assert online.python(WEBSOCKET, check=True).stdout == "there and back\n"


TALK = """
import socket, sys
port, family = int(sys.argv[1]), socket.AF_INET6 if sys.argv[2] == "-6" else socket.AF_INET
with socket.socket(family) as client:
    client.settimeout(30)
    client.connect(socket.getaddrinfo("tcp.example.test", port, family)[0][4])
    try:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        print(b"".join(iter(lambda: client.recv(100), b"")))
    except OSError as error:
        print(error.strerror)
"""


@BOTH
@pytest.mark.parametrize("world", ["root"], indirect=True)
@pytest.mark.parametrize(
    ("port", "answer"),
    [
        (tcp_server.ECHO, "b'hello'"),
        (tcp_server.GREETING, "b'220 ready\\r\\nhello'"),
        (tcp_server.COUNT, "b'5\\n'"),
        (tcp_server.RESET, "Connection reset by peer"),
        (tcp_server.CLOSE, "b''"),
        (tcp_server.SLOW, "b'hello'"),
    ],
)
def test_servers_of_no_protocol(online: OnlineWorld, tcp: Internet, port: int, answer: str, family: str) -> None:
    before = len(tcp.connections())
    said = online.python(TALK, str(port), family, check=True).stdout.strip()
    # The one that closes at once may do so before or after it has read.
    ends = {"Connection reset by peer", "Broken pipe", "Transport endpoint is not connected"}
    assert said in ({answer, *ends} if port in {tcp_server.CLOSE, tcp_server.RESET} else {answer})
    assert [line["port"] for line in tcp.connections()[before:]] == [port]


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_addresses_without_a_server(online: OnlineWorld, web: Internet) -> None:
    assert online.run([*CURL, "https://unreachable.example.test/"]).returncode == 7
    assert online.run([*CURL, "--connect-timeout", "1", "https://silent.example.test/"]).returncode == 28
    assert online.run([*CURL, "https://www.example.test:4/"]).returncode == 7


@pytest.mark.parametrize(
    "url", ["https://git.example.test/repositories/project.git", "https://git.example.test/dumb/project.git"]
)
def test_git_over_https(online: OnlineWorld, web: Internet, url: str) -> None:
    online.run(["git", "clone", "--quiet", url, "clone"], check=True)
    assert (online.tmp / "clone" / "file").read_text() == "two\n"


def test_git_over_ssh(online: OnlineWorld, git_server: Ssh) -> None:
    key, hosts = online.tmp / "key", online.tmp / "hosts"
    key.write_text(git_server.key)
    key.chmod(0o600)
    hosts.write_text(git_server.known_hosts("git.example.test"))
    online.own(key, hosts)
    ssh = f"ssh -i {key} -o IdentitiesOnly=yes -o UserKnownHostsFile={hosts} -o BatchMode=yes"
    # ssh(1) wants an account; an ordinary user of the tests has none, and works as one all the same inside a sandbox.
    if not online.is_root:
        assert "No user exists for uid" in online.run(["ssh", "git@git.example.test"]).stderr
        return
    online.run(["git", "clone", "--quiet", git_server.url, "clone"], env={"GIT_SSH_COMMAND": ssh}, check=True)
    assert (online.tmp / "clone" / "file").read_text() == "two\n"


def test_postgresql(online: OnlineWorld, database: Database) -> None:
    psql = postgres_programs() / "psql"
    target = f"host={database.host} user={database.user} dbname={database.name} sslmode=verify-full"
    trust = {"PGSSLROOTCERT": "/etc/ssl/certs/ca-certificates.crt", "PGPASSWORD": database.password}
    done = online.run([psql, "-XAt", target, "-c", "select sum(n) from numbers"], env=trust, check=True)
    assert done.stdout == "500500\n"


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_the_package_index(online: OnlineWorld, package_index: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    trust = {"PIP_CERT": "/etc/ssl/certs/ca-certificates.crt"}
    target = ["--index-url", package_index, "--target", "packages", "wheeled", "sourced"]
    online.run([*pip, *target], env=trust, check=True)
    source = (
        "import sys; sys.path.insert(0, 'packages'); import wheeled, sourced; print(wheeled.ANSWER, sourced.ANSWER)"
    )
    assert online.python(source, check=True).stdout == "41 42\n"


NODE = """
fetch('https://www.example.test/small').then(async r => console.log(r.status, (await r.text()).length),
                                             e => console.log(String(e.cause)))
"""
JAVA = """
import java.net.URI;
import java.net.http.*;
public class Fetch {
    public static void main(String[] arguments) throws Exception {
        var request = HttpRequest.newBuilder(URI.create("https://www.example.test/small")).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body().length());
    }
}
"""


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_node_and_java_trust_the_authority(online: OnlineWorld, web: Internet) -> None:
    done = online.run(["node", "-e", NODE], env={"NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt"})
    assert done.stdout == "200 1024\n", done.stderr
    if shutil.which("java"):
        (online.tmp / "Fetch.java").write_text(JAVA)
        assert online.run(["java", "Fetch.java"], check=True).stdout == "200 1024\n"


def test_nothing_of_it_is_in_the_hosts_network() -> None:
    addresses = subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout
    assert names.HOST_LAN not in addresses
    assert "osmoda-internet" not in Path("/proc/self/mountinfo").read_text()
