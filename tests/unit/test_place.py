from __future__ import annotations

import os
from pathlib import Path

import pytest

from osmoda.host import paths
from osmoda.sandbox import place, tiers
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.operations import mounting
from osmoda.sandbox.plan import Plan
from tests.compiled import compiled


def plan(tier=1, workspace="direct", more=""):
    return compiled(f'tier = {tier}\n[filesystem]\nworkspace = "{workspace}"\n{more}')[1]


@pytest.fixture
def folder(tmp_path):
    """A folder as a workspace is one, and a home elsewhere."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_folder_is_a_workspace_by_its_real_name(folder):
    (folder.parent / "link").symlink_to("work")
    for name in (folder, folder.parent / "link", f"{folder}/../link/."):
        assert place.workspace(plan(), str(name)) == os.fsencode(folder)


def test_without_a_choice_it_is_where_the_caller_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert place.workspace(plan(workspace="overlay"), "") == os.fsencode(folder)


def test_a_name_that_is_no_text_is_kept(folder):
    odd = os.fsencode(folder) + b"/\xff"
    os.mkdir(odd)
    assert place.workspace(plan(), os.fsdecode(odd)) == odd


def refused(what, asked):
    with pytest.raises(LaunchError) as error:
        place.workspace(what, str(asked))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_that_is_not_there_or_no_folder(folder):
    (folder / "file").write_text("")
    assert refused(plan(), folder / "none") == f"the workspace {folder}/none cannot be used: No such file or directory"
    assert refused(plan(), folder / "file") == f"the workspace {folder}/file cannot be used: Not a directory"


SYSTEM = (
    "/",
    "/etc",
    "/usr",
    "/usr/lib",
    "/usr/bin",
    "/bin",
    "/lib",
    "/proc",
    "/proc/self",
    "/sys",
    "/dev",
    "/dev/shm",
    "/run",
)


@pytest.mark.parametrize("path", SYSTEM)
@pytest.mark.parametrize("tier", [1, 2])
@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_the_systems_folders_are_none(path, tier, mode):
    assert "cannot be a workspace: it would reach" in refused(plan(tier, mode), path)


@pytest.mark.parametrize("tier", [1, 2])
def test_nothing_in_what_no_profile_may_grant_is_a_workspace(tier):
    """`grants.excess` relies on it: what another profile denies there, no workspace can hold."""
    never = tiers.ceiling(tier).filesystem.deny
    assert set(never) == {"/proc", "/sys", "/dev", "/run", "/boot"}
    direct = plan(tier)
    for tree in never:
        for folder in (tree, *(found.path for found in os.scandir(tree) if found.is_dir())):
            if os.access(folder, os.R_OK | os.X_OK):
                said = refused(direct, folder)
                assert "cannot be a workspace" in said or not os.path.exists(folder), "a process that ends meanwhile"
        assert any(within(tree, system) for system in place._SYSTEM)


@pytest.mark.parametrize("kind", ["runtime", "state", "cache", "config"])
def test_osmodas_own_directories_are_none(kind):
    own = Path(paths.own_directory(kind))
    inner = Path(paths.own_directory(kind, "below"))
    for path in (own, inner, own.parent):
        assert "cannot be a workspace: it would reach" in refused(plan(), path)
    assert f"it would reach {own}, which no sandbox may write" in refused(plan(), inner)


@pytest.mark.parametrize("missing", ["", "/not/there/yet"])
def test_nor_when_a_link_leads_to_them(missing, folder, monkeypatch):
    """A home is a link on some systems, and an agent that could write to the kept plans would make its own."""
    (folder / "real").mkdir()
    (folder.parent / "link").symlink_to(folder / "real")
    directory = paths.directory
    monkeypatch.setattr(
        paths, "directory", lambda kind: f"{folder.parent}/link{missing}" if kind == "cache" else directory(kind)
    )
    assert f"it would reach {folder}/real{missing}" in refused(plan(), folder)


def test_the_home_is_none_in_tier_2_nor_what_is_around_it(folder, monkeypatch):
    (folder / "home" / "project").mkdir(parents=True)
    (folder.parent / "link").symlink_to(folder / "home")
    for home in (folder / "home", folder.parent / "link"):
        monkeypatch.setattr(paths, "home", lambda home=home: str(home))
        for path in (folder / "home", folder):
            assert "it holds the home directory; use a folder in it" in refused(plan(2), path)
            assert place.workspace(plan(1), str(path)) == os.fsencode(path)
        assert place.workspace(plan(2), str(folder / "home" / "project")) == os.fsencode(folder / "home" / "project")


@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_a_denied_folder_is_none_nor_what_is_in_it(mode, folder):
    (folder / "in").mkdir()
    denying = plan(1, mode, f'deny = ["{folder}"]')
    for path in (folder, folder / "in"):
        message = refused(denying, path)
        assert message == f"{path} cannot be a workspace: it lies in {folder}, which /p/agent.toml:5 denies"
    assert place.workspace(denying, str(folder.parent)) == os.fsencode(folder.parent)


def test_a_denied_link_is_none_by_its_real_name(folder):
    (folder.parent / "link").symlink_to("work")
    assert "agent.toml:5 denies" in refused(plan(1, "direct", f'deny = ["{folder.parent}/link"]'), folder)


def test_a_part_of_what_decides_about_the_next_launch_is_none(folder):
    package = os.path.dirname(os.path.realpath(place.__file__))
    pinned = [path for op in plan() if isinstance(op, mounting.Pinned) for path in op.paths]
    assert any(within(package, os.fsdecode(path)) for path in pinned)
    assert "which no sandbox may write" in refused(plan(), package)


@pytest.mark.parametrize("tier", [1, 2])
def test_without_a_workspace_there_is_none_to_choose(tier, folder):
    assert place.workspace(plan(tier, "none"), "") == b""
    assert f'{folder} is not granted: agent.toml has workspace = "none"' in refused(plan(tier, "none"), folder)


def test_tier_0_works_where_it_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    unconfined = compiled("tier = 0")[1]
    assert place.workspace(unconfined, "") == b""
    assert place.start_directory(unconfined, b"", "") == os.fsencode(folder)


def test_where_the_command_starts():
    assert place.start_directory(plan(), b"/w", "") == b"/w"
    assert place.start_directory(plan(), b"/w", "sub") == b"sub"
    assert place.start_directory(plan(1, "none"), b"", "") == b"/workspace"


@pytest.fixture
def callers(monkeypatch):
    monkeypatch.setattr(
        place.posix, "environ", {b"LANG": b"C", b"SECRET": b"s", b"TERM": b"vt100", b"ODD": b"\xff", b"HOME": b"/h"}
    )


def variables(plan: Plan, terminal=False, extra=()):
    return dict(place.environment(plan, terminal, extra))


def test_only_what_is_passed_on_comes_from_the_caller(callers):
    given = variables(compiled('[environment]\npass = ["LANG"]\nset = { A = "1" }\n')[1])
    assert (given["LANG"], given["A"], given["HOME"]) == ("C", "1", "/home/agent")
    assert not {"SECRET", "ODD", "TERM"} & given.keys()


def test_a_terminal_brings_its_type(callers):
    without = compiled("[environment]\npass = []\n")[1]
    assert "TERM" not in variables(without)
    assert variables(without, terminal=True)["TERM"] == "vt100"


def test_what_the_launch_gives_wins_over_all(callers):
    asked = compiled('[environment]\npass = ["LANG"]\nset = { A = "1" }\n')[1]
    given = variables(asked, extra=(("A", "2"), ("LANG", "x"), ("NEW", "n")))
    assert (given["A"], given["LANG"], given["NEW"]) == ("2", "x", "n")


def test_tier_0_has_the_callers_whole_environment(callers):
    given = variables(compiled("tier = 0")[1])
    assert given == {"LANG": "C", "SECRET": "s", "TERM": "vt100", "ODD": "\udcff", "HOME": "/h"}
