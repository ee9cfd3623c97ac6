from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from osmoda.host import features
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.freshness import Witness
from osmoda.sandbox.profile import Profile

TEXT = """schema = 1
tier = 1
[filesystem]
workspace = "direct"
read = ["{0}/granted", "{0}/link"]
deny = ["{0}/work/.env", "{0}/work/private"]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("granted", "target", "other", "work", "work/private"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "work" / ".env").write_text("secret")
    (tmp_path / "base.toml").write_text("schema = 1\ntier = 1\n")
    (tmp_path / "agent.toml").write_text('extends = "base.toml"\n' + TEXT.format(tmp_path))
    return tmp_path


@pytest.fixture
def witness(place: Path) -> Iterator[Witness]:
    profile = Profile.load(place / "agent.toml")
    found = Witness(profile, compile_profile(profile, features.probe()), os.fsencode(place / "work"))
    yield found
    found.close()


def moved(path: Path) -> None:
    path.rename(path.with_name(path.name + ".old"))
    path.mkdir()


def replaced(path: Path) -> None:
    """As an editor saves."""
    new = path.with_name("new")
    new.write_text(path.read_text())
    new.rename(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "profile": lambda place: replaced(place / "agent.toml"),
    "profile in place": lambda place: (place / "agent.toml").write_text("schema = 1\n") and None,
    "what it extends": lambda place: replaced(place / "base.toml"),
    "a profile that is gone": lambda place: (place / "base.toml").unlink(),
    "a granted tree": lambda place: moved(place / "granted"),
    "a granted tree that is gone": lambda place: (place / "granted").rmdir(),
    "where a link leads": lambda place: (place / "link").unlink() or (place / "link").symlink_to("other"),
    "the workspace": lambda place: moved(place / "work"),
    "a denied file": lambda place: replaced(place / "work" / ".env"),
    "a denied file that is back under its name": lambda place: (
        os.link(place / "work" / ".env", place / "kept") or os.rename(place / "kept", place / "work" / ".env")
    ),
    "a denied folder": lambda place: (place / "work" / "private").rmdir() or (place / "work" / "private").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change(place: Path, witness: Witness, change: str) -> None:
    assert witness.holds()
    CHANGES[change](place)
    assert not witness.holds()


def test_what_is_no_change(place: Path, witness: Witness) -> None:
    """Work in the trees themselves is seen through the mounts."""
    (place / "granted" / "new").write_text("")
    (place / "work" / "new").write_text("")
    (place / "work" / "private" / "new").write_text("")
    (place / "unrelated").mkdir()
    assert witness.holds()


def test_an_edit_before_the_witness_was_called(place: Path) -> None:
    profile = Profile.load(place / "agent.toml")
    replaced(place / "agent.toml")
    (place / "agent.toml").write_text((place / "agent.toml").read_text() + "# edited\n")
    late = Witness(profile, compile_profile(profile, features.probe()), os.fsencode(place / "work"))
    assert not late.holds()
    late.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root: it mounts")
def test_a_mount_below_what_is_granted(place: Path, witness: Witness) -> None:
    for folder, holds in ((place / "other", True), (place / "granted", False)):
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
        try:
            assert witness.holds() == holds
        finally:
            subprocess.run(["umount", folder], check=True)
    assert witness.holds()
