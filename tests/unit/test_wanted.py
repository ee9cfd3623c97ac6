"""What a daemon that starts has to run, and how it waits for what an earlier one has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from osmoda.supervisor.daemon import remains
from osmoda.supervisor.daemon.wanted import Wanted
from osmoda.supervisor.errors import SupervisorError


def test_what_was_asked_for_counts_beside_what_is_enabled(tmp_path):
    path = str(tmp_path / "wanted.json")
    wanted = Wanted(path)
    assert wanted.now(["b", "a"]) == ["a", "b"]
    wanted.start(["c", "d"])
    wanted.stop(["a", "d"])
    assert wanted.now(["b", "a"]) == ["b", "c"]
    assert Wanted(path).now(["b", "a"]) == ["b", "c"]
    again = Wanted(path)
    again.start(["a"])
    assert Wanted(path).now(["b", "a"]) == ["a", "b", "c"]
    assert os.listdir(tmp_path) == ["wanted.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"started": 3, "stopped": []}', "{}", "\x00" * 10])
def test_a_file_that_is_none_is_as_if_there_were_none(tmp_path, text):
    (tmp_path / "wanted.json").write_text(text)
    assert Wanted(str(tmp_path / "wanted.json")).now(["a"]) == ["a"]


STAYS = "import sys; print(flush=True); sys.stdin.read()"


def started(argv, **options):
    """A process that stays until its input ends, once it is there: in exec(2) it has no environment for a moment."""
    one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    assert one.stdout is not None
    assert one.stdout.readline()
    return one


def marked(folder):
    """One that looks as if a daemon of `folder` had started it."""
    return started([sys.executable, "-c", STAYS], env={**os.environ, remains.VARIABLE: folder})


def test_what_a_killed_daemon_left_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(remains, "_GRACE", 30.0)
    monkeypatch.setattr(remains, "_PATIENCE", 40.0)
    folder = str(tmp_path)
    assert remains.wait(folder) == 0
    with marked(folder) as one, marked(str(tmp_path / "other")) as other:
        assert remains.marked(folder) == [one.pid]
        assert one.stdin is not None
        timer = threading.Timer(0.1, one.stdin.close)
        reaper = threading.Thread(target=one.wait)
        timer.start()
        reaper.start()
        assert remains.wait(folder) == 1
        reaper.join()
        assert one.returncode == 0
        assert other.poll() is None
        assert other.stdin is not None
        other.stdin.close()
        timer.join()


def test_a_sandbox_is_known_by_its_title_where_its_environment_is_closed(tmp_path):
    with subprocess.Popen(["true"]) as daemon:
        pass
    code = "import sys; open('/proc/self/comm', 'w').write('osmoda-init'); print(flush=True); sys.stdin.read()"
    title = f"osmoda-init {daemon.pid:x}-3 tier-2 agent.toml"
    with started([title, "-c", code], executable=sys.executable) as one:
        assert one.stdin is not None
        assert remains.left(str(tmp_path), daemon.pid, ending=False) == [one.pid]
        assert remains.left(str(tmp_path), 0, ending=False) == []
        # A daemon that is there, or another process with its number, has its sandboxes for itself.
        assert remains.left(str(tmp_path), os.getpid(), ending=False) == []
        one.stdin.close()


def test_what_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(remains, "_GRACE", 0.05)
    with marked(str(tmp_path)) as one:
        reaper = threading.Thread(target=one.wait)
        reaper.start()
        assert remains.wait(str(tmp_path)) == 1
        reaper.join()
        assert one.returncode == -signal.SIGKILL


def test_nothing_is_started_beside_what_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(remains, "_PATIENCE", 0.05)
    with marked(str(tmp_path)) as one:
        with pytest.raises(SupervisorError, match=f"process {one.pid} of an osmoda-watch that was killed does not end"):
            remains.wait(str(tmp_path))
        assert one.stdin is not None
        one.stdin.close()


def test_what_a_daemon_starts_carries_its_mark(tmp_path, monkeypatch):
    monkeypatch.setenv(remains.VARIABLE, "")
    remains.mark(str(tmp_path))
    with started([sys.executable, "-c", STAYS]) as one:
        assert one.stdin is not None
        assert remains.marked(str(tmp_path)) == [one.pid]
        one.stdin.close()


# Called as a sandbox's first process is, with the mark of a daemon; perhaps another user's from then on.
FORGED = f"""
import os, sys
open('/proc/self/comm', 'w').write('osmoda-init')
if sys.argv[1:]:
    os.setgroups([])
    os.setuid(12345)
{STAYS}
"""
STARTS_ONE = f"""
import os, subprocess, sys
title, code, folder = sys.argv[1:4]
environment = {{**os.environ, "{remains.VARIABLE}": folder}}
subprocess.call([title, "-c", code, *sys.argv[4:]], executable=sys.executable, env=environment)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user, and makes a pid namespace alone")
@pytest.mark.parametrize(("around", "arguments"), [([], ["another user's"]), (["unshare", "--pid", "--fork"], [])])
def test_nobody_else_s_process_keeps_a_daemon_from_starting(tmp_path, around, arguments):
    """Another user's, and one in a sandbox, could be replaced as fast as they are killed."""
    folder = str(tmp_path)
    with subprocess.Popen(["true"]) as daemon:
        pass
    title = f"osmoda-init {daemon.pid:x}-3 tier-2 agent.toml"
    command = [*around, sys.executable, "-c", STARTS_ONE, title, FORGED, folder, *arguments]
    with marked(folder) as own, started(command) as other:
        assert remains.left(folder, daemon.pid, ending=False) == [own.pid], "what is this user's counts"
        for one in (own, other):
            assert one.stdin is not None
            one.stdin.close()
