"""Who may give orders over a unix socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from osmoda.host import peer
from tests.worlds import Program

CONNECT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.recv(1)
"""


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(30)
        yield listener


def refusal(listener, *prefix):
    """Of a process that `prefix` starts."""
    command = [*prefix, sys.executable, "-c", CONNECT, listener.getsockname()]
    with Program(command) as process:
        connection, _ = listener.accept()
        with connection:
            found = peer.refusal(connection)
            connection.send(b"x")
    assert process.returncode == 0
    return found


def test_a_process_of_this_user_may(listener):
    assert refusal(listener) == ""


def test_so_may_this_process(listener):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert peer.refusal(ours) == ""


def test_a_process_in_a_pid_namespace_may_not(listener):
    """A sandbox's program has the same uid."""
    assert refusal(listener, "unshare", "--user", "--map-current-user", "--pid", "--fork") == (
        "a process in a sandbox may not"
    )


def test_the_same_holds_for_whoever_has_sent_a_datagram():
    assert peer.refusal_of_sender(os.getpid(), os.geteuid()) == ""
    assert peer.refusal_of_sender(os.getpid(), 54321) == f"uid 54321 may not: this is a process of uid {os.geteuid()}"
    command = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child", "sh", "-c", "echo; read x"]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            (inside,) = map(int, children.read().split())
        assert peer.refusal_of_sender(inside, os.geteuid()) == "a process in a sandbox may not"
        process.stdin.close()
    assert "it cannot be told who asks" in peer.refusal_of_sender(inside, os.geteuid())


def test_without_pidfds_of_peers_the_answer_is_the_same(listener, monkeypatch):
    monkeypatch.setattr(peer, "_SO_PEERPIDFD", 9999)
    assert refusal(listener) == ""
    assert refusal(listener, "unshare", "--user", "--map-current-user", "--pid", "--fork") == (
        "a process in a sandbox may not"
    )


def test_a_process_that_has_ended_may_not(listener):
    with Program([sys.executable, "-c", CONNECT, listener.getsockname()]) as process:
        connection, _ = listener.accept()
        process.kill()
    with connection:
        assert peer.refusal(connection) == "the process that asks is not to be seen from here"


def test_another_user_may_not(listener, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.chmod(listener.getsockname(), 0o777)
    os.chmod(tmp_path, 0o711)
    folder = os.open(tmp_path, os.O_PATH)
    pid = os.fork()
    if pid == 0:
        try:
            os.fchdir(folder)
            os.setresuid(12345, 12345, 12345)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect("socket")
                connection.recv(1)
        finally:
            os._exit(0)
    connection, _ = listener.accept()
    with connection:
        assert peer.refusal(connection) == "uid 12345 may not: this is a process of uid 0"
    os.waitpid(pid, 0)
    os.close(folder)


def test_root_may_command_a_users_process(listener):
    if os.geteuid() != 0:
        pytest.skip("only root can be root")
    pid = os.fork()
    if pid == 0:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(listener.getsockname())
        connection.recv(1)
        os._exit(0)
    connection, _ = listener.accept()
    with connection:
        # The user's half: a process that looks at its peer as uid 12345.
        looks = os.fork()
        if looks == 0:
            os.setresuid(12345, 12345, 12345)
            os._exit(0 if peer.refusal(connection) == "" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(looks, 0)[1]) == 0
    os.waitpid(pid, 0)
