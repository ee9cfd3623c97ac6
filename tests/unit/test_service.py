"""The standing service: workers, restarts, its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import dns.message
import dns.query
import dns.rcode
import pytest

from osmoda.egress import log_reader, registration, service
from osmoda.egress.control_client import Client
from osmoda.egress.registration import Channel, Opening
from osmoda.host import paths, syscalls
from tests import egress_fakes
from tests.worlds import Program

SERVE = """
import json, os, sys
from osmoda.egress import service
def confine():
    exec(sys.argv[2])
try:
    service.serve(**json.loads(sys.argv[1]), confine=confine, ready=lambda: print("ready", flush=True))
except service.ServiceError as error:
    print(error, flush=True)
    sys.exit(1)
print("ended", flush=True)
"""


class Service:
    def __init__(self, confine="pass", environment=None, **options):
        command = [sys.executable, "-c", SERVE, json.dumps({"workers": 2, **options}), confine]
        self.process = Program(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.said = self.process.stdout.readline().rstrip()

    def children(self, name="osmoda-egress"):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            pids = [int(word) for word in file.read().split()]
        return [pid for pid in pids if comm(pid) == name]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors


def comm(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().rstrip()
    return ""


def until(condition):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def folder():
    return paths.directory("runtime") + "/egress"


@pytest.fixture
def start():
    started = []

    def start(*args, **options):
        started.append(Service(*args, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end()
        each.process.stdout.close()
        each.process.stderr.close()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # workers whose parent was killed
            pass
    if os.path.isdir(folder()):
        Client().sessions()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder()}/{service.NAME}")


@pytest.fixture
def serving(start):
    serving = start()
    assert serving.said == "ready"
    return serving


def connect():
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.settimeout(30)
    try:
        channel.connect(f"{folder()}/{service.NAME}")
    except OSError:
        channel.close()
        raise
    return Channel(channel)


def register(identity, channel=None):
    """As a monitor does, up to the gateway's answer."""
    channel = channel or connect()
    values = {"identity": identity, "agent": "writer", "tier": 1, "profile": "t.toml", "policy": egress_fakes.policy()}
    empty = {"token": b"", "files": (), "secrets": (), "inspects": False, "authority": b""}
    channel.open(Opening(**{**empty, **values}))
    heard = channel.hear()
    if heard is None or heard[0] != "ready":
        channel.close()
        pytest.fail(f"it was not registered: {heard}")
    return channel


def where():
    """Sandboxes to the processes that serve them."""
    return {served.identity: served.pid for served in Client().sessions()}


def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(field + ":"))


# Serving


def test_each_registration_goes_to_the_worker_with_the_fewest(serving):
    channels = [register(f"box{number}") for number in range(6)]
    found = where()
    workers = sorted(serving.children())
    assert sorted(found.values()) == sorted(workers * 3)
    # All that the first worker has leave it; the next three are its.
    emptied = found["box0"]
    for number, channel in enumerate(channels):
        if found[f"box{number}"] == emptied:
            channel.close()
    until(lambda: len(where()) == 3)
    more = [register(f"more{number}") for number in range(3)]
    assert {pid for identity, pid in where().items() if identity.startswith("more")} == {emptied}
    for channel in (*channels, *more):
        channel.close()


def test_whoever_connects_and_says_nothing_is_counted_too(serving):
    silent = [connect() for _ in range(3)]
    channels = [register(f"box{number}") for number in range(3)]
    served = [*where().values()]
    assert sorted(served.count(pid) for pid in serving.children()) == [1, 2]
    for channel in (*silent, *channels):
        channel.close()


def test_a_program_in_a_sandbox_cannot_register(serving):
    program = f"""
import socket
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect("{folder()}/{service.NAME}")
print(b"a process in a sandbox may not" in channel.recv(1000))
"""
    inside = ["unshare", "--user", "--map-current-user", "--pid", "--fork", sys.executable, "-c", program]
    assert subprocess.run(inside, capture_output=True, check=True).stdout == b"True\n"


