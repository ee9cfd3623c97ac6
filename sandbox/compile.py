"""Profile and host features to a plan: the slow half, run once and cached.

A layer that the host lacks stops the compilation with a `CompileError`, unless the profile's `degrade` names it; then
the plan carries a `Degradation` that every report shows.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmoda.sandbox import (
    certificates,
    granted_paths,
    landlock_rules,
    mount_points,
    names_only,
    network_policy,
    seccomp,
    system_view,
    tiers,
)
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.operations import confinement, isolation, mounting, networking
from osmoda.sandbox.plan import Degradation, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.host.features import Features
    from osmoda.sandbox.operations import Operation
    from osmoda.sandbox.profile import Profile

_NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
_HOSTNAME = "sandbox"
_OLDEST_KERNEL = (5, 14)


def compile_profile(profile: Profile, features: Features) -> Plan:
    """What `profile` means on a host with `features`.

    Raises CompileError, with the file:line that asked, for a path that cannot be granted and for a layer that is
    missing.
    """
    degraded = _Degraded(profile)
    memory, cpu, pids = _limits(profile, features, degraded)
    operations: tuple[Operation, ...] = ()
    environment = dict(profile.environment.set)
    egress, inspects = b"", False
    if profile.tier > 0:
        egress = network_policy.policy_of(profile)
        inspects = bool(egress) and network_policy.inspects(profile)
        operations = tuple(_operations(profile, features, degraded, way_out=bool(egress), inspects=inspects))
        environment = system_view.environment() | certificates.variables(operations) | environment
    else:
        operations = tuple(_process_limits(profile, features))
    return Plan(
        tier=profile.tier,
        name=os.path.basename(profile.file) or f"tier{profile.tier}",
        digest=profile.digest,
        files=tuple(name for name, _ in profile.files if os.path.isabs(name)),
        operations=operations,
        environment=tuple(sorted(environment.items())),
        passed=profile.environment.passed,
        workspace=profile.filesystem.workspace,
        memory=memory,
        cpu=cpu,
        pids=pids,
        egress=egress,
        secrets=network_policy.secrets_of(profile) if egress else (),
        inspects=inspects,
        degraded=tuple(degraded.entries),
    )


@dataclass
class _Degraded:
    """Which layers go missing, each by the profile's own leave."""

    profile: Profile
    entries: list[Degradation] = field(default_factory=list)

    def allow(self, layer: str, reason: str, origin: str) -> None:
        """Note that `layer` is missing. Raises CompileError when the profile does not name it."""
        if layer not in self.profile.degrade:
            raise CompileError(
                f'{reason}; the launch stops, unless the profile says degrade = ["{layer}"]',
                origin,
            )
        index = self.profile.degrade.index(layer)
        self.entries.append(Degradation(layer, reason, self.profile.origin("degrade", index)))


def _limits(profile: Profile, features: Features, degraded: _Degraded) -> tuple[int, float, int]:
    """Memory in bytes, cores and processes for the control group; 0 where none is asked for or it is degraded."""
    memory, cpu = profile.process.memory or 0, profile.process.cpu or 0.0
    for name, value in (("memory", memory), ("cpu", cpu)):
        if value and name not in features.controllers:
            degraded.allow(
                name,
                f"process.{name} cannot be enforced: {_no_controller(name, features)}",
                profile.origin("process", name),
            )
    memory = memory if "memory" in features.controllers else 0
    cpu = cpu if "cpu" in features.controllers else 0.0
    # In tiers 1 and 2 the rlimit holds, but for a root without uids for sandboxes. A v2 group, where there is one,
    # counts the refusals too; a v1 group would be one more hierarchy to join, a tenth of a launch. In tier 0 there is
    # only the group.
    origin = profile.origin("process", "pids")
    declared = not origin.startswith("tier")
    wanted = declared if profile.tier == 0 else features.cgroup_version == 2 and bool(memory or cpu)
    wanted = wanted or (features.uncounted and profile.tier > 0)
    counted = wanted and "pids" in features.controllers
    if features.uncounted and profile.tier > 0 and not counted:
        raise CompileError(
            "process.pids cannot be enforced: the kernel does not count processes of root, which has no uid for a "
            f"sandbox here, and {_no_controller('pids', features)}; an ordinary user can run it",
            origin,
        )
    if profile.tier == 0 and declared and not counted:
        degraded.allow("pids", f"process.pids cannot be enforced: {_no_controller('pids', features)}", origin)
    return memory, cpu, profile.process.pids + 1 if counted else 0


