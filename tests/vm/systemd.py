"""The systemd lane: limits.py on a host that systemd has booted, with a manager for an ordinary user."""

from __future__ import annotations

import fcntl
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.vm import supplies
from tests.vm.machine import Machine

LIMITS = Path(__file__).with_name("limits.py")
# The machine's /sbin/init. What is read most comes over a mount that keeps what it has read: the root's own asks the
# host each time.
INIT = """#!/bin/sh
mkdir /run/cached
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any,ro osmoda /run/cached
mount --bind /run/cached/usr /usr
mount --bind /run/cached/opt /opt
exec /usr/lib/systemd/systemd
"""
CHECKS = """[Unit]
Requires=basic.target user@1000.service dbus.service
After=basic.target user@1000.service dbus.service

[Service]
Type=oneshot
Environment=PYTHONUNBUFFERED=1
ExecStart=/bin/sh /checks.sh
ExecStopPost=/usr/bin/systemctl poweroff --force --force
"""
# Through a pipe: a program that sees a terminal behaves otherwise.
SCRIPT = (
    '{{ status=0; python3 /limits.py {} || status=$?; printf "\\n%s %s\\n" {} "$status"; }} 2>&1 | cat >/dev/ttyS1\n'
)


def run(where: Path, wheel: Path, folder: Path, checks: Sequence[str], seconds: float) -> int:
    """Run all checks, or those that are named: their exit status."""
    image = supplies.kernel(where)
    with open(where / ".using-root", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = supplies.root(where, wheel)
        share = f"local,path={root},mount_tag=osmoda,security_model=none,readonly=on"
        machine = Machine(
            image,
            folder,
            options=("--root", str(root), "--systemd", "--rw"),
            kernel_options=("systemd.unit=osmoda-checks.target",),
            devices=("-virtfs", share, "-no-reboot"),
        )
        shutil.copy(LIMITS, root)
        (root / "checks.sh").write_text(SCRIPT.format(shlex.join(checks), machine.word))
        units = root / "etc/systemd/system"
        init = root / "usr/sbin/init"
        init.unlink()
        init.write_text(INIT)
        init.chmod(0o755)
        (units / "osmoda-checks.service").write_text(CHECKS)
        (units / "osmoda-checks.target").write_text("[Unit]\nRequires=osmoda-checks.service\n")
        return machine.run(seconds)
