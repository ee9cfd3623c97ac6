"""How a launcher or a keeper tells the program that uses it what has become of a command: marshalled tuples."""

from __future__ import annotations

from osmoda.host.frozen import values_of
from osmoda.sandbox.errors import CommandError, LaunchError
from osmoda.sandbox.monitor import Outcome, RawDenial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from osmoda.sandbox.errors import SandboxError


def outcome_message(outcome: Outcome) -> tuple[Any, ...]:
    """How a command ended, as `Process` reads it."""
    return ("ended", *values_of(outcome)[:-1], tuple([values_of(denial) for denial in outcome.denials]))


def refusal_message(error: SandboxError) -> tuple[Any, ...]:
    """Why a command was not started."""
    return ("failed", type(error).__name__, str(error), error.exit_code)


def read_answer(message: tuple[Any, ...]) -> Outcome | SandboxError:
    """The other way round."""
    kind, *values = message
    if kind == "ended":
        *numbers, denials = values
        return Outcome(*[*numbers, tuple([RawDenial(*entry) for entry in denials])])
    name, text, code = values
    return CommandError(text, code) if name == "CommandError" else LaunchError(text)
