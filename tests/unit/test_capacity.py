"""What fits on a host or a plan, and what is said where one agent more does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from osmoda.sandbox import profile_file
from osmoda.sandbox.profile import Profile
from osmoda.supervisor.capacity import fitting as capacity
from osmoda.supervisor.capacity import host_room, plans_file
from osmoda.supervisor.capacity.admission import Admission, DoesNotFit
from osmoda.supervisor.capacity.fitting import Need
from osmoda.supervisor.capacity.plans_file import Amount
from osmoda.supervisor.command import capacity_words
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.errors import SupervisorError

GIB = 1 << 30
PLANS = plans_file.read(os.path.join(plans_file.SHIPPED, "plans.toml"))
HOST = Amount(4 * GIB, 2.0, 40 * GIB)


@pytest.fixture(autouse=True)
def shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(plans_file, "load", lambda: PLANS)


def profile(**limits):
    lines = "\n".join(f"{name} = {value!r}".replace("'", '"') for name, value in limits.items())
    return profile_file.load_text(f"schema = 1\ntier = 1\n[process]\n{lines}\n", "agent.toml", "/")


def need(name, memory=GIB, cpu=0.1):
    return Need(name, Amount(memory, cpu, 2 * GIB), ("memory",))


# The file


def test_the_shipped_plans():
    found = {
        plan.name: (plan.room.cpu, plan.room.memory >> 30, plan.room.disk >> 30, plan.least, plan.most)
        for plan in PLANS.plans
    }
    assert found == {
        "solo": (2, 4, 40, 1, 2),
        "pro": (4, 8, 80, 2, 4),
        "team": (8, 16, 160, 5, 10),
        "scale": (16, 32, 320, 10, None),
    }
    # What a plan is meant for fits into it, and an agent counts as one that calls models elsewhere.
    for plan in PLANS.plans:
        assert capacity.fit((), plan.room, PLANS, plan).more >= (plan.most or 20)
    assert 512 << 20 <= PLANS.agent.memory <= GIB


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 1", "unknown field `colour`"),
        (
            "[system]\nmemory = 'much'\ncpu = 1\ndisk = 0\n[agent]\nmemory = 1\ncpu = 1\ndisk = 1\n[plan]",
            "a size is a number",
        ),
        ("[system]\nmemory = 1\ncpu = -1\ndisk = 0", ">= 0"),
        ("[", "plans.toml: "),
    ],
)
def test_a_broken_file(tmp_path, text, why):
    path = tmp_path / "plans.toml"
    path.write_text(text)
    with pytest.raises(SupervisorError, match=r"plans\.toml") as caught:
        plans_file.read(str(path))
    assert why in str(caught.value)


def test_the_administrators_file_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(plans_file.paths, "directory", lambda kind: str(tmp_path))
    text = Path(PLANS.path).read_text()
    (tmp_path / "plans.toml").write_text(text.replace('memory = "1G"', 'memory = "512M"'))
    assert plans_file.load().agent.memory == 512 << 20


def test_a_plan_that_there_is_not():
    assert PLANS.plan("Solo").name == "solo"
    with pytest.raises(SupervisorError, match=r"there is no plan 'huge'; .*plans\.toml has solo, pro, team, scale"):
        PLANS.plan("huge")


# The sum


def test_agents_count_with_their_limits_and_others_as_the_file_says():
    assert capacity.need_of("a", profile(memory="512M", cpu=0.5), PLANS) == Need(
        "a", Amount(512 << 20, 0.5, 2 * GIB), ("memory", "cpu")
    )
    assert capacity.need_of("a", Profile.default(1), PLANS) == Need("a", Amount(GIB, 0.1, 2 * GIB), ())


def test_what_is_left_and_how_many_fit():
    found = capacity.fit([need("a"), need("b", GIB // 2, 1.0)], HOST, PLANS)
    assert found.left == Amount(int(1.75 * GIB), 0.65, 32 * GIB)
    assert found.more == 1
    assert capacity.fit([need("a")] * 9, HOST, PLANS).more == 0
    # On a plan, whose disk is empty, agents take theirs.
    assert capacity.fit([need("a")], HOST, PLANS, PLANS.plan("solo")).left.disk == 30 * GIB


def test_the_last_that_fits_does():
    around = capacity.fit([need("a"), need("b")], HOST, PLANS)
    assert capacity.refusal(need("c", around.left.memory), around) == ""
    assert capacity.refusal(need("c", around.left.memory + 1), around) != ""
    assert capacity.refusal(need("c", 1, around.left.cpu), around) == ""
    assert capacity.refusal(need("c", 1, around.left.cpu + 0.01), around) != ""


def test_the_arithmetic_is_one_sentence():
    around = capacity.fit([need("a"), need("b"), need("c")], HOST, PLANS)
    assert capacity.refusal(need("writer"), around) == (
        "writer does not fit: it needs 1G of memory (its limit), and of 4G there are 256M left "
        "(768M for the system, 3G for 3 agents)"
    )
    undeclared = Need("writer", Amount(1, 2.0, 1), ())
    assert capacity.refusal(undeclared, around) == (
        "writer does not fit: it needs 2 cores (what an agent without a limit counts as), and of 2 there are 1.45 left "
        "(0.25 for the system, 0.3 for 3 agents)"
    )
    full = capacity.fit([], replace_disk(HOST, 9 * GIB), PLANS)
    assert capacity.refusal(need("writer"), full) == (
        "writer does not fit: it needs 2G of disk (what an agent without a limit counts as), and of 9G free there are "
        "1G left (8G for the system)"
    )


def replace_disk(room, disk):
    return Amount(room.memory, room.cpu, disk)


# The host


def test_the_room_is_what_groups_leave_of_the_machine(tmp_path):
    machine = host_room.room()
    assert machine.memory > 0
    assert 0 < machine.cpu <= os.cpu_count()
    groups = tmp_path / "groups"
    groups.write_text("5:memory:/box\n4:cpu,cpuacct:/box/in\n0::/slice/unit\n")
    for folder in ("slice/unit", "memory/box", "cpu/box/in"):
        (tmp_path / folder).mkdir(parents=True)
    assert room_of(tmp_path) == (machine.memory, machine.cpu)
    (tmp_path / "slice" / "memory.max").write_text("1073741824\n")
    (tmp_path / "slice" / "unit" / "memory.max").write_text("max\n")
    (tmp_path / "slice" / "cpu.max").write_text("50000 100000\n")
    assert room_of(tmp_path) == (GIB, 0.5)
    (tmp_path / "memory" / "box" / "memory.limit_in_bytes").write_text("536870912\n")
    (tmp_path / "cpu" / "box" / "cpu.cfs_quota_us").write_text("25000\n")
    (tmp_path / "cpu" / "box" / "cpu.cfs_period_us").write_text("100000\n")
    assert room_of(tmp_path) == (GIB // 2, 0.25)


def room_of(root):
    found = host_room.room(str(root), str(root / "groups"))
    return found.memory, found.cpu


def test_free_disk_of_a_folder_that_is_not_made_yet(tmp_path):
    assert host_room.free_disk(str(tmp_path / "a" / "b")) > 0


# Letting in


def test_one_more_than_fits_is_refused_unless_forced():
    admission = Admission(lambda: HOST)
    for name in "abc":
        admission.admit(name, profile(memory="1G"))
    with pytest.raises(DoesNotFit, match=r"d does not fit: .*, 3G for 3 agents\); `osmoda-watch start --force d`"):
        admission.admit("d", profile(memory="1G"))
    admission.admit("d", profile(memory="1G"), forced=True)
    # What is in stays in, also when it is started again; it is asked again when it wants more.
    admission.admit("a", profile(memory="1G"))
    with pytest.raises(DoesNotFit):
        admission.admit("a", profile(memory="2G"))


def test_who_leaves_makes_room():
    admission = Admission(lambda: HOST)
    for name in "abc":
        admission.admit(name, profile(memory="1G"))
    admission.leave("b")
    admission.leave("never-came")
    admission.admit("d", profile(memory="1G"))
    with pytest.raises(DoesNotFit):
        admission.admit("b", profile(memory="1G"))


# Words


UNITS = [
    {"unit": "a.service", "state": "active", "limits": {"memory": 512 << 20, "cpu": None}},
    {"unit": "b.service", "state": "activating", "limits": {"memory": None, "cpu": 0.5}},
    {"unit": "c.service", "state": "failed", "limits": {"memory": 512 << 20, "cpu": None}},
    {"unit": "d.service", "state": "active"},
]


def test_what_the_command_says(monkeypatch):
    monkeypatch.setattr(control_client, "ask", lambda verb, brief: {"units": UNITS})
    monkeypatch.setattr(host_room, "room", lambda: HOST)
    lines = list(capacity_words.words(*capacity_words.found()))
    assert [line.split() for line in lines[1:6]] == [
        ["this", "host", "(free", "disk)", "4G", "2", "40G"],
        ["kept", "for", "the", "system", "768M", "0.25", "8G"],
        ["a.service", "512M", "0.1*", "2G"],
        ["b.service", "1G*", "0.5", "2G"],
        ["left", "1.75G", "1.15", "32G"],
    ]
    assert lines[6].startswith("* no limit declared")
    assert lines[7:] == [
        "1 more agent fits, at 1G, 0.1 cores and 2G of disk each",
        "this host has what the plan solo has, which is meant for 1-2 agents",
    ]
    found = capacity_words.as_dict(*capacity_words.found("team"))
    assert (found["plan"], found["more"], found["daemon"]) == ("team", 13, True)
    assert [one["name"] for one in found["agents"]] == ["a.service", "b.service"]


def test_without_a_daemon(monkeypatch):
    def nobody(verb, brief):
        raise control_client.NoDaemon("no daemon")

    monkeypatch.setattr(control_client, "ask", nobody)
    monkeypatch.setattr(capacity_words, "_BOOTED_BY_SYSTEMD", "/no/such/folder")
    lines = list(capacity_words.words(*capacity_words.found("scale")))
    assert "no daemon runs, so that no agent is counted" in lines
    assert lines[-2:] == [
        "31 more agents fit, at 1G, 0.1 cores and 2G of disk each",
        "the plan is meant for 10 agents and more",
    ]
