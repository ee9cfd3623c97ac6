"""systemd as pid 1 in a container on this host's kernel: in a second where a machine takes half a minute.

What it lacks beside a machine: controllers of cgroup v2, where this host has none. It answers as a machine does
(machine.py), into a file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.machine import LAST_BYTES, NO_STATUS, Answers
from tests.vm.supplies import Missing

SCRIPT = Path(__file__).with_name("container.sh")
PATIENCE = 30.0  # seconds, for what was killed to be gone


@dataclass(frozen=True)
class Container:
    """What to boot: a root file system, of which nothing is changed, and the unit to be started there."""

    root: Path
    unit: str
    folder: Path
    word: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def shared(self) -> Path:
        """The folder that is `/shared` inside."""
        return self.folder / "shared"

    def run(self, seconds: float) -> int:
        """Boot it, print what comes in `/shared/answers`, and give the status in it, or 124."""
        if shutil.which("systemd-nspawn") is None:
            raise Missing("systemd-nspawn is not installed; packaging/bootstrap test installs what is needed")
        self.shared.mkdir(exist_ok=True)
        began = time.monotonic()
        answers = Answers(self.shared / "answers", self.word, began)
        console = self.folder / "console.log"
        with control_groups(f"container-{self.word}") as groups, console.open("wb") as said:
            command = ["unshare", "--mount", "--propagation", "private", "sh", SCRIPT, self.root, self.shared]
            process = subprocess.Popen(
                [*command, self.unit, *groups], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
            try:
                while answers.status is None and time.monotonic() < began + seconds:
                    ended = process.poll() is not None
                    answers.read()
                    if ended:
                        break
                    time.sleep(0.05)
            finally:
                # Asked, nspawn would have it shut down at leisure; killed, it leaves it running.
                process.kill()
                process.wait()
                kill(groups)
        took = time.monotonic() - began
        if answers.status is None:
            print(f"vm: the container gave no status in {took:.0f} s; the last of its console:", flush=True)
            print(console.read_bytes()[-LAST_BYTES:].decode(errors="replace"), flush=True)
            return NO_STATUS
        print(f"» status {answers.status} after {took:.0f} s", flush=True)
        return answers.status


@contextlib.contextmanager
def control_groups(name: str) -> Iterator[list[Path]]:
    """A group below this process's in the hierarchies that systemd and nspawn make groups in; v2 is the first.

    Its name says nothing of osmoda: tests that run beside this take groups that do for what they have left.
    """
    groups: list[Path] = []
    try:
        for place in hierarchies():
            (place / name).mkdir()
            groups.append(place / name)
        yield groups
    finally:
        for group in groups:
            remove(group)


def hierarchies() -> list[Path]:
    """This process's groups: in v2, and where there is one in v1's hierarchy of systemd's own."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers or "cgroup2"] = path
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        kind, _, options = after.split(" ", 2)
        top, point = before.split()[3:5]
        named = "name=systemd" if kind == "cgroup" and "name=systemd" in options.split(",") else kind
        if top == "/" and named in ("cgroup2", "name=systemd") and named in own:
            found.setdefault(named, Path(point + own[named]))
    if "cgroup2" not in found:
        raise Missing("cgroup v2 is not mounted here, which systemd in a container needs")
    return [found[kind] for kind in ("cgroup2", "name=systemd") if kind in found]


def kill(groups: list[Path]) -> None:
    """End every process in them, and wait until they are gone. Raises TimeoutError."""
    (groups[0] / "cgroup.kill").write_text("1")
    end = time.monotonic() + PATIENCE
    while "populated 1" in (groups[0] / "cgroup.events").read_text():
        if time.monotonic() > end:
            raise TimeoutError(f"processes of the container are left in {groups[0]}")
        time.sleep(0.02)


def remove(group: Path) -> None:
    """Remove it with the groups below; its processes are gone, but a group may be busy a moment longer."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return
