"""What each tier may have of system calls. That each is answered so is `test_seccomp_proof.py`'s part."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox import bpf, seccomp
from osmoda.sandbox.bpf import simulate
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.syscall_groups import GROUPS
from osmoda.sandbox.syscall_numbers import HIGHEST, KNOWN, NAMES
from tests.seccomp_filters import (
    ALLOW,
    ARCHES,
    AUDIT,
    DEFAULT_SYSCALLS,
    ENOSYS,
    EPERM,
    FALLING_BACK,
    FAMILIES,
    TIERS,
    X86_64,
    answer,
    default_filter,
)


@given(st.integers(HIGHEST + 1, 2**32 - 1), st.sampled_from(ARCHES))
def test_numbers_beyond_the_table_do_not_exist(nr: int, arch: str) -> None:
    assert simulate(default_filter(arch, 2, notify=True), nr=nr, arch=AUDIT[arch]) == ENOSYS


@given(
    st.sets(st.sampled_from(sorted(NAMES - set(seccomp.FORBIDDEN[2])))),
    st.sampled_from(ARCHES),
    st.integers(0, HIGHEST),
    st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_nothing_is_allowed_that_was_not_asked_for(names: set[str], arch: str, nr: int, args: tuple[int, ...]) -> None:
    program = seccomp.build(frozenset(names), arch=arch, families=["inet"], notify=True, tier=2)
    name = {number: name for name, number in KNOWN[arch].items()}.get(nr)
    if simulate(program, nr=nr, arch=AUDIT[arch], args=args) == ALLOW:
        assert name in names | seccomp.FLOOR


NEVER = """
    unshare setns mount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsmount fsconfig fspick
    mount_setattr chroot bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key
    request_key kexec_load kexec_file_load init_module finit_module delete_module open_by_handle_at name_to_handle_at
    pidfd_getfd quotactl quotactl_fd swapon swapoff reboot settimeofday clock_settime adjtimex clock_adjtime acct iopl
    ioperm syslog fanotify_init sethostname
