"""systemd itself, booted as pid 1 by systemd-nspawn, and what it says of units."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.supplies import Missing

FOLDER = "/agreement"
SECONDS = 600  # for all questions; they take 20, and much longer on a busy machine
# What systemctl(1) show prints, with types. One line a unit, or an empty one where systemd takes the name for none.
SCRIPT = """#!/bin/sh
exec >/agreement/answers 2>/agreement/errors
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/osrelease /proc/sys/kernel/hostname
call() { busctl --json=short call org.freedesktop.systemd1 "$@"; }
while read -r name; do
    path=$(call /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager LoadUnit s "$name" |
        sed 's/.*\\["\\(.*\\)"\\].*/\\1/')
    if [ -z "$path" ] || ! call "$path" org.freedesktop.DBus.Properties GetAll s ""; then echo; fi
done </agreement/names
while read -r name; do systemctl start "$name"; done </agreement/starts
echo done
"""
ASKING = "agreement-ask.service"
UNIT = """[Unit]
Requires=dbus.service
After=dbus.service

[Service]
Type=oneshot
ExecStart=/bin/sh /agreement/ask
ExecStopPost=/usr/bin/systemctl poweroff --force --force
"""


@dataclass(frozen=True)
class Answers:
    """Properties by the names that were asked for, what started units said, and the host that systemd ran on."""

    boot_id: str
    kernel_release: str
    hostname: str
    properties: dict[str, dict[str, Any]]
    said: dict[str, bytes]


def ask(
    root: Path, units: Path, names: Sequence[str], starts: Sequence[str] = (), files: Mapping[str, str] | None = None
) -> Answers:
    """What systemd makes of these units, whose files are in `units` or are its own.

    Those in `starts` are started, and find `files` in FOLDER; what they write to NAME.said there is handed back.
    """
    nspawn = shutil.which("systemd-nspawn")
    if nspawn is None:
        raise Missing("systemd-nspawn is not installed; packaging/bootstrap test installs what is needed")
    with tempfile.TemporaryDirectory(prefix="osmoda-agreement-") as folder:
        there = Path(folder)
        (there / "names").write_text("".join(f"{name}\n" for name in names))
        (there / "starts").write_text("".join(f"{name}\n" for name in starts))
        for name, text in (files or {}).items():
            (there / name).write_bytes(text.encode())
        (there / "errors").touch()
        (there / "ask").write_text(SCRIPT)
        (there / ASKING).write_text(UNIT)
        command = [
            *("unshare", "--mount", "--propagation", "private", nspawn, "--quiet", "--boot", "--volatile=overlay"),
            *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *(f"--machine=agreement-{os.getpid()}", f"--directory={root}", f"--bind={there}:/agreement"),
            f"--bind-ro={there}/{ASKING}:/etc/systemd/system/{ASKING}",
            *(f"--bind-ro={units}:/usr/local/lib/systemd/system", f"systemd.unit={ASKING}"),
        ]
        with (
            open(there / "console", "wb") as console,
            _control_groups() as groups,
            _running(command, console.fileno(), groups) as process,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            process.wait(SECONDS)
        answers = there / "answers"
        lines = answers.read_text().splitlines() if answers.exists() else []
        if len(lines) != len(names) + 4:
            said = "".join((there / name).read_text(errors="replace")[-1000:] for name in ("console", "errors"))
            raise Missing(
                f"{len(lines)} lines of {len(names) + 4} came from systemd under systemd-nspawn: {said.strip()}"
            )
        boot_id, release, hostname, *found = lines[:-1]
        properties = {name: _properties(line) for name, line in zip(names, found, strict=True) if line}
        said = {path.name.removesuffix(".said"): path.read_bytes() for path in there.glob("*.said")}
        return Answers(boot_id.replace("-", ""), release, hostname, properties, said)


@contextlib.contextmanager
def _control_groups() -> Iterator[list[Path]]:
    """Groups of its own in the hierarchies that systemd uses: nspawn leaves those that it makes below its own."""
    below = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, name, path = line.split(":", 2)
        below["unified" if number == "0" else name.removeprefix("name=")] = path.lstrip("/")
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        parents = [top / below["unified"]]
    else:  # version 1, with or without the second one beside it
        parents = [
            top / name / below[name] for name in ("unified", "systemd") if name in below and (top / name).exists()
        ]
    name = f"agreement-{os.getpid()}"  # not as sandboxes are called: tests look for what these leave behind
    groups = [parent / name for parent in parents]
    try:
        for group in groups:
            group.mkdir()
        yield groups
    finally:
        deadline = time.monotonic() + 30
        while any(group.exists() for group in groups):
            for group in groups:
                for folder, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):  # a killed process may still be on its way out
                        os.rmdir(folder)
            if time.monotonic() > deadline:
                raise Missing(f"{groups} cannot be removed")
            time.sleep(0.02)


@contextlib.contextmanager
def _running(command: list[str], console: int, groups: list[Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone behind the block: nspawn's first process ends with it, and all that it started."""
    enter = [
        "sh",
        "-c",
        "".join(f"echo $$ >{shlex.quote(str(one))}/cgroup.procs && " for one in groups) + 'exec "$@"',
        "sh",
    ]
    process = subprocess.Popen(
        [*enter, *command], stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _properties(line: str) -> dict[str, Any]:
    (values,) = json.loads(line)["data"]
    return {name: value["data"] for name, value in values.items()}
