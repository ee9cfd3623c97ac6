"""Names that are not what they were when somebody looked: links, `..`, mounts, and what comes to be later."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.sandbox import granted_paths
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.operations import mounting
from tests.attacks.conftest import Attacker, as_root

SECRET = "the host's secret"
RACES = 5


@pytest.fixture
def granted(attacker: Attacker) -> Path:
    """A folder that both tiers may grant, with a file."""
    folder = attacker.folder.parent / "granted"
    folder.mkdir()
    (folder / "file").write_text("harmless\n")
    attacker.world.own(folder)
    return folder


@pytest.fixture
def private(attacker: Attacker) -> Path:
    """A folder elsewhere, with a secret, that nobody grants."""
    folder = attacker.world.tmp / "private"
    folder.mkdir()
    (folder / "file").write_text(SECRET + "\n")
    attacker.world.own(folder)
    return folder


@pytest.fixture
def swapped(attacker: Attacker, granted: Path, private: Path) -> Iterator[Path]:
    """`granted`, exchanged all the time with a link to the private folder."""
    link = granted.with_name("link")
    link.symlink_to(private)
    attacker.world.own(link)
    with attacker.world.popen([attacker.program, "swap", granted, link], stdout=subprocess.PIPE, text=True) as swapping:
        assert swapping.stdout.readline() == "swapping\n"
        yield granted
        swapping.kill()


def reads(attacker: Attacker, path: Path, options: list[str]) -> str:
    """What a sandbox sees in `path`/file, or why it did not start."""
    done = attacker.world.osmoda(*attacker.argv("cat", str(path / "file"), options=options))
    assert done.returncode in (0, 1, 125), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip() or done.stderr.strip().partition("\n")[0]


@pytest.mark.parametrize("grant", ["read", "write"])
def test_a_granted_folder_swapped_for_a_link_during_the_set_up(attacker: Attacker, swapped: Path, grant: str) -> None:
    """Checked as a folder, opened as a link: won by whoever resolves a path twice."""
    if grant == "write" and attacker.tier == 2:
        grant = "read"
    until = time.monotonic() + 30
    while (swapped / "file").read_text().strip() != SECRET:
        assert time.monotonic() < until, "the control: a program that opens by name is led astray soon"
    found = {reads(attacker, swapped, [f"--{grant}", str(swapped)]) for _ in range(RACES)}
    # Whoever looks, looks once: the compiler walks the path itself, openat2 takes no link (RESOLVE_NO_SYMLINKS).
    assert {answer for answer in found if not answer.startswith("osmoda-sandbox: ")} <= {"harmless"}


def led_astray(path: str, private: str) -> dict[str, int]:
    """How often of many times each way to look at `path` ends in the private folder."""
    found = dict.fromkeys(("a program", "the compiler", "the launch"), 0)
    rounds, until = 0, time.monotonic() + 30
    while rounds < 4000 or (found["a program"] <= 100 and time.monotonic() < until):
        rounds += 1
        fd = os.open(path, os.O_PATH)
        found["a program"] += os.readlink(f"/proc/self/fd/{fd}") == private
        os.close(fd)
        with contextlib.suppress(CompileError, OSError):
            found["the compiler"] += granted_paths.resolve_grant(path, "", write=False, never=()) == private
        with contextlib.suppress(OSError):
            fd, _ = mounting.open_source(os.fsencode(path))
            found["the launch"] += os.readlink(f"/proc/self/fd/{fd}") == private
            os.close(fd)
    return found


@pytest.mark.parametrize("tier", [1], ids=[""], indirect=True)
def test_each_look_at_a_folder_swapped_for_a_link(attacker: Attacker, swapped: Path, private: Path) -> None:
    """The same race for the compiler and the launch alone, which one can lose thousands of times a second."""
    found = attacker.world.call(led_astray, str(swapped), str(private))
    assert found["a program"] > 100, "the control"
    assert (found["the compiler"], found["the launch"]) == (0, 0)


def test_a_file_in_a_granted_folder_swapped_for_a_link(attacker: Attacker, granted: Path, private: Path) -> None:
    """Inside, the link leads to where the sandbox has nothing."""
    (granted / "file").unlink()
    climbing = os.path.relpath(private, granted)
    (granted / "file").symlink_to(f"{climbing}/file")
    (granted / "absolute").symlink_to(private / "file")
    attacker.world.own(granted)
    attacks = {
        "link": ["read", str(granted / "file")],
        "absolute": ["read", str(granted / "absolute")],
        "dots": ["read", f"{granted}/{climbing}/file"],
        "proc-root": ["read", f"/proc/self/root{granted}/{climbing}/file"],
        "proc-cwd": ["read", f"/proc/self/cwd/../../../../../../../{private}/file"],
        "above-root": ["read", "/../../../../../../etc/shadow"],
    }
    outside = attacker.all_outside(attacks)
    assert {name for name, line in outside.items() if line.strip() == f"OK {SECRET}"} >= {"link", "absolute", "dots"}
    ended = attacker.all_inside(attacks, ["--read", str(granted)])
    assert set(ended.each().values()) == {"ENOENT"}, "the mount view: nothing but the granted folder is there"


def test_a_declared_path_that_climbs(attacker: Attacker, granted: Path, private: Path) -> None:
    """Relative to the profile's folder, and out of it."""
    climbing = os.path.relpath(private, granted)
    assert attacker.world.run(["cat", f"{climbing}/file"], cwd=granted).stdout.strip() == SECRET
    for declared in (climbing, f"./sub/../{climbing}"):
        profile = granted / "profile.toml"
        profile.write_text(f'schema = 1\ntier = {attacker.tier}\n[filesystem]\nread = ["{declared}"]\n')
        ended = attacker.world.osmoda("run", "--profile", profile, "--", "cat", private / "file")
        assert (ended.returncode, ended.stdout) == (125, "")
        assert f"{profile}:4:" in ended.stderr
        assert "escapes the profile's folder" in ended.stderr


