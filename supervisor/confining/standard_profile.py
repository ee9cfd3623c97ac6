"""What a unit gets that names no profile: tier 1, its working directory and interpreter to read, and no network.

Nothing to write, because a program that can change its own code decides with it what the next start runs; an agent
has a /tmp and a home of its own, which end with it. Who wants more writes a profile: `notes` say with which lines.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.sandbox.granted_paths import is_place, refusal, within
from osmoda.sandbox.learning.private import PrivatePlaces
from osmoda.sandbox.merge import Declaration
from osmoda.sandbox.tiers import ceiling
from osmoda.sandbox.toml_source import Position
from osmoda.supervisor.confining import installations
from osmoda.supervisor.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.units.unit import Exec, Origin, Unit

TIER = 1


def declaration(unit: Unit, tier: int) -> Declaration:
    """The grants of `unit` in `tier` (1 or 2).

    Raises UnitError for a working directory that is too much to show, and for a program that leads to what only the
    operator can grant.
    """
    places = PrivatePlaces()
    read: dict[str, Position] = {}
    if not _at_root(unit):
        read[_shown(unit, places, tier)] = position(origin(unit, "Service.WorkingDirectory"))
    lines = [*unit.exec_condition, *unit.exec_start_pre, *unit.exec_start, *unit.exec_start_post]
    lines += [*unit.exec_reload, *unit.exec_stop, *unit.exec_stop_post]
    for line in lines:
        for path in _needed(line, places, [os.path.realpath(path) for path in read]):
            read.setdefault(path, position(line.origin))
    kept = {path: at for path, at in read.items() if not any(o != path and within(path, o) for o in read)}
    key = ("filesystem", "read")
    first = next(iter(kept.values()), position(origin(unit, "Service.ExecStart")))
    return Declaration({key: first}, {key: kept}, {("tier",): (tier, _tier_position(unit))}, {})


def _needed(line: Exec, places: PrivatePlaces, shown: Sequence[str]) -> tuple[str, ...]:
    try:
        return installations.needed_by((line.program,), lambda prefix: _is_too_wide(prefix, places), shown)
    except installations.NotTrusted as error:
        raise UnitError(
            f"{error}; name what the program needs in a profile, and that in Profile= of [X-Osmoda]", line.origin
        ) from None


def _tier_position(unit: Unit) -> Position:
    return position(unit.origins.get("X-Osmoda.Tier") or origin(unit, "Service.ExecStart"))


def _at_root(unit: Unit) -> bool:
    """Whether it starts in /, as a unit without a working directory does, or in one that may be missing and is."""
    directory = unit.working_directory
    return directory in ("", "/") or (unit.working_directory_optional and not os.path.isdir(directory))


def _shown(unit: Unit, places: PrivatePlaces, tier: int) -> str:
    at = origin(unit, "Service.WorkingDirectory")
    directory = os.path.normpath(paths.home() if unit.working_directory == "~" else unit.working_directory)
    if not os.path.isdir(directory):
        raise UnitError(f"WorkingDirectory={directory} is not there", at)
    real = os.path.realpath(directory)
    if is_place(os.path.join(os.path.realpath(os.path.dirname(directory)), os.path.basename(directory)), real):
        return directory  # the code of its current generation, which lies among osmoda's own files
    why = refusal(real, write=False, never=ceiling(tier).filesystem.deny) or places.wide(real) or places.holds(real)
    if why is not None:
        raise UnitError(
            f"WorkingDirectory={directory} is not shown to a sandbox as a whole: {why}; "
            "name what the agent reads in a profile, and that in Profile= of [X-Osmoda]",
            at,
        )
    return directory


def _is_too_wide(prefix: str, places: PrivatePlaces) -> bool:
    # /opt and the like hold installations and are none.
    return places.wide(prefix) is not None or not os.path.isdir(prefix)


def notes(unit: Unit, shown: Sequence[str]) -> tuple[str, ...]:
    """What the log says of a unit without a profile: what it has, and the lines that grant more."""
    name = unit.name.removesuffix(".service")
    directory = "" if _at_root(unit) else unit.working_directory
    extends = ", ".join(f'"{path}"' for path in shown)
    tier = TIER if unit.osmoda.tier is None else unit.osmoda.tier
    has = f"reading {', '.join(shown) or 'nothing but the system'}, writing nothing that stays, no network"
    file = unit.files[0] if unit.files else unit.name
    more = f'[filesystem] write = ["{directory or "/var/lib/" + name}"] or [network] allow = ["api.example.com"]'
    profile = f"/etc/osmoda/profiles/{name}.toml"
    start = f"schema = 1, tier = {tier}, [filesystem] read = [{extends}]"
    return (
        f"{unit.name} names no profile: tier {tier}, {has}",
        f"to grant more, add [X-Osmoda] and Profile={name} to {file}, and write {profile}: {start}",
        f"in it, {more} grants that; `osmoda-sandbox learn` writes what a run of it needs",
    )


def origin(unit: Unit, directive: str) -> Origin | None:
    """The line of `directive` ("Section.Name"), or where the unit starts."""
    return unit.origins.get(directive)


def position(at: Origin | None) -> Position:
    """The same, as a profile has it."""
    return Position(at.file, at.line, 1) if at is not None else Position("unit", 1, 1)
