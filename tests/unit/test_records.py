"""The gateway's log: whole lines, whatever happens."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress import records
from osmoda.egress.records import Log, encode
from tests.worlds import Program


class Clock:
    """A loop's `call_later`, whose time comes when the test says so."""

    class Timer:
        def __init__(self, clock, entry):
            self.clock, self.entry = clock, entry

        def cancel(self):
            if self.entry in self.clock.timers:
                self.clock.timers.remove(self.entry)

    def __init__(self):
        self.timers = []

    def call_later(self, seconds, callback):
        self.timers.append((seconds, callback))
        return Clock.Timer(self, self.timers[-1])

    def pass_time(self):
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()


@pytest.fixture
def log(tmp_path):
    log = Log(str(tmp_path))
    yield log
    log.close()


def lines(folder, name=records.NAME):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# Records as lines


def test_a_record_is_one_line_of_json(log, tmp_path):
    record = {"event": "connection", "port": 443, "duration": 0.25, "late": False, "address": None}
    log.write(record)
    assert lines(tmp_path) == [record]
    assert stat.S_IMODE((tmp_path / records.NAME).stat().st_mode) == 0o600


@given(st.dictionaries(st.text(max_size=20), st.text() | st.integers(-(2**70), 2**70) | st.booleans(), max_size=20))
def test_whatever_is_in_it_comes_back(record):
    line = encode(record)
    assert json.loads(line) == record
    assert line.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in line[:-1].replace(b"\x7f", b" "))


@given(st.lists(st.text(min_size=500), max_size=20), st.text(min_size=301))
def test_hostile_text_is_cut(texts, reason):
    record = {**{f"field{number}": text for number, text in enumerate(texts)}, "reason": reason}
    line = encode(record)
    found = json.loads(line)
    assert len(line) <= 4096
    assert len(found["reason"]) <= 300
    assert found.keys() == record.keys()
    for key, text in found.items():
        assert record[key].startswith(text.removesuffix("…"))


def test_text_that_fits_is_whole():
    assert json.loads(encode({"reason": "x" * 300}))["reason"] == "x" * 300
    assert json.loads(encode({"path": "/" * 1024}))["path"] == "/" * 1024


def test_a_record_with_too_many_members_is_replaced():
    line = encode({"event": "name", **{f"field {number}": "x" * 40 for number in range(500)}})
    assert json.loads(line) == {"event": "name", "reason": "a record of 501 members is too long"}


def test_what_json_cannot_say():
    found = json.loads(encode({"rate": float("nan"), "most": float("inf"), "name": b"\xff.evil", "type": KeyError}))
    assert found == {"rate": None, "most": None, "name": "\\xff.evil", "type": "<class 'KeyError'>"}
    assert json.loads(encode({"added": ("a", "b"), "closed": [1]})) == {"added": ["a", "b"], "closed": [1]}


# Batches


def test_records_wait_for_fifty_milliseconds_at_most(log, tmp_path):
    clock = Clock()
    log.batch(clock.call_later)
    log.write({"n": 1})
    log.write({"n": 2})
    assert [seconds for seconds, _ in clock.timers] == [0.05]
    assert not (tmp_path / records.NAME).exists()
    clock.pass_time()
    assert lines(tmp_path) == [{"n": 1}, {"n": 2}]
    assert clock.timers == []


def test_a_hundred_records_do_not_wait(log, tmp_path):
    clock = Clock()
    log.batch(clock.call_later)
    for number in range(101):
        log.write({"n": number})
    assert len(lines(tmp_path)) == 100
    clock.pass_time()
    assert len(lines(tmp_path)) == 101


def test_the_last_records_are_written_at_close(tmp_path):
    clock = Clock()
    log = Log(str(tmp_path))
    log.batch(clock.call_later)
    log.write({"n": 1})
    log.close()
    assert lines(tmp_path) == [{"n": 1}]
    assert clock.timers == []


def test_watchers_get_each_record_at_once(log):
    seen = []
    log.batch(Clock().call_later)
    log.watchers.add(seen.append)
    log.write({"n": 1})
    assert seen == [{"n": 1}]
    log.watchers.discard(seen.append)
    log.write({"n": 2})
    assert len(seen) == 1


def test_a_descriptor_of_a_folder_stays_the_callers(tmp_path):
    folder = os.open(tmp_path, os.O_PATH)
    log = Log(folder)
    log.write({"n": 1})
    log.close()
    assert lines(tmp_path) == [{"n": 1}]
    os.close(folder)


# What goes wrong