def _no_controller(name: str, features: Features) -> str:
    return features.refusal or (
        f"no cgroup with the {name} controller is delegated to this user, nor can systemd be asked for one"
    )


def _operations(
    profile: Profile, features: Features, degraded: _Degraded, *, way_out: bool, inspects: bool
) -> list[Operation]:
    _refuse_host(profile, features)
    if not way_out:
        return _isolated(profile, features, degraded, way_out=False, inspects=False)
    with names_only.encoding(profile, features) as encoding:
        operations = _isolated(profile, features, degraded, way_out=True, inspects=inspects)
        names = encoding.operation()
    tracking = networking.ShortTracking(f"tier {profile.tier}")
    # In place of a loopback interface that leads nowhere; the kernel's table can be told once there is a /proc.
    operations[[type(operation) for operation in operations].index(isolation.Loopback)] = names
    operations.insert([type(operation) for operation in operations].index(mounting.Proc) + 1, tracking)
    return operations


def _refuse_host(profile: Profile, features: Features) -> None:
    tier = f"tier {profile.tier}"
    if features.kernel < _OLDEST_KERNEL:
        # Before it, process limits are counted per user and not per sandbox (ucounts); other layers are missing too.
        found = ".".join(map(str, features.kernel))
        raise CompileError(f"this kernel is Linux {found}, and a sandbox needs 5.14 or later", tier)
    if not features.user_namespaces:
        raise CompileError("user namespaces are switched off on this host (user.max_user_namespaces is 0)", tier)


def _isolated(
    profile: Profile, features: Features, degraded: _Degraded, *, way_out: bool, inspects: bool
) -> list[Operation]:
    tier = f"tier {profile.tier}"
    own_uid = features.privileged
    view = _View(profile)
    scratch = ["/tmp", system_view.HOME, "/dev/shm"]
    if profile.filesystem.workspace == "none":
        scratch.append(system_view.EMPTY_WORKSPACE)
    tmp = profile.origin("filesystem", "tmp")
    modes = {"/tmp": 0o1777, "/dev/shm": 0o1777}
    operations: list[Operation] = [
        isolation.Namespaces(tier, _NAMESPACES),
        isolation.Identity(tier, system_view.UID, system_view.GID, own_uid),
        isolation.Hostname(tier, _HOSTNAME),
        isolation.Loopback(profile.origin("network", "loopback"), profile.network.loopback),
        mounting.Root(tier),
        system_view.skeleton(
            tier, view.system, view.copies, _HOSTNAME, tuple(scratch), names_only.resolver(profile) if way_out else ""
        ),
        *view.system_operations(),
        *(mounting.Scratch(tmp, os.fsencode(path), profile.filesystem.tmp, modes.get(path, 0o755)) for path in scratch),
        mounting.Devices(tier, system_view.DEVICES),
        mounting.Proc(tier),
        *view.grants(),
        *((certificates.store(tier, (*view.system, *view.copies)),) if inspects else ()),
        confinement.NoNestedNamespaces(tier),
        mounting.Seal(tier, view.staged),
        confinement.Terminal(tier),
        *_process_limits(profile, features),
        confinement.Scheduling(tier),
        confinement.Capabilities(tier, features.last_capability),
    ]
    landlock = landlock_rules.compile_rules(
        profile, features, view.system, view.read, view.write, tuple(scratch), degraded.allow, way_out=way_out
    )
    if landlock is not None:
        operations.append(landlock)
    calls = _filter(profile, features, degraded)
    return [*operations, *_no_core_dumps(profile, features), calls]