def test_records_of_all_workers_are_in_one_log(start, tmp_path):
    start(folder=str(tmp_path))
    log = tmp_path / "connections.jsonl"
    assert log.exists()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_does_not_stop_it(start):
    assert start(folder="/nonexistent").said == "ready"
    register("box").close()


def test_confine_is_called_in_each_worker_with_its_files_open(start, tmp_path):
    confine = f"open(f'{tmp_path}/{{os.getpid()}}', 'w').write(str(sorted(os.listdir('/proc/self/fd'))))"
    serving = start(confine, folder=str(tmp_path))
    workers = serving.children()
    assert sorted(name for name in os.listdir(tmp_path) if name.isdigit()) == sorted(map(str, workers))
    register("box").close()


# What a worker needs of the file system, and nothing else: who confines it must grant this.
LANDLOCK = """
import os, sys
from osmoda.host import syscalls
READ, DIRECTORY, WRITE, REMOVE, MAKE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
abi = syscalls.landlock_abi()
ruleset = syscalls.landlock_create_ruleset((1 << (15 if abi > 2 else 14 if abi > 1 else 13)) - 1, 0, 0, abi)
log = READ | WRITE | REMOVE | MAKE | (TRUNCATE if abi > 2 else 0)
for path, access in {"%s": log, "%s": DIRECTORY | REMOVE, "/proc": READ, "/etc": READ}.items():
    fd = os.open(path, os.O_PATH)
    syscalls.landlock_add_path(ruleset, access, fd, path.encode())
    os.close(fd)
syscalls.landlock_restrict_self(ruleset)
os.close(ruleset)
"""


def test_a_confined_worker_does_all_that_one_does(start, tmp_path):
    if syscalls.landlock_abi() < 1:
        pytest.skip("this kernel has no Landlock")
    with open(tmp_path / "connections.jsonl", "wb") as full:
        full.truncate(64 << 20)
    serving = start(LANDLOCK % (tmp_path, folder()), folder=str(tmp_path), workers=1)
    assert serving.said == "ready"
    channel = register("box")
    made = [listener_inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), listener_inside()]
    made[1].bind(("127.0.0.1", 0))
    channel.say("attach", descriptors=tuple(each.fileno() for each in made))
    assert channel.hear()[0] == "attached"
    answer = dns.query.udp(
        dns.message.make_query("evil.com", "A"), *made[1].getsockname()[:1], 20, made[1].getsockname()[1]
    )
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert channel.hear()[0] == "denial"
    assert Client().policy("box", egress_fakes.policy(allow={"a.example.com": "t.toml:2"})) == 0
    channel.close()
    for each in made:
        each.close()
    assert serving.end() == (0, "ended\n", "")
    (record,) = log_reader.read(str(tmp_path), last=5)
    assert (record["name"], record["verdict"]) == ("evil.com", "deny")
    assert (tmp_path / "connections.jsonl.1").stat().st_size == 64 << 20
    assert os.listdir(folder()) == []


def test_workers_cannot_be_looked_into(serving):
    """By others of the same user: their memory holds secrets."""
    for pid in serving.children():
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
        with open("/proc/sys/fs/suid_dumpable") as file:
            assert file.read() in ("0\n", "2\n")


def test_workers_have_as_many_descriptors_as_they_may(serving):
    for pid in serving.children():
        with open(f"/proc/{pid}/limits") as file:
            soft, hard = next(line.split()[3:5] for line in file if line.startswith("Max open files"))
        assert soft == hard


