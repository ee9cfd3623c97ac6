"""What would change an answer: a line of the profile, or nothing, because the tier's ceiling stands above it.

Sans-I/O but for the tier files, which `tiers` reads once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox import granted_paths, seccomp, tiers
from osmoda.sandbox.call_words import FAMILY_NAMES
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.seccomp_arguments import FAMILIES
from osmoda.sandbox.syscall_groups import calls, expand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.profile import Profile

COMMAND_LINE = "command line"
"""The file that origins name for what the options of `run` declared."""


@dataclass(frozen=True, slots=True)
class Advice:
    """`text` is a clause for a person.

    `origin` is the file:line to change (or "tier N" where nobody wrote the key yet), `line` what to write there, empty
    where no profile of this tier can allow it.
    """

    text: str
    origin: str = ""
    line: str = ""


def above(tier: int, reason: str) -> Advice:
    """Nothing that a profile of `tier` could declare changes it."""
    return Advice(f"above tier {tier}'s ceiling: {reason}")


def change(origin: str, table: str, line: str) -> Advice:
    """`line` in `table` of the profile, where `origin` says that the key stands."""
    return Advice(f"{place(origin, table)} would allow it: {line}", origin, line)


def place(origin: str, table: str) -> str:
    """Where to write: the file and line, else the table of a profile."""
    if not origin or origin.startswith(("tier ", COMMAND_LINE)):
        return f"[{table}] of a profile"
    return origin


def for_call(name: str, tier: int, origin: str, profile: Profile | None = None) -> Advice:
    """What would allow the system call `name`; `origin` is that of `process.syscalls`."""
    reason = seccomp.FORBIDDEN[tier].get(name)
    if reason is not None:
        return above(tier, f"{name} {reason}")
    limit = tiers.ceiling(tier).process.syscalls
    if name not in seccomp.allowed(limit, tier=tier):
        taken = [entry for entry in limit if entry.startswith("~") and name in calls(entry[1:])]
        return above(tier, f"the tier takes {', '.join(taken)} away" if taken else f"{name} is in none of its groups")
    if profile is None:
        return change(origin, "process", f'syscalls = [..., "{name}"]')
    kept = _entries_with(name, profile.process.syscalls, limit)
    return change(origin, "process", f"syscalls = {_array(kept)}")


def _entries_with(name: str, entries: Sequence[str], limit: Sequence[str]) -> list[str]:
    """The entries that a person would write to have `name` too: what the ceiling takes away needs no line of theirs."""
    kept: list[str] = []
    for entry in entries:
        if entry.startswith("~") and name in calls(entry[1:]) and entry not in limit:
            # The removal of a group goes; its other calls stay removed.
            kept.extend(f"~{call}" for call in sorted(calls(entry[1:]) - {name} - seccomp.FLOOR))
        elif entry not in limit or not entry.startswith("~"):
            kept.append(entry)
    if name not in expand([entry for entry in kept if not entry.startswith("~")]) or name in seccomp.DEBUGGING:
        kept.append(name)
    return sorted(kept, key=lambda entry: entry.startswith("~"))


def allowed_calls(profile: Profile) -> frozenset[str]:
    """The calls that the filter of `profile` (tier 1 or 2) lets through, with some arguments at least."""
    return seccomp.allowed(profile.process.syscalls, tier=profile.tier)


def for_family(number: int, tier: int, profile: Profile | None = None) -> Advice:
    """What would allow sockets of the address family `number`."""
    name = next((name for name, family in FAMILIES.items() if family == number), None)
    shown = FAMILY_NAMES.get(number, f"family {number}")
    if name is None or name not in tiers.ceiling(tier).network.families:
        return above(tier, f"no profile of it may open {shown} sockets")
    if profile is None:
        return change("", "network", f'families = [..., "{name}"]')
    line = f"families = {_array([*profile.network.families, name])}"
    return change(profile.origin("network", "families"), "network", line)


def for_path(path: str, tier: int, *, write: bool, profile: Profile | None = None) -> Advice:
    """What would grant reading or writing the host's `path`, which is not granted so far."""
    key = "write" if write else "read"
    limit = tiers.ceiling(tier).filesystem
    if profile is not None:
        for index, denied in enumerate(profile.filesystem.deny):
            if within(path, denied):
                origin = profile.origin("filesystem", "deny", index)
                return Advice(f"{place(origin, 'filesystem')} denies it (filesystem.deny)", origin)
    reason = granted_paths.refusal(path, write=write, never=limit.deny)
    if reason is not None:
        return above(tier, reason)
    if not any(within(path, tree) for tree in (getattr(limit, key) if write else (*limit.read, *limit.write))):
        trees = ", ".join(getattr(limit, key)) or "nothing but the workspace"
        return above(tier, f"filesystem.{key} may hold {trees}")
    declared = getattr(profile.filesystem, key) if profile is not None else ()
    origin = profile.origin("filesystem", key) if profile is not None else ""
    line = f"{key} = {_array([*declared, path])}" if profile is not None else f"{key} = [..., {json.dumps(path)}]"
    advice = change(origin, "filesystem", line)
    if profile is not None and profile.file in ("", COMMAND_LINE):
        return Advice(f"--{key} {path} would allow it, or in a profile: {line}", origin, line)
    return advice


def _array(values: Sequence[str]) -> str:
    """A TOML array of strings: JSON's notation of strings is one of TOML's."""
    return json.dumps(list(dict.fromkeys(values)), ensure_ascii=False)
