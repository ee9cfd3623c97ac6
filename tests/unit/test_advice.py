"""Advice is a line that would be accepted, at the place where it belongs, or nothing."""

from __future__ import annotations

import tomllib

import pytest

from osmoda.sandbox import advice
from osmoda.sandbox.seccomp import allowed
from tests.compiled import compiled


def test_a_removal_of_its_own_gives_way_to_the_call_and_keeps_the_rest_removed():
    profile, _ = compiled('tier = 1\n[process]\nsyscalls = ["@system-service", "~@chown"]')
    changed = advice.for_call("chown", 1, "/p/agent.toml:4", profile)
    entries = tomllib.loads(changed.line)["syscalls"]
    before = allowed(profile.process.syscalls, tier=1)
    after = allowed(entries, tier=1)
    assert after - before == {"chown"}
    assert before <= after


@pytest.mark.parametrize("name", ["ptrace", "mincore", "process_vm_readv"])
def test_nothing_but_the_call_is_added(name):
    profile, _ = compiled("tier = 1")
    before = allowed(profile.process.syscalls, tier=1)
    if name in before:
        pytest.fail(f"{name} is no example: it is allowed already")
    changed = advice.for_call(name, 1, "tier 1", profile)
    if changed.line:
        assert allowed(tomllib.loads(changed.line)["syscalls"], tier=1) - before == {name}
        assert changed.text.startswith("[process] of a profile would allow it: ")
    else:
        assert changed.text.startswith("above tier 1's ceiling")


def test_a_group_that_the_tier_takes_away_is_named():
    profile, _ = compiled("tier = 2")
    assert advice.for_call("io_setup", 2, "tier 2", profile).text == "above tier 2's ceiling: the tier takes ~@aio away"


def test_where_to_write_is_the_line_or_else_the_table():
    assert advice.place("/p/a.toml:7", "process") == "/p/a.toml:7"
    for nowhere in ("", "tier 2", "command line:3"):
        assert advice.place(nowhere, "process") == "[process] of a profile"


def test_a_path_granted_by_options_can_be_granted_by_an_option():
    from osmoda.sandbox.profile import Profile

    changed = advice.for_path("/opt/x", 2, write=False, profile=Profile.default(2))
    assert changed.text == '--read /opt/x would allow it, or in a profile: read = ["/opt/x"]'


def test_a_line_is_toml_whatever_the_path_is_called():
    profile, _ = compiled("tier = 1")
    path = '/opt/a "quoted" \\ name'
    changed = advice.for_path(path, 1, write=True, profile=profile)
    assert tomllib.loads(changed.line) == {"write": [path]}


def test_osmodas_own_files_are_never_advised_to_be_written():
    profile, _ = compiled("tier = 1")
    assert advice.for_path("/etc/osmoda/x", 1, write=True, profile=profile).line == ""
