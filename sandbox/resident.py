"""This process's resident launcher: started when first needed, spoken to by every `Sandbox`, ended with the process."""

from __future__ import annotations

import atexit
import errno
import marshal
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from osmoda.host.frozen import values_of
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.launcher import LAUNCH, MOST_PLANS, REQUESTS
from osmoda.sandbox.streams import write_all

if TYPE_CHECKING:
    from osmoda.sandbox.launcher import LaunchRequest
    from osmoda.sandbox.service_task import ServiceRequest


class Resident:
    """The resident launcher of this process, started when first needed and again should it have been killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[bytes] = set()
        self._times = 0

    def send(
        self, request: LaunchRequest | ServiceRequest, descriptors: list[int], kind: bytes = LAUNCH
    ) -> socket.socket:
        """Send a request of this kind; the answer comes on the socket that is returned."""
        with self._lock:
            requests = self._running()
            if request.plan_name in self._known:
                values = (request.plan_name, b"", *values_of(request)[2:])
            else:
                values = values_of(request)
                if len(self._known) >= MOST_PLANS:
                    self._known.clear()
            body = os.memfd_create("osmoda-request", os.MFD_CLOEXEC)
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                write_all(body, marshal.dumps(values))
                _send(requests, kind, [theirs.fileno(), body, *descriptors])
            except BrokenPipeError:
                mine.close()
                self._forget()
                raise LaunchError("the launcher process was killed; the next call starts another") from None
            finally:
                os.close(body)
                theirs.close()
            self._known.add(request.plan_name)
            return mine

    def forget_plan(self, name: bytes) -> None:
        """The launcher has dropped the plan of this name."""
        self._known.discard(name)

    def times_started(self) -> int:
        """How often one was started, the next one counted where the last has ended: with it all that it had built."""
        with self._lock:
            self._forget_ended()
            return self._times + (self._socket is None)

    def _forget_ended(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._forget()

    def _running(self) -> socket.socket:
        self._forget_ended()
        if self._socket is None:
            self._process, self._socket = start("launcher")
            self._times += 1
        return self._socket

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._known.clear()

    def close(self) -> None:
        """End the launcher and all its sandboxes, and wait until they are gone."""
        with self._lock:
            self._forget()

    def after_fork(self) -> None:
        """A forked child shares nothing with the launcher: it starts its own."""
        self._lock = threading.Lock()
        if self._socket is not None:
            self._socket.close()
        self._socket, self._process = None, None
        self._known = set()


def start(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `serve` of a hot module of this package as a process of its own, and the socket that leads to it."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The package's own folder is the only addition to the path: the process imports nothing else.
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = f"import sys; sys.path.append({_package_root(top)!r}); from osmoda.sandbox.{module} import serve; serve()"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _shuffle(theirs.fileno()) + program, " " * 64],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    return process, mine


def _send(requests: socket.socket, kind: bytes, descriptors: list[int]) -> None:
    while True:
        try:
            socket.send_fds(requests, [kind], descriptors)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
        # As many descriptors are on their way as this process may have open: the launcher has to catch up (unix(7)).
        time.sleep(0.001)


def _package_root(default: str) -> str:
    """The folder that holds `osmoda`, as this interpreter found it."""
    import osmoda

    return os.path.dirname(next(iter(osmoda.__path__), default))


def _shuffle(fd: int) -> str:
    """Put the passed socket where the launcher expects it."""
    return "" if fd == REQUESTS else f"import posix; posix.dup2({fd}, {REQUESTS}); posix.close({fd}); "


RESIDENT = Resident()
atexit.register(RESIDENT.close)
os.register_at_fork(after_in_child=RESIDENT.after_fork)
