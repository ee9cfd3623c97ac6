"""What systemd and its journal say of a unit, in the words of osmoda-watch."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace

import pytest

from osmoda.sandbox.processes import Running
from osmoda.supervisor.command import status_words
from osmoda.supervisor.systemd import snapshots as systemd_snapshots

FAILED = {
    "ActiveState": "failed",
    "SubState": "failed",
    "Result": "exit-code",
    "ExecMainCode": 1,
    "ExecMainStatus": 3,
    "StateChangeTimestamp": 1_700_000_000_500_000,
    "Description": "A socket",
    "FragmentPath": "/etc/systemd/system/a.socket",
    "DropInPaths": ["/etc/systemd/system/a.socket.d/more.conf", "/etc/systemd/system/a.socket.d/zzz-osmoda.conf"],
    "UnitFileState": "enabled-runtime",
}


def test_a_unit_by_its_properties():
    found = systemd_snapshots.of("a.socket", FAILED, (), brief=True)
    assert found["files"] == ["/etc/systemd/system/a.socket", "/etc/systemd/system/a.socket.d/more.conf"]
    assert (found["state"], found["sub"], found["result"]) == ("failed", "failed", "exit-code")
    assert (found["since"], found["exit_code"], found["exit_signal"]) == (1_700_000_000.5, 3, 0)
    assert (found["problem"], found["enabled"]) == ("its program exited with 3", "yes")


def test_it_can_be_printed_as_one_of_the_own_engine():
    found = systemd_snapshots.of("a.socket", FAILED, (), brief=False)
    text = "\n".join(status_words.status(found, []))
    assert "a.socket - A socket" in text
    assert "failed (failed)" in text
    assert "its program exited with 3" in text
    (_, row) = status_words.listing([found])
    assert row.split()[:3] == ["a.socket", "failed", "failed"]


@pytest.mark.parametrize(
    ("code", "status", "ended"),
    [(0, 0, (0, 0)), (1, 0, (0, 0)), (1, 5, (5, 0)), (2, 9, (0, 9)), (3, 6, (0, 6))],
)
def test_how_a_program_has_ended(code, status, ended):
    assert systemd_snapshots.ended({"ExecMainCode": code, "ExecMainStatus": status}) == ended


def test_why_a_job_has_not_done_what_was_asked():
    assert systemd_snapshots.why("dependency", {}) == "a unit that it requires did not start"
    assert systemd_snapshots.why("failed", FAILED) == "its program exited with 3"
    assert systemd_snapshots.why("failed", {"Result": "success"}).startswith("it has failed")
    assert systemd_snapshots.why("something new", {}) == "systemd says: something new"


def test_lines_of_the_journal():
    entry = {"__REALTIME_TIMESTAMP": "1700000000500000", "_SYSTEMD_UNIT": "a.service", "_PID": "17", "MESSAGE": "hello"}
    line = systemd_snapshots.line(entry)
    assert line == {
        "time": 1_700_000_000.5,
        "unit": "a.service",
        "stream": "stdout",
        "level": 6,
        "pid": 17,
        "text": "hello",
    }
    assert status_words.log_line(line, colour=False).endswith(" a.service[17]: hello")
    of_systemd = systemd_snapshots.line(
        entry | {"_PID": "1", "UNIT": "b.service", "_SYSTEMD_UNIT": "init.scope", "PRIORITY": "4"}
    )
    assert (of_systemd["unit"], of_systemd["pid"], of_systemd["level"]) == ("b.service", 0, 4)
    assert status_words.log_line(of_systemd, colour=False).endswith(" b.service systemd: hello")
    of_user = systemd_snapshots.line(
        entry | {"_COMM": "systemd", "_TRANSPORT": "journal", "USER_UNIT": "c.service"},
    )
    assert (of_user["unit"], of_user["stream"]) == ("c.service", "systemd")
    forged = systemd_snapshots.line(entry | {"_COMM": "systemd", "_TRANSPORT": "stdout"})
    assert (forged["unit"], forged["stream"], forged["pid"]) == ("a.service", "stdout", 17)
    assert systemd_snapshots.line(entry | {"MESSAGE": [104, 105, 255]})["text"] == "hi\\xff"


# What it runs under is what the kernel shows, and not what its files say.


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """A unit of tier 1, and what systemd would say of it while process `pid` is its main one."""
    (tmp_path / "agent.service").write_text("[Service]\nExecStart=/usr/bin/true\n[X-Osmoda]\nTier=1\n")
    monkeypatch.setattr(systemd_snapshots, "systemd_path", lambda: [str(tmp_path)])
    shown = FAILED | {"ActiveState": "active", "SubState": "running", "Result": "success", "DropInPaths": []}

    def look(pid, *running):
        return systemd_snapshots.of("agent.service", shown | {"MainPID": pid}, running, brief=False)

    return look


def test_a_unit_that_systemd_has_started_without_its_drop_in_has_no_tier(agent):
    with subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE) as process:
        found = agent(process.pid)
        process.stdin.close()
    assert found["problem"].startswith("it runs outside of any sandbox")
    assert not {"tier", "profile", "plan"} & {*found}
    assert "outside of any sandbox" in "\n".join(status_words.status(found, []))
    assert agent(0)["tier"] == 1  # it does not run: so it would


def test_a_sandbox_that_was_started_before_its_files_changed_is_not_called_by_the_new_plan(agent, tmp_path):
    # A child of this process, which the name says has made it.
    with subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE) as child:
        one = Running(f"{os.getpid():x}-1", 1, "agent", child.pid, 0, "true", 8, 2, 1 << 20, 0.1, 0.0, age=0.0)
        file = tmp_path / "agent.service"
        before = time.time() - 7200
        os.utime(file, (before, before))
        found = agent(os.getpid(), one)
        assert (found["tier"], found["notes"], len(found["plan"])) == (1, [], 64)
        moved = agent(os.getpid(), replace(one, age=3600.0))
        assert moved["plan"] == "", "its times are older than the sandbox, and it came after that"
        later = time.time() + 7200
        os.utime(file, (later, later))
        stale = agent(os.getpid(), one)
        assert (stale["tier"], stale["plan"]) == (1, "")
        assert "the one from before" in stale["notes"][0]
        assert "Plan" not in "\n".join(status_words.status(stale, []))
        other = agent(os.getpid(), replace(one, tier=2))
        assert (other["tier"], other["plan"]) == (2, "")
