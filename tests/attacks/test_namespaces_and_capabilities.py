"""New namespaces, other namespaces, privileges by file, mounts and control groups."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.attacks.conftest import Attacker, as_root

FLAGS = {
    "NEWTIME": 0x00000080,
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
UNSHARE = 272 if os.uname().machine == "x86_64" else 97
MOUNT = 165 if os.uname().machine == "x86_64" else 40
UMOUNT2 = 166 if os.uname().machine == "x86_64" else 39
MS_REMOUNT_BIND_RW, MNT_DETACH = str(0x20 | 0x1000), "2"


@as_root
def test_new_namespaces(attacker: Attacker) -> None:
    """unshare, clone and clone3, each kind; with a user namespace come all capabilities in it."""
    unshare = {f"unshare-{name}": ["call", str(UNSHARE), str(flag)] for name, flag in FLAGS.items()}
    # NEWTIME lies in clone's exit signal, where the kernel does not look for it.
    clone = {f"clone-{name}": ["clone", str(flag)] for name, flag in FLAGS.items() if name != "NEWTIME"}
    clone3 = {f"clone3-{name}": ["clone3", str(flag)] for name, flag in FLAGS.items()}
    attacks = unshare | clone | clone3
    outside = attacker.all_outside(attacks, privileged=True)
    outside.pop("clone3-NEWTIME")  # not every kernel takes it there
    assert set(outside.values()) == {"OK"}
    ended = attacker.all_inside(attacks)
    expected = dict.fromkeys([*unshare, *clone], "EPERM") | dict.fromkeys(clone3, "ENOSYS")
    assert ended.each() == expected, "clone3 as if the kernel had none: its flags are where no filter looks"
    assert ended.refused() == {"unshare", "clone"}


def test_a_mount_in_a_user_namespace_of_ones_own(attacker: Attacker) -> None:
    """What an ordinary user can do: all capabilities over a new user namespace, and mounts in it."""
    assert attacker.outside("mount-in-userns").line == "OK"
    ended = attacker.inside("mount-in-userns")
    assert (ended.line, ended.refused()) == ("EPERM", {"unshare"})
    second = attacker.inside("read", "/proc/sys/user/max_user_namespaces")
    assert second.line == "OK 0", "and without the filter the kernel would count to none"


@as_root
def test_entering_a_namespace(attacker: Attacker) -> None:
    """Of the host's pid 1 by a pidfd, outside; inside pid 1's, and one's own by path."""
    assert attacker.outside("setns", str(os.getpid()), privileged=True).line == "OK"
    ended = attacker.all_inside({"pidfd": ["setns", "1"], "path": ["setns", "/proc/self/ns/user"]})
    assert ended.each() == {"pidfd": "EPERM", "path": "EPERM"}
    assert ended.refused() == {"setns"}


@pytest.fixture
def privileged_programs(attacker: Attacker) -> dict[str, Path]:
    """The attacker's program as root's with the set-user-id bit, and with file capabilities."""
    setuid, capable = attacker.folder / "setuid", attacker.folder / "capable"
    for path in (setuid, capable):
        shutil.copy(attacker.program, path)
        os.chown(path, 0, 0)
    setuid.chmod(0o6755)
    # struct vfs_cap_data (capability(7)): version 2, effective; cap_sys_admin and cap_setuid.
    permitted = (1 << 21 | 1 << 7).to_bytes(4, "little")
    os.setxattr(capable, "security.capability", 0x02000001.to_bytes(4, "little") + permitted + bytes(12))
    return {"setuid": setuid, "capable": capable}


@as_root
def test_set_user_id_programs_and_file_capabilities(attacker: Attacker, privileged_programs: dict[str, Path]) -> None:
    """Run by a user who has nothing, they give root and capabilities outside."""
    setuid, capable = privileged_programs["setuid"], privileged_programs["capable"]
    nobody = {"user": 54321, "group": 54321, "extra_groups": []}
    for folder in (attacker.folder, *attacker.folder.parents):
        if folder == attacker.world.tmp:
            break
        folder.chmod(0o755)
    assert run_as(setuid, nobody).startswith("OK euid 0 permitted 1")
    assert run_as(capable, nobody) == "OK euid 54321 permitted 200080"
    for program in (setuid, capable):
        ended = attacker.run(str(program), "identity")
        assert ended.output == "OK euid 1000 permitted 0\n", ended.errors
    status = attacker.run("grep", "-E", "^(Cap|NoNewPrivs)", "/proc/self/status").output.split()
    zero = "0000000000000000"
    assert status == [
        *("CapInh:", zero, "CapPrm:", zero, "CapEff:", zero, "CapBnd:", zero, "CapAmb:", zero, "NoNewPrivs:", "1")
    ], "no_new_privs and an empty bounding set: no file can give anything"
    mounts = [line.split() for line in attacker.run("cat", "/proc/self/mountinfo").output.splitlines()]
    assert all("nosuid" in fields[5].split(",") for fields in mounts), "and every mount is nosuid"


