"""The state machine of a service, as dialogues: what happens (with the time), and what is ordered then."""

from __future__ import annotations

import math

import pytest

from osmoda.supervisor.lifecycle.machine import Machine
from osmoda.supervisor.lifecycle.notifications import parse
from osmoda.supervisor.lifecycle.restarts import Group, Restarts
from osmoda.supervisor.lifecycle.state_messages import (
    Done,
    Elapsed,
    Ended,
    EndGroup,
    GaveUp,
    Kill,
    MainEnded,
    Notified,
    NotStarted,
    ReloadAsked,
    ResetAsked,
    RestartAsked,
    Run,
    Say,
    Signal,
    StartAsked,
    Started,
    StopAsked,
    Unhealthy,
)
from osmoda.supervisor.lifecycle.states import ACTIVE
from tests.plain_units import command, plain, statuses

SIGTERM, SIGABRT, SIGHUP, SIGKILL = 15, 6, 1, 9


class Play:
    """A dialogue with one machine. What it says to people is kept apart."""

    def __init__(self, group: Group | None = None, **unit) -> None:
        self.unit = plain(**unit)
        self.machine = Machine(self.unit, Restarts(self.unit, lambda: 0.0, group))
        self.now = 100.0
        self.said: list[str] = []

    def hear(self, event, after: float = 0.0):
        self.now += after
        orders = self.machine.handle(event, self.now)
        self.said += [order.text for order in orders if isinstance(order, Say)]
        return [order for order in orders if not isinstance(order, Say)]

    def wait(self):
        """Let the next time-out come; what is ordered then."""
        assert self.machine.deadline() < math.inf
        return self.hear(Elapsed(), self.machine.deadline() - self.now)

    def notify(self, text: str, after: float = 0.0):
        return self.hear(Notified(parse(text.encode())), after)

    @property
    def sub(self) -> str:
        return self.machine.sub

    def up(self) -> None:
        """Start a service that is up when its program runs."""
        assert self.hear(StartAsked()) == [main(self.unit)]
        assert self.hear(Started("main", 42)) == [Done("start", True)]
        assert (self.sub, self.machine.active) == ("running", "active")


def main(unit, number=0):
    return Run("main", "start", unit.exec_start[number])


def control(kind, *words, **options):
    return Run("control", kind, command(*words, **options))


def exited(code=0, which="main"):
    return Ended(which, code)


def killed(number, which="main"):
    return Ended(which, 128 + number, number)


# Up and down


def test_a_simple_service_is_up_when_its_program_runs_and_not_before():
    play = Play()
    assert play.hear(StartAsked()) == [main(play.unit)]
    assert (play.sub, play.machine.active, play.machine.main_pid) == ("start", "activating", 0)
    assert play.hear(Started("main", 42)) == [Done("start", True)]
    assert (play.sub, play.machine.main_pid) == ("running", 42)
    assert play.machine.deadline() == math.inf
    assert play.hear(StartAsked()) == [Done("start", True)]


def test_a_stop_is_polite_and_then_over():
    play = Play()
    play.up()
    assert play.hear(StopAsked()) == [Signal("main", SIGTERM, everyone=True)]
    assert (play.sub, play.machine.active) == ("stop-sigterm", "deactivating")
    assert play.hear(killed(SIGTERM), 1) == [Done("stop", True)]
    assert (play.sub, play.machine.result, play.machine.main_pid) == ("dead", "success", 0)
    assert play.hear(StopAsked()) == [Done("stop", True)]


def test_a_stop_that_takes_too_long_kills():
    play = Play(timeout_stop=5.0)
    play.up()
    play.hear(StopAsked())
    assert play.wait() == [Kill("main")]
    assert play.now == 105.0
    assert play.hear(killed(SIGKILL)) == [Done("stop", True)]
    assert (play.sub, play.machine.result) == ("failed", "timeout")
    assert "it is killed" in play.said


