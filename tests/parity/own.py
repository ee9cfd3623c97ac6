"""osmoda's own engine: a daemon with a folder of units, spoken to as its command does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.parity.stage import PATIENCE, POLL, State

NOT_LOADED = State("inactive", "dead", "success", 0, 0, 0)


class Own:
    """A daemon that runs, at its control socket."""

    def __init__(self, units: Path, control: Path) -> None:
        self.units = units
        self.control = control
        self.asked: set[str] = set()

    def put(self, path: str, text: str) -> None:
        file = self.units / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def ask(self, verb: str, *names: str) -> dict[str, Any]:
        self.asked |= {*names}
        with self.begun(verb, *names) as connection, connection.makefile() as answers:
            last: dict[str, Any] = json.loads([*answers][-1])
        return last

    def begun(self, verb: str, *names: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(2 * PATIENCE)
        try:
            connection.connect(str(self.control))
            connection.sendall(json.dumps({"verb": verb, "units": names}).encode() + b"\n")
        except BaseException:
            connection.close()
            raise
        return connection

    def do(self, verb: str, name: str) -> bool:
        answer = self.ask(verb, name)
        return "error" not in answer and all(one["ok"] for one in answer["outcomes"] if one["unit"] == name)

    def start(self, name: str) -> bool:
        return self.do("start", name)

    def stop(self, name: str) -> bool:
        return self.do("stop", name)

    def restart(self, name: str) -> bool:
        return self.do("restart", name)

    def reload(self, name: str) -> bool:
        return self.do("reload", name)

    def begin(self, name: str) -> None:
        self.asked.add(name)
        self.begun("start", name).close()

    def reset(self, name: str) -> None:
        assert self.do("reset-failed", name)

    def found(self, name: str) -> dict[str, Any]:
        for one in self.ask("status", name)["units"]:
            if one["unit"] == name:
                return dict(one)
        return {}

    def state(self, name: str) -> State:
        one = self.found(name)
        if not one:
            return NOT_LOADED
        code = 0 if one["exit_signal"] else one["exit_code"] or 0
        return State(one["state"], one["sub"], one["result"], one["restarts"], code, one["exit_signal"])

    def signal(self, name: str, number: int) -> None:
        os.kill(self.found(name)["pid"], number)

    def clear(self) -> None:
        names = {*self.asked} | {one["unit"] for one in self.ask("list")["units"]}
        self.ask("stop", *sorted(names))
        self.ask("reset-failed", *sorted(names))
        self.asked.clear()
        for entry in self.units.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[Own]:
    """A daemon of `command` (osmoda-watch) for the block, with all of its files in `folder`."""
    units = folder / "units"
    units.mkdir()
    variables = {f"OSMODA_{kind.upper()}_DIR": str(folder / kind) for kind in ("runtime", "state", "cache", "config")}
    for path in variables.values():
        Path(path).mkdir(mode=0o700)
    control = folder / "runtime/watch/control"
    with subprocess.Popen([*command, "daemon", "--units", str(units)], env=environment | variables) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not control.exists():
                assert process.poll() is None, "the daemon has ended"
                assert time.monotonic() < end, "the daemon does not come up"
                time.sleep(POLL)
            yield Own(units, control)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
