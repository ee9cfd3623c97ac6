"""Scenarios: what is started again by itself, how often, and what stops that."""

from __future__ import annotations

import signal

from tests.parity.commands import KEEPS_RUNNING
from tests.parity.stage import Stage

UNLIMITED = "StartLimitIntervalSec=0\n"
# Fails until it has run three times.
THIRD_STAYS = "echo run >>trace\n[ $(wc -l <trace) -ge 3 ] || exit 1\nexec sleep 1000\n"


def always_is_after_a_success_too(stage: Stage) -> None:
    program = "echo run >>trace\n[ $(wc -l <trace) -ge 3 ] || exit 0\nexec sleep 1000\n"
    stage.service("Restart=always\nRestartSec=0.1\n", unit=UNLIMITED, program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run", "run", "run")
    assert stage.until_state("active", "running").restarts == 2


def on_failure_is_after_a_failure(stage: Stage) -> None:
    stage.service("Restart=on-failure\nRestartSec=0.1\n", unit=UNLIMITED, program=THIRD_STAYS)
    assert stage.start("alpha.service")
    stage.until_trace("run", "run", "run")
    assert stage.until_state("active", "running").restarts == 2


def on_failure_is_not_after_a_success(stage: Stage) -> None:
    stage.service("Restart=on-failure\nRestartSec=0.1\n", program="echo run >>trace\n")
    assert stage.start("alpha.service")
    stage.until_trace("run")
    state = stage.until_state("inactive", "dead")
    assert (state.restarts, stage.trace()) == (0, ["run"])


def on_success_is_not_after_a_failure(stage: Stage) -> None:
    stage.service("Restart=on-success\nRestartSec=0.1\n", program="echo run >>trace; exit 1\n")
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.restarts, stage.trace()) == (0, ["run"])


def on_abnormal_is_after_a_signal_only(stage: Stage) -> None:
    program = "echo run >>trace\n[ $(wc -l <trace) -ge 2 ] && exit 1\nkill -KILL $$\n"
    stage.service("Restart=on-abnormal\nRestartSec=0.1\n", program=program)
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.restarts, state.result, stage.trace()) == (1, "exit-code", ["run", "run"])


def a_killed_program_comes_back(stage: Stage) -> None:
    stage.service("Restart=always\nRestartSec=0.1\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    stage.signal("alpha.service", signal.SIGKILL)
    stage.until_trace("run", "run")
    assert stage.until_state("active", "running").restarts == 1


def what_was_stopped_is_not_restarted(stage: Stage) -> None:
    stage.service("Restart=always\nRestartSec=0.1\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.sub, stage.trace()) == ("inactive", "dead", ["run", "term"])


def a_stop_ends_the_wait_for_a_restart(stage: Stage) -> None:
    stage.service("Restart=always\nRestartSec=1000\n", program="echo run >>trace; exit 1\n")
    assert stage.start("alpha.service")
    stage.until_state("activating", "auto-restart")
    assert stage.stop("alpha.service")
    assert stage.state("alpha.service").active in ("inactive", "failed")
    assert stage.trace() == ["run"]


def a_start_does_not_wait_for_the_time_of_a_restart(stage: Stage) -> None:
    program = "echo run >>trace\n[ $(wc -l <trace) -ge 2 ] || exit 1\nexec sleep 1000\n"
    stage.service("Restart=always\nRestartSec=1000\n", program=program)
    assert stage.start("alpha.service")
    stage.until_state("activating", "auto-restart")
    assert stage.start("alpha.service")
    stage.until_trace("run", "run")
    stage.until_state("active", "running")


def an_exit_may_prevent_a_restart(stage: Stage) -> None:
    stage.service(
        "Restart=always\nRestartSec=0.1\nRestartPreventExitStatus=9 SIGUSR2\n", program="echo run >>trace; exit 9\n"
    )
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert (state.code, state.restarts, stage.trace()) == (9, 0, ["run"])


def an_exit_may_force_a_restart(stage: Stage) -> None:
    program = "echo run >>trace\n[ $(wc -l <trace) -ge 2 ] || exit 9\nexec sleep 1000\n"
    stage.service("Restart=no\nRestartSec=0.1\nRestartForceExitStatus=9\n", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run", "run")
    assert stage.until_state("active", "running").restarts == 1


def restarts_end_at_the_start_limit(stage: Stage) -> None:
    stage.service(
        "Restart=always\nRestartSec=0.1\n",
        unit="StartLimitIntervalSec=1000\nStartLimitBurst=3\n",
        program="echo run >>trace; exit 1\n",
    )
    assert stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    # The own engine says why it gave up, systemd how the program ended last.
    assert state.result in ("exit-code", "start-limit-hit")
    assert stage.trace() == ["run"] * 3
    # It does trigger for who asks, too, until it is reset.
    assert not stage.start("alpha.service")
    assert stage.trace() == ["run"] * 3
    stage.reset("alpha.service")
    assert stage.state("alpha.service").active == "inactive"
    assert stage.start("alpha.service")
    stage.until_trace(*["run"] * 6)


def starts_by_hand_count_for_the_start_limit(stage: Stage) -> None:
    stage.service("", unit="StartLimitIntervalSec=1000\nStartLimitBurst=2\n", program="echo run >>trace; exit 1\n")
    for _ in range(2):
        assert stage.start("alpha.service")
        stage.until_state("failed", "failed")
    assert not stage.start("alpha.service")
    assert stage.trace() == ["run", "run"]
    assert stage.state("alpha.service").active == "failed"


def commands_around_a_program_run_at_each_restart(stage: Stage) -> None:
    stage.service(
        "Restart=on-failure\nRestartSec=0.1\n"
        "ExecStartPre=/bin/sh -c 'echo pre >>trace'\n"
        "ExecStopPost=/bin/sh -c 'echo stop post >>trace'\n",
        program="echo run >>trace\n[ $(grep -c run trace) -ge 2 ] || exit 1\nexec sleep 1000\n",
    )
    assert stage.start("alpha.service")
    stage.until_trace("pre", "run", "stop post", "pre", "run")


def a_failing_start_is_tried_again(stage: Stage) -> None:
    stage.service(
        "Restart=on-failure\nRestartSec=0.1\nExecStartPre=/bin/sh -c 'echo pre >>trace; [ $(wc -l <trace) -ge 2 ]'\n",
        program="exec sleep 1000\n",
    )
    stage.begin("alpha.service")
    assert stage.until_state("active", "running").restarts == 1
    assert stage.trace() == ["pre", "pre"]
