"""Datagrams of sd_notify(3)."""

from __future__ import annotations

import pytest

from osmoda.supervisor.lifecycle.notifications import Notification, parse


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\nSTATUS=serving\n", Notification(ready=True, status="serving")),
        (b"RELOADING=1\nMONOTONIC_USEC=12", Notification(reloading=True)),
        (b"STOPPING=1", Notification(stopping=True)),
        (b"WATCHDOG=1", Notification(watchdog="keep")),
        (b"WATCHDOG=trigger", Notification(watchdog="trigger")),
        (b"WATCHDOG_USEC=1500000", Notification(watchdog_every=1.5)),
        (b"WATCHDOG_USEC=0", Notification(watchdog_every=0.0)),
        (b"EXTEND_TIMEOUT_USEC=250000", Notification(extend=0.25)),
        (b"ERRNO=2\nMAINPID=77", Notification(errno=2, main_pid=77)),
        (b"STATUS=", Notification(status="")),
        (b"STATUS=a=b \xff", Notification(status="a=b \ufffd")),
    ],
)
def test_what_is_said(data, said):
    assert parse(data) == said


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"READY",
        b"READY=2",
        b"WATCHDOG=2",
        b"WATCHDOG_USEC=-1",
        b"ERRNO=x",
        b"MAINPID=" + b"9" * 30,
        b"\0\n=\n",
        b"X_A=1",
    ],
)
def test_what_is_not_understood_is_passed_over(data):
    assert parse(data) == Notification()


def test_the_last_word_counts():
    assert parse(b"STATUS=one\nSTATUS=two").status == "two"


def test_no_more_is_read_than_systemd_reads():
    assert not parse(b"X" * 5000 + b"\nREADY=1").ready
