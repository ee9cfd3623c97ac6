"""Which directories agents share, by their profiles: what one may write and another one may read. Sans-I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox.granted_paths import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from osmoda.supervisor.confinement import Confined


@dataclass(frozen=True, slots=True)
class Grants:
    """The trees of one agent. In tier 0, which has no sandbox, nothing is granted: it shares nothing by declaration."""

    agent: str
    read: tuple[str, ...]
    write: tuple[str, ...]


def grants_of(agent: str, confined: Confined) -> Grants:
    """The trees that an agent runs with, a workspace that is written in place among them."""
    profile = confined.profile
    if profile.tier == 0:
        return Grants(agent, (), ())
    own = (confined.workspace,) if confined.workspace and profile.filesystem.workspace == "direct" else ()
    return Grants(agent, profile.filesystem.read, (*profile.filesystem.write, *own))


def shared(agents: Sequence[Grants]) -> tuple[str, ...]:
    """The trees that one agent writes and another one sees, sorted; of two that lie in each other the outer one."""
    found: set[str] = set()
    for one in agents:
        for other in agents:
            if one is not other:
                found.update(_common(one.write, (*other.read, *other.write)))
    return tuple(sorted(path for path in found if not any(path != tree and within(path, tree) for tree in found)))


def _common(written: Iterable[str], seen: Sequence[str]) -> Iterable[str]:
    for path in written:
        for tree in seen:
            if within(path, tree):
                yield path
            elif within(tree, path):
                yield tree


def writers(agents: Iterable[Grants], path: str) -> tuple[str, ...]:
    """The agents that may write `path`, sorted."""
    return tuple(sorted(one.agent for one in agents if any(within(path, tree) for tree in one.write)))
