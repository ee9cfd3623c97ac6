"""What `explain` says comes from the operations of the plan, and from nowhere else."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from osmoda.sandbox.declaration import DEGRADABLE
from osmoda.sandbox.explain import LAYER_OF, LAYERS, explain, show
from osmoda.sandbox.operations import mounting
from tests.compiled import compiled, host


def explained(text, folder=None, **changed):
    profile, plan = compiled(text, folder, **changed)
    return explain(profile, plan, host(**changed)), plan


def shown(explanation, width=100):
    console = Console(width=width, markup=False, emoji=False, highlight=False, record=True, force_terminal=False)
    with console.capture() as capture:
        show(explanation, console)
    return capture.get()


def layer(explanation, name):
    return next(one for one in explanation.layers if one.name == name)


@pytest.mark.parametrize("tier", [1, 2])
def test_every_operation_is_told_with_its_origin(tier):
    explanation, plan = explained(f"tier = {tier}")
    told = {(one.name, line.text, line.origin) for one in explanation.layers for line in one.lines}
    for operation in plan.operations:
        assert operation.layer in LAYERS, operation
        if type(operation) is mounting.SystemTree:
            (system,) = [text for name, text, _ in told if name == "mounts" and text.startswith("read /usr,")]
            assert operation.path.decode() in system.removeprefix("read ").split(", ")
        else:
            assert (operation.layer, operation.describe(), operation.origin) in told


def test_declared_lines_are_named_and_undeclared_ones_are_the_tiers(tmp_path):
    (tmp_path / "notes").mkdir()
    explanation, _ = explained(
        """
        tier = 1
        [filesystem]
        read = ["notes"]
        [process]
        memory = "512M"
        cpu = 1.5
        pids = 64
    """,
        tmp_path,
    )
    mounts = {line.text: line.origin for line in layer(explanation, "mounts").lines}
    assert mounts[f"read {tmp_path}/notes"] == "/p/agent.toml:4"
    group = {line.text: line.origin for line in layer(explanation, "cgroup").lines}
    assert group == {
        "memory at most 512M, swap included": "/p/agent.toml:6",
        "at most 1.5 processor cores": "/p/agent.toml:7",
        "at most 64 processes and threads": "/p/agent.toml:8",
    }
    assert layer(explanation, "seccomp").lines[0].origin == "tier 1"


@pytest.mark.parametrize(
    ("degrade", "changed", "name", "status"),
    [
        ("landlock", {"landlock": 0}, "landlock", "unavailable"),
        ("landlock-scope", {"landlock": 5}, "landlock", "degraded"),
        ("notify", {"notify": False}, "seccomp", "degraded"),
        ("memory", {"controllers": ()}, "cgroup", "unavailable"),
    ],
)
def test_a_layer_that_the_profile_gives_up_is_never_called_active(degrade, changed, name, status):
    text = f'tier = 1\ndegrade = ["{degrade}"]\n[process]\nmemory = "64M"'
    explanation, plan = explained(text, **changed)
    found = layer(explanation, name)
    assert found.status == status
    (entry,) = plan.degraded
    assert any(line.text == f"without {degrade}: {entry.reason}" for line in found.lines)
    assert found.lines[-1].origin == "/p/agent.toml:3"


def test_what_is_not_declared_is_not_called_active():
    explanation, _ = explained("tier = 2")
    assert layer(explanation, "cgroup").status == "not declared"


def test_what_can_be_reached_is_listed_with_its_lines():
    explanation, _ = explained("""
        tier = 1
        [network]
        allow = ["api.example.com", { host = "api.example.org", methods = ["GET"] }]
        deny = ["evil.example.com"]
        serve = [8081]
        connect = ["agent:writer:8082"]
        ask = true
    """)
    told = {line.text: line.origin for line in layer(explanation, "egress").lines}
    assert told["allow api.example.com:443"] == "/p/agent.toml:4"
    assert "allow api.example.org:443 with methods GET, each request looked at" in told
    assert told["deny evil.example.com:*"] == "/p/agent.toml:5"
    assert told["connect to agent:writer:8082"] == "/p/agent.toml:7"
    assert told["other agents that say so may reach port 8081"] == "/p/agent.toml:6"
    assert any("somebody is asked" in text for text in told)
    assert any("lead to the gateway" in line.text for line in layer(explanation, "network").lines)
    assert explanation.not_given == ()


def test_a_long_list_is_cut():
    names = ", ".join(f'"host{number}.example"' for number in range(80))
    explanation, _ = explained(f"tier = 2\n[network]\nallow = [{names}]")
    lines = layer(explanation, "egress").lines
    assert len(lines) == 51
    assert "30 rules more" in lines[-1].text


def test_without_rules_there_is_no_way_out():
    explanation, plan = explained("tier = 2")
    assert "egress" not in {one.name for one in explanation.layers}
    assert plan.egress == b""


def test_what_this_version_has_nothing_for_is_said_to_be_declared_and_without_effect():
    explanation, _ = explained("""
        tier = 1
        [network]
        connect = ["mesh:server-2/analysis:9000"]
        [tools]
        allow = ["file_*"]
        [mesh]
        send = ["news"]
    """)
    told = {line.text.partition(":")[0].partition(" ")[0]: line for line in explanation.not_given}
    assert set(told) == {"network.connect", "tools.allow", "mesh.send"}
    assert told["network.connect"].origin == "/p/agent.toml:4"
    assert "without effect" in told["network.connect"].text


def test_tier_0_says_plainly_that_nothing_is_confined():
    explanation, plan = explained("tier = 0\n[process]\npids = 64\nlimits = { core = 0 }")
    assert "Nothing is confined" in shown(explanation)
    assert {one.name for one in explanation.layers} == {"limits", "cgroup"}
    assert [line.text for line in layer(explanation, "limits").lines] == [op.describe() for op in plan.operations]
    assert layer(explanation, "cgroup").lines[0].text == "at most 64 processes and threads"


def test_every_layer_that_can_be_given_up_has_its_place_on_the_page():
    assert set(DEGRADABLE) <= set(LAYER_OF)
    assert set(LAYER_OF.values()) <= set(LAYERS)


def test_socket_families_are_asked_of_the_filter():
    explanation, _ = explained('tier = 1\n[network]\nfamilies = ["inet6"]')
    line = layer(explanation, "seccomp").lines[-1]
    assert (line.text, line.origin) == ("socket families: inet6", "/p/agent.toml:4")
    none, _ = explained("tier = 1\n[network]\nfamilies = []")
    assert layer(none, "seccomp").lines[-1].text == "socket families: none"


def test_values_of_variables_are_not_printed():
    explanation, _ = explained('tier = 1\n[environment]\nset = { TOKEN = "hunter2" }')
    assert "hunter2" not in repr(dataclasses.asdict(explanation))
    assert any(line.text == "set: TOKEN" for line in explanation.environment)


@pytest.mark.parametrize("width", [80, 100])
def test_the_page_fits_and_holds_no_escape_sequence(width):
    text = shown(explained("tier = 1")[0], width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
