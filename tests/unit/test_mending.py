"""What a host lacks, and what a person can do about it."""

from __future__ import annotations

import pytest

from osmoda.sandbox import mending
from tests.compiled import host


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({}, []),
        ({"landlock": 0}, ["landlock"]),
        ({"landlock": 3}, ["landlock-net", "landlock-scope"]),
        ({"landlock": 5}, ["landlock-scope"]),
        ({"notify": False}, ["notify"]),
    ],
)
def test_missing_layers_are_those_that_a_plan_would_have_to_give_up(changed, missing):
    assert list(mending.missing_layers(host(**changed))) == missing


def test_without_them_a_profile_that_names_them_compiles():
    from tests.compiled import compiled

    for changed in ({"landlock": 0}, {"landlock": 3}, {"landlock": 5}, {"notify": False}):
        names = list(mending.missing_layers(host(**changed)))
        # loopback = false makes the rules for ports wanted as well.
        _, plan = compiled(f"tier = 1\ndegrade = {names}\n[network]\nloopback = false".replace("'", '"'), **changed)
        assert sorted(entry.layer for entry in plan.degraded) == sorted(names)


@pytest.mark.parametrize(
    ("changed", "message", "mend"),
    [
        ({"user_namespaces": 0}, "clone3: No space left on device", "max_user_namespaces"),
        ({"uid": 1000, "apparmor_restricted": True}, "clone3: Permission denied", "packaging/apparmor/install"),
        ({}, "fsmount proc: Operation not permitted (mounts, tier 1)", "/proc"),
        ({}, "clone3: Operation not permitted", "unprivileged_userns_clone"),
        ({"kernel": (5, 4)}, "open_tree: Function not implemented", "Linux 5.14"),
        ({}, "something else", ""),
    ],
)
def test_why_nothing_starts(changed, message, mend):
    found = mending.for_launch(host(**changed), message)
    assert mend in found
    assert bool(mend) == bool(found)


def test_limits_are_mended_by_delegation_for_users_and_by_the_hierarchy_for_root():
    assert "Delegate=yes" in mending.for_controller(host(uid=1000, cgroup_version=0), "memory")
    assert "enable-linger" in mending.for_controller(host(uid=1000), "cpu")
    assert "mount a cgroup" in mending.for_controller(host(cgroup_version=0), "cpu")
    assert 'degrade = ["cpu"]' in mending.for_controller(host(), "cpu")
