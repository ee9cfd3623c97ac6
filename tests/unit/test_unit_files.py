"""Units by name, on disk: precedence, drop-ins, templates, aliases, masks, and files that others could write."""

from __future__ import annotations

import os

import pytest

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import files as unit_files
from osmoda.supervisor.units.loading import Loader
from tests.unit_hosts import HOST

UNIT = "[Service]\nExecStart=/bin/{}\n"


class Folders:
    """A search path of three folders, the first of which wins."""

    def __init__(self, top):
        self.paths = [top / name for name in ("etc", "run", "usr")]
        for path in self.paths:
            path.mkdir()
        self.etc, self.run, self.usr = self.paths

    def write(self, path, text):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def loader(self):
        return Loader([str(path) for path in self.paths], HOST)

    def load(self, name):
        return self.loader().load(name)


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def program(unit):
    return unit.exec_start[0].program.removeprefix("/bin/")


def test_the_first_folder_wins(folders):
    folders.write(folders.usr / "a.service", UNIT.format("usr"))
    assert program(folders.load("a")) == "usr"
    folders.write(folders.run / "a.service", UNIT.format("run"))
    folders.write(folders.etc / "a.service", UNIT.format("etc"))
    unit = folders.load("a.service")
    assert program(unit) == "etc"
    assert unit.files == (str(folders.etc / "a.service"),)


def test_there_is_no_such_unit(folders):
    with pytest.raises(unit_files.NoSuchUnit, match=r"there is no unit a.service in .*/etc, .*/run, .*/usr"):
        folders.load("a")


@pytest.mark.parametrize("name", ["../a", "a/b.service", "", "a.target", "\x1b[2J"])
def test_what_is_no_name(folders, name):
    with pytest.raises(UnitError, match=r"is no name of a unit|is no unit that ends in .service") as refused:
        folders.load(name)
    assert str(refused.value).isprintable()


def test_drop_ins(folders):
    """A file of one name counts once, the one of the first folder; then by name, whatever the folder."""
    folders.write(folders.usr / "a-b.service", UNIT.format("usr"))
    folders.write(folders.usr / "a-b.service.d" / "20-x.conf", "[Service]\nEnvironment=A=usr\n")
    folders.write(folders.etc / "a-b.service.d" / "20-x.conf", "[Service]\nEnvironment=A=etc\n")
    folders.write(folders.run / "a-b.service.d" / "10-y.conf", "[Service]\nEnvironment=A=run B=run\n")
    folders.write(folders.run / "a-b.service.d" / "note.txt", "no drop-in\n")
    folders.write(folders.etc / "a-.service.d" / "15-z.conf", "[Service]\nEnvironment=C=prefix\n")
    folders.write(folders.etc / "a-.service.d" / "10-y.conf", "[Service]\nEnvironment=B=prefix\n")
    folders.write(folders.etc / "service.d" / "99-all.conf", "[Service]\nEnvironment=D=all\n")
    folders.write(folders.etc / "service.d" / "15-z.conf", "[Service]\nEnvironment=C=all\n")
    unit = folders.load("a-b")
    assert [os.path.relpath(path, folders.etc.parent) for path in unit.files] == [
        "usr/a-b.service",
        "etc/a-.service.d/10-y.conf",
        "etc/a-.service.d/15-z.conf",
        "etc/a-b.service.d/20-x.conf",
        "etc/service.d/99-all.conf",
    ]
    assert unit.environment == {"A": "etc", "B": "prefix", "C": "prefix", "D": "all"}


def test_a_masked_drop_in_is_none(folders):
    folders.write(folders.usr / "a.service", UNIT.format("a"))
    folders.write(folders.usr / "a.service.d" / "x.conf", "[Service]\nEnvironment=A=1\n")
    assert folders.load("a").environment == {"A": "1"}
    (folders.etc / "a.service.d").mkdir()
    (folders.etc / "a.service.d" / "x.conf").symlink_to("/dev/null")
    assert folders.load("a").environment == {}


def test_templates_and_instances(folders):
    folders.write(folders.usr / "w@.service", "[Service]\nExecStart=/bin/%i\n")
    folders.write(folders.usr / "w@.service.d" / "a.conf", "[Service]\nEnvironment=A=%i\n")
    folders.write(folders.etc / "w@x.service.d" / "b.conf", "[Service]\nEnvironment=B=x\n")
    unit = folders.load("w@x")
    assert (unit.name, program(unit), unit.environment) == ("w@x.service", "x", {"A": "x", "B": "x"})
    assert folders.load("w@y").environment == {"A": "y"}
    folders.write(folders.usr / "two-w@.service", "[Service]\nExecStart=/bin/%i\n")
    for number, name in enumerate(("two-w@", "two-@x", "two-@", "two-", "two-@y", "two")):
        folders.write(folders.etc / f"{name}.service.d" / f"{number}.conf", f"[Service]\nEnvironment=V_{number}=1\n")
    assert [*folders.load("two-w@x").environment] == ["V_0", "V_1", "V_2", "V_3"]
    folders.write(folders.run / "w@y.service", UNIT.format("own"))
    assert program(folders.load("w@y")) == "own"
    with pytest.raises(UnitError, match="is a template"):
        folders.load("w@.service")


