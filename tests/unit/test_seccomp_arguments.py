"""The calls whose arguments decide, by simulation with edges and random values."""

from __future__ import annotations

import errno
import os
import socket
import stat
import termios
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox import seccomp
from osmoda.sandbox.bpf import simulate
from osmoda.sandbox.syscall_numbers import KNOWN
from tests.seccomp_filters import (
    ALLOW,
    ARCHES,
    AUDIT,
    EPERM,
    NOTIFY,
    answer,
    default_filter,
)

high_bits = st.integers(0, 2**32 - 1).map(lambda high: high << 32)
words = st.integers(0, 2**32 - 1)
anything = st.integers(0, 2**64 - 1)

SNAPSHOTS = [0x50009401, 0x50009417, 0x4020BC10]  # of btrfs, with two structures, and of bcachefs
REFUSED = [termios.TIOCSTI, 0x541C, termios.TIOCCONS, termios.TIOCSETD, *SNAPSHOTS]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("request_", REFUSED)
@given(high=high_bits, fd=anything, pointer=anything)
def test_terminal_injection_and_snapshots_are_refused_whatever_the_high_bits(
    arch: str, request_: int, high: int, fd: int, pointer: int
) -> None:
    assert answer(default_filter(arch, 1), "ioctl", fd, high | request_, pointer, arch=arch) == EPERM
    assert answer(default_filter(arch, 1, notify=True), "ioctl", fd, high | request_, pointer, arch=arch) == NOTIFY


@given(request_=words, high=high_bits)
def test_every_other_ioctl_is_allowed(request_: int, high: int) -> None:
    expected = EPERM if request_ in REFUSED else ALLOW
    assert answer(default_filter("x86_64", 2), "ioctl", 0, high | request_) == expected


@pytest.mark.parametrize("notify", [False, True])
@given(op=anything, flags=anything)
def test_a_listener_of_ones_own_is_an_errno_always(notify: bool, op: int, flags: int) -> None:
    # Not a notification: it is the answer that must hold when nobody listens.
    expected = EPERM if flags & 0x8 else ALLOW
    for arch in ARCHES:
        assert answer(default_filter(arch, 1, notify=notify), "seccomp", op, flags, arch=arch) == expected


@pytest.mark.parametrize("notify", [False, True])
def test_a_listener_is_an_errno_also_where_seccomp_is_not_allowed(notify: bool) -> None:
    program = seccomp.build(frozenset(), arch="x86_64", notify=notify, tier=2)
    assert answer(program, "seccomp", 1, 8) == EPERM
    assert answer(program, "seccomp", 1, 0) == (NOTIFY if notify else EPERM)


@pytest.mark.parametrize("arch", ARCHES)
@given(number=words, high=high_bits, new=anything, old=anything)
def test_the_limit_of_core_dumps_stays_and_nobody_is_told(
    arch: str, number: int, high: int, new: int, old: int
) -> None:
    program, done = seccomp.keep_core_limit(arch), 0x00050000
    for value in (number, 4):
        sets = done if value == 4 else ALLOW
        assert answer(program, "prlimit64", 0, high | value, new, old, arch=arch) == (sets if new else ALLOW)
        assert answer(program, "prlimit64", 0, high | value, 0, old, arch=arch) == ALLOW
        assert answer(program, "prlimit64", 0, high | value, 1 << 32, old, arch=arch) == sets
        assert answer(program, "setrlimit", high | value, new, arch=arch) == sets


@given(st.sampled_from(ARCHES), st.integers(0, 500))
def test_a_filter_for_core_dumps_decides_about_two_calls(arch: str, nr: int) -> None:
    if nr not in (KNOWN[arch]["setrlimit"], KNOWN[arch]["prlimit64"]):
        assert simulate(seccomp.keep_core_limit(arch), nr=nr, arch=AUDIT[arch], args=(4, 4, 1)) == ALLOW


NAMESPACES = {"NS": 0x20000, "CGROUP": 0x2000000, "UTS": 0x4000000, "IPC": 0x8000000, "USER": 0x10000000}
NAMESPACES |= {"PID": 0x20000000, "NET": 0x40000000}


@pytest.mark.parametrize("arch", ARCHES)
@given(flags=anything)
def test_clone_makes_no_namespace(arch: str, flags: int) -> None:
    expected = EPERM if any(flags & bit for bit in NAMESPACES.values()) else ALLOW
    assert answer(default_filter(arch, 2), "clone", flags, arch=arch) == expected


@pytest.mark.parametrize("bit", NAMESPACES.values(), ids=NAMESPACES)
def test_each_namespace_flag_alone(bit: int) -> None:
    assert answer(default_filter("x86_64", 2), "clone", bit | 17) == EPERM
    assert answer(default_filter("x86_64", 2), "clone", 0xFFFFFFFF_00000000 | 17) == ALLOW
    # What pthread_create and posix_spawn ask for.
    assert answer(default_filter("x86_64", 2), "clone", 0x3D0F00) == ALLOW
    assert answer(default_filter("x86_64", 2), "clone", 0x4100 | 17) == ALLOW


