"""The three tiers, read from `profiles/tier*.toml`: the most that a profile may declare, and what holds undeclared.

Both halves of a tier file have the shape of a profile. In a ceiling every list is an upper bound, and what it takes
away (`deny`, or `~` in front) is taken away from each profile of the tier, whatever that declares.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from osmoda.sandbox import schema, toml_source, validation
from osmoda.sandbox.declaration import Reader
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.merge import Declaration, Key
from osmoda.sandbox.profile import (
    Environment,
    Filesystem,
    Limits,
    Mesh,
    Network,
    Process,
    Profile,
    Rule,
    Tier,
    Tools,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.sandbox.toml_source import Path, Position

SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "profiles")
"""The folder of the tier files and of the sample agents."""

_NOTHING = Declaration({}, {}, {}, {})


@dataclass(frozen=True, slots=True)
class _Tier:
    file: tuple[str, str]
    description: str
    ceiling: Profile
    default: Declaration


def ceiling(tier: int) -> Profile:
    """The most that a profile of `tier` may grant, as a profile; `grants.excess` compares against it."""
    return _read(tier).ceiling


def default(tier: int) -> Profile:
    """What a profile of `tier` grants that declares nothing."""
    return complete(_NOTHING, tier)


def complete(
    declared: Declaration,
    tier: int,
    *,
    description: str = "",
    file: str = "",
    files: tuple[tuple[str, str], ...] = (),
) -> Profile:
    """`declared`, with what it leaves open filled in from the tier's defaults. Ceilings are not checked here."""
    found = _read(tier)
    limit = found.ceiling.process.syscalls
    return _profile(
        declared,
        found.default,
        tier,
        removed=tuple(entry for entry in limit if entry.startswith("~")),
        description=description or found.description,
        file=file,
        files=(*files, found.file),
    )


@cache
def _read(tier: int) -> _Tier:
    if tier not in (0, 1, 2):
        raise ValueError(f"there are the tiers 0, 1 and 2, not {tier}")
    path = os.path.join(SHIPPED, f"tier{tier}.toml")
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise ProfileError(f"the tier's own file cannot be read: {error.strerror}", path) from None
    source = toml_source.parse(content.decode(), path)
    table = validation.validate(source, schema.TierFile)
    halves = []
    for name, half in (("ceiling", table.ceiling), ("default", table.default)):
        reader = Reader(source, (name,), SHIPPED, tier_file=True)
        halves.append(reader.read(half))
        validation.raise_all(reader.errors)
    top = _profile(halves[0], _NOTHING, tier, description=table.description, file=path)
    return _Tier((path, hashlib.sha256(content).hexdigest()), table.description, top, halves[1])


def _profile(
    declared: Declaration,
    fallback: Declaration,
    tier: int,
    *,
    removed: tuple[str, ...] = (),
    description: str,
    file: str,
    files: tuple[tuple[str, str], ...] = (),
) -> Profile:
    def items(*key: str) -> tuple[Any, ...]:
        found = declared.lists.get(key)
        return tuple(sorted(fallback.lists.get(key, ()) if found is None else found, key=_order))

    def value(*key: str, otherwise: Any = None) -> Any:
        for declaration in (declared, fallback):
            if key in declaration.scalars:
                return declaration.scalars[key][0]
        return otherwise

    profile = Profile(
        schema=schema.SCHEMA_VERSION,
        tier=cast("Tier", tier),
        description=description,
        degrade=items("degrade"),
        filesystem=Filesystem(
            read=items("filesystem", "read"),
            write=items("filesystem", "write"),
            deny=items("filesystem", "deny"),
            workspace=value("filesystem", "workspace"),
            tmp=value("filesystem", "tmp"),
        ),
        network=Network(
            allow=items("network", "allow"),
            deny=items("network", "deny"),
            serve=items("network", "serve"),
            connect=items("network", "connect"),
            ask=value("network", "ask", otherwise=False),
            loopback=value("network", "loopback", otherwise=False),
            families=items("network", "families"),
        ),
        process=Process(
            syscalls=_syscalls(declared, fallback, removed),
            memory=value("process", "memory"),
            cpu=value("process", "cpu"),
            pids=value("process", "pids"),
            limits=Limits(
                open_files=value("process", "limits", "open_files"),
                file_size=value("process", "limits", "file_size"),
                address_space=value("process", "limits", "address_space"),
                stack=value("process", "limits", "stack"),
                core=value("process", "limits", "core"),
            ),
        ),
        environment=Environment(
            passed=items("environment", "pass"),
            set=tuple(sorted((name, text) for name, (text, _) in {**fallback.variables, **declared.variables}.items())),
        ),
        tools=Tools(allow=items("tools", "allow"), deny=items("tools", "deny")),
        mesh=Mesh(send=items("mesh", "send"), receive=items("mesh", "receive")),
        file=file,
        files=files,
    )
    positions = positions_of(declared, profile)
    object.__setattr__(profile, "origins", MappingProxyType({path: str(place) for path, place in positions.items()}))
    return profile


def _syscalls(declared: Declaration, fallback: Declaration, removed: tuple[str, ...]) -> tuple[str, ...]:
    """What is declared, less what the ceiling takes away. A list of removals only removes from the tier's default."""
    key = ("process", "syscalls")
    default = tuple(fallback.lists.get(key, ()))
    entries = set(declared.lists.get(key, default))
    if all(entry.startswith("~") for entry in entries) and entries:
        entries.update(entry for entry in default if not entry.startswith("~"))
    entries.update(removed)
    return tuple(sorted(entries, key=lambda entry: (entry.startswith("~"), entry)))


def positions_of(declared: Declaration, profile: Profile) -> Mapping[Path, Position]:
    """Where each key and item of `profile` was declared; the indices are those of the profile's own tuples."""
    positions: dict[Path, Position] = {key: position for key, (_, position) in declared.scalars.items()}
    for key, places in declared.lists.items():
        positions[key] = declared.keys[key]
        for index, item in enumerate(_items(profile, key)):
            if item in places:
                positions[(*key, index)] = places[item]
    for name, (_, position) in declared.variables.items():
        positions["environment", "set", name] = position
    return positions


def _order(item: Any) -> Any:
    return item.sort_key if isinstance(item, Rule) else item


def _items(profile: Profile, key: Key) -> tuple[Any, ...]:
    found: Any = profile
    for name in key:
        found = getattr(found, "passed" if name == "pass" else name)
    return cast("tuple[Any, ...]", found)
