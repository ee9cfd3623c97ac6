"""The state machine of a switch, as dialogues: what it wants done, what has become of it, what it wants then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from osmoda.supervisor.switch.agents import Condition
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.phases import (
    MOST_DELAY,
    Confirm,
    Flip,
    Prune,
    Restore,
    Save,
    Snapshot,
    Start,
    Stop,
    Switch,
    Tell,
    Verify,
    delay,
)
from osmoda.supervisor.switch.record import Member
from tests.switch_world import RUNS, Host, host, member, run


def begun(*members: Member) -> tuple[Switch, Host]:
    there = host(*members)
    return Switch.begin(there.record), there


def on_probation(*members: Member) -> tuple[Switch, Host]:
    switch, there = begun(*members)
    run(switch, there)
    assert switch.on_probation
    return switch, there


def kinds(commands: list[object]) -> list[str]:
    return [type(command).__name__ for command in commands]


def fail(switch: Switch, there: Host, kind: type, error: str = "it broke") -> None:
    """Carry out what it says up to a command of `kind`, and let that one fail."""
    while not isinstance(command := switch.next(there.now()), kind):
        assert command is not None, f"no {kind.__name__} comes"
        there.carry_out(command)
        switch.done(command, there.now())
    switch.failed(command, error, there.now())


def test_a_switch_that_goes_well():
    switch, there = begun()
    made = run(switch, there)
    assert kinds(made) == ["Tell", "Save", "Tell", "Verify", "Verify", "Stop", "Flip", "Start", "Save", "Tell"]
    assert (there.current, there.runs) == ({"research": 2}, {"research": 2})
    assert there.record.phase == "probation"
    switch.observe("research", RUNS, there.now())
    there.time += 59
    switch.wake(there.now())
    assert run(switch, there) == [], "its time is not over"
    there.time += 2
    switch.wake(there.now())
    assert kinds(run(switch, there)) == ["Save", "Tell", "Save", "Prune"]
    assert switch.over
    assert (there.record.phase, there.record.untold) == ("committed", ())
    assert [entry["phase"] for entry in there.ledger] == ["staged", "switching", "probation", "committed"]


def test_each_phase_is_on_disk_and_on_the_ledger_before_anything_of_it_is_done():
    switch, there = begun()
    made = run(switch, there)
    first = next(index for index, command in enumerate(made) if isinstance(command, Stop))
    assert [type(command) for command in made[1:3]] == [Save, Tell]
    assert made[1].record.phase == "switching"
    assert first > 2


def test_several_agents_are_stopped_before_any_is_flipped_and_all_or_none_are_switched():
    two = (member("research"), member("writer", 4, 5))
    switch, there = begun(*two)
    fail(switch, there, Start, "research has no port")
    made = run(switch, there)
    assert kinds(made[2:4]) == ["Stop", "Stop"]
    assert [command.member.name for command in made if isinstance(command, Flip)] == ["writer", "research"]
    assert (there.current, there.runs) == ({"research": 1, "writer": 4}, {"research": 1, "writer": 4})
    assert (there.record.phase, there.record.reason) == ("rolled-back", "research has no port")


def test_a_generation_that_has_changed_is_not_activated_and_nothing_is_stopped():
    switch, there = begun()
    fail(switch, there, Verify, "generation 2 is not what it was")
    made = run(switch, there)
    assert not [command for command in (*there.done, *made) if isinstance(command, (Stop, Flip, Start))]
    assert there.record.phase == "rolled-back"
    assert there.record.reason == "generation 2 is not what it was; nothing was changed"


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        (Condition(True, False, "unhealthy", 0, "GET /health: 500"), "research is not healthy: GET /health: 500"),
        (Condition(False, True, "unchecked", 0, "exit code 3"), "research does not run and is not started again: exit"),
        (
            Condition(True, False, "starting", 3, "exit code 3"),
            "research was restarted 3 times within 60 s: exit code 3",
        ),
    ],
)
def test_an_agent_that_fails_on_probation_is_switched_back(condition, why):
    switch, there = on_probation()
    switch.observe("research", condition, there.now())
    made = run(switch, there)
    assert kinds(made) == [
        "Save", "Tell", "Stop", "Verify", "Flip", "Start", "Confirm", "Save", "Tell", "Save", "Prune",
    ]  # fmt: skip
    assert switch.over
    assert there.record.phase == "rolled-back"
    assert there.record.reason.startswith(why)
    assert (there.current, there.runs) == ({"research": 1}, {"research": 1})


def test_an_agent_that_never_becomes_healthy_is_switched_back_at_the_end():
    switch, there = on_probation()
    switch.observe("research", replace(RUNS, health="starting"), there.now())
    there.time += 61
    switch.wake(there.now())
    run(switch, there)
    assert there.record.phase == "rolled-back"
    assert there.record.reason == "research did not become healthy within its probation of 60 s"


def test_restarts_that_are_far_apart_are_no_loop():
    switch, there = on_probation()
    for restarts in range(1, 6):
        switch.observe("research", replace(RUNS, restarts=restarts), there.now())
        there.time += 40
    assert switch.on_probation


def test_data_is_copied_while_the_agent_is_stopped_and_put_back_with_the_generation():
    switch, there = on_probation(member(snapshot=True))
    assert there.copies == {"research": "as before"}
    assert there.data == {"research": "of the new one"}
    switch.go_back("by hand", there.now())
    made = run(switch, there)
    assert [kind for kind in kinds(made) if kind in ("Stop", "Restore", "Flip", "Start")] == [
        "Stop", "Restore", "Flip", "Start",
    ]  # fmt: skip
    assert there.data == {"research": "as before"}


def test_a_copy_that_fails_leads_back_to_what_was():
    switch, there = begun(member(snapshot=True))
    fail(switch, there, Snapshot, "the disk is full")
    run(switch, there)
    assert (there.record.phase, there.record.reason) == ("rolled-back", "the disk is full")
    assert there.runs == {"research": 1}
    assert Restore(member(snapshot=True)) in there.done, "asked for; without a copy it does nothing"


def test_the_first_generation_of_an_agent_leads_back_to_none():
    switch, there = on_probation(member(before=None, after=1, ran=False))
    switch.go_back("by hand", there.now())
    run(switch, there)
    assert (there.current, there.runs) == ({"research": None}, {"research": None})


def test_an_agent_that_did_not_run_does_not_run_after_a_rollback():
    switch, there = on_probation(member(ran=False))
    assert there.runs == {"research": 2}
    switch.go_back("by hand", there.now())
    run(switch, there)
    assert (there.current, there.runs) == ({"research": 1}, {"research": None})


def test_a_rollback_that_fails_says_so_and_is_tried_again():
    switch, there = on_probation()
    switch.go_back("by hand", there.now())
    waits = []
    for _ in range(4):
        fail(switch, there, Start, "the port is taken")
        run(switch, there)
        assert there.record.phase == "rollback-failed"
        assert there.record.error == "the port is taken"
        waits.append(round(switch.wakes_at - there.time))
        switch.wake(there.now())
        assert switch.next(there.now()) is None, "not before its time"
        there.time = switch.wakes_at
        switch.wake(there.now())
    assert waits == [1, 2, 4, 8]
    assert there.record.attempts == 4
    run(switch, there)
    assert there.record.phase == "rolled-back"
    told = [entry["phase"] for entry in there.ledger]
    assert told == ["staged", "switching", "probation", "rolling-back", "rollback-failed", "rolled-back"]


def test_what_it_waits_for_between_attempts_has_a_bound_and_a_person_can_shorten_it():
    assert delay(1000) == MOST_DELAY
    switch, there = on_probation()
    switch.go_back("by hand", there.now())
    fail(switch, there, Confirm, "research does not run")
    run(switch, there)
    switch.go_back("by hand", there.now())
    switch.wake(there.now())
    run(switch, there)
    assert there.record.phase == "rolled-back"


def test_a_rollback_that_fails_in_another_way_is_told():
    switch, there = on_probation()
    switch.go_back("by hand", there.now())
    for error in ("the port is taken", "the disk is gone"):
        fail(switch, there, Start, error)
        run(switch, there)
        there.time = switch.wakes_at
        switch.wake(there.now())
    assert [entry["error"] for entry in there.ledger if entry["phase"] == "rollback-failed"] == [
        "the port is taken",
        "the disk is gone",
    ]


# The ledger


@pytest.mark.parametrize("before", [0, 1])
def test_nothing_is_changed_when_the_ledger_cannot_be_written(before):
    switch, there = begun()
    for _ in range(before):
        while not isinstance(command := switch.next(there.now()), Tell):
            there.carry_out(command)
            switch.done(command, there.now())
        there.carry_out(command)
        switch.done(command, there.now())
    fail(switch, there, Tell, "no room")
    fail(switch, there, Tell, "no room")
    assert there.record.phase == "rolled-back"
    assert there.record.reason == "the ledger could not be written: no room; nothing was changed"
    assert not switch.over, "it owes the ledger an entry"
    there.time = switch.wakes_at
    switch.wake(there.now())
    run(switch, there)
    assert switch.over
    assert there.ledger[-1]["phase"] == "rolled-back"
    assert not [command for command in there.done if isinstance(command, (Stop, Flip, Start))]
    there.is_truthful()


def test_a_way_back_is_not_stopped_by_the_ledger_which_is_told_later():
    switch, there = on_probation()
    switch.go_back("by hand", there.now())
    fail(switch, there, Tell, "no room")
    assert switch.trouble == "the ledger could not be written: no room"
    fail(switch, there, Tell, "no room")
    assert there.record.phase == "rolled-back"
    assert there.runs == {"research": 1}
    assert [entry["phase"] for entry in there.record.untold] == ["rolling-back", "rolled-back"]
    assert Prune() not in there.done, "old generations are kept until it is told"
    there.time = switch.wakes_at
    switch.wake(there.now())
    run(switch, there)
    assert [entry["phase"] for entry in there.ledger[-2:]] == ["rolling-back", "rolled-back"]
    assert there.record.untold == ()
    assert switch.over


# The record


def test_nothing_is_changed_when_the_record_cannot_be_written():
    switch, there = begun()
    fail(switch, there, Save, "read-only")
    run(switch, there)
    assert there.record.phase == "rolled-back"
    assert "nothing was changed" in there.record.reason
    assert not [command for command in there.done if isinstance(command, (Stop, Flip, Start))]


def test_what_cannot_be_committed_stays_on_probation():
    switch, there = on_probation()
    switch.observe("research", RUNS, there.now())
    switch.commit("by hand", there.now())
    fail(switch, there, Save, "read-only")
    assert switch.on_probation
    assert switch.trouble == "the record of the switch could not be written: read-only"
    switch.observe("research", Condition(True, False, "unhealthy", 0), there.now())
    run(switch, there)
    assert there.record.phase == "rolled-back", "what agents do still counts"


def test_no_step_back_is_made_before_it_is_on_disk():
    switch, there = on_probation()
    switch.go_back("by hand", there.now())
    fail(switch, there, Save, "read-only")
    assert switch.next(there.now()) is None
    assert there.runs == {"research": 2}
    there.time = switch.wakes_at
    switch.wake(there.now())
    run(switch, there)
    assert there.record.phase == "rolled-back"


# By hand, and after a restart


def test_a_commit_by_hand_ends_the_probation():
    switch, there = on_probation()
    switch.commit("by uid 0", there.now())
    run(switch, there)
    assert (there.record.phase, there.record.reason) == ("committed", "by uid 0")
    with pytest.raises(SwitchError, match="is over: it is committed"):
        switch.go_back("by hand", there.now())


def test_what_is_not_on_probation_is_not_committed():
    switch, there = begun()
    with pytest.raises(SwitchError, match="is not on probation: it is staged"):
        switch.commit("by hand", there.now())


def test_probation_goes_on_after_the_daemon_was_restarted_and_the_time_counts():
    _switch, there = on_probation()
    there.time += 50
    there.runs = {"research": None}
    again = Switch.resume(there.record, there.now())
    run(again, there)
    assert there.runs == {"research": 2}
    assert again.on_probation
    assert again.wakes_at - there.time == pytest.approx(60, abs=1), "those started anew have a minute to become healthy"


def test_a_long_probation_ends_when_it_would_have():
    there = host(seconds=3600.0)
    run(Switch.begin(there.record), there)
    there.time += 3000
    again = Switch.resume(there.record, there.now())
    run(again, there)
    assert again.wakes_at - there.time == pytest.approx(600, abs=1)


def test_probation_begins_anew_after_a_reboot():
    _switch, there = on_probation()
    there.boot, there.time, there.runs = "second", 5.0, {"research": None}
    again = Switch.resume(there.record, there.now())
    run(again, there)
    assert there.record.phase == "probation"
    assert there.record.reason == "the host was started anew, and so is the probation"
    assert there.runs == {"research": 2}
    assert again.wakes_at == pytest.approx(65, abs=1)


def test_a_system_is_switched_with_the_agents_and_back():
    system = Member("nixos", "system", 41, 42)
    switch, there = on_probation(member(), system)
    assert there.current == {"research": 2, "system": 42}
    switch.go_back("by hand", there.now())
    made = run(switch, there)
    assert [command.member.name for command in made if isinstance(command, Flip)] == ["system", "research"]
    assert there.current == {"research": 1, "system": 41}
