"""Whether a sandbox may read, write, execute or list a path, decided from the operations of its plan.

Sans-I/O: what must be known about the host's files comes from a `Host`. Each layer is asked in turn: is the path there
at all, does the mount let it through, does Landlock, do the file modes.
"""

from __future__ import annotations

import posixpath
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from osmoda.sandbox import advice as advices
from osmoda.sandbox import landlock_rules
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.mount_view import Unknown, View
from osmoda.sandbox.operations import confinement, mounting

if TYPE_CHECKING:
    from osmoda.sandbox.advice import Advice
    from osmoda.sandbox.mount_view import Host
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

type Mode = Literal["read", "write", "exec", "list"]

MODES: tuple[Mode, ...] = ("read", "write", "exec", "list")

_RIGHTS = {
    "read": landlock_rules.READ_FILE,
    "write": landlock_rules.WRITE_FILE,
    "exec": landlock_rules.EXECUTE,
    "list": landlock_rules.READ_DIR,
}
_MAKE_REG = 1 << 8  # LANDLOCK_ACCESS_FS_MAKE_REG (linux/landlock.h)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`path` is the path inside with its links resolved.

    `layer` refused it, or for what is allowed shows it; `origin` is the file:line (or "tier N") of that layer's
    operation, `reason` a clause. `advice` is None where it is allowed.
    """

    path: str
    mode: Mode
    allowed: bool
    layer: str
    origin: str
    reason: str
    advice: Advice | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def sentence(self) -> str:
        """The answer in one sentence."""
        words = {"read": "read", "write": "written", "exec": "executed", "list": "listed"}[self.mode]
        by = f" by {self.layer}" if not self.allowed and self.layer else ""
        answer = f"may be {words}" if self.allowed else f"may not be {words}: refused{by}"
        more = f"; {self.advice.text}" if self.advice else ""
        origin = f" ({self.origin})" if self.origin else ""
        return f"{self.path} {answer}, {self.reason}{origin}{more}"


def path_verdict(
    plan: Plan,
    workspace: bytes,
    path: str,
    mode: Mode,
    *,
    host: Host | None = None,
    profile: Profile | None = None,
) -> Verdict:
    """What a sandbox of `plan` gets when it tries `mode` on the absolute `path`.

    `workspace` is the directory that it works in, empty for none. "write" on a directory, or on what does not exist,
    means making a file there. With `profile` the advice holds the line to write.
    """
    if plan.tier == 0:
        return Verdict(path, mode, True, "", "", "tier 0 confines nothing")
    view, host = View(plan, workspace), host or Unknown()
    real = view.resolve(path, host)
    if real is None:
        circle = advices.Advice("no layer stands against it")
        return Verdict(path, mode, False, "", "", "its symbolic links lead in a circle", circle)
    question = _Question(plan, view, real, mode, host, profile)
    return (
        question.absent()
        or question.refused_by_kind()
        or question.refused_by_mount()
        or question.refused_by_landlock()
        or question.refused_by_modes()
        or question.allowed()
    )


class _Question:
    """One path and mode, put to one layer after the other; each method gives a refusal or None."""

    def __init__(self, plan: Plan, view: View, path: str, mode: Mode, host: Host, profile: Profile | None) -> None:
        self._plan = plan
        self._view = view
        self._host = host
        self._profile = profile
        self._path = path
        self._mount = view.mount_of(self._path)
        self._operation = self._mount.operation
        self._kind = host.kind(self._path) if self._mount.shows_host else self._own_kind()
        self._mode: Mode = "list" if mode == "read" and self._kind == "directory" else mode

    def _own_kind(self) -> str | None:
        """What the plan itself makes at the path."""
        if isinstance(self._operation, mounting.Scratch) and self._path == self._mount.target:
            return "directory"
        if isinstance(self._operation, mounting.Devices):
            return "directory" if self._path == "/dev/pts" else "other"
        if isinstance(self._operation, mounting.Proc):
            # The same files as in the host's, the processes aside.
            return None if self._host.kind(self._path) == "absent" else self._host.kind(self._path)
        return self._mount.made.get(self._path)

    def _refuse(self, layer: str, reason: str, *, origin: str | None = None, advice: str = "") -> Verdict:
        """A refusal; without `advice` in words, what would grant the path."""
        if advice:
            changed = advices.Advice(advice)
        else:
            write = self._mode == "write"
            changed = advices.for_path(self._path, self._plan.tier, write=write, profile=self._profile)
        if origin is None:
            origin = self._operation.origin
        return Verdict(self._path, self._mode, False, layer, origin, reason, changed)

    def absent(self) -> Verdict | None:
        """Refused because nothing of that name is there."""
        mount, path = self._mount, self._path
        if mount is self._view.root and self._kind is None:
            return self._refuse("mounts", "nothing of this name is mounted")
        hidden = mount.hides(path)
        if hidden is not None:
            return self._refuse("mounts", f"{hidden} is left out of {mount.target}")
        if isinstance(self._operation, mounting.Scratch) and self._kind is None:
            folder = posixpath.dirname(path)
            if self._mode != "write" or (folder != mount.target and folder not in mount.made):
                reason = f"{mount.target} inside is the sandbox's own and starts empty; the host's is not there"
                return self._refuse("mounts", reason)
        if isinstance(self._operation, mounting.Proc) and path.split("/")[2:] and path.split("/")[2].isdigit():
            reason = "/proc shows the processes of the sandbox only, under numbers of its own"
            return self._refuse("namespaces", reason, advice="no profile shows the host's processes")
        if self._kind == "absent" and self._mode != "write":
            return self._refuse("", "the host has no such file", origin="", advice="no layer stands against it")
        return None

    def refused_by_kind(self) -> Verdict | None:
        """Refused by any kernel, sandbox or not."""
        if self._mode == "list" and self._kind in ("file", "other"):
            return self._refuse("", "it is no directory", origin="", advice="only a directory can be listed")
        if self._mode == "exec" and self._kind in ("directory", "other"):
            return self._refuse("", "it is no program", origin="", advice="only a file can be executed")
        return None

    def refused_by_mount(self) -> Verdict | None:
        """Refused by the attributes of the mount."""
        target = self._mount.target
        if isinstance(self._operation, mounting.Mask):
            return self._refuse("mounts", f"{target} is covered by something empty")
        if (
            isinstance(self._operation, mounting.Proc)
            and self._path[6:].encode("utf-8", "surrogateescape") in mounting.COVERED_IN_PROC
        ):
            advice = "no profile shows the keys of the host's users"
            return self._refuse("mounts", f"{self._path} is covered by something empty", advice=advice)
        if self._mode == "write" and self._mount.read_only:
            advice = ""
            if isinstance(self._operation, mounting.Proc):
                advice = "no profile lets a sandbox write to /proc"
            elif isinstance(self._operation, mounting.Pinned):
                advice = "what decides about the next launch is not the sandbox's to change"
            return self._refuse("mounts", f"{target} is mounted read-only", advice=advice)
        if self._mode == "write" and self._kind == "directory" and isinstance(self._operation, mounting.Devices):
            return self._refuse("", "devpts holds terminals only", origin="", advice="no file can be made there")
        if self._mode == "exec" and self._mount.noexec:
            return self._refuse("mounts", f"{target} is mounted noexec", advice="no profile changes that")
        return None

    def refused_by_landlock(self) -> Verdict | None:
        """Refused by the rule set: a right counts from the path itself up to the root (landlock(7))."""
        for operation in self._plan.operations:
            if not isinstance(operation, confinement.Landlock):
                continue
            wanted = _RIGHTS[self._mode]
            if self._mode == "write" and self._kind in ("directory", "absent"):
                wanted = _MAKE_REG
            rights = 0
            for name, granted in operation.paths:
                if within(self._path, name.decode("utf-8", "surrogateescape") or self._view.workspace):
                    rights |= granted
            if wanted & operation.handled_fs & ~rights:
                return self._refuse("landlock", "no rule gives this right here", origin=operation.origin)
        return None

    def refused_by_modes(self) -> Verdict | None:
        """Refused by the file's own modes."""
        if self._mount is self._view.root and self._mode == "exec":
            return self._refuse(
                "permissions", "nothing in the root itself is a program", advice="no profile changes that"
            )
        if self._mount.shows_host and self._host.permits(self._path, self._mode, self._mount) is False:
            reason = "the host's file modes do not give it to the sandbox's user"
            return self._refuse("permissions", reason, origin="", advice="a sandbox never gives more than they do")
        return None

    def allowed(self) -> Verdict:
        """What is left when no layer refuses."""
        missing = "; the host has no such file yet" if self._kind == "absent" else ""
        reason = self._operation.describe() + missing
        return Verdict(self._path, self._mode, True, self._operation.layer, self._operation.origin, reason)
