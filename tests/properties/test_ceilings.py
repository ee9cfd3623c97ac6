"""A profile that its tier accepts grants nothing beyond the tier: judged by what the plan applies, not by `grants`."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.policy import Policy
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.operations import confinement, isolation, mounting, networking
from osmoda.sandbox.plan import Plan
from tests import bpf_machine as machine
from tests.compiled import MACHINE
from tests.generated_profiles import (
    ADDRESSES,
    BEYOND,
    NAMES,
    PORTS,
    Table,
    compiled,
    examples,
    loaded,
    tables,
    with_value,
)
from tests.seccomp_oracle import ALLOW, ARCHITECTURES, FAMILIES, NEWEST, Declared, names

NEVER_SHOWN = ("/proc", "/sys", "/dev", "/run", "/boot")
READ_IN_TIER_2 = ("/usr", "/opt", "/srv", "/nix/store", "/gnu/store")
PASSED_IN_TIER_2 = (
    *("LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR"),
    *("SOURCE_DATE_EPOCH", "CI"),
)
WIDEST = {
    1: Declared(1, ("@system-service", "@debug", "@pkey", "@sandbox"), tuple(FAMILIES), MACHINE),
    2: Declared(2, ("@system-service", "@pkey", "@sandbox"), ("inet", "inet6"), MACHINE),
}
LARGEST_TMP = {1: 64 << 30, 2: 4 << 30}
MOST_PROCESSES = {1: 65536, 2: 4096}
ALWAYS = (
    *(isolation.Namespaces, isolation.Identity, mounting.Root, mounting.Proc, mounting.Devices, mounting.Seal),
    *(confinement.NoNestedNamespaces, confinement.Terminal, confinement.Capabilities, confinement.Seccomp),
)
_WRITES = 1 << 1 | 0x1FF << 4 | 1 << 13 | 1 << 14  # LANDLOCK_ACCESS_FS_WRITE_FILE, REMOVE_*, MAKE_*, REFER, TRUNCATE


def within(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def beyond(plan: Plan, tier: int) -> Iterator[str]:
    """What the operations of `plan` let through that no profile of `tier` may have."""
    counts = Counter(type(operation) for operation in plan.operations)
    for always in ALWAYS:
        if counts[always] != 1:
            yield f"{counts[always]} times {always.__name__}"
    if not counts[confinement.Landlock] and "landlock" not in {entry.layer for entry in plan.degraded}:
        yield "no Landlock"
    for operation in plan.operations:
        yield from _beyond(operation, plan, tier)
    yield from _environment(plan, tier)
    yield from _network(plan, tier)


def _beyond(operation: object, plan: Plan, tier: int) -> Iterator[str]:
    match operation:
        case isolation.Namespaces():
            if operation.flags() != 0x7E020000:  # CLONE_NEW: NS, CGROUP, UTS, IPC, USER, PID, NET
                yield f"namespaces {operation.flags():#x}"
        case mounting.Grant():
            path = os.fsdecode(operation.path)
            if any(within(path, tree) or within(tree, path) for tree in NEVER_SHOWN):
                yield f"{path} is shown"
            if isinstance(operation, mounting.WriteTree) and tier == 2:
                yield f"{path} is written"
            if tier == 2 and not any(within(path, tree) for tree in READ_IN_TIER_2):
                yield f"{path} is read"
            readable = isinstance(operation, mounting.WriteTree) or operation.attributes() & 1  # MOUNT_ATTR_RDONLY
            if not readable:
                yield f"{path} is mounted so that it can be written"
        case mounting.Scratch():
            if operation.size > LARGEST_TMP[tier]:
                yield f"a scratch of {operation.size}"
        case confinement.ProcessLimit():
            most = {"processes": MOST_PROCESSES[tier] + 1}
            most |= {"open_files": 65536, "core": 0} if tier == 2 else {}
            if operation.value > most.get(operation.name, operation.value):
                yield f"{operation.name} {operation.value}"
        case confinement.Landlock():
            written = [os.fsdecode(path) for path, rights in operation.paths if rights & _WRITES]
            scratch = ("/tmp", "/home/agent", "/dev/shm", "/dev", "/workspace", "")
            declared = [os.fsdecode(one.path) for one in plan.operations if isinstance(one, mounting.WriteTree)]
            for path in written:
                if path not in scratch and path not in declared:
                    yield f"Landlock lets {path} be written"
            if "" in written and plan.workspace == "none":
                yield "Landlock lets a workspace be written"
        case confinement.Seccomp():
            yield from _calls(operation.program, tier)
        case networking.NamesOnly():
            if tier == 2 and operation.networks:
                yield f"addresses {operation.networks}"


@cache
def _calls(program: bytes, tier: int) -> tuple[str, ...]:
    return (*_calls_beyond(machine.steps(program), tier),)


def _calls_beyond(steps: Sequence[machine.Step], tier: int) -> Iterator[str]:
    own = ARCHITECTURES[MACHINE]
    for nr in range(NEWEST + 2):
        if machine.answer(steps, machine.words(nr, own)) == ALLOW and names(MACHINE).get(nr) not in WIDEST[tier].may:
            yield f"the call {names(MACHINE).get(nr, nr)}"
    (number,) = (nr for nr, name in names(MACHINE).items() if name == "socket")
    for domain in range(46):
        allowed = machine.answer(steps, machine.words(number, own, (domain, 2, 0))) == ALLOW
        if allowed and domain not in [FAMILIES[family] for family in WIDEST[tier].families]:
            yield f"sockets of family {domain}"


def _environment(plan: Plan, tier: int) -> Iterator[str]:
    for name in plan.passed:
        if tier == 2 and not any(fnmatch.fnmatchcase(name, pattern) for pattern in PASSED_IN_TIER_2):
            yield f"the caller's {name}"
        if name.startswith("LD_") or name == "GLIBC_TUNABLES":
            yield f"the caller's {name}"


def _network(plan: Plan, tier: int) -> Iterator[str]:
    if not plan.egress:
        return
    policy = Policy.load(plan.egress)
    for port in (*PORTS, 9, 5432):
        if policy.decide("127.0.0.1", port).allowed or policy.decide_address(bytes([127, 0, 0, 1]), port).allowed:
            yield "the host's loopback"
        if tier == 1:
            continue
        if any(policy.decide(name, port).allowed for name in ("single", "host", "host.osmoda", "unlisted.name.net")):
            yield f"an unlisted name on {port}"
        if any(policy.decide_address(bytes(map(int, one.split("."))), port).allowed for one in ADDRESSES):
            yield f"an address on {port}"
        for name in NAMES:
            verdict = policy.decide(name, port)
            if any(grant.addresses or grant.ech for grant in verdict.grants):
                yield f"{name} at private addresses, or hidden"


@examples
@given(table=tables(1, 2))
def test_what_is_applied_lies_within_the_tier(table: Table, files: Path) -> None:
    profile, plan = compiled(table, files)
    for tier in range(1, profile.tier + 1):
        assert [*beyond(plan, tier)] == []


@examples
@given(data=st.data())
def test_what_lies_beyond_is_refused_wherever_it_stands(data: st.DataObject, files: Path) -> None:
    table = data.draw(tables(1, 2))
    loaded(table, files)
    key, value = data.draw(st.sampled_from(BEYOND[table["tier"]]))
    above = with_value(table, key, value)
    if key.startswith("network.") and table.get("network", {}).get("deny"):
        # A grant that the profile's own denials leave nothing of is none: then the plan is as if it were not there.
        with contextlib.suppress(ProfileError):
            assert [*beyond(compiled(above, files)[1], table["tier"])] == []
        return
    with pytest.raises(ProfileError) as caught:
        loaded(above, files)
    said = " ".join(str(one) for one in (caught.value, *caught.value.others))
    assert key in said or key.rpartition(".")[2] in said
    assert caught.value.line > 1


def test_the_judge_can_say_no(files: Path) -> None:
    """The same operations, judged for a tier that is tighter, or with one of them gone."""
    table = {
        "tier": 1,
        "filesystem": {"read": ["a"], "write": ["w"]},
        "network": {"allow": ["single", "10.0.0.0/8:22"], "families": ["unix", "netlink"]},
        "process": {"syscalls": ["@system-service", "@debug"], "pids": 65536, "limits": {"core": 1}},
        "environment": {"pass": ["HOME"]},
    }
    _, plan = compiled(table, files)
    assert [*beyond(plan, 1)] == []
    found = "; ".join(beyond(plan, 2))
    for said in ("is written", "is read", "processes 65537", "core 1", "call ptrace", "family 1;", "family 16", "HOME"):
        assert said in found
    for said in ("an unlisted name on 443", "an address on 22", "addresses ('10.0.0.0/8',)"):
        assert said in found
    for kind in ALWAYS:
        left = tuple(operation for operation in plan.operations if type(operation) is not kind)
        assert f"0 times {kind.__name__}" in [*beyond(_with(plan, left), 1)]


def _with(plan: Plan, operations: tuple[object, ...]) -> Plan:
    values = {name: getattr(plan, name) for name in Plan.__annotations__}
    return Plan(**values | {"operations": operations})
