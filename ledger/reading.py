"""What is on a ledger, in order: from its sealed segments, then from the file that is written to."""

from __future__ import annotations

import contextlib
import os
import select
import sqlite3
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.ledger import database, folder, record
from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.ledger.record import Event

_TRIES = 5


def events(directory: str, since: int = 1, until: int = 1 << 62) -> Iterator[Event]:
    """Events `since` to `until`, both included, as far as there are any now. Raises LedgerError.

    Whether they are what was once written, `verification` tells.
    """
    for seq, content, _ in rows(directory, since, until):
        try:
            yield record.decode(content)
        except LedgerError as error:
            raise LedgerError(f"event {seq} cannot be read: {error} (osmoda-ledger verify says more)") from None


def follow(directory: str, since: int) -> Iterator[Event]:
    """Events from `since` on, and those to come, as they are written; ends only when it is no longer wanted.

    Waits for the file of the signed head to change, which it does at every commit (inotify(7)). Raises LedgerError.
    """
    watch = syscalls.inotify_init1()
    try:
        # Before the first look, so that nothing is missed in between. The folder: a sealed segment changes names in it.
        syscalls.inotify_add_watch(watch, os.fsencode(directory), syscalls.IN_MODIFY | syscalls.IN_MOVED_TO)
        look = select.poll()
        look.register(watch, select.POLLIN)
        while True:
            for event in events(directory, since):
                since = event.seq + 1
                yield event
            look.poll()
            with contextlib.suppress(BlockingIOError):
                while os.read(watch, 1 << 16):
                    continue
    except OSError as error:
        raise LedgerError(f"the ledger in {directory} cannot be followed: {error.strerror}") from None
    finally:
        os.close(watch)


def rows(directory: str, since: int = 1, until: int = 1 << 62) -> Iterator[database.Row]:
    """The same as it is stored. Raises LedgerError."""
    following = since
    while following <= until:
        found = _files_from(directory, following)
        if not found:
            return
        for path, sealed in found:
            try:
                connection = database.open_to_read(path, sealed=sealed)
                try:
                    for row in database.rows(connection, following, until):
                        following = row[0] + 1
                        yield row
                finally:
                    connection.close()
            except sqlite3.OperationalError as error:
                if not sealed and not os.path.exists(path):
                    break  # it was sealed at this moment: go on in the segment
                raise LedgerError(f"{path} cannot be read: {error}") from None
            except database.DAMAGED as error:
                raise LedgerError(f"{path} cannot be read: {error}") from None
        else:
            return


def last(directory: str) -> int:
    """The number of the last event. Raises LedgerError."""
    connection = database.open_to_read(_live(directory))
    try:
        return database.last(connection)[0]
    except database.DAMAGED as error:
        raise LedgerError(f"the ledger in {directory} cannot be read: {error}") from None
    finally:
        connection.close()


def segments(directory: str) -> list[str]:
    """The names of the sealed segments, in order. Raises LedgerError."""
    try:
        return sorted(os.listdir(f"{directory}/{folder.SEGMENTS}"))
    except OSError as error:
        raise LedgerError(f"{directory}/{folder.SEGMENTS}: {error.strerror}") from None


def _files_from(directory: str, seq: int) -> list[tuple[str, bool]]:
    """The files that may hold `seq` and what follows, in order, and whether each is sealed."""
    found: list[tuple[str, bool]] = []
    live = _live(directory)
    names = segments(directory)
    if seq < _first(live, sealed=False):
        for name in reversed(names):
            path = f"{directory}/{folder.SEGMENTS}/{name}"
            found.insert(0, (path, True))
            if _first(path, sealed=True) <= seq:
                break
    return [*found, (live, False)]


def _first(path: str, *, sealed: bool) -> int:
    connection = database.open_to_read(path, sealed=sealed)
    try:
        return database.first(connection)[0]
    except database.DAMAGED as error:
        raise LedgerError(f"{path} cannot be read: {error}") from None
    finally:
        connection.close()


def _live(directory: str) -> str:
    """The file that is written to; while a segment is sealed it has another name for a moment."""
    for _ in range(_TRIES):
        for name in (folder.LIVE, folder.NEXT):
            if os.path.exists(f"{directory}/{name}"):
                return f"{directory}/{name}"
    raise LedgerError(f"there is no ledger in {directory}: {folder.LIVE} is missing")
