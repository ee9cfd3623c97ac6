"""Whatever fails, and wherever the process that switches is killed: one generation is current and runs, and record and
ledger say which.

`switch_world` is the host. A crash comes before, within or after a command; then agents are gone with the daemon, or
go on without it, and the host may be started anew.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.switch.agents import Condition
from osmoda.supervisor.switch.phases import Prune, Save, Switch
from osmoda.supervisor.switch.record import Member, Record
from tests.generated_profiles import examples
from tests.switch_world import RUNS, Cut, Host, host, member, run

MEMBERS: tuple[tuple[Member, ...], ...] = (
    (member(),),
    (member(snapshot=True),),
    (member(before=None, after=1, ran=False),),
    (member(ran=False),),
    (member("research", 1, 2, snapshot=True), member("writer", 4, 5), Member("nixos", "system", 41, 42)),
)
SICK = Condition(running=True, given_up=False, health="unhealthy", restarts=0, reason="GET /health: 500")
CUTS = (0.0, 0.5, 1.0)
WAYS = ("agents end", "agents go on", "reboot")


def crashed(there: Host, how: str) -> Switch:
    """The process is gone, and another one takes up what is on disk."""
    if how != "agents go on":
        there.runs = dict.fromkeys(there.runs)
    if how == "reboot":
        there.boot, there.time = there.boot + "'", 5.0
    if there.record.finished:  # the engine's affair, as ever
        there.runs = {
            one.name: there.current[one.name] if ran(there.record, one) else None for one in there.record.agents
        }
    return Switch.resume(there.record, there.now())


def ran(record: Record, one: Member) -> bool:
    return one.ran or record.phase == "committed"


def calm(switch: Switch, there: Host, healthy: bool) -> Switch:
    """From now on nothing fails: carry it to its end."""
    for _ in range(20):
        run(switch, there)
        there.is_truthful()
        if switch.over:
            break
        if switch.on_probation:
            there.require(there.record.members, "after")
            for one in there.record.agents:
                if switch.on_probation:
                    switch.observe(one.name, RUNS if healthy else SICK, there.now())
        elif there.record.phase in ("rolling-back", "rollback-failed"):
            assert "rolled-back" not in [entry["phase"] for entry in there.ledger], "not before it is true"
        if switch.wakes_at is not None:
            there.time = max(there.time, switch.wakes_at)
        switch.wake(there.now())
    assert switch.over
    return switch


def ends_well(there: Host) -> None:
    record = there.record
    there.is_truthful()
    assert record.finished
    assert record.untold == ()
    there.require(record.members, "after" if record.phase == "committed" else "before")


def go(switch: Switch, there: Host, at: int, cut: float, healthy: bool) -> bool:
    """Go on until the command number `at`, which is cut off; whether it came to that."""
    for number in itertools.count():
        while (command := switch.next(there.now())) is None:
            if switch.over:
                return False
            if switch.on_probation:
                for one in there.record.agents:
                    if switch.on_probation:
                        switch.observe(one.name, RUNS if healthy else SICK, there.now())
            if switch.on_probation or switch.next(there.now()) is None:
                there.time = max(there.time, switch.wakes_at or 0)
                switch.wake(there.now())
        if number == at:
            with pytest.raises(Cut):
                there.carry_out(command, cut)
            return True
        there.carry_out(command)
        switch.done(command, there.now())
    raise AssertionError


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("members", MEMBERS, ids=range(len(MEMBERS)))
def test_killed_at_each_command(members: tuple[Member, ...], healthy: bool) -> None:
    """All of them, one kill each, and every fourth command of the recovery killed once more."""
    for at in itertools.count():
        for cut, how, again in itertools.product(CUTS, WAYS, (None, *range(0, 12, 4))):
            there = host(*members)
            if not go(Switch.begin(there.record), there, at, cut, healthy):
                assert at >= 12, "it had many commands to be killed at"
                return
            switch = crashed(there, how)
            if again is not None and go(switch, there, again, cut, healthy):
                switch = crashed(there, how)
            calm(switch, there, healthy)
            ends_well(there)


@examples
@given(data=st.data(), members=st.sampled_from(MEMBERS), healthy=st.booleans())
def test_whatever_fails_and_is_killed(data: st.DataObject, members: tuple[Member, ...], healthy: bool) -> None:
    there = host(*members)
    switch = Switch.begin(there.record)
    for _ in range(data.draw(st.integers(0, 40))):
        command = switch.next(there.now())
        if command is None:
            if switch.over:
                break
            act = data.draw(st.sampled_from(["wait", "healthy", "sick", "commit", "back", "crash"]))
            if act == "crash":
                switch = crashed(there, data.draw(st.sampled_from(WAYS)))
            elif act == "back" and not there.record.finished:
                switch.go_back("by hand", there.now())
            elif act == "commit" and switch.on_probation:
                switch.commit("by hand", there.now())
            elif act in ("healthy", "sick"):
                for one in there.record.agents:
                    switch.observe(one.name, RUNS if act == "healthy" else SICK, there.now())
            else:
                there.time = max(there.time, switch.wakes_at or 0)
                switch.wake(there.now())
            continue
        how = data.draw(st.sampled_from(["done"] * 6 + ["failed", "half failed", "crash"]))
        if how == "done":
            there.carry_out(command)
            switch.done(command, there.now())
        elif how == "crash":
            with pytest.raises(Cut):
                there.carry_out(command, data.draw(st.sampled_from(CUTS)))
            switch = crashed(there, data.draw(st.sampled_from(WAYS)))
        else:
            # What is refused may have been done in part, but a record that could not be saved is not on disk.
            if how == "half failed" and not isinstance(command, (Save, Prune)):
                with pytest.raises(Cut):
                    there.carry_out(command, data.draw(st.sampled_from(CUTS)))
            switch.failed(command, "it broke", there.now())
    calm(switch, there, healthy)
    ends_well(there)
