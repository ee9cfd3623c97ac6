"""Which agents have been let in, and what they count as: one more than fits is refused before it is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.supervisor.capacity import fitting, host_room, plans_file
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.profile import Profile
    from osmoda.supervisor.capacity.fitting import Need
    from osmoda.supervisor.capacity.plans_file import Amount


class DoesNotFit(SupervisorError):
    """One agent more than this host has room for; its text is the arithmetic."""


class Admission:
    """What runs, for one daemon. Asked and changed in one thread, so that two starts never count on the same room."""

    def __init__(self, room: Callable[[], Amount] = host_room.room) -> None:
        self._room = room
        self._needs: dict[str, Need] = {}

    def admit(self, name: str, profile: Profile, *, forced: bool = False) -> None:
        """Let the agent `name` in, or let it stay under another profile. Raises DoesNotFit, unless `forced`."""
        plans = plans_file.load()
        need = fitting.need_of(name, profile, plans)
        held = self._needs.get(name)
        others = [one for one in self._needs.values() if one.name != name]
        if not forced and (held is None or held.amount != need.amount):
            why = fitting.refusal(need, fitting.fit(others, self._room(), plans))
            if why:
                raise DoesNotFit(f"{why}; `osmoda-watch start --force {name}` starts it all the same")
        self._needs[name] = need

    def leave(self, name: str) -> None:
        """The agent has ended and is not restarted; one that was never let in is no error."""
        self._needs.pop(name, None)
