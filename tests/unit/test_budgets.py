from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.egress.budgets import Budgets
from osmoda.egress.policy import Grant

FREE = Grant("*.b", origin="p:1")


def requests(most: int, **fields) -> Grant:
    return Grant(**{"host": "a.b", "max_requests": most, "origin": "p:2", **fields})


def volume(most: int, **fields) -> Grant:
    return Grant(**{"host": "a.b", "max_bytes": most, "origin": "p:3", **fields})


# ---- Connections


def test_so_many_connections_may_be_open():
    budgets = Budgets(connections=2)
    assert budgets.connect(0) == budgets.connect(1) == ""
    assert budgets.connect(2) == "the sandbox has 2 connections open, and 2 are the most"
    assert Budgets().connect(1023) == ""
    assert Budgets().connect(1024)


# ---- Names


def test_names_that_a_profile_lists_are_free():
    budgets = Budgets(names=1, names_per_minute=1)
    assert all(budgets.new_name(f"n{number}.b", False, 0.0) == "" for number in range(100))


def test_a_name_counts_once():
    budgets = Budgets(names=2, names_per_minute=2)
    for _ in range(5):
        assert budgets.new_name("a.b", True, 0.0) == ""
    assert budgets.new_name("c.b", True, 0.0) == ""
    assert budgets.new_name("d.b", True, 1000.0) == (
        "d.b is one name too many: 2 that no rule names in full are the most for a sandbox"
    )
    assert budgets.new_name("c.b", True, 1000.0) == ""


def test_new_names_come_at_a_limited_rate():
    budgets = Budgets(names_per_minute=2)
    assert budgets.new_name("a.b", True, 0.0) == budgets.new_name("b.b", True, 30.0) == ""
    refusal = "c.b is one name too many: 2 in a minute that no rule names in full are the most"
    assert budgets.new_name("c.b", True, 59.9) == refusal
    assert budgets.new_name("a.b", True, 59.9) == ""
    assert budgets.new_name("c.b", True, 60.0) == ""
    assert budgets.new_name("d.b", True, 89.9) != ""
    assert budgets.new_name("d.b", True, 90.0) == ""


def test_by_default_256_a_minute_and_4096_in_all():
    budgets = Budgets()
    let_through = [budgets.new_name(f"n{number}.b", True, number * 0.01) == "" for number in range(6000)]
    assert sum(let_through) == 256
    budgets, now, total = Budgets(), 0.0, 0
    for number in range(20_000):
        now += 0.25
        total += budgets.new_name(f"n{number}.b", True, now) == ""
    assert total == 4096


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=60))
def test_never_more_new_names_in_any_minute(steps):
    budgets, now, times, seen = Budgets(names=100, names_per_minute=3), 0.0, [], set()
    for wait, number in steps:
        now += wait
        new = number not in seen
        if budgets.new_name(f"n{number}.b", True, now) == "":
            seen.add(number)
            times += [now] * new
        else:
            assert new
            assert len([time for time in times if now - time < 60]) == 3
    assert all(len([other for other in times if time <= other < time + 60]) <= 3 for time in times)


# ---- Requests


def test_without_a_budget_nothing_is_counted():
    budgets = Budgets()
    assert all(budgets.take_request([FREE, requests(1)]) == "" for _ in range(5))
    assert budgets.left([FREE, requests(1)]) == (FREE, requests(1))
    assert budgets.meter([FREE]) is None
    assert budgets.meter([FREE, volume(1)]) is None
    assert budgets.meter([]) is None


def test_a_budget_of_requests_is_used_up():
    budgets, grant = Budgets(), requests(2)
    assert budgets.take_request([grant]) == budgets.take_request([grant]) == ""
    assert budgets.left([grant]) == ()
    assert budgets.take_request([grant]) == "p:2 allows 2 requests in all (max_requests), and they are used up"
    assert budgets.take_request([]) == "no rule lets it through"


