"""What is done in shared trees, as the kernel tells it: as root, with who it was, and as an ordinary user."""

from __future__ import annotations

import os
import select
import shutil
import time
from pathlib import Path

import pytest

from osmoda.supervisor.sharing import shared_files
from osmoda.supervisor.sharing.shared_files import SharedFiles
from tests.worlds import World

PATIENCE = 30.0


def heard(files, enough):
    """Changes, until `enough` of them is true."""
    found = []
    deadline = time.monotonic() + PATIENCE
    while not enough(found):
        assert time.monotonic() < deadline, found
        select.select([files], [], [], 1.0)
        found += files.changes()
    return found


def child(act):
    """Do something as another process, which waits until it has been looked at; its pid, and what lets it go."""
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        finally:
            os._exit(0)
    assert os.read(ready[0], 1) == b"x"

    def let_go():
        os.write(done[1], b"x")
        os.waitpid(pid, 0)
        for fd in (*ready, *done):
            os.close(fd)

    return pid, let_go


def act_in(tree):
    (tree / "new").write_text("x")
    os.rename(tree / "new", tree / "renamed")
    (tree / "folder").mkdir()
    (tree / "renamed").unlink()


def all_that_is_done(tree):
    tree = Path(tree)
    with SharedFiles() as files:
        files.watch([str(tree)])
        pid, let_go = child(lambda: act_in(tree))
        try:
            found = heard(files, lambda changes: any(change.operation == "delete" for change in changes))
        finally:
            let_go()
        return pid, [(one.operation, one.path, one.to, one.is_folder, one.pid) for one in found]


def test_all_that_is_done_is_told(world: World):
    tree = world.tmp / "shared"
    tree.mkdir()
    world.own(tree)
    pid, found = world.call(all_that_is_done, str(tree))
    who = pid if world.is_root else 0
    assert sorted(found) == sorted(
        [
            ("create", f"{tree}/new", "", False, who),
            ("write", f"{tree}/new", "", False, who),
            ("rename", f"{tree}/new", f"{tree}/renamed", False, who),
            ("create", f"{tree}/folder", "", True, who),
            ("delete", f"{tree}/renamed", "", False, who),
        ]
    )


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "shared" / "old").mkdir(parents=True)
    return tmp_path / "shared"


@pytest.fixture
def files(tree):
    with SharedFiles() as found:
        found.watch([str(tree)])
        yield found


def paths(found, operation):
    return {change.path for change in found if change.operation == operation}


def test_folders_that_are_made_are_followed(tree, files):
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "early").write_text("x")
    found = heard(files, lambda changes: f"{tree}/a/b/early" in paths(changes, "create"))
    assert {f"{tree}/a", f"{tree}/a/b"} <= paths(found, "create")
    (tree / "a" / "b" / "late").write_text("x")
    heard(files, lambda changes: f"{tree}/a/b/late" in paths(changes, "write"))


def test_a_folder_that_is_renamed_keeps_being_followed(tree, files):
    (tree / "old" / "in").mkdir()
    heard(files, lambda changes: f"{tree}/old/in" in paths(changes, "create"))
    os.rename(tree / "old", tree / "new")
    (tree / "new" / "in" / "file").write_text("x")
    found = heard(files, lambda changes: f"{tree}/new/in/file" in paths(changes, "write"))
    assert [(one.path, one.to) for one in found if one.operation == "rename"] == [(f"{tree}/old", f"{tree}/new")]


