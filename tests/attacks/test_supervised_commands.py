"""What a supervised program could do with what its supervisor gives it: sockets, and a pid 1 that takes orders."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
import time
from typing import Any

from osmoda.sandbox import profile_file
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.service import Service
from osmoda.sandbox.service_events import Ended, Event, Notified, Started
from tests.worlds import World

DEADLINE = 30.0
PYTHON = "/usr/bin/python3"
NO_TCP = "schema = 1\ntier = 1\n[network]\nloopback = false\n"

# Descriptor 3 listens; words: a port of the host's. Turns it, and a connection that it has accepted, into plain sockets
# (connect(2), AF_UNSPEC; tcp(7), MSG_FASTOPEN). Asks for a protocol over TCP (TCP_ULP) that there is not.
TURN_ROUND = """
import ctypes, errno, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def turned(channel):
    assert libc.connect(channel.fileno(), bytes(16), 16) == 0
    return channel
host = ("127.0.0.1", int(sys.argv[1]))
listening = socket.socket(fileno=3)
print("listening", flush=True)
print("another protocol", attempt(listening.setsockopt, 6, 31, b"none"), flush=True)
for how in ("connect", "sendto", "sendmsg"):
    client, _ = listening.accept()
    turned(client)
    if how == "connect":
        print("accepted", how, attempt(client.connect, host), flush=True)
    elif how == "sendto":
        print("accepted", how, attempt(client.sendto, b"x", 0x20000000, host), flush=True)
    else:
        print("accepted", how, attempt(client.sendmsg, [b"x"], [], 0x20000000, host), flush=True)
    client.close()
print("listening", "connect", attempt(turned(listening).connect, host), flush=True)
print("listening", "sendto", attempt(turned(listening).sendto, b"x", 0x20000000, host), flush=True)
"""


class Watched:
    """A supervised program: what it writes, and its events."""

    def __init__(self, service: Service, *argv: str, **more: Any) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        self._reading, writing = os.pipe()
        self.running = service.start(
            argv, env={"PATH": "/usr/bin:/bin"}, cwd="/", stdin=null, stdout=writing, stderr=writing, **more
        )
        os.close(null)
        os.close(writing)
        self.lines = os.fdopen(self._reading)
        self.events: list[Event] = []

    def line(self) -> str:
        return self.lines.readline().rstrip("\n")

    def until(self, kind: type[Event]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not any(isinstance(event, kind) for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {kind} after {self.events}")
            select.select([self.running], [], [], max(deadline - time.monotonic(), 0))
            self.events += self.running.events()

    def close(self) -> None:
        self.running.close()
        self.lines.close()


def visits(port: int) -> None:
    """Three connections, as one after the other is accepted."""
    for _ in range(3):
        try:
            with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
                client.settimeout(DEADLINE)
                client.recv(1)
        except ConnectionResetError:
            continue  # accepted, and turned round, perhaps before this end knew of the connection


def turned_round(inside: bool) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as victim, socket.create_server(("127.0.0.1", 0)) as listening:
        target = str(victim.getsockname()[1])
        visitor = threading.Thread(target=visits, args=(listening.getsockname()[1],))
        if not inside:
            program = f"import os; os.dup2({listening.fileno()}, 3)\n{TURN_ROUND}"
            command = [PYTHON, "-c", program, target]
            visitor.start()
            done = subprocess.run(
                command, pass_fds=[listening.fileno()], capture_output=True, text=True, check=True, timeout=DEADLINE
            )
            visitor.join()
            return done.stdout.splitlines()
        with Service(profile_file.load_text(NO_TCP, "/p/agent.toml", "/p")) as service:
            watched = Watched(service, PYTHON, "-c", TURN_ROUND, target, listeners=[("web", listening.fileno())])
            found = [watched.line()]
            visitor.start()
            found += watched.lines.read().splitlines()
            watched.until(Ended)
            watched.close()
            visitor.join()
            return found


def test_a_listening_socket_of_the_host_turned_into_a_way_out(world: World) -> None:
    """It belongs to the host's network for ever: nothing but Landlock keeps it from being connected somewhere."""
    outside = world.call(turned_round, False)
    assert outside[0] == "listening"
    assert outside[1] == "another protocol ENOENT", "the kernel has looked for it"
    assert [line.split()[-1] for line in outside[2:]] == ["done"] * 5
    inside = world.call(turned_round, True)
    assert inside == [
        "listening",
        "another protocol EPERM",  # TCP_ULP, "smc" for one, makes it a socket that Landlock lets connect
        "accepted connect EACCES",  # Landlock
        "accepted sendto EPERM",  # the filter that comes with such a socket: Landlock does not see fast open
        "accepted sendmsg EPERM",
        "listening connect EACCES",
        "listening sendto EPERM",
    ]


def not_passed_on() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening, Service(Profile.default(1)) as service:
        try:
            Watched(service, "true", listeners=[("web", listening.fileno())])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def test_no_such_socket_where_connections_are_the_profiles_own(world: World) -> None:
    """Tier 1 with a loopback interface has no rule for connect, so such a socket would be a way out."""
    found = world.call(not_passed_on)
    assert found.startswith("LaunchError: ")
    assert "network.loopback = false" in found


# The notification socket

REPLACE = """
import errno, os, socket, sys
path = os.environ["NOTIFY_SOCKET"]
def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
folder = os.path.dirname(path)
print("beside", attempt(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind, f"{folder}/other"))
print("rename", attempt(os.rename, folder, f"{folder}-away"))
print("chmod", attempt(os.chmod, path, 0o777))
print("unlink", attempt(os.unlink, path))
print("again", attempt(channel.bind, path))
"""


