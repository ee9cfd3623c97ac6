"""System call names, numbers and groups, against the references that this machine has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox.syscall_groups import GROUPS, expand
from osmoda.sandbox.syscall_numbers import HIGHEST, KNOWN, NAMES, name, number

# What systemd 252 calls by these group names on x86-64 and aarch64, for machines without systemd-analyze.
FROZEN = {
    "@aio": "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter io_uring_register "
    "io_uring_setup",
    "@debug": "lookup_dcookie perf_event_open pidfd_getfd ptrace",
    "@keyring": "add_key keyctl request_key",
    "@memlock": "mlock mlock2 mlockall munlock munlockall",
    "@module": "delete_module finit_module init_module",
    "@pkey": "pkey_alloc pkey_free pkey_mprotect",
    "@raw-io": "ioperm iopl",
    "@reboot": "kexec_file_load kexec_load reboot",
    "@swap": "swapoff swapon",
    "@sync": "fdatasync fsync msync sync sync_file_range syncfs",
}
MAN_PAGE = """
    @aio @basic-io @chown @clock @cpu-emulation @debug @default @file-system @io-event @ipc @keyring @known @memlock
    @module @mount @network-io @obsolete @pkey @privileged @process @raw-io @reboot @resources @sandbox @setuid @signal
    @swap @sync @system-service @timer
"""


def systemd_groups() -> dict[str, set[str]]:
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    ).stdout
    direct: dict[str, list[str]] = {}
    group = ""
    for line in listing.splitlines():
        if line.startswith("@"):
            group = line.strip()
            direct[group] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            direct[group].append(line.strip())

    def members(entry: str) -> set[str]:
        return set().union(*(members(e) if e.startswith("@") else {e} for e in direct[entry]))

    return {entry: members(entry) for entry in direct}


def test_every_group_of_the_man_page_exists() -> None:
    assert set(GROUPS) == set(MAN_PAGE.split())


@pytest.mark.parametrize("group", FROZEN)
def test_members_of_the_groups_that_never_changed(group: str) -> None:
    assert GROUPS[group] == set(FROZEN[group].split())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed; the frozen list is compared")
def test_members_agree_with_systemd() -> None:
    systemd = systemd_groups()
    known = systemd.pop("@known").union(*systemd.values())
    # systemd 252 knows these and has them in no group yet; here they stand beside their elders.
    known -= {"futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack"} - systemd["@default"]
    assert len(systemd) > 20
    for group, members in systemd.items():
        # Each side may know calls that the other does not: other machines' calls there, newer ones here.
        assert GROUPS[group] & known == members & NAMES, group


def test_numbers_agree_with_the_kernel_headers() -> None:
    headers = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not headers.exists():
        pytest.skip("no kernel headers here")
    found = dict(re.findall(r"#define __NR_(\w+) (\d+)", headers.read_text()))
    assert len(found) > 350
    assert {entry: number(entry, "x86_64") for entry in found} == {entry: int(nr) for entry, nr in found.items()}


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_numbers_agree_with_libseccomp(arch: str) -> None:
    import pyseccomp

    target = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[arch]
    compared = 0
    for nr in range(HIGHEST + 1):
        try:
            theirs = pyseccomp.resolve_syscall(target, nr).decode()
        except ValueError:
            continue
        assert name(nr, arch) == theirs
        assert number(theirs, arch) == nr
        compared += 1
    assert compared > 300


def test_both_tables_end_alike_and_have_no_number_twice() -> None:
    for table in KNOWN.values():
        assert max(table.values()) == HIGHEST == table["file_setattr"]
        assert len(set(table.values())) == len(table)
    newer = {entry for entry, nr in KNOWN["x86_64"].items() if nr >= 424}
    assert all(KNOWN["x86_64"][entry] == KNOWN["aarch64"][entry] for entry in newer)


def test_a_number_nobody_has_is_still_named() -> None:
    assert name(9999, "x86_64") == "syscall 9999"
    assert number("open", "aarch64") is None


def test_groups_and_names_add_up() -> None:
    assert expand(["@sync", "getpid"]) == GROUPS["@sync"] | {"getpid"}
    assert expand(["@system-service"]) >= GROUPS["@basic-io"] | GROUPS["@timer"]
    assert expand([]) == frozenset()


def test_a_removal_wins_wherever_it_stands() -> None:
    assert "ptrace" not in expand(["~ptrace", "@debug", "ptrace"])
    assert expand(["@debug", "~@debug"]) == frozenset()


def test_a_list_of_removals_allows_nothing() -> None:
    assert expand(["~@debug"]) == frozenset()


@pytest.mark.parametrize(
    ("entry", "nearest"), [("opennat", "openat"), ("~@sytem-service", "@system-service"), ("@keyrings", "@keyring")]
)
def test_an_unknown_name_is_an_error_with_the_nearest_one(entry: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {nearest}"):
        expand([entry])


def test_an_unknown_name_like_no_other() -> None:
    with pytest.raises(ValueError, match="there is no system call 'zzzzzz'"):
        expand(["zzzzzz"])


entries = st.lists(
    st.sampled_from([*GROUPS, *sorted(NAMES)]).flatmap(lambda e: st.sampled_from([e, f"~{e}"])), max_size=8
)


@given(entries, st.randoms())
def test_order_does_not_matter(spec: list[str], random: object) -> None:
    shuffled = sorted(spec, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert expand(shuffled) == expand(spec)


@given(entries, entries)
def test_removals_of_either_list_hold_in_both_together(one: list[str], other: list[str]) -> None:
    together = expand(one + other)
    assert together <= expand(one) | expand(other)
    for entry in (*one, *other):
        if entry.startswith("~"):
            assert not together & expand([entry[1:]])
