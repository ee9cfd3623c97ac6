"""Which sockets may be passed on, by their kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.sandbox import listeners
from osmoda.sandbox.errors import LaunchError


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(tmp_path / "s"))
        made.listen()
        yield made


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_those_that_listen(tcp: socket.socket, unix: socket.socket, tier: int) -> None:
    assert listeners.are_tcp([("a", unix.fileno()), ("b", tcp.fileno())], tier)
    assert not listeners.are_tcp([("a", unix.fileno())], tier)
    assert not listeners.are_tcp([], tier)


def refused(*given: tuple[str, int], tier: int = 1) -> str:
    with pytest.raises(LaunchError) as caught:
        listeners.are_tcp(given, tier)
    return str(caught.value)


def test_every_one_is_looked_at(tcp: socket.socket) -> None:
    with socket.socket() as plain:
        assert "does not listen" in refused(("a", tcp.fileno()), ("b", plain.fileno()))


def test_a_directory(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert "a directory, which would let the command out of its root" in refused(("a", fd), tier=0)
    finally:
        os.close(fd)


def test_a_file_and_what_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    assert "it is no socket" in refused(("a", fd), tier=0)
    os.close(fd)
    assert "Bad file descriptor" in refused(("a", fd))


def test_a_connection(unix: socket.socket) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert "does not listen" in refused(("a", one.fileno()))


def test_one_that_was_turned_round(tcp: socket.socket) -> None:
    """An agent that had it before may have shut it down."""
    tcp.shutdown(socket.SHUT_RDWR)
    assert "no longer does" in refused(("a", tcp.fileno()))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_datagrams(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        for tier in (1, 2):
            assert "datagram" in refused(("a", made.fileno()), tier=tier)
        assert not listeners.are_tcp([("a", made.fileno())], 0)


def test_another_family() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as made:
        assert "does not listen" in refused(("a", made.fileno()), tier=0)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "x" * 256, "é", "a\n"])
def test_names_that_cannot_be_said(unix: socket.socket, name: str) -> None:
    assert "cannot be the name of a socket" in refused((name, unix.fileno()))


def test_too_many(unix: socket.socket) -> None:
    assert "at most 32 sockets, not 33" in refused(*[("a", unix.fileno())] * 33)
