"""What is wrong with the input, or with the host, is said in one sentence with the right exit code; nothing is left."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmoda.host import features
from osmoda.host.frozen import fields_of, values_of
from osmoda.sandbox import CompileError, Profile
from osmoda.sandbox.compile import compile_profile
from tests.worlds import World

HEAD = "schema = 1\ntier = {tier}\n"


def listing(world: World) -> list[Path]:
    """What lies in the world; the cache of plans and the leases' lock file may come."""
    return sorted(path for path in world.tmp.rglob("*") if "cache" not in path.parts)


@pytest.fixture
def unchanged(world: World) -> Iterator[Callable[[], None]]:
    """Call it when the scene is set: whatever comes after it must be gone at the end."""
    before: list[list[Path]] = []
    yield lambda: before.append(listing(world))
    assert before, "the test did not say when its scene was set"
    assert [path for path in listing(world) if path not in before[0]] == []


def sentence(result: subprocess.CompletedProcess[Any], code: int = 125) -> str:
    """The one line that was said, without the command's name in front."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("osmoda-sandbox: ")
    assert result.stdout == ""
    return lines[0].removeprefix("osmoda-sandbox: ")


def with_profile(world: World, text: str, *options: str, tier: int = 1, command: str = "true") -> Any:
    path = world.tmp / "profile.toml"
    path.write_text(HEAD.format(tier=tier) + text)
    world.own(path)
    return world.osmoda("run", "--profile", path, *options, "--", command, timeout=20)


# Profiles


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[filesystem\n", "3:", ()),
        ('[filesystem]\nworkspace = "sideways"\n', "4:1", ("sideways", "direct")),
        ("[filesystem]\nraed = []\n", "4:1", ("raed", "read")),
        ('[process]\npids = "many"\n', "4:1", ("many",)),
        ("[process]\npids = 100000\n", "4:", ("65536",)),
        ('[process]\nsyscalls = ["@nothing"]\n', "4:13", ("@nothing",)),
        ('[process]\nsyscalls = ["unshare"]\n', "4:13", ("unshare",)),
        ('[process]\nmemory = "-5M"\n', "4:1", ()),
        ('[network]\nallow = ["not a name"]\n', "4:10", ("not a name",)),
        ("[tools]\nallow = 7\n", "4:1", ("7",)),
        ('extends = "nobody"\n', "3:1", ("nobody",)),
        ('extends = "./profile.toml"\n', "3:1", ("circle",)),
    ],
)
def test_a_broken_profile(
    world: World, unchanged: Callable[[], None], text: str, place: str, words: tuple[str, ...]
) -> None:
    with_profile(world, "")  # the profile file is there before
    unchanged()
    said = sentence(with_profile(world, text))
    assert said.startswith(f"{world.tmp}/profile.toml:{place}"), said
    for word in words:
        assert word in said


def test_all_that_is_wrong_is_said_line_by_line(world: World) -> None:
    result = with_profile(world, '[process]\npids = "many"\nmemory = []\n')
    assert result.returncode == 125
    assert [re.search(r"toml:(\d+):", line)[1] for line in result.stderr.splitlines()] == ["4", "5"]  # type: ignore[index]


def test_a_profile_that_cannot_be_read(world: World, unchanged: Callable[[], None]) -> None:
    (world.tmp / "folder.toml").mkdir()
    os.mkfifo(world.tmp / "pipe.toml")
    (world.tmp / "bytes.toml").write_bytes(bytes(range(256)) * 10)
    (world.tmp / "closed.toml").write_text(HEAD.format(tier=1))
    (world.tmp / "loop.toml").symlink_to("loop.toml")
    world.own(world.tmp)
    (world.tmp / "closed.toml").chmod(0)
    unchanged()
    expected = {
        "nowhere.toml": "No such file or directory",
        "folder.toml": "",
        "pipe.toml": "",
        "bytes.toml": "",
        "loop.toml": "symbolic links",
        "closed.toml/below": "Not a directory",
    }
    if not world.is_root:
        expected["closed.toml"] = "Permission denied"
    for name, words in expected.items():
        said = sentence(world.osmoda("run", "--profile", world.tmp / name, "--", "true", timeout=10))
        assert said.startswith(f"{world.tmp}/{name}"), said
        assert words in said
    assert "nobody" in sentence(world.osmoda("run", "--profile", "nobody", "--", "true"))


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tier", "3", "--", "true"], "0, 1 and 2"),
        (["--tier"], "--tier"),
        (["--sideways", "--", "true"], "--sideways"),
        (["--timeout", "soon", "--", "true"], "soon"),
        (["--timeout", "-1", "--", "true"], "-1"),
        (["--timeout", "nan", "--", "true"], "nan"),
        (["--env", "=x", "--", "true"], "NAME=VALUE"),
        (["--workspace-mode", "sideways", "--", "true"], "sideways"),
        (["--workspace", "", "--", "true"], "--workspace"),
        (["--chdir", "/nonexistent", "--", "true"], "/nonexistent"),
        (["--"], "no command"),
        ([], "no command"),
    ],
)
def test_options_that_make_no_sense(world: World, options: list[str], words: str) -> None:
    assert words in sentence(world.osmoda("run", *options))


# Paths


def test_granted_paths_that_are_missing(world: World, unchanged: Callable[[], None]) -> None:
    with_profile(world, "")
    unchanged()
    place = f"{world.tmp}/profile.toml:4"
    for key in ("read", "write"):
        said = sentence(with_profile(world, f'[filesystem]\n{key} = ["/nonexistent/path"]\n'))
        assert said.startswith(place)
        assert "/nonexistent/path" in said


def test_a_denied_path_in_a_written_tree_has_to_exist(world: World, unchanged: Callable[[], None]) -> None:
    """No kernel mechanism could hold a name that is not there yet."""
    (world.tmp / "tree").mkdir()
    world.own(world.tmp / "tree")
    with_profile(world, "")
    unchanged()
    said = sentence(
        with_profile(world, f'[filesystem]\nwrite = ["{world.tmp}/tree"]\ndeny = ["{world.tmp}/tree/.env"]\n')
    )
    assert said.startswith(f"{world.tmp}/profile.toml:5")
    assert "tree/.env does not exist" in said


@pytest.mark.parametrize("target", ["/proc", "/proc/1/root", "/dev", "/run", "/sys/kernel"])
def test_a_granted_link_that_leads_to_what_no_profile_may_have(
    world: World, unchanged: Callable[[], None], target: str
) -> None:
    (world.tmp / "link").symlink_to(target)
    with_profile(world, "")
    unchanged()
    for key in ("read", "write"):
        said = sentence(with_profile(world, f'[filesystem]\n{key} = ["link"]\n'))
        assert said.startswith(f"{world.tmp}/profile.toml:4")


def test_a_granted_link_out_of_the_tree_of_the_ceiling(world: World, unchanged: Callable[[], None]) -> None:
    """~/.pyenv/versions is within tier 2's ceiling; what a link in it leads to is not."""
    versions = world.home / ".pyenv" / "versions"
    versions.mkdir(parents=True)
    secret = world.home / "secret"
    secret.mkdir()
    (versions / "3.99").symlink_to(secret)
    (versions / "real").mkdir()
    world.own(world.home)
    assert with_profile(world, f'[filesystem]\nread = ["{versions}/real"]\n', tier=2).returncode == 0
    unchanged()
    said = sentence(with_profile(world, f'[filesystem]\nread = ["{versions}/3.99"]\n', tier=2))
    assert said.startswith(f"{world.tmp}/profile.toml:4")


