from __future__ import annotations

import os
import pwd
import stat

import pytest

from osmoda.host import paths
from osmoda.host.paths import UntrustedDirectory, directory, own_directory

KINDS = ("runtime", "state", "cache", "config")
ROOTS = {"runtime": "/run", "state": "/var/lib", "cache": "/var/cache", "config": "/etc"}
XDG = {
    "runtime": "XDG_RUNTIME_DIR",
    "state": "XDG_STATE_HOME",
    "cache": "XDG_CACHE_HOME",
    "config": "XDG_CONFIG_HOME",
}
BELOW_HOME = {"state": ".local/state", "cache": ".cache", "config": ".config"}


@pytest.fixture
def environment(monkeypatch):
    """The environment as `paths` sees it; empty at first."""
    variables: dict[bytes, bytes] = {}
    monkeypatch.setattr(paths.posix, "environ", variables)
    return lambda **values: variables.update({name.encode(): value.encode() for name, value in values.items()})


def is_user(monkeypatch, uid=1234):
    monkeypatch.setattr(paths.posix, "geteuid", lambda: uid)


@pytest.mark.parametrize("kind", KINDS)
def test_root_uses_the_systems_directories_whatever_xdg_says(kind, environment, monkeypatch):
    is_user(monkeypatch, 0)
    environment(HOME="/home/u", **{XDG[kind]: "/xdg"})
    assert directory(kind) == f"{ROOTS[kind]}/osmoda"


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_uses_the_directories_of_xdg(kind, environment, monkeypatch):
    is_user(monkeypatch)
    environment(HOME="/home/u", **{XDG[kind]: "/xdg"})
    assert directory(kind) == "/xdg/osmoda"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uid", [0, 1234])
def test_a_directory_of_osmodas_own_variable_is_taken_as_it_is(kind, uid, environment, monkeypatch):
    is_user(monkeypatch, uid)
    environment(**{XDG[kind]: "/xdg", f"OSMODA_{kind.upper()}_DIR": "/here"})
    assert directory(kind) == "/here"


@pytest.mark.parametrize("kind", BELOW_HOME)
def test_a_relative_path_in_a_variable_counts_as_none(kind, environment, monkeypatch):
    is_user(monkeypatch)
    environment(HOME="/home/u/", **{XDG[kind]: "xdg", f"OSMODA_{kind.upper()}_DIR": "here"})
    assert directory(kind) == f"/home/u/{BELOW_HOME[kind]}/osmoda"


def test_without_a_runtime_directory_it_lies_right_below_tmp(environment, monkeypatch):
    """A folder between would be another user's to make first, and to swap what is in it."""
    is_user(monkeypatch)
    environment(HOME="/home/u")
    assert directory("runtime") == "/tmp/osmoda-1234"


def test_a_home_of_root_folder_gives_one_slash(environment, monkeypatch):
    is_user(monkeypatch)
    environment(HOME="/")
    assert directory("state") == "/.local/state/osmoda"


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_home_the_user_database_says_it(home, environment):
    environment(HOME=home)
    assert paths.home() == pwd.getpwuid(os.geteuid()).pw_dir


def test_without_home_and_without_entry_it_is_the_root(environment, monkeypatch):
    is_user(monkeypatch, 4000000000)
    environment()
    assert paths.home() == "/"


@pytest.fixture
def top(tmp_path, environment):
    environment(OSMODA_STATE_DIR=str(tmp_path / "a" / "state"))
    return tmp_path / "a" / "state"


def test_a_missing_directory_is_made_for_its_user_alone(top):
    old = os.umask(0)
    try:
        assert own_directory("state", "one/two") == f"{top}/one/two"
    finally:
        os.umask(old)
    for path in (top.parent, top, top / "one", top / "one" / "two"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
@pytest.mark.parametrize("below", ["", "one"])
def test_a_directory_that_others_may_write_to_is_not_used(top, mode, below):
    path = top / below
    path.mkdir(parents=True)
    path.chmod(mode)
    with pytest.raises(UntrustedDirectory, match=f"{path} is not a directory that only this user"):
        own_directory("state", below)


def test_nor_is_one_that_lies_in_such_a_directory(top):
    own_directory("state", "one")
    top.chmod(0o777)
    with pytest.raises(UntrustedDirectory, match=f"{top} "):
        own_directory("state", "one")


def test_a_directory_that_others_may_read_is_used(top):
    top.mkdir(parents=True)
    top.chmod(0o755)
    assert own_directory("state") == str(top)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
@pytest.mark.parametrize("below", ["", "one"])
def test_another_users_directory_is_not_used(top, below):
    (top / below).mkdir(parents=True, mode=0o700)
    os.chown(top / below, 1234, 1234)
    with pytest.raises(UntrustedDirectory):
        own_directory("state", below)


@pytest.mark.parametrize("below", ["", "one"])
def test_a_link_or_a_file_in_its_place_is_not_used(top, tmp_path, below):
    path = top / below
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedDirectory):
        own_directory("state", below)
    path.unlink()
    path.write_text("")
    with pytest.raises(UntrustedDirectory):
        own_directory("state", below)


def test_one_that_cannot_be_made_is_an_error_of_the_system(top):
    top.parent.write_text("a file where a folder should be")
    with pytest.raises(NotADirectoryError):
        own_directory("state")
