"""The systemd lane: limits.py on a host that systemd has booted, with a manager for an ordinary user."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import shutil
from collections.abc import Iterator, Sequence
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
SCRIPT = '{{ status=0; {} || status=$?; printf "\\n%s %s\\n" {} "$status"; }} 2>&1 | cat >{}\n'
TARGET = "checks.target"


def run(where: Path, wheel: Path, folder: Path, checks: Sequence[str], seconds: float) -> int:
    """Run all checks, or those that are named: their exit status."""
    image = supplies.kernel(where)
    with root_in_use(where, wheel) as root:
        share = f"local,path={root},mount_tag=osmoda,security_model=none,readonly=on"
        machine = Machine(
            image,
            folder,
            options=("--root", str(root), "--systemd", "--rw"),
            kernel_options=(f"systemd.unit={TARGET}",),
            devices=("-virtfs", share, "-no-reboot"),
        )
        shutil.copy(LIMITS, root)
        init = root / "usr/sbin/init"
        init.unlink()
        init.write_text(INIT)
        init.chmod(0o755)
        to_do(root, shlex.join(["python3", "/limits.py", *checks]), machine.word, "/dev/ttyS1")
        return machine.run(seconds)


@contextlib.contextmanager
def root_in_use(where: Path, wheel: Path) -> Iterator[Path]:
    """A root with systemd and what the wheel holds, for one lane at a time."""
    with open(where / ".using-root", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield supplies.root(where, wheel)


def to_do(root: Path, command: str, word: str, answers: str) -> None:
    """Have what boots from it run a shell command: its output goes to `answers`, then the word with its status."""
    (root / "checks.sh").write_text(SCRIPT.format(command, word, answers))
    units = root / "etc/systemd/system"
    (units / "checks.service").write_text(CHECKS)
    (units / TARGET).write_text("[Unit]\nRequires=checks.service\n")