@pytest.mark.parametrize("asked", [StopAsked(), Notified(parse(b"STOPPING=1"))])
def test_an_end_cannot_be_put_off_for_ever(asked):
    """Else a program could keep a switch from going back from it, with no check and no watchdog looking any more."""
    play = Play(timeout_stop=2.0)
    play.up()
    play.hear(asked)
    began = play.now
    play.notify("EXTEND_TIMEOUT_USEC=5000000")
    assert play.machine.deadline() == began + 5, "what is asked for counts"
    for _ in range(100):
        play.notify("EXTEND_TIMEOUT_USEC=3600000000", after=0.1)
    assert play.machine.deadline() == began + 20
    assert play.wait() == [Kill("main")]


def test_a_start_cannot_be_put_off_for_ever():
    """Else a program could run on without a check or a watchdog, and a switch to it never come to its probation."""
    play = Play(type="notify", timeout_start=2.0)
    play.hear(StartAsked())
    play.hear(Started("main", 7))
    began = play.now
    for _ in range(100):
        play.notify("EXTEND_TIMEOUT_USEC=3600000000", after=0.1)
    assert play.machine.deadline() == began + 20
    assert Signal("main", SIGTERM, everyone=True) in play.wait()
    assert "start took too long" in play.said


def test_a_killed_sandbox_that_stays_is_killed_again():
    play = Play(timeout_stop=5.0)
    play.up()
    play.hear(StopAsked())
    assert play.wait() == play.wait() == play.wait() == [Kill("main")]
    assert play.sub == "stop-sigkill"


def test_how_it_is_ended_is_the_unit_s_to_say():
    play = Play(kill_mode="mixed", kill_signal=10, final_kill_signal=12, send_sighup=True, timeout_stop=5.0)
    play.up()
    assert play.hear(StopAsked()) == [Signal("main", 10, everyone=False), Signal("main", SIGHUP, everyone=False)]
    assert play.wait() == [Signal("main", 12, everyone=True)]
    assert play.wait() == [Kill("main")]


def test_nothing_outlives_its_unit_whatever_sendsigkill_says():
    play = Play(send_sigkill=False, timeout_stop=5.0)
    play.up()
    play.hear(StopAsked())
    assert play.wait() == [Kill("main")]
    assert "it is killed although SendSIGKILL= says no: nothing outlives its unit here" in play.said


def test_the_commands_around_the_program_in_their_order():
    play = Play(
        exec_condition=(command("c"),),
        exec_start_pre=(command("pre1"), command("pre2")),
        exec_start_post=(command("post"),),
        exec_stop=(command("stop"),),
        exec_stop_post=(command("last"),),
    )
    assert play.hear(StartAsked()) == [control("condition", "c")]
    assert play.hear(exited(which="control")) == [control("start-pre", "pre1")]
    assert play.hear(exited(which="control")) == [control("start-pre", "pre2")]
    assert play.hear(exited(which="control")) == [main(play.unit)]
    assert play.hear(Started("main", 42)) == [control("start-post", "post")]
    assert play.machine.active == "activating"
    assert play.hear(exited(which="control")) == [Done("start", True)]
    assert play.hear(StopAsked()) == [control("stop", "stop")]
    assert play.hear(exited(which="control")) == [Signal("main", SIGTERM, everyone=True)]
    assert play.hear(exited()) == [control("stop-post", "last")]
    assert play.hear(exited(which="control")) == [Done("stop", True)]
    assert play.sub == "dead"


def test_a_failed_command_before_the_start_ends_it():
    play = Play(exec_start_pre=(command("pre"),), exec_stop_post=(command("last"),))
    play.hear(StartAsked())
    assert play.hear(exited(3, "control")) == [control("stop-post", "last")]
    assert play.hear(exited(which="control")) == [
        Done("start", False, "a command of it failed"),
        Done("stop", True),
    ]
    assert (play.sub, play.machine.result) == ("failed", "exit-code")
    assert "a command of ExecStartPre= exited with 3" in play.said


def test_a_failure_that_does_not_matter():
    play = Play(exec_start_pre=(command("pre", ignore=True),))
    play.hear(StartAsked())
    assert play.hear(exited(3, "control")) == [main(play.unit)]


