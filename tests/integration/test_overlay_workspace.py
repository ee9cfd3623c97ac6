"""Overlay workspaces with real sandboxes: what programs do in one, and what becomes of it."""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
from pathlib import Path

import pytest

from osmoda.sandbox import workspace
from osmoda.sandbox.errors import SandboxError

PROFILE = """
schema = 1
tier = {tier}
[filesystem]
workspace = "overlay"
deny = {deny}
"""


@pytest.fixture(params=[1, 2], ids=["tier1", "tier2"])
def tier(request: pytest.FixtureRequest) -> int:
    return request.param


class Project:
    """A workspace of the world's user, runs in it, and the verbs as that user calls them."""

    def __init__(self, world, tier: int) -> None:
        self.world = world
        self.tier = tier
        self.work = world.tmp / "project"
        (self.work / "docs" / "old").mkdir(parents=True)
        (self.work / "README").write_text("read me\n")
        (self.work / "docs" / "one").write_text("1\n")
        (self.work / "docs" / "old" / "two").write_text("2\n")
        (self.work / ".env").write_text("SECRET=1\n")
        world.own(self.work)

    def argv(self, *command: str, deny: tuple[str, ...] = ()) -> list[str]:
        profile = self.world.tmp / f"profile-{len(deny)}.toml"
        profile.write_text(PROFILE.format(tier=self.tier, deny=[str(self.work / name) for name in deny]))
        return ["run", "--profile", str(profile), "--workspace", str(self.work), "--", *command]

    def run(self, script: str, *, deny: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = self.argv("sh", "-euc", textwrap.dedent(script), deny=deny)
        return self.world.run(self.world.osmoda_argv(*argv), check=check)

    def changes(self) -> dict[str, str]:
        return {path: kind for path, kind, *_ in self.world.call(found, str(self.work))}

    def commit(self, *paths: str, force: bool = False) -> list[str]:
        return self.world.call(committed, str(self.work), paths, force)

    def discard(self, *paths: str) -> None:
        self.world.call(discarded, str(self.work), paths)

    def layers(self) -> list[Path]:
        state = self.world.environment.get("OSMODA_STATE_DIR") or self.world.environment["XDG_STATE_HOME"] + "/osmoda"
        return list(Path(state, "overlays").glob("*"))


def found(work: str) -> list[tuple[str, str, bool]]:
    return [(change.path, change.kind, change.denied) for change in workspace.changes(work)]


def committed(work: str, paths: tuple[str, ...], force: bool) -> list[str]:
    return [change.path for change in workspace.commit(work, paths, force=force)]


def discarded(work: str, paths: tuple[str, ...]) -> None:
    workspace.discard(work, paths)


def refused(work: str, verb: str) -> str:
    try:
        getattr(workspace, verb)(work)
    except SandboxError as error:
        return str(error)
    return ""


@pytest.fixture
def project(world, tier):
    return Project(world, tier)


EVERYTHING = """
    echo made > new                     # create
    echo more >> README                 # modify
    rm docs/one                         # delete
    mv docs/old/two docs/renamed        # rename a file
    rmdir docs/old
    mkdir docs/old                      # a folder where one was deleted
    echo 3 > docs/old/three
    mv docs/old docs/moved              # rename a folder, a new one: the host's own cannot be
    ln -s /etc/passwd passwd
    ln new twin
    chmod 700 new
    head -c 30000000 /dev/zero | tr '\\0' x > big
    mkdir -p a/b/c
    echo deep > a/b/c/d
"""


def test_everything_a_program_does_is_pending_until_it_is_committed(project):
    before = {path: path.lstat() for path in project.work.rglob("*")}
    project.run(EVERYTHING)
    assert {path: path.lstat() for path in project.work.rglob("*")} == before, "the host's files are as they were"
    assert project.changes() == {
        "README": "modified",
        "a": "added",
        "a/b": "added",
        "a/b/c": "added",
        "a/b/c/d": "added",
        "big": "added",
        "docs/moved": "added",
        "docs/moved/three": "added",
        "docs/old": "deleted",
        "docs/old/two": "deleted",
        "docs/one": "deleted",
        "docs/renamed": "added",
        "new": "added",
        "passwd": "added",
        "twin": "added",
    }
    project.commit()
    assert (project.work / "README").read_text() == "read me\nmore\n"
    assert (project.work / "docs" / "renamed").read_text() == "2\n"
    assert sorted(path.name for path in (project.work / "docs").iterdir()) == ["moved", "renamed"]
    assert (project.work / "passwd").readlink() == Path("/etc/passwd")
    assert (project.work / "big").stat().st_size == 30_000_000
    new = (project.work / "new").stat()
    assert (stat.S_IMODE(new.st_mode), new.st_nlink) == (0o700, 2)
    for path in (project.work, *project.work.rglob("*")):
        assert path.lstat().st_uid == project.world.uid, path
    assert project.layers() == []


def test_a_second_run_sees_what_the_first_has_done(project):
    project.run("echo one > new; rm README")
    result = project.run("cat new; test ! -e README; echo two >> new")
    assert result.stdout == "one\n"
    project.commit()
    assert (project.work / "new").read_text() == "one\ntwo\n"
    assert not (project.work / "README").exists()


def test_after_a_discard_a_run_sees_the_hosts_files(project):
    project.run("rm -r docs README; mkdir docs; echo x > docs/x; mkdir -m 0 closed")
    assert project.changes()["docs/one"] == "deleted"
    project.discard("README")
    assert project.run("cat README").stdout == "read me\n"
    project.discard()
    assert project.layers() == []
    assert project.run("cat README docs/one").stdout == "read me\n1\n"
    assert project.changes() == {}


def test_a_folder_of_the_hosts_is_renamed_by_copying(project):
    """overlayfs answers EXDEV without redirect_dir, which an unprivileged overlay must not have; mv(1) then copies."""
    result = project.run("""
        python3 -c 'import os; os.rename("docs", "papers")' 2>&1 || true
        mv docs papers
        cat papers/old/two
    """)
    assert "Invalid cross-device link" in result.stdout
    assert result.stdout.endswith("2\n")
    project.commit()
    assert sorted(path.name for path in project.work.iterdir()) == [".env", "README", "papers"]


def test_what_was_made_where_a_folder_was_deleted_is_all_that_is_there(project):
    project.run("rm -r docs; mkdir docs; echo x > docs/fresh")
    assert project.run("ls docs").stdout == "fresh\n"
    assert project.changes() == {
        "docs/fresh": "added",
        "docs/old": "deleted",
        "docs/old/two": "deleted",
        "docs/one": "deleted",
    }
    project.commit()
    assert [path.name for path in (project.work / "docs").iterdir()] == ["fresh"]


def test_a_denied_name_is_neither_seen_nor_made_nor_committed(project):
    deny = (".env", "docs/missing", "docs/old")
    result = project.run(
        """
        ! cat .env
        ! echo stolen > .env
        ! rm -f .env
        ! mv .env elsewhere
        ! echo planted > docs/missing
        ! rm -f docs/missing
        ! ls docs/old
        ! rm -rf docs
        ! mv docs moved; rm -rf moved
        echo fine > docs/allowed
        """,
        deny=deny,
    )
    assert "SECRET" not in result.stdout + result.stderr
    found = project.changes()
    assert not [path for path in found if path.startswith((".env", "docs/missing", "docs/old"))]
    project.commit()
    assert (project.work / ".env").read_text() == "SECRET=1\n"
    assert (project.work / "docs" / "old" / "two").read_text() == "2\n"
    assert not (project.work / "docs" / "missing").exists()
    assert (project.work / "docs" / "allowed").read_text() == "fine\n"


def test_what_was_written_before_a_profile_denied_it_is_not_committed(project):
    project.run("echo planted > planted; echo fine > fine")
    project.run("! cat planted", deny=("planted",))
    assert project.commit() == ["fine"]
    assert not (project.work / "planted").exists()
    assert project.changes() == {"planted": "added"}


@pytest.mark.parametrize("tier", [1], ids=["tier1"], indirect=True)
def test_a_denied_name_stays_hidden_in_a_workspace_that_lies_in_a_granted_tree(project):
    """The workspace is mounted over the part of that tree that it is, and would uncover the name."""
    profile = project.world.tmp / "around.toml"
    grants = f'read = ["{project.work.parent}/project"]\n'
    profile.write_text(PROFILE.format(tier=1, deny=[str(project.work / ".env")]) + grants)
    for mode in ("overlay", "direct"):
        argv = ["run", "--profile", str(profile), "--workspace-mode", mode, "--workspace", str(project.work)]
        result = project.world.osmoda(*argv, "--", "cat", str(project.work / ".env"))
        assert result.returncode == 1, result.stderr
        assert "Permission denied" in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("tier", [1], ids=["tier1"], indirect=True)
def test_an_overlay_workspace_in_a_tree_written_directly_is_refused(project):
    profile = project.world.tmp / "around.toml"
    outer = project.world.tmp / "outer"
    (outer / "inner").mkdir(parents=True)
    project.world.own(outer)
    profile.write_text(PROFILE.format(tier=1, deny=[]) + f'write = ["{outer}"]\n')
    result = project.world.osmoda("run", "--profile", profile, "--workspace", outer / "inner", "--", "touch", "x")
    assert result.returncode == 125
    assert result.stderr == (
        f"osmoda-sandbox: the workspace {outer}/inner cannot be an overlay: it lies in {outer}, "
        f"which {profile}:7 grants writing directly\n"
    )
    assert not (outer / "inner" / "x").exists()


def test_a_workspace_takes_one_sandbox_at_a_time(project):
    """Also when the monitor is killed: the layer is free only when the sandbox is gone."""
    argv = project.world.osmoda_argv(*project.argv("sh", "-c", "echo up; read line"))
    with project.world.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "up\n"
        second = project.run("true", check=False)
        assert second.returncode == 125
        assert second.stderr == (
            f"osmoda-sandbox: the workspace {project.work} is in use by another sandbox (process {running.pid}), "
            "and an overlay takes one at a time\n"
        )
        for verb in ("commit", "discard"):
            assert "is in use by another sandbox" in project.world.call(refused, str(project.work), verb)
        running.communicate("\n")
    assert running.returncode == 0
    project.run("true")


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to make a small file system and hand out a workspace")
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_roots_run_leaves_the_workspace_to_its_owner(project):
    for path in (project.work, *project.work.rglob("*")):
        os.chown(path, 4321, 4321)
    project.world.tmp.chmod(0o755)
    assert project.run("id -un; stat -c %U README; echo x > new; mkdir d; chmod 0 new").stdout == "agent\nagent\n"
    project.commit()
    for name in ("new", "d"):
        assert (project.work / name).stat().st_uid == 4321


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to mount a small file system")
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_full_disk_under_the_layer_and_under_the_workspace(project):
    """On a file system of 1 MiB: the program is told while it writes, the commit in one sentence."""
    small = project.world.tmp / "small"
    small.mkdir()
    script = f"""
        set -e
        mount -t tmpfs -o size=1m,mode=700 small {small}
        mkdir {small}/work
        run() {{ "$@"; }}
        export OSMODA_STATE_DIR={project.world.environment["OSMODA_STATE_DIR"]}
        run {" ".join(project.world.osmoda_argv("run", "--tier", "2", "--workspace-mode", "overlay"))} \\
            --workspace {small}/work -- head -c 1500000 /dev/zero > {small.with_name("zeros")}
        run {" ".join(project.world.osmoda_argv("run", "--tier", "2", "--workspace-mode", "overlay"))} \\
            --workspace {small}/work -- sh -c 'head -c 1500000 /dev/zero > zeros; echo x > after'
        {os.path.dirname(project.world.osmoda_argv()[0])}/python3 -c '
from osmoda.sandbox import workspace
try:
    workspace.commit("{small}/work")
except Exception as error:
    print(type(error).__name__, error)
'
        ls -A {small}/work
        export OSMODA_STATE_DIR={small}/state
        mkdir -m 700 $OSMODA_STATE_DIR
        dd if=/dev/zero of={small}/fill bs=4096 2>/dev/null || true
        run {" ".join(project.world.osmoda_argv("run", "--tier", "2", "--workspace-mode", "overlay"))} \\
            --workspace {small}/work -- true || echo "exit $?"
    """
    result = project.world.run(["unshare", "-m", "sh", "-c", script])
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "SandboxError zeros could not be committed: No space left on device; what is not committed stays pending"
    ), result.stderr
    assert lines[1:-1] == ["after"]
    assert lines[-1] == "exit 125"
    assert result.stderr.startswith("osmoda-sandbox: the layer of the workspace")
    assert "No space left on device" in result.stderr
