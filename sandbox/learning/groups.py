"""From the system calls that were made to the groups that a profile would list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.sandbox import seccomp
from osmoda.sandbox.syscall_groups import GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterable

# Groups of groups say little about what a program does; nor does one that is a list of what needs privileges.
_TOO_WIDE = frozenset({"@known", "@system-service", "@privileged", "@debug", "@obsolete"})


def covering(called: Iterable[str], limit: Iterable[str], tier: int) -> dict[str, tuple[str, ...]]:
    """Entries for `process.syscalls` that allow all of `called`, each with the calls that need it, sorted.

    For each call the smallest group that has it, where the tier may have that; else the call itself. A group that the
    others make superfluous is left out. Calls beyond `limit`, the ceiling of the tier, are left out too.
    """
    possible = seccomp.allowed(tuple(limit), tier=tier)
    needed = sorted(frozenset(called) & possible - seccomp.FLOOR)
    chosen: dict[str, list[str]] = {}
    for call in needed:
        fitting = [
            group
            for group, members in GROUPS.items()
            if group not in _TOO_WIDE and call in members and call not in seccomp.DEBUGGING
        ]
        entry = min(fitting, key=lambda group: (len(GROUPS[group]), group), default=call)
        chosen.setdefault(entry, []).append(call)
    for entry in sorted(chosen, key=lambda one: len(chosen[one])):
        others = frozenset[str]().union(*(GROUPS.get(one, frozenset((one,))) for one in chosen if one != entry))
        if entry in GROUPS and frozenset(chosen[entry]) <= others:
            for call in chosen.pop(entry):
                home = next(one for one in chosen if call in GROUPS.get(one, ()))
                chosen[home].append(call)
    return {entry: tuple(sorted(chosen[entry])) for entry in sorted(chosen)}
