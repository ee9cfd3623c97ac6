"""Messages with descriptors: all of them arrive, or none is left open."""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest

from osmoda.host import messages


@pytest.fixture
def pair():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def test_descriptors_arrive_in_order_and_are_not_inherited(pair):
    one, other = pair
    with open("/dev/null") as null, open("/dev/zero") as zero:
        messages.send(one, b"hello", (null.fileno(), zero.fileno()))
    data, descriptors = messages.receive(other)
    try:
        assert data == b"hello"
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in descriptors] == ["/dev/null", "/dev/zero"]
        assert not any(os.get_inheritable(fd) for fd in descriptors)
    finally:
        for fd in descriptors:
            os.close(fd)


def test_the_end_is_an_empty_message(pair):
    one, other = pair
    one.close()
    assert messages.receive(other) == (b"", [])


def test_a_message_that_does_not_fit_is_an_error_and_leaves_nothing_open(pair):
    one, other = pair
    with open("/dev/null") as null:
        messages.send(one, b"x" * 100, (null.fileno(),))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="too long") as raised:
        messages.receive(other, most=10)
    assert raised.value.errno == errno.EMSGSIZE
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_that_do_not_fit_are_an_error_and_leave_nothing_open(pair):
    one, other = pair
    with open("/dev/null") as null:
        messages.send(one, b"x", (null.fileno(),) * 8)
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free number is where the first descriptor would go.
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            messages.receive(other)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    assert os.listdir("/proc/self/fd") == before
