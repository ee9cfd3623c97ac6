"""A profile on its way from what its file grants to what a unit's directives leave of that.

Each step takes something away, so that the order of directives does not matter; `finish` proves it with the same
function that the compiler uses for ceilings, and asks the plan whether it does what was only demanded of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from osmoda.host import features
from osmoda.sandbox import grants, place
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.granted_paths import within
from osmoda.supervisor.confining.plan_demands import Built
from osmoda.supervisor.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from osmoda.sandbox.profile import Profile
    from osmoda.supervisor.confining.plan_demands import Demand
    from osmoda.supervisor.units.unit import Directive, Origin, Unit


@dataclass(frozen=True, slots=True)
class _Demanded:
    demand: Demand
    directive: Directive


class Narrowing:
    """The profile of one unit while its directives narrow it; `workspace` is where it works, empty for nowhere."""

    def __init__(self, unit: Unit, profile: Profile, workspace: str) -> None:
        self.unit = unit
        self.profile = profile
        self.workspace = workspace
        self.notes: list[str] = []
        self._before = profile
        self._workspace_before = workspace
        self._demanded: list[_Demanded] = []

    def given(self, *names: str) -> tuple[Directive, ...]:
        """The unit's directives of these names, in order."""
        return tuple(directive for directive in self.unit.confinement if directive.name in names)

    @staticmethod
    def refuse(directive: Directive, why: str) -> NoReturn:
        """Raise UnitError for `directive`."""
        raise UnitError(f"{directive.name}={directive.value} cannot be enforced: {why}", directive.origin)

    def demand(self, directive: Directive, demand: Demand) -> None:
        """Have `finish` ask this of the plan."""
        self._demanded.append(_Demanded(demand, directive))

    def sandboxed(self, directive: Directive) -> None:
        """Refuse `directive` in tier 0, where nothing would enforce it."""
        if self.profile.tier == 0:
            self.refuse(directive, "tier 0 has no sandbox; Tier=1 or Tier=2 in [X-Osmoda] gives it one")

    # Files

    def deny(self, path: str, origin: Origin) -> None:
        """Hide `path`, whatever grants a tree around it."""
        self._set_list(("filesystem", "deny"), {**self._items(("filesystem", "deny")), path: str(origin)})

    def read_only(self, tree: str, directive: Directive, spared: Sequence[str] = ()) -> None:
        """Let nothing of the host in `tree` be written but what lies in one of `spared`.

        A grant to write becomes one to read. Where `tree` is a part of one, nothing could hold that: refused. What is
        spared lies in `tree`: of one path, and of what lies around it, the stricter one holds (systemd.exec(5)).
        """
        real = os.path.realpath(tree)
        spared = [path for path in spared if (inner := os.path.realpath(path)) != real and within(inner, real)]
        read, write = self._items(("filesystem", "read")), self._items(("filesystem", "write"))
        for path, origin in tuple(write.items()):
            kept = self._kept(os.path.realpath(path), real, path, directive, spared)
            if kept is None:
                continue
            del write[path]
            read[path] = origin
            write.update(dict.fromkeys(kept, origin))
        if self.workspace:
            work = os.path.realpath(self.workspace)
            kept = self._kept(work, real, self.workspace, directive, spared)
            if kept is not None:
                origin = self.profile.origin("filesystem", "workspace")
                read[work] = origin
                write.update(dict.fromkeys(kept, origin))
                self._no_workspace(str(directive.origin))
        self._set_list(("filesystem", "read"), read)
        self._set_list(("filesystem", "write"), write)

    def hide(self, tree: str, directive: Directive, spared: Sequence[str]) -> None:
        """Show nothing of the host in `tree` but what is granted in one of `spared`."""
        if not spared:
            self.deny(tree, directive.origin)
            return
        tree, spared = os.path.realpath(tree), [os.path.realpath(path) for path in spared]
        for key in (("filesystem", "read"), ("filesystem", "write")):
            granted = self._items(key)
            for path in tuple(granted):
                real = os.path.realpath(path)
                if any(within(real, shown) for shown in spared):
                    continue
                if within(real, tree):
                    del granted[path]
                elif within(tree, real):
                    self.refuse(directive, f"{path}, which holds {tree}, is granted as a whole; grant less than that")
            self._set_list(key, granted)
        work = os.path.realpath(self.workspace) if self.workspace else ""
        if work and not any(within(work, shown) for shown in spared) and (within(work, tree) or within(tree, work)):
            self.refuse(directive, f"the workspace {work} lies there")

    def _kept(
        self, granted: str, tree: str, name: str, directive: Directive, spared: Sequence[str]
    ) -> list[str] | None:
        """What stays writable of a grant that `tree` takes away; None where it takes nothing."""
        if any(within(granted, os.path.realpath(path)) for path in spared):
            return None
        if within(granted, tree):
            return [path for path in spared if within(os.path.realpath(path), granted)]
        if within(tree, granted):
            self.refuse(directive, f"{name}, which holds {tree}, is written as a whole; grant less than that")
        return None

    def _no_workspace(self, origin: str) -> None:
        files = replace(self.profile.filesystem, workspace="none")
        self._replace(("filesystem", "workspace"), origin, filesystem=files)
        self.workspace = ""

    # Network

    def no_network(self, origin: Origin) -> None:
        """No way out and no way in."""
        for key in ("allow", "connect", "serve"):
            self._set_list(("network", key), {}, str(origin))
        self._replace(("network", "ask"), str(origin), network=replace(self.profile.network, ask=False))

    def no_loopback(self, origin: Origin) -> None:
        """Not even the sandbox's own loopback interface."""
        network = replace(self.profile.network, loopback=False)
        self._replace(("network", "loopback"), str(origin), network=network)

    def deny_network(self, rule: object, origin: Origin) -> None:
        """Refuse a destination, whatever allows it."""
        self._set_list(("network", "deny"), {**self._items(("network", "deny")), rule: str(origin)})

    def keep_families(self, kept: Iterable[str], origin: Origin) -> None:
        """Only these families of sockets."""
        key = ("network", "families")
        allowed = set(kept)
        self._set_list(key, {name: str(origin) for name in self.profile.network.families if name in allowed})

    # Calls and limits

    def remove_calls(self, entries: Iterable[str], origin: Origin) -> None:
        """Take system calls away: names or groups, without `~`."""
        key = ("process", "syscalls")
        self._set_list(key, self._items(key) | {f"~{entry}": str(origin) for entry in entries})

    def limit(self, path: tuple[str, ...], most: float | None, directive: Directive) -> None:
        """At most this; None for no bound. A profile that gives less than the unit asks for is noted."""
        process = self.profile.process
        holder: Any = process.limits if path[1] == "limits" else process
        held = getattr(holder, path[-1])
        if most is None or (held is not None and held < most):
            if held is not None:
                self.notes.append(
                    f"{directive.origin}: {directive.name}={directive.value} does not raise the {held} of the "
                    f"profile ({self.profile.origin(*path)}); [{'.'.join(path[:-1])}] {path[-1]} in a profile does"
                )
            return
        changed = replace(holder, **{path[-1]: most})
        process = replace(process, limits=changed) if path[1] == "limits" else changed
        self._replace(path, str(directive.origin), process=process)

    def set_variable(self, name: str, value: str, origin: Origin) -> None:
        """A variable that a directive sets; it is no grant."""
        for attribute in ("profile", "_before"):
            profile: Profile = getattr(self, attribute)
            changed = tuple(sorted({**dict(profile.environment.set), name: value}.items()))
            environment = replace(profile.environment, set=changed)
            origins = MappingProxyType({**profile.origins, ("environment", "set", name): str(origin)})
            setattr(self, attribute, replace(profile, environment=environment, origins=origins))

    # The end

    def finish(self) -> Profile:
        """The profile. Raises UnitError for what the plan does not do, and for a plan that there is none of here."""
        before = self._before
        if self._workspace_before:
            # In terms of trees: what a workspace showed and let be written.
            write = (*before.filesystem.write, os.path.realpath(self._workspace_before))
            before = replace(before, filesystem=replace(before.filesystem, write=write))
        beyond = grants.excess(self.profile, before)
        if beyond:
            raise UnitError(f"its directives would grant {beyond[0].what} ({beyond[0].origin})")
        if self._demanded:
            self._ask(self._compiled())
        if self.profile.network != self._before.network:
            # An edit of the file would bring back to a running sandbox what was taken away here.
            self.profile = replace(self.profile, file="")
        return self.profile

    def _compiled(self) -> Built:
        try:
            plan = compile_profile(self.profile, features.probe())
            return Built(plan, place.workspace(plan, self.workspace))
        except SandboxError as error:
            raise UnitError(str(error)) from None

    def _ask(self, compiled: Built) -> None:
        for one in self._demanded:
            why = one.demand(compiled)
            if why:
                self.refuse(one.directive, why)

    # Lists and where their items come from

    def _items(self, key: tuple[str, str]) -> dict[Any, str]:
        values: Sequence[Any] = getattr(getattr(self.profile, key[0]), key[1])
        return {item: self.profile.origin(*key, index) for index, item in enumerate(values)}

    def _set_list(self, key: tuple[str, str], items: Mapping[Any, str], where: str = "") -> None:
        """Replace a list, keeping where each item was written; `where` is the line that made it empty."""
        ordered = sorted(items, key=_order)
        table = getattr(self.profile, key[0])
        origins = {path: origin for path, origin in self.profile.origins.items() if path[:2] != key or len(path) == 2}
        origins.update({(*key, index): items[item] for index, item in enumerate(ordered)})
        if where:
            origins[key] = where
        tables: dict[str, Any] = {key[0]: replace(table, **{key[1]: tuple(ordered)})}
        self.profile = replace(self.profile, **tables, origins=MappingProxyType(origins))

    def _replace(self, path: tuple[str, ...], origin: str, **tables: Any) -> None:
        origins = MappingProxyType({**self.profile.origins, path: origin})
        self.profile = replace(self.profile, **tables, origins=origins)


def _order(item: Any) -> Any:
    return (item.startswith("~"), item) if isinstance(item, str) else getattr(item, "sort_key", item)
