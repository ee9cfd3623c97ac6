"""`verify` itself: what holds is shown to hold, and a launch that is weaker than its profile says is found out.

Each weakening takes one layer out of a plan, or a part of one, as a bug in osmoda would; the profile stays as it is.
"""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from osmoda.host import features
from osmoda.host.frozen import fields_of
from osmoda.sandbox import battery, cli, compilation, network_policy, profile_file
from osmoda.sandbox.battery import trials
from osmoda.sandbox.battery.__main__ import order
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.operations import Operation, confinement, isolation, mounting
from osmoda.sandbox.plan import Plan
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.verification import examine, rounds
from tests.attacks.conftest import as_root
from tests.worlds import World

WHOLE = """
schema = 1
tier = 1
{degrade}
[filesystem]
read = ["{folder}/read", "{folder}/one.txt"]
write = ["{folder}/write"]
deny = ["{folder}/read/.env", "{folder}/write/secret"]
workspace = "overlay"
tmp = "1M"
[network]
allow = ["www.example.test", "*.wild.test:80,443"]
deny = ["bad.wild.test:443"]
serve = [8081]
[process]
{limits}
pids = 24
[process.limits]
open_files = 64
address_space = "8G"
file_size = "64M"
"""


@pytest.fixture
def folder(world: World) -> Path:
    """Trees for the whole profile to grant, and what lies beside them."""
    folder = world.tmp / "granted"
    for name in ("read", "write", "write/secret", "beside"):
        (folder / name).mkdir(parents=True)
    for name in ("read/.env", "read/file", "one.txt", "two.txt", "write/secret/key"):
        (folder / name).write_text("content\n")
    world.own(folder)
    return folder


def whole(world: World, folder: Path) -> Path:
    """A profile with something of everything; limits of memory where this host can hold them."""
    limits = 'memory = "96M"\ncpu = 0.8' if world.is_root else ""
    path = world.tmp / "whole.toml"
    path.write_text(WHOLE.format(folder=folder, limits=limits, degrade=""))
    world.own(path)
    return path


def by_verdict(rows: Iterable[dict[str, Any]], verdict: str) -> list[str]:
    return [f"{row['title']}: {row['answer']}" for row in rows if row["verdict"] == verdict]


def test_a_whole_profile_holds(world: World, folder: Path) -> None:
    profile = whole(world, folder)
    junit = world.tmp / "report.xml"
    run = world.osmoda("verify", str(profile), "--json", "--junit", str(junit))
    assert run.stderr == ""
    found = json.loads(run.stdout)
    rows = found["rows"]
    bad = {verdict for row in rows if (verdict := row["verdict"]) not in examine.GOOD}
    assert not bad, [by_verdict(rows, verdict) for verdict in bad]
    assert found["holds"]
    assert run.returncode == 0
    stopped = {row["name"]: row for row in rows if row["verdict"] == "stopped"}
    layers = {row["layer"] for row in stopped.values()}
    assert layers >= {
        "seccomp", "landlock", "mounts", "namespaces", "network", "capabilities", "terminal", "limits", "egress",
        "environment", "identity",
    } - (set() if world.is_root else {"identity"})  # fmt: skip
    # With the rights of root nearly every control works; what does not, this kernel lacks.
    assert len(by_verdict(rows, "no control here")) < (16 if world.is_root else 40)
    assert stopped["tiocsti"]["control"] == "a character was typed into the terminal"
    assert stopped["unshare-user"]["reported"]
    works = {row["title"] for row in rows if row["verdict"] == "works"}
    assert works >= {
        f"read {folder}/read", f"read {folder}/one.txt", f"write {folder}/write", "write the workspace",
        "resolve www.example.test", "connect to www.example.test:443", "resolve osmoda-verify.wild.test",
        "serve port 8081",
    }  # fmt: skip
    refused = {row["title"]: row["layer"] for row in rows if row["verdict"] == "stopped" and row["family"] == "grants"}
    assert refused[f"read {folder}/read/.env"] == "mounts"
    assert refused[f"read {folder}/write/secret"] == "mounts"
    assert refused[f"write {folder}/read"] == "mounts"
    assert refused[f"read {folder}/beside, beside it"] == "mounts"
    assert refused["resolve wild.test, beside it"] == "egress"
    assert refused["connect to www.example.test:9, another port of it"] == "egress"
    assert refused["connect to bad.wild.test:443"] == "egress"
    if world.is_root:
        assert {row["title"] for row in rows if row["layer"] == "cgroup"} == {
            "the control group's limit of memory",
            "the control group's limit of cpu",
            "take more memory than process.memory: 96M",
        }
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(rows)), "0")
    assert sorted(path.name for path in (folder / "write").iterdir()) == ["secret"], "nothing is left of the probes"


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_the_defaults_of_tier_2_hold(world: World) -> None:
    run = world.osmoda("verify", "--tier", "2")
    assert run.returncode == 0, run.stdout
    assert "What the profile says holds" in run.stdout
    assert "read another process's memory (process_vm_readv)" in run.stdout


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_what_cannot_be_verified(world: World) -> None:
    """Tier 0 confines nothing; a profile with an error, and a report that cannot be written, are told at once."""
    for words, message in (
        (["--tier", "0"], "tier 0, which confines nothing"),
        (["no-such-profile"], "no-such-profile"),
        (["--tier", "2", "--junit", "/no/such/folder/report.xml"], "/no/such/folder/report.xml"),
    ):
        run = world.osmoda("verify", *words)
        assert (run.returncode, run.stdout) == (125, "")
        assert message in run.stderr