def replaced(inside: bool) -> tuple[list[str], list[bytes]]:
    if not inside:
        folder = os.path.abspath("notified")
        os.mkdir(folder)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(f"{folder}/notify")
            done = subprocess.run(
                [PYTHON, "-c", REPLACE.replace("-away", "")],
                env={"NOTIFY_SOCKET": f"{folder}/notify"},
                capture_output=True,
                text=True,
                check=True,
                timeout=DEADLINE,
            )
        return done.stdout.splitlines(), []
    with Service(Profile.default(1)) as service:
        program = REPLACE + "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', path)\n"
        watched = Watched(service, PYTHON, "-c", program, notify=True)
        watched.until(Ended)
        lines = watched.lines.read().splitlines()
        watched.close()
        return lines, [event.data for event in watched.events if isinstance(event, Notified)]


def test_the_notification_socket_replaced(world: World) -> None:
    outside, _ = world.call(replaced, False)
    assert {line.split()[1] for line in outside} == {"done"}
    inside, said = world.call(replaced, True)
    # Read-only mounts: it lies in the root, which nothing inside can write to.
    assert inside == ["beside EROFS", "rename EROFS", "chmod EROFS", "unlink EROFS", "again EADDRINUSE"]
    assert said == [b"READY=1"]


FORGE = """
import errno, os, socket, struct
def tell(text, pid, uid):
    rights = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, uid, os.getgid()))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendmsg([text], rights, 0, os.environ["NOTIFY_SOCKET"])
        except OSError as error:
            return errno.errorcode[error.errno]
    return "done"
main = os.getpid()
child = os.fork()
if child == 0:
    print(tell(b"as itself", os.getpid(), os.getuid()), tell(b"as main", main, os.getuid()), flush=True)
    print(tell(b"as pid 1", 1, os.getuid()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def forged() -> tuple[list[str], list[tuple[bytes, bool]]]:
    with Service(Profile.default(1)) as service:
        watched = Watched(service, PYTHON, "-c", FORGE, notify=True)
        watched.until(Ended)
        lines = watched.lines.read().splitlines()
        watched.close()
        return lines, [(event.data, event.is_main) for event in watched.events if isinstance(event, Notified)]


def test_a_child_that_notifies_as_the_main_process(world: World) -> None:
    """Only with CAP_SYS_ADMIN may a sender name another pid (unix(7)): that it can be done at all is the control."""
    if world.is_root:
        assert world.call(forged_outside) == "done"
    assert world.call(forged) == (["done EPERM", "EPERM"], [(b"as itself", False)])


def forged_outside() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(os.path.abspath("forged"))
        done = subprocess.run(
            [PYTHON, "-c", FORGE],
            env={"NOTIFY_SOCKET": os.path.abspath("forged")},
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE,
        )
    return done.stdout.split()[1]


# pid 1

PESTER = """
import os, signal, subprocess, sys
victim = int(sys.argv[1])
for number in (*range(1, 32), *range(34, 65)):
    for _ in range(5):
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            print("it is gone", flush=True)
            sys.exit()
signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b"told\\n"), os._exit(3)))  # not print, which it may interrupt
print("it is there", flush=True)
while True:
    signal.pause()
"""


def pestered() -> tuple[str, str, str, int]:
    sleeping = subprocess.Popen(["sleep", "1000"])
    reaper = threading.Thread(target=sleeping.wait)
    reaper.start()
    with subprocess.Popen([PYTHON, "-c", PESTER, str(sleeping.pid)], stdout=subprocess.PIPE, text=True) as control:
        assert control.stdout is not None
        reaper.join()
        control.terminate()
        outside = "gone" if sleeping.returncode else "there"
    with Service(Profile.default(2)) as service:
        watched = Watched(service, PYTHON, "-c", PESTER, "1", hold=True)
        watched.until(Started)
        line = watched.line()
        watched.running.signal_all(10)
        told = watched.line()
        watched.until(Ended)
        ended = watched.events[-1]
        watched.close()
        assert isinstance(ended, Ended)
        return outside, line, told, ended.result.status


def test_signals_to_pid_1_that_takes_orders(world: World) -> None:
    """Its news come as signals, which anybody inside may send: none of them is taken for more than a wake-up."""
    assert world.call(pestered) == ("gone", "it is there", "told", 3)


LOOK = """
import os, subprocess, sys
def others():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
child = subprocess.Popen(["sleep", "1000"])
print("sees", len(others()), flush=True)
child.kill(); child.wait()
while not os.access("/tmp/enough", os.F_OK):
    found = others()
    if found:
        print("saw", found, flush=True)
        break
    try:
        os.kill(-1, 9)
    except ProcessLookupError:
        continue
    print("killed somebody", flush=True)
    break
"""


def looked_for() -> tuple[str, int, str]:
    with Service(Profile.default(1)) as service:
        watched = Watched(service, PYTHON, "-c", LOOK)
        watched.until(Started)
        control = watched.line()
        refused = 0
        for _ in range(20):
            try:
                watched.running.connect(9, DEADLINE)
            except ConnectionRefusedError:
                refused += 1
        alive = not any(isinstance(event, Ended) for event in watched.events + watched.running.events())
        watched.running.kill()
        rest = watched.lines.read()
        watched.close()
        assert alive
        return control, refused, rest


def test_whoever_makes_sockets_in_its_network_is_not_to_be_seen(world: World) -> None:
    """A child of the launcher joins the network for a health check, and not the pid namespace."""
    assert world.call(looked_for) == ("sees 1", 20, "")
