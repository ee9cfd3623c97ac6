"""Links put in the way while the daemon copies an agent's data, by whoever may write around it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from osmoda.supervisor.switch import data, tree
from osmoda.supervisor.switch.errors import SwitchError


class Place:
    """`home` is the attacker's, with the data of an agent in it; `victim` is not, and the daemon may write it."""

    def __init__(self, top: Path) -> None:
        self.home, self.victim, self.store = top / "home", top / "victim", top / "store"
        self.data = self.home / "data"
        for folder in (self.data / "inner", self.victim, self.store):
            folder.mkdir(parents=True)
        (self.data / "inner" / "file").write_text("of the agent")
        (self.data / "first").write_text("of the agent")
        (self.victim / "precious").write_text("of the host")

    @property
    def copy(self) -> str:
        return str(self.store / "data")

    def snapshot(self) -> None:
        data.snapshot(self.copy, 1, data.folders([str(self.data)]))

    def replace(self, path: Path) -> None:
        """Have the name of a folder lead to the victim's."""
        path.rename(path.with_name(path.name + ".moved"))
        path.symlink_to(self.victim)

    def assert_unharmed(self) -> None:
        assert os.listdir(self.victim) == ["precious"]
        assert (self.victim / "precious").read_text() == "of the host"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_data_is_put_back_where_nobody_interferes(place: Place) -> None:
    place.snapshot()
    (place.data / "first").write_text("of the new generation")
    assert data.restore(place.copy, 1) == [str(place.data)]
    assert (place.data / "first").read_text() == "of the agent"
    assert (place.data / "inner" / "file").read_text() == "of the agent"
    assert (place.home / "data.set-aside-by-switch-1" / "first").read_text() == "of the new generation"


def test_by_their_names_all_of_these_lead_to_the_victim(place: Place) -> None:
    """The control: whoever writes, copies or removes what a name leads to does it there."""
    place.replace(place.data)
    (place.data / "planted").write_text("of the agent")
    assert sorted(os.listdir(place.victim)) == ["planted", "precious"]
    shutil.copytree(place.data, place.copy)
    assert Path(place.copy, "precious").read_text() == "of the host"
    for name in os.listdir(place.data):
        (place.data / name).unlink()
    assert os.listdir(place.victim) == []


@pytest.mark.parametrize("below", ["", "inner"])
def test_a_folder_of_the_copy_becomes_a_link_while_it_is_filled(
    place: Place, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.snapshot()
    real, done = os.open, []

    def opened(path, flags, *rest, **named):
        coming = place.home / "data.restored-by-switch-1.partial" / below
        if flags & os.O_CREAT and not done and coming.is_dir():
            done.append(path)
            place.replace(coming)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", opened)
    with contextlib.suppress(OSError):  # it has noticed; what counts is where it has written
        data.restore(place.copy, 1)
    assert done
    place.assert_unharmed()


def test_the_folder_around_it_becomes_a_link(place: Place, tmp_path: Path) -> None:
    place.snapshot()
    (place.victim / "data").mkdir()
    place.replace(place.home)
    with pytest.raises(NotADirectoryError):
        data.restore(place.copy, 1)
    assert sorted(os.listdir(place.victim)) == ["data", "precious"]


def test_data_that_is_a_link_elsewhere_is_not_copied(place: Place) -> None:
    trees = data.folders([str(place.data)])
    place.replace(place.data)
    with pytest.raises(SwitchError, match="symbolic link out of its folder"):
        data.folders([str(place.data)])
    with pytest.raises(NotADirectoryError):
        data.snapshot(place.copy, 1, trees)
    assert os.listdir(place.store) == []


def test_a_folder_becomes_a_link_while_it_is_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = os.listdir, []

    def listed(path):
        if not done:
            done.append(path)
            place.replace(place.data)
        return real(path)

    monkeypatch.setattr(os, "listdir", listed)
    with pytest.raises(NotADirectoryError):
        tree.remove(str(place.data))
    assert done
    monkeypatch.undo()
    place.assert_unharmed()


def test_a_file_that_grows_as_fast_as_it_is_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy ends, and does not fill the disk."""
    growing = place.data / "first"
    stop, real = threading.Event(), tree._copy_content
    copied = []

    def content(from_fd, to_fd, *size):
        with open(growing, "ab", buffering=0) as file:
            file.write(bytes(1 << 16))
        monkeypatch.setattr(os, "copy_file_range", growth(file=growing, real=os.copy_file_range, stop=stop))
        real(from_fd, to_fd, *size)
        copied.append(os.fstat(to_fd).st_size)

    def no_clones(*_):
        raise OSError(errno.EOPNOTSUPP, "this file system shares no blocks")

    monkeypatch.setattr(tree.fcntl, "ioctl", no_clones)
    monkeypatch.setattr(tree, "_copy_content", content)
    with pytest.raises(SwitchError, match="has changed while it was copied"):
        place.snapshot()
    assert copied == [len("of the agent")]
    assert not stop.is_set()


def growth(file: Path, real, stop: threading.Event):
    """copy_file_range(2) beside somebody who appends; `stop` is set when it would go on for ever."""
    calls = []

    def copy(*arguments):
        calls.append(arguments)
        if len(calls) > 100:
            stop.set()
            return 0
        with open(file, "ab", buffering=0) as grows:
            grows.write(bytes(1 << 16))
        return real(*arguments)

    return copy


def test_a_tree_too_deep_to_be_removed_is_not_copied(place: Place) -> None:
    deep = place.data
    for _ in range(300):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(SwitchError, match="more than 256 folders within each other"):
        place.snapshot()
    assert os.listdir(place.store) == []


@pytest.mark.parametrize("planted", ["set-aside", "restored"])
def test_a_name_that_was_there_before_is_no_sign_that_data_was_put_back(place: Place, planted: str) -> None:
    place.snapshot()
    (place.data / "first").write_text("of the new generation")
    (place.home / f"data.{planted}-by-switch-1").mkdir()
    with pytest.raises(SwitchError, match=f"data.{planted}-by-switch-1 was there before data could be put back"):
        data.restore(place.copy, 1)
    assert (place.data / "first").read_text() == "of the new generation"
    # Once it is taken away, the next attempt does it.
    tree.remove(str(place.home / f"data.{planted}-by-switch-1"))
    assert data.restore(place.copy, 1) == [str(place.data)]
    assert (place.data / "first").read_text() == "of the agent"
