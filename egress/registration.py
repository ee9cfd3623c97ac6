"""How whoever runs a sandbox gives it to a gateway: messages on a SOCK_SEQPACKET channel, one channel a sandbox.

To the gateway: `open` (a memfd with the marshalled `Opening`), `attach` (the sockets made inside, in the order of
`SOCKETS`), `inner` (sockets made inside that were asked for). From it: `ready` (where connections are inspected, the
sandbox's CA, and its trust stores as memfds), `attached`, `want` (a number of inner sockets), `denial` (what was
refused), `refused` (a sentence). The sandbox is in the gateway's hands as long as the channel is open: its end of file
ends the sandbox's network, in both directions.
"""

from __future__ import annotations

import _socket
import marshal
import posix

from osmoda.egress import memory_file
from osmoda.host import messages
from osmoda.host.frozen import fields_of, frozen, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
SOCKETS = ("gate", "udp", "tcp", "gate6", "udp6", "tcp6")
"""The sockets of a sandbox, in the order in which they are passed; without IPv6 only the first three."""

GATE_PORT = 1
"""Where TCP is redirected to, on the loopback addresses inside: a port that nothing inside may bind (below 1024)."""


@frozen
class Opening:
    """What a gateway is told of a sandbox before its sockets are made.

    `identity` is unique among running sandboxes, `agent` the name that others reach it by, `profile` the name to print,
    `token` what the rooms above need to compile the policy again, `files` the profile's files. `secrets` holds (name,
    placeholder, value). `policy` is the compiled policy; `inspects`: some connections will be.
    `authority` is the CA that an earlier gateway made for this sandbox, empty for a new one.
    """

    identity: str
    agent: str
    tier: int
    profile: str
    token: bytes
    files: tuple[str, ...]
    secrets: tuple[tuple[str, str, str], ...]
    policy: bytes
    inspects: bool
    authority: bytes = b""

    def with_authority(self, authority: bytes) -> Opening:
        """The same for the next gateway, with the CA that the first one made."""
        return self._with("authority", authority)

    def with_policy(self, policy: bytes) -> Opening:
        """The same under another policy: that of an edited profile."""
        return self._with("policy", policy)

    def _with(self, field: str, value: bytes) -> Opening:
        values: list[Any] = [value if name == field else getattr(self, name) for name in fields_of(Opening)]
        return Opening(*values)


class Channel:
    """Either end of a channel. The socket is this object's to close."""

    __slots__ = ("socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    def fileno(self) -> int:
        """For a loop: readable when a message or the end has come."""
        return self.socket.fileno()

    def close(self) -> None:
        """End it: the other side sees an end of file."""
        self.socket.close()

    def say(self, kind: str, *values: Any, descriptors: tuple[int, ...] = ()) -> None:
        """Send one message. Raises OSError when the other side is gone, or does not read."""
        messages.send(self.socket, marshal.dumps((kind, *values)), descriptors)

    def hear(self, flags: int = 0) -> tuple[str, tuple[object, ...], list[int]] | None:
        """The next message: kind, values and descriptors; None at the end. Raises OSError, ValueError."""
        try:
            data, descriptors = messages.receive(self.socket, flags=flags)
        except ConnectionResetError:
            return None
        if not data:
            return None
        try:
            kind, *values = marshal.loads(data)
        except (ValueError, EOFError, TypeError):
            for fd in descriptors:
                posix.close(fd)
            raise ValueError("a message that is none") from None
        return kind, tuple(values), descriptors

    def open(self, opening: Opening) -> None:
        """Tell a gateway of a sandbox to come."""
        body = memory_file.create("osmoda-sandbox", marshal.dumps((VERSION, *values_of(opening))))
        try:
            self.say("open", descriptors=(body,))
        finally:
            posix.close(body)


def read_opening(body: int) -> Opening:
    """What `Channel.open` wrote. Raises ValueError for anything else; `body` stays open."""
    try:
        version, *values = marshal.loads(read_all(body))
    except (ValueError, EOFError, TypeError):
        raise ValueError("a registration that is none, or too large a one") from None
    if version != VERSION:
        raise ValueError(f"the sandbox speaks version {version} of the registration, this gateway {VERSION}")
    if len(values) != len(fields_of(Opening)):
        raise ValueError("a registration that is none")
    return Opening(*values)


def pair() -> tuple[Channel, _socket.socket]:
    """A channel, and the socket of its other end."""
    mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return Channel(mine), theirs


def read_all(fd: int) -> bytes:
    """The content of the file `fd`, from its start; a memfd of somebody else's could be as large as memory."""
    size = posix.fstat(fd).st_size
    if size > 1 << 28:
        raise ValueError("the message is too large")
    parts, offset = [], 0
    while offset < size:
        part = posix.pread(fd, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
