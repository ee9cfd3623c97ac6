"""The processes of the standing service: gateways, and the one that shows their numbers. Each ends with its parent.

On the channel to the parent (descriptor 3, SOCK_SEQPACKET) these say `R` (ready), `P` and how many registrations they
have parted with so far, `S` and seconds (somebody asks for the service's end), `L` (the ledger's service is needed,
which these may not start), `E` and a sentence; the parent says `A` with a registration, `N` with a channel to another
gateway, and `D` and seconds (drain).
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import posix
import sys

from osmoda.egress import control, records
from osmoda.egress.gateway import Gateway
from osmoda.egress.hand_over import Spread
from osmoda.egress.loop import IN
from osmoda.egress.records import Log
from osmoda.host import messages, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal

DRAIN_SECONDS = 5.0
"""How long open connections have to end when the service does."""

_CHANNEL, _LISTENER = 3, 4
_SIGKILL, _SIGTERM = 9, 15
_IGNORED = (1, 2, 3, 10, 12)  # SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2: for the parent


def preload() -> None:
    """Load what gateways need sooner or later, once for all of them, and before they are confined."""
    import binascii  # noqa: F401
    import json  # noqa: F401
    import traceback  # noqa: F401

    from osmoda.egress import agents, asking, http_head, ledger_feed, metrics, resolver, visits  # noqa: F401

    try:
        # The C library's own modules for name services.
        _socket.getaddrinfo(b"localhost", None)
    except OSError:
        return


def be_gateway(channel: int, parent: int, folder: str, confine: Callable[[], None] | None) -> NoReturn:
    """Serve what comes through `channel`, until told to end; in a process that was just forked."""
    _be(channel, parent, -1, lambda door: _gateway(door, folder, confine))


def be_metrics(channel: int, parent: int, listener: int, confine: Callable[[], None] | None) -> NoReturn:
    """Show the numbers of all gateways of this user on a listening TCP socket, for ever."""
    _be(channel, parent, listener, lambda door: _metrics(door, confine))


def _be(channel: int, parent: int, listener: int, what: Callable[[_socket.socket], None]) -> NoReturn:
    status = 1
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
        if posix.getppid() == parent:
            for number in _IGNORED:
                _signal.signal(number, _signal.SIG_IGN)
            _signal.set_wakeup_fd(-1)
            _signal.signal(_SIGTERM, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            _keep(channel, listener)
            gc.freeze()
            gc.enable()
            door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _CHANNEL)
            try:
                what(door)
                status = 0
            except Exception as error:  # whatever it is, the parent is to know
                messages.send(door, b"E" + f"{type(error).__name__}: {error}".encode()[:2000])
    finally:
        posix._exit(status)


def _keep(channel: int, listener: int) -> None:
    """Close all but the standard streams and these. The parent's objects that held the rest are never touched again."""
    wanted = [fd for fd in (channel, listener) if fd >= 0]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in wanted]
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    posix.dup2(null, 0)
    for place, fd in zip((_CHANNEL, _LISTENER), high, strict=False):
        posix.dup2(fd, place, False)
    syscalls.close_range(_CHANNEL + len(high), 0x7FFFFFFF)


def _gateway(door: _socket.socket, folder: str, confine: Callable[[], None] | None) -> None:
    syscalls.prctl_set_name(b"osmoda-egress")
    # Nobody of the same user may look into what holds secrets and decides (prctl(2), PR_SET_DUMPABLE).
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    door.setblocking(False)
    log = Log(folder or records.folder())
    gateway = Gateway(log)
    try:
        log.open()
    except OSError as error:
        sys.stderr.write(f"osmoda-egress: nothing is logged: {error}\n")
    spread = Spread(gateway.loop)
    gateway.inspect_with(spread)
    parted = [0]

    def tell(message: bytes) -> None:
        try:
            messages.send(door, message)
        except OSError:
            return  # the parent does not read now; what is said the next time holds this, too

    def count_parted() -> None:
        parted[0] += 1
        tell(b"P%d" % parted[0])

    def told(_: int) -> None:
        try:
            message, descriptors = messages.receive(door)
        except BlockingIOError:
            return
        except OSError:
            count_parted()  # a registration for which there is no descriptor left
            return
        if not message:
            gateway.loop.stop()
        elif message[:1] == b"D":
            gateway.drain(float(message[1:]))
        for fd in descriptors:
            if message[:1] == b"N":
                spread.join(_socket.socket(fileno=fd))
            else:
                gateway.admit(_socket.socket(fileno=fd))

    gateway.parted = count_parted
    gateway.awaken = lambda: tell(b"L")
    listening = control.listen(gateway, lambda seconds: tell(b"S%g" % seconds))
    _on_sigterm(gateway)
    gateway.loop.register(door.fileno(), IN, told)
    if confine is not None:
        confine()
    tell(b"R")
    try:
        gateway.run()
    finally:
        listening.close()


def _on_sigterm(gateway: Gateway) -> None:
    """Drain; in the loop's own time, since a handler may come anywhere."""
    read, write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)

    def came(_: int) -> None:
        posix.read(read, 64)
        gateway.drain(DRAIN_SECONDS)

    gateway.loop.register(read, IN, came)
    _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _signal.signal(_SIGTERM, _noted)


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor has it."""


def _metrics(door: _socket.socket, confine: Callable[[], None] | None) -> None:
    import socket

    import prometheus_client  # noqa: F401 - before it is confined

    from osmoda.egress import metrics
    from osmoda.egress.control_client import Client

    syscalls.prctl_set_name(b"osmoda-metrics")
    client, totals = Client(), metrics.Totals()

    def collect() -> bytes:
        taken = client.metrics()
        return metrics.text(totals.add(taken, client.silent))

    if confine is not None:
        confine()
    messages.send(door, b"R")
    metrics.serve(socket.socket(fileno=_LISTENER), collect)
