"""Ledgers for tests: made, filled, copied, read back, and their service ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osmoda.host import paths
from osmoda.ledger import folder, reading, record, verification
from osmoda.ledger.client import SOCKET
from osmoda.ledger.writer import Entry, Writer
from osmoda.sandbox import ledger_words
from tests.worlds import World

BODY = {"agent": "research", "argv": ["python3", "-c", "print(1)"], "identity": "1a2b-1", "tier": 1}


def entry(counter: int, kind: str = "launch", **fields: object) -> Entry:
    """An event of one client, ready to be written."""
    return Entry(1000, 4321, 7, counter, kind, record.canonical({**BODY, "n": counter, **fields}))


def make(directory: Path) -> Path:
    """A new ledger in a folder that is not there yet."""
    directory.mkdir(mode=0o700)
    folder.fill(str(directory))
    return directory


def fill(directory: Path, events: int, *, segment_bytes: int = 1 << 30, at_once: int = 5) -> None:
    """Write `events` of them, a few in each commit."""
    with Writer(str(directory), segment_bytes=segment_bytes) as writer:
        for start in range(0, events, at_once):
            writer.append([entry(number) for number in range(start, min(start + at_once, events))])
            writer.rotate()


def exported(directory: Path) -> list[record.Event]:
    """All that `export` would print."""
    return list(reading.events(str(directory)))


# The ledger of a world


def runtime_of(world: World) -> Path:
    """Where the service of a world's ledger listens."""
    if world.is_root:
        return Path(world.environment["OSMODA_RUNTIME_DIR"], "ledger")
    return Path(world.environment["XDG_RUNTIME_DIR"], "osmoda", "ledger")


def directory_of(world: World) -> Path:
    """Where a world's ledger is."""
    if world.is_root:
        return Path(world.environment["OSMODA_STATE_DIR"], "ledger")
    return Path(world.environment["XDG_STATE_HOME"], "osmoda", "ledger")


def service_of(runtime: Path) -> int:
    """The pid of the service that listens there; 0 when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(f"{runtime}/{SOCKET}")
        except OSError:
            return 0
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def end_service(runtime: Path, number: int = signal.SIGTERM) -> bool:
    """End the service that listens there, and wait until it is gone; whether there was one."""
    pid = service_of(runtime)
    if not pid:
        return False
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        assert ended.poll(30_000), "the ledger's service does not end"
    finally:
        os.close(fd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # an orphan, which came to this process
    for name in (SOCKET, "starting"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(runtime / name)
    return True


def events_of(world: World) -> list[dict[str, Any]]:
    """What is on the ledger of this world, as `export` has it; it must verify."""
    directory = str(directory_of(world))
    report = verification.verify(directory, processes=1)
    assert report.findings == []
    return [ledger_words.as_json(event) for event in reading.events(directory)]


def init(world: World) -> None:
    """Make its user's ledger."""
    world.run(World.osmoda_argv("init", command="osmoda-ledger"), check=True)


@pytest.fixture
def recorded(to_be_recorded: World) -> World:
    """A world whose user has made a ledger."""
    init(to_be_recorded)
    return to_be_recorded


@pytest.fixture
def to_be_recorded(world: World) -> Iterator[World]:
    """A world whose user makes a ledger in the course of a test."""
    yield world
    end_service(runtime_of(world))
    for name in (SOCKET, "starting"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(runtime_of(world) / name)


# The ledger of the test's own process


@pytest.fixture
def places(no_leftovers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The state and runtime directories of this process, as `host/paths` has them; the service's is ended."""
    state, runtime = tmp_path / "state", no_leftovers / "runtime"

    def named(kind: str) -> str:
        return str({"state": state, "runtime": runtime}[kind])

    monkeypatch.setattr(paths, "directory", named)
    yield state / "ledger", runtime / "ledger"
    end_service(runtime / "ledger")
    for left in (runtime / "ledger").glob("*") if runtime.exists() else ():
        left.unlink()
