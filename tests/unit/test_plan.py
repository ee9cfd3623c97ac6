from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from osmoda.sandbox import tiers
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.operations import confinement, isolation
from osmoda.sandbox.plan import FORMAT, Degradation, Plan
from osmoda.sandbox.profile import Profile
from tests.compiled import host

SHIPPED = sorted(Path(tiers.SHIPPED, "agents").glob("*.toml"))
NAMES = [*(path.stem for path in SHIPPED), "tier0", "tier1", "tier2"]
REFUSALS = (ValueError, EOFError, TypeError, LookupError)


def shipped(name):
    return compile_profile(Profile.load(name), host())


def test_there_are_shipped_profiles():
    assert len(SHIPPED) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_comes_back_as_it_was(name):
    plan = shipped(name)
    again = Plan.load(plan.dump())
    assert again == plan
    assert list(map(type, again)) == list(map(type, plan))
    assert hash(again) == hash(plan)


def test_so_does_what_it_had_to_leave_out():
    profile = compile_profile(Profile.default(2), host())
    degraded = Plan(
        **{name: getattr(profile, name) for name in Plan.__fields__}
        | {"degraded": (Degradation("landlock", "none here", "a.toml:3"),)}
    )
    assert Plan.load(degraded.dump()).degraded == degraded.degraded


def test_namespaces_are_the_clones_flags():
    plan = shipped("tier2")
    namespaces = next(op for op in plan if isinstance(op, isolation.Namespaces))
    assert plan.unshared == namespaces.flags() == 0x7E020000
    assert shipped("tier0").unshared == 0


def test_the_filter_is_the_last_operation():
    for name in ("tier1", "tier2"):
        *others, last = shipped(name)
        assert isinstance(last, confinement.Seccomp)
        assert not any(isinstance(op, confinement.Seccomp) for op in others)


@pytest.fixture(scope="module")
def dumped():
    return shipped("tier2").dump()


@pytest.mark.parametrize("number", [0, FORMAT + 1, "1", None])
def test_another_format_is_refused(dumped, number):
    _, values = marshal.loads(dumped)
    with pytest.raises(ValueError, match=f"plan format {number}, not {FORMAT}"):
        Plan.load(marshal.dumps((number, values)))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0",
        b"garbage",
        marshal.dumps(None),
        marshal.dumps(FORMAT),
        marshal.dumps((FORMAT,)),
        marshal.dumps((FORMAT, ())),
        marshal.dumps((FORMAT, (1, 2, 3))),
        marshal.dumps((FORMAT, 5)),
        marshal.dumps((FORMAT, {})),
        marshal.dumps((FORMAT, "abcdef")),
        marshal.dumps((FORMAT, (2, "n", "d", (("Nothing", "tier 2"),), ()))),
        marshal.dumps((FORMAT, (2, "n", "d", (("Hostname", "tier 2", "a", "b"),), ()))),
        marshal.dumps((FORMAT, (2, "n", "d", (("Hostname",),), ()))),
        marshal.dumps((FORMAT, (2, "n", "d", ((["list"],),), ()))),
        marshal.dumps((FORMAT, (2, "n", "d", ((),), ()))),
        marshal.dumps((FORMAT, (2, "n", "d", (), ()))),
    ],
)
def test_what_dump_did_not_write_is_refused(garbage):
    with pytest.raises(REFUSALS):
        Plan.load(garbage)


def test_a_plan_that_is_cut_short_is_refused(dumped):
    for end in {*range(0, len(dumped), 97), len(dumped) - 1}:
        with pytest.raises(REFUSALS):
            Plan.load(dumped[:end])
