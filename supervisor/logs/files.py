"""A unit's log on disk: JSON lines, a file that is moved aside when it is full, and what happens on a full disk."""

from __future__ import annotations

import json
import os

from osmoda.egress.records import KEPT
from osmoda.host import paths

MOST_BYTES = 8 << 20
"""Of one file; `KEPT` full ones are kept besides: NAME.1 (the newest) to NAME.4."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_SUFFIX = ".jsonl"


def folder() -> str:
    """Where the logs are. Raises OSError, UntrustedDirectory."""
    paths.own_directory("state", "watch")
    return paths.own_directory("state", "watch/logs")


def name_of(unit: str) -> str:
    """The newest file of a unit's log; a unit's name has no slash."""
    return unit + _SUFFIX


def units(folder: str) -> list[str]:
    """The units that have a log, sorted."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def record(time: float, unit: str, stream: str, level: int, pid: int, text: bytes) -> bytes:
    """One line of the file. What is no UTF-8 comes back from it as it was (surrogateescape)."""
    entry = {"time": round(time, 6), "unit": unit, "stream": stream, "level": level, "pid": pid}
    try:
        entry["text"] = text.decode()
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeDecodeError:
        entry["text"] = text.decode(errors="surrogateescape")
        return json.dumps(entry).encode() + b"\n"


class LogFile:
    """The writing end; one process writes. `lost` counts the lines that could not be written, `reason` says why."""

    def __init__(self, folder: str, unit: str, *, most: int = MOST_BYTES) -> None:
        self.lost = 0
        self.reason = ""
        self._path = os.path.join(folder, name_of(unit))
        self._most = most
        self._fd = -1
        self._size = 0

    def append(self, data: bytes) -> bool:
        """Write whole lines; whether it was possible. Never raises: no line is worth an agent."""
        try:
            self._write(data)
        except OSError as error:
            self.lost += data.count(b"\n")
            self.reason = error.strerror or str(error)
            self.close()
            return False
        return True

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        elif self._size + len(data) > self._most and self._size:
            self.close()
            self._move_aside()
            self._open()
        written = os.write(self._fd, data)
        if written < len(data):
            # No half line stays, whatever comes after it.
            os.ftruncate(self._fd, self._size)
            raise OSError(28, "No space left on device")
        self._size += written

    def _open(self) -> None:
        self._fd = os.open(self._path, _FLAGS, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size:
            self._end_line()

    def _end_line(self) -> None:
        """A daemon that was killed in the midst of a write has left half a line."""
        with open(self._path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._size += os.write(self._fd, b"\n")

    def _move_aside(self) -> None:
        for number in range(KEPT, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            try:
                os.replace(newer, older)
            except FileNotFoundError:
                continue

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
