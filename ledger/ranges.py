"""The part of a verification that takes time, in pieces, on as many cores as there are."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

from osmoda.ledger import chain, database, record
from osmoda.ledger.chain import Checked, Finding
from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

_PIECE = 25_000  # events
_ALONE = 60_000  # events that are looked at sooner than another process is there
_PROGRAM = """
import sys
sys.path[:0] = {path!r}
from osmoda.ledger.ranges import serve
serve({directory!r})
"""


class Task(NamedTuple):
    """A range of events of one file, or with `since` 0 the file's own structure.

    `previous` (hexadecimal) and `time` are those of the event before where that is in an earlier file.
    """

    file: str
    sealed: bool
    since: int
    until: int
    previous: str
    time: int


def of_file(file: str, sealed: bool, since: int, until: int, previous: bytes, time: int) -> list[Task]:
    """The tasks that a file is; `previous` and `time` are of the last event before it."""
    found = [] if sealed else [Task(file, sealed, 0, 0, "", 0)]
    for start in range(since, until + 1, _PIECE):
        end = min(start + _PIECE - 1, until)
        found.append(
            Task(file, sealed, start, end, previous.hex() if start == since else "", time if start == since else 0)
        )
    return found


def run(
    directory: str, tasks: Sequence[Task], processes: int, progress: Callable[[int, int], None] | None
) -> Iterator[Checked]:
    """Do them; what each has found, in any order."""
    total = sum(task.until - task.since + 1 for task in tasks if task.since)
    cores = processes or len(os.sched_getaffinity(0))
    done = 0
    found = _here(directory, tasks) if cores == 1 or total <= _ALONE else _spread(directory, tasks, cores)
    for checked in found:
        done += checked.events
        if progress is not None:
            progress(done, total)
        yield checked


def _here(directory: str, tasks: Sequence[Task]) -> Iterator[Checked]:
    with contextlib.closing(_Files(directory)) as files:
        for task in tasks:
            yield files.check(task)


class _Files:
    """Databases that were opened, one at a time."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._name = ""
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, task: Task) -> sqlite3.Connection:
        if self._connection is None or self._name != task.file:
            self.close()
            self._connection = database.open_to_read(f"{self._directory}/{task.file}", sealed=task.sealed)
            self._name = task.file
        return self._connection

    def check(self, task: Task) -> Checked:
        try:
            connection = self._open(task)
            if not task.since:
                return Checked(0, _integrity(task.file, connection), [])
            previous, time = bytes.fromhex(task.previous), task.time
            if not previous:
                for _, content, before in database.rows(connection, task.since - 1, task.since - 1):
                    previous = before
                    with contextlib.suppress(LedgerError):  # which the range before says
                        time = record.decode(content).time
            rows = database.rows(connection, task.since, task.until)
            return chain.check(task.file, rows, task.since, task.until, previous, time)
        except (*database.DAMAGED, LedgerError) as error:
            return Checked(0, [Finding(task.file, task.since, f"it cannot be read: {error}")], [])


def _integrity(file: str, connection: sqlite3.Connection) -> list[Finding]:
    """What SQLite says of its own pages."""
    lines = [str(line) for (line,) in connection.execute(f"PRAGMA integrity_check({chain.MOST_FINDINGS})")]
    return [Finding(file, 0, f"its pages are damaged: {' '.join(line.split())}") for line in lines if line != "ok"]


def _spread(directory: str, tasks: Sequence[Task], cores: int) -> Iterator[Checked]:
    """One process a core; a thread of this one asks each of them, task by task."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    answers: queue.SimpleQueue[Checked] = queue.SimpleQueue()
    threads = [threading.Thread(target=_ask, args=(directory, waiting, answers)) for _ in range(cores)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            yield answers.get()
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for thread in threads:
            thread.join()


def _ask(directory: str, waiting: queue.SimpleQueue[Task], answers: queue.SimpleQueue[Checked]) -> None:
    path = [folder for folder in sys.path if os.path.isabs(folder)]
    program = _PROGRAM.format(path=path, directory=directory)
    argv = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                # Out of memory, most likely: what was not looked at is not verified.
                lost = Finding(task.file, task.since, "the process that looked at it was killed; verify again")
                answers.put(Checked(0, [lost], []))
                continue
            events, findings, set_back = json.loads(answer)
            back = [(seq, by) for seq, by in set_back]
            answers.put(Checked(events, [Finding(*one) for one in findings], back))


def serve(directory: str) -> None:
    """Be one of those processes: a task a line, an answer a line."""
    with contextlib.closing(_Files(directory)) as files:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(files.check(Task(*json.loads(line)))) + "\n")
            sys.stdout.flush()
