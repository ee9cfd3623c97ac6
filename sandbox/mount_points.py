"""Where file systems are mounted on this host."""

from __future__ import annotations

import os


def mount_points() -> tuple[str, ...]:
    """Each mount point, as this process sees it (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as lines:
        fields = [line.split()[4] for line in lines]
    return tuple(os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields)
