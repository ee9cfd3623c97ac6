"""The logs of units: lines, limits, files that are moved aside, a full disk, the journal, and all of it read back."""

from __future__ import annotations

import json
import os
import socket
import struct
import time

import pytest

from osmoda.supervisor.logs import files as log_files
from osmoda.supervisor.logs import journal
from osmoda.supervisor.logs import view as log_view
from osmoda.supervisor.logs.files import LogFile, record
from osmoda.supervisor.logs.lines import LONGEST, Lines, RateLimit
from osmoda.supervisor.logs.writer import OWN, Logs

MANY = 1 << 30

# Lines


def test_lines_however_they_come():
    one, whole = Lines(), b"first\n\nthird \x1b[31m\xff\nlast"
    found = [line for byte in whole for line in one.feed(bytes([byte]), MANY)[0]]
    assert found + one.end() == Lines().feed(whole, MANY)[0] + [b"last"] == whole.split(b"\n")
    assert one.end() == []


def test_a_long_line_becomes_several():
    one = Lines()
    kept, dropped = one.feed(b"a" * (2 * LONGEST + 5) + b"\nb\n", MANY)
    assert ([len(line) for line in kept], dropped) == ([LONGEST, LONGEST, 5, 1], 0)
    # Also one that never ends takes no more memory than that.
    for _ in range(10):
        kept, _ = one.feed(b"c" * LONGEST, MANY)
        assert all(len(line) == LONGEST for line in kept)
    assert len(b"".join(one.end())) <= LONGEST


def test_what_is_beyond_the_limit_is_counted():
    one = Lines()
    assert one.feed(b"a\nb\nc\nd", 2) == ([b"a", b"b"], 1)
    assert one.feed(b"d\ne\nf", 0) == ([], 2)
    assert one.feed(b"f\n", 1) == ([b"ff"], 0)
    for _ in range(5):
        one.feed(b"x" * LONGEST, 0)
    assert len(b"".join(one.end())) <= LONGEST


def test_a_limit_of_lines_in_a_while():
    limit = RateLimit(30.0, 10)
    assert limit.room(100.0) == 10
    limit.take(10, 7)
    assert limit.room(129.9) == 0
    limit.take(0, 5)
    assert limit.reopens() == 130.0
    assert limit.room(130.0) == 10
    assert (limit.confess(), limit.confess()) == (12, 0)
    assert RateLimit(0.0, 10).room(1.0) > 1 << 20
    assert RateLimit(30.0, 0).room(1.0) > 1 << 20


# Files


def texts(folder, unit="a.service", **options):
    return [line["text"] for line in log_view.lines(str(folder), [unit], **options)]


def line(number):
    return record(float(number), "a.service", "stdout", 6, 1, b"line %d" % number)


def test_a_full_file_is_moved_aside_and_old_ones_go(tmp_path):
    file = LogFile(str(tmp_path), "a.service", most=1000)
    for number in range(100):
        assert file.append(line(number))
    file.close()
    names = sorted(os.listdir(tmp_path))
    assert names == ["a.service.jsonl", *[f"a.service.jsonl.{n}" for n in range(1, 5)]]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    found = texts(tmp_path)
    assert found == [f"line {number}" for number in range(100 - len(found), 100)]
    assert len(found) > 40


def test_half_a_line_of_a_killed_daemon_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "a.service.jsonl"
    path.write_bytes(line(1) + line(2)[:20])
    file = LogFile(str(tmp_path), "a.service")
    assert file.append(line(3))
    file.close()
    assert texts(tmp_path) == ["line 1", "line 3"]


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("")
    (tmp_path / "a.service.jsonl").symlink_to(tmp_path / "victim")
    file = LogFile(str(tmp_path), "a.service")
    assert not file.append(line(1))
    assert file.lost == 1
    assert (tmp_path / "victim").read_text() == ""


def full_disk(monkeypatch, room):
    """Writes that stop in the midst when `room` bytes are used up, as on a full disk."""
    real, left = os.write, [room]

    def write(fd, data):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            if not left[0]:
                raise OSError(28, "No space left on device")
            data = data[: left[0]]
            left[0] -= len(data)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    return left


