"""The Landlock half of a plan: the file and port rules once more, for a second layer (landlock(7))."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.sandbox.operations import confinement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from osmoda.host.features import Features
    from osmoda.sandbox.profile import Profile

# LANDLOCK_ACCESS_FS_* (linux/landlock.h), with the ABI that brought the later ones.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SINCE = {REFER: 2, TRUNCATE: 3, IOCTL_DEV: 5}
_ALL = (1 << 16) - 1
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_NET_ABI, _SCOPE_ABI = 4, 6
_BIND, _BIND_AND_CONNECT = 1, 3
_SCOPED = 3  # abstract unix sockets, signals

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = _ALL & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
DEVICES = WRITE_FILE | READ_FILE | READ_DIR | TRUNCATE | IOCTL_DEV


def compile_rules(
    profile: Profile,
    features: Features,
    system: Iterable[str],
    read: Iterable[str],
    write: Iterable[str],
    scratch: Iterable[str],
    degrade: Callable[[str, str, str], None],
    *,
    way_out: bool = False,
) -> confinement.Landlock | None:
    """The rules for the view that the mounts make, with every right this kernel's ABI knows; None without Landlock.

    `system` are the host's own trees that are shown, `read` and `write` the declared ones, `scratch` the private ones.

    With a `way_out` only binding ports is ruled here: connections lead nowhere but to the gateway, and an edit of the
    allowlist holds at once, which no rule of Landlock's could follow.

    `degrade(layer, reason, origin)` is told what is missing, and raises CompileError when the profile does not allow
    that.
    """
    tier = f"tier {profile.tier}"
    abi = features.landlock
    if not abi:
        degrade(
            "landlock",
            "this kernel has no Landlock, or it is switched off (Linux 5.13, lsm= on its command line)",
            tier,
        )
        return None
    handled_fs = _ALL
    for right, since in SINCE.items():
        if abi < since:
            handled_fs &= ~right
    handled_net, scoped = (_BIND if way_out else _BIND_AND_CONNECT), _SCOPED
    if profile.network.loopback:
        handled_net = 0
    elif abi < _NET_ABI:
        degrade("landlock-net", "Landlock of this kernel has no rules for ports (Linux 6.7)", tier)
        handled_net = 0
    if abi < _SCOPE_ABI:
        degrade(
            "landlock-scope", "Landlock of this kernel cannot scope signals and abstract sockets (Linux 6.12)", tier
        )
        scoped = 0
    paths: list[tuple[bytes, int]] = [
        (b"/", READ_DIR),
        (b"/etc", READ_FILE | READ_DIR),
        (b"/proc", READ_FILE | READ_DIR),
    ]
    paths.append((b"/dev", DEVICES))
    programs = [path for path in system if not path.startswith("/etc/")]
    paths.extend((os.fsencode(path), READ) for path in programs)
    paths.extend((os.fsencode(path), READ if os.path.isdir(path) else READ & ON_FILES) for path in read)
    paths.extend((os.fsencode(path), WRITE if os.path.isdir(path) else WRITE & ON_FILES) for path in write)
    paths.extend((os.fsencode(path), WRITE) for path in scratch)
    if profile.filesystem.workspace != "none":
        paths.append((b"", WRITE))
    return confinement.Landlock(
        tier,
        handled_fs,
        handled_net,
        scoped,
        abi,
        tuple((path, rights & handled_fs) for path, rights in paths),
        tuple(sorted(profile.network.serve)) if handled_net else (),
        (),
    )