@pytest.mark.parametrize(("code", "result", "sub"), [(1, "exec-condition", "dead"), (255, "exit-code", "failed")])
def test_a_condition_that_is_not_met(code, result, sub):
    play = Play(exec_condition=(command("c"),), restart="always")
    play.hear(StartAsked())
    orders = play.hear(exited(code, "control"))
    if result == "exec-condition":
        assert orders == [Done("start", True, "its ExecCondition= is not met"), Done("stop", True)]
        assert (play.machine.result, play.sub) == (result, sub)
    else:
        assert play.machine.result == result
        assert play.sub == "auto-restart"


def test_a_program_that_cannot_be_executed():
    play = Play()
    play.hear(StartAsked())
    assert play.hear(NotStarted("main", "/bin/agent was not found", 127)) == [
        Done("start", False, "/bin/agent was not found"),
        Done("stop", True),
    ]
    assert (play.sub, play.machine.result) == ("failed", "exit-code")
    assert play.said == ["/bin/agent was not found"]


def test_a_sandbox_that_cannot_be_set_up():
    play = Play()
    play.hear(StartAsked())
    orders = play.hear(NotStarted("main", "no user namespaces here"))
    assert orders[0] == Done("start", False, "no user namespaces here")
    assert play.machine.result == "resources"


def test_a_stop_while_it_starts():
    play = Play(exec_start_pre=(command("pre"),))
    play.hear(StartAsked())
    assert play.hear(StopAsked()) == [Signal("control", SIGTERM, everyone=True)]
    assert play.hear(killed(SIGTERM, "control")) == [Done("start", False, "it was stopped"), Done("stop", True)]
    assert (play.sub, play.machine.result) == ("dead", "success")


def test_a_stop_waits_for_both_the_program_and_the_command_beside_it():
    play = Play(exec_start_post=(command("post"),))
    play.hear(StartAsked())
    play.hear(Started("main", 42))
    assert play.hear(StopAsked()) == [
        Signal("main", SIGTERM, everyone=True),
        Signal("control", SIGTERM, everyone=True),
    ]
    assert play.hear(killed(SIGTERM)) == []
    assert play.hear(killed(SIGTERM, "control")) == [Done("start", False, "it was stopped"), Done("stop", True)]


@pytest.mark.parametrize("number", [1, 2, 13, 15])
def test_signals_that_end_a_daemon_cleanly(number):
    play = Play()
    play.up()
    play.hear(killed(number))
    assert (play.sub, play.machine.result) == ("dead", "success")


@pytest.mark.parametrize(
    ("event", "result"),
    [
        (exited(1), "exit-code"),
        (killed(SIGKILL), "signal"),
        (Ended("main", 137, SIGKILL, out_of_memory=True), "oom-kill"),
    ],
)
def test_ends_that_are_failures(event, result):
    play = Play(exec_stop=(command("never"),))
    play.up()
    assert play.hear(event) == [Done("stop", True)]
    assert (play.sub, play.machine.result) == ("failed", result)


def test_statuses_that_the_unit_calls_a_success():
    for event in (exited(143), killed(SIGKILL)):
        play = Play(success=statuses(143, signals=(SIGKILL,)))
        play.up()
        play.hear(event)
        assert play.machine.result == "success"


def test_execstop_is_run_after_a_clean_end():
    play = Play(exec_stop=(command("stop"),))
    play.up()
    assert play.hear(exited()) == [control("stop", "stop")]
    assert play.hear(exited(which="control")) == [Done("stop", True)]


def test_what_the_program_leaves_behind_has_its_time_too():
    play = Play(restart="always", restart_sec=0.0, timeout_stop=5.0)
    play.up()
    assert play.hear(MainEnded(1)) == [Signal("main", SIGTERM, everyone=True)]
    assert (play.sub, play.machine.main_pid) == ("stop-sigterm", 0)
    assert play.wait() == [Kill("main")]
    assert play.hear(exited(1)) == [Done("stop", True), main(play.unit)]  # and never beside it


def test_what_is_left_behind_is_killed_where_the_unit_says_so():
    play = Play(kill_mode="mixed")
    play.up()
    assert play.hear(StopAsked()) == [Signal("main", SIGTERM, everyone=False)]
    assert play.hear(MainEnded(143, SIGTERM)) == [Kill("main")]
    assert play.hear(killed(SIGTERM)) == [Done("stop", True)]
    assert play.sub == "dead"


