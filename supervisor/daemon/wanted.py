"""What a daemon that starts has to run: units that are enabled, and what was asked for since the host was booted.

The file lies in the runtime directory, so it is gone after a boot, as what was only started is with systemd.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST = 1 << 20  # bytes


class Wanted:
    """Units that somebody started, and that somebody stopped, since the last boot."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.started: set[str] = set()
        self.stopped: set[str] = set()
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError), open(path, "rb") as file:
            found = json.loads(file.read(_MOST))
            self.started = {str(name) for name in found["started"]}
            self.stopped = {str(name) for name in found["stopped"]}

    def now(self, enabled: Iterable[str]) -> list[str]:
        """The units to start, given those that are enabled; sorted."""
        return sorted(({*enabled} - self.stopped) | self.started)

    def start(self, names: Iterable[str]) -> None:
        """Somebody starts these. Raises OSError."""
        added = {*names}
        if not added <= self.started or self.stopped & added:
            self.started |= added
            self.stopped -= added
            self._write()

    def stop(self, names: Iterable[str]) -> None:
        """Somebody stops these. Raises OSError."""
        taken = {*names}
        if self.started & taken or not taken <= self.stopped:
            self.started -= taken
            self.stopped |= taken
            self._write()

    def _write(self) -> None:
        new = f"{self._path}.new"
        with open(new, "w") as file:
            json.dump({"started": sorted(self.started), "stopped": sorted(self.stopped)}, file)
        os.replace(new, self._path)