# --- weakened launches ---


def changed(plan: Plan, **values: Any) -> Plan:
    """The plan with other values."""
    return Plan(**{name: getattr(plan, name) for name in fields_of(plan)} | values)


def without(plan: Plan, *kinds: type[Operation]) -> Plan:
    return changed(plan, operations=tuple(op for op in plan.operations if not isinstance(op, kinds)))


def with_each(plan: Plan, kind: type[Operation], **values: Any) -> Plan:
    """Every operation of the kind with other values."""
    return changed(
        plan,
        operations=tuple(
            kind(**{name: getattr(op, name) for name in fields_of(op)} | values) if type(op) is kind else op
            for op in plan.operations
        ),
    )


def no_filter(profile: Profile, plan: Plan) -> Plan:
    return without(plan, confinement.Seccomp, confinement.NoCoreDumps)


def no_landlock(profile: Profile, plan: Plan) -> Plan:
    return without(plan, confinement.Landlock)


def no_landlock_ports(profile: Profile, plan: Plan) -> Plan:
    return with_each(plan, confinement.Landlock, handled_net=0, bind=(), connect=())


def all_capabilities(profile: Profile, plan: Plan) -> Plan:
    return without(plan, confinement.Capabilities)


def open_descriptors(profile: Profile, plan: Plan) -> Plan:
    """And no rules of Landlock's, which would keep from being used what is left open."""
    return without(plan, confinement.Terminal, confinement.Landlock)


def shared_ipc(profile: Profile, plan: Plan) -> Plan:
    return with_each(plan, isolation.Namespaces, names=("user", "mount", "pid", "network", "uts", "cgroup"))


def shared_network(profile: Profile, plan: Plan) -> Plan:
    plan = with_each(plan, isolation.Namespaces, names=("user", "mount", "pid", "ipc", "uts", "cgroup"))
    return without(plan, isolation.Loopback)


def callers_uid(profile: Profile, plan: Plan) -> Plan:
    return with_each(plan, isolation.Identity, own_host_uid=False)


def nothing_hidden(profile: Profile, plan: Plan) -> Plan:
    return with_each(plan, mounting.ReadTree, hidden=())


def nothing_masked(profile: Profile, plan: Plan) -> Plan:
    return without(plan, mounting.Mask)


def read_is_write(profile: Profile, plan: Plan) -> Plan:
    operations = tuple(
        mounting.WriteTree(op.origin, op.path) if isinstance(op, mounting.ReadTree) else op
        for op in plan.operations
        if not isinstance(op, confinement.Landlock)
    )
    return changed(plan, operations=operations)


def no_process_limit(profile: Profile, plan: Plan) -> Plan:
    return without(changed(plan, pids=0), confinement.ProcessLimit)


def large_scratch(profile: Profile, plan: Plan) -> Plan:
    operations = tuple(
        mounting.Scratch(op.origin, op.path, 64 << 20, op.mode) if isinstance(op, mounting.Scratch) else op
        for op in plan.operations
    )
    return changed(plan, operations=operations)


def passes_everything(profile: Profile, plan: Plan) -> Plan:
    return changed(plan, passed=("OSMODA_VERIFY",))


def wider_policy(profile: Profile, plan: Plan) -> Plan:
    text = 'schema = 1\ntier = 1\n[network]\nallow = ["www.example.test:9,443", "*.www.example.test"]\n'
    return changed(plan, egress=network_policy.policy_of(profile_file.load_text(text, "wider", "/")))


def no_memory_limit(profile: Profile, plan: Plan) -> Plan:
    return changed(plan, memory=0)


type Weakening = Callable[[Profile, Plan], Plan]

SMALL = "schema = 1\ntier = 1\n[process]\npids = 24\n"
CLOSED = f"{SMALL}[network]\nloopback = false\n"
FILES = '[filesystem]\nread = ["{folder}/read"]\nwrite = ["{folder}/write"]\n'
DENIED = f'{SMALL}{FILES}deny = ["{{folder}}/read/.env", "{{folder}}/write/secret"]\n'
NAMES = f'{SMALL}[network]\nallow = ["www.example.test"]\n'