class _View:
    """The file system that the profile's grants make: what is mounted, what is hidden, what is masked."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        files = profile.filesystem
        never = tiers.ceiling(profile.tier).filesystem.deny
        self.denied = _denied(profile)
        self.system = self._allowed(system_view.trees())
        self.copies = self._allowed(system_view.copied())
        self.aliases: list[tuple[str, str, str]] = []
        self.write = self._resolve("write", files.write, never)
        self.read = {
            path: origin
            for path, origin in self._resolve("read", files.read, never).items()
            if not any(granted_paths.within(path, tree) for tree in (*self.system, *self.write))
        }
        for path in tuple(self.read):
            if any(other != path and granted_paths.within(path, other) for other in self.read):
                del self.read[path]
        self.mounts = mount_points.mount_points()
        self.staged = False
        self._hide_secrets()

    def _hide_secrets(self) -> None:
        """No tree that a profile grants reading, a whole home, say, shows what the gateway has and the ledger's key."""
        for place in granted_paths.secret_places():
            shown = self._shown_by(place)
            if shown is None or any(granted_paths.within(place, denied) for denied in self.denied):
                continue
            if os.path.lexists(place) or not self._holds_mounts(shown):
                self.denied[place] = f"tier {self.profile.tier}"

    def _allowed(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path for path in paths if granted_paths.denied_by(path, self.denied) is None)

    def _resolve(self, kind: str, declared: tuple[str, ...], never: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for index, path in enumerate(declared):
            origin = self.profile.origin("filesystem", kind, index)
            real = granted_paths.resolve_grant(path, origin, write=kind == "write", never=never)
            if any(granted_paths.within(real, denied) for denied in self.denied):
                continue  # deny always wins
            if real != path:
                self.aliases.append((origin, path, real))
            found[real] = origin
        return found

    def system_operations(self) -> list[Operation]:
        operations: list[Operation] = []
        for path in self.system:
            hidden = self._hidden(path)
            if hidden:
                self.staged = True
                origin = self.denied[f"{path}/{hidden[0]}"]
                operations.append(
                    mounting.SystemTreeWithout(origin, os.fsencode(path), tuple(os.fsencode(name) for name in hidden))
                )
            else:
                operations.append(mounting.SystemTree(f"tier {self.profile.tier}", os.fsencode(path)))
        return operations

    def _hidden(self, tree: str) -> list[str]:
        """The denied names in `tree`, relative to it, that no grant within it shows by itself."""
        return [
            os.path.relpath(path, tree)
            for path in self.denied
            if path != tree and granted_paths.within(path, tree) and self._shown_by(path) == tree
        ]

    def _shown_by(self, path: str) -> str | None:
        """The innermost granted or system tree that `path` lies in."""
        trees = [t for t in (*self.system, *self.read, *self.write) if granted_paths.within(path, t)]
        return max(trees, key=len) if trees else None

    def grants(self) -> list[Operation]:
        """Reads from the outermost in, the workspace, writes, then what covers denied names in written trees."""
        operations: list[Operation] = []
        for path, origin in sorted(self.read.items()):
            operations.append(self._read_operation(path, origin))
        workspace = self.profile.filesystem.workspace
        origin = self.profile.origin("filesystem", "workspace")
        masks = self._masks()
        if workspace == "direct":
            operations.append(mounting.DirectWorkspace(origin))
        elif workspace == "overlay":
            self.staged = True
            operations.append(mounting.OverlayWorkspace(origin, tuple(mask.path for mask in masks if not mask.always)))
        operations.extend(mounting.WriteTree(origin, os.fsencode(path)) for path, origin in sorted(self.write.items()))
        operations.extend(masks)
        operations.extend(self._pinned())
        operations.extend(
            mounting.Alias(origin, os.fsencode(path), os.fsencode(real)) for origin, path, real in self._links()
        )
        return operations

    def _links(self) -> list[tuple[str, str, str]]:
        """The aliases that nothing shows yet: no tree that holds the link, no link of the root, no other alias."""
        by_name = {path: (origin, path, real) for origin, path, real in self.aliases}
        return [
            by_name[path]
            for path in by_name
            if self._shown_by(path) is None
            and not system_view.through_link(path)
            and not any(other != path and granted_paths.within(path, other) for other in by_name)
        ]

    def _pinned(self) -> list[Operation]:
        """What decides about the next launch, where it lies in a tree that is written, or may lie in the workspace."""
        if not self.write and self.profile.filesystem.workspace == "none":
            return []
        own = (os.path.dirname(__file__), sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(sys.executable)))
        names = (*own, *(name for name, _ in self.profile.files if os.path.isabs(name)))
        paths = [os.path.realpath(name) for name in names]
        for path, origin in self.write.items():
            fixed = next((fixed for fixed in paths if granted_paths.within(path, fixed)), None)
            if fixed is not None:
                raise CompileError(
                    f"writing {path} would reach {fixed}, which decides about the next launch as the profile, osmoda "
                    "itself and its interpreter do",
                    origin,
                )
        outermost = [path for path in paths if not any(_inside(path, other) for other in paths)]
        shown = [path for path in outermost if not any(granted_paths.within(path, denied) for denied in self.denied)]
        trees = tuple(os.fsencode(tree) for tree in self.write)
        pinned = tuple(os.fsencode(path) for path in dict.fromkeys(shown))
        return [mounting.Pinned(f"tier {self.profile.tier}", pinned, trees)]

    def _read_operation(self, path: str, origin: str) -> Operation:
        name = os.fsencode(path)
        if not os.path.isdir(path):
            return mounting.ReadFile(origin, name)
        hidden = self._hidden(path)
        if any(granted_paths.within(mount, path) and mount != path for mount in self.mounts):
            return mounting.ReadMounts(origin, name)
        self.staged = True
        return mounting.ReadTree(origin, name, tuple(os.fsencode(part) for part in hidden))

    def _masks(self) -> list[mounting.Mask]:
        masks = []
        for path, origin in self.denied.items():
            shown = self._shown_by(path)
            if shown is not None and (shown in self.write or self._holds_mounts(shown)):
                how = "written directly" if shown in self.write else "made of several file systems"
                kind = f"{shown}, which is {how}"
                if not os.path.lexists(path):
                    raise CompileError(f"{path} does not exist and so cannot be denied in {kind}; create it", origin)
                if os.path.islink(path):
                    raise CompileError(
                        f"{path} is a symbolic link, which cannot be denied in {kind}; deny what it leads to, "
                        f"{os.path.realpath(path)}",
                        origin,
                    )
                masks.append(mounting.Mask(origin, os.fsencode(path), True))
            elif self.profile.filesystem.workspace != "none":
                # Also where a granted tree hides it: the workspace may lie in that tree, and is mounted over it.
                masks.append(mounting.Mask(origin, os.fsencode(path), False))
        return masks

    def _holds_mounts(self, tree: str) -> bool:
        return tree in self.read and any(mount != tree and granted_paths.within(mount, tree) for mount in self.mounts)


