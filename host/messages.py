"""Messages with descriptors over a SOCK_SEQPACKET pair: one `sendmsg`, one `recvmsg` (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import _socket
import posix

MOST_DESCRIPTORS = 64


def send(channel: _socket.socket, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message; the descriptors stay open here. Raises OSError."""
    packed = b"".join([fd.to_bytes(4, "little") for fd in descriptors])
    channel.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if packed else [])


def receive(channel: _socket.socket, most: int = 65536, flags: int = 0) -> tuple[bytes, list[int]]:
    """One message of at most `most` bytes and its descriptors, close-on-exec; an empty one is the end.

    Raises OSError; EMFILE (24) when the descriptors did not fit (those that did are closed), EMSGSIZE (90) when the
    message did not.
    """
    data, ancillary, state, _ = channel.recvmsg(most, 4 * MOST_DESCRIPTORS + 16, flags | _socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        int.from_bytes(packed[i : i + 4], "little")
        for level, kind, packed in ancillary
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS
        for i in range(0, len(packed) - 3, 4)
    ]
    if state & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC):
        for fd in descriptors:
            posix.close(fd)
        number = 24 if state & _socket.MSG_CTRUNC else 90
        raise OSError(number, f"recvmsg: {posix.strerror(number)}")
    return data, descriptors
