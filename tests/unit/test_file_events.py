"""What fanotify tells, as bytes: read, and refused where no kernel would send it."""

from __future__ import annotations

import struct

import pytest

from osmoda.supervisor.sharing.file_events import (
    FAN_CREATE,
    FAN_ONDIR,
    FAN_Q_OVERFLOW,
    FAN_RENAME,
    FileEvent,
    Place,
    parse,
)

HANDLE = struct.pack("<II", 8, 1) + b"ABCDEFGH"
FOLDER = b"fsid-123" + HANDLE


def record(kind, name):
    body = FOLDER + name + b"\0"
    body += bytes(-len(body) % 4)
    return struct.pack("<BBH", kind, 0, 4 + len(body)) + body


def event(mask, *records, pid=77):
    body = b"".join(records)
    return struct.pack("<IBBHQii", 24 + len(body), 3, 0, 24, mask, -1, pid) + body


def test_a_name_and_its_folder():
    assert list(parse(event(FAN_CREATE | FAN_ONDIR, record(2, b"new")))) == [
        FileEvent(("create",), True, Place(FOLDER, b"new"), None, 77, -1)
    ]


def test_several_things_at_once_in_their_order():
    (found,) = parse(event(0x8 | 0x100 | 0x200, record(2, b"f")))
    assert found.kinds == ("create", "write", "delete")


def test_a_rename_has_two_places():
    (found,) = parse(event(FAN_RENAME, record(10, b"old"), record(12, b"new")))
    assert (found.kinds, found.place, found.to) == (("rename",), Place(FOLDER, b"old"), Place(FOLDER, b"new"))


def test_who_it_was():
    pidfd = struct.pack("<BBHi", 4, 0, 8, 9)
    gone = struct.pack("<BBHi", 4, 0, 8, -1)
    wrong = struct.pack("<BBHi", 4, 0, 8, -2)
    found = list(parse(b"".join(event(FAN_CREATE, record(2, b"f"), one) for one in (pidfd, gone, wrong))))
    assert [one.pidfd for one in found] == [9, -1, -1]


def test_an_overflow_has_no_place():
    (found,) = parse(event(FAN_Q_OVERFLOW, pid=0))
    assert (found.kinds, found.place, found.pid) == (("overflow",), None, 0)


def test_what_is_unknown_is_passed_over():
    (found,) = parse(event(FAN_CREATE | 0x2, struct.pack("<BBH", 99, 0, 8) + b"what", record(2, b"f")))
    assert found.place == Place(FOLDER, b"f")


@pytest.mark.parametrize("end", range(1, len(event(FAN_CREATE, record(2, b"name")))))
def test_what_is_cut_off_is_refused(end):
    with pytest.raises(ValueError, match="event"):
        list(parse(event(FAN_CREATE, record(2, b"name"))[:end]))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IBBHQii", 24, 2, 0, 24, 0x100, -1, 1),
        struct.pack("<IBBHQii", 0, 3, 0, 24, 0x100, -1, 1),
        event(FAN_CREATE, struct.pack("<BBH", 2, 0, 400) + bytes(16)),
        event(FAN_CREATE, struct.pack("<BBH", 2, 0, 20) + b"fsid-123" + struct.pack("<II", 500, 1)),
    ],
)
def test_what_no_kernel_sends_is_refused(data):
    with pytest.raises(ValueError, match=r"event|handle"):
        list(parse(data))
