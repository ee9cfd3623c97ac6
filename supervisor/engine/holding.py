"""Units that a switch holds: they are not started, and what was read of them before it let them go is void.

A switch changes what a unit is read from. Whoever has read it earlier, and was waiting since, would start what is no
longer the current generation: also one whose unit the engine did not know when the switch began.
"""

from __future__ import annotations

from typing import NewType

Moment = NewType("Moment", int)
"""When something was read, in releases so far."""


class Holding:
    """Who is held, and why; when each was let go last."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._released: dict[str, int] = {}
        self._count = 0

    def hold(self, unit: str, reason: str) -> None:
        """From now on `unit` is not started; `reason` is told to whoever asks for it."""
        self._reasons[unit] = reason

    def release(self, unit: str) -> None:
        """It may be started, from what is read of it from now on."""
        self._reasons.pop(unit, None)
        self._count += 1
        self._released[unit] = self._count

    def reason(self, unit: str) -> str:
        """Why it is not started now; empty when it may be."""
        return self._reasons.get(unit, "")

    def now(self) -> Moment:
        """To be asked before a unit is read."""
        return Moment(self._count)

    def is_void(self, unit: str, read: Moment) -> bool:
        """Whether what was read of `unit` at that moment is to be read again."""
        return self._released.get(unit, 0) > read
