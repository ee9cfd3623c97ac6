"""What the mount operations of a plan make visible: the steps of the launch, on names instead of descriptors."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Protocol

from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.operations import mounting

if TYPE_CHECKING:
    from osmoda.sandbox.operations import Operation
    from osmoda.sandbox.plan import Plan

_MOST_LINKS = 40  # as the kernel: path_resolution(7)


class Host(Protocol):
    """What a view asks about the host's files; see `host_files.HostFiles`, and `Unknown`, which knows nothing."""

    def readlink(self, path: str) -> str | None:
        """What the symbolic link `path` holds; None where it is no link."""
        ...

    def kind(self, path: str) -> str | None:
        """A "file", "directory" or "other"; "absent" where there is nothing, None where that is not known."""
        ...

    def permits(self, path: str, mode: str, mount: Mount) -> bool | None:
        """Whether the file modes of the host give the sandbox's user `mode`; None where that is not known."""
        ...


class Unknown:
    """A host of which nothing is known: answers hold for plain files that the host's own modes give to everybody."""

    def readlink(self, path: str) -> str | None:
        """No links."""
        del path
        return None

    def kind(self, path: str) -> str | None:
        """Not known."""
        del path
        return None

    def permits(self, path: str, mode: str, mount: Mount) -> bool | None:
        """Not known."""
        del path, mode, mount
        return None


class Mount:
    """One mount of the view.

    `operation` made it; `covered` holds what is mounted on places in it, `made` what the launch itself makes in it and
    of which kind; `base` is the mount whose files it shows once more, itself for all others.
    """

    def __init__(
        self, target: str, operation: Operation, *, read_only: bool, noexec: bool = False, base: Mount | None = None
    ) -> None:
        self.target = target
        self.operation = operation
        self.base = base or self
        self.read_only = read_only
        self.noexec = noexec
        self.covered: dict[str, Mount] = {}
        self.made: dict[str, str] = {}

    def read_only_copy(self) -> Mount:
        """This mount and all on it, as MOUNT_ATTR_RDONLY with AT_RECURSIVE leaves them."""
        copy = Mount(self.target, self.operation, read_only=True, noexec=self.noexec, base=self.base)
        copy.made = self.made
        copy.covered = {place: mount.read_only_copy() for place, mount in self.covered.items()}
        return copy

    @property
    def shows_host(self) -> bool:
        """Whether what lies in it are files of the host, at their own names."""
        kinds = (mounting.SystemTree, mounting.Grant, mounting.DirectWorkspace, mounting.OverlayWorkspace)
        return isinstance(self.base.operation, kinds)

    def hides(self, path: str) -> str | None:
        """The denied name at or above `path` that a whiteout takes out of this mount, if one does."""
        operation = self.operation
        if not isinstance(operation, (mounting.SystemTreeWithout, mounting.ReadTree)):
            return None
        for name in operation.hidden:
            denied = posixpath.join(self.target, _text(name))
            if within(path, denied):
                return denied
        return None


class View:
    """The file system inside: `root` and what is mounted in it; `links` are symbolic links that the launch makes."""

    def __init__(self, plan: Plan, workspace: bytes) -> None:
        self.workspace = _text(workspace)
        self.links: dict[str, str] = {}
        self.root: Mount | None = None
        for operation in plan.operations:
            if operation.layer in ("mounts", "workspace"):
                self._add(operation)

    def _add(self, operation: Operation) -> None:
        match operation:
            case mounting.Root():
                self.root = Mount("/", operation, read_only=False)
                self.root.made["/"] = "directory"
            case mounting.Skeleton():
                assert self.root is not None
                self.root.made.update((f"/{_text(name)}", "directory") for name in operation.directories)
                self.root.made.update((f"/{_text(name)}", "file") for name, _ in operation.files)
                self.links.update((f"/{_text(name)}", _text(target)) for name, target in operation.links)
            case mounting.SystemTree():
                self._attach(_text(operation.path), operation, read_only=True)
            case mounting.Scratch():
                self._attach(_text(operation.path), operation, read_only=False)
            case mounting.Proc():
                # Mounted read-write, and read-only from `Seal` on, before anything of the profile runs.
                self._attach("/proc", operation, read_only=True, noexec=True)
            case mounting.Devices():
                for name in (*operation.names, b"pts"):
                    self._attach(f"/dev/{_text(name)}", operation, read_only=False, noexec=True)
            case mounting.WriteTree():
                self._attach(_text(operation.path), operation, read_only=False)
            case mounting.Grant():
                self._attach(_text(operation.path), operation, read_only=True)
            case mounting.DirectWorkspace() | mounting.OverlayWorkspace():
                self._attach(self.workspace, operation, read_only=False)
            case mounting.Mask():
                path = _text(operation.path)
                if operation.always or path.startswith(self.workspace + "/"):
                    self._attach(path, operation, read_only=True, noexec=True)
            case mounting.Pinned():
                written = tuple(f"{tree}/" for tree in (*map(_text, operation.trees), self.workspace) if tree)
                for path in map(_text, operation.paths):
                    if path.startswith(written):
                        self._pin(path, operation)
            case mounting.Alias():
                self._make_place(posixpath.dirname(_text(operation.path)))
                self.links[_text(operation.path)] = _text(operation.target)
            case mounting.Seal():
                assert self.root is not None
                self.root.read_only = True
            case _:
                raise TypeError(f"no view of {type(operation).__name__}")

    def _attach(self, target: str, operation: Operation, *, read_only: bool, noexec: bool = False) -> None:
        self._make_place(target)
        below = self.mount_of(target)
        below.covered[target] = Mount(target, operation, read_only=read_only, noexec=noexec)

    def _pin(self, path: str, operation: Operation) -> None:
        """Mount what is there once more, read-only, with all that is mounted below it."""
        below = self.mount_of(path)
        copy = Mount(path, operation, read_only=True, base=below.base)
        copy.covered = {place: mount.read_only_copy() for place, mount in below.covered.items() if within(place, path)}
        below.covered[path] = copy

    def _make_place(self, path: str) -> None:
        """Folders on the way that are not there yet; in a mount of the host's files they are, or the launch fails."""
        while path != "/":
            mount = self.mount_of(path)
            if mount.shows_host or path == mount.target:
                break
            mount.made.setdefault(path, "directory")
            path = posixpath.dirname(path)

    def mount_of(self, path: str) -> Mount:
        """The mount that a look-up of the normalised `path`, without links in it, ends in."""
        mount = self.root
        assert mount is not None
        prefix = ""
        for part in ("", *path.strip("/").split("/")):
            prefix = posixpath.join(prefix or "/", part)
            while prefix in mount.covered:
                mount = mount.covered[prefix]
        return mount

    def resolve(self, path: str, host: Host) -> str | None:
        """`path` without symbolic links, as a look-up inside goes; None where they lead in a circle."""
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        here = "/"
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                here = posixpath.dirname(here)
                continue
            candidate = posixpath.join(here, part)
            target = self._link(candidate, host)
            if target is None:
                here = candidate
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if target.startswith("/"):
                here = "/"
            pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        return here

    def _link(self, path: str, host: Host) -> str | None:
        mount = self.mount_of(path)
        if mount is self.root:
            return self.links.get(path)
        if mount.shows_host and path != mount.target and mount.hides(path) is None:
            return host.readlink(path)
        return None


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
