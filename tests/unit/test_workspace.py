"""Overlay workspaces, on layers made by hand: what is found, what a commit does and refuses, what a discard leaves."""

from __future__ import annotations

import errno
import os
import posix
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from osmoda.sandbox import overlay, overlay_commit, workspace
from osmoda.sandbox.errors import LaunchError, SandboxError

PAST = 1_000_000_000  # seconds since the epoch: long before any layer


@dataclass(frozen=True)
class Fixture:
    """A workspace with some files in it, and its layer, unlocked and empty."""

    work: Path
    layer: Path

    @property
    def upper(self) -> Path:
        return self.layer / "upper"

    def found(self) -> dict[str, str]:
        return {change.path: change.kind for change in workspace.changes(str(self.work))}

    def commit(self, *paths: str, force: bool = False) -> list[str]:
        return [change.path for change in workspace.commit(str(self.work), paths, force=force)]

    def whiteout(self, path: str) -> None:
        os.mknod(self.upper / path, stat.S_IFCHR, 0)

    def opaque(self, path: str) -> None:
        os.setxattr(self.upper / path, "user.overlay.opaque", b"y")

    def tree(self) -> dict[str, str]:
        """What the workspace holds: files with their content, links with their target, folders with a slash."""
        held = {}
        for path in sorted(self.work.rglob("*")):
            name = str(path.relative_to(self.work))
            if path.is_symlink():
                held[name] = f"-> {path.readlink()}"
            else:
                held[name] = "/" if path.is_dir() else path.read_text()
        return held


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fixture]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    monkeypatch.setitem(posix.environ, b"OSMODA_STATE_DIR", os.fsencode(state))
    work = tmp_path / "work"
    (work / "docs" / "old").mkdir(parents=True)
    (work / "README").write_text("read me\n")
    (work / "docs" / "one").write_text("1\n")
    (work / "docs" / "old" / "two").write_text("2\n")
    (work / "link").symlink_to("README")
    path, lock = overlay.open_layer(os.fsencode(work))
    age(work, path)
    os.close(lock)
    yield Fixture(work, Path(os.fsdecode(path)))
    for folder, names, _ in os.walk(state):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)


def age(work: Path, layer: bytes) -> None:
    """As if the layer had been opened later than the workspace was made: the clock of stamps ticks in milliseconds."""
    record = overlay.read_record(layer)
    assert record is not None
    newest = max(path.lstat().st_ctime_ns for path in (work, *work.rglob("*")))
    values = {name: getattr(record, name) for name in type(record).__fields__} | {"since": newest + 1}
    overlay.write_record(layer, overlay.Record(**values))


# --- the layer ---


def test_the_layer_has_the_mode_and_the_owner_of_the_workspace(fresh):
    fresh.work.chmod(0o751)
    if os.getuid() == 0:
        os.chown(fresh.work, 4321, 4322)
    path, lock = overlay.open_layer(os.fsencode(fresh.work))
    os.close(lock)
    for folder in (fresh.layer, fresh.upper, fresh.layer / "work"):
        status, wanted = folder.stat(), fresh.work.stat()
        assert (status.st_uid, status.st_gid) == (wanted.st_uid, wanted.st_gid)
    assert os.fsencode(fresh.layer) == path
    assert stat.S_IMODE(fresh.upper.stat().st_mode) == 0o751
    assert stat.S_IMODE(fresh.layer.stat().st_mode) == 0o700


def test_a_second_run_in_the_same_workspace_is_refused_with_the_holder(fresh):
    _, lock = overlay.open_layer(os.fsencode(fresh.work))
    try:
        with pytest.raises(LaunchError, match=rf"in use by another sandbox \(process {os.getpid()}\)"):
            overlay.open_layer(os.fsencode(fresh.work))
        with pytest.raises(SandboxError, match="in use by another sandbox"):
            workspace.commit(str(fresh.work))
        with pytest.raises(SandboxError, match="in use by another sandbox"):
            workspace.discard(str(fresh.work))
        assert fresh.found() == {}, "looking needs no lock"
    finally:
        os.close(lock)
    _, lock = overlay.open_layer(os.fsencode(fresh.work))
    os.close(lock)


