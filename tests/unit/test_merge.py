from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.merge import WORKSPACES, Declaration, extend, merge
from osmoda.sandbox.toml_source import Position

positions = st.builds(Position, st.sampled_from(["a", "b"]), st.integers(1, 9), st.integers(1, 9))
READ, DENY, PIDS, TIER = ("filesystem", "read"), ("filesystem", "deny"), ("process", "pids"), ("tier",)
WORKSPACE, LOOPBACK = ("filesystem", "workspace"), ("network", "loopback")


@st.composite
def declarations(draw):
    lists = draw(
        st.dictionaries(st.sampled_from([READ, DENY]), st.dictionaries(st.sampled_from("pqr"), positions), max_size=2)
    )
    values = {
        PIDS: st.integers(1, 3),
        TIER: st.integers(0, 2),
        WORKSPACE: st.sampled_from(WORKSPACES),
        LOOPBACK: st.booleans(),
    }
    scalars = {key: draw(st.tuples(value, positions)) for key, value in values.items() if draw(st.booleans())}
    return Declaration({key: draw(positions) for key in lists}, lists, scalars, {})


@given(st.lists(declarations(), max_size=4), st.randoms())
def test_the_order_never_matters(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert merge(shuffled) == merge(found)


@given(declarations(), declarations(), declarations())
def test_merging_is_associative_and_idempotent(a, b, c):
    assert merge((merge((a, b)), c)) == merge((a, merge((b, c))))
    assert merge((a, a)) == merge((a,)) == a


@given(st.lists(declarations(), min_size=1, max_size=4))
def test_lists_are_united_and_the_tightest_value_holds(found):
    merged = merge(found)
    for key in (READ, DENY):
        assert set(merged.lists.get(key, ())) == {item for one in found for item in one.lists.get(key, ())}
    for key, tightest in ((PIDS, min), (TIER, max), (LOOPBACK, min)):
        declared = [one.scalars[key][0] for one in found if key in one.scalars]
        assert ([merged.scalars[key][0]] if declared else []) == ([tightest(declared)] if declared else [])


def test_the_tightest_workspace_holds():
    def workspace(value):
        return Declaration({}, {}, {WORKSPACE: (value, Position("a", 1, 1))}, {})

    assert merge(map(workspace, ("direct", "overlay"))).scalars[WORKSPACE][0] == "overlay"
    assert merge(map(workspace, ("overlay", "none", "direct"))).scalars[WORKSPACE][0] == "none"


def variable(value: str, file: str) -> Declaration:
    return Declaration({}, {}, {}, {"A": (value, Position(file, 3, 5))})


def test_two_files_that_disagree_about_a_variable_are_refused_in_either_order():
    for order in (("1", "a"), ("2", "b")), (("2", "b"), ("1", "a")):
        with pytest.raises(ProfileError) as caught:
            merge(variable(*one) for one in order)
        assert str(caught.value).startswith('b:3:5: environment.set.A is "2" here and "1" in a:3;')
    assert merge((variable("1", "b"), variable("1", "a"))).variables == {"A": ("1", Position("a", 3, 5))}


def test_of_several_disagreements_the_same_one_is_told_in_any_order():
    files = [
        Declaration({}, {}, {}, {name: (value, Position(file, 3, 5)) for name, value in values.items()})
        for file, values in (("a", {"X": "2", "TZ": "1"}), ("b", {"TZ": "2", "X": "1"}), ("c", {"LANG": "1", "X": "3"}))
    ]
    told = set()
    for order in permutations(files):
        with pytest.raises(ProfileError) as caught:
            merge(order)
        told.add(str(caught.value))
    assert len(told) == 1


def test_the_file_that_extends_both_says_which():
    found = extend(variable("3", "c"), (variable("1", "a"), variable("2", "b")))
    assert found.variables["A"][0] == "3"
