"""What the host's files are, for `verdict`: links, kinds, and what their modes give to the sandbox's user."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from osmoda.sandbox.operations import isolation, mounting

if TYPE_CHECKING:
    from osmoda.sandbox.mount_view import Mount
    from osmoda.sandbox.plan import Plan

_BITS = {"read": 4, "list": 4, "write": 2, "exec": 1}


class HostFiles:
    """The files of this host, as a sandbox of `plan` started by the calling user meets them. See `mount_view.Host`."""

    def __init__(self, plan: Plan) -> None:
        identities = [op for op in plan.operations if isinstance(op, isolation.Identity)]
        self._own_uid = bool(identities) and identities[0].own_host_uid

    def readlink(self, path: str) -> str | None:
        """What the symbolic link `path` holds; None where it is no link or cannot be looked at."""
        try:
            return os.readlink(path)
        except OSError:
            return None

    def kind(self, path: str) -> str | None:
        """A "file", "directory" or "other", "absent", or None where the caller may not look."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "absent"
        except OSError:
            return None
        return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"

    def permits(self, path: str, mode: str, mount: Mount) -> bool | None:
        """Whether the file modes from the mount's root down to `path` give `mode`; None where that cannot be seen."""
        mount = mount.base
        overlaid = isinstance(mount.operation, mounting.OverlayWorkspace)
        try:
            if not os.path.lexists(path):
                path = os.path.dirname(path)
                return self._climbs(path, mount) and self._gives(path, mode, mount) and self._gives(path, "exec", mount)
            if os.geteuid() != 0 and not overlaid:
                wanted = _BITS[mode] | (1 if mode == "write" and os.path.isdir(path) else 0)
                return os.access(path, wanted)
            return self._climbs(os.path.dirname(path), mount) and self._gives(path, mode, mount)
        except OSError:
            return None

    def _climbs(self, folder: str, mount: Mount) -> bool:
        """Whether every folder from the mount's root down to `folder` may be passed."""
        while len(folder) >= len(mount.target):
            if not self._gives(folder, "exec", mount):
                return False
            if folder == "/":
                break
            folder = os.path.dirname(folder)
        return True

    def _gives(self, path: str, mode: str, mount: Mount) -> bool:
        status = os.lstat(path)
        user, group = self._identity(mount)
        bits = _BITS[mode]
        if mode == "write" and self._own_uid and (status.st_uid not in user or status.st_gid not in group):
            return False  # an inode whose ids the mount does not map cannot be written (idmappings.rst)
        if status.st_uid in user:
            return bool(status.st_mode >> 6 & bits)
        if status.st_gid in group:
            return bool(status.st_mode >> 3 & bits)
        return bool(status.st_mode & bits)

    def _identity(self, mount: Mount) -> tuple[set[int], set[int]]:
        """The uids and gids of the host that the sandbox's user counts as in `mount`."""
        if not self._own_uid:
            return {os.geteuid()}, {os.getegid(), *os.getgroups()}
        if isinstance(mount.operation, mounting.SystemTree):
            return set(), set()
        owner = os.lstat(mount.target)  # the mount maps the owner of its root to the sandbox's user
        return {owner.st_uid}, {owner.st_gid}