def test_workspaces_that_cannot_be(world: World, unchanged: Callable[[], None]) -> None:
    (world.tmp / "file").write_text("")
    (world.tmp / "etc").symlink_to("/etc")
    (world.tmp / "closed").mkdir(mode=0)
    world.own(world.tmp)
    unchanged()
    refused = {
        str(world.tmp / "nowhere"): "No such file or directory",
        str(world.tmp / "file"): "Not a directory",
        str(world.tmp / "etc"): "/etc",
        "/": "",
        "/proc/self": "",
        str(world.home): "home directory",
    }
    for path, words in refused.items():
        said = sentence(
            world.osmoda("run", "--tier", "2", "--workspace-mode", "direct", "--workspace", path, "--", "true")
        )
        assert words in said, said
    if not world.is_root:
        path = str(world.tmp / "closed")
        result = world.osmoda("run", "--tier", "2", "--workspace-mode", "direct", "--workspace", path, "--", "true")
        assert "Permission denied" in sentence(result)


def test_a_workspace_that_the_profile_does_not_grant(world: World) -> None:
    said = sentence(world.osmoda("run", "--tier", "2", "--workspace", world.tmp, "--", "true"))
    assert "not granted" in said


def test_directories_of_osmodas_own_that_others_may_write(world: World) -> None:
    """Nothing that somebody else could have put there is believed."""
    folder = world.tmp / "open"
    folder.mkdir()
    world.own(folder)
    folder.chmod(0o777)
    work = world.tmp / "work"
    work.mkdir()
    world.own(work)
    options = ["--tier", "2", "--workspace-mode", "overlay", "--workspace", str(work)]
    said = sentence(world.osmoda("run", *options, "--", "true", env={"OSMODA_STATE_DIR": str(folder)}))
    assert str(folder) in said
    # Without the cache of plans it only takes longer.
    assert world.osmoda("run", "--tier", "2", "--", "true", env={"OSMODA_CACHE_DIR": str(folder)}).returncode == 0
    assert list(folder.iterdir()) == []


