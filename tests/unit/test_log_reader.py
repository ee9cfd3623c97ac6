"""The log read back."""

from __future__ import annotations

import os

import pytest

from osmoda.egress import log_reader, records
from osmoda.egress.records import Log


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


def write(folder, numbers, most=records.MOST_BYTES):
    log = Log(folder, most=most)
    for number in numbers:
        log.write({"n": number, "name": "x" * (number % 70)})
    log.close()


def read(folder, **options):
    return [record["n"] for record in log_reader.read(folder, **options)]


class Writer:
    """Stands in for waiting: each wait runs the next step of the test."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __call__(self, seconds):
        assert seconds == 0.2
        self.steps.pop(0)()


def test_no_log_no_records(folder):
    assert read(folder) == []
    assert read(folder + "/nonexistent") == []
    assert read(folder, last=3) == []


def test_all_of_it_the_oldest_first(folder):
    write(folder, range(200), most=3000)
    assert len(os.listdir(folder)) > 2
    assert read(folder) == list(range(200))


@pytest.mark.parametrize("last", [0, 1, 2, 29, 30, 31, 199, 200, 201])
def test_the_last_ones(last, folder, monkeypatch):
    monkeypatch.setattr(log_reader, "_BLOCK", 100)
    write(folder, range(200), most=3000)
    assert read(folder, last=last) == list(range(200))[200 - min(last, 200) :]


def test_those_that_match(folder):
    write(folder, range(100))
    assert read(folder, matching=lambda record: record["n"] % 10 == 3) == list(range(3, 100, 10))
    assert read(folder, matching=lambda record: record["n"] % 10 == 3, last=2) == [83, 93]


@pytest.mark.parametrize("last", [None, 100])
def test_lines_that_are_no_records_are_passed_over(last, folder):
    write(folder, [1])
    with open(f"{folder}/{records.NAME}", "a") as file:
        file.write('{"n":\n\n[1]\n"text"\n' + "y" * 200_000 + "\n\x00\xff\n")
    write(folder, [2])
    with open(f"{folder}/{records.NAME}", "a") as file:
        file.write('{"n":3}')  # a line that is still being written
    assert read(folder, last=last) == [1, 2]


@pytest.mark.parametrize("last", [None, 100])
def test_the_zeros_that_a_crash_may_leave_are_passed_over_quickly(last, folder):
    write(folder, [1])
    with open(f"{folder}/{records.NAME}", "r+b") as file:
        file.truncate(32 << 20)
    write(folder, [2])
    assert read(folder, last=last) == [1, 2]


def test_what_cannot_be_opened_is_no_log(folder):
    os.mkfifo(f"{folder}/{records.NAME}")
    os.symlink("/etc/passwd", f"{folder}/{records.NAME}.1")
    assert read(folder) == []


@pytest.mark.parametrize("last", [None, 2, 0])
def test_following(last, folder):
    write(folder, [1, 2, 3])
    steps = Writer(lambda: write(folder, [4]), lambda: write(folder, [5, 6]))
    found = log_reader.read(folder, last=last, follow=True, wait=steps)
    expected = [1, 2, 3, 4, 5, 6] if last is None else [2, 3, 4, 5, 6][2 - last :]
    assert [next(found)["n"] for _ in expected] == expected
    found.close()


def test_following_a_log_that_is_not_there_yet(folder):
    found = log_reader.read(folder, follow=True, wait=Writer(lambda: write(folder, [1])))
    assert next(found)["n"] == 1
    found.close()


def test_a_line_in_the_making_comes_when_it_is_whole(folder):
    with open(f"{folder}/{records.NAME}", "a", buffering=1) as file:
        file.write('{"n":1}\n{"n":')
        found = log_reader.read(folder, follow=True, wait=Writer(lambda: file.write("2"), lambda: file.write("2}\n")))
        assert [next(found)["n"], next(found)["n"]] == [1, 22]
        found.close()


def test_following_across_files_that_are_moved_aside(folder):
    """Several of them between two looks."""
    write(folder, range(10), most=1000)
    steps = Writer(
        lambda: write(folder, range(10, 70), most=1000),
        lambda: write(folder, range(70, 75), most=1000),
        lambda: write(folder, range(75, 130), most=1000),
    )
    found = log_reader.read(folder, last=5, follow=True, wait=steps)
    before = len(os.listdir("/proc/self/fd"))
    assert [next(found)["n"] for _ in range(125)] == list(range(5, 130))
    assert steps.steps == []
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    found.close()