def test_workers_hold_nothing_of_their_parents(start, tmp_path):
    """Else a socket or the lock would outlive it."""
    links = "[os.readlink(path) for fd in range(3, 64) if os.path.islink(path := f'/proc/self/fd/{fd}')]"
    serving = start(f"json.dump({links}, open(f'{tmp_path}/{{os.getpid()}}', 'w'))")
    fds = f"/proc/{serving.process.pid}/fd"
    parent = {os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)}
    for pid in serving.children():
        held = {*json.loads((tmp_path / str(pid)).read_text())}
        assert held & parent <= {"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
        assert any(link.startswith("socket:") for link in held)


# Deaths


def test_a_worker_that_dies_is_started_again(serving):
    channel = register("box")
    dead = where()["box"]
    os.kill(dead, signal.SIGKILL)
    assert channel.hear() is None
    channel.close()
    # Its sandbox comes back by itself.
    again = register("box")
    assert where()["box"] != dead
    until(lambda: dead not in serving.children() and len(serving.children()) == 2)
    assert not os.path.exists(f"{folder()}/{dead}.sock")
    again.close()


def test_without_any_worker_registrations_wait(start, tmp_path):
    hold = tmp_path / "hold"
    serving = start(f"import time\nwhile os.path.exists('{hold}'): time.sleep(0.01)")
    hold.touch()
    workers = serving.children()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not {*workers} & {*serving.children()})
    channels = [connect() for _ in range(4)]
    assert not any(select.select(channels, [], [], 0.1)[0])
    hold.unlink()
    for number, channel in enumerate(channels):
        register(f"box{number}", channel)
    assert len(where()) == 4
    for channel in channels:
        channel.close()


def test_workers_that_die_at_once_are_started_at_longer_intervals(start, tmp_path):
    """Once all have been ready; `confine` fails when the file is there."""
    fail = tmp_path / "fail"
    serving = start(
        f"os.path.exists('{fail}') and open('{tmp_path}/deaths', 'a').write('x') and os._exit(3)", workers=1
    )
    assert serving.said == "ready"
    fail.touch()
    begin = time.monotonic()
    os.kill(serving.children()[0], signal.SIGKILL)
    until(lambda: (tmp_path / "deaths").exists() and len((tmp_path / "deaths").read_text()) == 4)
    assert time.monotonic() - begin >= 0.1 + 0.2 + 0.4
    fail.unlink()
    register("box").close()
    _, _, errors = serving.end()
    assert "worker 0: process" in errors


def test_a_worker_that_fails_at_the_start_fails_the_service(start):
    serving = start("raise PermissionError(13, 'no Landlock here')")
    assert serving.said == "PermissionError: [Errno 13] no Landlock here"
    assert serving.process.wait(30) == 1
    assert os.listdir(folder()) == []


def test_a_worker_that_dies_at_the_start_fails_the_service(start):
    serving = start("os._exit(7)")
    assert serving.said.endswith("has ended with status 7")
    assert serving.process.wait(30) == 1


@pytest.mark.orphans
def test_the_workers_end_with_the_service(serving):
    channel = register("box")
    workers = [os.pidfd_open(pid) for pid in serving.children()]
    serving.end(signal.SIGKILL)
    for pidfd in workers:
        assert select.select([pidfd], [], [], 30)[0]
        os.close(pidfd)
    assert channel.hear() is None
    channel.close()


@pytest.mark.orphans
def test_after_a_service_that_was_killed_another_can_start(serving, start):
    serving.end(signal.SIGKILL)
    assert os.path.exists(f"{folder()}/{service.NAME}")
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert start().said == "ready"
    register("box").close()


def test_one_service_a_user(serving, start):
    second = start()
    assert "another egress service of this user runs already" in second.said
    assert second.process.wait(30) == 1
    register("box").close()


# Its end


def test_sigterm_ends_it_and_leaves_nothing(serving):
    channel = register("box")
    begin = time.monotonic()
    assert serving.end() == (0, "ended\n", "")
    assert time.monotonic() - begin < service.DRAIN_SECONDS, "there is no connection to wait for"
    assert os.listdir(folder()) == []
    assert channel.hear() is None
    channel.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_so_do_ctrl_c_and_a_lost_terminal(number, serving):
    """Which all processes of the terminal's foreground get."""
    os.killpg(serving.process.pid, number)
    assert serving.process.communicate(timeout=30) == ("ended\n", "")
    assert serving.process.returncode == 0


