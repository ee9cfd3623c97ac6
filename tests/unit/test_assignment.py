from __future__ import annotations

import os
import socket
import sys

import pytest

from osmoda.sandbox import assignment
from osmoda.sandbox.assignment import Assignment
from tests.worlds import World

PLAIN = Assignment(("echo", "\udcff"), (("NAME", "value"),), b"/tmp", 12.5)


def taken(given: Assignment, *streams: int) -> tuple[Assignment | None, list[str]]:
    """What comes out at the other end, where 0 to 2 are closed, and what they are then. In a process of its own."""
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assignment.give(channel, given, streams or (0, 1, 2))
    os.closerange(0, 3)
    found = assignment.take(other, bytearray(assignment.SMALL))
    return found, [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]


def small() -> bool:
    reading, writing = os.pipe()
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (reading, writing, writing)]
    return taken(PLAIN, reading, writing, writing) == (PLAIN, links)


def large() -> bool:
    given = Assignment(("x" * 300000,), (), b"/", 0.0, (0,))
    before = len(os.listdir("/proc/self/fd"))
    found, _ = taken(given)
    return found == given and len(os.listdir("/proc/self/fd")) == before


def folder() -> str:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        taken(PLAIN, null, os.open("/", os.O_RDONLY), null)
    except OSError as error:
        return str(error.strerror)
    return ""


def streams_elsewhere() -> str:
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assignment.give(channel, PLAIN, (0, 1, 2))
    try:
        assignment.take(other, bytearray(assignment.SMALL))  # while 0 to 2 are open
    except OSError as error:
        return str(error.strerror)
    return ""


def test_a_command_and_its_streams(world: World) -> None:
    assert world.call(small)


def test_a_long_command(world: World) -> None:
    assert world.call(large)


def test_a_folder_as_a_stream(world: World) -> None:
    assert world.call(folder) == "stdout is a directory, which would let the command out of its root"


def test_streams_that_did_not_take_their_numbers(world: World) -> None:
    assert world.call(streams_elsewhere) == "the command's streams could not be received (RLIMIT_NOFILE)"


def test_nobody_gives_one_any_more() -> None:
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        channel.close()
        assert assignment.take(other, bytearray(8)) is None


def test_nobody_waits_any_more() -> None:
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    with channel, pytest.raises(BrokenPipeError):
        assignment.give(channel, PLAIN, (sys.__stdin__.fileno() if sys.__stdin__ else 0, 1, 2))