def socket_is_allowed(families: Sequence[str], domain: int, kind: int, protocol: int) -> bool:
    domain, kind, protocol = domain & 0xFFFFFFFF, kind & 0xF, protocol & 0xFFFFFFFF
    if domain == socket.AF_UNIX and "unix" in families:
        return kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
    if (domain == socket.AF_INET and "inet" in families) or (domain == socket.AF_INET6 and "inet6" in families):
        return (kind, protocol) in ((1, 0), (1, socket.IPPROTO_TCP), (2, 0), (2, socket.IPPROTO_UDP))
    if domain == socket.AF_NETLINK and "netlink" in families:
        return kind in (socket.SOCK_RAW, socket.SOCK_DGRAM) and protocol == 0
    return False


family_lists = st.lists(st.sampled_from(["unix", "inet", "inet6", "netlink"]), unique=True).map(tuple)


@pytest.mark.parametrize("arch", ARCHES)
@given(
    families=family_lists,
    domain=st.integers(0, 47) | words,
    kind=st.tuples(st.integers(0, 15), st.sampled_from([0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, 0xFFFFFFF0])),
    protocol=st.sampled_from([0, 1, 6, 9, 17, 58, 132, 136, 255, 262]) | words,
    high=high_bits,
)
def test_sockets_are_of_the_allowed_families_and_kinds(
    arch: str, families: tuple[str, ...], domain: int, kind: tuple[int, int], protocol: int, high: int
) -> None:
    program = default_filter(arch, 2, families=families)
    args = (high | domain, high | kind[0] | kind[1], high | protocol)
    found = answer(program, "socket", *args, arch=arch)
    if socket_is_allowed(families, *args):
        assert found == ALLOW
    elif protocol == 262 and kind[0] == 1 and found != EPERM:  # MPTCP, in an inet family
        assert found == 0x00050000 | errno.EPROTONOSUPPORT
        assert {2: "inet", 10: "inet6"}[domain] in families
    else:
        assert found == EPERM


@pytest.mark.parametrize(
    "domain", [socket.AF_PACKET, socket.AF_VSOCK, socket.AF_ALG, socket.AF_CAN, socket.AF_TIPC, 44]
)
def test_exotic_families_are_refused_with_every_family_allowed(domain: int) -> None:
    program = default_filter("x86_64", 1, families=("unix", "inet", "inet6", "netlink"))
    for kind in range(16):
        assert answer(program, "socket", domain, kind) == EPERM
    # SOCK_PACKET turns an inet socket into a packet socket.
    assert answer(program, "socket", socket.AF_INET, 10) == EPERM


@given(domain=words, kind=st.integers(0, 15), flags=st.sampled_from([0, socket.SOCK_CLOEXEC]), high=high_bits)
def test_socketpair_is_unix_only_and_always_there(domain: int, kind: int, flags: int, high: int) -> None:
    program = default_filter("x86_64", 2, families=())
    assert answer(program, "socketpair", high | 1, flags | kind) == (ALLOW if kind in (1, 2, 5) else EPERM)
    assert answer(program, "socketpair", high | domain, 1) == (ALLOW if domain == 1 else EPERM)


MODE_AT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mkdir": 1, "mkdirat": 2}
modes = st.integers(0, 0o177777) | anything


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", MODE_AT)
@given(mode=modes, other=anything)
def test_set_id_bits_are_refused(name: str, arch: str, mode: int, other: int) -> None:
    if name not in KNOWN[arch]:
        return
    args = [other] * 6
    args[MODE_AT[name]] = mode
    expected = EPERM if mode & (stat.S_ISUID | stat.S_ISGID) else ALLOW
    assert answer(default_filter(arch, 2), name, *args, arch=arch) == expected


@pytest.mark.parametrize(("name", "flags_at"), [("open", 1), ("openat", 2)])
@given(flags=anything, mode=modes)
def test_set_id_bits_in_open_count_where_a_file_may_be_made(name: str, flags_at: int, flags: int, mode: int) -> None:
    args = [0] * 6
    args[flags_at], args[flags_at + 1] = flags, mode
    makes = flags & (os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY))
    expected = EPERM if makes and mode & 0o6000 else ALLOW
    assert answer(default_filter("x86_64", 2), name, *args) == expected


@pytest.mark.parametrize(("name", "mode_at"), [("mknod", 1), ("mknodat", 2)])
@given(mode=modes)
def test_mknod_makes_no_device_and_no_set_id_file(name: str, mode_at: int, mode: int) -> None:
    args = [0] * 6
    args[mode_at] = mode
    refused = mode & 0o6000 or stat.S_ISCHR(mode & 0xFFFF) or stat.S_ISBLK(mode & 0xFFFF)
    assert answer(default_filter("x86_64", 1), name, *args) == (EPERM if refused else ALLOW)


@pytest.mark.parametrize("tier", [1, 2])
@given(flags=anything, name=anything)
def test_a_nameless_file_is_made_only_where_it_can_never_be_executed(tier: int, flags: int, name: int) -> None:
    expected = ALLOW if flags & 0x8 else EPERM  # MFD_NOEXEC_SEAL
    for arch in ARCHES:
        assert answer(default_filter(arch, tier), "memfd_create", name, flags, arch=arch) == expected


@given(persona=words, high=high_bits)
def test_personality_is_locked(persona: int, high: int) -> None:
    for value in (persona, 0, 1, 8, 0x0040000, 0x0400000, 0xFFFFFFFF):
        expected = ALLOW if value in (0, 0xFFFFFFFF) else EPERM
        assert answer(default_filter("x86_64", 1), "personality", high | value) == expected
