"""Which directories agents share, by their profiles: what one may write and another one may read. Sans-I/O."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox.granted_paths import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from osmoda.supervisor.confining.confinement import Confined


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
    written = _by_path((path, one.agent) for one in agents for path in one.write)
    seen = _by_path((path, one.agent) for one in agents for path in (*one.read, *one.write))
    found = {path for path, readers in seen.items() if _others(path, readers, written)}
    found |= {path for path, authors in written.items() if _others(path, authors, seen)}
    return tuple(sorted(path for path in found if not any(tree in found for tree in _around(path))))


def _by_path(pairs: Iterable[tuple[str, str]]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, agent in pairs:
        found.setdefault(path, set()).add(agent)
    return found


def _others(path: str, agents: set[str], grants: Mapping[str, set[str]]) -> bool:
    """Whether somebody else than one of `agents` alone has a grant at `path` or around it."""
    return any(len(agents | grants.get(tree, set())) > 1 and grants.get(tree) for tree in (path, *_around(path)))


def _around(path: str) -> Iterator[str]:
    """The folders that `path` lies in, from the innermost to the root."""
    while path != "/":
        path = posixpath.dirname(path)
        yield path


def writers(agents: Iterable[Grants], path: str) -> tuple[str, ...]:
    """The agents that may write `path`, sorted."""
    return tuple(sorted({one.agent for one in agents if any(within(path, tree) for tree in one.write)}))
