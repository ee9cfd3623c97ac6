"""What the supervisor refuses, as exceptions: one sentence each, with the line that would change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.supervisor.unit import Origin


class SupervisorError(Exception):
    """Something was refused or has failed; `exit_code` is that of a command that ends with it."""

    exit_code = 1


class UnitError(SupervisorError):
    """A unit that cannot be started as it is written; `origin` is the line to change, None where there is none."""

    def __init__(self, message: str, origin: Origin | None = None) -> None:
        super().__init__(f"{origin}: {message}" if origin is not None else message)
        self.message = message
        self.origin = origin