# Commands


def test_commands_that_cannot_be_run(world: World, unchanged: Callable[[], None]) -> None:
    work = world.tmp / "work"
    work.mkdir()
    contents = {
        "plain": "",
        "text": "just text",
        "missing": "#!/nonexistent/interpreter\n",
        "good": "#!/bin/sh\necho ran\n",
    }
    for name, content in contents.items():
        (work / name).write_text(content)
        (work / name).chmod(0o644 if name == "plain" else 0o755)
    (work / "folder").mkdir()
    (work / "outside").symlink_to(world.tmp / "home")
    (work / "shadow").symlink_to("/etc/shadow")
    world.own(work)
    start = ["run", "--tier", "2", "--workspace-mode", "direct", "--workspace", str(work), "--"]
    assert world.osmoda(*start, "./good").stdout == "ran\n"
    unchanged()
    for command, code, words in (
        ("no-such-command", 127, "No such file"),
        ("./nowhere", 127, "No such file"),
        ("./missing", 127, "No such file"),
        ("./outside", 127, "No such file"),
        ("./shadow", 127, "No such file"),
        ("./plain", 126, "Permission denied"),
        ("./folder", 126, "Permission denied"),
        ("./text", 126, "Exec format error"),
        ("/etc/passwd", 126, "Permission denied"),
        ("", 127, ""),
    ):
        said = sentence(world.osmoda(*start, command), code)
        assert command in said
        assert words in said


# Hosts that lack a layer


LACKING: list[tuple[str, dict[str, object], str]] = [
    ("landlock", {"landlock": 0}, "Landlock"),
    ("landlock-net", {"landlock": 3}, "ports"),
    ("landlock-scope", {"landlock": 5}, "scope"),
    ("notify", {"notify": False}, "report"),
    ("memory", {"controllers": (), "cgroup_version": 0}, "process.memory"),
]
LIMITED = '[process]\nmemory = "64M"\n'


@pytest.mark.parametrize(("layer", "missing", "words"), LACKING, ids=[case[0] for case in LACKING])
def test_a_missing_layer_stops_the_compilation_unless_it_is_given_up(
    tmp_path: Path, layer: str, missing: dict[str, object], words: str
) -> None:
    found = features.probe()
    host = features.Features(**dict(zip(fields_of(found), values_of(found), strict=True)) | missing)
    text = HEAD.format(tier=2) + (LIMITED if layer == "memory" else "")
    (tmp_path / "strict.toml").write_text(text)
    with pytest.raises(CompileError, match=re.escape(words)) as caught:
        compile_profile(Profile.load(tmp_path / "strict.toml"), host)
    assert f'degrade = ["{layer}"]' in str(caught.value)
    assert "\n" not in str(caught.value)
    given_up = [layer, "landlock-scope"] if layer == "landlock-net" else [layer]
    (tmp_path / "mild.toml").write_text(
        text.replace("tier = 2\n", f"tier = 2\ndegrade = {given_up}\n".replace("'", '"'))
    )
    plan = compile_profile(Profile.load(tmp_path / "mild.toml"), host)
    assert layer in [entry.layer for entry in plan.degraded]


