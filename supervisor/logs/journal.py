"""journald's native protocol: fields in, a datagram out (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import os
import socket
import struct

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "osmoda-watch"


def datagram(unit: str, stream: str, level: int, pid: int, text: bytes) -> bytes:
    """One entry. The unit's name begins the message, so that `journalctl -u osmoda-watch | grep NAME` finds it."""
    fields = {
        "MESSAGE": unit.encode() + b": " + text,
        "PRIORITY": b"%d" % level,
        "SYSLOG_IDENTIFIER": IDENTIFIER.encode(),
        "UNIT": unit.encode(),
        "OSMODA_STREAM": stream.encode(),
    }
    if pid:
        fields["OSMODA_PID"] = b"%d" % pid
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


class Journal:
    """The journal of this host, where there is one. What it does not take at once is not sent: it is in the files."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        self._socket: socket.socket | None = None

    def send(self, entry: bytes) -> bool:
        """Whether the journal has it."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(entry, self.path)
        except OSError:
            return False
        return True

    def is_there(self) -> bool:
        """Whether there is a journal."""
        return os.path.exists(self.path)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def has_stream(descriptor: int) -> bool:
    """Whether a stream leads to the journal already (systemd.exec(5), JOURNAL_STREAM=)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
