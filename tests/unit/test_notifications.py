"""Messages of sd_notify(3) as the supervisor reads them. What comes out of a sandbox is in test_services.py."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.sandbox import launch, notifications
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.notifications import Notifications
from osmoda.sandbox.service_events import Notified

PID = os.getpid()


@pytest.fixture
def poll() -> Iterator[select.epoll]:
    with select.epoll() as made:
        yield made


@pytest.fixture
def said(poll: select.epoll) -> Iterator[tuple[Notifications, socket.socket]]:
    channel, path = notifications.own_socket(launch.new_identity())
    reader = Notifications(channel, poll, 0, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(path)
        sender.setblocking(False)
        yield reader, sender
    reader.close()
    assert not os.path.exists(path)


def test_nothing_is_read_before_the_command_is_known(said: tuple[Notifications, socket.socket]) -> None:
    reader, sender = said
    sender.send(b"READY=1")
    assert reader.read() == []
    reader.listen(PID)
    assert reader.read() == [Notified(b"READY=1", PID, True)]
    assert reader.read() == []


def test_who_is_not_the_command(said: tuple[Notifications, socket.socket]) -> None:
    reader, sender = said
    reader.listen(PID + 1)
    sender.send(b"READY=1")
    assert reader.read() == [Notified(b"READY=1", PID, False)]


def test_empty_and_long_ones_are_dropped(said: tuple[Notifications, socket.socket]) -> None:
    reader, sender = said
    reader.listen(PID)
    for message in (b"", b"x" * 4097, b"x" * 4096):
        sender.send(message)
    assert [one.data for one in reader.read()] == [b"x" * 4096]


def test_descriptors_are_closed_at_once(said: tuple[Notifications, socket.socket]) -> None:
    reader, sender = said
    reader.listen(PID)
    reading, writing = os.pipe()
    with socket.socket() as lingering:
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        socket.send_fds(sender, [b"FDSTORE=1"], [writing, lingering.fileno()])
        os.close(writing)
        before = len(os.listdir("/proc/self/fd"))
        assert [one.data for one in reader.read()] == [b"FDSTORE=1"]
        assert len(os.listdir("/proc/self/fd")) == before
        # Whoever has closed it would not wait for what it still has to send.
        assert struct.unpack("ii", lingering.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] == 0
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_flood_waits_for_the_next_second(
    said: tuple[Notifications, socket.socket], poll: select.epoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reader, sender = said
    reader.listen(PID)
    turns: list[int] = []
    while sum(turns) < notifications.A_SECOND:
        fill(sender)
        turns.append(len(reader.read()))
        assert 0 < turns[-1] <= 64
    assert sum(turns) == notifications.A_SECOND
    # It is not an event any more, however much there is to read, until the second is over.
    fill(sender)
    assert reader.read() == []
    assert poll.poll(0) == []
    assert reader.read() == []
    assert poll.poll(30)
    now[0] += 1.0
    assert reader.read()


def fill(sender: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(b"X=1")


def test_a_process_of_the_host_is_not_in_the_sandbox(poll: select.epoll) -> None:
    """It can reach the socket through /proc/PID/root, as this user's or root's."""
    channel, path = notifications.own_socket(launch.new_identity())
    reader = Notifications(channel, poll, 1, path)
    try:
        reader.listen(PID)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"READY=1", path)
        assert reader.read() == []
    finally:
        reader.close()


def test_sockets_of_the_dead_are_removed(tmp_path: Path) -> None:
    channel, path = notifications.own_socket(launch.new_identity())
    folder = os.path.dirname(path)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for name in (f"{pid:x}-1", "else"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
            left.bind(f"{folder}/{name}")
    other, other_path = notifications.own_socket(launch.new_identity())
    assert sorted(os.listdir(folder)) == sorted([os.path.basename(path), os.path.basename(other_path), "else"])
    for made, name in ((channel, path), (other, other_path)):
        made.close()
        os.unlink(name)
    os.unlink(f"{folder}/else")
    os.rmdir(folder)


def test_a_folder_that_others_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_RUNTIME_DIR", "OSMODA_RUNTIME_DIR"):
        monkeypatch.setenv(name, os.fspath(tmp_path))
    folder = Path(os.path.dirname(notifications_path()))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    with pytest.raises(LaunchError, match="no place for notifications"):
        notifications.own_socket(launch.new_identity())


def notifications_path() -> str:
    channel, path = notifications.own_socket(launch.new_identity())
    channel.close()
    os.unlink(path)
    return path