def test_what_comes_and_goes(tree, files, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    os.rename(tmp_path / "outside", tree / "inside")
    found = heard(files, lambda changes: f"{tree}/inside" in paths(changes, "create"))
    (tree / "inside" / "file").write_text("y")
    heard(files, lambda changes: f"{tree}/inside/file" in paths(changes, "write"))
    os.rename(tree / "inside", tmp_path / "gone")
    found = heard(files, lambda changes: f"{tree}/inside" in paths(changes, "rename"))
    assert [one.to for one in found if one.operation == "rename"] == [""]
    (tmp_path / "gone" / "more").write_text("x")
    (tree / "last").write_text("x")
    found = heard(files, lambda changes: f"{tree}/last" in paths(changes, "write"))
    assert {one.path for one in found} == {f"{tree}/last"}


def test_links_are_not_followed(tree, files, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    heard(files, lambda changes: f"{tree}/link" in paths(changes, "create"))
    (tmp_path / "elsewhere" / "file").write_text("x")
    (tree / "last").write_text("x")
    found = heard(files, lambda changes: f"{tree}/last" in paths(changes, "write"))
    assert {one.path for one in found} == {f"{tree}/last"}


def test_lost_events_are_told_and_what_follows_is_not_lost(tree, files):
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    if most > 20_000:
        pytest.skip("this host keeps more events than a test should make")
    for number in range(most + 10):  # different names are not merged
        os.mknod(tree / f"f{number}")
        os.unlink(tree / f"f{number}")
    heard(files, lambda changes: any(change.operation == "overflow" for change in changes))
    (tree / "made").mkdir()
    (tree / "made" / "file").write_text("x")
    heard(files, lambda changes: f"{tree}/made/file" in paths(changes, "create"))


def test_more_folders_than_are_followed_are_named(tree, files, monkeypatch):
    monkeypatch.setattr(shared_files, "MOST_FOLDERS", 3)
    (tree / "third").mkdir()
    (tree / "fourth").mkdir()
    found = heard(files, lambda changes: "unwatched" in {change.operation for change in changes})
    assert paths(found, "unwatched") == {f"{tree}/fourth"}


def test_a_large_tree_that_is_moved_in_is_looked_at_for_so_long_only(tree, files, tmp_path, monkeypatch):
    """Moved in and out again and again it would keep whoever listens from everything else."""
    monkeypatch.setattr(shared_files, "MOST_ENTRIES", 10)
    large = tmp_path / "large"
    large.mkdir()
    for number in range(20):
        (large / f"f{number}").touch()
    large.rename(tree / "large")
    found = heard(files, lambda changes: "unwatched" in {change.operation for change in changes})
    assert paths(found, "unwatched") == {f"{tree}/large"}
    (tree / "small").mkdir()
    heard(files, lambda changes: f"{tree}/small" in paths(changes, "create"))


def test_nothing_is_open_afterwards(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with SharedFiles() as found:
        found.watch([str(tmp_path), str(tmp_path / "missing")])
        assert found.trees == (str(tmp_path),)
        (tmp_path / "file").write_text("x")
        (tmp_path / "folder").mkdir()
        shutil.rmtree(tmp_path / "folder")
        heard(found, lambda changes: f"{tmp_path}/folder" in paths(changes, "delete"))
    assert len(os.listdir("/proc/self/fd")) == before


class Swapped(SharedFiles):
    """Just before the folder `at` is marked, the folder around it is moved away, and a link stands in its place."""

    at = target = ""

    def _mark_one(self, folder):
        if folder == self.at:
            around = os.path.dirname(folder)
            os.rename(around, around + ".moved")
            os.symlink(self.target, around)
        return super()._mark_one(folder)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_link_in_the_place_of_a_folder_leads_the_record_nowhere(tmp_path, swapped):
    """What a service of the host does elsewhere would be on the ledger as done in the shared directory."""
    shared, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    (shared / "outer" / "inner").mkdir(parents=True)
    (elsewhere / "inner").mkdir(parents=True)
    with Swapped() as files:
        files.at, files.target = (str(shared / "outer" / "inner") if swapped else ""), str(elsewhere)
        files.watch([str(shared)])
        (shared / "outer" / "inner" / "new").write_text("")  # through the link, where there is one
        (shared / "last").write_text("")
        found = heard(files, lambda changes: any(one.path.endswith("/last") for one in changes))
    told = any(one.path.endswith("/inner/new") for one in found)
    assert told is not swapped
    assert any(one.operation == "unwatched" for one in found) is swapped