def test_want_of_memory_that_is_known_only_at_the_end():
    play = Play()
    play.up()
    play.hear(MainEnded(137, SIGKILL))
    play.hear(Ended("main", 137, SIGKILL, out_of_memory=True))
    assert (play.sub, play.machine.result) == ("failed", "oom-kill")


# Types


def test_a_service_that_says_when_it_is_ready():
    play = Play(type="notify", notify_access="main")
    play.hear(StartAsked())
    assert play.hear(Started("main", 42)) == []
    assert play.sub == "start"
    assert play.notify("STATUS=loading") == []
    assert play.notify("READY=1") == [Done("start", True)]
    assert (play.sub, play.machine.status) == ("running", "loading")


def test_a_service_that_ends_without_having_said_so():
    play = Play(type="notify")
    play.hear(StartAsked())
    play.hear(Started("main", 42))
    orders = play.hear(exited())
    assert orders[0] == Done("start", False, "its program ended without having said that it is ready (READY=1)")
    assert (play.sub, play.machine.result) == ("failed", "protocol")


def test_a_service_that_is_not_ready_in_time():
    play = Play(type="notify", timeout_start=10.0)
    play.hear(StartAsked())
    play.hear(Started("main", 42))
    assert play.wait() == [Signal("main", SIGTERM, everyone=True)]
    assert play.now == 110.0
    assert play.hear(killed(SIGTERM))[0] == Done("start", False, "it took too long")
    assert play.machine.result == "timeout"


def test_more_time_is_given_to_who_asks():
    play = Play(type="notify", timeout_start=10.0)
    play.hear(StartAsked())
    play.hear(Started("main", 42))
    play.notify("EXTEND_TIMEOUT_USEC=5000000", 8)
    assert play.machine.deadline() == 113.0
    play.notify("EXTEND_TIMEOUT_USEC=1000000")  # never less
    assert play.machine.deadline() == 113.0


def test_a_oneshot_runs_its_commands_and_is_over():
    play = Play(type="oneshot", exec_start=(command("one"), command("two")))
    assert play.hear(StartAsked()) == [main(play.unit)]
    assert play.hear(Started("main", 42)) == []
    assert play.hear(exited()) == [main(play.unit, 1)]
    assert play.hear(exited()) == [Done("start", True), Done("stop", True)]
    assert play.sub == "dead"


def test_a_oneshot_that_stays():
    play = Play(type="oneshot", remain_after_exit=True, exec_stop=(command("stop"),))
    play.hear(StartAsked())
    assert play.hear(exited()) == [Done("start", True)]
    assert (play.sub, play.machine.active) == ("exited", "active")
    assert play.hear(StopAsked()) == [control("stop", "stop")]
    assert play.hear(exited(which="control")) == [Done("stop", True)]


def test_a_oneshot_that_fails():
    play = Play(type="oneshot", exec_start=(command("one"), command("two")))
    play.hear(StartAsked())
    assert play.hear(exited(4))[0] == Done("start", False, "its program exited with 4")
    play = Play(type="oneshot", exec_start=(command("one", ignore=True), command("two")))
    play.hear(StartAsked())
    assert play.hear(exited(4)) == [main(play.unit, 1)]


# Restarts


def test_it_is_restarted_after_its_delay():
    play = Play(restart="always", restart_sec=5.0)
    play.up()
    assert play.hear(killed(SIGKILL), 1) == [Done("stop", True)]
    assert (play.sub, play.machine.active) == ("auto-restart", "activating")
    assert play.wait() == [main(play.unit)]
    assert play.now == 106.0
    assert play.hear(Started("main", 43)) == [Done("start", True)]
    assert (play.machine.restarts.count, play.machine.result) == (1, "success")


def test_without_a_delay_it_is_restarted_in_the_same_breath():
    play = Play(restart="always", restart_sec=0.0)
    play.up()
    assert play.hear(killed(SIGKILL)) == [Done("stop", True), main(play.unit)]


