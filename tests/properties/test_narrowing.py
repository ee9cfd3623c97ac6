"""Directives of a unit only narrow what its profile grants, whatever that is and in whatever order they stand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.sandbox import profile_file, tiers
from osmoda.sandbox.grants import excess
from osmoda.sandbox.profile import Profile
from osmoda.supervisor.confining.confinement import Confined, confine
from osmoda.supervisor.errors import UnitError
from tests.generated_profiles import EXAMPLES, WORKSPACE, Table, examples, tables
from tests.generated_profiles import text as profile_text
from tests.written_units import unit

some_examples = settings(examples, max_examples=EXAMPLES if EXAMPLES > 200 else 40)

# Those whose rules change the profile; {0} is a path of the world.
DIRECTIVES = (
    "ProtectSystem=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "ReadOnlyPaths={0}",
    "ReadWritePaths={0}",
    "InaccessiblePaths={0}",
    "InaccessiblePaths=-/nowhere",
    "BindReadOnlyPaths={0}",
    "TemporaryFileSystem={0}:ro",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "IPAddressDeny=10.0.0.0/8",
    "IPAddressAllow=localhost",
    "RestrictAddressFamilies=AF_INET",
    "RestrictAddressFamilies=~AF_UNIX",
    "SystemCallFilter=~@chown",
    "SystemCallFilter=@system-service",
    "ProtectKernelModules=yes",
    "RestrictRealtime=yes",
    "MemoryMax=64M",
    "TasksMax=9",
    "CPUQuota=10%",
    "LimitNOFILE=32",
    "LimitCORE=infinity",
)
PATHS = ("a", "a/b", "a/b/f", "w", "w/x", "ws", "ws/secret", "ab/f")
lines = st.lists(
    st.builds(
        lambda line, path: line.replace("{0}", f"{{{path}}}"), st.sampled_from(DIRECTIVES), st.sampled_from(PATHS)
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


def confined(table: Table, given_lines: list[str], files: Path) -> tuple[Confined | str, Profile]:
    """What the unit of these lines runs under, or why it is refused; and its profile."""
    profile = files / "profile.toml"
    profile.write_text(profile_text(table))
    text = "\n".join(given_lines)
    for path in PATHS:
        text = text.replace(f"{{{path}}}", str(files / path))
    source = f"[Service]\nWorkingDirectory={files / WORKSPACE}\n{text}\n[X-Osmoda]\nProfile={profile}\n"
    found = unit(source, files / "agent.service", write=True)
    loaded = profile_file.load(str(profile))
    try:
        return confine(found), loaded
    except UnitError as error:
        return str(error), loaded


@some_examples
@given(table=tables(1, 2), given_lines=lines)
def test_a_directive_only_takes_away(table: Table, given_lines: list[str], files: Path) -> None:
    found, base = confined(table, given_lines, files)
    if isinstance(found, str):
        assert "would grant" not in found
        return
    assert found.profile.tier == base.tier
    assert excess(found.profile, with_workspace(base, files)) == ()
    own = {path for path, _ in found.profile.files}
    assert own == {path for path, _ in base.files}
    if found.profile.filesystem.workspace == base.filesystem.workspace:
        # Within its ceiling as well, which a workspace that became a tree to read may lie outside of.
        assert excess(found.profile, tiers.ceiling(base.tier)) == ()


def with_workspace(base: Profile, files: Path) -> Profile:
    """`base`, with its workspace as a tree that is written."""
    if base.filesystem.workspace == "none":
        return base
    write = (*base.filesystem.write, os.path.realpath(files / WORKSPACE))
    return replace(base, filesystem=replace(base.filesystem, write=write))


@some_examples
@given(table=tables(1, 2), given_lines=lines)
def test_their_order_does_not_matter(table: Table, given_lines: list[str], files: Path) -> None:
    # Of one directive the last line holds, or its lines are a list that is read in order, as systemd does.
    ordered = [*{line.partition("=")[0]: line for line in given_lines}.values()]
    one, _ = confined(table, ordered, files)
    other, _ = confined(table, ordered[::-1], files)
    assert kind(one) == kind(other)


def kind(found: Confined | str) -> Any:
    return "refused" if isinstance(found, str) else (found.profile.digest, found.workspace)
