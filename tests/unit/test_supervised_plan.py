"""What a supervisor adds to a plan, and what it may not add."""

from __future__ import annotations

import pytest

from osmoda.host.frozen import fields_of
from osmoda.sandbox import bpf, supervised
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.explain import explain
from osmoda.sandbox.operations import confinement, isolation, supervision
from osmoda.sandbox.plan import Plan
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN
from tests.compiled import compiled, host

CLOSED = "tier = 1\n[network]\nloopback = false\n"


def kinds(plan: Plan) -> list[str]:
    return [type(operation).__name__ for operation in plan.operations]


def without(plan: Plan, kind: type) -> Plan:
    values = {name: getattr(plan, name) for name in fields_of(plan)}
    values["operations"] = tuple(operation for operation in plan.operations if not isinstance(operation, kind))
    return Plan(**values)


# Notifications


def test_the_socket_is_made_before_the_root_is_sealed() -> None:
    _, plan = compiled("tier = 1")
    changed = supervised.with_notify(plan, "tier 1")
    names = kinds(changed)
    assert names[names.index("NotifySocket") + 1] == "Seal"
    names.remove("NotifySocket")
    assert names == kinds(plan)
    assert dict(changed.environment)["NOTIFY_SOCKET"] == "/run/osmoda/notify"
    assert dict(changed.environment).items() > dict(plan.environment).items()


def test_it_is_explained_and_kept() -> None:
    profile, plan = compiled("tier = 1")
    changed = supervised.with_notify(plan, "tier 1")
    lines = [line for layer in explain(profile, changed, host()).layers for line in layer.lines]
    said = [line for line in lines if "/run/osmoda/notify" in line.text]
    assert [line.origin for line in said] == ["the supervisor"]
    assert Plan.load(changed.dump()) == changed


@pytest.mark.parametrize("text", ["tier = 2", 'tier = 1\n[network]\nfamilies = ["inet"]\n'])
def test_without_unix_sockets_there_is_nothing_to_notify_with(text: str) -> None:
    profile, plan = compiled(text)
    line = profile.origin("network", "families")
    with pytest.raises(LaunchError, match=rf'network\.families \({line}\) has no "unix"'):
        supervised.with_notify(plan, line)


# Listening sockets of the host's


def test_a_filter_before_the_plans_own() -> None:
    _, plan = compiled(CLOSED)
    changed = supervised.with_tcp_listeners(plan)
    assert kinds(changed)[-4:] == ["Landlock", "NoCoreDumps", "HostListeners", "Seccomp"]
    assert kinds(changed)[:-2] == kinds(plan)[:-1]
    assert Plan.load(changed.dump()) == changed
    # It goes beside the one for notifications.
    assert len(supervised.with_notify(changed, "tier 1").operations) == len(plan.operations) + 2


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_fast_open_and_nothing_else(machine: str) -> None:
    changed = supervised.with_tcp_listeners(compiled(CLOSED, machine=machine)[1])
    (operation,) = [op for op in changed.operations if isinstance(op, supervision.HostListeners)]
    program = bpf.decode(operation.program)
    places = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
    for name, number in KNOWN[machine].items():
        for place in range(6):
            for flags in (0, 0x20000000, 0xFFFFFFFFDFFFFFFF, 0x20004000, 0xF20000000):
                arguments = tuple(flags if index == place else 0 for index in range(6))
                answer = bpf.run(program, nr=number, arch=AUDIT_ARCH[machine], args=arguments)
                refused = places.get(name) == place and flags & 0x20000000
                assert (answer != bpf.ALLOW) == bool(refused), (name, place, flags)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("high", [0, 1 << 32])
def test_it_refuses_other_protocols_over_tcp(machine: str, high: int) -> None:
    changed = supervised.with_tcp_listeners(compiled(CLOSED, machine=machine)[1])
    (operation,) = [op for op in changed.operations if isinstance(op, supervision.HostListeners)]
    program = bpf.decode(operation.program)
    for level in (0, 1, 6, 41):
        for name in (1, 23, 31):  # TCP_NODELAY, TCP_FASTOPEN, TCP_ULP
            arguments = (3, high | level, high | name, 0, 4)
            answer = bpf.run(program, nr=KNOWN[machine]["setsockopt"], arch=AUDIT_ARCH[machine], args=arguments)
            assert (answer != bpf.ALLOW) == ((level, name) == (6, 31)), arguments


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tier = 1", "tier 1"),
        ("tier = 1\n[network]\nloopback = true\n", "/p/agent.toml:4"),
        ("tier = 2\n[network]\nloopback = true\n", "/p/agent.toml:4"),
    ],
)
def test_no_such_socket_where_tcp_may_be_connected(text: str, line: str) -> None:
    with pytest.raises(LaunchError, match=r"network\.loopback = false") as caught:
        supervised.with_tcp_listeners(compiled(text)[1])
    assert f"({line})" in str(caught.value)


def test_nor_without_landlock() -> None:
    _, plan = compiled(CLOSED)
    with pytest.raises(LaunchError, match="only Landlock"):
        supervised.with_tcp_listeners(without(plan, confinement.Landlock))
    text = CLOSED.replace("tier = 1", 'tier = 1\ndegrade = ["landlock-net", "landlock-scope"]')
    _, degraded = compiled(text, landlock=3)
    with pytest.raises(LaunchError, match="only Landlock"):
        supervised.with_tcp_listeners(degraded)


def test_nor_with_a_port_that_landlock_lets_through() -> None:
    _, plan = compiled(CLOSED)
    values = {name: getattr(plan, name) for name in fields_of(plan)}
    rules = next(op for op in plan.operations if isinstance(op, confinement.Landlock))
    open_rules = {name: getattr(rules, name) for name in fields_of(rules)} | {"connect": (443,)}
    values["operations"] = tuple(confinement.Landlock(**open_rules) if op is rules else op for op in plan.operations)
    with pytest.raises(LaunchError, match="only Landlock"):
        supervised.with_tcp_listeners(Plan(**values))


def test_a_network_of_names_says_what_it_takes() -> None:
    """Landlock rules no connections there, since all of them lead to the gateway."""
    _, plan = compiled(CLOSED)
    rules = next(op for op in plan.operations if isinstance(op, confinement.Landlock))
    open_rules = {name: getattr(rules, name) for name in fields_of(rules)} | {"handled_net": 1}
    values = {name: getattr(plan, name) for name in fields_of(plan)}
    values["operations"] = tuple(
        confinement.Landlock(**open_rules) if op is rules else op
        for op in plan.operations
        if not isinstance(op, isolation.Loopback)
    )
    with pytest.raises(LaunchError, match=r"an empty network\.allow"):
        supervised.with_tcp_listeners(Plan(**values))


def test_the_base_plan_is_untouched() -> None:
    _, plan = compiled(CLOSED)
    before = plan.fingerprint()
    supervised.with_notify(plan, "tier 1")
    supervised.with_tcp_listeners(plan)
    assert plan.fingerprint() == before
