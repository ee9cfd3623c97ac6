"""The logs of all units: taken from the daemon at once, written by a thread of their own.

A disk that hangs or is full stops neither the daemon nor an agent: what cannot be kept is dropped, counted and said.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from osmoda.sandbox.terminal_text import clean
from osmoda.supervisor.logs import journal
from osmoda.supervisor.logs.files import MOST_BYTES, LogFile, record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

OWN = "watch"
"""The stream of the daemon's own lines about a unit."""

DAEMON = "osmoda-watch"
"""The log of what the daemon says of itself; no unit is called so (their names have a suffix)."""

_MOST_WAITING = 16 << 20  # bytes, for a disk that does not answer
_INFORMATION, _WARNING = 6, 4

type Entry = tuple[float, str, str, int, int, Sequence[bytes]]


class Logs:
    """`folder` holds a log for each unit. As a context manager it ends its thread, having written what it has."""

    def __init__(
        self,
        folder: str,
        *,
        echo: int = -1,
        most: int = MOST_BYTES,
        to: journal.Journal | None = None,
    ) -> None:
        self._folder = folder
        self._echo = echo  # a descriptor that gets the daemon's own lines too
        self._most = most
        self._journal = journal.Journal() if to is None else to
        self._files: dict[str, LogFile] = {}
        self._silent: set[str] = set()  # units whose log cannot be written, which was said
        self._queue: deque[Entry] = deque()
        self._waiting = 0  # bytes in the queue
        self._dropped = 0  # lines that found it full
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def write(self, unit: str, stream: str, pid: int, lines: Sequence[bytes]) -> None:
        """Keep lines that an agent has printed. Never blocks, never raises."""
        self._put((time.time(), unit, stream, _INFORMATION, pid, lines))

    def say(self, unit: str, text: str, level: int = _INFORMATION) -> None:
        """Keep a line of the daemon's own about a unit; `level` as in syslog(3)."""
        self._put((time.time(), unit, OWN, level, 0, (text.encode(errors="surrogateescape"),)))

    def _put(self, entry: Entry) -> None:
        size = sum(map(len, entry[5]))
        with self._changed:
            if self._waiting + size > _MOST_WAITING:
                self._dropped += len(entry[5])
                return
            self._queue.append(entry)
            self._waiting += size
            self._changed.notify_all()

    # --- the thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                entries, self._queue = self._queue, deque()
                closing, dropped, self._dropped = self._closing, self._dropped, 0
            for entry in entries:
                self._write_one(entry)
            with self._changed:
                self._waiting -= sum(len(line) for entry in entries for line in entry[5])
                self._changed.notify_all()
            if dropped:
                self._tell(f"{dropped} lines of logs were dropped: the disk did not take them in time")
            if closing and not entries:
                return

    def _write_one(self, entry: Entry) -> None:
        when, unit, stream, level, pid, lines = entry
        file = self._files.get(unit)
        if file is None:
            file = self._files[unit] = LogFile(self._folder, unit, most=self._most)
        data = b"".join([record(when, unit, stream, level, pid, line) for line in lines])
        lost, reason = file.lost, file.reason
        if lost:
            text = f"{lost} lines before this one could not be written: {reason}"
            data = record(when, unit, OWN, _WARNING, 0, text.encode()) + data
        if file.append(data):
            file.lost = 0
            if unit in self._silent:
                self._silent.discard(unit)
                self._tell(f"the log of {unit} is written again; {lost} lines of it are lost")
        else:
            file.lost -= bool(lost)  # its own line, which is not one of the agent's
            if unit not in self._silent:
                self._silent.add(unit)
                self._tell(f"the log of {unit} cannot be written, its lines are dropped: {file.reason}")
        for line in lines:
            self._journal.send(journal.datagram(unit, stream, level, pid, line))
        if stream == OWN:
            self._echo_lines(unit, lines)

    def _tell(self, text: str) -> None:
        """Say something of the logs themselves, where it may still be heard."""
        self._journal.send(journal.datagram(DAEMON, OWN, _WARNING, 0, text.encode()))
        self._echo_lines("", (text.encode(),))

    def _echo_lines(self, unit: str, lines: Iterable[bytes]) -> None:
        if self._echo < 0:
            return
        about = f"{unit}: " if unit and unit != DAEMON else ""
        for line in lines:
            text = f"osmoda-watch: {about}{clean(line.decode(errors='backslashreplace'))}\n"
            try:
                os.write(self._echo, text.encode(errors="backslashreplace"))
            except OSError:
                return  # nobody listens there any more

    # --- the end ---

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until all that was given is written; whether it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting or self._queue:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Write what there is, for at most 5 s, and end the thread."""
        self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(5)
        for file in self._files.values():
            file.close()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
