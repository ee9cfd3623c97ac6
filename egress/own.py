"""A gateway of one's own: forked by whoever runs sandboxes, and gone with them.

The parent must be single-threaded. It keeps `OwnGateway`; the child is a gateway and nothing else: it has the parent's
memory as it was, none of its descriptors, no terminal, and no signal but SIGKILL ends it before its sandboxes end.
"""

from __future__ import annotations

import _socket
import gc
import posix
import select

from osmoda.egress import registration
from osmoda.host import messages, paths, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn

    from osmoda.egress.registration import Channel
else:
    import _signal

_SIGCHLD = 17
# SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM: for the sandbox and whoever runs it. Python ignores SIGPIPE.
_IGNORED = (1, 2, 3, 10, 12, 15)
_KEPT = 3
_PATIENCE = 10.0  # seconds for the last records


class OwnGateway:
    """The parent's handle. `pidfd` becomes readable when the gateway has died."""

    __slots__ = ("_door", "pid", "pidfd")

    def __init__(self) -> None:
        """Fork it. Raises OSError."""
        door, inner = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            self.pid, self.pidfd = syscalls.clone3(0, _SIGCHLD)
        except OSError:
            door.close()
            inner.close()
            raise
        if self.pid == 0:
            _be_a_gateway(inner)
        inner.close()
        self._door = door

    def admit(self) -> Channel:
        """A channel for one more sandbox. Raises OSError when the gateway has died."""
        channel, theirs = registration.pair()
        try:
            messages.send(self._door, b"A", (theirs.fileno(),))
        except OSError:
            channel.close()
            raise
        finally:
            theirs.close()
        return channel

    def dismiss(self) -> None:
        """Nothing will be admitted any more: it ends when its sandboxes' channels have."""
        self._door.close()

    def close(self, at_once: bool = False) -> None:
        """End it, and wait until it has: its sandboxes' channels must be closed by now.

        `at_once`: it has nothing to finish, so it need not learn of its end.
        """
        self._door.close()
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        if at_once or not ended.poll(_PATIENCE * 1000):
            # Before, too: this process may be killed before it comes to the other one.
            self._remove_name()
            syscalls.pidfd_send_signal(self.pidfd, 9)
        posix.waitpid(self.pid, 0)
        posix.close(self.pidfd)
        self._remove_name()

    def _remove_name(self) -> None:
        try:
            # Its control socket (`control`): one that was killed could not remove it.
            posix.unlink(f"{paths.directory('runtime')}/egress/{self.pid}.sock")
        except OSError:
            return


def _be_a_gateway(door: _socket.socket) -> NoReturn:
    try:
        _signal.set_wakeup_fd(-1)
        for number in _IGNORED:
            _signal.signal(number, _signal.SIG_IGN)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        posix.setsid()
        syscalls.prctl_set_name(b"osmoda-egress")
        # Nobody of the same user may look into what holds secrets and decides (prctl(2), PR_SET_DUMPABLE).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        posix.dup2(door.fileno(), _KEPT, False)
        null = posix.open("/dev/null", posix.O_RDWR)
        for fd in (0, 1, 2):
            posix.dup2(null, fd)
        syscalls.close_range(_KEPT + 1, 0x7FFFFFFF)
        gc.freeze()
        gc.enable()
        serve(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _KEPT))
    finally:
        posix._exit(0)


def _refuse_all(door: _socket.socket, reason: str) -> None:
    """Tell whoever comes through `door` why there is no gateway, and stay until they have gone."""
    channels: list[_socket.socket] = []
    while True:
        data, descriptors = messages.receive(door)
        if not data:
            break
        channels += [_socket.socket(fileno=fd) for fd in descriptors]
        for channel in channels[len(channels) - len(descriptors) :]:
            registration.Channel(channel).say("refused", reason)
    for channel in channels:
        # Closed with something unread in it, it would take the reason along.
        while channel.recv(4096):
            continue


def serve(door: _socket.socket) -> None:
    """Serve the sandboxes that come through `door`, until it is closed and they have ended."""
    from osmoda.egress import control
    from osmoda.egress.gateway import Gateway
    from osmoda.egress.records import Log, folder

    gateway = Gateway(Log(folder()))

    def came(_: int) -> None:
        data, descriptors = messages.receive(door)
        if not data:
            gateway.loop.unregister(door.fileno())
            gateway.drain(0.0)
            return
        for fd in descriptors:
            gateway.admit(_socket.socket(fileno=fd))

    gateway.loop.register(door.fileno(), 1, came)
    try:
        # Without it no edit would reach this gateway, and nobody could take away what it lets through.
        listening = control.listen(gateway)
    except (OSError, paths.UntrustedDirectory) as error:
        _refuse_all(door, f"its control socket cannot be made: {getattr(error, 'strerror', None) or error}")
        return
    try:
        gateway.run()
    finally:
        listening.close()
