"""Where in the v2 hierarchy this process may make control groups, by the rules of the kernel and of systemd.

cgroups(7) and Documentation/admin-guide/cgroup-v2.rst say what the kernel allows; https://systemd.io/CGROUP_DELEGATION
which groups systemd leaves alone. In any other it may take a controller away again, and a limit with it.
"""

from __future__ import annotations

import posix

from osmoda.host import paths

CONTROLLERS = ("memory", "cpu", "pids")
_BOOTED = "/run/systemd/system"
_SYSTEM_BUS = "/run/dbus/system_bus_socket"


def place(mount: str, own: str, scope: str = "") -> str:
    """The directory in which this process, which is in the group `own`, may make groups; empty for none.

    `mount` is where the hierarchy is mounted, `scope` the name of a scope that systemd has delegated to this process.
    The place has at least one of CONTROLLERS to hand down.
    """
    if not _is_below(own, mount):
        return ""
    # A group with processes of others in it cannot hand controllers down, and they are not ours to move.
    given = bool(scope) and own.endswith(f"/{scope}")
    alone = is_root(own) or _processes(own) <= {str(posix.getpid())}
    if _may_rule(own) and alone and (given or _is_delegated(own)):
        return own if controllers(own) else ""
    # A unit with DelegateSubgroup= has its processes in a leaf already (systemd.resource-control(5)).
    parent = own.rpartition("/")[0]
    if _is_below(parent, mount) and is_marked(parent) and not _is_manager(parent) and _may_rule(parent):
        return "" if _processes(parent) or not controllers(parent) else parent
    return ""


def controllers(group: str) -> list[str]:
    """Those of CONTROLLERS that `group` has and may hand down to groups in it."""
    there = read_file(group + "/cgroup.controllers").split()
    return [name for name in CONTROLLERS if name in there]


def is_root(group: str) -> bool:
    """Whether it is the root of the hierarchy, which may hold processes all the same; it alone has no type."""
    return not posix.access(group + "/cgroup.type", posix.F_OK)


def is_marked(group: str) -> bool:
    """Whether systemd says that it has delegated `group`: then it removes it too, with all in it, when it is empty."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if posix.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue  # not there, or for root's eyes only
    return False


def holds_this_process(group: str) -> bool:
    """Whether this process is in `group` itself, and not in a group below it."""
    return str(posix.getpid()) in _processes(group)


def offered(mount: str) -> list[str]:
    """The controllers of a scope that this user's systemd manager could make: those it has itself."""
    uid = posix.geteuid()
    if not posix.access(_BOOTED, posix.F_OK) or not manager_bus():
        return []
    return controllers(f"{mount}/user.slice/user-{uid}.slice/user@{uid}.service" if uid else mount)


def manager_bus() -> str:
    """The socket of the bus on which this user's systemd manager answers (for root the system's); empty without one."""
    uid = posix.geteuid()
    if uid == 0:
        found = [_SYSTEM_BUS]
    else:
        found = [(paths.environment("XDG_RUNTIME_DIR") or f"/run/user/{uid}") + "/bus"]
        address = paths.environment("DBUS_SESSION_BUS_ADDRESS")
        if address.startswith("unix:path="):
            found.append(address[10:].partition(";")[0].partition(",")[0])
    for path in found:
        if posix.access(path, posix.R_OK | posix.W_OK):
            return path
    return ""


def _is_below(path: str, mount: str) -> bool:
    # What lies outside this process's cgroup namespace is shown as /../name.
    return (path + "/").startswith(mount + "/") and "/../" not in path + "/"


def _may_rule(group: str) -> bool:
    files = ("/cgroup.procs", "/cgroup.subtree_control")
    if not all(posix.access(group + name, posix.W_OK) for name in files):
        return False
    return posix.access(group, posix.W_OK | posix.X_OK)


def _is_delegated(group: str) -> bool:
    if not posix.access(_BOOTED, posix.F_OK) or is_marked(group):
        return True
    # A user's manager marks nothing, and before version 251 there is no mark that a user can read. But a group that
    # belongs to an ordinary user is either delegated by the system's manager, or one of the user manager's own.
    uid = posix.geteuid()
    return uid != 0 and posix.stat(group).st_uid == uid and "/user@" not in group


def _is_manager(group: str) -> bool:
    """Whether it is a user manager's own, which is delegated to that manager."""
    return group.rpartition("/")[2].startswith("user@")


def _processes(group: str) -> set[str]:
    return set(read_file(group + "/cgroup.procs").split())


def read_file(path: str) -> str:
    """A short file of the kernel's, empty where there is none or it cannot be opened."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return posix.read(fd, 65536).decode()
    finally:
        posix.close(fd)
