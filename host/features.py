"""What this host offers: which layers its kernel and its set-up can enforce."""

from __future__ import annotations

import posix

from osmoda.host import cgroup, syscalls
from osmoda.host.delegation import read_file as _read
from osmoda.host.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECCOMP_RET_USER_NOTIF = 0x7FC00000
# What a sandbox with a host uid of its own needs: to map it, and to make idmapped mounts.
_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21
_NEEDED = (1 << _CAP_SETGID) | (1 << _CAP_SETUID) | (1 << _CAP_SYS_ADMIN)
_OWN_UIDS = range(1879048192, 1879048192 + 65536)
_APPARMOR_SWITCH = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


@frozen
class Features:
    """The layers that can be had here.

    `kernel` is (major, minor); `landlock` an ABI number, 0 for none; `notify` whether refused calls can be reported.
    `privileged`: sandboxes get a host uid of their own and idmapped mounts. `controllers` are those of
    `cgroup_version` (0: none) in which this process may set limits. `user_namespaces` is the limit in force, 0 when
    they are switched off; `apparmor_restricted` tells that AppArmor takes capabilities away in them (Ubuntu 24.04).
    `scope`: the controllers are those of a scope that systemd is asked for at the launch; `refusal` says why it gave
    none to this process, empty when it was not asked or did. `ipv6`: this kernel has it. `uncounted`: the kernel does
    not hold processes of this user to their number (RLIMIT_NPROC).
    """

    kernel: tuple[int, int]
    release: str
    machine: str
    uid: int
    privileged: bool
    user_namespaces: int
    apparmor_restricted: bool
    landlock: int
    notify: bool
    cgroup_version: int
    controllers: tuple[str, ...]
    last_capability: int
    ipv6: bool = True
    scope: bool = False
    refusal: str = ""
    uncounted: bool = False


def probe() -> Features:
    """Look; nothing is changed and nothing is left behind."""
    name = posix.uname()
    hierarchy = cgroup.find()
    own_uids = privileged()
    return Features(
        kernel=_version(name.release),
        release=name.release,
        machine=name.machine,
        uid=posix.geteuid(),
        privileged=own_uids,
        user_namespaces=_number("/proc/sys/user/max_user_namespaces", 0),
        apparmor_restricted=_number(_APPARMOR_SWITCH, 0) == 1 and posix.geteuid() != 0,
        landlock=syscalls.landlock_abi(),
        notify=syscalls.seccomp_action_available(_SECCOMP_RET_USER_NOTIF),
        cgroup_version=hierarchy.version,
        controllers=tuple([controller for controller, _ in hierarchy.places]),
        last_capability=_number("/proc/sys/kernel/cap_last_cap", 40),
        ipv6=_ipv6(),
        scope=hierarchy.scope,
        refusal=cgroup.refusal(),
        uncounted=_uncounted(own_uids),
    )


def privileged() -> bool:
    """Whether this process may map a foreign uid and make idmapped mounts: root, and not only in a container."""
    if posix.geteuid() != 0:
        return False
    status = _read("/proc/self/status")
    effective = int(status.partition("CapEff:")[2].split(None, 1)[0], 16)
    if effective & _NEEDED != _NEEDED:
        return False
    for line in _read("/proc/self/uid_map").splitlines():
        first, _, count = map(int, line.split())
        if first <= _OWN_UIDS.start and first + count >= _OWN_UIDS.stop:
            return True
    return False


def _uncounted(own_uids: bool) -> bool:
    """Whether sandboxes run as the host's root, whom no limit of processes holds (copy_process in kernel/fork.c).

    That is so where root is not privileged enough to give them a uid of their own, in a container for instance; unless
    its root is another user outside.
    """
    if own_uids or posix.geteuid() != 0:
        return False
    maps = [line.split() for line in _read("/proc/self/uid_map").splitlines()]
    return any(first == outside == "0" for first, outside, _ in maps)


def fingerprint() -> tuple[Any, ...]:
    """What a compiled plan depends on and can be read in microseconds: another value, another plan."""
    name = posix.uname()
    hierarchy = cgroup.find()
    own_uids = privileged()
    return (
        name.release,
        name.version,
        name.machine,
        posix.geteuid(),
        own_uids,
        syscalls.landlock_abi(),
        _ipv6(),
        hierarchy.version,
        tuple([controller for controller, _ in hierarchy.places]),
        _uncounted(own_uids),
    )


def _ipv6() -> bool:
    """Whether the kernel speaks IPv6, or was told not to (ipv6.disable=1)."""
    try:
        posix.stat("/proc/net/if_inet6")
    except OSError:
        return False
    return True


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = ""
    for letter in rest:
        if not letter.isdigit():
            break
        minor += letter
    return int(major), int(minor or 0)


def _number(path: str, default: int) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else default
