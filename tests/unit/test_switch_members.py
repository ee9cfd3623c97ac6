"""Systems as members of a switch: links as Nix keeps them, and a script that stands for switch-to-configuration."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.members import NixosSystem

SCRIPT = """\
#!/bin/sh
echo "$1 {number}" >> "{top}/activated"
[ -e "{top}/refuses-{number}" ] && {{ echo "unit failed: nginx.service" >&2; exit 4; }}
exit 0
"""


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """As /nix/var/nix/profiles: system -> system-41-link -> a path of the store."""
    top = tmp_path / "profiles"
    top.mkdir()
    for number in (41, 42):
        system = tmp_path / "store" / f"{number}-nixos-system"
        (system / "bin").mkdir(parents=True)
        script = system / "bin" / "switch-to-configuration"
        script.write_text(SCRIPT.format(number=number, top=tmp_path))
        script.chmod(0o755)
        (top / f"system-{number}-link").symlink_to(system)
    (top / "system").symlink_to("system-41-link")
    return top


def activated(profiles: Path) -> list[str]:
    return (profiles.parent / "activated").read_text().splitlines()


def test_a_generation_is_the_link_and_then_the_script(profiles):
    system = NixosSystem(str(profiles))
    assert system.current() == 41
    asyncio.run(system.activate(42))
    assert system.current() == 42
    assert os.readlink(profiles / "system") == "system-42-link"
    assert activated(profiles) == ["switch 42"]
    asyncio.run(system.activate(42))
    assert activated(profiles) == ["switch 42"] * 2, "the link says nothing about whether the script had run"


def test_a_script_that_fails_is_told_with_its_last_words(profiles):
    (profiles.parent / "refuses-42").touch()
    with pytest.raises(SwitchError, match=r"switch ended with 4: unit failed: nginx\.service"):
        asyncio.run(NixosSystem(str(profiles)).activate(42))


def test_a_generation_that_is_not_there(profiles):
    with pytest.raises(SwitchError, match="generation 43 of the system cannot be activated: there is no"):
        NixosSystem(str(profiles)).verify(43)


def test_nix_is_waited_for_by_nobody(profiles):
    with open(profiles / "system.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SwitchError, match="Nix is changing the system's generations"):
            asyncio.run(NixosSystem(str(profiles)).activate(42))
    assert os.readlink(profiles / "system") == "system-41-link"


def test_a_host_without_nixos(tmp_path):
    with pytest.raises(SwitchError, match="this host has no NixOS system to switch"):
        NixosSystem(str(tmp_path)).current()


def test_a_link_that_nix_has_not_made(profiles):
    (profiles / "system").unlink()
    (profiles / "system").symlink_to("elsewhere")
    with pytest.raises(SwitchError, match="no generation of a NixOS system"):
        NixosSystem(str(profiles)).current()