def test_another_workspace_has_another_layer(fresh, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    _, lock = overlay.open_layer(os.fsencode(fresh.work))
    path, second = overlay.open_layer(os.fsencode(other))
    assert os.fsdecode(path) != str(fresh.layer)
    os.close(lock)
    os.close(second)


def test_a_directory_that_took_the_name_of_a_workspace_does_not_get_its_changes(fresh):
    (fresh.upper / "new").write_text("x")
    fresh.work.rename(fresh.work.with_name("moved"))
    fresh.work.mkdir()
    with pytest.raises(LaunchError, match="is not the directory that its pending changes were made in"):
        overlay.open_layer(os.fsencode(fresh.work))
    with pytest.raises(SandboxError, match="is not the directory"):
        workspace.commit(str(fresh.work))
    workspace.discard(str(fresh.work))
    _, lock = overlay.open_layer(os.fsencode(fresh.work))
    os.close(lock)


def test_no_room_for_the_record_is_one_sentence(fresh, monkeypatch):
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(overlay.posix, "write", full)
    with pytest.raises(LaunchError, match=r"layer of the workspace \S+ cannot be written: write: No space left"):
        overlay.open_layer(os.fsencode(fresh.work))
    monkeypatch.undo()


# --- what is found ---


def test_every_kind_of_change_is_told(fresh):
    (fresh.upper / "README").write_text("changed\n")
    fresh.whiteout("link")
    (fresh.upper / "docs").mkdir()
    (fresh.upper / "docs" / "one").write_text("1\n")
    (fresh.upper / "docs" / "one").chmod(0o755)
    (fresh.upper / "docs" / "old").symlink_to("/etc")
    (fresh.upper / "made" / "inner").mkdir(parents=True)
    (fresh.upper / "made" / "file").write_bytes(b"x" * 1000)
    found = {change.path: change for change in workspace.changes(str(fresh.work))}
    assert {path: (change.kind, change.file_type, change.size) for path, change in found.items()} == {
        "README": ("modified", "file", 8),
        "docs/old": ("type changed", "symlink", 0),
        "docs/old/two": ("deleted", "file", 2),
        "docs/one": ("mode changed", "file", 2),
        "link": ("deleted", "symlink", 0),
        "made": ("added", "directory", 0),
        "made/file": ("added", "file", 1000),
        "made/inner": ("added", "directory", 0),
    }
    assert found["docs/one"].mode == 0o755
    assert list(found) == sorted(found, key=lambda path: path.split("/")), "parents come before what they hold"


def test_a_folder_made_anew_hides_what_was_in_it(fresh):
    (fresh.upper / "docs").mkdir()
    fresh.opaque("docs")
    (fresh.upper / "docs" / "one").write_text("new\n")
    assert fresh.found() == {"docs/old": "deleted", "docs/old/two": "deleted", "docs/one": "modified"}


def test_a_deleted_folder_is_listed_with_all_that_it_holds(fresh):
    fresh.whiteout("docs")
    assert fresh.found() == dict.fromkeys(["docs", "docs/old", "docs/old/two", "docs/one"], "deleted")


def test_what_is_written_with_the_same_content_is_no_change(fresh):
    (fresh.upper / "README").write_text("read me\n")
    (fresh.upper / "link").symlink_to("README")
    fresh.whiteout("never-was")
    assert fresh.found() == {}


def test_the_workspaces_own_mode_is_a_change(fresh):
    fresh.upper.chmod(0o700 if fresh.work.stat().st_mode & 0o077 else 0o755)
    assert fresh.found() == {".": "mode changed"}
    assert fresh.commit() == ["."]
    assert not fresh.layer.exists()


@pytest.mark.parametrize("attribute", ["user.overlay.redirect", "user.overlay.metacopy"])
def test_what_this_overlay_never_writes_is_refused(fresh, attribute):
    (fresh.upper / "README").write_text("")
    os.setxattr(fresh.upper / "README", attribute, b"/etc/passwd")
    with pytest.raises(SandboxError, match=rf"README carries {attribute}"):
        fresh.found()
    with pytest.raises(SandboxError, match=rf"README carries {attribute}"):
        fresh.commit()
    assert (fresh.work / "README").read_text() == "read me\n"


# --- commit ---


def test_a_commit_makes_the_changes_and_leaves_no_layer(fresh):
    (fresh.upper / "README").write_text("changed\n")
    os.utime(fresh.upper / "README", (PAST, PAST))
    fresh.whiteout("link")
    (fresh.upper / "docs").mkdir()
    fresh.opaque("docs")
    (fresh.upper / "docs" / "fresh").symlink_to("../README")
    (fresh.upper / "made").mkdir(mode=0o750)
    (fresh.upper / "made" / "run").write_text("#!/bin/sh\n")
    (fresh.upper / "made" / "run").chmod(0o755)
    fresh.commit()
    assert fresh.tree() == {
        "README": "changed\n",
        "docs": "/",
        "docs/fresh": "-> ../README",
        "made": "/",
        "made/run": "#!/bin/sh\n",
    }
    assert (fresh.work / "README").stat().st_mtime == PAST
    assert stat.S_IMODE((fresh.work / "made").stat().st_mode) == 0o750
    assert stat.S_IMODE((fresh.work / "made" / "run").stat().st_mode) == 0o755
    assert not fresh.layer.exists()


def test_files_become_folders_and_folders_files(fresh):
    (fresh.upper / "README").mkdir()
    (fresh.upper / "README" / "inner").write_text("x")
    (fresh.upper / "docs").write_text("now a file")
    fresh.commit()
    assert fresh.tree() == {"README": "/", "README/inner": "x", "docs": "now a file", "link": "-> README"}


def test_set_id_bits_are_not_committed_but_the_hosts_own_stay(fresh):
    (fresh.work / "docs").chmod(0o2775)
    (fresh.upper / "tool").write_text("x")
    (fresh.upper / "tool").chmod(0o6755)
    (fresh.upper / "docs").mkdir()
    (fresh.upper / "docs").chmod(0o4700)
    fresh.commit()
    assert stat.S_IMODE((fresh.work / "tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((fresh.work / "docs").stat().st_mode) == 0o2700


def test_links_holes_and_attributes_are_kept(fresh):
    first = fresh.upper / "first"
    with open(first, "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    os.setxattr(first, "user.note", b"kept")
    os.setxattr(first, "user.overlay.origin", b"not")
    (fresh.upper / "docs").mkdir()
    os.link(first, fresh.upper / "docs" / "second")
    fresh.commit()
    one, two = (fresh.work / "first").stat(), (fresh.work / "docs" / "second").stat()
    assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
    assert one.st_size == 1 << 30
    assert one.st_blocks * 512 < 1 << 20
    assert os.listxattr(fresh.work / "first") == ["user.note"]
    with open(fresh.work / "first", "rb") as file:
        file.seek(1 << 29)
        assert file.read(6) == b"middle"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)
        listener.bind(path.name)


def make_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_fifo, "fifo"),
        (make_socket, "socket"),
        pytest.param(
            make_device,
            "device",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to make a device node"),
        ),
    ],
)
def test_special_files_stop_a_commit_before_it_starts(fresh, monkeypatch, make, kind):
    monkeypatch.chdir(fresh.work)
    (fresh.upper / "README").write_text("changed\n")
    make(fresh.upper / "special")
    with pytest.raises(SandboxError, match=f"special is a {kind}, which is never committed; discard it"):
        fresh.commit()
    assert (fresh.work / "README").read_text() == "read me\n"
    workspace.discard(str(fresh.work), ["special"])
    assert fresh.commit() == ["README"]


