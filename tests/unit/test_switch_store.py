"""Generations on disk: whole or not there, unchangeable or found out, current in one step; trees; data; places."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.granted_paths import resolve_grant
from osmoda.supervisor.switch import data, place, tree
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.record import Moment, Record, Records, Terms, dump, load, text
from osmoda.supervisor.switch.store import DROP_IN, Content, Store, check_name
from tests.switch_world import member

NAME = "research"
ROOT = os.geteuid() == 0


@pytest.fixture
def store() -> Store:
    """In the state directory that each test has for itself."""
    return Store()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "lib").mkdir(parents=True)
    (folder / "main.py").write_text("print('hello')\n")
    (folder / "main.py").chmod(0o755)
    (folder / "lib" / "secret").write_text("key\n")
    (folder / "lib" / "secret").chmod(0o600)
    (folder / "lib" / "outside").symlink_to("/etc/passwd")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def where(tmp_path: Path) -> Path:
    (tmp_path / "agents").mkdir()
    return tmp_path / "agents" / NAME


def content(code: Path | None, where: Path | str = "/nowhere/research", profile: bytes | None = None) -> Content:
    return Content({f"{NAME}.service": b"[Service]\nExecStart=/bin/true\n"}, profile, code and str(code), str(where))


# Making


def test_a_generation_holds_what_it_was_made_from_and_nobody_may_write_to_it(store, code):
    made = store.stage(NAME, content(code, profile=b"schema = 1\n"), 1.0)
    assert made.number == 1
    assert Path(made.code, "main.py").read_text() == "print('hello')\n"
    assert Path(made.profile).read_text() == "schema = 1\n"
    assert os.readlink(Path(made.code, "lib", "outside")) == "/etc/passwd", "a link stays a link"
    drop_in = Path(made.unit, f"{NAME}.service.d", DROP_IN).read_text()
    assert drop_in == f"[X-Osmoda]\nProfile={made.profile}\n"
    modes = {path: stat.S_IMODE(os.lstat(path).st_mode) for path in Path(made.directory).rglob("*")}
    assert not [path for path, mode in modes.items() if mode & 0o222 and not path.is_symlink()]
    assert modes[Path(made.code, "main.py")] == 0o555
    assert modes[Path(made.code, "lib", "secret")] == 0o400
    assert Path(made.code, "main.py").stat().st_mtime_ns == (code / "main.py").stat().st_mtime_ns
    store.verify(NAME, 1, made.seal)
    assert store.generation(NAME, 1) == made


def test_a_copy_is_another_file(store, code):
    """Through a hard link, whoever writes the original would change the generation."""
    made = store.stage(NAME, content(code), 1.0)
    (code / "main.py").write_text("print('changed')\n")
    assert Path(made.code, "main.py").read_text() == "print('hello')\n"
    store.verify(NAME, 1, made.seal)


def change(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("print('evil')\n")
    path.chmod(0o555)


def add(path: Path) -> None:
    path.parent.chmod(0o755)
    (path.parent / "added.py").touch()
    path.parent.chmod(0o555)


def remove(path: Path) -> None:
    path.parent.chmod(0o755)
    path.unlink()
    path.parent.chmod(0o555)


def link(path: Path) -> None:
    remove(path)
    path.parent.chmod(0o755)
    path.symlink_to("/bin/true")
    path.parent.chmod(0o555)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (change, "code/main.py has another content"),
        (add, "code/added.py was added"),
        (remove, "code/main.py is missing"),
        (link, "code/main.py has another content"),
        (lambda path: path.chmod(0o4755), "code/main.py has mode 4755 in place of 555"),
    ],
)
def test_a_generation_that_has_changed_is_refused(store, code, attack, said):
    """The positive control is that it is accepted before."""
    made = store.stage(NAME, content(code), 1.0)
    store.verify(NAME, 1, made.seal)
    attack(Path(made.code, "main.py"))
    with pytest.raises(SwitchError, match="not what it was when it was made, and is not activated") as caught:
        store.verify(NAME, 1, made.seal)
    assert said in str(caught.value)


def test_a_manifest_that_fits_the_change_is_found_by_its_seal(store, code):
    made = store.stage(NAME, content(code), 1.0)
    change(Path(made.code, "main.py"))
    manifest = Path(made.directory, "manifest")
    old = manifest.read_text()
    new = old.replace(hashlib.sha256(b"print('hello')\n").hexdigest(), hashlib.sha256(b"print('evil')\n").hexdigest())
    assert new != old
    manifest.chmod(0o600)
    manifest.write_text(new.replace('["f",365,15,', '["f",365,14,'))
    store.verify(NAME, 1, hashlib.sha256(manifest.read_bytes()).hexdigest())  # the forgery is sound
    with pytest.raises(SwitchError, match="its manifest has another content"):
        store.verify(NAME, 1, made.seal)


def special(kind: str, code: Path) -> None:
    if kind == "pipe":
        os.mkfifo(code / "lib" / "odd")
    else:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(code / "lib" / "odd"))


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_file_is_refused_and_nothing_is_left(store, code, kind):
    special(kind, code)
    with pytest.raises(SwitchError, match=r"build/lib/odd is neither a file, a folder nor a symbolic link"):
        store.stage(NAME, content(code), 1.0)
    assert os.listdir(Path(store.directory, "agents", NAME, "generations")) == []


def test_a_tree_beyond_its_bounds_is_refused(store, code):
    with pytest.raises(SwitchError, match="larger than 10 bytes"):
        store.stage(NAME, content(code), 1.0, tree.Bounds(size=10))
    with pytest.raises(SwitchError, match="holds more than 2 files"):
        store.stage(NAME, content(code), 1.0, tree.Bounds(entries=2))
    assert store.numbers(NAME) == []


def test_what_would_not_fit_is_not_begun(store, code):
    with open(code / "large", "wb") as file:
        file.truncate(1 << 43)  # a hole: nothing is on the disk
    with pytest.raises(SwitchError, match="MiB left, of which 16 are kept free"):
        store.stage(NAME, content(code), 1.0, tree.Bounds(size=1 << 50))
    assert os.listdir(Path(store.directory, "agents", NAME, "generations")) == []


def test_a_file_that_changes_under_the_copy_is_refused(store, code, monkeypatch):
    real = tree._copy_content

    def slow(from_fd: int, to_fd: int, size: int) -> None:
        real(from_fd, to_fd, size)
        with open(code / "main.py", "a") as file:
            file.write("# more\n")

    monkeypatch.setattr(tree, "_copy_content", slow)
    with pytest.raises(SwitchError, match="has changed while it was copied"):
        store.stage(NAME, content(code), 1.0)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", ".hidden", "-x", "a\n", "x" * 300])
def test_names_that_are_none(name):
    with pytest.raises(SwitchError, match="is not the name of a unit"):
        check_name(name)


def test_one_process_drives_the_switches(store):
    with store.lock(), pytest.raises(SwitchError, match="another process drives"), Store().lock():
        pass


# Current, kept, cleaned


def test_the_current_generation_is_one_link(store, code):
    for _ in range(2):
        store.stage(NAME, content(code), 1.0)
    assert store.current(NAME) is None
    assert store.unit_directories() == []
    store.flip(NAME, 1)
    store.flip(NAME, 2)
    assert store.current(NAME) == 2
    assert store.unit_directories() == [f"{store.directory}/agents/{NAME}/current/unit"]
    store.flip(NAME, None)
    store.flip(NAME, None)
    assert store.current(NAME) is None


def test_generations_are_kept_by_count_and_age(store, code):
    for number in range(1, 8):
        store.stage(NAME, content(code), float(number))
    store.flip(NAME, 2)
    assert store.prune(NAME, 3, 4.0, {1}, now=9.0) == [3, 4], "1 is needed, 2 is current, 5 to 7 are the newest"
    assert store.numbers(NAME) == [1, 2, 5, 6, 7]
    assert store.prune(NAME, 3, 100.0, (), now=9.0) == []
    assert store.prune(NAME, 1, 0.0, (), now=9.0) == [1, 5, 6]


def test_what_was_left_half_made_is_removed(store, code):
    made = store.stage(NAME, content(code), 1.0)
    generations = Path(made.directory).parent
    tree.copy(str(code), str(generations / ".staging-2"), tree.Bounds(), sealed=True)
    (generations / ".removed-0").mkdir()
    Path(made.directory, "data.partial").mkdir()
    with store.scratch() as scratch:
        os.link(Path(made.directory, "manifest"), Path(scratch, "file"))
        store.clean()
        assert not os.path.exists(scratch)
        os.mkdir(scratch)  # for the end of the block
    assert os.listdir(generations) == ["1"]
    assert sorted(os.listdir(made.directory)) == ["code", "manifest", "unit"]
    assert sorted(os.listdir(store.directory)) == ["agents", "records"]


# Records


def record(**more: object) -> Record:
    now = Moment(1.0, 2.0, "boot")
    return Record(0, (member(),), Terms(60.0), "staged", now, now, **more)  # type: ignore[arg-type]


def test_a_record_is_what_was_saved(store):
    records = Records(store.records)
    made = records.create(record(reason="by hand", untold=({"step": 0},)))
    assert made.number == 1
    assert records.load(1) == made
    assert load(dump(made)) == made
    assert records.create(record()).number == 2
    assert sorted(os.listdir(store.records)) == [".1.spare", ".2.spare", "1.json", "2.json"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"number": 1}'])
def test_a_record_that_is_none(text):
    with pytest.raises(SwitchError, match="cannot be read"):
        load(text)


# Data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    found.mkdir()
    (found / "state").write_text("old\n")
    (found / "state").chmod(0o640)
    if ROOT:
        os.chown(found / "state", 1234, 1234)
    return found


def test_data_comes_back_with_its_owner_and_what_was_written_since_is_kept(folder, tmp_path):
    target = str(tmp_path / "copy")
    data.snapshot(target, 7, data.folders([str(folder)]))
    (folder / "state").write_text("new\n")
    (folder / "more").touch()
    for _ in range(2):  # a second time nothing is done
        assert data.restore(target, 7) == [str(folder)]
        assert (folder / "state").read_text() == "old\n"
        status = (folder / "state").stat()
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert status.st_uid == (1234 if ROOT else os.geteuid())
    aside = Path(data.set_aside(str(folder), 7))
    assert (aside / "state").read_text() == "new\n"
    assert sorted(os.listdir(tmp_path)) == ["copy", "data", aside.name]


def test_data_comes_back_from_wherever_that_was_left(folder, tmp_path):
    """Each of the states between two renames."""
    target, aside = str(tmp_path / "copy"), Path(data.set_aside(str(folder), 7))
    coming = tmp_path / "data.restored-by-switch-7"
    data.snapshot(target, 7, [str(folder)])
    (folder / "state").write_text("new\n")
    tree.copy(str(folder), f"{coming}.partial", tree.Bounds(), sealed=False)  # killed while it was copied
    data.restore(target, 7)
    assert (folder / "state").read_text() == "old\n"
    os.rename(folder, coming)  # killed after the first of two renames
    data.restore(target, 7)
    assert (folder / "state").read_text() == "old\n"
    assert (aside / "state").read_text() == "new\n"


def test_data_of_another_switch_is_not_put_back(folder, tmp_path):
    target = str(tmp_path / "copy")
    data.snapshot(target, 7, [str(folder)])
    (folder / "state").write_text("new\n")
    assert data.restore(target, 8) == []
    assert data.restore(str(tmp_path / "none"), 8) == []
    assert (folder / "state").read_text() == "new\n"
    data.snapshot(target, 8, [str(folder)])
    assert data.restore(target, 8) == [str(folder)]


def test_folders_that_can_be_copied(folder, tmp_path):
    (folder / "inner").mkdir()
    (tmp_path / "link").symlink_to(folder)
    wanted = [str(folder), str(folder / "inner"), str(tmp_path / "link"), str(tmp_path / "absent")]
    assert data.folders(wanted) == [str(folder)]
    with pytest.raises(SwitchError, match="is no folder"):
        data.folders([str(folder / "state")])
    with pytest.raises(SwitchError, match="is a file system of its own"):
        data.folders(["/proc"])


# The place


def current(store: Store, code: Path, where: Path) -> None:
    made = store.stage(NAME, content(code, where), 1.0)
    store.flip(NAME, made.number)
    place.settle(store, NAME, str(where))


def test_the_place_leads_to_the_current_generation(store, code, where):
    current(store, code, where)
    assert (where / "main.py").read_text() == "print('hello')\n"
    (code / "main.py").write_text("print('two')\n")
    inode = where.lstat().st_ino
    current(store, code, where)
    assert (where / "main.py").read_text() == "print('two')\n"
    assert where.lstat().st_ino == inode, "only `current` was changed"
    place.leave(store, NAME, str(where))
    assert not os.path.lexists(where)


def test_what_lay_at_the_place_is_kept_beside_it(store, code, where):
    where.mkdir()
    (where / "old").touch()
    current(store, code, where)
    assert sorted(os.listdir(where.parent)) == [NAME, f"{NAME}.before-osmoda"]
    assert os.listdir(f"{where}.before-osmoda") == ["old"]


@pytest.mark.parametrize("exchanged", [False, True])
def test_the_place_is_taken_wherever_that_was_left(store, code, where, exchanged):
    where.mkdir()
    (where / "old").touch()
    made = store.stage(NAME, content(code, where), 1.0)
    store.flip(NAME, made.number)
    temporary = where.parent / f".{NAME}.osmoda"
    temporary.symlink_to(place.target(store, NAME))
    if exchanged:
        where.rename(where.parent / "x")
        temporary.rename(where)
        (where.parent / "x").rename(temporary)
    place.settle(store, NAME, str(where))
    assert place.is_settled(store, NAME, str(where))
    assert sorted(os.listdir(where.parent)) == [NAME, f"{NAME}.before-osmoda"]
    assert os.listdir(f"{where}.before-osmoda") == ["old"]


def test_an_agent_that_has_left_its_place_may_take_another(store, code, where):
    current(store, code, where)
    store.flip(NAME, None)
    place.leave(store, NAME, str(where))
    other = where.parent / "other"
    current(store, code, other)
    assert granted(other).endswith("/generations/2/code")


def test_a_place_that_is_somebody_else_s_link_by_now_stays(store, code, where):
    current(store, code, where)
    where.unlink()
    where.symlink_to("/srv")
    place.leave(store, NAME, str(where))
    assert os.readlink(where) == "/srv"


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(SwitchError, match="there is no folder"):
        place.require_place(str(tmp_path / "absent" / NAME))
    with pytest.raises(SwitchError, match="is a file system of its own"):
        place.require_place("/proc")


# What a sandbox makes of the place


def granted(path: Path, *, write: bool = False) -> str:
    return resolve_grant(str(path), "profile.toml:3", write=write, never=())


def test_a_sandbox_follows_the_link_at_an_agent_s_place(store, code, where):
    current(store, code, where)
    assert granted(where) == f"{os.path.realpath(store.directory)}/agents/{NAME}/generations/1/code"
    assert granted(where / "lib") == f"{os.path.realpath(store.directory)}/agents/{NAME}/generations/1/code/lib"


def test_an_agent_may_not_write_its_generation(store, code, where):
    current(store, code, where)
    with pytest.raises(CompileError, match="where osmoda keeps its own files"):
        granted(where, write=True)


@pytest.mark.parametrize("attack", ["another place", "another agent", "another folder", "no note"])
def test_any_other_link_into_the_store_grants_nothing(store, code, where, attack):
    """The positive control is the test before: the same link, at its place."""
    current(store, code, where)
    granted(where)
    attacked = where
    if attack == "another place":
        attacked = where.parent / "copy"
        attacked.symlink_to(os.readlink(where))
    elif attack == "another agent":
        made = store.stage("writer", content(code, where.parent / "writer"), 1.0)
        store.flip("writer", made.number)
        where.unlink()
        where.symlink_to(place.target(store, "writer"))
    elif attack == "another folder":
        where.unlink()
        where.symlink_to(f"{store.directory}/agents/{NAME}/generations/1/unit")
    else:
        os.unlink(f"{store.directory}/agents/{NAME}/place")
    with pytest.raises(CompileError, match="is a symbolic link out of its folder"):
        granted(attacked)


def test_removing_what_nobody_may_write(code, tmp_path):
    tree.copy(str(code), str(tmp_path / "copy"), tree.Bounds(), sealed=True)
    tree.remove(str(tmp_path / "copy"))
    tree.remove(str(tmp_path / "copy"))
    assert not os.path.lexists(tmp_path / "copy")


def test_a_copy_without_reflinks(code, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "EXDEV")

    control = tree.copy(str(code), str(tmp_path / "control"), tree.Bounds(), sealed=True)
    monkeypatch.setattr(tree.fcntl, "ioctl", refuse)
    monkeypatch.setattr(tree.os, "copy_file_range", refuse)
    assert tree.copy(str(code), str(tmp_path / "copy"), tree.Bounds(), sealed=True) == control
    with contextlib.suppress(FileNotFoundError):
        assert tree.describe(str(tmp_path / "copy")) == control


def test_a_record_that_is_over_takes_no_more_room_than_it_needs(store):
    records = Records(store.records)
    going, over = records.create(record()), records.create(replace(record(), phase="committed"))
    records.prune()
    assert sorted(os.listdir(store.records)) == [".1.spare", "1.json", "2.json"]
    assert os.path.getsize(Path(store.records, "1.json")) == os.path.getsize(Path(store.records, ".1.spare")) == 1 << 18
    assert os.path.getsize(Path(store.records, "2.json")) < 2000
    assert (records.load(1), records.load(2)) == (going, over)


def test_the_last_hundred_records_are_kept(store):
    records = Records(store.records)
    for _ in range(103):
        records.create(replace(record(), phase="committed"))
        records.prune()
    assert records.numbers() == [*range(4, 104)]


def test_what_is_said_of_a_switch_can_be_kept_by_everybody():
    assert text("a\udcff" + "b" * 1000) == "a\\udcff" + "b" * (500 - 7) + "…"