def test_without_user_namespaces_there_is_no_sandbox(tmp_path: Path) -> None:
    found = features.probe()
    host = features.Features(**dict(zip(fields_of(found), values_of(found), strict=True)) | {"user_namespaces": 0})
    with pytest.raises(CompileError, match="user namespaces are switched off"):
        compile_profile(Profile.default(2), host)


# Runs a command on a kernel that answers some calls with an error: `call=errno …  -- command`.
REFUSING = """
import os, sys
import pyseccomp
end = sys.argv.index("--")
lacking = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for entry in sys.argv[1:end]:
    call, number = entry.split("=")
    lacking.add_rule(pyseccomp.ERRNO(int(number)), call)
lacking.load()
os.execv(sys.argv[end + 1], sys.argv[end + 1 :])
"""


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("landlock_create_ruleset", errno.ENOSYS, ("Landlock", 'degrade = ["landlock"]')),
        ("landlock_restrict_self", errno.EPERM, ("landlock",)),
        ("clone3", errno.EPERM, ("Operation not permitted",)),
        ("clone3", errno.ENOSPC, ("No space left on device",)),
        ("open_tree", errno.ENOSYS, ("open_tree", "Function not implemented")),
        ("pivot_root", errno.EPERM, ("pivot_root",)),
        ("capset", errno.EPERM, ("capset",)),
        ("mount_setattr", errno.EPERM, ("mount_setattr",)),
        ("seccomp", errno.ENOSYS, ('degrade = ["notify"]',)),
    ],
)
def test_a_kernel_that_refuses_a_step(
    world: World, unchanged: Callable[[], None], call: str, number: int, words: tuple[str, ...]
) -> None:
    """Also with a plan from the cache, compiled when the kernel still had it all: nothing is run."""
    command = world.osmoda_argv("run", "--tier", "2", "--", "echo", "ran")
    assert world.run(command).stdout == "ran\n"
    empty = world.tmp / "another" / "cache"
    empty.mkdir(parents=True)
    world.own(empty.parent)
    unchanged()
    for variables in ({}, {"OSMODA_CACHE_DIR": str(empty)}):
        result = world.python(REFUSING, f"{call}={number}", "--", *command, env=variables)
        said = sentence(result)
        for word in words:
            assert word in said


# No room


@pytest.mark.parametrize("what", ["inodes", "bytes"])
def test_no_disk_space_for_the_overlay(world: World, what: str) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system for the state directory")
    work = world.tmp / "work"
    work.mkdir()
    world.own(work)
    state = world.tmp / "full"
    state.mkdir()
    size = "size=64k,nr_inodes=2" if what == "inodes" else "size=16k,nr_inodes=100"
    mount = f"mount -t tmpfs -o {size},mode=700,uid={world.uid},gid={world.gid} none {state}"
    fill = f"head -c 1M /dev/zero >{state}/filler 2>/dev/null || true"
    options = ["--tier", "1", "--workspace-mode", "overlay", "--workspace", str(work)]
    inside = world.osmoda_argv("run", *options, "--", "sh", "-c", "echo content >new && cat new")
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", f'{mount}; {fill}; exec "$@"', "sh", *world.argv(inside)],
        env={**world.environment, "OSMODA_STATE_DIR": str(state)},
        cwd=world.tmp,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    if what == "inodes":
        assert "No space left on device" in sentence(result)
    else:
        # The layer itself takes no room; the command meets the full disk, as it would outside.
        assert result.returncode in (2, 125)
        assert "No space left on device" in result.stderr or "Disk full" in result.stderr
    assert list(work.iterdir()) == []
    assert list(state.iterdir()) == []