def test_of_several_one_that_has_something_left_is_enough():
    budgets, small, large = Budgets(), requests(1), requests(3, host="*.b")
    assert [budgets.take_request([small, large]) == "" for _ in range(4)] == [True, True, True, False]
    assert budgets.take_request([small]) != ""


def test_an_edit_goes_on_from_what_has_been_used():
    budgets = Budgets()
    assert budgets.take_request([requests(1)]) == ""
    assert budgets.left([requests(1, origin="p:77")]) == ()
    raised = requests(2, origin="p:77")
    assert budgets.take_request([raised]) == ""
    assert budgets.take_request([raised]) != ""
    assert budgets.take_request([requests(2, ports=(80,))]) == ""


# ---- Bytes


def test_a_budget_of_bytes_is_used_up_by_all_connections_together():
    budgets, grant = Budgets(), volume(100)
    assert budgets.take_request([grant]) == ""
    one, other = budgets.meter([grant]), budgets.meter([grant])
    assert one is not None
    assert other is not None
    assert one(60)
    assert other(40)  # to the last byte
    assert budgets.take_request([grant]) == "p:3 allows 100 bytes in all (max_bytes), and they are used up"
    assert not one(1)
    assert not other(0)


def test_a_budget_of_bytes_counts_one_movement_once():
    budgets = Budgets()
    meter = budgets.meter([volume(100), volume(150, origin="p:9")])
    assert meter is not None
    assert meter(150)
    assert budgets.left([volume(100), volume(150)]) == ()
    assert budgets.left([volume(100), volume(151)]) == (volume(151),)


def test_requests_and_bytes_of_one_rule_are_both_needed():
    budgets, both = Budgets(), Grant("a.b", max_requests=5, max_bytes=10, origin="p:4")
    assert budgets.take_request([both]) == ""
    meter = budgets.meter([both])
    assert meter is not None
    assert meter(10)
    assert budgets.take_request([both]) == "p:4 allows 10 bytes in all (max_bytes), and they are used up"


grants = st.builds(
    Grant,
    host=st.sampled_from(["a.b", "*.b", "*"]),
    max_requests=st.sampled_from([-1, 1, 2, 3]),
    max_bytes=st.sampled_from([-1, 5, 10]),
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.lists(grants, min_size=1, max_size=3), st.lists(st.integers(0, 6), max_size=3)), max_size=12)
)
def test_budgets_against_plain_sums(history):
    budgets, taken, moved = Budgets(), {}, {}
    for matching, pieces in history:

        def alive(grant):
            requests_left = grant.max_requests < 0 or taken.get(grant.host, 0) < grant.max_requests
            return requests_left and (grant.max_bytes < 0 or moved.get(grant.host, 0) < grant.max_bytes)

        usable = [grant for grant in matching if alive(grant)]
        assert list(budgets.left(matching)) == usable
        free = any(grant.max_requests == grant.max_bytes == -1 for grant in matching)
        assert (budgets.take_request(matching) == "") == bool(usable)
        if not usable:
            continue
        counted = {grant.host for grant in matching if grant.max_requests >= 0 or grant.max_bytes >= 0}
        if not free:
            for host in counted:
                taken[host] = taken.get(host, 0) + 1
        meter = budgets.meter(usable)
        assert (meter is None) == any(grant.max_bytes < 0 for grant in usable)
        for piece in pieces if meter is not None else []:
            for host in {grant.host for grant in usable}:
                moved[host] = moved.get(host, 0) + piece
            assert meter(piece) == any(moved[grant.host] <= grant.max_bytes for grant in usable)


@pytest.mark.parametrize("count", [1, 1000])
def test_what_is_held_does_not_grow_with_use(count):
    budgets, grant = Budgets(), volume(1 << 60)
    for _ in range(count):
        budgets.take_request([grant])
        meter = budgets.meter([grant])
        assert meter is not None
        meter(1)
    assert len(budgets._used) == 1
