"""A unit to the profile of its sandbox: what `[X-Osmoda]` names, and what systemd's directives leave of that.

`Tier=` can only lower what the profile grants, and so can each directive of systemd's own; one that nothing here
enforces is refused, with its line. docs/confinement.md has the rules for people.
"""

from __future__ import annotations

import glob
import grp
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox import profile_file, tiers
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.merge import Declaration
from osmoda.sandbox.profile import Profile
from osmoda.supervisor.confining import sandboxing_directives, standard_profile
from osmoda.supervisor.confining.narrowing import Narrowing
from osmoda.supervisor.confining.ownership import other_writer
from osmoda.supervisor.confining.standard_profile import position
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units.values import boolean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.supervisor.units.unit import Origin, Unit


@dataclass(frozen=True, slots=True)
class Confined:
    """What a unit runs under. `workspace` is the directory of a profile that has one, else empty.

    `notes` are lines for the log: what a unit without a profile has and how to grant more, what a directive asks for
    and the profile does not give. `file` is the profile's that the unit names, also where `profile` is no longer that
    alone, and so has no file of its own; empty for a unit that names none.
    """

    profile: Profile
    workspace: str
    notes: tuple[str, ...]
    file: str = ""

    @property
    def written(self) -> tuple[str, ...]:
        """Trees that the agent writes, what an overlay keeps for them included."""
        return (*self.profile.filesystem.write, *((self.workspace,) if self.workspace else ()))


def confine(unit: Unit) -> Confined:
    """The profile of `unit` on this host.

    Raises UnitError for a profile that is missing or not valid, a tier above it, a file that somebody else could
    change, and a directive that cannot be enforced.
    """
    profile = _declared(unit)
    _refuse_other_writers(unit, profile)
    workspace = ""
    if profile.tier > 0 and profile.filesystem.workspace != "none":
        workspace = unit.osmoda.workspace or unit.working_directory
        if not workspace:
            raise UnitError(
                f'the profile has workspace = "{profile.filesystem.workspace}" and the unit names no directory: '
                "WorkingDirectory= or, in [X-Osmoda], Workspace= does",
                unit.origins.get("X-Osmoda.Profile"),
            )
    narrowing = Narrowing(unit, profile, workspace)
    if not unit.osmoda.profile and profile.tier > 0:
        narrowing.notes += standard_profile.notes(unit, profile.filesystem.read)
    _refuse_identity(unit)
    for path, origin in _secret_files(narrowing):
        narrowing.deny(path, origin)
    sandboxing_directives.apply(narrowing)
    finished = narrowing.finish()
    return Confined(finished, narrowing.workspace, tuple(narrowing.notes), _file(unit, profile))


def _file(unit: Unit, profile: Profile) -> str:
    named = unit.osmoda.profile
    return profile.file or (profile_file.find(named) or named if named else "")


def _declared(unit: Unit) -> Profile:
    """The profile that `[X-Osmoda]` names, or the standard one, at the tier that is asked for."""
    named, tier = unit.osmoda.profile, unit.osmoda.tier
    at = unit.origins.get("X-Osmoda.Profile")
    try:
        if named:
            found = Profile.load(named)
            if tier is not None and tier < found.tier:
                raise UnitError(
                    f"Tier={tier} is above tier {found.tier} of {found.file or named}, and a unit can only lower it",
                    unit.origins.get("X-Osmoda.Tier"),
                )
            if not unit.osmoda.serve and tier in (None, found.tier):
                return found
            return profile_file.load_declared(_added(unit), named, unit.description)
        if tier == 0:
            return profile_file.load_declared(_added(unit), "", unit.description)
        own = standard_profile.declaration(unit, standard_profile.TIER if tier is None else tier)
        return profile_file.load_declared(_added(unit, own), "", unit.description)
    except SandboxError as error:
        raise UnitError(str(error), at) from None


def _added(unit: Unit, own: Declaration | None = None) -> Declaration:
    """What the section itself declares, on top of `own`: the tier and the ports that are served."""
    keys = dict(own.keys) if own is not None else {}
    found = dict(own.lists) if own is not None else {}
    scalars = dict(own.scalars) if own is not None else {}
    if unit.osmoda.tier is not None:
        scalars["tier",] = (unit.osmoda.tier, position(unit.origins.get("X-Osmoda.Tier")))
    if unit.osmoda.serve:
        at = position(unit.origins.get("X-Osmoda.Serve"))
        keys["network", "serve"] = at
        found["network", "serve"] = dict.fromkeys(unit.osmoda.serve, at)
    return Declaration(keys, found, scalars, {})


def _refuse_other_writers(unit: Unit, profile: Profile) -> None:
    """Whoever can write the unit or its profile grants what it likes with the daemon's rights: nobody else may."""
    shipped = (path for path, _ in profile.files if os.path.isabs(path))
    for path in (*unit.files, *(path for path in shipped if not within(path, tiers.SHIPPED))):
        why = other_writer(path)
        if why is not None:
            raise UnitError(
                f"{path} decides what {unit.name} may do, and {why}; it has to be root's or the daemon's alone"
            )


def _refuse_identity(unit: Unit) -> None:
    """User= and Group=: an agent is who the daemon is, or as root a uid of its own."""
    dynamic = [directive.value for directive in unit.confinement if directive.name == "DynamicUser"]
    if dynamic and _is_on(dynamic[-1]):
        return
    for name, asked, own in (("User", unit.user, os.geteuid()), ("Group", unit.group, os.getegid())):
        if asked and _number(name, asked) != own:
            means = "a uid of its own that owns what the daemon owns" if os.geteuid() == 0 else "the daemon's own user"
            raise UnitError(
                f"{name}={asked} cannot be enforced: an agent of this daemon has {means}; "
                f"run a daemon as {asked} for it, or take the line out",
                unit.origins.get(f"Service.{name}"),
            )


def _is_on(text: str) -> bool:
    try:
        return bool(text) and boolean(text)
    except ValueError:
        return False  # its own rule says so


def _number(kind: str, name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "User" else grp.getgrnam(name).gr_gid
    except KeyError:
        return -1


def _secret_files(narrowing: Narrowing) -> Iterator[tuple[str, Origin]]:
    """Files of variables that lie in what the agent sees: the supervisor reads them, the agent has their values."""
    files = narrowing.profile.filesystem
    if narrowing.profile.tier == 0:
        return
    for entry in narrowing.unit.environment_files:
        for path in sorted(glob.glob(entry.path)) or [entry.path]:
            written = any(within(path, tree) for tree in files.write)
            if written and not os.path.lexists(path):
                continue  # nothing could keep its name free in a tree that is written
            if written or any(within(path, tree) for tree in (*files.read, narrowing.workspace) if tree):
                yield path, entry.origin
