"""Scenarios: how a program ends, and what that means for its service."""

from __future__ import annotations

import signal

from tests.parity.commands import KEEPS_RUNNING, SLEEPS
from tests.parity.stage import Stage


def an_exit_with_zero_is_a_success(stage: Stage) -> None:
    stage.service("", program="echo run >>trace\n")
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.until_state("inactive", "dead").result == "success"


def another_exit_is_a_failure(stage: Stage) -> None:
    stage.service("", program="echo run >>trace; exit 3\n")
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.result, state.code, state.signal) == ("exit-code", 3, 0)


def an_exit_may_be_declared_a_success(stage: Stage) -> None:
    stage.service("SuccessExitStatus=3 SIGUSR1\n", program="echo run >>trace; exit 3\n")
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.until_state("inactive", "dead").result == "success"


def an_end_by_a_signal_is_a_failure(stage: Stage) -> None:
    stage.service("", program="echo run >>trace; kill -USR1 $$; sleep 1000\n")
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.result, state.code, state.signal) == ("signal", 0, signal.SIGUSR1)


def a_signal_that_asks_for_an_end_is_a_success(stage: Stage) -> None:
    stage.service("", program="echo run >>trace; kill -TERM $$; sleep 1000\n")
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.until_state("inactive", "dead").result == "success"


def a_program_killed_from_outside_is_a_failure(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    stage.signal("alpha.service", signal.SIGKILL)
    state = stage.until_state("failed", "failed")
    assert (state.result, state.signal) == ("signal", signal.SIGKILL)


def a_signal_from_outside_reaches_the_program(stage: Stage) -> None:
    program = "trap 'echo usr1 >>trace' USR1\necho run >>trace\nwhile :; do sleep 1000 & wait; done\n"
    stage.service("", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    stage.signal("alpha.service", signal.SIGUSR1)
    stage.until_trace("run", "usr1")
    assert stage.state("alpha.service").active == "active"


def a_program_that_is_not_there_fails_the_start(stage: Stage) -> None:
    stage.service("Type=exec\nExecStart=@dir@/nothing-of-the-kind\n")
    assert not stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.result, state.code) == ("exit-code", 203)


def a_program_without_permission_to_run_fails_the_start(stage: Stage) -> None:
    stage.file("program", "#!/bin/sh\nexit 0\n").chmod(0o644)
    stage.service("Type=exec\nExecStart=@dir@/program\n")
    assert not stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.result, state.code) == ("exit-code", 203)


def what_a_program_leaves_behind_ends_with_it(stage: Stage) -> None:
    left = f"sh -c 'trap \"echo child term >>trace; exit\" TERM\n{SLEEPS}echo child >>trace\nwait' &\n"
    waits = "while ! grep -q child trace 2>/dev/null; do sleep 0.05; done\n"
    stage.service("", program=f"{left}{waits}echo main ends >>trace\n")
    assert stage.start("alpha.service")
    stage.until_state("inactive", "dead")
    assert stage.trace() in (["child", "main ends", "child term"], ["child", "main ends"])


def a_service_that_has_ended_may_remain(stage: Stage) -> None:
    stage.service("RemainAfterExit=yes\n", program="echo run >>trace\n")
    assert stage.start("alpha.service")
    assert stage.until_state("active", "exited").result == "success"
    assert stage.stop("alpha.service")
    assert stage.state("alpha.service").active == "inactive"


def a_run_may_be_limited_in_time(stage: Stage) -> None:
    stage.service("RuntimeMaxSec=6\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "timeout"
    assert stage.trace() == ["run", "term"]
