"""The ledger's files: made, written, sealed, taken over where a writer was killed, and read in order."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from osmoda.ledger import database, folder, reading, verification, writer
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.head import Head
from osmoda.ledger.writer import Writer
from tests.ledgers import entry, exported, fill, make

SMALL = 5 * database.PAGE


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return make(tmp_path / "ledger")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that could not be sealed is tried again a page later."""
    monkeypatch.setattr(writer, "_RETRY_BYTES", database.PAGE)


def findings(directory: Path) -> list[str]:
    return [one.sentence() for one in verification.verify(str(directory)).findings]


def test_a_new_ledger_verifies(ledger):
    report = verification.verify(str(ledger))
    assert (report.findings, report.notes, report.events) == ([], [], 1)
    assert report.head is not None
    assert report.head.ledger.hex() == report.ledger
    (first,) = exported(ledger)
    assert (first.seq, first.kind) == (1, "ledger")
    assert (ledger / "key").stat().st_mode & 0o777 == 0o600


def test_two_ledgers_are_never_the_same(ledger, tmp_path):
    assert verification.verify(str(ledger)).ledger != verification.verify(str(make(tmp_path / "other"))).ledger


def test_events_are_numbered_in_the_order_in_which_they_come(ledger):
    with Writer(str(ledger)) as one:
        assert one.append([entry(1), entry(2)]) == 2
        assert one.append([entry(3)]) == 4
    found = exported(ledger)
    assert [event.seq for event in found] == [1, 2, 3, 4]
    assert [event.body.get("n") for event in found] == [None, 1, 2, 3]
    assert (found[1].uid, found[1].pid) == (1000, 4321)
    assert findings(ledger) == []


def test_only_one_writes_at_a_time(ledger):
    with Writer(str(ledger)), pytest.raises(LedgerError, match="another service writes"):
        Writer(str(ledger))
    with Writer(str(ledger)) as one:
        assert one.append([entry(1)]) == 2


def test_segments_are_sealed_and_go_on(ledger):
    fill(ledger, 120, segment_bytes=SMALL)
    sealed = sorted((ledger / "segments").iterdir())
    assert len(sealed) >= 3
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in sealed)
    report = verification.verify(str(ledger))
    assert (report.findings, report.notes) == ([], [])
    assert report.segments == len(sealed)
    found = exported(ledger)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert [event.body["n"] for event in found if event.kind == "launch"] == list(range(120))
    assert len([event for event in found if event.kind == "segment"]) == len(sealed)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 90), (60, 61), (119, 500), (500, 600)])
def test_a_range_is_read_from_the_files_that_hold_it(ledger, first, last):
    fill(ledger, 120, segment_bytes=SMALL)
    everything = exported(ledger)
    assert list(reading.events(str(ledger), first, last)) == [one for one in everything if first <= one.seq <= last]


def test_a_reader_only_puts_off_the_sealing(ledger, impatient):
    with Writer(str(ledger), segment_bytes=SMALL) as one:
        one.append([entry(number) for number in range(60)])
        connection = database.open_to_read(str(ledger / "live.db"))
        connection.execute("BEGIN")
        assert connection.execute("SELECT count(*) FROM event").fetchone() == (61,)
        assert not one.rotate()
        assert one.append([entry(100)]) == 62, "it goes on in the file it had"
        connection.close()
        one.append([entry(number) for number in range(200, 240)])
        assert one.rotate()
    assert findings(ledger) == []


def test_what_was_not_written_to_the_end_is_written_the_next_time(ledger, monkeypatch):
    """A writer that is killed between two steps of sealing a segment."""
    real = os.rename

    class Killed(BaseException):
        pass

    for step in range(3):
        directory = Path(shutil.copytree(ledger, ledger.parent / f"killed-{step}"))
        calls = []

        def rename(old, new, step=step, calls=calls):
            if len(calls) == step:
                raise Killed
            calls.append(new)
            real(old, new)

        one = Writer(str(directory), segment_bytes=SMALL)
        one.append([entry(number) for number in range(60)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            if step < 2:
                with pytest.raises(Killed):
                    one.rotate()
            else:
                patch.setattr(folder, "replace", lambda *_: (_ for _ in ()).throw(Killed()))
                with pytest.raises(Killed):
                    one.rotate()
        one.close()
        assert findings(directory) == [], f"as it was left by step {step}"
        assert len(exported(directory)) >= 61
        with Writer(str(directory), segment_bytes=SMALL) as another:
            another.append([entry(1000)])
            another.rotate()
        report = verification.verify(str(directory))
        assert (report.findings, report.notes, report.segments) == ([], [], 1)
        assert [event.body.get("n") for event in exported(directory) if event.kind == "launch"] == [*range(60), 1000]


def test_a_group_is_written_as_a_whole_or_not_at_all(ledger):
    with Writer(str(ledger)) as one:
        one.append([entry(1)])
        other = sqlite3.connect(ledger / "live.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        one._database.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(LedgerError, match="cannot be written"):
            one.append([entry(2), entry(3)])
        other.execute("ROLLBACK")
        other.close()
        assert one.append([entry(4)]) == 3
    assert [event.body.get("n") for event in exported(ledger)] == [None, 1, 4]
    assert findings(ledger) == []


def cut(ledger):
    connection = sqlite3.connect(ledger / "live.db", isolation_level=None)
    connection.execute("DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)")
    connection.close()


def older_database(ledger):
    shutil.copy(ledger.parent / "older", ledger / "live.db")


def other_key(ledger):
    (ledger / "key").write_bytes(b"x" * 32)


def open_key(ledger):
    (ledger / "key").chmod(0o644)


def no_head(ledger):
    (ledger / "head").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "signed head"),
        (older_database, "they are gone"),
        (other_key, "key"),
        (open_key, "alone"),
        (no_head, "head"),
    ],
)
def test_nothing_is_written_to_a_ledger_that_was_damaged(ledger, damage, reason):
    shutil.copy(ledger / "live.db", ledger.parent / "older")
    fill(ledger, 5)
    Writer(str(ledger)).close()
    damage(ledger)
    with pytest.raises(LedgerError, match=reason):
        Writer(str(ledger))


