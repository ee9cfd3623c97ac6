"""What fanotify tells of files: bytes in, events out. Sans-I/O (fanotify(7)).

Events name a folder by its handle, and the file by its name in that. Several things that the same process has done
to the same name may come as one event.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

FAN_CLOSE_WRITE = 0x8
FAN_MOVED_FROM = 0x40
FAN_MOVED_TO = 0x80
FAN_CREATE = 0x100
FAN_DELETE = 0x200
FAN_Q_OVERFLOW = 0x4000
FAN_EVENT_ON_CHILD = 0x08000000
FAN_RENAME = 0x10000000  # Linux 5.17
FAN_ONDIR = 0x40000000

WATCHED = FAN_CREATE | FAN_DELETE | FAN_CLOSE_WRITE | FAN_ONDIR | FAN_EVENT_ON_CHILD

type Kind = Literal["create", "write", "delete", "rename", "move-from", "move-to", "overflow"]

# In the order in which what is told as one has happened, as a rule.
_KINDS: tuple[tuple[int, Kind], ...] = (
    (FAN_Q_OVERFLOW, "overflow"),
    (FAN_MOVED_TO, "move-to"),
    (FAN_CREATE, "create"),
    (FAN_CLOSE_WRITE, "write"),
    (FAN_RENAME, "rename"),
    (FAN_MOVED_FROM, "move-from"),
    (FAN_DELETE, "delete"),
)
_EVENT = struct.Struct("<IBBHQii")
_INFO = struct.Struct("<BBH")
_VERSION = 3  # FANOTIFY_METADATA_VERSION
_DFID_NAME, _PIDFD, _OLD_DFID_NAME, _NEW_DFID_NAME = 2, 4, 10, 12


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a folder; `folder` is the file system's id and the folder's handle."""

    folder: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class FileEvent:
    """`place` is None where the queue has overflowed; `to` is the new place of a rename.

    `pid` is 0 where the kernel does not say who; `pidfd` is -1 where there is none, and the reader's to close else.
    """

    kinds: tuple[Kind, ...]
    is_folder: bool
    place: Place | None
    to: Place | None
    pid: int
    pidfd: int


def parse(data: bytes) -> Iterator[FileEvent]:
    """The events that one read has brought. Raises ValueError for what no kernel sends."""
    at = 0
    while at < len(data):
        if len(data) - at < _EVENT.size:
            raise ValueError("an event of files is cut off")
        length, version, _, header, mask, _, pid = _EVENT.unpack_from(data, at)
        if version != _VERSION or header < _EVENT.size or length < header or at + length > len(data):
            raise ValueError("this is no event of files that is known here")
        places, pidfd = _information(data[at + header : at + length])
        yield FileEvent(
            tuple(kind for bit, kind in _KINDS if mask & bit),
            bool(mask & FAN_ONDIR),
            places.get(_DFID_NAME) or places.get(_OLD_DFID_NAME),
            places.get(_NEW_DFID_NAME),
            pid,
            pidfd,
        )
        at += length


def _information(data: bytes) -> tuple[dict[int, Place], int]:
    places: dict[int, Place] = {}
    pidfd = -1
    at = 0
    while at + _INFO.size <= len(data):
        kind, _, length = _INFO.unpack_from(data, at)
        if length < _INFO.size or at + length > len(data):
            raise ValueError("an event's information is cut off")
        record = data[at + _INFO.size : at + length]
        if kind in (_DFID_NAME, _OLD_DFID_NAME, _NEW_DFID_NAME):
            places[kind] = _place(record)
        elif kind == _PIDFD and len(record) >= 4:
            pidfd = int.from_bytes(record[:4], "little", signed=True)
        at += length
    return places, max(pidfd, -1)


def _place(record: bytes) -> Place:
    """Eight bytes of the file system's id, a handle (size, type, bytes), and a name that ends with NUL."""
    size = 16 + int.from_bytes(record[8:12], "little")
    if len(record) < size:
        raise ValueError("a handle is cut off")
    return Place(record[:size], record[size:].partition(b"\0")[0])
