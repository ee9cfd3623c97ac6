"""What a scenario acts on: units in a folder of their own, and an engine that runs them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 30.0  # seconds
POLL = 0.02
PROFILE = 'schema = 1\ntier = 1\n[filesystem]\nwrite = ["@dir@"]\nworkspace = "none"\n'


@dataclass(frozen=True)
class State:
    """A unit as systemctl(1) shows it: ActiveState, SubState, Result, NRestarts; how its program ended."""

    active: str
    sub: str
    result: str
    restarts: int
    code: int
    signal: int

    def __str__(self) -> str:
        end = f"code {self.code}, signal {self.signal}"
        return f"{self.active} ({self.sub}), {self.result}, {end}, {self.restarts} restarts"


class Engine(Protocol):
    """What runs units: each call is over when the unit is where it was to go, or will not be (False)."""

    def put(self, path: str, text: str) -> None:
        """Write a file below the folder of units; it counts from the next call on."""

    def start(self, name: str) -> bool: ...

    def stop(self, name: str) -> bool: ...

    def restart(self, name: str) -> bool: ...

    def reload(self, name: str) -> bool: ...

    def begin(self, name: str) -> None:
        """Ask for a start, and do not wait for it."""

    def reset(self, name: str) -> None:
        """Forget that it has failed, and how often it was started."""

    def state(self, name: str) -> State: ...

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the service's program, from outside."""

    def clear(self) -> None:
        """Stop all that was put, and remove it."""


class Stage:
    """One scenario's units, its folder (`@dir@` in what it writes) and the lines that its programs have written."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder / "work"
        self.folder.mkdir()
        # Out of the programs' reach, as a profile has to be.
        self.profile = folder / "profile.toml"
        self.profile.write_text(PROFILE.replace("@dir@", str(self.folder)))
        self.start = engine.start
        self.stop = engine.stop
        self.restart = engine.restart
        self.reload = engine.reload
        self.begin = engine.begin
        self.reset = engine.reset
        self.signal = engine.signal
        self.state = engine.state

    def service(
        self, directives: str, *, name: str = "alpha.service", unit: str = "", program: str | None = None
    ) -> None:
        """A service that works in the scenario's folder. `program`: a shell script as its ExecStart."""
        if program is not None:
            script = f"{name.removesuffix('.service')}.sh"
            self.file(script, program)
            directives = f"ExecStart=/bin/sh @dir@/{script}\n{directives}"
        text = f"[Unit]\nDescription=A scenario\n{unit}\n[Service]\n{directives}\n"
        if "WorkingDirectory=" not in directives:
            text += "WorkingDirectory=@dir@\n"
        text += f"[X-Osmoda]\nProfile={self.profile}\n"
        self.unit(name, text)

    def unit(self, path: str, text: str) -> None:
        """Any file of units."""
        self.engine.put(path, self.here(text))

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(self.here(text))
        return path

    def here(self, text: str) -> str:
        return text.replace("@dir@", str(self.folder))

    def trace(self, name: str = "trace") -> list[str]:
        """The lines of a file in the scenario's folder; none while it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / name).read_text().splitlines()
        return []

    def until(self, found: Callable[[], Any], what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not found():
            assert time.monotonic() < end, f"did not come about; at last: {what()}"
            time.sleep(POLL)

    def until_trace(self, *lines: str) -> None:
        """Wait until the programs have written just this."""
        self.until(lambda: self.trace() == list(lines), self.trace)

    def until_state(self, active: str, sub: str, name: str = "alpha.service") -> State:
        def there() -> bool:
            state = self.state(name)
            return (state.active, state.sub) == (active, sub)

        self.until(there, lambda: f"{self.state(name)}; {self.trace()}")
        return self.state(name)


@contextlib.contextmanager
def staged(engine: Engine, where: Path | None = None) -> Iterator[Stage]:
    """A stage; at the end no unit of it is left."""
    with tempfile.TemporaryDirectory(prefix="parity-", dir=where) as name:
        os.chmod(name, 0o755)
        try:
            yield Stage(engine, Path(name))
        finally:
            engine.clear()