# The profile, what is taken from its plan, and what then gets through, of what is tried.
WEAKENED: tuple[tuple[str, Weakening, set[str], set[str]], ...] = (
    (SMALL, no_filter, {"unfiltered", "tiocsti", "call-add_key", "int80", "nameless-plain", "listen-instead"}, set()),
    (SMALL, no_landlock, {"without-landlock"}, {"read-secret"}),
    (CLOSED, no_landlock_ports, {"serve"}, {"without-landlock"}),
    (SMALL, all_capabilities, {"bounding-set", "new-privileges", "init-environ", "init-maps"}, {"unfiltered"}),
    (SMALL, open_descriptors, {"left-open"}, {"read-secret"}),
    (SMALL, shared_ipc, {"shared-segment"}, {"abstract"}),
    (SMALL, shared_network, {"tcp-loopback", "udp", "interfaces"}, {"abstract", "signal-process"}),
    (DENIED, nothing_hidden, {"read-path"}, {"write-path"}),
    (DENIED, nothing_masked, {"read-path", "write-path"}, set()),
    (DENIED, read_is_write, {"write-path"}, set()),
    (SMALL, no_process_limit, {"processes", "threads"}, {"inodes"}),
    (f'{SMALL}[filesystem]\ntmp = "1M"\n', large_scratch, {"scratch", "inodes"}, set()),
    (SMALL, passes_everything, {"callers-variables"}, set()),
    (NAMES, wider_policy, {"connect", "resolve"}, set()),
)


def through(text: str, name: str, tried: list[str]) -> tuple[bool, dict[str, set[str]]]:
    """Whether the weakened launch of a profile is said to hold, and the verdicts of what is tried by name."""
    profile = profile_file.load_text(text, "weak", "/")
    plan = globals()[name](profile, compile_profile(profile, features.probe()))
    found = examine.examine(profile, plan, only=tried)
    verdicts: dict[str, set[str]] = {}
    for row in found.rows:
        verdicts.setdefault(row.name, set()).add(row.verdict)
    return found.holds, verdicts


@pytest.mark.parametrize("world", ["user"], indirect=True)
@pytest.mark.parametrize(("text", "weaken", "holes", "others"), WEAKENED, ids=[row[1].__name__ for row in WEAKENED])
def test_a_weakened_launch(
    world: World, folder: Path, text: str, weaken: Weakening, holes: set[str], others: set[str]
) -> None:
    """The hole is reported, and only the hole."""
    tried = sorted(holes | others)
    holds, verdicts = world.call(through, text.format(folder=folder), weaken.__name__, tried)
    assert {name for name, found in verdicts.items() if "got through" in found} == holes, verdicts
    assert not holds


@as_root
@pytest.mark.parametrize("world", ["root"], indirect=True)
@pytest.mark.parametrize(
    ("text", "weaken", "holes"),
    [
        (SMALL, callers_uid, {"hosts-root"}),
        (f'{SMALL}memory = "64M"\n', no_memory_limit, {"held", "memory"}),
    ],
    ids=["callers_uid", "no_memory_limit"],
)
def test_a_weakened_launch_of_roots(world: World, text: str, weaken: Weakening, holes: set[str]) -> None:
    holds, verdicts = world.call(through, text, weaken.__name__, sorted(holes))
    assert {name for name, found in verdicts.items() if "got through" in found} == holes, verdicts
    assert not holds


def without_answers_outside() -> tuple[bool, set[str]]:
    profile = Profile.default(2)
    examine.rounds.outside = lambda **_: lambda tasks, facts: rounds.Round({})
    found = examine.examine(profile, compile_profile(profile, features.probe()), only=["tiocsti", "unshare-user"])
    return found.holds, {row.verdict for row in found.rows}


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_controls_that_say_nothing_are_no_controls(world: World) -> None:
    """Else a verification would hold whose other half has not run."""
    assert world.call(without_answers_outside) == (False, {"not judged"})


def command_on_a_weakened_plan() -> int:
    """The command, where a run would use a plan without its filter."""

    def weakened(asked: Any, directory: str = "") -> tuple[Profile, Plan]:
        profile = compilation.profile_of(asked, directory or os.getcwd())
        return profile, no_filter(profile, compile_profile(profile, features.probe()))

    cli._compiled = weakened
    return cli.main(["verify", "--tier", "2"])


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_the_command_ends_with_1(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.call(command_on_a_weakened_plan) == 1
    printed = capsys.readouterr().out
    assert "does not hold" in printed
    assert "run without a system call filter" in printed
    assert "got through" in printed


@pytest.mark.parametrize("world", ["user"], indirect=True)
def test_the_battery_as_a_program(world: World) -> None:
    """As other tools and sandboxes run it: the same answers; and what is not the battery's is no answer."""
    tasks = [("unshare-user", ()), ("new-privileges", ()), ("bounding-set", ())]
    facts = {"init": 0, "inside": False}
    run = world.run([sys.executable, "-m", "osmoda.sandbox.battery", order(tasks, facts)], check=True)
    found = battery.answers(b"noise\n" + run.stdout.encode() + f"{trials.MARK}(0, 'gained'".encode())
    assert [found[index].kind for index in range(3)] == ["gained"] * 3
    wrong = world.run([sys.executable, "-m", "osmoda.sandbox.battery"])
    assert wrong.returncode == 2
