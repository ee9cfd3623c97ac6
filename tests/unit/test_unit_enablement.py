"""Enable and disable: links that come and go together."""

from __future__ import annotations

import os

import pytest

from osmoda.supervisor.errors import SupervisorError, UnitError
from osmoda.supervisor.units import enablement
from osmoda.supervisor.units.loading import Loader
from tests.unit_hosts import HOST

UNIT = "[Service]\nExecStart=/bin/true\n[Install]\n"


class Units:
    def __init__(self, top):
        self.etc, self.usr = top / "etc", top / "usr"
        self.etc.mkdir()
        self.usr.mkdir()

    def write(self, name, install, folder=None):
        ((folder or self.usr) / name).write_text(UNIT + install)

    @property
    def loader(self):
        return Loader([str(self.etc), str(self.usr)], HOST)

    def links(self):
        return {
            os.path.relpath(os.path.join(folder, name), self.etc): os.readlink(os.path.join(folder, name))
            for folder, _, names in os.walk(self.etc)
            for name in names
            if os.path.islink(os.path.join(folder, name))
        }

    def entries(self):
        return sorted(
            os.path.relpath(os.path.join(one, name), self.etc)
            for one, folders, names in os.walk(self.etc)
            for name in (*folders, *names)
        )


@pytest.fixture
def units(tmp_path):
    return Units(tmp_path)


def test_links_come_and_go(units):
    units.write("a.service", "WantedBy=multi-user.target\nRequiredBy=b.service\nAlias=c.service\n")
    file = str(units.usr / "a.service")
    made = enablement.enable(units.loader, "a")
    assert units.links() == {
        "multi-user.target.wants/a.service": file,
        "b.service.requires/a.service": file,
        "c.service": file,
    }
    assert {link.path for link in made} == {str(units.etc / name) for name in units.links()}
    assert enablement.is_enabled(units.loader, "a")
    assert units.loader.load("c").name == "a.service"
    assert enablement.enable(units.loader, "a") == []
    removed = enablement.disable(units.loader, "a")
    assert {link.path for link in removed} == {link.path for link in made}
    assert units.entries() == []
    assert not enablement.is_enabled(units.loader, "a")
    assert enablement.disable(units.loader, "a") == []


def test_other_units_stay_enabled(units):
    for name in ("a", "b"):
        units.write(f"{name}.service", "WantedBy=multi-user.target\n")
        enablement.enable(units.loader, name)
    enablement.disable(units.loader, "a")
    assert [*units.links()] == ["multi-user.target.wants/b.service"]


def test_an_instance_and_a_template(units):
    units.write("w@.service", "WantedBy=multi-user.target\nDefaultInstance=main\n")
    units.write("x@.service", "WantedBy=multi-user.target\n")
    enablement.enable(units.loader, "w@one")
    enablement.enable(units.loader, "w@.service")
    file = str(units.usr / "w@.service")
    assert units.links() == {f"multi-user.target.wants/w@{name}.service": file for name in ("one", "main")}
    enablement.disable(units.loader, "w@one")
    assert [*units.links()] == ["multi-user.target.wants/w@main.service"]
    enablement.disable(units.loader, "w@.service")
    assert units.links() == {}
    with pytest.raises(UnitError, match=r"x@.service:4: x@.service is a template without DefaultInstance="):
        enablement.enable(units.loader, "x@.service")


def test_units_that_belong_together(units):
    units.write("a.service", "WantedBy=multi-user.target\nAlso=a.socket\n")
    (units.usr / "a.socket").write_text(
        "[Socket]\nListenStream=80\n[Install]\nWantedBy=sockets.target\nAlso=a.service\n"
    )
    enablement.enable(units.loader, "a")
    assert sorted(units.links()) == ["multi-user.target.wants/a.service", "sockets.target.wants/a.socket"]
    enablement.disable(units.loader, "a")
    assert units.entries() == []


def test_a_unit_without_an_install_section(units):
    (units.usr / "a.service").write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(UnitError, match=r"a has nothing in \[Install\]"):
        enablement.enable(units.loader, "a")


def test_nothing_is_made_where_something_else_stands(units):
    units.write("a.service", "WantedBy=multi-user.target\nAlias=b.service\n")
    units.write("b.service", "", units.etc)
    before = units.entries()
    with pytest.raises(SupervisorError, match=r"etc/b.service is there already, and does not lead to .*usr/a.service"):
        enablement.enable(units.loader, "a")
    assert units.entries() == before


def test_links_are_taken_back_when_one_cannot_be_made(units):
    units.write("a.service", "WantedBy=first.target second.target\n")
    (units.etc / "second.target.wants").write_text("no folder\n")
    with pytest.raises(SupervisorError, match=r"second.target.wants.* cannot be made"):
        enablement.enable(units.loader, "a")
    assert units.links() == {}
    assert (units.etc / "second.target.wants").read_text() == "no folder\n"


def test_an_alias_of_another_kind(units):
    units.write("a.service", "Alias=a.socket\n")
    with pytest.raises(UnitError, match=r"a.service:4: Alias=a.socket is a unit of another kind"):
        enablement.enable(units.loader, "a")


def test_also_ends(units):
    for number in range(enablement.MOST_ALSO + 1):
        units.write(f"a{number}.service", f"WantedBy=x.target\nAlso=a{number + 1}.service\n")
    with pytest.raises(UnitError, match="Also= leads to more than 64 units"):
        enablement.enable(units.loader, "a0")
    assert units.entries() == []


def test_another_folder(units, tmp_path):
    units.write("a.service", "WantedBy=multi-user.target\n")
    enablement.enable(units.loader, "a", str(tmp_path / "other"))
    assert (tmp_path / "other" / "multi-user.target.wants" / "a.service").is_symlink()
    assert enablement.is_enabled(units.loader, "a", str(tmp_path / "other"))
    assert not enablement.is_enabled(units.loader, "a")
