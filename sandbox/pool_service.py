"""`osmoda-sandbox serve`: a pool for commands. It gives out sandboxes on a unix socket that only its user can reach."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
from typing import TYPE_CHECKING

from osmoda.host import messages, peer
from osmoda.sandbox import compilation, pooled
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.request import Request

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def serve(request: Request, size: int, ready: Callable[[str], None]) -> None:
    """Keep `size` sandboxes for `request` until a signal comes; `ready` is told the address when the first one waits.

    Raises SandboxError for what cannot be kept, and where a pool is served for the same already.
    """
    with _signals() as wakened, ServedPool(request, os.getcwd(), size) as pool:
        pool.prepare()
        address = pooled.address(request, os.getcwd(), pool.workspace)
        with _listening(address) as listener:
            ready(address)
            watched = select.poll()
            watched.register(listener, select.POLLIN)
            watched.register(wakened, select.POLLIN)
            while wakened not in (fd for fd, _ in watched.poll()):
                with contextlib.suppress(BlockingIOError):
                    connection, _ = listener.accept()
                    with connection:
                        _answer(pool, connection)


class ServedPool(Pool):
    """The pool of a request of the command line, made in `directory`: its profile with what its options add."""

    def __init__(self, request: Request, directory: str, size: int) -> None:
        self._request = request
        self._directory = directory
        self._terminals = True
        super().__init__(compilation.profile_of(request, directory), size, workspace=request.workspace or None)

    def _load(self) -> Profile:
        return compilation.profile_of(self._request, self._directory)


def _answer(pool: Pool, connection: socket.socket) -> None:
    """Give whoever has connected a sandbox, or a reason. Nothing that it does, or does not, is waited for."""
    reason = peer.refusal(connection)
    try:
        if reason:
            connection.send(marshal.dumps(("refused", reason)))
            return
        try:
            waiting = pool.take()
        except SandboxError as error:
            connection.send(marshal.dumps(("refused", str(error))))
            return
        try:
            assert waiting.terminal >= 0
            descriptors = (waiting.assignments.fileno(), waiting.answer.fileno(), waiting.terminal)
            message = marshal.dumps(("ready", pool.plan.fingerprint(), waiting.identity))
            messages.send(connection, message, descriptors)
        finally:
            waiting.close()
    except OSError:
        return  # it has gone, and so has its sandbox


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.setblocking(False)
        before = os.umask(0o177)
        try:
            try:
                listener.bind(address)
            except OSError:
                _remove_dead(address)
                listener.bind(address)
        finally:
            os.umask(before)
        inode = os.stat(address).st_ino
        listener.listen(128)
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                # Another one may have taken the name meanwhile.
                if os.stat(address).st_ino == inode:
                    os.unlink(address)


def _remove_dead(address: str) -> None:
    """Remove the name that a killed service has left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            return
    raise LaunchError("a pool is served for these options and this workspace already")


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read when a signal to end has come."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
