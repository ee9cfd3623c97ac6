"""What is said about a plan, what is kept of it and what is applied are the same operations, for any profile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.host import features
from osmoda.sandbox import cache, dry_run, explain, plans
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.operations import confinement, mounting
from osmoda.sandbox.plan import Plan
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.request import Request
from osmoda.sandbox.verdict import path_verdict
from tests.compiled import host
from tests.generated_profiles import WORKSPACE, Table, compiled, examples, tables, text

# Lines of `explain` that are not an operation's own words: what holds for the whole group, and what a layer adds.
ADDED = {
    "cgroup": ("memory at most", "at most", "without"),
    "egress": ("allow ", "deny ", "connect to ", "other agents ", "any other name", "and "),
    "seccomp": ("socket families: ", "without"),
    "workspace": ("none of the host's", "without"),
    "landlock": ("without",),
}
# Hosts without a layer that every profile in `tables` may do without.
LACKING: tuple[dict[str, object], ...] = (
    {},
    {"landlock": 3},
    {"landlock": 0},
    {"notify": False},
    {"controllers": ()},
    {"cgroup_version": 1},
)


@examples
@given(table=tables(1, 2), lacking=st.sampled_from(LACKING))
def test_explain_why_and_what_is_kept_are_the_plan(table: Table, lacking: dict[str, object], files: Path) -> None:
    profile, plan = compiled(table, files, **lacking)
    kept = Plan.load(plan.dump())
    assert kept == plan
    assert [op.describe() for op in kept] == [op.describe() for op in plan]
    explain_says_every_operation_and_nothing_else(profile, plan, lacking)
    why_knows_of_what_is_granted(plan, os.fsencode(files / WORKSPACE))


def explain_says_every_operation_and_nothing_else(profile: Profile, plan: Plan, lacking: dict[str, object]) -> None:
    explanation = explain.explain(profile, plan, host(**lacking))
    told = {layer.name: [(line.text, line.origin) for line in layer.lines] for layer in explanation.layers}
    system = [op for op in plan.operations if type(op) is mounting.SystemTree]
    applied = [op for op in plan.operations if type(op) is not mounting.SystemTree]
    for operation in applied:
        assert (operation.describe(), operation.origin) in told[operation.layer]
    together = f"read {', '.join(os.fsdecode(tree.path) for tree in system)}"
    assert not system or (together, system[0].origin) in told["mounts"]
    own = {(op.layer, op.describe(), op.origin) for op in applied} | {("mounts", together, system[0].origin)}
    for name, lines in told.items():
        for line, origin in lines:
            assert (name, line, origin) in own or line.startswith(ADDED.get(name, ())), (name, line)
    # A layer that is missing is said, and one that is not there is never called active.
    for layer in explanation.layers:
        missing = [entry for entry in plan.degraded if explain.LAYER_OF[entry.layer] == layer.name]
        assert (layer.status in ("degraded", "unavailable")) == bool(missing)
    assert set(told) >= {operation.layer for operation in plan.operations}


NEW = "new"  # a name that no generated profile denies


def why_knows_of_what_is_granted(plan: Plan, workspace: bytes) -> None:
    """Each tree that an operation says may be read or written, `why` says so too; what Landlock writes, mounts show."""
    for operation in plan.operations:
        if isinstance(operation, mounting.Grant):
            path = os.fsdecode(operation.path)
            covered = [op for op in plan.operations if isinstance(op, mounting.Mask) and op.path == operation.path]
            reads = path_verdict(plan, workspace, f"{path}/{NEW}", "read")
            assert reads.allowed or covered, reads.sentence()
            writes = path_verdict(plan, workspace, f"{path}/{NEW}", "write")
            if isinstance(operation, mounting.WriteTree):
                assert writes.allowed or covered, writes.sentence()
            elif writes.allowed:
                assert writes.path.startswith((f"{os.fsdecode(workspace)}/", *_written(plan))), writes.sentence()
    for operation in plan.operations:
        if isinstance(operation, confinement.Landlock):
            for name, rights in operation.paths:
                if rights & 2 and name not in (b"/dev", b""):  # LANDLOCK_ACCESS_FS_WRITE_FILE
                    verdict = path_verdict(plan, workspace, f"{os.fsdecode(name)}/{NEW}", "write")
                    assert verdict.allowed or verdict.layer == "mounts"


@pytest.fixture(scope="module")
def here(files: Path) -> Path:
    """Where the profiles of this module lie: `agent.toml`, rewritten for each."""
    os.chmod(files, 0o755)
    return files


@examples
@given(table=tables(1, 2))
def test_dry_run_the_cache_and_explain_tell_of_the_plan_that_is_launched(table: Table, here: Path) -> None:
    """On this host as it is; `run` launches what `plans.for_request` gives, as `--dry-run` prints it."""
    file = here / "agent.toml"
    file.write_text(text(table | {"degrade": ["cpu", "idmap", "landlock", "landlock-net", "landlock-scope", "memory"]}))
    named = table.get("filesystem", {}).get("workspace", "none") != "none"
    request = Request(("true",), profile=str(file), workspace=str(here / WORKSPACE) if named else "")
    cache.drop(plans.key(request, "/"))
    try:
        rehearsed = dry_run.rehearse(request)
    except CompileError:
        return  # the same that a launch would say: there is no plan
    plan, kept = plans.for_request(request, "/")
    assert not rehearsed.pop("cached")
    assert kept
    printed = [(op["operation"], op["layer"], op["text"], op["origin"]) for op in rehearsed["operations"]]
    assert printed == [(type(op).__name__, op.layer, op.describe(), op.origin) for op in plan]
    assert rehearsed["cgroup"] == {"memory_bytes": plan.memory, "cpu_cores": plan.cpu, "pids": plan.pids}
    profile = Profile.load(str(file))
    assert (plan.digest, plan.tier) == (profile.digest, profile.tier)
    explanation = explain.explain(profile, plan, features.probe())
    lines = {(layer.name, line.text, line.origin) for layer in explanation.layers for line in layer.lines}
    for _, layer, words, origin in printed:
        assert (layer, words, origin) in lines or words.removeprefix("read ") in "".join(text for _, text, _ in lines)
    assert {entry["layer"] for entry in rehearsed["degraded"]} == {entry.layer for entry in plan.degraded}


def _written(plan: Plan) -> tuple[str, ...]:
    return tuple(f"{os.fsdecode(op.path)}/" for op in plan.operations if isinstance(op, mounting.WriteTree))