"""


@pytest.mark.parametrize("tier", TIERS)
def test_what_no_profile_may_allow(tier: int) -> None:
    everything = seccomp.allowed(["@known", "@debug"], tier=tier)
    assert everything == seccomp.ceiling(tier)
    program = seccomp.build(everything, arch="x86_64", families=[], notify=False, tier=tier)
    for name in NEVER.split():
        assert name not in everything
        assert answer(program, name) == EPERM
        with pytest.raises(ValueError, match=rf"^{name} .* cannot be allowed at tier {tier}$"):
            seccomp.allowed(["@system-service", name], tier=tier)
        with pytest.raises(ValueError, match=rf"^{name} .* cannot be allowed at tier {tier}$"):
            seccomp.build(frozenset({name}), arch="x86_64", families=[], notify=False, tier=tier)


REACHING = ["kcmp", "process_vm_readv", "process_vm_writev", "ptrace"]


def test_reaching_into_processes_must_be_named_and_is_tier_1s() -> None:
    assert not seccomp.allowed(["@known"], tier=1) & set(REACHING)
    assert not seccomp.allowed(["@system-service"], tier=1) & set(REACHING)
    assert seccomp.allowed(["@system-service", "@debug"], tier=1) >= set(REACHING)
    assert not seccomp.allowed(["@system-service", "@debug", "~@debug"], tier=1) & {"ptrace"}
    assert not seccomp.allowed(["@system-service", "@debug"], tier=2) & set(REACHING)
    for name in REACHING:
        assert seccomp.allowed(["@system-service", name], tier=1) & set(REACHING) == {name}
        with pytest.raises(ValueError, match="reaches into other processes"):
            seccomp.allowed([name], tier=2)


def test_tier_2_allows_no_more_than_tier_1() -> None:
    assert seccomp.ceiling(2) < seccomp.ceiling(1)
    default = [seccomp.allowed(DEFAULT_SYSCALLS[tier], tier=tier) for tier in TIERS]
    assert default[1] < default[0] <= seccomp.ceiling(1)


def test_the_floor_stays_and_cannot_be_named_away() -> None:
    assert seccomp.ceiling(2) >= seccomp.FLOOR
    assert seccomp.allowed([], tier=2) == seccomp.FLOOR
    assert seccomp.allowed(["@system-service", "~@known"], tier=1) == seccomp.FLOOR
    for name in seccomp.FLOOR:
        with pytest.raises(ValueError, match=f"{name} cannot be removed: the sandbox's own init needs it"):
            seccomp.allowed(["@system-service", f"~{name}"], tier=1)


@given(st.lists(st.sampled_from([*GROUPS, *(f"~{group}" for group in GROUPS)])), st.sampled_from(TIERS))
def test_any_list_stays_between_floor_and_ceiling(spec: list[str], tier: int) -> None:
    assert seccomp.FLOOR <= seccomp.allowed(spec, tier=tier) <= seccomp.ceiling(tier)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allow": frozenset({"nonsense"})}, "no system call 'nonsense'"),
        ({"arch": "riscv64"}, "riscv64"),
        ({"families": ["packet"]}, "no socket family 'packet'"),
        ({"tier": 0}, "tier 0"),
        ({"tier": 3}, "tier 3"),
    ],
)
def test_build_refuses_what_it_does_not_know(change: dict[str, object], message: str) -> None:
    right: dict[str, object] = {"allow": frozenset(), "arch": "x86_64", "families": [], "notify": False, "tier": 2}
    with pytest.raises(ValueError, match=message):
        seccomp.build(**(right | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHES)
def test_a_libseccomp_that_knows_fewer_calls_gives_the_same_answers(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyseccomp

    usual = default_filter(arch, 1)
    resolve = pyseccomp.resolve_syscall
    unknown = {"statx", "rseq", "mlock2", "faccessat2", "epoll_pwait2"}
    monkeypatch.setattr(pyseccomp, "resolve_syscall", lambda arch, name: -1 if name in unknown else resolve(arch, name))
    allow = seccomp.allowed(DEFAULT_SYSCALLS[1], tier=1)
    program = seccomp.build(allow, arch=arch, families=FAMILIES[1], notify=False, tier=1)
    assert program != usual
    for nr in range(601):
        assert simulate(program, nr=nr, arch=AUDIT[arch]) == simulate(usual, nr=nr, arch=AUDIT[arch])


def test_a_libseccomp_that_builds_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyseccomp

    add = pyseccomp.SyscallFilter.add_rule_exactly

    def also_reboot(self: object, action: int, nr: int) -> None:
        add(self, action, nr)
        if nr == KNOWN["x86_64"]["write"]:
            add(self, action, KNOWN["x86_64"]["reboot"])

    monkeypatch.setattr(pyseccomp.SyscallFilter, "add_rule_exactly", also_reboot)
    with pytest.raises(CompileError, match="answers call 169 with allow"):
        seccomp.build(frozenset(), arch="x86_64", families=[], notify=False, tier=2)


def test_a_missing_libseccomp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(CompileError, match="needs pyseccomp and libseccomp"):
        seccomp.build(frozenset(), arch="x86_64", families=[], notify=False, tier=2)


def only_number_and_architecture(program: bytes, name: str) -> bool:
    """What `seccomp_is_const_allow` of kernel/seccomp.c finds out: allowed without a look at anything else."""
    instructions = bpf.decode(program)
    seen = {bpf.NR: KNOWN["x86_64"][name], bpf.ARCH: X86_64}
    accumulator = at = 0
    while True:
        i = instructions[at]
        at += 1
        if i.code == bpf.LD_ABS:
            if i.k not in seen:
                return False
            accumulator = seen[i.k]
        elif i.code == bpf.RET:
            return i.k == ALLOW
        elif i.code == bpf.JA:
            at += i.k
        else:
            taken = {0x15: accumulator == i.k, 0x25: accumulator > i.k, 0x35: accumulator >= i.k}[i.code]
            at += i.jt if taken else i.jf


def test_the_kernel_can_answer_plain_calls_from_its_bitmap() -> None:
    program = default_filter("x86_64", 2, notify=True)
    for name in seccomp.allowed(DEFAULT_SYSCALLS[2], tier=2) & KNOWN["x86_64"].keys() - FALLING_BACK:
        assert only_number_and_architecture(program, name) == (name not in seccomp.CHECKED)
