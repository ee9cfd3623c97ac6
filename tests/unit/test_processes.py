"""Signals by name, and the columns of `ps`; the processes themselves are in tests/integration/test_cli_processes.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from osmoda.sandbox import processes
from osmoda.sandbox.errors import SandboxError

ONE = processes.Running(
    identity="1a-1",
    tier=1,
    profile="agent.toml",
    pid=10,
    uid=1000,
    command="sleep 9",
    payload=11,
    processes=2,
    memory=3 << 20,
    cpu_time=0.5,
    started=5.0,
    age=3725.4,
)


@pytest.mark.parametrize("name", ["HUP", "SIGHUP", "hup", "1"])
def test_a_signal_has_several_names(name):
    assert processes.signal_number(name) == signal.SIGHUP


@pytest.mark.parametrize("name", ["", "NOPE", "999", "0", "SIG", "_DFL"])
def test_a_signal_that_there_is_not(name):
    with pytest.raises(SandboxError, match="there is no signal"):
        processes.signal_number(name)


def test_columns():
    assert processes.row(ONE) == ("1a-1", "1", "agent.toml", "10", "1000", "1:02:05", "3.0 MiB", "2", "sleep 9")


def test_this_process_is_no_sandbox_whatever_it_calls_itself():
    assert not processes.is_init(os.getpid())
    with open("/proc/self/comm", "r+", encoding="ascii") as comm:
        before = comm.read().strip()
        comm.seek(0)
        comm.write(processes.COMM)
        comm.flush()
        try:
            assert not processes.is_init(os.getpid())
        finally:
            comm.seek(0)
            comm.write(before)


def test_a_process_that_is_gone_is_no_sandbox():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert not processes.is_init(pid)


LOOKALIKE = """
import sys
open("/proc/self/comm", "w").write("osmoda-init")
print(flush=True)
sys.stdin.read()
"""


def test_a_sandbox_is_there_until_its_first_process_has_ended():
    title = "osmoda-init 7f-1 tier-2 agent.toml"
    pipe = subprocess.PIPE
    with subprocess.Popen([title, "-c", LOOKALIKE], executable=sys.executable, stdin=pipe, stdout=pipe) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        assert one.stdout.readline()
        assert "7f-1" in names()
        assert processes.exists("7f-1")
        one.stdin.close()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert "7f-1" not in names()  # not even while nobody has waited for it


def names():
    return {name for _, name in processes.identities()}


def made_by(maker, **values):
    return replace(ONE, identity=f"{maker:x}-1", **values)


@pytest.fixture
def child():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as one:
        yield one.pid


def test_a_sandbox_is_the_child_of_the_process_in_its_name(child):
    assert processes.is_genuine(made_by(os.getpid(), pid=child))
    assert processes.is_genuine(made_by(os.getppid(), pid=child)), "or a child's child"
    assert not processes.is_genuine(made_by(child, pid=child))
    assert not processes.is_genuine(made_by(1 << 22, pid=child))


def test_the_one_that_is_not_imitated(child, monkeypatch):
    genuine, imitated = made_by(os.getpid(), pid=child), made_by(os.getpid(), pid=1, uid=7)
    for found in ((genuine, imitated), (imitated, genuine)):
        monkeypatch.setattr(processes, "running", lambda found=found: found)
        assert processes.find(genuine.identity, found) == genuine
        assert processes.by_identity() == {genuine.identity: genuine}


def test_two_of_one_name_that_are_as_good():
    """Of two containers, say."""
    one, other = made_by(1 << 22, pid=1), made_by(1 << 22, pid=2)
    assert processes.find(one.identity, (one,)) == one
    with pytest.raises(SandboxError, match="processes 1 and 2 both say that they are sandbox"):
        processes.find(one.identity, (one, other))
    with pytest.raises(SandboxError, match="no sandbox 1-1 is running"):
        processes.find("1-1", (one, other))
