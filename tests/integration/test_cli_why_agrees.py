"""What `why --path` answers is what the kernel does: verdicts against real sandboxes, path by path."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.worlds import World

# One line of input is a mode and a path; one line of output is 1 for "it worked" and 0 for "it did not".
PROBE = r"""
while read -r mode path; do
    case $mode in
    read) if [ -d "$path" ]; then ls "$path/" >/dev/null; else head -c 1 "$path" >/dev/null; fi ;;
    list) ls "$path/" >/dev/null ;;
    write) if [ -d "$path" ]; then touch "$path/probe.$$" && rm -f "$path/probe.$$"
           elif [ -e "$path" ]; then (exec >>"$path")
           else touch "$path" && rm -f "$path"; fi ;;
    exec) [ -f "$path" ] && [ -x "$path" ] && "$path" </dev/null >/dev/null ;;
    esac 2>/dev/null && echo "1 $mode $path" || echo "0 $mode $path"
done
exit 0
"""
SCRIPT = "#!/bin/sh\nexit 0\n"


def make_scene(world: World) -> Path:
    """Trees to grant, to deny in, to write and to work in, all of them this world's own."""
    scene = world.tmp / "scene"
    for name in ("notes", "notes/sub", "notes/hidden", "data", "data/private", "data/sub", "work", "work/sub", "else"):
        (scene / name).mkdir(parents=True)
    for name in ("notes/a.txt", "notes/.env", "notes/hidden/x", "data/b.txt", "data/secret", "data/private/y"):
        (scene / name).write_text("text\n")
    for name in ("else/c.txt", "work/w.txt", "work/.netrc", "work/sub/v.txt", "one.txt", "other.txt"):
        (scene / name).write_text("text\n")
    for name in ("notes/run", "data/run", "work/run", "else/run"):
        (scene / name).write_text(SCRIPT)
        (scene / name).chmod(0o755)
    closed = scene / "notes" / "closed"
    closed.write_text("text\n")
    closed.chmod(0)
    (scene / "data" / "readonly").write_text("text\n")
    (scene / "data" / "readonly").chmod(0o444)
    (scene / "notes" / "inside").symlink_to("a.txt")
    (scene / "notes" / "outside").symlink_to(scene / "else" / "c.txt")
    (scene / "notes" / "to-data").symlink_to("../data/b.txt")
    (scene / "notes" / "to-hidden").symlink_to(".env")
    (scene / "work" / "to-usr").symlink_to("/usr/bin/true")
    (scene / "work" / "circle").symlink_to("circle")
    world.own(scene)
    return scene


def profile_text(scene: Path, tier: int, workspace: str) -> str:
    if tier == 2:
        grants = f'deny = ["{scene}/work/.netrc"]'
    else:
        grants = f"""
            read = ["{scene}/notes", "{scene}/one.txt"]
            write = ["{scene}/data", "{scene}/notes/sub"]
            deny = ["{scene}/notes/.env", "{scene}/notes/hidden", "{scene}/data/secret", "{scene}/data/private",
                    "{scene}/work/.netrc", "/usr/bin/env"]
        """
    return textwrap.dedent(f"""
        schema = 1
        tier = {tier}
        [filesystem]
        workspace = "{workspace}"
        {grants}
    """)


def paths_of(scene: Path) -> list[str]:
    own = [str(path) for path in sorted(scene.rglob("*"))]
    new = [f"{scene}/{name}/new" for name in ("notes", "notes/hidden", "data", "data/sub", "work", "work/sub", "else")]
    system = ["/", "/usr", "/usr/bin", "/usr/bin/true", "/usr/bin/env", "/bin/true", "/bin", "/usr/lib", "/lib"]
    system += ["/etc", "/etc/passwd", "/etc/hosts", "/etc/shadow", "/etc/ssl", "/etc/resolv.conf", "/etc/fstab"]
    system += ["/proc", "/proc/version", "/proc/sys/kernel/hostname", "/proc/self/status", "/proc/self/exe"]
    system += ["/dev", "/dev/null", "/dev/zero", "/dev/full", "/dev/sda", "/dev/kmsg", "/dev/pts", "/dev/shm"]
    system += ["/tmp", "/home", "/home/agent", "/workspace", "/run", "/run/lock", "/root", "/var", "/boot", "/sys"]
    system += ["/tmp/new", "/home/agent/new", "/dev/shm/new", "/new", "/usr/new", "/etc/new", "/.denied", "/.stage"]
    return [*own, str(scene), str(scene.parent), *new, *system]


def verdicts(profile: str, workspace: str, questions: list[tuple[str, str]]) -> list[tuple[bool, str]]:
    """In the world's own process: what `why` decides, and its sentence."""
    from osmoda.host import features
    from osmoda.sandbox import place, why
    from osmoda.sandbox.compile import compile_profile
    from osmoda.sandbox.profile import Profile

    loaded = Profile.load(profile)
    plan = compile_profile(loaded, features.probe())
    work = place.workspace(plan, workspace if plan.workspace != "none" else "")
    found = [why.ask_path(plan, loaded, work, path, mode) for mode, path in questions]  # type: ignore[arg-type]
    return [(verdict.allowed, verdict.sentence()) for verdict in found]


@pytest.mark.parametrize("workspace", ["none", "overlay", "direct"])
@pytest.mark.parametrize("tier", [1, 2])
def test_every_verdict_is_what_the_kernel_does(world: World, tier: int, workspace: str) -> None:
    scene = make_scene(world)
    profile = scene / "work" / "agent.toml"
    profile.write_text(profile_text(scene, tier, workspace))
    world.own(profile)
    modes = ("read", "write", "exec", "list")
    questions = [
        (mode, path) for path in paths_of(scene) for mode in modes if not (mode == "exec" and "/proc/" in path)
    ]
    work = [] if workspace == "none" else ["--workspace", str(scene / "work")]

    answers = world.call(verdicts, str(profile), str(scene / "work"), questions)
    lines = "".join(f"{mode} {path}\n" for mode, path in questions)
    run = world.osmoda("run", "--profile", str(profile), *work, "--", "sh", "-c", PROBE, input=lines, check=True)
    observed = [line.split(" ", 1) for line in run.stdout.splitlines()]

    assert [rest for _, rest in observed] == [f"{mode} {path}" for mode, path in questions]
    wrong = [
        f"{'works' if worked == '1' else 'fails'}: {mode} {path}; but why says: {sentence}"
        for (worked, _), (mode, path), (allowed, sentence) in zip(observed, questions, answers, strict=True)
        if (worked == "1") != allowed
    ]
    assert not wrong, "\n".join(wrong)
    # The questions are worth asking: both answers occur, for each mode.
    for mode in modes:
        given = {allowed for (asked, _), (allowed, _) in zip(questions, answers, strict=True) if asked == mode}
        assert given == {True, False}, mode


def test_the_command_gives_the_same_answer_and_its_exit_code(world: World) -> None:
    scene = make_scene(world)
    profile = scene / "agent.toml"
    profile.write_text(profile_text(scene, 1, "none"))
    world.own(profile)
    allowed = world.osmoda("why", str(profile), "--path", str(scene / "notes" / "a.txt"))
    refused = world.osmoda("why", str(profile), "--path", str(scene / "notes" / ".env"))
    assert (allowed.returncode, refused.returncode) == (0, 1), (allowed, refused)
    line = next(n for n, text in enumerate(profile.read_text().splitlines(), 1) if "deny" in text)
    assert f"{os.fspath(profile)}:{line}" in refused.stdout
