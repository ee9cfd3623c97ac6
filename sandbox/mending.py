"""What a host lacks for a layer, and what a person can do about it. Sans-I/O: it judges `Features` and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.host.features import Features

NETWORK_ABI, SCOPE_ABI = 4, 6
"""The Landlock ABI that brought rules for ports, and the one that brought scopes (landlock(7))."""

_GIVE_UP = 'a profile can do without it: degrade = ["{}"]'
LANDLOCK = "Linux 5.13 or later with landlock in lsm= of its command line; " + _GIVE_UP.format("landlock")
LANDLOCK_NET = "Linux 6.7 or later; " + _GIVE_UP.format("landlock-net")
NFTABLES = "nf_tables in the kernel and libnftables on the system (Debian: libnftables1)"
LANDLOCK_SCOPE = "Linux 6.12 or later; " + _GIVE_UP.format("landlock-scope")


def missing_layers(host: Features) -> Iterator[str]:
    """The degradable layers that `host` lacks, the limits aside, as `degrade` names them."""
    if not host.landlock:
        yield "landlock"
    else:
        if host.landlock < NETWORK_ABI:
            yield "landlock-net"
        if host.landlock < SCOPE_ABI:
            yield "landlock-scope"
    if not host.notify:
        yield "notify"


def for_launch(host: Features, message: str) -> str:
    """What to do where a sandbox does not start at all, and said `message`."""
    if not host.user_namespaces:
        return "as root: sysctl user.max_user_namespaces=10000"
    if host.apparmor_restricted:
        return (
            "AppArmor keeps ordinary users from user namespaces (Ubuntu 23.10 and later); as root load the profile "
            "that comes with osmoda: packaging/apparmor/install /path/to/bin/osmoda-sandbox"
        )
    if "fsmount proc" in message or "fsconfig create proc" in message:
        return (
            "parts of /proc are covered here, as in a container; start osmoda outside, or the container with its /proc "
            "uncovered (docker run --security-opt systempaths=unconfined)"
        )
    if "clone3" in message or "unshare" in message:
        return (
            "this kernel or container refuses user namespaces: kernel.unprivileged_userns_clone=1 on Debian kernels, a "
            "seccomp profile for the container that allows them, or osmoda outside of it"
        )
    if host.kernel < (5, 14):
        return "Linux 5.14 or later"
    return ""


def for_controller(host: Features, controller: str) -> str:
    """What to do where no limit of `controller` ("memory" or "cpu") can be set."""
    give_up = _GIVE_UP.format(controller)
    if host.uid:
        return (
            "systemd gives a scope to users whose manager has a bus: install dbus-user-session and, without a login, "
            f"loginctl enable-linger; or start it in a service with Delegate=yes; or {give_up}"
        )
    if host.cgroup_version:
        return f"the {controller} controller is not there at this place of the hierarchy: enable it above; or {give_up}"
    return f"mount a cgroup hierarchy with the {controller} controller; or {give_up}"
