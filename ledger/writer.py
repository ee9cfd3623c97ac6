"""The one that writes a ledger: groups of events to the disk, each with a signed head, and full files to segments."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING, NamedTuple

from osmoda.ledger import database, folder, record
from osmoda.ledger.errors import BUSY, LedgerBusy, LedgerError
from osmoda.ledger.head import Head, Seal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

SEGMENT_BYTES = 64 << 20
_RETRY_BYTES = 4 << 20  # more, before a segment that could not be sealed is tried again


class Entry(NamedTuple):
    """An event that is to be written; `body` is canonical (`record.canonical`)."""

    uid: int
    pid: int
    client: int
    counter: int
    kind: str
    body: bytes


class Writer:
    """Holds the ledger in `directory` until it is closed; nobody else can write it meanwhile."""

    def __init__(self, directory: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Raises LedgerError where another holds it, or what is there is not what its head says."""
        self.folder = directory
        self._most = segment_bytes
        self._next_try = segment_bytes
        self._database: sqlite3.Connection | None = None
        self._head_fd = -1
        self._lock = _lock(directory)
        try:
            self._key = folder.seed(directory)
            _finish_rotation(directory)
            self._open()
        except (OSError, *database.DAMAGED) as error:
            self.close()
            raise LedgerError(f"the ledger in {directory} cannot be used: {_words(error)}") from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._database = database.open_to_write(f"{self.folder}/{folder.LIVE}")
        head = Head.read(database.head_line(self._database), f"the head in {folder.LIVE}")
        self.seq, content, self.digest = database.last(self._database)
        event = record.decode(content)
        if (head.seq, head.digest) != (self.seq, self.digest) or event.seq != self.seq:
            raise LedgerError(f"the last event of {self.folder} is not the one of its signed head; {_ASK}")
        if head.key != self._key.public_key().public_bytes_raw():
            raise LedgerError(f"the key in {self.folder} is not the one that its ledger was signed with; {_ASK}")
        self.ledger, self.key = head.ledger, head.key
        self._first, content, _ = database.first(self._database)
        body = record.decode(content).body
        self._number = int(body.get("segment", 0)) + 1
        self._meet_head_file(self._database)
        self._restore_manifest(body)

    def _meet_head_file(self, live: sqlite3.Connection) -> None:
        """Where a head was signed for more than there is, or for something else, events are gone: write nothing."""
        if self._head_fd < 0:
            self._head_fd = os.open(f"{self.folder}/{folder.HEAD}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        line = os.pread(self._head_fd, 4096, 0).decode("ascii", "replace")
        told = Head.read(line, f"{self.folder}/{folder.HEAD}")
        if told.ledger != self.ledger or told.seq > self.seq:
            raise LedgerError(
                f"{self.folder}/{folder.HEAD} tells of events up to {told.seq}, and they are gone; {_ASK}"
            )
        for _, _, digest in database.rows(live, told.seq, told.seq):
            if digest != told.digest:
                raise LedgerError(f"event {told.seq} is not the one that {self.folder}/{folder.HEAD} tells of; {_ASK}")
        # A service that was killed between its commit and this line.
        self._write_head(database.head_line(live))

    def _restore_manifest(self, body: dict[str, object]) -> None:
        """The line that a service did not come to write, which was killed when it had sealed a segment."""
        if self._number == 1:
            return
        path = f"{self.folder}/{folder.MANIFEST}"
        with open(path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        if len(lines) == self._number - 2:
            folder.replace(path, b"".join(lines) + _seal_of(self.ledger, body).sign(self._key).line().encode())

    # --- events ---

    def append(self, entries: Sequence[Entry]) -> int:
        """Write all of them, in order, or none; the number of the first. On the disk when this returns.

        Raises LedgerError: nothing was written then, and a later call may succeed.
        """
        seq, digest = self.seq, self.digest
        now = time.time_ns()
        rows: list[database.Row] = []
        for entry in entries:
            seq += 1
            content = record.encode(seq, now, *entry)
            digest = record.digest(digest, content)
            rows.append((seq, content, digest))
        head = Head(self.ledger, seq, now, digest, self.key).sign(self._key).line()
        try:
            if self._database is None:
                self._open()
            self._commit(rows, head)
        except (OSError, *database.DAMAGED) as error:
            raise LedgerError(f"the ledger in {self.folder} cannot be written: {_words(error)}") from None
        first, self.seq, self.digest = self.seq + 1, seq, digest
        self._write_head(head)
        return first

    def _commit(self, rows: list[database.Row], head: str) -> None:
        assert self._database is not None
        if not os.path.samestat(os.fstat(self._head_fd), os.stat(f"{self.folder}/{folder.HEAD}")):
            raise LedgerError(f"the ledger in {self.folder} is another one by now; {_ASK}")
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
            self._database.execute("UPDATE head SET line = ?", (head,))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _write_head(self, line: str) -> None:
        content = line.encode()
        try:
            if os.fstat(self._head_fd).st_size == len(content):
                # Within one sector, and as long as before: a host that loses its power leaves one of the two.
                os.pwrite(self._head_fd, content, 0)
            else:
                self._replace_head(content)
        except OSError:
            # The database has it, and the next one comes here: whoever compares finds this file behind, not ahead.
            return

    def _replace_head(self, content: bytes) -> None:
        """When its length changes, as with the tenth event: in place, a lost power could leave half of it."""
        scratch, here = f"{folder.HEAD}.new", self._lock
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=here)  # of a service that was killed
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=here)
        try:
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            os.rename(scratch, folder.HEAD, src_dir_fd=here, dst_dir_fd=here)
        except OSError:
            os.close(fd)
            raise
        os.close(self._head_fd)
        self._head_fd = fd
        os.fsync(here)

    def rows(self, since: int) -> list[database.Row]:
        """Events from `since` on that are in the file that is written to."""
        assert self._database is not None
        return list(database.rows(self._database, since))

    @property
    def first(self) -> int:
        """The number of the first event of that file."""
        return self._first

    # --- segments ---

    def rotate(self) -> bool:
        """Seal the file that is written to, if it is full; whether it was. What hinders it is tried again later."""
        if self._database is None:
            return False
        (pages,) = self._database.execute("PRAGMA page_count").fetchone()
        if pages * database.PAGE < self._next_try:
            return False
        try:
            self._seal()
        except (OSError, *database.DAMAGED):
            # A reader that looks at this moment, or a full disk: events go where they went before.
            self._next_try = pages * database.PAGE + _RETRY_BYTES
            self._reopen()
            return False
        self._next_try = self._most
        return True

    def _reopen(self) -> None:
        if self._database is None:
            try:
                self._open()
            except (OSError, *database.DAMAGED, LedgerError):
                return  # the next append tries again, and says why

    def _seal(self) -> None:
        assert self._database is not None
        live, following = f"{self.folder}/{folder.LIVE}", f"{self.folder}/{folder.NEXT}"
        self._database.execute("PRAGMA busy_timeout = 0")
        try:
            # One file that is complete by itself; refused while somebody reads it.
            (mode,) = self._database.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise sqlite3.OperationalError("the file is in use")
        finally:
            self._database.execute("PRAGMA busy_timeout = 10000")
        self._database.close()
        self._database = None
        with open(live, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").digest()
            size = os.fstat(file.fileno()).st_size
        seal = Seal(self.ledger, self._number, self._first, self.seq, self.digest, whole, size).sign(self._key)
        now = time.time_ns()
        content = record.encode(
            self.seq + 1, now, os.geteuid(), os.getpid(), 0, 0, "segment", record.canonical(seal.body())
        )
        digest = record.digest(self.digest, content)
        head = Head(self.ledger, self.seq + 1, now, digest, self.key).sign(self._key).line()
        database.create(following, [(self.seq + 1, content, digest)], head)
        folder.sync(self.folder)
        os.rename(live, f"{self.folder}/{folder.segment(self._number)}")
        _finish_rotation(self.folder)
        self._open()

    def close(self) -> None:
        """Let go of it: what is in the -wal goes to the database."""
        if self._database is not None:
            self._database.close()
            self._database = None
        for fd in (self._head_fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._head_fd = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ASK = "nothing is written to it (osmoda-ledger verify says more)"


def _words(error: OSError | sqlite3.Error | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)


def _lock(directory: str) -> int:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LedgerError(f"the ledger in {directory} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LedgerBusy(f"{BUSY} in {directory}") from None
    return fd


def _finish_rotation(directory: str) -> None:
    """Go on where a service that was sealing a segment has been killed."""
    live, following = f"{directory}/{folder.LIVE}", f"{directory}/{folder.NEXT}"
    if not os.path.lexists(following):
        return
    if os.path.lexists(live):
        # Before the old file was moved: nobody has been told of what is in the new one.
        for suffix in ("", "-wal", "-shm", "-journal"):
            try:
                os.unlink(following + suffix)
            except FileNotFoundError:
                continue
        return
    os.rename(following, live)
    newest = max(os.listdir(f"{directory}/{folder.SEGMENTS}"))
    os.chmod(f"{directory}/{folder.SEGMENTS}/{newest}", 0o400)
    folder.sync(f"{directory}/{folder.SEGMENTS}")
    folder.sync(directory)


def _seal_of(ledger: bytes, body: dict[str, object]) -> Seal:
    """What the first event of a segment says of the one before."""
    try:
        number, first, last, size = (int(str(body[name])) for name in ("segment", "first", "last", "size"))
        digest, file = (bytes.fromhex(str(body[name])) for name in ("digest", "file"))
    except (KeyError, ValueError):
        raise LedgerError(f"the first event of {folder.LIVE} says nothing of the segment before; {_ASK}") from None
    return Seal(ledger, number, first, last, digest, file, size)