def test_the_head_file_is_whole_at_each_moment(ledger):
    """A host that loses its power has what lay there before, or what came: never a part of a longer one."""
    with Writer(str(ledger)) as one, open(ledger / "head", "rb") as before:
        for number in range(7):
            one.append([entry(number)])
        assert before.read() == (ledger / "head").read_bytes(), "of the same length it stays in its place"
        one.append([entry(8)])
        before.seek(0)
        (ledger / "head.new").write_text("half of")  # of one that was killed here
        one.append([entry(9)])
        assert Head.read(before.read().decode(), "the old file").seq == 9
        assert Head.read((ledger / "head").read_text(), "the new file").seq == 10
        assert sorted(os.listdir(ledger)) == [
            "head",
            "key",
            "live.db",
            "live.db-shm",
            "live.db-wal",
            "manifest",
            "segments",
        ]
        assert one.append([entry(10)]) == 11
    assert (ledger / "head").stat().st_mode & 0o777 == 0o600
    (ledger / "head.new").write_text("half of")
    assert findings(ledger) == []
    Writer(str(ledger)).close()


def test_a_head_file_that_cannot_be_replaced_is_behind_and_not_ahead(ledger):
    (ledger / "head.new").mkdir()
    with Writer(str(ledger)) as one:
        assert one.append([entry(number) for number in range(20)]) == 2
    (ledger / "head.new").rmdir()
    report = verification.verify(str(ledger))
    assert (report.findings, report.notes) == ([], ["head is 20 events behind: the service was killed, or writes now"])
    Writer(str(ledger)).close()
    assert verification.verify(str(ledger)).notes == []


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_torn_head_file_is_named_and_made_anew_from_the_database(ledger, size):
    fill(ledger, 5)
    whole = (ledger / "head").read_bytes()
    (ledger / "head").write_bytes(whole[:size])
    assert findings(ledger) == ["head: it is no signed head of a ledger"]
    with pytest.raises(LedgerError, match="head is no signed head of a ledger"):
        Writer(str(ledger))
    connection = database.open_to_read(str(ledger / "live.db"))
    (ledger / "head").write_text(database.head_line(connection))  # as `osmoda-ledger checkpoint` prints it
    connection.close()
    Writer(str(ledger)).close()
    assert (ledger / "head").read_bytes() == whole
    assert findings(ledger) == []


def test_a_ledger_that_is_put_in_the_place_of_another_is_not_written_to(ledger, tmp_path):
    with Writer(str(ledger)) as one:
        one.append([entry(1)])
        shutil.move(ledger, tmp_path / "moved")
        make(ledger)
        with pytest.raises(LedgerError, match="another one by now"):
            one.append([entry(2)])


def test_a_clock_that_is_set_back_is_noted_and_nothing_else(ledger, monkeypatch):
    with Writer(str(ledger)) as one:
        one.append([entry(1)])
        monkeypatch.setattr(writer.time, "time_ns", lambda: 1_000_000_000)
        one.append([entry(2)])
    report = verification.verify(str(ledger))
    assert report.findings == []
    assert "the clock was set back" in report.notes[0]
    assert "before event 3" in report.notes[0]


def test_events_are_followed_across_segments_as_they_come(ledger):
    fill(ledger, 3)
    seen: list[int] = []

    def follow():
        for event in reading.follow(str(ledger), 1):
            seen.append(event.seq)
            if event.body.get("n") == 79:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    with Writer(str(ledger), segment_bytes=SMALL) as one:
        for number in range(20, 80):
            one.append([entry(number)])
            one.rotate()
    thread.join(30)
    assert not thread.is_alive()
    assert seen == list(range(1, len(seen) + 1))


def test_verifying_in_several_processes_finds_the_same(ledger, monkeypatch):
    from osmoda.ledger import ranges

    fill(ledger, 900, segment_bytes=20 * database.PAGE, at_once=100)
    monkeypatch.setattr(ranges, "_PIECE", 50)
    monkeypatch.setattr(ranges, "_ALONE", 0)
    told = []
    report = verification.verify(str(ledger), processes=2, progress=lambda done, total: told.append((done, total)))
    assert (report.findings, report.events) == ([], len(exported(ledger)))
    assert max(told) == (report.events, report.events)
    connection = sqlite3.connect(ledger / "live.db", isolation_level=None)
    connection.execute("UPDATE event SET record = replace(record, 'research', 'resfarch')")
    connection.close()
    several = verification.verify(str(ledger), processes=2).findings
    assert several == verification.verify(str(ledger), processes=1).findings
    assert several


def test_a_ledger_is_verified_while_it_is_written(ledger, impatient):
    stop = threading.Event()

    def write():
        with Writer(str(ledger), segment_bytes=SMALL) as one:
            number = 0
            while not stop.is_set():
                one.append([entry(number)])
                one.rotate()
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not (ledger / "segments" / "000002.db").exists():
            assert findings(ledger) == []
            assert time.monotonic() < end
    finally:
        stop.set()
        thread.join()
    assert findings(ledger) == []
