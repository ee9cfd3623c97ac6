"""Which sockets a supervisor may pass on to a command (socket activation, sd_listen_fds(3)).

A socket belongs to the network namespace that it was made in, whoever holds it. So what is passed on is judged by what
the program could do with it there, not only by what it is meant for.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from typing import TYPE_CHECKING

from osmoda.sandbox.assignment import MOST_SOCKETS
from osmoda.sandbox.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]{1,255}\Z")  # sd_listen_fds_with_names(3): no colon
_INET = (socket.AF_INET, socket.AF_INET6)


def are_tcp(listeners: Sequence[tuple[str, int]], tier: int) -> bool:
    """Whether one of these sockets is of the host's network, which takes `supervised.with_tcp_listeners`.

    Raises LaunchError for what may not be passed on at `tier`, by its kind.
    """
    if len(listeners) > MOST_SOCKETS:
        raise LaunchError(f"a command is given at most {MOST_SOCKETS} sockets, not {len(listeners)}")
    kinds = [_is_tcp(name, fd, tier) for name, fd in listeners]
    return any(kinds)


def _is_tcp(name: str, fd: int, tier: int) -> bool:
    if not _NAME.match(name):
        raise LaunchError(f"{name!r} cannot be the name of a socket: it is 1 to 255 printable characters, no colon")
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise LaunchError(f"the socket {name} cannot be passed on: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        what = "a directory, which would let the command out of its root" if stat.S_ISDIR(mode) else "no socket"
        raise LaunchError(f"{name} cannot be passed on: it is {what}")
    with socket.socket(fileno=os.dup(fd)) as held:
        listens = held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        protocol = held.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
        if held.type == socket.SOCK_DGRAM and tier == 0 and held.family in (*_INET, socket.AF_UNIX):
            return False
        if held.type == socket.SOCK_DGRAM:
            raise LaunchError(
                f"{name} cannot be passed on in tier {tier}: a datagram socket of the host's sends to all that the "
                "host reaches"
            )
        if not listens:
            raise LaunchError(f"{name} cannot be passed on: it does not listen (listen(2)), or no longer does")
        if held.family == socket.AF_UNIX:
            return False
        if held.family in _INET and protocol == socket.IPPROTO_TCP:
            return True
    raise LaunchError(f"{name} cannot be passed on: it is neither a unix nor a TCP socket")
