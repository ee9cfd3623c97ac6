"""A daemon of `osmoda-watch` in a world, with units of the test's own: `watch`.

def test_it(watch):
    watch.unit("agent", ExecStart=f"{PYTHON} agent.py", Restart="always")
    watch.up()
    watch.do("start", "agent")
    assert watch.status("agent")["state"] == "active"
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmoda.supervisor.logs import view as log_view
from tests.worlds import World

PYTHON = "/usr/bin/python3"  # in view in every sandbox
PATIENCE = 30.0  # seconds that anything may take here
_READY = "osmoda-watch: supervising\n"


def eventually[Found](look: Callable[[], Found], what: str) -> Found:
    """What `look` finds once it is something; fails after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"it took too long until {what}"
        time.sleep(0.01)
    return found


class Watch:
    """One daemon, killed and started as a test likes, its units, and the command."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.units = world.tmp / "units"
        self.work = world.tmp / "agents"
        self.errors = world.tmp / "daemon.err"
        self.process: subprocess.Popen[str] | None = None
        for folder in (self.units, self.work):
            folder.mkdir()
            world.own(folder)

    # --- units ---

    def unit(self, name: str, *, section: str = "", unit: str = "", **directives: str | int) -> None:
        """A service in a folder of its own. `section` is that of [X-Osmoda], `unit` lines of [Unit]."""
        folder = self.folder(name)
        lines = [f"[Unit]\n{unit}\n[Service]", f"WorkingDirectory={folder}"]
        lines += [f"{key}={value}" for key, value in directives.items()]
        self.file(f"{name}.service", "\n".join([*lines, "[X-Osmoda]", section, ""]))

    def file(self, name: str, text: str) -> Path:
        """A file among the units."""
        path = self.units / name
        path.write_text(text)
        self.world.own(path)
        return path

    def folder(self, name: str) -> Path:
        """The working directory of a unit."""
        folder = self.work / name
        if not folder.exists():
            folder.mkdir()
            self.world.own(folder)
        return folder

    def program(self, name: str, text: str) -> str:
        """A Python program in the folder of a unit; the value of its ExecStart=."""
        path = self.folder(name) / "main.py"
        path.write_text(text)
        self.world.own(path)
        return f"{PYTHON} main.py"

    # --- the daemon ---

    def up(self, *prefix: str) -> None:
        """Start the daemon, and wait until it takes requests."""
        argv = self.world.osmoda_argv("daemon", "--units", self.units, command="osmoda-watch")
        before = self.errors.read_text().count(_READY) if self.errors.exists() else 0
        with open(self.errors, "a") as errors:
            self.process = self.world.popen([*prefix, *argv], stdin=subprocess.DEVNULL, stderr=errors, text=True)
        eventually(lambda: self.errors.read_text().count(_READY) > before or self._ended(), "the daemon was up")

    def _ended(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon has ended:\n{self.errors.read_text()}"
        return False

    def down(self, number: int = signal.SIGTERM) -> None:
        """End the daemon with a signal."""
        if self.process is not None:
            process, self.process = self.process, None
            process.send_signal(number)
            process.wait(PATIENCE)

    # --- the command ---

    def run(self, *words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """The command, whatever comes of it."""
        return self.world.run(self.world.osmoda_argv(*words, command="osmoda-watch"), **options)

    def do(self, *words: str | os.PathLike[str]) -> str:
        """The command, which must succeed; what it prints."""
        output: str = self.run(*words, check=True).stdout
        return output

    def directory(self, kind: str) -> Path:
        """Where the daemon keeps what it has: "runtime" or "state"."""
        environment = self.world.environment
        own = environment.get(f"OSMODA_{kind.upper()}_DIR")
        other = environment.get({"runtime": "XDG_RUNTIME_DIR", "state": "XDG_STATE_HOME"}[kind], "")
        return Path(own or f"{other}/osmoda") / "watch"

    def ask(self, verb: str, *units: str, **options: str | int | bool) -> dict[str, Any]:
        """The daemon's answer, asked for without a command: tests look often. Raises OSError where none comes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(PATIENCE)
            one.connect(str(self.directory("runtime") / "control"))
            one.sendall(json.dumps({"verb": verb, "units": units, "options": options}).encode() + b"\n")
            with one.makefile("rb") as answers:
                said = [line for line in answers if line.endswith(b"\n")]
        answer = dict(json.loads(said[-1])) if said else {}
        if "done" not in answer and "error" not in answer:
            raise ConnectionResetError(f"the daemon has not answered {verb}")
        return answer

    def status(self, name: str) -> dict[str, Any]:
        """One unit as `status --json` has it."""
        (found,) = self.ask("status", name)["units"]
        return dict(found)

    def wait_for(self, name: str, **values: Any) -> dict[str, Any]:
        """One unit, once it has these values."""

        def look() -> dict[str, Any] | None:
            found = self.status(name)
            return found if all(found[key] == value for key, value in values.items()) else None

        return eventually(look, f"{name} was {values}; it is {self.status(name)}")

    def lines(self, name: str) -> list[str]:
        """What a unit has printed, and what the daemon said of it."""
        found = log_view.lines(str(self.directory("state") / "logs"), [f"{name}.service"])
        return [line["text"] for line in found]

    def wait_for_line(self, name: str, part: str, times: int = 1) -> str:
        """The last line of a unit that holds `part`, once there are so many."""

        def look() -> str:
            found = [line for line in self.lines(name) if part in line]
            return found[-1] if len(found) >= times else ""

        return eventually(look, f"{name} said {part!r}")

    def processes(self, name: str = "") -> dict[int, str]:
        """The processes of an agent, or of all: those that work in its folder, but for a sandbox's own first one."""
        found = {}
        folder = str(self.work / name)
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/cwd").startswith(folder):
                        command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                        # Without a command line its memory is gone: it executes nothing any more.
                        if command and not command.startswith("osmoda-init"):
                            found[int(entry)] = command
        return found


@contextlib.contextmanager
def watching(world: World) -> Iterator[Watch]:
    """A daemon's harness, which ends it and removes what it keeps in its runtime directory."""
    watch = Watch(world)
    try:
        yield watch
    except BaseException:
        if watch.errors.exists():
            sys.stdout.write(watch.errors.read_text())
        raise
    finally:
        watch.down()
        shutil.rmtree(watch.directory("runtime"), ignore_errors=True)


@pytest.fixture
def watch(world: World) -> Iterator[Watch]:
    """A harness as root and as an ordinary user."""
    with watching(world) as found:
        yield found
