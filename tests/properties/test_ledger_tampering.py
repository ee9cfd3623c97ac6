"""Whatever is done to a byte or a row of a ledger: `verify` finds it, or nothing that can be read back has changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from osmoda.ledger import database, record, verification
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.writer import Writer
from tests.ledgers import entry, exported, fill, make

EXAMPLES = int(os.environ.get("OSMODA_TEST_EXAMPLES", "150"))
EVENTS = 90
EACH = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sealed segments and a file that is written to, whose service has ended in order."""
    directory = make(tmp_path_factory.mktemp("closed") / "ledger")
    fill(directory, EVENTS, segment_bytes=5 * database.PAGE)
    assert len(os.listdir(directory / "segments")) >= 2
    return directory


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, closed: Path) -> Path:
    """The same, with events in a -wal: as it is when the service was killed."""
    top = tmp_path_factory.mktemp("killed")
    shutil.copytree(closed, top / "written")
    with Writer(str(top / "written")) as writer:
        for number in range(6):
            writer.append([entry(1000 + number)])
        shutil.copytree(top / "written", top / "ledger")
    assert (top / "ledger" / "live.db-wal").stat().st_size > 0
    return top / "ledger"


def judged(original: Path, changed: Path) -> str:
    """What `verify` finds; empty only where all that can be read back is as it was."""
    try:
        found = verification.verify(str(changed), processes=1).findings
    except LedgerError as error:
        return str(error)
    if not found:
        assert exported(changed) == exported(original), "it was changed, and verifies"
    return "\n".join(one.sentence() for one in found)


def copied(original: Path, top: Path) -> Path:
    changed = top / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(original, changed)
    return changed


@pytest.mark.parametrize("which", ["closed", "killed"])
def test_as_it_was_written_it_verifies(which, request, tmp_path):
    original = request.getfixturevalue(which)
    assert judged(original, copied(original, tmp_path)) == ""
    assert len(exported(original)) >= EVENTS


# Bytes


