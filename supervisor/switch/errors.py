"""What a switch refuses, and what it could not do."""

from __future__ import annotations

import os

from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.errors import SupervisorError


class SwitchError(SupervisorError):
    """A switch that may not begin, or a step of one that has failed; the message is one sentence."""


def in_words(error: Exception) -> str:
    """What went wrong, for a sentence about a switch."""
    if isinstance(error, (SupervisorError, LedgerError)):
        return str(error)
    if isinstance(error, OSError):
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error.strerror or error)
    return f"{type(error).__name__}: {error}"