def test_a_file_that_changed_on_the_host_is_a_conflict(fresh):
    (fresh.upper / "README").write_text("changed\n")
    (fresh.upper / "docs").mkdir()
    (fresh.upper / "docs" / "one").write_text("inside\n")
    os.utime(fresh.work / "docs" / "one", (PAST, PAST))
    with pytest.raises(SandboxError, match=r"docs/one has changed in the workspace .* --force"):
        fresh.commit()
    assert (fresh.work / "README").read_text() == "read me\n", "nothing was written"
    assert fresh.commit("README") == ["README"]
    assert fresh.commit(force=True) == ["docs/one"]
    assert (fresh.work / "docs" / "one").read_text() == "inside\n"


def test_a_deleted_folder_that_the_host_has_put_something_in_is_a_conflict(fresh):
    fresh.whiteout("docs")
    (fresh.work / "docs" / "valuable").write_text("x")
    with pytest.raises(SandboxError, match="docs/valuable has changed"):
        fresh.commit()
    assert (fresh.work / "docs" / "one").exists()


def test_a_commits_own_writes_are_no_conflict(fresh):
    (fresh.upper / "README").write_text("first\n")
    (fresh.upper / "other").write_text("x")
    assert fresh.commit("README") == ["README"]
    (fresh.upper / "README").write_text("second\n")
    assert fresh.commit("README") == ["README"]
    assert (fresh.work / "README").read_text() == "second\n"


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("survives", range(7))
def test_an_interrupted_commit_is_made_again(fresh, monkeypatch, survives):
    """The process is killed at the n-th change: the workspace holds whole files, and a second commit ends it."""
    (fresh.upper / "README").write_text("changed\n")
    fresh.whiteout("link")
    (fresh.upper / "docs").mkdir(mode=0o755)
    fresh.opaque("docs")
    (fresh.upper / "docs" / "fresh").write_text("x")
    count = 0
    make = overlay_commit.Writer._make

    def until(self, change, how):
        nonlocal count
        if count == survives:
            raise Interrupted
        count += 1
        make(self, change, how)

    monkeypatch.setattr(overlay_commit.Writer, "_make", until)
    try:
        fresh.commit()
    except Interrupted:
        assert (fresh.work / "README").read_text() in ("read me\n", "changed\n")
        monkeypatch.undo()
        monkeypatch.setitem(posix.environ, b"OSMODA_STATE_DIR", os.fsencode(fresh.layer.parent.parent))
        fresh.commit()
    assert fresh.tree() == {"README": "changed\n", "docs": "/", "docs/fresh": "x"}
    assert not fresh.layer.exists()


