"""What a switch refuses, and what it could not do."""

from __future__ import annotations

from osmoda.supervisor.errors import SupervisorError


class SwitchError(SupervisorError):
    """A switch that may not begin, or a step of one that has failed; the message is one sentence."""