def test_records_that_no_disk_has_room_for_are_counted_and_told(log, tmp_path):
    log.write({"n": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / records.NAME).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        log.write({"n": 1})
        log.write({"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.lost == 2
    log.write({"n": 3})
    log.write({"n": 4})
    assert lines(tmp_path) == [{"n": 0}, {"n": 3, "lost": 2}, {"n": 4}]
    assert log.lost == 2


@pytest.mark.parametrize("room", range(0, 46, 3))
def test_a_disk_that_fills_within_a_batch_leaves_whole_lines(room, log, tmp_path):
    clock = Clock()
    log.batch(clock.call_later)
    for number in range(5):
        log.write({"n": number})  # eight bytes and a newline
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        clock.pass_time()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = min(room // len(b'{"n":0}\n'), 5)
    log.write({"n": 5})
    clock.pass_time()
    told = {"n": 5, "lost": 5 - written} if written < 5 else {"n": 5}
    assert lines(tmp_path) == [*[{"n": number} for number in range(written)], told]
    assert log.lost == 5 - written


def test_a_line_torn_by_the_death_of_another_gateway_is_ended(log, tmp_path):
    (tmp_path / records.NAME).write_text('{"n":')
    log.write({"n": 2})
    assert (tmp_path / records.NAME).read_text() == '{"n":\n{"n":2}\n'


@pytest.mark.parametrize("folder", ["", "/nonexistent/folder"])
def test_without_a_folder_records_are_lost_and_nothing_else(folder):
    log = Log(folder)
    log.write({"n": 1})
    log.write({"n": 2})
    assert log.lost == 2
    with pytest.raises(OSError, match=r"No such file|no folder"):
        log.open()
    log.close()


def test_a_folder_that_comes_back(tmp_path):
    log = Log(str(tmp_path / "later"))
    log.write({"n": 1})
    (tmp_path / "later").mkdir()
    log.write({"n": 2})
    assert lines(tmp_path / "later") == [{"n": 2, "lost": 1}]
    log.close()


def test_a_file_that_was_removed_is_made_anew(log, tmp_path):
    log.write({"n": 1})
    (tmp_path / records.NAME).unlink()
    log.write({"n": 2})
    assert lines(tmp_path) == [{"n": 2}]


def test_a_link_in_its_place_is_not_followed(log, tmp_path):
    (tmp_path / records.NAME).symlink_to(tmp_path / "elsewhere")
    log.write({"n": 1})
    assert log.lost == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_others_could_read_is_closed_to_them(log, tmp_path):
    (tmp_path / records.NAME).touch(mode=0o644)
    log.write({"n": 1})
    assert stat.S_IMODE((tmp_path / records.NAME).stat().st_mode) == 0o600


def test_a_lock_that_another_process_holds_is_not_waited_for(log, tmp_path):
    clock = Clock()
    log.batch(clock.call_later)
    with open(tmp_path / records.NAME, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.write({"n": 1})
        clock.pass_time()
        assert lines(tmp_path) == []
        assert len(clock.timers) == 1
    clock.pass_time()
    assert lines(tmp_path) == [{"n": 1}]


def test_what_waits_for_the_lock_is_bounded(log, tmp_path):
    log.batch(Clock().call_later)
    with open(tmp_path / records.NAME, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for number in range(10_050):
            log.write({"n": number})
        assert log.lost == 50
    log.flush()
    found = lines(tmp_path)
    assert len(found) == 10_000
    assert found[0] == {"n": 0, "lost": 50}


# Full files


def test_full_files_are_moved_aside_and_four_are_kept(tmp_path):
    log = Log(str(tmp_path), most=100)
    for number in range(100):
        log.write({"n": number})
    log.close()
    names = ["connections.jsonl", *[f"connections.jsonl.{number}" for number in (1, 2, 3, 4)]]
    assert sorted(os.listdir(tmp_path)) == names
    found = [record["n"] for name in reversed(names) for record in lines(tmp_path, name)]
    assert found == list(range(found[0], 100))
    assert all((tmp_path / name).stat().st_size <= 110 for name in names)


WRITE = """
import sys
from osmoda.egress.records import Log
log = Log(sys.argv[1], most=40_000)
for number in range(500):
    log.write({"who": sys.argv[2], "n": number, "name": "x" * (number % 50)})
log.close()
print(log.lost)
"""


def test_gateways_that_write_at_once_lose_and_tear_nothing(tmp_path):
    writers = [
        Program([sys.executable, "-c", WRITE, str(tmp_path), who], stdout=subprocess.PIPE, text=True) for who in "abcd"
    ]
    assert [writer.communicate()[0] for writer in writers] == ["0\n"] * 4
    names = sorted(os.listdir(tmp_path), reverse=True)
    assert len(names) > 1  # how many depends on who has written how much at a time
    found = [record for name in names for record in lines(tmp_path, name)]
    for who in "abcd":
        assert [record["n"] for record in found if record["who"] == who] == list(range(500))


def test_the_folder_is_in_the_state_directory():
    folder = records.folder()
    assert folder == os.environ["OSMODA_STATE_DIR"] + "/egress" if os.geteuid() == 0 else folder.endswith("/egress")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_folder_that_others_can_write_to_is_not_used():
    os.chmod(records.folder(), 0o777)
    assert records.folder() == ""
