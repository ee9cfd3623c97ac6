"""The standing service: one gateway a core, each in a process of its own, for all sandboxes of a user.

This process takes registrations at `service.sock` in the runtime directory's `egress` and passes each to the worker
with the fewest; nothing of a sandbox's traffic comes here. A worker that dies is started again: its sandboxes have kept
their sockets, and register anew.
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import posix
import time

from osmoda.egress import registration, service_worker
from osmoda.egress.control_messages import SUFFIX
from osmoda.egress.loop import IN, Acceptor, Loop
from osmoda.egress.service_worker import DRAIN_SECONDS
from osmoda.host import messages, paths, peer, syscalls
from osmoda.ledger import starting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any
else:
    import _signal

NAME = "service.sock"

_SIGKILL = 9
_SIGNALS = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM
_BACKLOG = 512
_RLIMIT_NOFILE = 7
_GRACE = 2.0  # seconds beyond those of draining; then what is left is killed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SETTLED = 10.0  # seconds that a process has lived when its death is no reason to wait before the next one
_MOST_WAITING = 512  # registrations, while no worker is ready
_METRICS = -1  # in place of a worker's number


class ServiceError(Exception):
    """The service cannot start; the text says why."""


def serve(
    workers: int = 0,
    folder: str = "",
    confine: Callable[[], None] | None = None,
    metrics_address: str = "",
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let open connections end; a second signal ends it at once.

    `workers` is a number of processes, 0 for one a core. `folder` is the log's, by default this user's. `confine` is
    called in each worker when all that it needs is open, and in the process that shows metrics at `metrics_address`
    ("127.0.0.1:9464", "[::1]:9464"; empty for none). `ready` is called when all of them are, and systemd is told
    (sd_notify(3)). This process must be single-threaded. Raises ServiceError.
    """
    service = _Service(folder, confine, metrics_address, ready)
    try:
        service.run(workers or len(posix.sched_getaffinity(0)))
    finally:
        service.close()
    if service.error:
        raise ServiceError(service.error)


