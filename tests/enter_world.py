"""Become an ordinary user who sees the interpreter and the project, then run a command: `enter_world.py SPEC COMMAND…`.

SPEC is JSON: `uid`, `gid`, `cwd`, and `paths`, which must be reachable. Run by root. A path that lies in a directory
closed to others (root's home, say) comes into view in a private mount namespace: a tmpfs over the closed directory,
and the path bound into it at its own name. Nothing is copied, the host is not changed, the process id stays the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import sys

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 0x1, 0o2000000, 0x4
SYS_OPEN_TREE, SYS_MOVE_MOUNT = 428, 429  # the same on every architecture

APPARMOR_RESTRICTION = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
APPARMOR_PROFILE = "osmoda-sandbox"

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def closed_ancestor(path: str) -> str | None:
    """The topmost directory on the way to `path` that others may not pass."""
    ancestor = ""
    for part in path.strip("/").split("/")[:-1]:
        ancestor += "/" + part
        if not os.stat(ancestor).st_mode & stat.S_IXOTH:
            return ancestor
    return None


def bring_into_view(paths: list[str]) -> None:
    hidden: dict[str, list[str]] = {}
    for path in sorted({os.path.realpath(path) for path in paths}):
        ancestor = closed_ancestor(path)
        if ancestor is not None and not any(path.startswith(other + "/") for other in hidden.get(ancestor, [])):
            hidden.setdefault(ancestor, []).append(path)
    if not hidden:
        return
    checked(libc.unshare(CLONE_NEWNS), "unshare")
    checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount --make-rprivate /")
    for ancestor, inside in hidden.items():
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
        trees = [
            checked(libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags), f"open_tree {path}")
            for path in inside
        ]
        kinds = [os.path.isdir(path) for path in inside]
        options = ctypes.c_ulong(MS_NOSUID | MS_NODEV)
        checked(libc.mount(b"tmpfs", os.fsencode(ancestor), b"tmpfs", options, b"mode=755"), f"mount tmpfs {ancestor}")
        for path, tree, is_directory in zip(inside, trees, kinds, strict=True):
            os.makedirs(path if is_directory else os.path.dirname(path), exist_ok=True)
            if not is_directory:
                os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC))
            moved = libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(path), MOVE_MOUNT_F_EMPTY_PATH)
            checked(moved, f"move_mount {path}")
            os.close(tree)


def allow_user_namespaces() -> None:
    """Where AppArmor keeps ordinary users from user namespaces, take on the profile that is shipped for that."""
    try:
        with open(APPARMOR_RESTRICTION) as file:
            restricted = file.read().strip() == "1"
        if restricted:
            with open("/proc/self/attr/exec", "w") as file:
                file.write(f"exec {APPARMOR_PROFILE}")
    except FileNotFoundError:
        pass


def main() -> None:
    spec = json.loads(sys.argv[1])
    command = sys.argv[2:]
    os.umask(0o022)
    bring_into_view(spec["paths"])
    os.setgroups([])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    os.chdir(spec["cwd"])
    allow_user_namespaces()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
