"""The sandbox that a program is observed in: what a profile of tier 1 could grant at most, and nothing of it for good.

It is the plan of a profile of tier 1 that grants no tree, with the same namespaces, Landlock, system call filter and
limits as any other; in place of grants there are trees whose changes are thrown away, without what is private.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import TYPE_CHECKING

import tomlkit

from osmoda.egress import destinations
from osmoda.host import features
from osmoda.host.frozen import values_of
from osmoda.sandbox import granted_paths, landlock_rules, mount_points, place, profile_file, system_view, tiers
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.learning.calls import reporting_filter
from osmoda.sandbox.operations import confinement, mounting
from osmoda.sandbox.operations.observation import Composed, Reported, Throwaway
from osmoda.sandbox.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.host.features import Features
    from osmoda.sandbox.learning.private import PrivatePlaces
    from osmoda.sandbox.operations import Operation

TIER = 1
NAME = "the sandbox of learn"
_SCRATCH = 4 << 30  # bytes, of each private folder
_LAYER = 2 << 30  # bytes, of what is thrown away from one tree
_PIDS = 4096
_OPEN_FILES = 65536
_SHARE_OF_MEMORY = 0.75


def permissive(
    argv: Sequence[str], rules: Sequence[str], passed: Sequence[str], degrade: Sequence[str], private: PrivatePlaces
) -> tuple[Plan, bytes]:
    """The plan under which the command `argv` is observed, and the folder that it works in.

    That is empty where the current directory cannot be one. `rules` are network rules besides every name, `passed`
    variables of the caller, `degrade` layers that may be missing: no other may. Raises ProfileError or CompileError.
    """
    host = features.probe()
    plan = _compiled("overlay", rules, passed, degrade, host)
    try:
        work = place.workspace(plan, "")
    except LaunchError:
        plan, work = _compiled("none", rules, passed, degrade, host), b""
    trees = _trees(private, os.fsdecode(work), argv)
    return with_operations(plan, _rearranged(plan.operations, trees, host.machine)), work


def _compiled(
    workspace: str, rules: Sequence[str], passed: Sequence[str], degrade: Sequence[str], host: Features
) -> Plan:
    limit = tiers.ceiling(TIER)
    process: dict[str, object] = {"syscalls": list(limit.process.syscalls), "pids": _PIDS}
    process["limits"] = {"open_files": _OPEN_FILES, "core": 0}
    if "memory" in host.controllers:
        process["memory"] = int(_memory() * _SHARE_OF_MEMORY) & ~0xFFFFF
    declared = {
        "schema": 1,
        "tier": TIER,
        "degrade": [*degrade],
        "filesystem": {"tmp": _SCRATCH, "workspace": workspace},
        "network": {"allow": [*rules], "loopback": True, "families": list(limit.network.families)},
        "process": process,
        "environment": {"pass": sorted({*tiers.default(TIER).environment.passed, *passed})},
    }
    profile = profile_file.load_text(tomlkit.dumps(declared), NAME, os.getcwd())
    # No file of this tier can list every name at every port; the ceiling does.
    every = destinations.parse_rule("*:*", destinations.DEFAULT_PORTS, tier_file=True)
    network = dataclasses.replace(profile.network, allow=(every, *profile.network.allow))
    return compile_profile(dataclasses.replace(profile, network=network), host)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def with_operations(plan: Plan, operations: tuple[Operation, ...]) -> Plan:
    """`plan` with other operations."""
    values = list(values_of(plan))
    values[4] = operations
    return Plan(*values)


class _Trees:
    """All that could be granted, as operations, the outermost first.

    A folder is shown through an overlay; one in which file systems are mounted is put together from its entries, since
    the kernel lets no ordinary user take it apart from what is mounted there.
    """

    def __init__(self, private: PrivatePlaces, named: str) -> None:
        self._named = named
        self.operations: list[Operation] = []
        self._private = private
        self._never = tiers.ceiling(TIER).filesystem.deny
        self._shown = (*system_view.trees(), *system_view.copied(), *system_view.GENERATED, system_view.HOME)
        self._mounted = mount_points.mount_points()

    def add(self, path: str) -> None:
        """`path` and all that is in it and mounted there, but what no profile may grant and what is private."""
        if path in self._never or any(granted_paths.within(path, tree) for tree in self._shown):
            return
        if self._private.is_place(path):
            return
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                if not system_view.through_link(path):
                    self.operations.append(mounting.Alias(_ORIGIN, os.fsencode(path), os.fsencode(os.readlink(path))))
            elif stat.S_ISREG(mode) and os.access(path, os.R_OK):
                self.operations.append(mounting.ReadFile(_ORIGIN, os.fsencode(path)))
            elif stat.S_ISDIR(mode) and os.access(path, os.R_OK | os.X_OK):
                self._add_folder(path, mode)
        except OSError:
            return  # gone since its folder was listed, or not to be seen: then the program would not see it either

    def _add_folder(self, path: str, mode: int) -> None:
        name = os.fsencode(path)
        closed = not os.access(path, os.W_OK)
        places = (b"agent",) if path == os.path.dirname(system_view.HOME) else ()
        if any(path != mount and granted_paths.within(mount, path) for mount in self._mounted):
            if not granted_paths.within(path, "/etc"):
                mode = stat.S_IMODE(mode) & ~0o222 if closed else stat.S_IMODE(mode)
                self.operations.append(Composed(_ORIGIN, name, places, mode, _LAYER))
            for entry in sorted(os.listdir(path)):
                # What lies in /tmp comes and goes, and is the business of whoever names it.
                if path != "/tmp" or f"/tmp/{entry}" in self._named:
                    self.add(os.path.join(path, entry))
            return
        self.operations.append(Throwaway(_ORIGIN, name, self._hidden(path), self._kept(path), places, _LAYER, closed))

    def _hidden(self, path: str) -> tuple[bytes, ...]:
        return tuple(
            os.fsencode(os.path.relpath(place, path))
            for place in self._private.places
            if place != path and granted_paths.within(place, path) and os.path.lexists(place)
        )

    @staticmethod
    def _kept(path: str) -> tuple[bytes, ...]:
        return tuple(os.fsencode(os.path.basename(one)) for one in system_view.GENERATED) if path == "/etc" else ()


def _trees(private: PrivatePlaces, workspace: str, argv: Sequence[str]) -> list[Operation]:
    """The folders of the root, and the workspace, whose owner need not be theirs."""
    trees = _Trees(private, "\n".join((workspace, *argv)))
    for name in sorted(os.listdir("/")):
        if f"/{name}" != "/lost+found":
            trees.add(f"/{name}")
    if workspace and not any(_path(one) == os.fsencode(workspace) for one in trees.operations):
        trees.add(workspace)
    return trees.operations


def _path(operation: Operation) -> bytes:
    path: bytes = getattr(operation, "path", b"")
    return path


_ORIGIN = f"tier {TIER}"


def _rearranged(operations: tuple[Operation, ...], trees: Sequence[Operation], machine: str) -> tuple[Operation, ...]:
    """The operations with `trees` where mounts begin, what shows in them after them, and the filter that reports."""
    replaced = {_path(tree) for tree in trees}
    result: list[Operation] = []
    placed = False
    for operation in operations:
        if isinstance(operation, mounting.Scratch):
            if not placed:
                result.extend(trees)
                placed = True
            if operation.path in replaced:
                continue
        elif isinstance(operation, mounting.OverlayWorkspace):
            continue  # it is one of the trees
        elif isinstance(operation, mounting.Seal):
            operation = mounting.Seal(operation.origin, True)
        elif isinstance(operation, confinement.Landlock):
            operation = _with_rights(operation, trees)
        elif isinstance(operation, confinement.Seccomp):
            # Before the filter that decides, which may refuse to have another one set.
            result.append(Reported(operation.origin, reporting_filter(machine)))
        result.append(operation)
    return tuple(result)


def _with_rights(rules: confinement.Landlock, trees: Sequence[Operation]) -> confinement.Landlock:
    more = [
        (
            _path(tree),
            rules.handled_fs & (landlock_rules.READ & landlock_rules.ON_FILES if one_file else landlock_rules.WRITE),
        )
        for tree in trees
        if (one_file := isinstance(tree, mounting.ReadFile)) or isinstance(tree, (Throwaway, Composed))
    ]
    values = list(values_of(rules))
    values[5] = (*rules.paths, *more)
    return confinement.Landlock(*values)