class _Child:
    """A process of the service. `given` and `parted` count registrations."""

    def __init__(self, number: int, pid: int, channel: _socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = posix.pidfd_open(pid)
        self.channel = channel
        self.started = time.monotonic()
        self.ready = False
        self.given = 0
        self.parted = 0

    def signal(self, number: int) -> None:
        _signal.pidfd_send_signal(self.pidfd, number)


class _Service:
    def __init__(
        self,
        log_folder: str,
        confine: Callable[[], None] | None,
        metrics_address: str,
        ready: Callable[[], None] | None,
    ) -> None:
        self.error = ""
        self._log_folder = log_folder
        self._confine = confine
        self._ready = ready
        self._metrics = _listen_for_metrics(metrics_address) if metrics_address else None
        self._folder = paths.own_directory("runtime", "egress")
        self._lock = _lock(self._folder)
        self._loop = Loop()
        self._children: dict[int, _Child] = {}
        self._missing: set[int] = set()
        self._pauses: dict[int, float] = {}
        self._waiting: list[int] = []
        self._acceptor: Acceptor | None = None
        self._stopping = False
        self._ledger_starts = False
        self._handlers, self._signals = self._take_signals()

    # --- processes ---

    def run(self, workers: int) -> None:
        """Start all, serve, and end all."""
        soft, hard = syscalls.prlimit_get(_RLIMIT_NOFILE)
        if soft != hard:
            syscalls.prlimit_self(_RLIMIT_NOFILE, hard, hard)
        service_worker.preload()
        gc.collect()
        gc.freeze()
        self._missing = {*range(workers), *([_METRICS] if self._metrics is not None else [])}
        for number in sorted(self._missing):
            self._start(number)
        self._loop.run()

    def close(self) -> None:
        """End what is left of it."""
        self._stop_accepting()
        for child in tuple(self._children.values()):
            child.signal(_SIGKILL)
            self._reap(child)
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)
        _signal.set_wakeup_fd(-1)
        for fd in (*self._signals, self._lock, *self._waiting):
            posix.close(fd)
        if self._metrics is not None:
            self._metrics.close()
        self._loop.shut()

    def _start(self, number: int) -> None:
        if self._stopping:
            return
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        parent = posix.getpid()
        # A signal to the child must not be heard as one to this process, whose handlers it has at first.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGNALS)
        pid = posix.fork()
        if pid == 0:
            if number == _METRICS and self._metrics is not None:
                service_worker.be_metrics(theirs.fileno(), parent, self._metrics.fileno(), self._confine)
            service_worker.be_gateway(theirs.fileno(), parent, self._log_folder, self._confine)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        ours.setblocking(False)
        child = self._children[number] = _Child(number, pid, ours)

        def heard(_: int) -> None:
            self._heard(child)

        def died(_: int) -> None:
            self._died(child)

        self._loop.register(ours.fileno(), IN, heard)
        self._loop.register(child.pidfd, IN, died)
        if number != _METRICS:
            self._introduce(child)

    def _introduce(self, child: _Child) -> None:
        """Let it and the other workers pass connections on to one another."""
        for other in self._children.values():
            if other is child or other.number == _METRICS:
                continue
            pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
            for socket, worker in zip(pair, (child, other), strict=True):
                try:
                    messages.send(worker.channel, b"N", (socket.fileno(),))
                except OSError:
                    continue  # it does not listen now: the one that has the other end sees the end of file
                finally:
                    socket.close()

    def _heard(self, child: _Child) -> bool:
        """Whether it has said something."""
        try:
            message, _ = messages.receive(child.channel)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        kind, rest = message[:1], message[1:]
        if kind == b"R":
            child.ready = True
            self._missing.discard(child.number)
            self._serve_or_wait()
        elif kind == b"P":
            child.parted = int(rest)
        elif kind == b"S":
            self._stop(float(rest))
        elif kind == b"L":
            self._awaken_ledger()
        elif kind == b"E":
            self._failed(child, rest.decode(errors="replace"))
        elif not kind:
            self._loop.unregister(child.channel.fileno())
        return bool(kind)

    def _awaken_ledger(self) -> None:
        """Start the ledger's service for the workers, which may start no process; they see themselves when it is."""
        if self._ledger_starts:
            return
        try:
            folder = paths.own_ledger()
            pid, fd = starting.begin(folder, paths.own_directory("runtime", "ledger"))
        except (OSError, paths.UntrustedDirectory):
            return  # what is in the way is told to whoever launches something, too

        def ended(_: int) -> None:
            posix.read(fd, 4096)
            self._loop.close(fd)
            posix.waitpid(pid, 0)
            self._ledger_starts = False

        self._ledger_starts = True
        self._loop.register(fd, IN, ended)

    def _died(self, child: _Child) -> None:
        while self._heard(child):
            continue  # its last words
        status = self._reap(child)
        if self._stopping:
            if all(number == _METRICS for number in self._children):
                self._loop.stop()
            return
        if status or self._acceptor is None:  # with 0, somebody has told it to end
            self._failed(child, f"process {child.pid} has ended with status {status}")
        pause = 0.0
        if time.monotonic() - child.started < _SETTLED:
            pause = min(2 * self._pauses.get(child.number, _FIRST_PAUSE / 2), _LONGEST_PAUSE)
        self._pauses[child.number] = pause or _FIRST_PAUSE / 2
        self._loop.call_later(pause, lambda: self._start(child.number))

    def _failed(self, child: _Child, text: str) -> None:
        """One that fails before all are ready is the end; later another takes its place."""
        if self._acceptor is None and not self._stopping:
            self.error = text
            self._stopping = True
            self._loop.stop()
        elif not self.error:
            what = "the metrics" if child.number == _METRICS else f"worker {child.number}"
            posix.write(2, f"osmoda-egress: {what}: {text}\n".encode())

    def _reap(self, child: _Child) -> int:
        del self._children[child.number]
        _, status = posix.waitpid(child.pid, 0)
        self._loop.close(child.channel.detach())
        self._loop.close(child.pidfd)
        # What it could not remove itself: it was killed, or may not.
        _unlink(f"{self._folder}/{child.pid}{SUFFIX}")
        return posix.waitstatus_to_exitcode(status)

    # --- registrations ---

    def _serve_or_wait(self) -> None:
        """Take registrations once all are ready; give those that wait to who is."""
        if self._missing or self._stopping:
            return
        if self._acceptor is None:
            self._acceptor = self._listen()
            _notify(f"READY=1\nMAINPID={posix.getpid()}")
            if self._ready is not None:
                self._ready()
        waiting, self._waiting = self._waiting, []
        for fd in waiting:
            self._give(fd)

    def _listen(self) -> Acceptor:
        path = f"{self._folder}/{NAME}"
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        _unlink(path)  # a service that was killed has left it
        listener.bind(path)
        listener.listen(_BACKLOG)
        return Acceptor(self._loop, listener, self._accepted)

    def _accepted(self, fd: int) -> None:
        socket = _socket.socket(fileno=fd)
        try:
            reason = peer.refusal(socket)
            if reason:
                registration.Channel(socket).say("refused", reason)
        except OSError:
            reason = "it is gone"
        socket.detach()
        if reason:
            self._loop.close(fd)
        else:
            self._give(fd)

    def _give(self, fd: int) -> None:
        workers = [child for child in self._children.values() if child.ready and child.number != _METRICS]
        for child in sorted(workers, key=lambda child: child.given - child.parted):
            try:
                messages.send(child.channel, b"A", (fd,))
            except OSError:
                continue  # it is about to die, or does not listen
            child.given += 1
            self._loop.close(fd)
            return
        if len(self._waiting) < _MOST_WAITING and not workers:
            self._waiting.append(fd)
        else:
            self._loop.close(fd)

    # --- the end ---

    def _take_signals(self) -> tuple[dict[int, Any], tuple[int, int]]:
        """Hear of signals in the loop's own time; what was there before, and the pipe."""
        read, write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before = {number: _signal.signal(number, _noted) for number in _SIGNALS}

        def came(_: int) -> None:
            for _ in posix.read(read, 64):
                self._stop(DRAIN_SECONDS)

        self._loop.register(read, IN, came)
        return before, (read, write)

    def _stop(self, seconds: float) -> None:
        """Let open connections end, in at most `seconds`; said once more, end at once."""
        if self._stopping:
            self._kill()
            return
        self._stopping = True
        _notify("STOPPING=1")
        self._stop_accepting()
        for child in self._children.values():
            if child.number != _METRICS:
                try:
                    messages.send(child.channel, b"D%g" % seconds)
                except OSError:
                    child.signal(_SIGKILL)
        self._loop.call_later(seconds + _GRACE, self._kill)
        if all(number == _METRICS for number in self._children):
            self._loop.stop()

    def _kill(self) -> None:
        for child in self._children.values():
            child.signal(_SIGKILL)

    def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            _unlink(f"{self._folder}/{NAME}")


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor has it."""


def _lock(folder: str) -> int:
    """A descriptor of the folder, whose lock is held for as long as the service runs. Raises ServiceError."""
    fd = posix.open(folder, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        posix.close(fd)
        raise ServiceError(f"another egress service of this user runs already: it holds {folder}") from None
    return fd


def _listen_for_metrics(address: str) -> _socket.socket:
    """Raises ServiceError."""
    host, _, port = address.rpartition(":")
    family = _socket.AF_INET
    if host.startswith("[") and host.endswith("]"):
        family, host = _socket.AF_INET6, host[1:-1]
    listener = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        _socket.inet_pton(family, host)
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(16)
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "an address and a port are wanted"
        raise ServiceError(f"metrics cannot be served at {address}: {reason}") from None
    return listener


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), when it has started this."""
    address = paths.environment("NOTIFY_SOCKET").encode()
    if not address:
        return
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        socket.sendto(state.encode(), b"\0" + address[1:] if address[:1] == b"@" else address)
    except OSError:
        return
    finally:
        socket.close()


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return
