"""Refusals in words: call, arguments, layer, and advice that would really change the answer."""

from __future__ import annotations

import re

import pytest

from osmoda.sandbox import seccomp, tiers
from osmoda.sandbox.denials import Filter, interpret, size
from osmoda.sandbox.monitor import RawDenial
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.syscall_numbers import KNOWN
from tests.compiled import MACHINE, compiled, outcome, refused

NEWUSER = 0x10000000
UNIX, INET, NETLINK, PACKET = 1, 2, 16, 17
STREAM, DGRAM, RAW, CLOEXEC, NONBLOCK = 1, 2, 3, 0o2000000, 0o4000


def filter_of(plan):
    return next(op for op in plan.operations if isinstance(op, confinement.Seccomp))


def test_a_call_that_no_profile_may_have_is_above_the_ceiling_with_its_reason():
    profile, plan = compiled("tier = 2")
    (denial,) = interpret(outcome(refused("unshare", NEWUSER)), plan, profile, sandbox="1-1")
    assert (denial.layer, denial.operation, denial.object) == ("seccomp", "unshare", "CLONE_NEWUSER")
    assert denial.advice == f"above tier 2's ceiling: unshare {seccomp.FORBIDDEN[2]['unshare']}"
    assert (denial.origin, denial.line, denial.sandbox, denial.pid, denial.time) == ("", "", "1-1", 77, 1.5)
    assert denial.sentence().startswith("prog[77] was refused unshare(CLONE_NEWUSER) by seccomp; above tier 2's")


def test_a_call_that_the_ceiling_has_names_the_line_where_it_is_missing():
    profile, plan = compiled("""
        tier = 1
        [process]
        syscalls = ["@system-service", "~chown"]
    """)
    (denial,) = interpret(outcome(refused("ptrace", 0)), plan, profile)
    assert denial.origin == "/p/agent.toml:4"
    assert "ptrace" in denial.line
    assert denial.advice.startswith("/p/agent.toml:4 would allow it: syscalls = ")


@pytest.mark.parametrize("tier", [1, 2])
@pytest.mark.parametrize(
    "declared", ["", 'syscalls = ["@basic-io"]', 'syscalls = ["@system-service", "~@file-system"]']
)
def test_the_line_to_add_allows_the_call_and_what_is_above_the_ceiling_cannot_be_declared(tier, declared):
    text = f"tier = {tier}\n[process]\n{declared}"
    profile, plan = compiled(text)
    asked = Filter(filter_of(plan), tier, profile)
    allowed_at_best = seccomp.allowed(tiers.ceiling(tier).process.syscalls, tier=tier)
    tried = 0
    for name in sorted(
        KNOWN[MACHINE].keys() & seccomp.CHECKED | {"chown", "ptrace", "mount", "io_setup", "setuid", "acct"}
    ):
        if name in ("seccomp", "socket") or asked.allowed_at_all(name, MACHINE):
            continue
        tried += 1
        advice = asked.advise(name, MACHINE)
        assert bool(advice.line) == (name in allowed_at_best), (name, advice)
        if advice.line:
            _, changed = compiled(f"tier = {tier}\n[process]\n{advice.line}")
            assert Filter(filter_of(changed), tier).allowed_at_all(name, MACHINE), (name, advice.line)
    assert tried >= 3


def test_without_the_profile_the_advice_still_names_the_line():
    _, plan = compiled("""
        tier = 1
        [process]
        syscalls = ["@system-service"]
    """)
    (denial,) = interpret(outcome(refused("ptrace", 16)), plan)
    assert denial.advice == '/p/agent.toml:4 would allow it: syscalls = [..., "ptrace"]'


@pytest.mark.parametrize(
    ("tier", "arguments", "shown", "advice"),
    [
        (
            1,
            (NETLINK, RAW, 0),
            "AF_NETLINK, SOCK_RAW, NETLINK_ROUTE",
            r'families = \["inet", "inet6", "unix", "netlink"\]',
        ),
        (2, (UNIX, STREAM, 0), "AF_UNIX, SOCK_STREAM", "above tier 2's ceiling: no profile of it may open AF_UNIX"),
        (1, (PACKET, RAW, 3), "AF_PACKET, SOCK_RAW", "above tier 1's ceiling: no profile of it may open AF_PACKET"),
        (1, (INET, RAW, 1), "AF_INET, SOCK_RAW, IPPROTO_ICMP", "above tier 1's ceiling: only TCP, UDP"),
    ],
)
def test_a_refused_socket_names_its_family_and_what_would_open_it(tier, arguments, shown, advice):
    profile, plan = compiled(f"tier = {tier}")
    (denial,) = interpret(outcome(refused("socket", *arguments)), plan, profile)
    assert denial.object == shown
    assert re.search(advice, denial.advice), denial.advice


def test_the_family_to_add_opens_the_socket():
    profile, plan = compiled('tier = 2\n[network]\nfamilies = ["inet6"]')
    (denial,) = interpret(outcome(refused("socket", INET, STREAM, 0)), plan, profile)
    assert denial.origin == "/p/agent.toml:4"
    _, changed = compiled(f"tier = 2\n[network]\n{denial.line}")
    number = confinement_answer(changed, "socket", INET, STREAM, 0)
    assert number == confinement_answer(changed, "getpid")
    assert number != confinement_answer(plan, "socket", INET, STREAM, 0)