@pytest.mark.parametrize("call", ["copy_file_range", "rename", "mkdir"])
def test_a_full_disk_leaves_nothing_half_written(fresh, monkeypatch, call):
    (fresh.upper / "README").write_text("changed\n" * 1000)
    (fresh.upper / "made").mkdir()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object, **__: object) -> None:
        raise full

    before = fresh.tree()
    with monkeypatch.context() as disk:
        disk.setattr(overlay_commit.os, call, refuse)
        with pytest.raises(SandboxError, match=r"could not be committed: No space left on device; .* stays pending"):
            fresh.commit()
    assert {**fresh.tree(), "README": ""} == {**before, "README": ""}, "no temporary file is left"
    fresh.commit()
    assert (fresh.work / "README").read_text() == "changed\n" * 1000


def test_what_a_killed_commit_left_under_its_temporary_name_goes_with_the_next(fresh):
    (fresh.upper / "README").write_text("changed\n")
    (fresh.work / workspace._temporary_name(os.fsencode(fresh.work))).write_text("half")
    fresh.commit()
    assert set(fresh.tree()) == {"README", "docs", "docs/old", "docs/old/two", "docs/one", "link"}


def test_a_folder_swapped_for_a_link_is_not_followed(fresh, tmp_path, monkeypatch):
    """The attacker owns the workspace and waits until the commit has looked."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one").write_text("theirs")
    (fresh.upper / "docs").mkdir()
    (fresh.upper / "docs" / "one").write_text("ours")
    write = overlay_commit.Writer.write

    def swap_first(self, changes):
        (fresh.work / "docs").rename(fresh.work / "docs.away")
        (fresh.work / "docs").symlink_to(outside)
        write(self, changes)

    monkeypatch.setattr(overlay_commit.Writer, "write", swap_first)
    with pytest.raises(SandboxError, match="docs/one could not be committed: Too many levels of symbolic links"):
        fresh.commit()
    assert (outside / "one").read_text() == "theirs"


def test_a_link_where_a_folder_was_written_is_replaced_and_not_followed(fresh, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (fresh.work / "out").symlink_to(outside)
    (fresh.upper / "out").mkdir()
    (fresh.upper / "out" / "file").write_text("x")
    fresh.commit(force=True)
    assert list(outside.iterdir()) == []
    assert fresh.tree()["out/file"] == "x"


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to have a workspace of somebody else's")
def test_root_commits_as_the_owner_of_the_workspace(fresh):
    for path in (fresh.work, *fresh.work.rglob("*"), fresh.upper):
        os.chown(path, 4321, 4322, follow_symlinks=False)
    closed = fresh.work / "roots"
    closed.mkdir(mode=0o755)
    (fresh.upper / "README").write_text("changed\n")
    (fresh.upper / "README").chmod(0)
    (fresh.upper / "made").mkdir(mode=0o755)
    (fresh.upper / "made" / "file").write_text("x")
    (fresh.upper / "roots").mkdir(mode=0o755)
    (fresh.upper / "roots" / "file").write_text("x")
    for path in fresh.upper.rglob("*"):
        os.chown(path, 4321, 4322)
    with pytest.raises(SandboxError, match="roots/file could not be committed: Permission denied"):
        fresh.commit(force=True)
    workspace.discard(str(fresh.work), ["roots"])
    fresh.commit(force=True)
    for name in ("README", "made", "made/file"):
        status = (fresh.work / name).stat()
        assert (status.st_uid, status.st_gid) == (4321, 4322)
    assert stat.S_IMODE((fresh.work / "README").stat().st_mode) == 0
    assert os.access("/etc/shadow", os.R_OK), "this thread is root again"


# --- parts, and denied paths ---


def test_a_part_is_committed_with_the_folders_that_lead_to_it(fresh):
    (fresh.upper / "made" / "deep").mkdir(parents=True)
    (fresh.upper / "made" / "deep" / "one").write_text("1")
    (fresh.upper / "made" / "two").write_text("2")
    assert fresh.commit("made/deep") == ["made", "made/deep", "made/deep/one"]
    assert fresh.found() == {"made/two": "added"}
    assert fresh.commit(str(fresh.work / "made")) == ["made/two"]
    assert not fresh.layer.exists()


def test_a_part_of_a_folder_made_anew_leaves_the_rest_as_it_was(fresh):
    (fresh.upper / "docs").mkdir()
    fresh.opaque("docs")
    (fresh.upper / "docs" / "fresh").write_text("x")
    assert fresh.commit("docs/fresh") == ["docs/fresh"]
    assert fresh.found() == {"docs/old": "deleted", "docs/old/two": "deleted", "docs/one": "deleted"}
    assert fresh.tree()["docs/fresh"] == "x"
    fresh.commit()
    assert fresh.tree() == {"README": "read me\n", "docs": "/", "docs/fresh": "x", "link": "-> README"}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing", "nothing has no pending change"),
        ("../elsewhere", r"\.\./elsewhere does not lie in the workspace"),
        ("/etc/passwd", "/etc/passwd does not lie in the workspace"),
    ],
)
@pytest.mark.parametrize("verb", [workspace.commit, workspace.discard])
def test_a_path_without_a_change_is_refused(fresh, verb, path, sentence):
    (fresh.upper / "README").write_text("changed\n")
    with pytest.raises(SandboxError, match=sentence):
        verb(str(fresh.work), [path])


def test_denied_paths_are_never_committed(fresh):
    denied = tuple(os.fsencode(fresh.work / name) for name in ("docs/old/two", ".env"))
    path, lock = overlay.open_layer(os.fsencode(fresh.work), denied)
    age(fresh.work, path)
    os.close(lock)
    (fresh.upper / ".env").write_text("planted")
    (fresh.upper / "README").write_text("changed\n")
    fresh.whiteout("docs")
    # A later run under a profile that denies nothing does not change what was denied.
    _, lock = overlay.open_layer(os.fsencode(fresh.work))
    os.close(lock)
    flagged = {change.path for change in workspace.changes(str(fresh.work)) if change.denied}
    assert flagged == {".env", "docs", "docs/old", "docs/old/two"}
    with pytest.raises(SandboxError, match=r"\.env is denied by the profile"):
        fresh.commit(".env", force=True)
    assert fresh.commit(force=True) == ["README", "docs/one"]
    assert fresh.tree() == {
        "README": "changed\n",
        "docs": "/",
        "docs/old": "/",
        "docs/old/two": "2\n",
        "link": "-> README",
    }
    workspace.discard(str(fresh.work))
    assert fresh.found() == {}


# --- discard ---


def test_a_discarded_part_shows_the_hosts_again(fresh):
    (fresh.upper / "README").write_text("changed\n")
    fresh.whiteout("link")
    (fresh.upper / "docs").mkdir()
    (fresh.upper / "docs" / "one").write_text("x")
    workspace.discard(str(fresh.work), ["docs/one", "link"])
    assert fresh.found() == {"README": "modified"}
    assert [path.name for path in fresh.upper.iterdir()] == ["README"]
    workspace.discard(str(fresh.work), ["README"])
    assert not fresh.layer.exists()
    assert (fresh.work / "README").read_text() == "read me\n"


def test_what_went_with_its_folder_is_discarded_with_its_folder(fresh):
    fresh.whiteout("docs")
    with pytest.raises(SandboxError, match="docs/one was deleted with the folder that held it; discard that folder"):
        workspace.discard(str(fresh.work), ["docs/one"])
    workspace.discard(str(fresh.work), ["docs"])
    assert fresh.found() == {}


def test_a_discard_copes_with_whatever_was_made_there(fresh):
    """Folders closed to their owner, deeper than a path may be long and than Python may recurse."""
    closed = fresh.layer / "work" / "work"
    closed.mkdir()
    (closed / "#1").touch()
    closed.chmod(0)
    here = os.open(fresh.upper, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.mkdir("closed", 0, dir_fd=here)
    os.close(here)
    (fresh.upper / "d").chmod(0)
    workspace.discard(str(fresh.work))
    assert not fresh.layer.exists()


def test_a_path_that_is_too_long_is_one_sentence(fresh):
    here = os.open(fresh.upper, os.O_RDONLY)
    for _ in range(50):
        os.mkdir("d" * 100, dir_fd=here)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(SandboxError, match=r"the pending changes cannot be read: .*File name too long"):
        fresh.found()
    workspace.discard(str(fresh.work))


def test_discard_works_when_the_workspace_or_the_record_is_gone(fresh):
    (fresh.upper / "x").write_text("x")
    (fresh.layer / "record").write_bytes(b"rubbish")
    with pytest.raises(LaunchError, match="have lost their record"):
        overlay.open_layer(os.fsencode(fresh.work))
    with pytest.raises(SandboxError, match="have lost their record"):
        fresh.found()
    (fresh.work / "docs").rename(fresh.work.parent / "docs")
    fresh.work.rename(fresh.work.with_name("gone"))
    workspace.discard(str(fresh.work))
    assert not fresh.layer.exists()


def test_nothing_pending(fresh):
    assert fresh.commit() == []
    assert not fresh.layer.exists()
    assert fresh.commit() == []
    assert fresh.found() == {}
    workspace.discard(str(fresh.work))
    with pytest.raises(SandboxError, match="has no pending changes"):
        fresh.commit("README")