def test_a_granted_folder_that_is_a_link_out(attacker: Attacker, granted: Path, private: Path) -> None:
    link = granted / "out"
    link.symlink_to(private)
    assert attacker.world.run(["cat", link / "file"]).stdout.strip() == SECRET
    assert reads(attacker, link, ["--read", str(link)]).endswith("name that path itself if it is meant")


@as_root
def test_mounts_made_on_the_host_while_the_sandbox_runs(attacker: Attacker, granted: Path, private: Path) -> None:
    """A bind mount in the granted folder, which is shared with all that look: the sandbox is not among them."""
    output, channel = attacker.world.tmp / "out", attacker.world.tmp / "pipe"
    script = f"""
        set -e
        mount --make-rprivate / && mount --bind {granted} {granted} && mount --make-shared {granted}
        mkdir {granted}/sub
        exec 8<>{channel}
        "$@" <&8 >{output} &
        until grep -q up {output} 2>/dev/null; do :; done
        mount --bind {private} {granted}/sub
        cat {granted}/sub/file
        echo go >&8
        wait $!
    """
    os.mkfifo(channel)
    payload = f"echo up; read line; cat {granted}/sub/file; cat {granted}/file"
    command = attacker.argv("sh", "-c", payload, options=["--read", str(granted)])
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *attacker.world.argv(attacker.world.osmoda_argv(*command))]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=dict(attacker.world.environment), timeout=60
    )
    assert done.stdout == f"{SECRET}\n", f"the control: outside it is there\n{done.stderr}"
    assert output.read_text() == "up\nharmless\n", "the sandbox's mounts are its own"