def confinement_answer(plan, name, *arguments):
    return Filter(filter_of(plan), plan.tier).answer(name, MACHINE, arguments)


@pytest.mark.parametrize(
    ("call", "arguments", "shown"),
    [
        ("clone", (NEWUSER | 17,), "CLONE_NEWUSER"),
        ("ioctl", (0, 0x5412 | 1 << 40), "TIOCSTI"),
        ("ioctl", (3, 0x50009401), "BTRFS_IOC_SNAP_CREATE"),
        ("chmod", (0, 0o4755), "mode 4755 with a set-id bit"),
        ("openat", (0, 0, 0o100, 0o2644), "mode 2644 with a set-id bit"),
        ("mknodat", (0, 0, 0o020644), "mode 0644, a character device"),
        ("personality", (0x40000,), "0x40000"),
    ],
)
def test_a_call_that_its_arguments_refuse_says_which_and_that_nothing_allows_them(call, arguments, shown):
    profile, plan = compiled("tier = 1")
    (denial,) = interpret(outcome(refused(call, *arguments)), plan, profile)
    assert denial.object == shown
    assert denial.line == ""
    assert denial.advice.startswith("above tier 1's ceiling: ")


def test_what_libraries_try_out_of_habit_is_folded_and_comes_last():
    profile, plan = compiled("tier = 2")
    nscd = refused("socket", UNIX, STREAM | CLOEXEC | NONBLOCK, 0)
    routes = refused("socket", NETLINK, RAW | CLOEXEC, 0)
    own = refused("socket", UNIX, STREAM, 0)
    found = interpret(outcome(nscd, routes, own), plan, profile)
    assert [denial.habitual for denial in found] == [False, True, True]


def test_the_same_refusal_of_one_command_is_told_once():
    profile, plan = compiled("tier = 2")
    first, second = refused("ptrace", 16, 5), refused("ptrace", 16, 6)
    found = interpret(outcome(first, second, refused("ptrace", 16, command="other")), plan, profile)
    assert [(denial.command, denial.count) for denial in found] == [("prog", 2), ("other", 1)]


def test_a_call_of_another_architecture_and_one_without_a_name():
    profile, plan = compiled("tier = 2")
    foreign = RawDenial(0.0, 1, "x", 5, 0x40000003, (0,) * 6, 1)
    unknown = RawDenial(0.0, 1, "x", 400, 0xC000003E, (0,) * 6, 1)
    one, other = interpret(outcome(foreign, unknown), plan, profile)
    assert "other architectures" in one.advice
    assert other.operation == "syscall 400"
    assert other.line == ""


def test_limits_that_were_hit_name_their_line_and_more():
    profile, plan = compiled("""
        tier = 1
        [process]
        memory = "512M"
        pids = 64
    """)
    memory, forks = interpret(outcome(oom_kills=1, forks_refused=7), plan, profile)
    assert (memory.layer, memory.operation, memory.object) == ("cgroup", "memory", "beyond 512M")
    assert memory.advice == '/p/agent.toml:4 sets the limit; more: memory = "1G"'
    assert (forks.count, forks.object, forks.origin, forks.line) == (
        7,
        "beyond 64 processes and threads",
        "/p/agent.toml:5",
        "pids = 128",
    )


def test_a_limit_at_the_ceiling_cannot_be_raised():
    bound = tiers.ceiling(2).process.pids
    profile, plan = compiled(f'tier = 2\n[process]\nmemory = "1G"\npids = {bound}')
    (denial,) = interpret(outcome(forks_refused=1), plan, profile)
    assert denial.line == ""
    assert denial.advice == f"above tier 2's ceiling: process.pids is at most {bound}"


def test_a_run_that_timed_out():
    _, plan = compiled("tier = 0")
    (denial,) = interpret(outcome(timed_out=True), plan)
    assert denial.sentence() == "the sandbox was refused running on by time-out; a longer --timeout would allow it"


def test_nothing_refused_is_nothing_to_tell():
    profile, plan = compiled("tier = 2")
    assert interpret(outcome(), plan, profile) == ()


def test_a_programs_name_does_not_reach_the_terminal_as_it_is():
    _, plan = compiled("tier = 2")
    (denial,) = interpret(outcome(refused("bpf", command="\x1b]0;x\x07")), plan)
    assert denial.sentence().startswith("\\x1b]0;x\\x07[77] was refused bpf")
    assert denial.as_dict()["command"] == "\x1b]0;x\x07"


def test_a_denial_as_json_has_every_field():
    profile, plan = compiled("tier = 2")
    (denial,) = interpret(outcome(refused("bpf", 5)), plan, profile)
    record = denial.as_dict()
    assert record["operation"] == "bpf"
    assert record["object"] == "BPF_PROG_LOAD"
    assert set(record) >= {
        "time",
        "sandbox",
        "pid",
        "command",
        "layer",
        "advice",
        "habitual",
        "count",
        "origin",
        "line",
    }


@pytest.mark.parametrize(
    ("value", "text"), [(512 << 20, "512M"), (1 << 30, "1G"), (1000, "1000 bytes"), (2 << 40, "2T")]
)
def test_sizes_are_written_as_profiles_write_them(value, text):
    assert size(value) == text
