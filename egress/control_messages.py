"""What is said on a gateway's control socket, by commands and by other gateways: JSON, one object a message.

The sockets are `PID.sock` in the folder `egress` of the runtime directory, SOCK_SEQPACKET (unix(7)). A request is
`{"verb": …}` with what the verb wants; an answer is an object, `{"error": SENTENCE}` when it is no.
"""

from __future__ import annotations

import fcntl
import posix

from osmoda.egress import memory_file, registration
from osmoda.host import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

SUFFIX = ".sock"

LONGEST = 32768
"""Bytes of a message that is sent as it is; a longer one goes in a memfd."""

_IN_A_MEMFD = b"M"
_F_GET_SEALS = 1034


def say(socket: _socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message; the descriptors stay open here. Raises OSError (BlockingIOError when nobody reads)."""
    import json

    content = json.dumps(message, separators=(",", ":")).encode()
    if len(content) <= LONGEST:
        messages.send(socket, content, descriptors)
        return
    body = memory_file.create("osmoda-message", content)
    try:
        messages.send(socket, _IN_A_MEMFD, (body, *descriptors))
    finally:
        posix.close(body)


def hear(socket: _socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors; None at the end. Raises OSError, ValueError for what is no message."""
    try:
        content, descriptors = messages.receive(socket, LONGEST)
    except ConnectionResetError:
        return None
    if not content:
        close(descriptors)
        return None
    import json

    try:
        if content == _IN_A_MEMFD and descriptors:
            body = descriptors.pop(0)
            try:
                content = read_memfd(body)
            finally:
                posix.close(body)
        message = json.loads(content)
        if not isinstance(message, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError, OSError) as error:
        close(descriptors)
        raise ValueError(f"a message that is none: {error}") from None
    return message, descriptors


def close(descriptors: list[int]) -> None:
    """Close them all."""
    for fd in descriptors:
        posix.close(fd)


def read_memfd(fd: int) -> bytes:
    """What is in a file in memory. Raises ValueError for any other file: reading it could take for ever."""
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        raise ValueError("a file that does not lie in memory") from None
    return registration.read_all(fd)
