"""What profiles declare, and how several of them become one.

The order of what is merged never matters: lists of grants and of denials are united, of single values the tightest
one holds. Only a variable's value has no tighter and no looser; two files that disagree about one are an error,
unless the file that extends them both says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from osmoda.sandbox.toml_source import Position

type Key = tuple[str, ...]

WORKSPACES = ("none", "overlay", "direct")
"""From the tightest to the widest."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What files declare: canonical values, and where each was written.

    `lists` holds the items of each list key and `keys` where that key stands; `scalars` holds the single values,
    `variables` the table `environment.set`. A key that is absent was not declared, which is not the same as an empty
    list.
    """

    keys: Mapping[Key, Position]
    lists: Mapping[Key, Mapping[Any, Position]]
    scalars: Mapping[Key, tuple[Any, Position]]
    variables: Mapping[str, tuple[str, Position]]


def merge(declarations: Iterable[Declaration]) -> Declaration:
    """One declaration out of several, in any order. Raises `ProfileError` where two set one variable differently."""
    keys: dict[Key, Position] = {}
    lists: dict[Key, dict[Any, Position]] = {}
    scalars: dict[Key, tuple[Any, Position]] = {}
    variables: dict[str, list[tuple[str, Position]]] = {}
    for declaration in declarations:
        for key, position in declaration.keys.items():
            keys[key] = min(keys.get(key, position), position, key=_place)
        for key, items in declaration.lists.items():
            union = lists.setdefault(key, {})
            for item, position in items.items():
                union[item] = min(union.get(item, position), position, key=_place)
        for key, found in declaration.scalars.items():
            held = scalars.get(key)
            scalars[key] = found if held is None else min(held, found, key=lambda it: _tightness(key, it))
        for name, pair in declaration.variables.items():
            variables.setdefault(name, []).append(pair)
    # By name, so that of several contradictions the same one is told in any order.
    return Declaration(keys, lists, scalars, {name: _united(name, variables[name]) for name in sorted(variables)})


def extend(own: Declaration, bases: Iterable[Declaration]) -> Declaration:
    """`own` on top of what it extends: its variables hold, everything else is merged."""
    named = own.variables
    below = merge(
        replace(base, variables={name: pair for name, pair in base.variables.items() if name not in named})
        for base in bases
    )
    return merge((own, below))


def _united(name: str, pairs: list[tuple[str, Position]]) -> tuple[str, Position]:
    """The value that all of them give, where it stands first. Raises ProfileError when there are two."""
    first, *others = sorted(pairs, key=lambda it: _place(it[1]))
    for value, where in others:
        if value != first[0]:
            raise ProfileError(
                f'environment.set.{name} is "{value}" here and "{first[0]}" in {first[1]}; '
                "the profile that extends both has to say which",
                where.file,
                where.line,
                where.column,
            )
    return first


def _place(position: Position) -> tuple[str, int, int]:
    return position.file, position.line, position.column


def _tightness(key: Key, found: tuple[Any, Position]) -> tuple[Any, tuple[str, int, int]]:
    """Smaller is tighter; of equal values the first in the files is the origin."""
    value, position = found
    if key == ("tier",):
        value = -value
    elif key == ("filesystem", "workspace"):
        value = WORKSPACES.index(value)
    return value, _place(position)
