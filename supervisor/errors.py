"""What the supervisor refuses, as exceptions: one sentence each, with the line that would change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.supervisor.units.unit import Origin


class SupervisorError(Exception):
    """Something was refused or has failed; `exit_code` is that of a command that ends with it."""

    exit_code = 1


class UnitError(SupervisorError):
    """A unit that cannot be started as it is written; `origin` is the line to change, None where there is none."""

    def __init__(self, message: str, origin: Origin | None = None) -> None:
        # Messages repeat what files say, which others may have written: nothing in them is a terminal's to obey.
        self.message = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
        super().__init__(f"{origin}: {self.message}" if origin is not None else self.message)
        self.origin = origin
