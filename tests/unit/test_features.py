from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from osmoda.host import cgroup, features, syscalls
from osmoda.host.features import Features, fingerprint, probe
from osmoda.sandbox import lease


def look():
    """What a fresh process sees: itself, and the same from other sources."""
    return {name: getattr(probe(), name) for name in Features.__fields__}, fingerprint() == fingerprint()


def test_what_is_found_is_what_other_sources_say(world):
    found, steady = world.call(look)
    assert steady
    release = platform.release()
    assert found["release"] == release
    assert found["kernel"] == tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    assert found["machine"] == platform.machine()
    assert found["uid"] == world.uid
    assert found["user_namespaces"] == int(Path("/proc/sys/user/max_user_namespaces").read_text())
    assert found["last_capability"] == int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert found["notify"] == ("user_notif" in Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split())
    listed = Path("/sys/kernel/security/lsm")
    if listed.exists():
        assert bool(found["landlock"]) == ("landlock" in listed.read_text().split(","))
    assert bool(found["cgroup_version"]) == bool(found["controllers"])
    assert set(found["controllers"]) <= {"memory", "cpu", "pids"}


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root is given")
def test_privilege_is_an_idmapped_mount_and_a_foreign_uid():
    assert features.privileged() == (Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)])


CAPABLE = f"Name:\tx\nCapEff:\t{2**41 - 1:016x}\nCapBnd:\t0\n"


@pytest.mark.parametrize(
    ("status", "uid_map", "answer"),
    [
        (CAPABLE, "         0          0 4294967295\n", True),
        (CAPABLE, "0 1000 1\n", False),  # a container of an ordinary user
        (CAPABLE, "0 100000 65536\n", False),
        (CAPABLE, f"0 0 1000\n{lease.FIRST_UID} 5 {lease.COUNT}\n", True),
        (CAPABLE, f"0 0 1000\n{lease.FIRST_UID} 5 {lease.COUNT - 1}\n", False),
        (CAPABLE, f"0 0 1000\n{lease.FIRST_UID + 1} 5 {lease.COUNT}\n", False),
        *[(f"CapEff:\t{2**41 - 1 & ~(1 << bit):016x}\n", "0 0 4294967295\n", False) for bit in (6, 7, 21)],
    ],
)
def test_root_of_a_container_is_not_privileged(status, uid_map, answer, monkeypatch):
    files = {"/proc/self/status": status, "/proc/self/uid_map": uid_map}
    monkeypatch.setattr(features, "_read", files.__getitem__)
    monkeypatch.setattr(features.posix, "geteuid", lambda: 0)
    assert features.privileged() is answer


def test_nobody_else_is(monkeypatch):
    monkeypatch.setattr(features.posix, "geteuid", lambda: 1000)
    assert not features.privileged()


@pytest.mark.parametrize(
    ("switch", "uid", "restricted"), [("1\n", 1000, True), ("0\n", 1000, False), ("", 1000, False), ("1\n", 0, False)]
)
def test_apparmors_restriction_is_for_users(switch, uid, restricted, monkeypatch):
    read = features._read
    monkeypatch.setattr(features, "_read", lambda path: switch if path == features._APPARMOR_SWITCH else read(path))
    monkeypatch.setattr(features.posix, "geteuid", lambda: uid)
    assert probe().apparmor_restricted is restricted


@pytest.mark.parametrize(
    ("release", "kernel"), [("6.18.44-fc", (6, 18)), ("5.15", (5, 15)), ("6.1-rc3", (6, 1)), ("6.10+", (6, 10))]
)
def test_kernel_versions(release, kernel):
    assert features._version(release) == kernel


def test_the_uids_that_privilege_is_for_are_those_that_are_leased():
    assert range(lease.FIRST_UID, lease.FIRST_UID + lease.COUNT) == features._OWN_UIDS


CHANGES = {
    "privilege": (features, "privileged", lambda: "other"),
    "landlock": (syscalls, "landlock_abi", lambda: 99),
    "controllers": (cgroup, "find", lambda: cgroup.Hierarchy(2, (("pids", "/elsewhere"),))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_the_host_changes_the_fingerprint(change, monkeypatch):
    before = fingerprint()
    monkeypatch.setattr(*CHANGES[change])
    assert fingerprint() != before


def test_another_user_has_another_fingerprint(monkeypatch):
    before = fingerprint()
    monkeypatch.setattr(features.posix, "geteuid", lambda: 4321)
    assert fingerprint() != before
