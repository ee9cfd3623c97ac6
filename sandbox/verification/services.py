"""Where the services of a system listen: what answers there would act for a sandbox with its own rights."""

from __future__ import annotations

import glob
import os
import stat

_KNOWN = (
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/systemd/private",
    "/run/systemd/journal/stdout",
    "/run/systemd/notify",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/snapd.socket",
    "/run/libvirt/libvirt-sock",
    "/run/avahi-daemon/socket",
    "/run/cups/cups.sock",
    "/run/user/{uid}/bus",
    "/run/user/{uid}/docker.sock",
    "/run/user/{uid}/podman/podman.sock",
    "/run/user/{uid}/systemd/private",
    "/run/user/{uid}/pulse/native",
    "/run/user/{uid}/pipewire-0",
    "/run/user/{uid}/wayland-0",
    "/run/user/{uid}/gnupg/S.gpg-agent",
    "/tmp/.X11-unix/X0",
    "/tmp/.X11-unix/X1",
    "/tmp/tmux-{uid}/default",
)


def found() -> tuple[str, ...]:
    """The unix sockets of that list that are on this host, and the caller's SSH agent."""
    names = [name.format(uid=os.getuid()) for name in _KNOWN]
    names += [os.environ.get("SSH_AUTH_SOCK", ""), *sorted(glob.glob("/tmp/ssh-*/agent.*"))]
    return tuple(dict.fromkeys(name for name in names if name and _is_socket(name)))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
