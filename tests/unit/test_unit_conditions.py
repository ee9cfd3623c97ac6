"""Conditions of a start, on this host."""

from __future__ import annotations

import platform
import socket

import pytest

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import conditions
from tests.unit_hosts import service


def given(*lines):
    return service("[Unit]\n" + "\n".join(lines) + "\n[Service]\nExecStart=/bin/true\n").conditions


def unmet(*lines, kind="Condition"):
    found = conditions.unmet(given(*lines), kind)
    return found and f"{found.name}={found.value}"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "holds", "does_not"),
    [
        ("PathExists", "file", "none"),
        ("PathExistsGlob", "fi*", "no*"),
        ("PathIsDirectory", "folder", "file"),
        ("PathIsSymbolicLink", "link", "file"),
        ("PathIsReadWrite", "folder", "none"),
        ("DirectoryNotEmpty", "", "folder"),
        ("FileNotEmpty", "file", "empty"),
    ],
)
def test_paths(place, name, holds, does_not):
    assert unmet(f"Condition{name}={place}/{holds}") is None
    assert unmet(f"Condition{name}=!{place}/{does_not}") is None
    assert unmet(f"Condition{name}={place}/{does_not}") == f"Condition{name}={place}/{does_not}"
    assert unmet(f"Assert{name}={place}/{does_not}", kind="Assert") is not None
    assert unmet(f"Assert{name}={place}/{does_not}") is None


def test_what_else_is_asked(place, monkeypatch):
    monkeypatch.setenv("MODE", "night")
    (place / "file").chmod(0o755)
    assert unmet("ConditionPathIsMountPoint=/proc", f"ConditionPathIsMountPoint=!{place}") is None
    assert unmet(f"ConditionFileIsExecutable={place}/file", f"ConditionFileIsExecutable=!{place}/empty") is None
    assert (
        unmet("ConditionEnvironment=MODE", "ConditionEnvironment=MODE=night", "ConditionEnvironment=!MODE=day") is None
    )
    assert unmet(f"ConditionHost={socket.gethostname()[:1]}*", "ConditionHost=!no.such.host") is None
    assert unmet("ConditionArchitecture=native", "ConditionArchitecture=!s390x") is None
    assert platform.machine() != "x86_64" or unmet("ConditionArchitecture=x86-64") is None
    assert unmet("ConditionKernelCommandLine=!no.such.option") is None


def test_one_of_several(place):
    alternatives = f"ConditionPathExists=|{place}/none", f"ConditionPathExists=|!{place}/file"
    assert unmet(*alternatives) == f"ConditionPathExists=|{place}/none"
    assert unmet(*alternatives, f"ConditionPathExists=|{place}/file") is None
    assert unmet(*alternatives, f"ConditionPathExists=|{place}/file", "ConditionPathExists=/none") is not None


def test_an_empty_value_takes_back_all_of_its_kind():
    found = given("ConditionHost=a", "AssertHost=b", "ConditionPathExists=", "ConditionHost=c")
    assert [(one.name, one.value) for one in found] == [("AssertHost", "b"), ("ConditionHost", "c")]


def test_specifiers():
    assert given("ConditionPathExists=!/etc//%p.off")[0].value == "!/etc/agent.off"


def test_a_value_of_the_wrong_form():
    with pytest.raises(UnitError, match="ConditionPathExists=etc is no absolute path"):
        given("ConditionPathExists=etc")


def test_every_test_can_be_made():
    for name, (_, test) in conditions.TESTS.items():
        assert test("/no/such/thing") is False, name
