"""One file of a ledger: an SQLite database of events, the one that is written to or a sealed segment."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APPLICATION = 0x6F734C31  # "osL1": what file(1) and PRAGMA application_id say
SCHEMA = (
    ("table", "event", "CREATE TABLE event(seq INTEGER PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL)"),
    ("table", "head", "CREATE TABLE head(only INTEGER PRIMARY KEY CHECK(only = 1), line TEXT NOT NULL)"),
)
PAGE = 4096
_WAL_PAGES = 4000
_BUSY = 10.0  # seconds, for a reader that is about to look

type Row = tuple[int, bytes, bytes]
"""Number, record, digest."""


DAMAGED = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file may raise: SQLite quotes it in its messages, and they are no text then."""


def create(path: str, rows: Sequence[Row], head: str) -> None:
    """A new file with its first events, on the disk when this returns. Raises OSError, sqlite3.Error."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for _, _, statement in SCHEMA:
            connection.execute(statement)
        connection.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
        connection.execute("INSERT INTO head VALUES (1, ?)", (head,))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def open_to_write(path: str) -> sqlite3.Connection:
    """The file that is written to: each transaction is on the disk when it is committed (WAL, synchronous=FULL)."""
    connection = sqlite3.connect(f"{_uri(path)}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY)
    _distrust(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * PAGE}")
    return connection


def open_to_read(path: str, *, sealed: bool = False) -> sqlite3.Connection:
    """The same for whoever only looks. Nothing is made beside a file that nobody writes to, not even a -shm."""
    still = sealed or not os.path.exists(f"{path}-wal")
    how = "immutable=1" if still else "mode=ro"
    try:
        connection = sqlite3.connect(f"{_uri(path)}?{how}", uri=True, isolation_level=None, timeout=_BUSY)
    except DAMAGED as error:
        raise LedgerError(f"{path} cannot be opened: {error}") from None
    _distrust(connection)
    return connection


def _uri(path: str) -> str:
    return f"file:{quote(os.fsencode(path))}"


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _distrust(connection: sqlite3.Connection) -> None:
    """A schema may call no function that could do harm; damage is noticed where it is read, and no text breaks that."""
    connection.text_factory = _text
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def last(connection: sqlite3.Connection) -> Row:
    """The last event. Raises LedgerError where there is none."""
    for row in connection.execute("SELECT seq, record, digest FROM event ORDER BY seq DESC LIMIT 1"):
        return _checked(row)
    raise LedgerError("the ledger has no events: even its first one is gone")


def first(connection: sqlite3.Connection) -> Row:
    """The first event of this file. Raises LedgerError where there is none."""
    for row in connection.execute("SELECT seq, record, digest FROM event ORDER BY seq LIMIT 1"):
        return _checked(row)
    raise LedgerError("a file of the ledger has no events")


def head_line(connection: sqlite3.Connection) -> str:
    """The signed head as the file has it. Raises LedgerError where it has none, or several."""
    lines = connection.execute("SELECT line FROM head").fetchall()
    if len(lines) != 1 or type(lines[0][0]) is not str:
        raise LedgerError("the ledger's database has no signed head")
    line: str = lines[0][0]
    return line


def rows(connection: sqlite3.Connection, since: int = 0, until: int = 1 << 62) -> Iterator[Row]:
    """Events `since` to `until`, both included, in order. Raises sqlite3.Error."""
    query = "SELECT seq, record, digest FROM event WHERE seq BETWEEN ? AND ? ORDER BY seq"
    cursor = connection.execute(query, (since, until))
    cursor.arraysize = 1000
    while some := cursor.fetchmany():
        yield from some


def _checked(row: tuple[object, object, object]) -> Row:
    seq, record, digest = row
    if type(seq) is not int or type(record) is not bytes or type(digest) is not bytes:
        raise LedgerError(f"event {seq} is not of bytes")
    return seq, record, digest
