"""Asks, inside a sandbox of `doctor`, for what a layer must refuse, and prints what came back.

Its text is handed to an interpreter inside, where osmoda is not there: it imports the standard library only. The
argument is JSON: `ask` names the methods to call, the rest are facts of the host. The output is JSON too: the errno for
each that was refused, 0 for what worked, or a number that was measured.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWUSER = 0x10000000
_TIOCSTI = 0x5412
_MOST_FORKS = 64
GREETING = b"osmoda"


def greeted(host: str, port: int) -> None:
    """Connect to a service of `doctor` and hear its greeting."""
    with socket.create_connection((host, port), 5) as one:
        if one.recv(len(GREETING)) != GREETING:
            raise ConnectionResetError(errno.ECONNRESET, "it did not greet")


class Trial:
    """One question a method; each does what must fail, and returns a number if it measures something."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def process(self) -> None:
        """Kill a process of the host."""
        os.kill(self.facts["victim"], 9)

    def identity(self) -> None:
        """Become root."""
        os.setuid(0)

    def file(self) -> None:
        """Read a file of the host that is not granted."""
        os.close(os.open(self.facts["file"], os.O_RDONLY))

    def system(self) -> None:
        """Write to the host's system."""
        os.close(os.open("/usr/osmoda-doctor", os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def address(self) -> None:
        """Reach a service of the host by its address."""
        with socket.socket() as one:
            one.settimeout(5)
            one.connect(("127.0.0.1", self.facts["port"]))

    def declared(self) -> None:
        """Reach the port of the host that the profile declares."""
        greeted("host.osmoda", self.facts["declared"])

    def undeclared(self) -> None:
        """Reach another one: the gateway answers with a reset."""
        greeted("host.osmoda", self.facts["undeclared"])

    def unlisted(self) -> None:
        """Look up a name that no rule lists."""
        try:
            socket.getaddrinfo("unlisted.example", 443)
        except socket.gaierror:
            raise FileNotFoundError(errno.ENOENT, "no such name") from None

    def unrouted(self) -> None:
        """Connect to an address that stands for no name."""
        with socket.socket() as one:
            one.settimeout(5)
            one.connect(("192.0.2.1", 443))

    def datagram(self) -> None:
        """Send a datagram to an address that stands for a name."""
        address = socket.getaddrinfo("host.osmoda", self.facts["declared"], socket.AF_INET)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(5)
            one.connect(address)
            one.send(b"x")
            one.send(b"x")

    def abstract(self) -> None:
        """Reach a service of the host by an abstract unix socket."""
        with socket.socket(socket.AF_UNIX) as one:
            one.connect("\0" + self.facts["name"])

    def capability(self) -> None:
        """Bind a privileged port, in the sandbox's own network: a matter of CAP_NET_BIND_SERVICE only (ip(7))."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 80))

    def port(self) -> None:
        """Bind an ordinary port, where Landlock grants none."""
        with socket.socket() as one:
            one.bind(("0.0.0.0", 5000))  # noqa: S104 - it must not come to that

    def seccomp(self) -> None:
        """Make a user namespace."""
        os.unshare(_CLONE_NEWUSER)

    def terminal(self) -> None:
        """Push a character into the terminal's input: on no terminal the kernel says ENOTTY, the filter EPERM."""
        fcntl.ioctl(0, _TIOCSTI, b"x")

    def workspace(self) -> None:
        """Make a file in the workspace, which is granted."""
        os.close(os.open("made-inside", os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def no_new_privs(self) -> int:
        """The flag, as the kernel shows it."""
        return int(_status("NoNewPrivs"))

    def forks(self) -> None:
        """Fork more often than the limit allows."""
        hold, release = os.pipe()
        children: list[int] = []
        try:
            while len(children) < _MOST_FORKS:
                pid = os.fork()
                if not pid:
                    os.close(release)
                    os.read(hold, 1)
                    os._exit(0)
                children.append(pid)
        finally:
            os.close(release)
            for pid in children:
                os.waitpid(pid, 0)

    def memory(self) -> int:
        """Touch more memory than the limit allows; this ends the process."""
        return len(b"x" * (256 << 20))

    def share(self) -> float:
        """Compute for 0.6 s of wall-clock time: the part of a core that was given, from 0 to 1."""
        begin, used = time.monotonic(), time.process_time()
        while time.monotonic() < begin + 0.6:
            pass
        return (time.process_time() - used) / 0.6


def _status(name: str) -> str:
    with open("/proc/self/status") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(name + ":"))


def main() -> None:
    """Ask each question in turn."""
    facts = json.loads(sys.argv[1])
    trial = Trial(facts)
    found: dict[str, float] = {}
    for name in facts["ask"]:
        action: Callable[[], float | None] = getattr(trial, name)
        try:
            found[name] = action() or 0
        except OSError as error:
            found[name] = error.errno or -1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
