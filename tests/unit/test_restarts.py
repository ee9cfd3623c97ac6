"""Whether and when a service is restarted: the tables of systemd.service(5), limits, groups."""

from __future__ import annotations

import math

import pytest

from osmoda.supervisor.lifecycle.restarts import Group, Restarts, StartLimit, delay, is_wanted
from tests.plain_units import plain, statuses

RESULTS = ("success", "exit-code", "signal", "timeout", "watchdog", "unhealthy", "oom-kill", "resources")
# systemd.service(5), table 1; what it does not name here has `unhealthy` as a watchdog.
TABLE = {
    "no": set(),
    "always": set(RESULTS),
    "on-success": {"success"},
    "on-failure": set(RESULTS) - {"success"},
    "on-abnormal": set(RESULTS) - {"success", "exit-code"},
    "on-abort": {"signal"},
    "on-watchdog": {"watchdog", "unhealthy"},
}


@pytest.mark.parametrize("when", TABLE)
def test_the_table_of_results(when):
    assert {result for result in RESULTS if is_wanted(when, result)} == TABLE[when]


@pytest.mark.parametrize("result", ["start-limit-hit", "exec-condition"])
def test_what_never_restarts(result):
    assert not any(is_wanted(when, result) for when in TABLE)


def restarts(chance=0.0, **unit):
    return Restarts(plain(**unit), lambda: chance)


def test_a_delay_grows_in_steps_to_its_most():
    unit = plain(restart_sec=1.0, restart_steps=4, restart_max_delay=16.0)
    assert [delay(unit, number) for number in range(1, 8)] == pytest.approx([1, 2, 4, 8, 16, 16, 16])


@pytest.mark.parametrize(
    "plainly",
    [{"restart_steps": 0}, {"restart_max_delay": math.inf}, {"restart_sec": 0.0}, {"restart_sec": 20.0}],
)
def test_a_delay_without_back_off_stays(plainly):
    unit = plain(**{"restart_sec": 1.0, "restart_steps": 4, "restart_max_delay": 16.0} | plainly)
    assert {delay(unit, number) for number in range(1, 9)} == {unit.restart_sec}


def test_chance_adds_at_most_a_tenth():
    for chance, wanted in ((0.0, 5.0), (0.5, 5.25), (1.0, 5.5)):
        found = restarts(chance, restart="always", restart_sec=5.0).after("exit-code", 1, 0, 1.0)
        assert found == pytest.approx(wanted)


def test_a_service_that_was_up_for_long_begins_the_back_off_anew():
    one = restarts(restart="always", restart_sec=1.0, restart_steps=4, restart_max_delay=16.0)
    assert [one.after("exit-code", 1, 0, 0.5) for _ in range(3)] == pytest.approx([1, 2, 4])
    assert one.after("exit-code", 1, 0, 17.0) == pytest.approx(1)
    assert one.count == 4
    one.asked()
    assert one.count == 0


def test_exit_statuses_that_prevent_and_force():
    one = restarts(restart="on-failure", restart_prevent=statuses(3, signals=(10,)), restart_force=statuses(0, 3))
    assert one.after("exit-code", 3, 0, 1) is None  # preventing comes first
    assert one.after("signal", None, 10, 1) is None
    assert one.after("signal", None, 12, 1) is not None
    assert one.after("success", 0, 0, 1) is not None
    assert one.after("start-limit-hit", 0, 0, 1) is None
    assert one.count == 2


def test_a_start_limit_triggers_and_opens_again():
    limit = StartLimit(10.0, 3)
    assert [limit.allows(now) for now in (0, 1, 2, 3, 9.9, 10.0, 10.5, 11.0)] == [
        True, True, True, False, False, True, False, True,
    ]  # fmt: skip
    limit.reset()
    assert limit.allows(11.0)


@pytest.mark.parametrize(("interval", "burst"), [(0.0, 5), (10.0, 0)])
def test_no_limit(interval, burst):
    limit = StartLimit(interval, burst)
    assert all(limit.allows(0.0) for _ in range(100))


def test_an_unlimited_interval_never_opens_again():
    limit = StartLimit(math.inf, 2)
    assert [limit.allows(now) for now in (0.0, 1.0, 1e9)] == [True, True, False]


def test_a_group_counts_the_restarts_of_all_its_members():
    group = Group("research", 60.0, 3)
    assert [group.allows(now) for now in (0, 1, 2, 3)] == [True, True, True, False]
    assert group.sentence() == "group research is stopped: its members were restarted 3 times within 60 s"
    group.reset()
    assert group.allows(3)