def _inside(path: str, tree: str) -> bool:
    """Whether `path` lies in `tree` and is not `tree` itself."""
    return path != tree and granted_paths.within(path, tree)


def _denied(profile: Profile) -> dict[str, str]:
    """Denied paths and their origins: each as it lies on disk, and where it is a link also what it leads to.

    One that lies in another is left out: what holds it is hidden.
    """
    found: dict[str, str] = {}
    for index, path in enumerate(profile.filesystem.deny):
        origin = profile.origin("filesystem", "deny", index)
        folder, name = os.path.split(path)
        found[os.path.join(os.path.realpath(folder), name)] = origin
        found[os.path.realpath(path)] = origin
    return {
        path: origin
        for path, origin in found.items()
        if not any(other != path and granted_paths.within(path, other) for other in found)
    }


def _process_limits(profile: Profile, features: Features) -> list[Operation]:
    limits = profile.process.limits
    operations: list[Operation] = []
    for name in ("open_files", "file_size", "address_space", "stack", "core"):
        value = getattr(limits, name)
        if value is not None and not (name == "core" and _without_cores(profile)):
            operations.append(confinement.ProcessLimit(profile.origin("process", "limits", name), name, value))
    if profile.tier > 0 and not features.uncounted:
        # pid 1 counts too. The kernel counts per user namespace and uid since 5.14, so these are this sandbox's own; in
        # tier 0 they would be the caller's.
        pids = profile.process.pids + 1
        operations.append(confinement.ProcessLimit(profile.origin("process", "pids"), "processes", pids))
    return operations


def _without_cores(profile: Profile) -> bool:
    return profile.tier > 0 and profile.process.limits.core == 0


def _no_core_dumps(profile: Profile, features: Features) -> Iterator[Operation]:
    if _without_cores(profile):
        origin = profile.origin("process", "limits", "core")
        yield confinement.NoCoreDumps(origin, seccomp.keep_core_limit(features.machine))


@functools.lru_cache(maxsize=64)
def _program(allowed: frozenset[str], machine: str, families: tuple[str, ...], notify: bool, tier: int) -> bytes:
    """Nine tenths of a compilation, and the same for most profiles: a supervisor compiles many."""
    return seccomp.build(allowed, arch=machine, families=families, notify=notify, tier=tier)


def _filter(profile: Profile, features: Features, degraded: _Degraded) -> Operation:
    origin = profile.origin("process", "syscalls")
    notify = features.notify
    if not notify:
        degraded.allow("notify", "this kernel cannot report refused system calls (Linux 5.0)", f"tier {profile.tier}")
    try:
        allowed = seccomp.allowed(profile.process.syscalls, tier=profile.tier)
        program = _program(allowed, features.machine, tuple(profile.network.families), notify, profile.tier)
    except ValueError as error:
        raise CompileError(f"process.syscalls: {error}", origin) from None
    return confinement.Seccomp(origin, program, len(allowed), notify)
