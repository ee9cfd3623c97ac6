"""Which units a request is about, and in what order: what they pull in, what stops with them."""

from __future__ import annotations

import graphlib
import itertools
from typing import TYPE_CHECKING, Protocol

from osmoda.supervisor.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from osmoda.supervisor.units.unit import Unit


class Source(Protocol):
    """Where units come from."""

    def load(self, name: str) -> Unit:
        """Raises UnitError."""


def closure(source: Source, names: Iterable[str]) -> tuple[dict[str, Unit], dict[str, str]]:
    """The units of `names` and all that they require or want, by their own names; and why some could not be read.

    A unit that requires one that cannot be read is among these; what is only wanted may be missing. Units of other
    kinds (targets, mounts, slices) are the host's, which has reached them before it runs a daemon.
    """
    units: dict[str, Unit] = {}
    problems: dict[str, str] = {}
    aliases: dict[str, str] = {}
    asked = list(dict.fromkeys(names))
    waiting = [(name, True) for name in asked]
    while waiting:
        name, needed = waiting.pop(0)
        if name in units or name in aliases or name in problems:
            continue
        try:
            unit = source.load(name)
        except UnitError as error:
            if needed:
                problems[name] = str(error)
            continue
        aliases[name] = unit.name
        if unit.name in units:
            continue
        units[unit.name] = unit
        found = unit.dependencies
        waiting += [(other, True) for other in (*found.requires, *found.binds_to) if _is_service(other)]
        waiting += [(other, False) for other in found.wants if _is_service(other)]
    _drop_those_without(units, problems)
    wanted = {aliases.get(name, name) for name in asked}
    return units, {name: text for name, text in problems.items() if name in wanted}


def _drop_those_without(units: dict[str, Unit], problems: dict[str, str]) -> None:
    """Take out what requires a unit that cannot be read, and what requires that, and so on."""
    changed = True
    while changed:
        changed = False
        for name, unit in tuple(units.items()):
            for other in (*unit.dependencies.requires, *unit.dependencies.binds_to):
                if other in problems:
                    origin = unit.origins.get(f"Unit.Requires={other}") or unit.origins.get(f"Unit.BindsTo={other}")
                    problems[name] = str(UnitError(f"it requires {other}: {problems[other]}", origin))
                    del units[name]
                    changed = True
                    break


def _is_service(name: str) -> bool:
    return name.endswith(".service")


def before_start(units: Mapping[str, Unit]) -> dict[str, frozenset[str]]:
    """For each unit those that have to be up first (After=, Before=). Raises UnitError for a cycle, with its lines."""
    before: dict[str, set[str]] = {name: set() for name in units}
    for name, unit in units.items():
        before[name].update(other for other in unit.dependencies.after if other in units and other != name)
        for other in unit.dependencies.before:
            if other in units and other != name:
                before[other].add(name)
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        raise _cycle(units, error.args[1]) from None
    return {name: frozenset(earlier) for name, earlier in before.items()}


def _cycle(units: Mapping[str, Unit], cycle: Sequence[str]) -> UnitError:
    """`cycle` names each unit and then one that waits for it, the first once more at the end."""
    steps = []
    for earlier, later in itertools.pairwise(cycle):
        origin = units[later].origins.get(f"Unit.After={earlier}") or units[earlier].origins.get(f"Unit.Before={later}")
        steps.append(f"{later} after {earlier}" + (f" ({origin})" if origin is not None else ""))
    return UnitError(f"the order of these units goes in a circle: {', '.join(steps)}")


def before_stop(units: Mapping[str, Unit]) -> dict[str, frozenset[str]]:
    """For each unit those that have to be down first: the order of the start, the other way round."""
    try:
        starts = before_start(units)
    except UnitError:
        return {name: frozenset() for name in units}  # files changed since: stopping must always be possible
    return {name: frozenset(other for other in units if name in starts[other]) for name in units}


def stopped_with(units: Mapping[str, Unit], names: Iterable[str]) -> list[str]:
    """`names`, and whatever of `units` cannot be without them, or is part of them (Requires=, BindsTo=, PartOf=)."""
    found = [name for name in dict.fromkeys(names) if name in units]
    for name in found:
        for other, unit in units.items():
            needs = {*unit.dependencies.requires, *unit.dependencies.binds_to, *unit.dependencies.part_of}
            if name in needs and other not in found:
                found.append(other)
    return found