@st.composite
def byte_changes(draw: st.DrawFn) -> tuple[int, str, float, int, bytes]:
    """Which file, what is done to it, where (0 to 1), to which bit, with which bytes."""
    what = draw(st.sampled_from(["flip", "set", "drop", "swap", "append", "insert", "cut", "zero"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    return draw(st.integers(0, 99)), what, where, draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=40))


def change_bytes(path: Path, what: str, where: float, bit: int, more: bytes) -> None:
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    other = int((1 - where) * (len(content) - 1)) if content else 0
    if what == "append":
        content += more
    elif what == "insert":
        content[place:place] = more
    elif content:
        if what == "flip":
            content[place] ^= 1 << bit
        elif what == "set":
            content[place] = more[0]
        elif what == "drop":
            del content[place]
        elif what == "swap":
            content[place], content[other] = content[other], content[place]
        elif what == "cut":
            del content[place:]
        else:
            content[place : place + len(more)] = bytes(len(content[place : place + len(more)]))
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["closed", "killed"])
@EACH
@given(change=byte_changes())
@example(change=(5, "set", 0.1953125, 0, b"\x80"))  # the text of the schema is UTF-8 no more
def test_a_changed_byte_of_any_file(which, request, tmp_path, change):
    original = request.getfixturevalue(which)
    changed = copied(original, tmp_path)
    number, *how = change
    files = sorted(path for path in changed.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    change_bytes(files[number % len(files)], *how)
    judged(original, changed)


@EACH
@given(
    name=st.sampled_from(["head", "manifest", "key", "segments/000001.db"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_of_what_is_signed_or_sealed_is_always_found(closed, tmp_path, name, where, bit):
    changed = copied(closed, tmp_path)
    change_bytes(changed / name, "flip", where, bit, b"")
    assert judged(closed, changed) != ""


@pytest.mark.parametrize("name", ["head", "manifest", "live.db", "segments/000001.db", "segments/000002.db"])
def test_a_file_that_is_gone_is_found(closed, tmp_path, name):
    changed = copied(closed, tmp_path)
    (changed / name).unlink()
    assert judged(closed, changed) != ""


@pytest.mark.parametrize("name", ["other", "segments/000009.db", "live.db-journal", "segments/000001.db-wal"])
def test_a_file_that_was_added_is_found(closed, tmp_path, name):
    changed = copied(closed, tmp_path)
    (changed / name).write_bytes(b"x")
    assert judged(closed, changed) != ""


def test_segments_that_were_swapped_are_found(closed, tmp_path):
    changed = copied(closed, tmp_path)
    one, two = changed / "segments" / "000001.db", changed / "segments" / "000002.db"
    one.rename(changed / "third")
    two.rename(one)
    (changed / "third").rename(two)
    assert judged(closed, changed) != ""


# Rows, by somebody who knows SQL and the format, and has not the key


def rows_of(connection: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
    return connection.execute("SELECT seq, record, digest FROM event ORDER BY seq").fetchall()


def chained_anew(connection: sqlite3.Connection) -> None:
    """Compute each digest again: the forger knows how."""
    found = rows_of(connection)
    digest = found[0][2]
    for seq, content, _ in found[1:]:
        digest = record.digest(digest, content)
        connection.execute("UPDATE event SET digest = ? WHERE seq = ?", (digest, seq))


def drop(connection, one, two):
    connection.execute("DELETE FROM event WHERE seq = ?", (one,))


def drop_and_close_the_gap(connection, one, two):
    connection.execute("DELETE FROM event WHERE seq = ?", (one,))
    connection.execute("UPDATE event SET seq = -seq WHERE seq > ?", (one,))
    connection.execute("UPDATE event SET seq = -seq - 1 WHERE seq < 0")
    chained_anew(connection)


def cut_the_tail(connection, one, two):
    connection.execute("DELETE FROM event WHERE seq >= ?", (max(one, two),))


def swap(connection, one, two):
    content = {seq: (record, digest) for seq, record, digest in rows_of(connection)}
    for seq, other in ((one, two), (two, one)):
        connection.execute("UPDATE event SET record = ?, digest = ? WHERE seq = ?", (*content[other], seq))


def swap_and_chain(connection, one, two):
    swap(connection, one, two)
    chained_anew(connection)


def change(connection, one, two):
    connection.execute("UPDATE event SET record = replace(record, 'research', 'resfarch') WHERE seq = ?", (one,))


def rewrite_and_chain(connection, one, two):
    (content,) = connection.execute("SELECT record FROM event WHERE seq = ?", (one,)).fetchone()
    event = record.decode(content)
    body = record.canonical(event.body | {"agent": "nobody"})
    forged = record.encode(event.seq, event.time, event.uid, event.pid, event.client, event.counter, event.kind, body)
    connection.execute("UPDATE event SET record = ? WHERE seq = ?", (forged, one))
    chained_anew(connection)


def change_digest(connection, one, two):
    connection.execute("UPDATE event SET digest = zeroblob(32) WHERE seq = ?", (one,))


def duplicate(connection, one, two):
    (last,) = connection.execute("SELECT max(seq) FROM event").fetchone()
    connection.execute("INSERT INTO event SELECT ?, record, digest FROM event WHERE seq = ?", (last + 1, one))


def append_chained(connection, one, two):
    last, _, digest = rows_of(connection)[-1]
    content = record.encode(last + 1, 1, 0, 1, 7, 9999, "launch", record.canonical({"forged": True}))
    connection.execute("INSERT INTO event VALUES (?, ?, ?)", (last + 1, content, record.digest(digest, content)))


def negative(connection, one, two):
    connection.execute("INSERT INTO event SELECT -seq, record, digest FROM event WHERE seq = ?", (one,))


def zeroth(connection, one, two):
    connection.execute("INSERT INTO event SELECT 0, record, digest FROM event WHERE seq = ?", (one,))


def as_text(connection, one, two):
    connection.execute("UPDATE event SET record = CAST(record AS TEXT) WHERE seq = ?", (one,))


def as_null_digest(connection, one, two):
    connection.execute("UPDATE event SET digest = '' WHERE seq = ?", (one,))


def no_head(connection, one, two):
    connection.execute("DELETE FROM head")


def another_head(connection, one, two):
    connection.execute("UPDATE head SET line = replace(line, '1', '2')")


def trigger(connection, one, two):
    connection.execute("CREATE TRIGGER hidden AFTER INSERT ON event BEGIN DELETE FROM event WHERE seq = new.seq; END")


def view(connection, one, two):
    connection.execute("CREATE VIEW events AS SELECT * FROM event")


def another_table(connection, one, two):
    connection.execute("CREATE TABLE more(seq INTEGER PRIMARY KEY, record BLOB)")


def index(connection, one, two):
    connection.execute("CREATE INDEX by_record ON event(record)")


def generated_column(connection, one, two):
    connection.execute("ALTER TABLE event ADD COLUMN extra AS (seq + 1)")


def renamed_and_viewed(connection, one, two):
    connection.execute("ALTER TABLE event RENAME TO real")
    connection.execute(f"CREATE VIEW event AS SELECT seq, record, digest FROM real WHERE seq <> {one}")


def free_pages(connection, one, two):
    connection.execute("CREATE TABLE scratch(content BLOB)")
    connection.execute("INSERT INTO scratch VALUES (zeroblob(20000))")
    connection.execute("DROP TABLE scratch")


def other_number(connection, one, two):
    connection.execute("PRAGMA user_version = 7")


FORGERIES: list[Callable[[sqlite3.Connection, int, int], None]] = [
    drop, drop_and_close_the_gap, cut_the_tail, swap, swap_and_chain, change, rewrite_and_chain,
    change_digest, duplicate, append_chained, negative, zeroth, as_text, as_null_digest, no_head,
    another_head, trigger, view, another_table, index, generated_column, renamed_and_viewed, free_pages,
    other_number,
]  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
@pytest.mark.parametrize("name", ["live.db", "segments/000001.db"])
@settings(parent=EACH, max_examples=max(EXAMPLES // 50, 2))
@given(places=st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
def test_a_forged_row_is_always_found(closed, tmp_path, forgery, name, places):
    changed = copied(closed, tmp_path)
    path = changed / name
    path.chmod(0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        numbers = [seq for seq, _, _ in rows_of(connection)]
        one = numbers[places[0] % len(numbers)]
        two = numbers[places[1] % len(numbers)]
        two = two if two != one else numbers[numbers.index(one) - 1]
        forgery(connection, one, two)
    finally:
        connection.close()
    assert judged(closed, changed) != ""


# The whole of it


def test_a_tail_that_was_cut_with_the_head_in_the_database_is_found(closed, tmp_path):
    """An older state of the database, head and all, beside the newer head file."""
    older = copied(closed, tmp_path)
    with Writer(str(closed)) as writer:
        writer.append([entry(5000)])
    for name in os.listdir(closed):
        if not name.startswith(("live", "segments")):
            shutil.copy(closed / name, older / name)
    assert "are gone" in judged(closed, older)


def test_all_of_it_put_back_to_an_older_state_is_found_with_a_checkpoint(closed, tmp_path):
    older = copied(closed, tmp_path)
    with Writer(str(closed)) as writer:
        writer.append([entry(6000)])
    head = verification.verify(str(closed)).head
    assert head is not None
    assert verification.verify(str(older)).findings == [], "which nothing in it can tell"
    (found,) = verification.verify(str(older), [head]).findings
    assert "are gone" in found.text


def test_a_fork_is_found_with_a_checkpoint(closed, tmp_path):
    """Two copies that go on with the same key: each verifies, and neither verifies with the other's head."""
    other = copied(closed, tmp_path)
    for directory, number in ((closed, 7000), (other, 8000)):
        with Writer(str(directory)) as writer:
            writer.append([entry(number)])
    head = verification.verify(str(other)).head
    assert head is not None
    assert verification.verify(str(other), [head]).findings == []
    (found,) = verification.verify(str(closed), [head]).findings
    assert "fork" in found.text
    assert found.seq == head.seq


def test_a_ledger_made_anew_is_found_with_a_checkpoint(closed, tmp_path):
    anew = make(tmp_path / "anew")
    fill(anew, EVENTS)
    head = verification.verify(str(closed)).head
    assert head is not None
    assert verification.verify(str(anew)).findings == [], "which nothing in it can tell"
    assert "another ledger" in verification.verify(str(anew), [head]).findings[0].text
