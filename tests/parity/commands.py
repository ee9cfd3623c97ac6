"""Scenarios: which commands run, in which order, and what a failure of one means (systemd.service(5))."""

from __future__ import annotations

from tests.parity.stage import Stage

# A child of the shell that sleeps. Before it has become sleep(1) it is a shell that a signal does not end.
SLEEPS = 'sleep 1000 & until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done\n'
KEEPS_RUNNING = f"trap 'echo term >>trace; exit 0' TERM\n{SLEEPS}echo run >>trace\nwait\n"


def a_program_runs_until_it_is_stopped(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.until_state("active", "running").result == "success"
    assert stage.stop("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.sub, state.result) == ("inactive", "dead", "success")
    assert stage.trace() == ["run", "term"]


def what_runs_already_is_not_started_again(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.start("alpha.service")
    assert stage.stop("alpha.service")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["run", "term"]


def the_commands_of_a_oneshot_run_one_after_the_other(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\n"
        "ExecStart=/bin/sh -c 'echo one >>trace'\n"
        "ExecStart=/bin/sh -c 'echo two >>trace'\n"
        "ExecStart=/bin/sh -c 'echo three >>trace'\n"
    )
    assert stage.start("alpha.service")
    assert stage.trace() == ["one", "two", "three"]
    state = stage.state("alpha.service")
    assert (state.active, state.sub, state.result) == ("inactive", "dead", "success")


def a_oneshot_runs_again_each_time(stage: Stage) -> None:
    stage.service("Type=oneshot\nExecStart=/bin/sh -c 'echo one >>trace'\n")
    assert stage.start("alpha.service")
    assert stage.start("alpha.service")
    assert stage.trace() == ["one", "one"]


def a_oneshot_may_remain_after_its_exit(stage: Stage) -> None:
    stage.service("Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo one >>trace'\n")
    assert stage.start("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.sub) == ("active", "exited")
    assert stage.start("alpha.service")
    assert stage.trace() == ["one"]
    assert stage.stop("alpha.service")
    assert stage.state("alpha.service").active == "inactive"


def a_oneshot_ends_with_the_command_that_fails(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\n"
        "ExecStart=/bin/sh -c 'echo one >>trace'\n"
        "ExecStart=/bin/sh -c 'echo two >>trace; exit 4'\n"
        "ExecStart=/bin/sh -c 'echo three >>trace'\n"
    )
    assert not stage.start("alpha.service")
    assert stage.trace() == ["one", "two"]
    state = stage.state("alpha.service")
    assert (state.active, state.sub, state.result, state.code) == ("failed", "failed", "exit-code", 4)


def a_failure_behind_a_dash_is_none(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\n"
        "ExecStartPre=-/bin/sh -c 'echo pre >>trace; exit 3'\n"
        "ExecStart=-/bin/sh -c 'echo one >>trace; exit 4'\n"
        "ExecStart=/bin/sh -c 'echo two >>trace'\n"
    )
    assert stage.start("alpha.service")
    assert stage.trace() == ["pre", "one", "two"]
    assert stage.state("alpha.service").result == "success"


def commands_stand_between_semicolons(stage: Stage) -> None:
    stage.service("Type=oneshot\nExecStart=/bin/sh -c 'echo one >>trace' ; /bin/sh -c 'echo two \\; >>trace'\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["one", "two ;"]


def all_commands_in_their_order(stage: Stage) -> None:
    stage.service(
        "ExecCondition=/bin/sh -c 'echo condition >>trace'\n"
        "ExecStartPre=/bin/sh -c 'echo pre one >>trace'\n"
        "ExecStartPre=/bin/sh -c 'echo pre two >>trace'\n"
        "ExecStartPost=/bin/sh -c 'while ! grep -q run trace; do sleep 0.05; done; echo post >>trace'\n"
        "ExecStop=/bin/sh -c 'echo stop >>trace'\n"
        "ExecStopPost=/bin/sh -c 'echo stop post >>trace'\n",
        program=KEEPS_RUNNING,
    )
    assert stage.start("alpha.service")
    began = ["condition", "pre one", "pre two", "run", "post"]
    assert stage.trace() == began
    assert stage.stop("alpha.service")
    assert stage.trace() == [*began, "stop", "term", "stop post"]


def a_condition_that_does_not_hold_is_no_failure(stage: Stage) -> None:
    stage.service(
        "ExecCondition=/bin/sh -c 'echo condition >>trace; exit 1'\n"
        "ExecStartPre=/bin/sh -c 'echo pre >>trace'\n"
        "ExecStopPost=/bin/sh -c 'echo stop post >>trace'\n",
        program=KEEPS_RUNNING,
    )
    assert stage.start("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.sub) == ("inactive", "dead")
    assert stage.trace() == ["condition", "stop post"]


def a_condition_that_breaks_is_one(stage: Stage) -> None:
    stage.service("ExecCondition=/bin/sh -c 'exit 255'\n", program=KEEPS_RUNNING)
    assert not stage.start("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.result) == ("failed", "exit-code")
    assert stage.trace() == []


def without_what_comes_before_it_a_program_does_not_run(stage: Stage) -> None:
    stage.service(
        "ExecStartPre=/bin/sh -c 'echo pre >>trace; exit 7'\n"
        "ExecStartPre=/bin/sh -c 'echo another >>trace'\n"
        "ExecStop=/bin/sh -c 'echo stop >>trace'\n"
        "ExecStopPost=/bin/sh -c 'echo stop post >>trace'\n",
        program=KEEPS_RUNNING,
    )
    assert not stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert state.result == "exit-code"
    assert stage.trace() == ["pre", "stop post"]


def a_program_is_ended_when_what_comes_after_its_start_fails(stage: Stage) -> None:
    stage.service(
        "ExecStartPost=/bin/sh -c 'while ! grep -q run trace; do sleep 0.05; done; echo post >>trace; exit 5'\n",
        program=KEEPS_RUNNING,
    )
    assert not stage.start("alpha.service")
    assert stage.until_state("failed", "failed").result == "exit-code"
    assert stage.trace() == ["run", "post", "term"]


def a_failing_stop_command_does_not_keep_it_running(stage: Stage) -> None:
    stage.service("ExecStop=/bin/sh -c 'echo stop >>trace; exit 6'\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.result) == ("failed", "exit-code")
    assert stage.trace() == ["run", "stop", "term"]


def a_reload_runs_its_command_and_the_program_goes_on(stage: Stage) -> None:
    stage.service("ExecReload=/bin/sh -c 'echo reload >>trace'\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.reload("alpha.service")
    assert stage.trace() == ["run", "reload"]
    assert stage.state("alpha.service").active == "active"


def a_reload_may_be_a_signal_to_the_program(stage: Stage) -> None:
    program = "trap 'echo hup >>trace' HUP\necho run >>trace\nwhile :; do sleep 1000 & wait; done\n"
    stage.service("ExecReload=/bin/kill -HUP $MAINPID\n", program=program)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.reload("alpha.service")
    stage.until_trace("run", "hup")
    assert stage.state("alpha.service").active == "active"


def a_failed_reload_leaves_the_program_running(stage: Stage) -> None:
    stage.service("ExecReload=/bin/sh -c 'echo reload >>trace; exit 8'\n", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert not stage.reload("alpha.service")
    state = stage.state("alpha.service")
    assert (state.active, state.sub) == ("active", "running")


def without_a_reload_command_there_is_no_reload(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert not stage.reload("alpha.service")
    assert stage.state("alpha.service").active == "active"


def a_restart_is_a_stop_and_a_start(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    assert stage.restart("alpha.service")
    stage.until_trace("run")
    assert stage.restart("alpha.service")
    stage.until_trace("run", "term", "run")
    state = stage.until_state("active", "running")
    assert state.restarts == 0


def how_it_ended_is_told(stage: Stage) -> None:
    stage.service(
        "ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >>trace'\n",
        program=KEEPS_RUNNING,
    )
    assert stage.start("alpha.service")
    stage.until_trace("run")
    assert stage.stop("alpha.service")
    assert stage.trace() == ["run", "term", "success exited 0"]