def test_nobody_who_stops_it_finds_it_running_again():
    play = Play(restart="always", restart_sec=0.0)
    play.up()
    play.hear(StopAsked())
    assert play.hear(killed(SIGKILL)) == [Done("stop", True)]
    assert play.sub == "failed"
    play = Play(restart="always", restart_sec=5.0)
    play.up()
    play.hear(exited(1))
    assert play.hear(StopAsked()) == [Done("start", False, "it was stopped"), Done("stop", True)]
    assert (play.sub, play.machine.deadline()) == ("dead", math.inf)


def test_the_start_limit_triggers():
    play = Play(restart="always", restart_sec=0.0, start_limit_burst=3, start_limit_interval=10.0)
    play.up()
    play.hear(exited(1), 1)
    play.hear(Started("main", 43))
    play.hear(exited(1), 1)
    play.hear(Started("main", 44))
    orders = play.hear(exited(1), 1)
    text = "it was started 3 times within 10 s, as often as its start limit allows"
    assert orders == [Done("stop", True), Done("start", False, text), Done("stop", True)]
    assert (play.sub, play.machine.result) == ("failed", "start-limit-hit")
    assert any(line.startswith(text) and "reset-failed agent.service" in line for line in play.said)
    # Asked for by hand it is refused as well, until somebody resets it.
    assert play.hear(StartAsked())[0] == Done("start", False, text)
    assert play.hear(ResetAsked()) == []
    assert play.sub == "dead"
    assert play.hear(StartAsked()) == [main(play.unit)]


def test_restart_is_a_stop_and_a_start():
    play = Play(restart_kill_signal=10, exec_stop_post=(command("last"),))
    play.up()
    assert play.hear(RestartAsked()) == [Signal("main", 10, everyone=True)]
    assert play.hear(exited()) == [control("stop-post", "last")]
    assert play.hear(exited(which="control")) == [Done("stop", True), main(play.unit)]
    assert play.hear(Started("main", 43)) == [Done("start", True)]


def test_a_start_that_is_asked_for_while_it_stops():
    play = Play()
    play.up()
    play.hear(StopAsked())
    assert play.hear(StartAsked()) == []
    assert play.hear(killed(SIGTERM)) == [Done("stop", True), main(play.unit)]
    # And the other way round: the last word counts.
    play = Play()
    play.up()
    play.hear(RestartAsked())
    assert play.hear(StopAsked()) == [Done("start", False, "it was stopped")]
    assert play.hear(killed(SIGTERM)) == [Done("stop", True)]
    assert play.sub == "dead"


def test_a_group_that_restarts_too_often_is_stopped():
    group = Group("research", 60.0, 1)
    one, other = Play(group, restart="always", restart_sec=0.0), Play(group, restart="always", restart_sec=0.0)
    one.up()
    other.up()
    assert one.hear(exited(1)) == [Done("stop", True), main(one.unit)]
    one.hear(Started("main", 43))
    text = "group research is stopped: its members were restarted 1 times within 60 s"
    assert other.hear(exited(1)) == [EndGroup(text), Done("stop", True)]
    assert (other.sub, other.machine.result) == ("failed", "start-limit-hit")
    assert one.hear(GaveUp(text)) == [Signal("main", SIGTERM, everyone=True)]
    assert one.hear(killed(SIGTERM)) == [Done("stop", True)]
    assert (one.sub, one.machine.result) == ("failed", "start-limit-hit")


# Watchdog, health, time


def test_a_watchdog_that_is_fed_and_then_not():
    play = Play(watchdog=3.0, restart="on-watchdog", restart_sec=0.0, timeout_abort=7.0)
    play.up()
    assert play.machine.deadline() == 103.0
    assert play.notify("WATCHDOG=1", 2) == []
    assert play.machine.deadline() == 105.0
    assert play.wait() == [Signal("main", SIGABRT, everyone=True)]
    assert play.sub == "stop-watchdog"
    assert play.machine.deadline() == 112.0
    assert play.hear(killed(SIGABRT)) == [Done("stop", True), main(play.unit)]
    assert play.machine.restarts.count == 1


def test_a_watchdog_that_the_service_sets_and_triggers():
    play = Play()
    play.up()
    play.notify("WATCHDOG_USEC=2000000")
    assert play.machine.deadline() == 102.0
    play.notify("WATCHDOG_USEC=0")
    assert play.machine.deadline() == math.inf
    assert play.notify("WATCHDOG=trigger") == [Signal("main", SIGABRT, everyone=True)]
    assert play.machine.result == "watchdog"


