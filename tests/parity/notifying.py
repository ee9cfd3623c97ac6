"""Scenarios: sd_notify(3) and the watchdog."""

from __future__ import annotations

import signal

from tests.parity.stage import Stage

# Says each of its arguments in turn; `wait:FILE` waits for a file, `for:SECONDS` a time, `feed:FILE` says meanwhile
# that it is alive, `exit:CODE` ends it, `show:NAMES` writes down variables.
SAYS = """import os, signal, socket, sys, time
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1))
        to.send(text.encode())
def trace(text):
    with open("trace", "a") as file:
        print(text, file=file)
trace("run")
for word in sys.argv[1:]:
    kind, _, rest = word.partition(":")
    if kind == "wait":
        while not os.path.exists(rest):
            time.sleep(0.02)
    elif kind == "feed":
        while not os.path.exists(rest):
            say("WATCHDOG=1")
            time.sleep(0.05)
    elif kind == "for":
        time.sleep(float(rest))
    elif kind == "exit":
        sys.exit(int(rest))
    elif kind == "show":
        trace(" ".join(f"{name}={os.environ.get(name, '')}" for name in rest.split(",")))
    else:
        say(word)
time.sleep(1000)
"""


def _says(stage: Stage, words: str, directives: str, unit: str = "") -> None:
    stage.file("says.py", SAYS)
    stage.service(f"Type=notify\nExecStart=/usr/bin/python3 -S -E @dir@/says.py {words}\n{directives}", unit=unit)


def a_service_is_up_when_it_says_so(stage: Stage) -> None:
    _says(stage, "wait:go READY=1", "")
    stage.begin("alpha.service")
    stage.until_trace("run")
    stage.until_state("activating", "start")
    stage.file("go", "")
    stage.until_state("active", "running")
    assert stage.start("alpha.service")
    assert stage.trace() == ["run"]


def a_service_that_ends_before_it_is_up_has_failed(stage: Stage) -> None:
    _says(stage, "exit:0", "")
    assert not stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "protocol"


def a_service_that_is_not_up_in_time_is_ended(stage: Stage) -> None:
    _says(stage, "STATUS=not-yet", "TimeoutStartSec=6\n")
    assert not stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "timeout"
    assert stage.trace() == ["run"]


def more_time_may_be_asked_for(stage: Stage) -> None:
    _says(
        stage,
        "EXTEND_TIMEOUT_USEC=60000000 for:7 READY=1",
        "TimeoutStartSec=6\nExecStartPost=/bin/sh -c 'echo up >>trace'\n",
    )
    assert stage.start("alpha.service")
    assert stage.trace() == ["run", "up"]


def what_comes_after_the_start_waits_until_it_is_up(stage: Stage) -> None:
    _says(stage, "wait:go READY=1", "ExecStartPost=/bin/sh -c 'echo post >>trace'\n")
    stage.begin("alpha.service")
    stage.until_trace("run")
    assert stage.state("alpha.service").sub == "start"
    stage.file("go", "")
    stage.until_trace("run", "post")


def a_watchdog_that_is_fed_keeps_quiet(stage: Stage) -> None:
    _says(stage, "READY=1 feed:hungry exit:0", "WatchdogSec=10\n")
    assert stage.start("alpha.service")
    assert stage.state("alpha.service").active == "active"
    stage.file("hungry", "")
    assert stage.until_state("inactive", "dead").result == "success"


def a_watchdog_that_is_not_fed_ends_the_service(stage: Stage) -> None:
    _says(stage, "READY=1", "WatchdogSec=0.3\n")
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.result, state.signal) == ("watchdog", signal.SIGABRT)


def a_watchdog_may_restart_the_service(stage: Stage) -> None:
    _says(stage, "READY=1 wait:fed feed:never", "WatchdogSec=1\nRestart=on-watchdog\nRestartSec=0.1\n")
    assert stage.start("alpha.service")
    stage.until_trace("run", "run")
    stage.file("fed", "")
    assert stage.until_state("active", "running").restarts >= 1


def a_service_can_have_the_watchdog_bite(stage: Stage) -> None:
    _says(stage, "READY=1 wait:go WATCHDOG=trigger", "WatchdogSec=1000\n")
    assert stage.start("alpha.service")
    stage.file("go", "")
    assert stage.until_state("failed", "failed").result == "watchdog"


def the_watchdogs_time_is_told(stage: Stage) -> None:
    _says(stage, "show:WATCHDOG_USEC READY=1 feed:never", "WatchdogSec=90\n")
    assert stage.start("alpha.service")
    stage.until_trace("run", "WATCHDOG_USEC=90000000")


def whoever_says_that_it_stops_is_stopping(stage: Stage) -> None:
    _says(stage, "READY=1 wait:go STOPPING=1 wait:gone exit:0", "")
    assert stage.start("alpha.service")
    stage.file("go", "")
    stage.until_state("deactivating", "stop-sigterm")
    stage.file("gone", "")
    assert stage.until_state("inactive", "dead").result == "success"
