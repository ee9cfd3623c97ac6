"""The files of a ledger, and how they are first made.

key                  the Ed25519 seed, 32 bytes, which nobody but the owner can read
live.db              the events since the last segment was sealed (SQLite, with a -wal while it is written to)
head                 the signed head after the last commit
segments/000001.db   sealed segments, read-only
manifest             one signed line for each of them
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from osmoda.host import paths
from osmoda.ledger import database, record
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.head import Head

KEY, HEAD, LIVE, NEXT, MANIFEST, SEGMENTS = "key", "head", "live.db", "live.new", "manifest", "segments"
FORMAT = 1


def segment(number: int) -> str:
    """The name of a sealed segment within the folder."""
    return f"{SEGMENTS}/{number:06}.db"


def make() -> str:
    """Make this user's ledger; its folder. Raises LedgerError where there is one, or it cannot be made."""
    try:
        state = paths.own_directory("state")
        folder = paths.ledger()
        if os.path.lexists(folder):
            raise LedgerError(f"there is a ledger already: {folder}")
        # Under another name until it is whole: where the folder is, the ledger is compulsory.
        scratch = f"{state}/ledger.{secrets.token_hex(8)}"
        os.mkdir(scratch, 0o700)
        try:
            fill(scratch)
            os.rename(scratch, folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync(state)
    except (paths.UntrustedDirectory, *database.DAMAGED) as error:
        raise LedgerError(f"the ledger cannot be made: {error}") from None
    except OSError as error:
        raise LedgerError(f"the ledger cannot be made: {error.filename}: {error.strerror}") from None
    return folder


def fill(folder: str) -> None:
    """Put a new ledger's files into an empty folder. Raises OSError, sqlite3.Error."""
    seed = secrets.token_bytes(32)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    now = time.time_ns()
    # Random, so that two ledgers made at one moment with one key still have an id each.
    body = {"format": FORMAT, "host": platform.node(), "key": public.hex(), "random": secrets.token_hex(16)}
    first = record.encode(1, now, os.geteuid(), os.getpid(), 0, 0, "ledger", record.canonical(body))
    identity = record.digest(record.ZERO, first)
    head = Head(identity, 1, now, identity, public).sign(key).line()
    write(f"{folder}/{KEY}", seed, 0o600)
    os.mkdir(f"{folder}/{SEGMENTS}", 0o700)
    database.create(f"{folder}/{LIVE}", [(1, first, identity)], head)
    write(f"{folder}/{HEAD}", head.encode(), 0o600)
    write(f"{folder}/{MANIFEST}", b"", 0o600)
    sync(f"{folder}/{SEGMENTS}")
    sync(folder)


def write(path: str, content: bytes, mode: int) -> None:
    """A new file, on the disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(28, os.strerror(28), path)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: str, content: bytes) -> None:
    """The same in place of what is there, in one step. Raises OSError."""
    scratch = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(scratch)  # of a process that was killed
    write(scratch, content, 0o600)
    os.rename(scratch, path)
    sync(os.path.dirname(path))


def sync(folder: str) -> None:
    """The names in `folder` are on the disk when this returns. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def seed(folder: str) -> Ed25519PrivateKey:
    """The key that signs. Raises LedgerError."""
    path = f"{folder}/{KEY}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            content = os.read(fd, 33)
        finally:
            os.close(fd)
    except OSError as error:
        raise LedgerError(f"the ledger's key cannot be read: {path}: {error.strerror}") from None
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise LedgerError(f"{path} is not this user's alone; nothing is signed with it (chmod 600)")
    if len(content) != 32:
        raise LedgerError(f"{path} is no key of a ledger")
    return Ed25519PrivateKey.from_private_bytes(content)