def run_as(program: Path, who: dict[str, object]) -> str:
    done = subprocess.run([program, "identity"], capture_output=True, text=True, check=True, **who)
    return done.stdout.strip()


@as_root
def test_making_a_set_user_id_program(attacker: Attacker) -> None:
    """Left in a place that others can reach, it would run with the rights of whoever owns it there."""
    attempt = "cp {program} {place}/tool && chmod {mode} {place}/tool"
    place = attacker.world.tmp / "shared"
    place.mkdir()
    attacker.world.own(place)
    command = attempt.format(program=attacker.program, place=place, mode="4755")
    attacker.world.run(["sh", "-c", command], check=True)
    assert (place / "tool").stat().st_mode & 0o6000
    (place / "tool").unlink()
    for mode in ("4755", "2755", "u+s"):
        command = attempt.format(program=attacker.program, place=place, mode=mode)
        options = ["--workspace", str(place), "--workspace-mode", "direct"]
        ended = attacker.run("sh", "-c", command, options=options)
        assert ended.status == 1
        assert "Operation not permitted" in ended.errors
        assert ended.refused() & {"fchmodat", "chmod", "fchmodat2"}
        assert not (place / "tool").stat().st_mode & 0o6000


@as_root
def test_raising_capabilities(attacker: Attacker) -> None:
    assert attacker.outside("capset", privileged=True).line == "OK"
    ended = attacker.inside("capset")
    assert ended.line == "EPERM"
    assert attacker.inside("identity").line == "OK euid 1000 permitted 0"


@as_root
def test_changing_mounts(attacker: Attacker) -> None:
    """Making a read-only tree writable, uncovering what a mask hides, mounting over what others read."""
    target = attacker.folder / "mounted"
    target.mkdir()
    script = f"""
        mount -t tmpfs none {target} && mount -o remount,bind,ro {target} &&
        {attacker.program} call {MOUNT} @none @{target} 0 {MS_REMOUNT_BIND_RW} 0 &&
        {attacker.program} call {UMOUNT2} @{target} {MNT_DETACH}
    """
    control = attacker.world.run(["unshare", "-rm", "sh", "-ec", script], check=True)
    assert control.stdout.split() == ["OK", "OK"]
    work = attacker.world.tmp / "work"
    work.mkdir()
    (work / ".env").write_text("the host's secret")
    attacker.world.own(work)
    profile = attacker.profile(f'[filesystem]\nworkspace = "direct"\ndeny = ["{work}/.env"]\n')
    attacks = {
        "remount-rw": ["call", str(MOUNT), "@none", "@/usr", "0", MS_REMOUNT_BIND_RW, "0"],
        "uncover": ["call", str(UMOUNT2), f"@{work}/.env", MNT_DETACH],
        "cover": ["call", str(MOUNT), "@none", "@/tmp", "@tmpfs", "0", "0"],
    }
    covered = {"covered": ["read", f"{work}/.env"], "program": ["write", "/usr/bin/env", "x"]}
    assert attacker.outside("read", f"{work}/.env").line == "OK the host's secret"
    ended = attacker.all_inside(attacks | covered, ["--profile", profile, "--workspace", str(work)])
    found = ended.each()
    assert {name: found[name] for name in attacks} == dict.fromkeys(attacks, "EPERM")
    assert ended.refused() == {"mount", "umount2"}
    assert found["covered"] == "EACCES"
    assert found["program"] in ("EROFS", "EACCES")


def control_groups() -> Path | None:
    """A hierarchy in which the test run may make groups."""
    for place in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        if (place / "cgroup.procs").exists() and os.access(place, os.W_OK):
            return place
    return None


@as_root
def test_leaving_the_control_group(attacker: Attacker) -> None:
    """Moving oneself to a group without limits; and release_agent, which the kernel runs as root on the host."""
    place = control_groups()
    if place is None:
        pytest.skip("there is no control group hierarchy here in which groups can be made")
    group = place / f"attack-{os.getpid()}"
    group.mkdir()
    try:
        move = ["sh", "-c", f"echo 0 >{group}/cgroup.procs && grep -c attack-{os.getpid()} /proc/self/cgroup"]
        attacker_as_root = attacker.world.run(move) if attacker.world.is_root else run_here(move)
        assert attacker_as_root.stdout.strip() not in ("", "0")
        options = ["--profile", attacker.profile('[process]\nmemory = "256M"\n')] if attacker.world.is_root else []
        ended = attacker.run(*move, options=options)
        assert ended.status != 0
        assert ended.output == ""
        paths = {
            "tree": ["read", "/sys/fs/cgroup"],
            "procs": ["write", f"{group}/cgroup.procs", "0"],
            "release-agent": ["write", "/sys/fs/cgroup/memory/release_agent", "/tmp/evil"],
        }
        assert attacker.all_inside(paths, options).each() == dict.fromkeys(paths, "ENOENT"), "no cgroupfs is in view"
        inside = attacker.inside("readlink", "/proc/self/ns/cgroup", options=options).line
        assert inside != f"OK {os.readlink('/proc/self/ns/cgroup')}", "a cgroup namespace of its own"
    finally:
        group.rmdir()


def run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
