"""Scenarios: how a service is ended (systemd.kill(5))."""

from __future__ import annotations

import signal

from tests.parity.commands import KEEPS_RUNNING, SLEEPS
from tests.parity.stage import Stage

DEAF = "trap 'echo term >>trace' TERM\necho run >>trace\nwhile :; do sleep 1000 & wait; done\n"
# A program and another one that it has started, each of which says what it hears.
TWO = (
    "cat >child.sh <<'END'\ntrap 'echo child term >>trace; exit' TERM\n"
    f"{SLEEPS}echo child >>trace\nwait\nEND\nsh child.sh &\n"
    "child=$!\n"
    "trap 'echo main term >>trace; wait $child; echo main ends >>trace; exit 0' TERM\n"
    "while ! grep -q child trace 2>/dev/null; do sleep 0.05; done\n"
    "echo main >>trace\nwait\n"
)


def who_does_not_end_in_time_is_killed(stage: Stage) -> None:
    stage.service("TimeoutStopSec=5\n", program=DEAF)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.result, state.signal) == ("failed", "timeout", signal.SIGKILL)
    assert stage.trace() == ["run", "term"]


def the_signal_to_end_may_be_another(stage: Stage) -> None:
    program = (
        "trap 'echo usr1 >>trace; exit 0' USR1\ntrap 'echo term >>trace' TERM\n" + SLEEPS + "echo run >>trace\nwait\n"
    )
    stage.service("KillSignal=SIGUSR1\n", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["run", "usr1"]
    assert stage.state("alpha.service").result == "success"


def all_processes_hear_the_signal_to_end(stage: Stage) -> None:
    stage.service("KillMode=control-group\n", program=TWO)
    assert stage.start("alpha.service")
    stage.until_trace("child", "main")
    assert stage.stop("alpha.service")
    assert sorted(stage.trace()) == ["child", "child term", "main", "main ends", "main term"]


def mixed_is_the_signal_for_the_program_and_a_kill_for_the_rest(stage: Stage) -> None:
    program = TWO.replace("wait $child; ", "")
    stage.service("KillMode=mixed\n", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("child", "main")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["child", "main", "main term", "main ends"]
    assert stage.state("alpha.service").result == "success"


def a_hang_up_may_follow_the_signal(stage: Stage) -> None:
    program = (
        "trap 'echo hup >>trace; exit 0' HUP\ntrap : TERM\necho run >>trace\nwhile :; do sleep 1000 & wait; done\n"
    )
    stage.service("SendSIGHUP=yes\nTimeoutStopSec=25\n", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["run", "hup"]


def a_start_that_takes_too_long_is_ended(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\nTimeoutStartSec=6\nExecStart=/bin/sh -c 'echo run >>trace; exec sleep 1000'\n"
        "ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT >>trace'\n"
    )
    assert not stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "timeout"
    assert stage.trace() == ["run", "timeout"]


def a_command_before_the_program_may_take_too_long(stage: Stage) -> None:
    stage.service("TimeoutStartSec=0.5\nExecStartPre=/bin/sh -c 'exec sleep 1000'\n", program="echo run >>trace\n")
    assert not stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "timeout"
    assert stage.trace() == []


def a_stop_ends_a_start_that_is_under_way(stage: Stage) -> None:
    stage.service("Type=oneshot\nExecStart=/bin/sh -c 'echo run >>trace; exec sleep 1000'\n")
    stage.begin("alpha.service")
    stage.until_trace("run")
    stage.until_state("activating", "start")
    assert stage.stop("alpha.service")
    assert stage.state("alpha.service").active in ("inactive", "failed")


def a_stop_command_may_end_the_program_itself(stage: Stage) -> None:
    program = (
        "trap 'echo term >>trace' TERM\necho run >>trace\nwhile [ ! -e ended ]; do sleep 0.05; done\necho end >>trace\n"
    )
    stage.service(
        "ExecStop=/bin/sh -c 'touch ended; while ! grep -q end trace; do sleep 0.05; done'\n", program=program
    )
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["run", "end"]
    assert stage.state("alpha.service").result == "success"


def a_stop_command_that_hangs_is_ended(stage: Stage) -> None:
    stage.service(
        "TimeoutStopSec=6\nExecStop=/bin/sh -c 'echo stop >>trace; exec sleep 1000'\n",
        program=KEEPS_RUNNING,
    )
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.result) == ("failed", "timeout")
    assert stage.trace() == ["run", "stop", "term"]