@pytest.mark.parametrize("mode", ["read", "overlay", "direct"])
def test_a_denied_path_that_does_not_exist_yet(attacker: Attacker, granted: Path, mode: str) -> None:
    """The host makes it while the sandbox runs; the sandbox may not see it, and may not make it first."""
    late, allowed = granted / "late", granted / "allowed"
    workspace = "none" if mode == "read" else mode
    read = f'read = ["{granted}"]' if mode == "read" else ""
    profile = attacker.profile(f'[filesystem]\ndeny = ["{late}"]\nworkspace = "{workspace}"\n{read}\n')
    script = f"echo planted 2>&1 >{late}; echo up; read line; cat {allowed}; cat {late} 2>&1; test -e {late}; echo $?"
    options = ["--profile", profile, *(["--workspace", str(granted)] if mode != "read" else [])]
    argv = attacker.world.osmoda_argv(*attacker.argv("sh", "-c", script, options=options))
    pipe = subprocess.PIPE
    with attacker.world.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        if mode == "direct":
            _, errors = running.communicate()
            assert running.returncode == 125, "nothing could hold it, so nothing is started"
            assert f"{late}" in errors
            return
        first = running.stdout.readline()
        while first not in ("up\n", ""):
            first = running.stdout.readline()
        assert first == "up\n"
        assert not late.exists()
        for path in (allowed, late):
            path.write_text(SECRET + "\n")
        attacker.world.own(granted)
        output, _ = running.communicate("go\n")
    lines = output.splitlines()
    assert lines[0] == SECRET, "the control: what is not denied is seen as soon as it is there"
    assert lines[1:] == (
        [f"cat: {late}: No such file or directory", "1"] if mode == "read" else [f"cat: {late}: Permission denied", "0"]
    )
    assert SECRET not in "".join(lines[1:])
    assert late.read_text() == SECRET + "\n"


def replace(path: Path, text: str, attacker: Attacker) -> None:
    """As most editors save."""
    new = path.with_name(".new")
    new.write_text(text)
    attacker.world.own(new)
    new.rename(path)


@pytest.mark.parametrize("denied", ["secret", "inner/secret"])
def test_a_denied_file_that_the_host_replaces_ends_the_sandbox(attacker: Attacker, granted: Path, denied: str) -> None:
    """The mount over it goes with the old file (rename(2)), and nothing but the monitor stands behind it."""
    (granted / "inner").mkdir()
    hidden = granted / denied
    hidden.write_text(SECRET + "\n")
    attacker.world.own(granted)
    profile = attacker.profile(f'[filesystem]\ndeny = ["{hidden}"]\nworkspace = "direct"\n')
    script = f"cat {hidden} 2>&1; cat {granted}/file; exec sleep infinity"
    assert attacker.world.run(["cat", str(hidden)]).stdout == SECRET + "\n", "the control: outside it can be read"
    argv = attacker.argv("sh", "-c", script, options=["--profile", profile, "--workspace", str(granted)])
    pipe = subprocess.PIPE
    with attacker.world.popen(attacker.world.osmoda_argv(*argv), stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"cat: {hidden}: Permission denied\n"
        assert running.stdout.readline() == "harmless\n"
        replace(granted / "file", "another\n", attacker)  # nothing covers that: it goes on
        assert running.poll() is None
        replace(hidden, SECRET + "\n", attacker)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 125
    assert f"the sandbox was ended: {hidden} was replaced on the host" in errors


def test_an_edit_does_not_take_the_pin_from_a_profile_in_the_workspace(attacker: Attacker, granted: Path) -> None:
    """Were it replaced, the program could write the profile of its own next run: any tier, any name."""
    profile = granted / "agent.toml"
    text = f'schema = 1\ntier = {attacker.tier}\n[filesystem]\nworkspace = "direct"\n[network]\nallow = ["a.example"]\n'
    profile.write_text(text)
    attacker.world.own(granted)
    control = attacker.world.run(["sh", "-c", f"echo '# mine' >>{profile}"])
    assert control.returncode == 0, "the control: outside it can be written"
    profile.write_text(text)
    script = (
        f"(echo '# mine' >>{profile}) 2>/dev/null; echo $?; read line; (echo '# mine' >>{profile}) 2>/dev/null; echo $?"
    )
    argv = attacker.argv("sh", "-c", script, options=["--profile", str(profile), "--workspace", str(granted)])
    pipe = subprocess.PIPE
    with attacker.world.popen(
        attacker.world.osmoda_argv(*argv), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as running:
        assert running.stdout is not None
        before = running.stdout.readline()
        edit = attacker.world.egress("allow", str(profile), "b.example")
        after, _ = running.communicate("go\n", timeout=60)
    assert before.strip() not in ("", "0")
    assert after.strip() not in ("", "0"), "the mounts still hold it"
    assert edit.returncode == 125
    assert "is protected from it only until it is replaced" in edit.stderr
    assert profile.read_text() == text
    assert attacker.world.egress("allow", str(profile), "b.example").returncode == 0, (
        "once it has ended it may be edited"
    )
