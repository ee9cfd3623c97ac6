"""How a sandbox is given to a gateway: what is said arrives as it was, and nonsense is refused."""

from __future__ import annotations

import marshal
import os

import pytest

from osmoda.egress import registration
from osmoda.egress.registration import Channel, Opening

OPENING = Opening(
    identity="1-1",
    agent="research",
    tier=2,
    profile="research.toml",
    token=b"\0\xff",
    files=("/p/research.toml",),
    secrets=(("KEY", "placeholder", "value"),),
    policy=b"p" * 300_000,
    inspects=True,
)


@pytest.fixture
def ends():
    mine, theirs = registration.pair()
    other = Channel(theirs)
    yield mine, other
    mine.close()
    other.close()


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


def test_an_opening_larger_than_a_message_arrives(ends):
    mine, other = ends
    mine.open(OPENING)
    kind, values, (body,) = other.hear()
    try:
        assert (kind, values) == ("open", ())
        assert registration.read_opening(body) == OPENING
    finally:
        os.close(body)


def test_what_is_said_is_heard_with_its_descriptors(ends):
    mine, other = ends
    with open("/dev/null") as null:
        mine.say("attach", 1, "two", descriptors=(null.fileno(),))
    kind, values, (fd,) = other.hear()
    os.close(fd)
    assert (kind, values) == ("attach", (1, "two"))


def test_the_end_is_heard(ends):
    mine, other = ends
    mine.close()
    assert other.hear() is None


def test_bytes_that_are_no_message_are_refused_and_their_descriptors_closed(ends):
    mine, other = ends
    before = os.listdir("/proc/self/fd")
    with open("/dev/null") as null:
        mine.socket.sendmsg([b"\xffnonsense"], [(1, 1, null.fileno().to_bytes(4, "little"))])
    with pytest.raises(ValueError, match="none"):
        other.hear()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        marshal.dumps(17),
        marshal.dumps((registration.VERSION,)),
        marshal.dumps((registration.VERSION, *range(30))),
    ],
)
def test_a_body_that_is_no_opening_is_refused(content):
    fd = memfd(content)
    try:
        with pytest.raises(ValueError, match="none"):
            registration.read_opening(fd)
    finally:
        os.close(fd)


def test_another_version_is_named():
    fd = memfd(marshal.dumps((99, *["x"] * 10)))
    try:
        with pytest.raises(ValueError, match="version 99"):
            registration.read_opening(fd)
    finally:
        os.close(fd)


def test_a_body_as_large_as_memory_is_not_read():
    fd = os.memfd_create("test")
    try:
        os.truncate(fd, 1 << 40)
        with pytest.raises(ValueError, match="too large"):
            registration.read_opening(fd)
    finally:
        os.close(fd)
