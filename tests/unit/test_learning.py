"""From what was seen to what a profile says, without running anything."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from osmoda.egress.destinations import DEFAULT_PORTS, parse_rule
from osmoda.sandbox import bpf, profile_file, seccomp, tiers
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.learning import calls, fold, groups, permissive, private, writing
from osmoda.sandbox.learning.private import PrivatePlaces
from osmoda.sandbox.learning.proposal import Line, Proposal
from osmoda.sandbox.learning.seen import ENTRY, LIST, READ, STAT, WRITE, Seen
from osmoda.sandbox.syscall_groups import expand
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN
from tests.compiled import host

LIMIT = tiers.ceiling(1).process.syscalls


# System calls


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_reporting_filter_reports_what_names_things_and_what_no_profile_has_for_nothing(machine):
    program = calls.reporting_filter(machine)
    for name, number in KNOWN[machine].items():
        answer = bpf.simulate(program, nr=number, arch=AUDIT_ARCH[machine])
        unseen = name in seccomp.FLOOR and name not in calls.TOLD_BY_RESULT
        assert answer == (bpf.ALLOW if unseen else bpf.TRACE), name


def test_groups_cover_what_was_called_and_are_the_smallest():
    called = {"pwrite64", "unlink", "fdatasync", "sysinfo", "epoll_wait", "read"}
    found = groups.covering(called, LIMIT, 1)
    assert [*found] == ["@basic-io", "@file-system", "@io-event", "@sync", "sysinfo"]
    assert found["@file-system"] == ("unlink",)
    assert called <= expand([*found]) | seccomp.FLOOR


def test_groups_hold_nothing_beyond_the_ceiling():
    assert groups.covering({"mount", "keyctl", "ptrace"}, LIMIT, 1) == {"ptrace": ("ptrace",)}
    assert groups.covering({"ptrace"}, tiers.ceiling(2).process.syscalls, 2) == {}


# Files


@pytest.fixture
def place(tmp_path):
    return Path(os.path.realpath(tmp_path)) / "place"


def folded(seen, work="", *, tier=1, argv=(), loose=False):
    return fold.Folding(seen, private.PrivatePlaces(), tier, work, argv, loose=loose).fold()


def seen_of(kind, *paths, relative=False):
    seen = Seen()
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("")
        seen.path(os.fsencode(path), kind, "program", relative=relative)
    return seen


def test_a_few_files_stay_and_many_become_their_folder(place):
    assert [*folded(seen_of(READ, place / "a", place / "b")).read] == [f"{place}/a", f"{place}/b"]
    assert [*folded(seen_of(READ, *(place / name for name in "abcd"))).read] == [str(place)]


def test_what_was_only_looked_at_because_it_was_in_a_list_needs_no_line(place):
    seen = seen_of(STAT, place / "a", place / "b")
    assert [*folded(seen).read] == [f"{place}/a", f"{place}/b"]  # asked for by name
    # A folder that no profile grants as a whole, of which /etc is one.
    seen = Seen()
    seen.path(b"/etc", LIST, "program")
    for name in (b"/etc/fstab", b"/etc/debian_version"):
        seen.path(name, STAT, "program")
    seen.path(b"/etc/debian_version", READ, "program")
    assert [*folded(seen).read] == ["/etc/debian_version"]
    assert [*folded(seen, loose=True).read] == ["/etc/debian_version", "/etc/fstab"]


def test_packages_and_checkouts_are_one_line(place):
    inside = [place / "lib" / "python3.12" / "site-packages" / "one" / name for name in ("a", "b")]
    assert [*folded(seen_of(READ, *inside)).read] == [f"{place}/lib/python3.12/site-packages"]
    (place / "project" / ".git").mkdir(parents=True)
    spread = [place / "project" / name / "file" for name in "abcdefgh"]
    assert [*folded(seen_of(READ, *spread)).read] == [f"{place}/project"]
    assert [*folded(seen_of(READ, *spread[:2])).read] == [f"{place}/project/a/file", f"{place}/project/b/file"]


def test_what_was_made_counts_for_the_folder_that_was_there(place):
    seen = seen_of(WRITE, place / "there")
    seen.path(os.fsencode(place / "new" / "deeper"), ENTRY, "program")
    assert [*folded(seen).write] == [str(place)]
    assert [*folded(seen_of(WRITE, place / "there")).write] == [f"{place}/there"]


def test_the_workspace_is_for_names_from_the_current_directory_and_for_writing(place):
    assert folded(seen_of(READ, place / "a"), str(place), argv=(f"{place}/a",)).workspace is None
    assert folded(seen_of(READ, place / "a", relative=True), str(place)).workspace is not None
    files = folded(seen_of(ENTRY, place), str(place))
    assert files.workspace is not None
    assert not files.write


def test_what_every_sandbox_has_needs_no_line():
    seen = Seen()
    for path in (b"/usr/bin/env", b"/proc/self/maps", b"/dev/null", b"/etc/passwd", b"/tmp", b"/"):
        seen.path(path, READ | LIST, "program")
    files = folded(seen)
    assert (files.read, files.write, files.refused) == ({}, {}, [])


@pytest.mark.parametrize("path", ["/etc", "/home", "/root", "/var/lib", "/opt"])
def test_a_wide_folder_is_not_granted_and_that_is_said(path):
    seen = Seen()
    seen.path(path.encode(), LIST, "program")
    files = folded(seen, loose=True)
    assert files.read == {}


def test_keys_are_not_granted_and_that_is_said(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    seen = seen_of(READ, place / ".ssh" / "id")
    found = private.PrivatePlaces()
    found.places = (*found.places, str(place / ".ssh"))
    files = fold.Folding(seen, found, 1, "", (), loose=True).fold()
    assert files.read == {}
    assert [one.what for one in files.refused] == [f"reading {place}/.ssh/id"]
    assert found.wide(str(place))


# Text


def proposal():
    found = Proposal(1)
    found.add(("filesystem", "read"), '/a "quoted" \\ # name', "cat: reads\nand lies")
    found.add(("network", "allow"), "www.example.test", "2 connections")
    found.lists["process", "syscalls"] = []
    found.values["process", "pids"] = Line(16, "1 at once at most")
    return found


def test_a_fresh_profile_means_what_was_proposed():
    text = writing.fresh(proposal(), "cat\x1b")
    table = tomllib.loads(text)
    assert table["filesystem"]["read"] == ['/a "quoted" \\ # name']
    assert table["process"] == {"syscalls": [], "pids": 16}
    assert "\x1b" not in text
    assert "# cat: reads\\nand lies" in text
    profile = profile_file.load_text(text, "learned", "/")
    assert profile.network.allow == (parse_rule("www.example.test", DEFAULT_PORTS),)


def test_what_is_there_already_is_left_alone():
    text = 'schema = 1\ntier = 1\n[network] # ours\nallow = ["*.example.test"]\n[filesystem]\nread = ["/srv"]\n'
    wanted = Proposal(1)
    wanted.add(("filesystem", "read"), "/srv/data", "")
    wanted.add(("network", "allow"), "www.example.test", "")
    wanted.add(("process", "syscalls"), "@file-system", "")
    wanted.values["process", "pids"] = Line(16, "")
    wanted.values["network", "loopback"] = Line(False, "")
    assert writing.merged(text, wanted, profile_file.load_text(text, "agent.toml", "/")) == text


def test_a_list_that_replaces_the_tiers_own_repeats_it():
    text = "schema = 1\ntier = 1\n"
    wanted = Proposal(1)
    wanted.add(("process", "syscalls"), "ptrace", "strace: ptrace")
    merged = writing.merged(text, wanted, profile_file.load_text(text, "agent.toml", "/"))
    assert tomllib.loads(merged)["process"]["syscalls"] == ["@pkey", "@sandbox", "@system-service", "ptrace"]


def test_the_observed_run_gives_up_no_layer_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissive.features, "probe", lambda: host(landlock=0))
    with pytest.raises(CompileError, match="Landlock"):
        permissive.permissive(["true"], (), (), (), PrivatePlaces())
    named = ("landlock", "landlock-net", "landlock-scope")
    plan, _ = permissive.permissive(["true"], (), (), named, PrivatePlaces())
    assert "landlock" in {entry.layer for entry in plan.degraded}