def test_the_signal_of_systemd_to_all_processes(serving):
    channel = register("box")
    for pid in (serving.process.pid, *serving.children()):
        with contextlib.suppress(ProcessLookupError):  # the service has told it already, and it has ended
            os.kill(pid, signal.SIGTERM)
    assert serving.process.communicate(timeout=30) == ("ended\n", "")
    assert channel.hear() is None
    channel.close()


def test_the_control_sockets_stop_ends_all_of_it(serving):
    # The second worker may have ended before it could answer.
    assert Client().stop(0.0) >= 1
    assert serving.process.communicate(timeout=30) == ("ended\n", "")


def test_a_worker_that_hangs_is_killed(serving, start):
    stopped = serving.children()[0]
    os.kill(stopped, signal.SIGSTOP)
    serving.process.send_signal(signal.SIGTERM)
    until(lambda: len(serving.children()) == 1)
    serving.process.send_signal(signal.SIGTERM)  # the second one does not wait
    assert serving.process.communicate(timeout=30) == ("ended\n", "")
    assert os.listdir(folder()) == []


def test_while_it_ends_nobody_can_register(serving):
    stopped = serving.children()[0]
    os.kill(stopped, signal.SIGSTOP)
    serving.process.send_signal(signal.SIGTERM)
    until(lambda: not os.path.exists(f"{folder()}/{service.NAME}"))
    with pytest.raises(FileNotFoundError):
        connect()
    serving.process.send_signal(signal.SIGTERM)
    serving.process.communicate(timeout=30)


def listener_inside():
    """A TCP listener, in place of one of a sandbox's."""
    return socket.create_server(("127.0.0.1", 0))


# systemd and Prometheus


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract, start, tmp_path):
    address = f"\0osmoda-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(30)
        serving = start(environment={"NOTIFY_SOCKET": address.replace("\0", "@")})
        assert systemd.recv(100) == f"READY=1\nMAINPID={serving.process.pid}".encode()
        serving.end()
        assert systemd.recv(100) == b"STOPPING=1"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_metrics_of_all_workers(start):
    port = free_port()
    serving = start(metrics_address=f"127.0.0.1:{port}")
    assert serving.said == "ready"
    channels = [register(f"box{number}") for number in range(3)]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert b"\nosmoda_egress_sessions 3.0\n" in answer.read()
    assert len(serving.children("osmoda-metrics")) == 1
    # Its death costs nobody anything.
    os.kill(serving.children("osmoda-metrics")[0], signal.SIGKILL)
    until(lambda: serving.children("osmoda-metrics"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert b"\nosmoda_egress_sessions 3.0\n" in answer.read()
    for channel in channels:
        channel.close()
    code, output, errors = serving.end()
    assert (code, output) == (0, "ended\n")
    assert "the metrics: process" in errors


def test_metrics_over_ipv6(start):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
    assert start(metrics_address=f"[::1]:{port}").said == "ready"
    with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=30) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "[::1:80", "192.0.2.1:80"]
)
def test_an_address_that_metrics_cannot_be_served_at(address, start):
    serving = start(metrics_address=address)
    assert f"metrics cannot be served at {address}" in serving.said
    assert serving.process.wait(30) == 1


def test_one_that_is_taken(start):
    with listener_inside() as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert start(metrics_address=address).said == f"metrics cannot be served at {address}: Address already in use"


def test_sockets_are_passed_with_the_registration(serving):
    """The worker holds what was attached, and lets go of it when the channel ends."""
    channel = register("box")
    made = [listener_inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), listener_inside()]
    made[1].bind(("127.0.0.1", 0))
    channel.say("attach", descriptors=tuple(each.fileno() for each in made))
    assert channel.hear()[0] == "attached"
    address = made[0].getsockname()
    for each in made:
        each.close()
    with socket.create_connection(address, timeout=30):
        pass
    channel.close()
    until(lambda: not where())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=30)
    assert len(registration.SOCKETS) == 6