def test_aliases(folders):
    folders.write(folders.usr / "real.service", UNIT.format("real"))
    folders.write(folders.usr / "alias.service.d" / "x.conf", "[Service]\nEnvironment=A=alias\n")
    (folders.etc / "alias.service").symlink_to("../usr/real.service")
    (folders.etc / "second.service").symlink_to("alias.service")
    for name in ("alias", "second", "real"):
        unit = folders.load(name)
        assert (unit.name, unit.environment.get("A", "")) == ("real.service", "alias"), name


def test_an_alias_of_a_template(folders):
    folders.write(folders.usr / "real@.service", "[Service]\nExecStart=/bin/%i\n")
    (folders.etc / "alias@.service").symlink_to(folders.usr / "real@.service")
    (folders.etc / "real@own.service").symlink_to(folders.usr / "real@.service")
    assert (folders.load("alias@x").name, program(folders.load("alias@x"))) == ("real@x.service", "x")
    assert program(folders.load("real@own")) == "own"


def test_a_link_to_a_file_elsewhere_is_the_unit_itself(folders, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.service").write_text(UNIT.format("elsewhere"))
    (folders.etc / "a.service").symlink_to(tmp_path / "elsewhere" / "other.service")
    assert (folders.load("a").name, program(folders.load("a"))) == ("a.service", "elsewhere")


def test_links_that_lead_nowhere_or_in_a_circle(folders):
    (folders.etc / "a.service").symlink_to("b.service")
    (folders.etc / "b.service").symlink_to("a.service")
    (folders.etc / "c.service").symlink_to("none.service")
    folders.write(folders.usr / "d@.service", UNIT.format("d"))
    (folders.etc / "d.service").symlink_to("../usr/d@.service")
    with pytest.raises(UnitError, match="leads from one link to the next, more than 8 times"):
        folders.load("a")
    with pytest.raises(unit_files.NoSuchUnit):
        folders.load("c")
    with pytest.raises(UnitError, match="a unit of another kind"):
        folders.load("d")


@pytest.mark.parametrize("mask", [lambda path: path.symlink_to("/dev/null"), lambda path: path.touch()])
def test_masked(folders, mask):
    folders.write(folders.usr / "a.service", UNIT.format("a"))
    assert folders.loader().names() == ["a.service"]
    mask(folders.etc / "a.service")
    with pytest.raises(unit_files.Masked, match=r"a.service is masked by .*/etc/a.service"):
        folders.load("a")
    assert folders.loader().names() == []


def test_names(folders):
    for name in ("b.service", "a.service", "t@.service", "x.socket", "no name.service", "c.conf"):
        folders.write(folders.usr / name, UNIT.format("a"))
    (folders.usr / "folder.service").mkdir()
    assert folders.loader().names() == ["a.service", "b.service", "t@.service"]
    assert folders.loader().names(".socket") == ["x.socket"]


def test_links_of_dependencies(folders):
    folders.write(folders.usr / "a.service", "[Unit]\nWants=w.service\n" + UNIT.format("a"))
    for kind, name in (("wants", "x.service"), ("requires", "y.service"), ("wants", "off.service")):
        (folders.etc / f"a.service.{kind}").mkdir(exist_ok=True)
        (folders.etc / f"a.service.{kind}" / name).symlink_to("/dev/null" if name == "off.service" else f"../{name}")
    unit = folders.load("a")
    assert (unit.dependencies.wants, unit.dependencies.requires) == (("w.service", "x.service"), ("y.service",))
    assert unit.origins["Unit.Requires=y.service"].file == str(folders.etc / "a.service.requires" / "y.service")


def test_sockets(folders):
    folders.write(folders.usr / "a.socket", "[Socket]\nListenStream=80\n")
    assert folders.loader().load_socket("a").service == "a.service"
    with pytest.raises(UnitError, match=r"is no unit that ends in \.service"):
        folders.load("a.socket")


# Who may write what runs


def test_a_file_that_others_could_write(folders):
    path = folders.usr / "a.service"
    folders.write(path, UNIT.format("a"))
    assert program(folders.load("a")) == "a"
    path.chmod(0o664)
    with pytest.raises(UnitError, match=r"a.service may be written by others \(mode 0664\)"):
        folders.load("a")
    path.chmod(0o644)
    folders.usr.chmod(0o777)
    with pytest.raises(UnitError, match=r"/usr may be written by others \(mode 0777\)"):
        folders.load("a")
    folders.usr.chmod(0o755)
    folders.write(folders.usr / "a.service.d" / "x.conf", "[Service]\n")
    (folders.usr / "a.service.d").chmod(0o775)
    with pytest.raises(UnitError, match=r"a.service.d may be written by others"):
        folders.load("a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user(folders):
    path = folders.usr / "a.service"
    folders.write(path, UNIT.format("a"))
    os.chown(path, 4242, 4242)
    with pytest.raises(UnitError, match=r"a.service belongs to another user \(uid 4242\)"):
        folders.load("a")


def test_what_is_no_file(folders):
    os.mkfifo(folders.usr / "a.service")
    (folders.usr / "b.service").mkdir()
    for name, says in (("a", "this is no file"), ("b", "cannot be read")):
        with pytest.raises(UnitError, match=says):
            folders.load(name)


def test_the_usual_folders():
    path = unit_files.search_path()
    assert path[0].endswith("/units")
    assert any(folder.startswith("/usr/lib/systemd/") for folder in path)
