"""systemd with osmoda: each command of a unit in its sandbox, by a drop-in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmoda.supervisor.systemd import files as systemd_files
from osmoda.supervisor.systemd.engine import SystemdEngine, converse
from tests.parity.plain import Plain


class Confined(Plain):
    """The manager of the system, through osmoda's engine for it."""

    def __init__(self) -> None:
        super().__init__()
        # What the drop-ins name.
        sys.argv[0] = str(Path(sys.executable).with_name("osmoda-watch"))

    def ask(self, do: Callable[[SystemdEngine, list[str]], Any], name: str) -> bool:
        self.changed = False
        outcomes = converse(lambda engine: do(engine, [name]))
        for one in outcomes:
            if not one["ok"]:
                print(f"       {one['unit']}: {one['text']}", flush=True)
        return all(one["ok"] for one in outcomes)

    def start(self, name: str) -> bool:
        return self.ask(SystemdEngine.start, name)

    def stop(self, name: str) -> bool:
        return self.ask(SystemdEngine.stop, name)

    def restart(self, name: str) -> bool:
        return self.ask(SystemdEngine.restart, name)

    def reload(self, name: str) -> bool:
        return self.ask(SystemdEngine.reload, name)

    def begin(self, name: str) -> None:
        assert self.ask(SystemdEngine.write, name)
        super().begin(name)

    def clear(self) -> None:
        super().clear()
        for name in systemd_files.confined():
            systemd_files.remove(name)