def test_an_unhealthy_service_is_ended_and_restarted_by_its_policy():
    play = Play(restart="on-failure", restart_sec=0.0)
    play.up()
    assert play.hear(Unhealthy("3 checks failed")) == [Signal("main", SIGTERM, everyone=True)]
    assert play.hear(killed(SIGTERM)) == [Done("stop", True), main(play.unit)]
    assert "it is unhealthy: 3 checks failed" in play.said
    assert Play().hear(Unhealthy("of one that is down")) == []


def test_a_service_that_may_not_run_for_longer():
    play = Play(runtime_max=60.0)
    play.up()
    assert play.wait() == [Signal("main", SIGTERM, everyone=True)]
    assert play.now == 160.0
    play.hear(killed(SIGTERM))
    assert (play.sub, play.machine.result) == ("failed", "timeout")


# Reload, and what it says of itself


def test_a_reload_runs_its_commands():
    play = Play(exec_reload=(command("one"), command("two")))
    play.up()
    assert play.hear(ReloadAsked()) == [control("reload", "one")]
    assert play.machine.active == "reloading"
    assert play.hear(exited(which="control")) == [control("reload", "two")]
    assert play.hear(exited(which="control")) == [Done("reload", True)]
    assert play.sub == "running"


def test_a_reload_that_fails_or_hangs_does_no_harm():
    play = Play(exec_reload=(command("one"),), timeout_start=5.0)
    play.up()
    play.hear(ReloadAsked())
    assert play.hear(exited(1, "control")) == [Done("reload", False, "its ExecReload= failed")]
    assert play.sub == "running"
    play.hear(ReloadAsked())
    assert play.wait() == [Kill("control"), Done("reload", False, "its reload took too long")]
    assert play.hear(killed(SIGKILL, "control")) == []
    assert play.sub == "running"


def test_a_reload_of_what_cannot_be_reloaded():
    play = Play()
    assert play.hear(ReloadAsked()) == [Done("reload", False, "it is inactive, not running")]
    play.up()
    (refused,) = play.hear(ReloadAsked())
    assert not refused.ok
    assert "ExecReload=" in refused.text


def test_an_end_in_the_midst_of_a_reload():
    play = Play(exec_reload=(command("one"),), restart="always", restart_sec=0.0)
    play.up()
    play.hear(ReloadAsked())
    assert play.hear(killed(SIGKILL)) == []
    orders = play.hear(exited(which="control"))
    assert orders == [Done("reload", True), Done("stop", True), main(play.unit)]


def test_a_service_that_reloads_and_stops_by_itself():
    play = Play(timeout_stop=5.0)
    play.up()
    play.notify("RELOADING=1")
    assert (play.sub, play.machine.active) == ("reload-notify", "reloading")
    assert play.notify("READY=1") == [Done("reload", True)]
    assert play.sub == "running"
    assert play.notify("STOPPING=1") == []
    assert play.machine.active == "deactivating"
    assert play.wait() == [Kill("main")]


def test_no_process_of_it_says_which_its_main_one_is():
    play = Play()
    play.up()
    assert play.notify("MAINPID=1\nERRNO=5") == []
    assert (play.machine.main_pid, play.machine.errno) == (42, 5)
    assert any("MAINPID=" in line for line in play.said)
    for _ in range(5):
        play.notify("MAINPID=1")
    assert len([line for line in play.said if "MAINPID=" in line]) == 1, "a flood of it is one line"


def test_the_last_commands_may_not_hang_either():
    play = Play(exec_stop_post=(command("last"),), timeout_stop=5.0)
    play.up()
    play.hear(exited())
    assert play.wait() == [Signal("control", SIGTERM, everyone=True)]
    assert play.sub == "final-sigterm"
    assert play.wait() == [Kill("control")]
    assert play.hear(killed(SIGKILL, "control")) == [Done("stop", True)]
    assert (play.sub, play.machine.result) == ("failed", "timeout")


def test_every_sub_state_has_its_state():
    assert {"inactive", "activating", "active", "reloading", "deactivating", "failed"} == {*ACTIVE.values()}
