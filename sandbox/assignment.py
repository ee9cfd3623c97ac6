"""What a sandbox that waits in a pool is given: its command, in one message with the three streams.

It comes to pid 1, behind all that confines it, on a SOCK_SEQPACKET pair of that sandbox's own, once. Descriptors 0 to 2
are closed there while it waits: the streams that come take exactly those numbers (unix(7), SCM_RIGHTS: the lowest free
ones, in order), so that no call and no limit of open files stands between.
"""

from __future__ import annotations

import _socket
import marshal
import posix

from osmoda.host.frozen import frozen, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from hashlib import sha256
    from typing import ClassVar
else:
    from _sha2 import sha256

SMALL = 1 << 14
"""Bytes up to which a command travels in the message itself; a longer one is a memfd beside the streams."""

MOST_SOCKETS = 32
"""Listening sockets that may come with a command."""

_LONGEST_SHOWN = 16 << 10

GO_ON = 255
"""To the keeper, among the numbers of signals: continue a command that was stopped on its terminal."""

_STREAMS = b"\0\0\0\0\1\0\0\0\2\0\0\0"


@frozen
class Assignment:
    """A command for a waiting sandbox; `began` is when its caller asked for it (time.monotonic, seconds).

    Those of its streams in `terminals` (0, 1, 2) become the sandbox's own terminal, as in `Command`. The rest is for a
    supervised command: `names` are those of the listening sockets that it is given, `holds` says that what it leaves
    behind stays when it ends; `sockets` is for `take` to fill in.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: bytes
    began: float
    terminals: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    holds: bool = False
    sockets: tuple[int, ...] = ()

    function: ClassVar[None] = None
    """No function is called in place of the program, as it may be for a `Command`."""


@frozen
class Terms:
    """What the monitor has to know of a command: `timeout` in seconds from `began` (time.monotonic), 0 for none.

    The rest is for a plan with a network, as a launch has it.
    """

    began: float
    timeout: float
    agent: str = ""
    token: bytes = b""
    since: int = 0
    secrets: tuple[tuple[str, str, str], ...] = ()


def shown(argv: tuple[str, ...]) -> tuple[tuple[str, ...], int, str]:
    """What the ledger has of a command line: words of 16 KiB, how many there are, SHA-256 of all if that is not all."""
    size = 0
    for index, word in enumerate(argv):
        size += len(word) + 1
        if size > _LONGEST_SHOWN:
            whole = "\0".join(argv).encode("utf-8", "surrogateescape")
            return (*argv[:index], word[: _LONGEST_SHOWN // 4]), len(argv), sha256(whole).hexdigest()
    return argv, len(argv), ""


def packed(terms: Terms) -> bytes:
    """Terms as the keeper and the launcher read them, after the zero byte."""
    return marshal.dumps(values_of(terms))


def give(channel: _socket.socket, assignment: Assignment, streams: Sequence[int], sockets: Sequence[int] = ()) -> None:
    """Hand it over. Raises OSError when nobody waits there any more: nothing was received then."""
    body = marshal.dumps(values_of(assignment))
    descriptors = list(streams)
    long = -1
    if len(body) > SMALL:
        long = posix.memfd_create("osmoda-assignment", posix.MFD_CLOEXEC)
        descriptors.append(long)
    try:
        if long >= 0:
            view = memoryview(body)
            while view:
                view = view[posix.write(long, view) :]
            body = b"M"
        descriptors.extend(sockets)
        packed = b"".join([fd.to_bytes(4, "little") for fd in descriptors])
        channel.sendmsg([body], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    finally:
        if long >= 0:
            posix.close(long)


def take(channel: _socket.socket, room: bytearray) -> Assignment | None:
    """Wait for it; None when nobody will give one any more.

    `room` has SMALL bytes: made before the waiting, while there is time. Raises OSError for streams that cannot be.
    """
    # Not close-on-exec: the streams are the command's as they come.
    size, ancillary, flags, _ = channel.recvmsg_into([room], 16 + 4 * (4 + MOST_SOCKETS))
    if not size:
        return None
    packed = ancillary[0][2] if ancillary else b""
    if flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC) or packed[:12] != _STREAMS:
        raise OSError(24, "the command's streams could not be received (RLIMIT_NOFILE)")
    more = [int.from_bytes(packed[i : i + 4], "little") for i in range(12, len(packed), 4)]
    if size == 1:
        long = more.pop(0)
        values = marshal.loads(posix.pread(long, posix.fstat(long).st_size, 0))
        posix.close(long)
    else:
        values = marshal.loads(room)
    for fd in more:
        if posix.fstat(fd).st_mode & 0o170000 != 0o140000:
            raise OSError(22, "what was passed on beside the streams is no socket")  # see listeners.py
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if posix.fstat(fd).st_mode & 0o170000 == 0o040000:
            # The caller was to refuse it (launch._refuse_directories): CVE-2024-21626.
            raise OSError(21, f"{name} is a directory, which would let the command out of its root")
    return Assignment(*[*values[:-1], tuple(more)])