def test_on_a_full_disk_lines_are_dropped_counted_and_said_once(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.set_blocking(read, False)
    with Logs(str(tmp_path), echo=write, to=journal.Journal(str(tmp_path / "none"))) as logs:
        logs.write("a.service", "stdout", 1, [b"before"])
        assert logs.flush()
        left = full_disk(monkeypatch, 50)
        for number in range(20):
            logs.write("a.service", "stdout", 1, [b"lost %d" % number])
        logs.write("b.service", "stdout", 1, [b"lost too"])
        assert logs.flush()
        left[0] = 1 << 20
        logs.write("a.service", "stdout", 1, [b"after"])
        assert logs.flush()
    said = os.read(read, 65536).decode().splitlines()
    os.close(read)
    os.close(write)
    assert texts(tmp_path) == [
        "before",
        "20 lines before this one could not be written: No space left on device",
        "after",
    ]
    assert said == [
        "osmoda-watch: the log of a.service cannot be written, its lines are dropped: No space left on device",
        "osmoda-watch: the log of b.service cannot be written, its lines are dropped: No space left on device",
        "osmoda-watch: the log of a.service is written again; 20 lines of it are lost",
    ]


def test_what_is_printed_is_kept_byte_for_byte(tmp_path):
    nasty = [b"\x1b]0;owned\x07", b"caf\xc3\xa9", b"\xff\xfe not utf-8", b"", b'quote " and \\']
    with Logs(str(tmp_path), to=journal.Journal(str(tmp_path / "none"))) as logs:
        logs.write("a.service", "stderr", 7, nasty)
    found = log_view.lines(str(tmp_path), ["a.service"])
    assert [entry["text"].encode(errors="surrogateescape") for entry in found] == nasty
    assert {(entry["unit"], entry["stream"], entry["pid"]) for entry in found} == {("a.service", "stderr", 7)}
    assert "café" in (tmp_path / "a.service.jsonl").read_text()  # for grep


def test_a_disk_that_does_not_answer_stops_nobody(tmp_path, monkeypatch):
    """The writer stands still; whoever gives it lines goes on, and only so much is kept for later."""
    import threading

    gate = threading.Event()
    real = LogFile.append
    monkeypatch.setattr(LogFile, "append", lambda self, data: gate.wait(30) and real(self, data))
    read, write = os.pipe()
    with Logs(str(tmp_path), echo=write, to=journal.Journal(str(tmp_path / "none"))) as logs:
        for _ in range(40):
            logs.write("a.service", "stdout", 1, [b"x" * 1024] * 1024)
        assert not logs.flush(0.01)
        gate.set()
        assert logs.flush(30)
    said = os.read(read, 4096).decode()
    os.close(read)
    os.close(write)
    assert "lines of logs were dropped: the disk did not take them in time" in said
    assert 1024 <= len(texts(tmp_path)) <= 17 * 1024


# The journal


def fields(datagram):
    """The protocol read back, by its description."""
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
            datagram = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            value, datagram = rest[8 : 8 + size], rest[9 + size :]
        found[name.decode()] = value
    return found


def test_the_journal_gets_every_line_where_there_is_one(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(30)
        with Logs(str(tmp_path), to=journal.Journal(path)) as logs:
            logs.write("research.service", "stdout", 7, [b"hello"])
            logs.say("research.service", "started\nreally", 4)
        first, second = fields(server.recv(65536)), fields(server.recv(65536))
    assert first == {
        "MESSAGE": b"research.service: hello",
        "PRIORITY": b"6",
        "SYSLOG_IDENTIFIER": b"osmoda-watch",
        "UNIT": b"research.service",
        "OSMODA_STREAM": b"stdout",
        "OSMODA_PID": b"7",
    }
    assert second["MESSAGE"] == b"research.service: started\nreally"
    assert second["PRIORITY"] == b"4"


def test_a_journal_that_is_gone_or_slow_is_not_waited_for(tmp_path):
    path = str(tmp_path / "socket")
    one = journal.Journal(path)
    assert not one.is_there()
    assert not one.send(b"MESSAGE=x\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        assert one.is_there()
        assert one.send(b"MESSAGE=x\n")
        assert not all(one.send(b"MESSAGE=x\n") for _ in range(100_000))
    one.close()


# Read back


@pytest.fixture
def two(tmp_path):
    """Two units' logs whose lines alternate: 0, 1, 2, …"""
    files = [LogFile(str(tmp_path), name) for name in ("a.service", "b.service")]
    for number in range(20):
        files[number % 2].append(record(1000.0 + number, "ab"[number % 2] + ".service", "stdout", 6, 1, b"%d" % number))
    yield tmp_path, files
    for file in files:
        file.close()


def test_several_logs_in_the_order_of_time(two):
    folder, _ = two
    units = log_files.units(str(folder))
    assert units == ["a.service", "b.service"]
    assert [int(one["text"]) for one in log_view.lines(str(folder), units)] == [*range(20)]
    assert [int(one["text"]) for one in log_view.lines(str(folder), units, last=3)] == [17, 18, 19]
    assert [int(one["text"]) for one in log_view.lines(str(folder), units, since=1015.0)] == [*range(15, 20)]
    assert log_view.lines(str(folder), ["none.service"]) == []


def test_logs_are_followed_over_files_that_are_moved_aside_and_new_units(two):
    folder, files = two
    waited = []

    def wait(seconds):
        waited.append(seconds)
        assert len(waited) < 100
        number = len(waited)
        if number == 1:
            files[0].append(record(2000.0, "a.service", OWN, 6, 0, b"more"))
        elif number == 2:
            files[0]._most = 1
            for n in range(3):
                files[0].append(record(2001.0 + n, "a.service", OWN, 6, 0, b"moved %d" % n))
        elif number == 3:
            with Logs(str(folder), to=journal.Journal("/none")) as logs:
                logs.say("c.service", "new")

    followed = log_view.follow(str(folder), [], last=2, wait=wait)
    found = [next(followed)["text"] for _ in range(7)]
    followed.close()
    assert found == ["18", "19", "more", "moved 0", "moved 1", "moved 2", "new"]


def test_a_record_is_one_line_of_json():
    data = record(time.time(), "a.service", "stdout", 6, 1, "\u2028 \x00\r\x1b".encode())
    assert data.count(b"\n") == 1
    assert json.loads(data)["text"] == "\u2028 \x00\r\x1b"
    assert len(record(0.0, "a" * 255, "stdout", 6, 1, b"\x01" * LONGEST)) < 1 << 16  # what the reader takes as a line
