"""Names that are not UTF-8, as arguments and as files: what prints them escapes them, and what can use them does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.ledgers import directory_of
from tests.worlds import World

NAME = os.fsdecode(b"b\xff")
SHOWN = rb"b\udcff"
PROFILE = (
    'schema = 1\ntier = 1\n[filesystem]\nread = ["notes"]\ndeny = ["notes/secret"]\n[network]\nallow = ["a.test"]\n'
)
# What a command prints is the same for everybody.
one_user = pytest.mark.parametrize("world", ["user"], indirect=True)
# Not one of the spellings for which Python lets any byte through (PEP 538): the standard output is strict.
STRICT = {"LC_ALL": "C.UTF8"}


@pytest.fixture
def folder(world: World) -> Path:
    """A folder with such a name, and a profile and notes in it that have one, too."""
    found = world.tmp / NAME
    (found / "notes").mkdir(parents=True)
    (found / "notes" / NAME).write_text("a note\n")
    (found / "notes" / "secret").write_text("a secret\n")
    (found / f"{NAME}.toml").write_text(PROFILE)
    world.own(found)
    return found


def prints(world: World, command: str, *words: str | Path, code: int = 0) -> bytes:
    """What a command prints: the name in it is escaped."""
    done = world.run(World.osmoda_argv(*words, command=command), text=False, env=STRICT)
    printed: bytes = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert b"Traceback" not in printed
    assert SHOWN in printed
    assert b"\xff" not in printed
    return printed


@one_user
def test_osmoda_sandbox(world: World, folder: Path) -> None:
    profile = folder / f"{NAME}.toml"
    assert prints(world, "osmoda-sandbox", "check", profile).endswith(b".toml: OK\n")
    assert b"there is no verb" in prints(world, "osmoda-sandbox", NAME, code=125)
    assert b"may be read" in prints(world, "osmoda-sandbox", "why", profile, "--path", folder / "notes" / NAME)
    prints(world, "osmoda-sandbox", "run", "--tier", "2", "--", NAME, code=127)


@pytest.mark.parametrize("profile", [True, False])
def test_what_has_such_a_name_is_granted_and_denied_like_anything_else(
    world: World, folder: Path, profile: bool
) -> None:
    options = ["--profile", str(folder / f"{NAME}.toml")] if profile else ["--tier", "1", "--read", str(folder)]
    notes = folder / "notes"
    done = world.osmoda("run", *options, "--", "cat", notes / NAME, notes / "secret")
    assert (done.returncode, done.stdout) == ((1, "a note\n") if profile else (0, "a note\na secret\n"))


@one_user
def test_osmoda_egress(world: World, folder: Path) -> None:
    profile = folder / f"{NAME}.toml"
    assert b"allow a.test" in prints(world, "osmoda-egress", "list", profile)
    assert b"is allowed" in prints(world, "osmoda-egress", "test", profile, "https://a.test")
    assert b"added to network.allow" in prints(world, "osmoda-egress", "allow", profile, "b.test")
    assert b"is no rule" in prints(world, "osmoda-egress", "deny", profile, NAME, code=125)


@one_user
def test_osmoda_ledger(recorded: World, folder: Path) -> None:
    world = recorded
    copy = folder / "ledger"
    shutil.copytree(directory_of(world), copy)
    (copy / NAME).touch()
    world.own(copy)
    for verb in ("show", "checkpoint", "export"):
        done = world.run(World.osmoda_argv(verb, "--ledger", copy, command="osmoda-ledger"), env=STRICT, check=True)
        assert done.stdout.count("\n") == 1
    found = prints(world, "osmoda-ledger", "verify", "--ledger", copy, code=1)
    assert SHOWN + b": it is no file of a ledger's\n" in found
    assert b"there is no ledger in" in prints(world, "osmoda-ledger", "show", "--ledger", folder / "notes", code=125)
    assert b"No such file" in prints(world, "osmoda-ledger", "verify", "--checkpoint", NAME * 2, code=125)


@one_user
def test_osmoda_watch(world: World, folder: Path) -> None:
    for name, line in (("good", "ExecStart=/bin/true"), ("bad", "ExecStrat=/bin/true")):
        (folder / f"{name}.service").write_text(f"[Service]\n{line}\n")
    world.own(folder)
    assert b"good.service" in prints(world, "osmoda-watch", "check", "good", "--units", folder)
    assert b"bad.service:2" in prints(world, "osmoda-watch", "check", "bad", "--units", folder, code=1)
    assert b"has no log" in prints(world, "osmoda-watch", "logs", NAME, code=125)
    assert b"is not UTF-8" in prints(world, "osmoda-watch", "start", NAME, code=125)
