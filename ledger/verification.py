"""Whether a ledger is what was written: every byte that `show` and `export` could print, against the signed head.

The chain of digests says that no event was changed, dropped, added or moved; the signed heads say where it ends; a
checkpoint kept elsewhere says that both were not made anew. The files are looked at as well, for what SQLite would
read without showing it: other tables, triggers, pages that hold nothing, bytes behind the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmoda.ledger import database, folder, ranges, record
from osmoda.ledger.chain import Finding
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.head import Head, Seal

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from osmoda.ledger.ranges import Task

_BESIDE = ("", "-wal", "-shm")
_TRIES = 3
_MOMENT, _LOOKS = 1.0, 50  # seconds, and looks in that time


@dataclass
class Report:
    """What was found. `ledger` is the id, `head` the last signed one; without findings all `events` are as written."""

    directory: str
    ledger: str = ""
    events: int = 0
    segments: int = 0
    head: Head | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, file: str, text: str, seq: int = 0) -> None:
        """One more."""
        self.findings.append(Finding(file, seq, text))


@dataclass
class _File:
    """One database of the ledger: which events it should hold, and what its first one says."""

    name: str
    sealed: bool
    since: int = 0
    until: int = 0
    first: database.Row = (0, b"", b"")
    end: bytes = record.ZERO
    time: int = 0


def verify(
    directory: str,
    checkpoints: Sequence[Head] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 0,
) -> Report:
    """Look at all of it. Raises LedgerError where there is no ledger in `directory`, or it cannot be read.

    `checkpoints` are heads that were kept elsewhere; `progress` is called with events looked at and to look at;
    `processes` is how many look, 0 for as many as there are cores.
    """
    if not os.path.isdir(directory):
        raise LedgerError(f"there is no ledger in {directory}; osmoda-ledger init makes one")
    tries = _TRIES
    while True:
        report, stamp = Report(directory), _stamp(directory)
        with contextlib.closing(_Verifier(report, progress, processes)) as verifier:
            verifier.run(checkpoints)
        tries -= 1
        if not report.findings or not tries or _stamp(directory) == stamp:
            return report
        # A service began to write, or sealed a segment, while it was looked at: what was found may be half of each.


def _stamp(directory: str) -> tuple[object, ...]:
    """What changes when a service begins to write beneath a reader that took the file for still."""
    found = []
    for name in (folder.LIVE, f"{folder.LIVE}-wal"):
        try:
            status = os.stat(f"{directory}/{name}")
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


class _Verifier:
    def __init__(self, report: Report, progress: Callable[[int, int], None] | None, processes: int) -> None:
        self.report = report
        self.progress = progress
        self.processes = processes
        self.key = b""
        self._live: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._live is not None:
            self._live.close()

    def run(self, checkpoints: Sequence[Head]) -> None:
        report = self.report
        # Before the database is looked at, which may only be further.
        told = self._head_file()
        live = self._live_name()
        if live is None:
            return
        self._names(live)
        files = [_File(f"{folder.SEGMENTS}/{name}", True) for name in self._segment_names()] + [_File(live, False)]
        report.segments = len(files) - 1
        if not self._ends(files):
            return
        self._identity(files[0])
        head = self._own_head(files[-1])
        tasks = self._tasks(files)
        for found in ranges.run(report.directory, tasks, self.processes, self.progress):
            report.events += found.events
            report.findings += found.findings
            for seq, nanoseconds in found.set_back[:1]:
                report.notes.append(f"the clock was set back by {nanoseconds / 1e9:.3f} s before event {seq}")
        self._seals(files)
        self._key_file()
        if told is not None and head is not None and told.seq < head.seq:
            behind = head.seq - told.seq
            report.notes.append(f"{folder.HEAD} is {behind} events behind: the service was killed, or writes now")
        if told is not None:
            self._compare(told, folder.HEAD, files)
        for kept in checkpoints:
            self._compare(kept, "checkpoint", files)
        report.findings.sort(key=lambda found: (found.seq, found.file))

    # --- the folder ---

    def _head_file(self) -> Head | None:
        try:
            with open(f"{self.report.directory}/{folder.HEAD}", "rb") as file:
                line = file.read(4096).decode("ascii")
            return Head.read(line, "it")
        except OSError as error:
            self.report.find(folder.HEAD, f"it cannot be read: {error.strerror}")
        except UnicodeError:
            self.report.find(folder.HEAD, "it is no signed head of a ledger")
        except LedgerError as error:
            self.report.find(folder.HEAD, str(error))
        return None

    def _live_name(self) -> str | None:
        for name in (folder.LIVE, folder.NEXT):
            if os.path.exists(f"{self.report.directory}/{name}"):
                if name == folder.NEXT:
                    self.report.notes.append("the service was killed when it sealed a segment; the next one goes on")
                return name
        self.report.find(folder.LIVE, "it is missing")
        return None

    def _names(self, live: str) -> None:
        allowed = {folder.KEY, folder.HEAD, folder.MANIFEST, folder.SEGMENTS}
        allowed |= {f"{folder.HEAD}.new", f"{folder.MANIFEST}.new"}
        allowed |= {f"{name}{suffix}" for name in (live, folder.NEXT) for suffix in (*_BESIDE, "-journal")}
        allowed.discard(f"{live}-journal")
        for name in sorted({*os.listdir(self.report.directory)} - allowed):
            if name != f"{live}-journal" or not self._passes(name):
                self.report.find(name, "it is no file of a ledger's")
        if not os.path.exists(f"{self.report.directory}/{folder.KEY}"):
            self.report.notes.append("there is no key here: nothing can be written to this copy")

    def _passes(self, name: str) -> bool:
        """Whether a file is gone in a moment: the one that SQLite has while a segment is sealed."""
        for _ in range(_LOOKS):
            if not os.path.lexists(f"{self.report.directory}/{name}"):
                return True
            time.sleep(_MOMENT / _LOOKS)
        return False

    def _segment_names(self) -> list[str]:
        try:
            names = sorted(os.listdir(f"{self.report.directory}/{folder.SEGMENTS}"))
        except OSError as error:
            self.report.find(folder.SEGMENTS, f"it cannot be read: {error.strerror}")
            return []
        wanted = [os.path.basename(folder.segment(number)) for number in range(1, len(names) + 1)]
        for name in sorted({*names} - {*wanted}):
            self.report.find(f"{folder.SEGMENTS}/{name}", "it is no segment, or one before it is missing")
        return [name for name in wanted if name in names]

    # --- files, from outside ---

    def _ends(self, files: list[_File]) -> bool:
        """Which events each file holds, by itself; whether all can be looked at."""
        following, complete = 1, True
        for one in files:
            path = f"{self.report.directory}/{one.name}"
            try:
                connection = database.open_to_read(path, sealed=one.sealed)
            except LedgerError as error:
                self.report.find(one.name, str(error))
                return False
            try:
                if not one.sealed:
                    self._live = connection
                    connection.execute("BEGIN")
                self._shape(one, connection, path)
                one.first = database.first(connection)
                one.until, content, one.end = database.last(connection)
                one.since = following
                (count, least) = connection.execute("SELECT count(*), min(seq) FROM event").fetchone()
                if least != following:
                    self.report.find(one.name, f"it begins with event {least} and should with {following}")
                if count != one.until - following + 1:
                    self.report.find(one.name, f"it holds {count} events, which are not {following} to {one.until}")
                following = one.until + 1
                with contextlib.suppress(LedgerError):  # which the chain says
                    one.time = record.decode(content).time
            except (*database.DAMAGED, LedgerError) as error:
                self.report.find(one.name, f"it cannot be read: {error}")
                complete = False
            finally:
                if one.sealed:
                    connection.close()
        return complete

    def _shape(self, one: _File, connection: sqlite3.Connection, path: str) -> None:
        """Nothing but the two tables, in pages that are all in use."""
        found = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid").fetchall()
        if tuple(found) != database.SCHEMA:
            self.report.find(one.name, "its schema is not that of a ledger: something was added or changed")
        for pragma, wanted in (
            ("application_id", database.APPLICATION),
            ("user_version", 0),
            ("page_size", database.PAGE),
            ("freelist_count", 0),
            ("auto_vacuum", 0),
            ("encoding", "UTF-8"),
        ):
            (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if value != wanted:
                self.report.find(one.name, f"its {pragma} is {value}, and that of a ledger {wanted}")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        size = os.path.getsize(path)
        # What is in the -wal may be further than the file, and is written there later.
        still = one.sealed or not os.path.exists(f"{path}-wal")
        if (still and size != pages * database.PAGE) or size % database.PAGE or size > pages * database.PAGE:
            self.report.find(one.name, f"it is of {size} bytes, and its pages are of {pages * database.PAGE}")

    def _identity(self, first: _File) -> None:
        """The ledger's id and key, which its first event holds."""
        report = self.report
        _, content, digest = first.first
        report.ledger = digest.hex()
        try:
            event = record.decode(content)
            self.key = bytes.fromhex(str(event.body.get("key", "")))
            if event.kind != "ledger" or event.body.get("format") != folder.FORMAT or len(self.key) != 32:
                report.find(first.name, "the first event is not that of a ledger", event.seq)
        except (LedgerError, ValueError):
            report.find(first.name, "the first event holds no key, which all is signed with", 1)

    def _own_head(self, live: _File) -> Head | None:
        """The head in the database: it was signed for the last event there is."""
        assert self._live is not None
        try:
            head = Head.read(database.head_line(self._live), "its head")
        except (LedgerError, *database.DAMAGED) as error:
            self.report.find(live.name, str(error))
            return None
        self.report.head = head
        if (head.seq, head.digest, head.time) != (live.until, live.end, live.time):
            what = "the last event is another one" if head.seq == live.until else f"the last event is {live.until}"
            self.report.find(live.name, f"its head is signed for event {head.seq}, and {what}", head.seq)
        return head

    # --- what takes time ---

    def _tasks(self, files: list[_File]) -> list[Task]:
        tasks: list[Task] = []
        previous, time = record.ZERO, 0
        for one in files:
            tasks += ranges.of_file(one.name, one.sealed, one.since, one.until, previous, time)
            previous, time = one.end, one.time
        return tasks

    def _seals(self, files: list[_File]) -> None:
        """Each segment against its seal, in the event that follows it and in the manifest."""
        report = self.report
        try:
            with open(f"{report.directory}/{folder.MANIFEST}", "rb") as file:
                lines = file.read().decode("ascii", "replace").splitlines(keepends=True)
        except OSError as error:
            report.find(folder.MANIFEST, f"it cannot be read: {error.strerror}")
            lines = []
        for number, (one, following) in enumerate(itertools.pairwise(files), 1):
            path = f"{report.directory}/{one.name}"
            try:
                with open(path, "rb") as file:
                    whole = hashlib.file_digest(file, "sha256").digest()
                    size = os.fstat(file.fileno()).st_size
                event = record.decode(following.first[1])
            except (OSError, LedgerError) as error:
                report.find(one.name, f"it cannot be compared with its seal: {error}")
                continue
            seal = Seal(bytes.fromhex(report.ledger), number, one.since, one.until, one.end, whole, size)
            if event.kind != "segment" or event.body != seal.body():
                report.find(one.name, f"it is not the file that was sealed (event {event.seq} says so)")
            if number <= len(lines):
                self._manifest_line(lines[number - 1], number, seal)
        missing = len(files) - 1 - len(lines)
        if missing == 1:
            report.notes.append(f"{folder.MANIFEST} lacks its last line, which the service writes when it starts")
        elif missing:
            report.find(folder.MANIFEST, f"it has {len(lines)} lines for {len(files) - 1} segments")

    def _manifest_line(self, line: str, number: int, seal: Seal) -> None:
        try:
            told = Seal.read(line, self.key, f"line {number}")
        except LedgerError as error:
            self.report.find(folder.MANIFEST, str(error))
            return
        if told.body() != seal.body() or told.ledger != seal.ledger:
            self.report.find(folder.MANIFEST, f"line {number} is not of the segment that is there")

    def _key_file(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            with open(f"{self.report.directory}/{folder.KEY}", "rb") as file:
                content = file.read(64)
            public = Ed25519PrivateKey.from_private_bytes(content).public_key().public_bytes_raw()
        except FileNotFoundError:
            return
        except OSError as error:
            self.report.notes.append(f"the key was not looked at: {error.strerror}")
            return
        except ValueError:
            self.report.find(folder.KEY, "it is no key")
            return
        if public != self.key:
            self.report.find(folder.KEY, "it is not the key that this ledger was signed with")

    # --- heads from elsewhere ---

    def _compare(self, head: Head, what: str, files: list[_File]) -> None:
        report = self.report
        if head.ledger.hex() != report.ledger or head.key != self.key:
            report.find(what, "it is of another ledger, or this one was made anew", head.seq)
            return
        last = files[-1].until
        if head.seq > last:
            report.find(what, f"events up to {head.seq} were written, and those after {last} are gone", head.seq)
            return
        holds = next(one for one in files if one.until >= head.seq)
        for _, _, digest in self._rows(holds, head.seq):
            if digest != head.digest:
                report.find(
                    what,
                    "another event was signed under this number: the ledger was rewritten, or goes on from a copy "
                    "(a fork), at this event or before",
                    head.seq,
                )

    def _rows(self, one: _File, seq: int) -> list[database.Row]:
        if not one.sealed:
            assert self._live is not None
            return list(database.rows(self._live, seq, seq))
        connection = database.open_to_read(f"{self.report.directory}/{one.name}", sealed=True)
        try:
            return list(database.rows(connection, seq, seq))
        except database.DAMAGED:
            return []  # which was found before
        finally:
            connection.close()


def read_heads(path: str) -> list[Head]:
    """The checkpoints in a file, one a line. Raises LedgerError."""
    try:
        with open(path, "rb") as file:
            lines = file.read(1 << 20).decode("ascii").splitlines(keepends=True)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from None
    except UnicodeError:
        raise LedgerError(f"{path} is no checkpoint of a ledger") from None
    if not lines:
        raise LedgerError(f"{path} is empty: there is no checkpoint in it")
    return [Head.read(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
