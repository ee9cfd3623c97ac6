"""What virtual machines boot is made once, and whole or not at all."""

from __future__ import annotations

import threading
import zipfile

import pytest

from tests.vm import supplies


def test_it_is_made_once(tmp_path):
    place = tmp_path / "supplies" / "thing"
    with supplies.being_made(place) as new:
        assert new is not None
        (new / "file").write_text("whole")
        assert not place.exists()
    assert (place / "file").read_text() == "whole"
    with supplies.being_made(place) as new:
        assert new is None


def test_what_was_cut_short_is_not_taken_for_whole(tmp_path):
    place = tmp_path / "thing"

    def run_out_of_space():
        with supplies.being_made(place) as new:
            (new / "file").write_text("half")
            supplies.run("sh", "-c", "echo no space left >&2; exit 3")

    with pytest.raises(supplies.Missing):
        run_out_of_space()
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    (tmp_path / ".thing-killed").mkdir()  # as after a SIGKILL
    with supplies.being_made(place) as new:
        (new / "file").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".thing.lock", "thing"]


def test_of_two_at_a_time_one_waits_for_the_other(tmp_path):
    place = tmp_path / "thing"
    given = []

    def second():
        with supplies.being_made(place) as new:
            given.append(new)

    with supplies.being_made(place) as new:
        thread = threading.Thread(target=second)
        thread.start()
        (new / "file").write_text("whole")
        assert given == []
    thread.join()
    assert given == [None]


def test_a_failure_says_what_failed_and_why(tmp_path):
    with pytest.raises(supplies.Missing, match=r"^sh failed with status 3: no space left$"):
        supplies.run("sh", "-c", "echo no space left >&2; exit 3")
    with pytest.raises(supplies.Missing, match=r"^no-such-program is not installed; packaging/bootstrap test"):
        supplies.run("no-such-program")


def test_another_requirement_asks_for_another_root_and_other_code_does_not(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)

    def recipe(requirement: str, code: str) -> str:
        wheel = tmp_path / "osmoda-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("osmoda/__init__.py", code)
            archive.writestr("osmoda-1.dist-info/METADATA", f"Name: osmoda\nRequires-Dist: {requirement}\n\n{code}\n")
        return supplies.recipe(wheel)

    first = recipe("rich>=13", "one")
    assert recipe("rich>=13", "two") == first
    assert recipe("rich>=14", "one") != first
    (tmp_path / "lock").write_text("rich==14.0")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "lock"))
    assert recipe("rich>=13", "one") != first


def test_what_is_no_wheel_is_named(tmp_path):
    (tmp_path / "wheel").write_text("no zip file")
    with pytest.raises(supplies.Missing, match=r"/wheel is no wheel: File is not a zip file"):
        supplies.recipe(tmp_path / "wheel")
