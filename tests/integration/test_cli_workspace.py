"""What an overlay workspace holds back, through the verbs: changes, commit, discard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.worlds import World

WRITE = "echo new >added; echo more >>kept; rm gone; mkdir folder; echo x >folder/x; chmod 755 script"


@pytest.fixture
def work(world: World) -> Path:
    """A workspace in which a sandbox has added, modified and deleted something."""
    work = world.tmp / "work"
    work.mkdir()
    for name in ("kept", "gone", "script"):
        (work / name).write_text(f"{name}\n")
    world.own(work)
    run = ("run", "--tier", "1", "--workspace-mode", "overlay", "--workspace", str(work), "--", "sh", "-c", WRITE)
    world.osmoda(*run, check=True)
    return work


def content(work: Path) -> dict[str, str]:
    return {str(path.relative_to(work)): path.read_text() for path in work.rglob("*") if path.is_file()}


BEFORE = {"kept": "kept\n", "gone": "gone\n", "script": "script\n"}


def test_changes_lists_what_a_commit_would_do_and_does_nothing(world: World, work: Path) -> None:
    lines = world.osmoda("changes", "--workspace", str(work), check=True).stdout.splitlines()
    letters = {line[2:].partition("  (")[0]: line[0] for line in lines}
    assert letters == {"added": "A", "kept": "M", "gone": "D", "folder/": "A", "folder/x": "A", "script": "P"}
    assert "(4 bytes, mode 644)" in next(line for line in lines if line.startswith("A added"))
    assert content(work) == BEFORE
    found = json.loads(world.osmoda("changes", "--json", cwd=work, check=True).stdout)
    assert {change["path"]: change["kind"] for change in found}["gone"] == "deleted"


def test_a_dry_commit_is_the_same_list_and_a_commit_makes_it(world: World, work: Path) -> None:
    listed = world.osmoda("changes", "--workspace", str(work), check=True).stdout
    assert world.osmoda("commit", "--dry-run", "--workspace", str(work), check=True).stdout == listed
    assert content(work) == BEFORE
    assert world.osmoda("commit", "--workspace", str(work), check=True).stdout == listed
    after = {"kept": "kept\nmore\n", "added": "new\n", "folder/x": "x\n", "script": "script\n"}
    assert content(work) == after
    assert (work / "script").stat().st_mode & 0o777 == 0o755
    assert world.osmoda("changes", "--workspace", str(work), check=True).stdout == "nothing is pending\n"


def test_one_path_is_committed_and_another_discarded(world: World, work: Path) -> None:
    world.osmoda("commit", "--workspace", str(work), "added", check=True)
    world.osmoda("discard", "--workspace", str(work), "folder", check=True)
    assert content(work) == {**BEFORE, "added": "new\n"}
    rest = json.loads(world.osmoda("changes", "--workspace", str(work), "--json", check=True).stdout)
    assert {change["path"] for change in rest} == {"kept", "gone", "script"}


def test_discard_forgets_all(world: World, work: Path) -> None:
    run = world.osmoda("discard", "--workspace", str(work), check=True)
    assert (run.stdout, run.stderr) == ("", "")
    assert world.osmoda("changes", "--workspace", str(work), check=True).stdout == "nothing is pending\n"
    assert content(work) == BEFORE


def test_a_path_outside_is_refused_in_one_sentence(world: World, work: Path) -> None:
    run = world.osmoda("commit", "--workspace", str(work), "../elsewhere")
    assert (run.returncode, run.stdout) == (125, "")
    assert run.stderr == f"osmoda-sandbox: ../elsewhere does not lie in the workspace {work}\n"
