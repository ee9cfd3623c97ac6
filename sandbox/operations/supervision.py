"""What a supervisor adds to a plan: a socket for notifications, and what listening sockets of the host's call for."""

from __future__ import annotations

import _socket
import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup, mounting

NOTIFY_SOCKET = b"/run/osmoda/notify"


@frozen
class NotifySocket(Operation):
    """A datagram socket that is made here and held outside (sd_notify(3), unix(7)).

    It lies in the root, which is read-only from then on: nothing inside can take it away or put another in its place.
    """

    layer = "network"

    def describe(self) -> str:
        return f"{NOTIFY_SOCKET.decode()} takes messages for the supervisor, and nothing comes back"

    def apply(self, setup: Setup) -> None:
        mounting.make_place(setup.root, NOTIFY_SOCKET.rpartition(b"/")[0], directory=True)
        flags = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        made = _socket.socket(_socket.AF_UNIX, flags)
        # Descriptors come with FDSTORE=1 and BARRIER=1. The latter asks for no more than that they are closed, which
        # whoever reads it does with all of them.
        made.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        # A name that is as long as the path to the new root would be may not fit (unix(7): 108 bytes).
        posix.fchdir(setup.root)
        made.bind(NOTIFY_SOCKET[1:])
        posix.chmod(NOTIFY_SOCKET[1:], 0o600, dir_fd=setup.root)
        setup.notify = made.detach()


@frozen
class HostListeners(Operation):
    """TCP sockets that listen in the host's network come with the command (sd_listen_fds(3)).

    Such a socket, or a connection that it has accepted, becomes a plain one by connect(2) with AF_UNSPEC, and could be
    connected to whatever the host reaches. Landlock refuses that, except where the first data go out with the
    connection, and where it is no TCP socket any more: so `program`, a filter before the plan's own, refuses TCP fast
    open (tcp(7), MSG_FASTOPEN) and other protocols over TCP (TCP_ULP: "smc" puts a socket of AF_SMC in its place, which
    Landlock lets connect; smc_ulp_init in net/smc/af_smc.c).
    """

    program: bytes

    layer = "network"

    def describe(self) -> str:
        return "listening TCP sockets of the host's network: connections are accepted, and none can be made"

    def apply(self, setup: Setup) -> None:
        syscalls.seccomp_set_filter(self.program, 0)
