"""Deny wins: over paths, over the network and over system calls, whatever else a profile grants."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from hypothesis import given

from osmoda.egress.policy import Policy
from osmoda.sandbox.operations.confinement import Seccomp
from osmoda.sandbox.plan import Plan
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.syscall_groups import GROUPS
from osmoda.sandbox.syscall_numbers import KNOWN
from osmoda.sandbox.verdict import Mode, path_verdict
from tests import bpf_machine as machine
from tests.compiled import MACHINE
from tests.generated_profiles import ADDRESSES, FILES, NAMES, PORTS, WORKSPACE, Table, compiled, examples, tables
from tests.seccomp_oracle import ALLOW, ARCHITECTURES, KEPT
from tests.unit.test_destinations import means


def within(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


@examples
@given(table=tables(1, 2))
def test_deny_wins(table: Table, files: Path) -> None:
    profile, plan = compiled(table, files)
    no_layer_lets_a_denied_path_through(profile, plan, files)
    no_rule_lets_a_denied_destination_through(profile, plan)
    no_group_brings_back_a_call_that_was_taken_away(profile, plan)


def no_layer_lets_a_denied_path_through(profile: Profile, plan: Plan, files: Path) -> None:
    workspace = os.fsencode(files / WORKSPACE)
    denied = {os.path.realpath(path) for path in profile.filesystem.deny}
    granted = {os.path.realpath(path) for path in (*profile.filesystem.read, *profile.filesystem.write)}
    inside = [str(files / name) for name in (*FILES, "a/missing/x")]
    for path in (*denied, *(path for path in inside if any(within(path, tree) for tree in denied))):
        modes: tuple[Mode, ...] = ("read", "write")
        for mode in modes:
            verdict = path_verdict(plan, workspace, path, mode)
            # Where nothing of the host is shown, the name is free in the sandbox's own /tmp.
            assert not verdict.allowed or "empty, private" in verdict.reason, verdict.sentence()
    open_to_it = [path for path in inside if any(within(path, tree) for tree in granted)]
    for path in open_to_it[:3]:
        verdict = path_verdict(plan, workspace, path, "read")
        assert verdict.allowed == (not any(within(path, tree) for tree in denied)), verdict.sentence()


def no_rule_lets_a_denied_destination_through(profile: Profile, plan: Plan) -> None:
    network = profile.network
    if not plan.egress:
        assert not any((network.allow, network.connect, network.serve, network.ask))
        return
    policy = Policy.load(plan.egress)
    for port in (*PORTS, 9):
        for name in (*NAMES, "single", *ADDRESSES):
            packed = ipaddress.ip_address(name).packed if name in ADDRESSES else b""
            verdict = policy.decide_address(packed, port) if packed else policy.decide(name, port)
            matched, refused = (
                any(means(rule.host, name) and {port, 0} & {*rule.ports} for rule in rules)
                for rules in (network.allow, network.deny)
            )
            assert verdict.allowed == (matched and not refused), (name, port)
            if packed:
                assert (policy.denies_address(packed, port) is not None) == refused
        for entry in network.connect:
            if entry.startswith("host:"):
                refused = any(rule.host in ("host", "*") and {5432, 0} & {*rule.ports} for rule in network.deny)
                assert policy.decide("host", 5432).allowed == (not refused)


def no_group_brings_back_a_call_that_was_taken_away(profile: Profile, plan: Plan) -> None:
    (program,) = [machine.steps(op.program) for op in plan.operations if isinstance(op, Seccomp)]
    for entry in profile.process.syscalls:
        if entry.startswith("~"):
            for call in GROUPS.get(entry[1:], {entry[1:]}) - KEPT:
                if call in KNOWN[MACHINE]:
                    for args in ((), (1, 1), (2, 2)):
                        seen = machine.words(KNOWN[MACHINE][call], ARCHITECTURES[MACHINE], args)
                        assert machine.answer(program, seen) != ALLOW, call
