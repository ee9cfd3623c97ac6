"""From a unit to what is started: signals by kill(1), streams, conditions, the ledger before the act."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from osmoda.ledger.errors import LedgerError
from osmoda.supervisor import acts, preparation
from osmoda.supervisor.acts import Acts
from osmoda.supervisor.errors import SupervisorError, UnitError
from osmoda.supervisor.unit import Directive, Output
from tests.plain_units import ORIGIN, command, plain


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("/bin/kill", "-HUP", "$MAINPID"), signal.SIGHUP),
        (("/usr/bin/kill", "-s", "SIGUSR1", "${MAINPID}"), signal.SIGUSR1),
        (("kill", "-2", "$MAINPID"), signal.SIGINT),
        (("kill", "$MAINPID"), signal.SIGTERM),
        (("kill", "-HUP", "1"), 0),
        (("kill", "-BANG", "$MAINPID"), 0),
        (("kill", "-999", "$MAINPID"), 0),
        (("kill", "-HUP", "$MAINPID", "$MAINPID"), 0),
        (("/opt/kill", "-HUP", "$MAINPID"), 0),
        (("/bin/sh", "-c", "kill -HUP $MAINPID"), 0),
    ],
)
def test_kill_of_the_main_program_is_the_supervisor_s_to_do(words, number):
    assert preparation.signal_to_main(command(*words)) == number


def test_streams_that_are_files(tmp_path):
    path = tmp_path / "out"
    for kind, data, wanted in (
        ("append", b"one\n", b"one\n"),
        ("append", b"two\n", b"one\ntwo\n"),
        ("file", b"ONE", b"ONE\ntwo\n"),
        ("truncate", b"new", b"new"),
    ):
        fd = preparation.open_output(Output(kind, str(path)))
        os.write(fd, data)
        os.close(fd)
        assert path.read_bytes() == wanted


@pytest.mark.parametrize("link", ["out", "folder/out"])
def test_no_link_of_an_agent_s_leads_a_stream_elsewhere(tmp_path, link):
    (tmp_path / "victim").write_text("precious")
    if link == "out":
        (tmp_path / "out").symlink_to("victim")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "out").write_text("precious")
        (tmp_path / "folder").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        preparation.open_output(Output("truncate", str(tmp_path / link)))
    assert (tmp_path / "victim").read_text() == "precious"


def test_conditions_that_do_not_hold(tmp_path):
    absent = str(tmp_path / "absent")
    with pytest.raises(preparation.Skipped, match=rf"^{ORIGIN}: ConditionPathExists={absent} does not hold"):
        preparation.prepare(plain(conditions=(Directive("ConditionPathExists", absent, ORIGIN),)))
    with pytest.raises(UnitError, match=rf"^{ORIGIN}: AssertPathExists={absent} does not hold"):
        preparation.prepare(plain(conditions=(Directive("AssertPathExists", absent, ORIGIN),)))


# The ledger


class Ledger:
    """One that takes events, or does not."""

    def __init__(self, error=""):
        self.error = error
        self.events = []

    def append(self, kind, fields):
        if self.error:
            raise LedgerError(self.error)
        self.events.append((kind, fields))
        return len(self.events)

    def submit(self, kind, fields):
        if not self.error:
            self.events.append((kind, fields))
        return self

    done = True

    def fileno(self):
        """There is a connection."""
        return 0

    def hear(self):
        """Nothing is told later."""

    def flush(self, patience):
        return self.error

    def close(self):
        self.events.append(("closed", {}))


def opened(monkeypatch, ledger):
    said = []
    monkeypatch.setattr(acts, "open_ledger", lambda: ledger)
    found = Acts(said.append)
    found.open()
    return found, said


def test_what_is_done_is_written_before_it_is_done(monkeypatch):
    ledger = Ledger()
    found, said = opened(monkeypatch, ledger)
    asyncio.run(found.before("start", {"unit": "a"}))
    found.after("stop", {"unit": "a"})
    found.close()
    assert ledger.events == [("start", {"unit": "a"}), ("stop", {"unit": "a"}), ("closed", {})]
    assert said == []


def test_what_cannot_be_written_is_not_done(monkeypatch):
    found, said = opened(monkeypatch, Ledger("the disk is full"))
    with pytest.raises(SupervisorError, match="the disk is full; it must be on the ledger"):
        asyncio.run(found.before("start", {}))
    for _ in range(3):
        found.after("end", {})
    assert said == ["the ledger does not take what has happened: the disk is full"]


def test_without_a_ledger_everything_may_be_done(monkeypatch):
    found, said = opened(monkeypatch, None)
    asyncio.run(found.before("start", {}))
    found.after("end", {})
    found.close()
    assert (found.is_kept, said) == (False, [])


def test_a_ledger_that_cannot_be_opened_keeps_the_daemon_from_starting(monkeypatch):
    def refuse():
        raise LedgerError("the ledger is damaged")

    monkeypatch.setattr(acts, "open_ledger", refuse)
    with pytest.raises(SupervisorError, match="the ledger is damaged; what is supervised here must be on the ledger"):
        Acts(print).open()
