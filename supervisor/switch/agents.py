"""The agents of this host as whoever switches generations asks for them; an engine implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

type Health = Literal["unchecked", "starting", "healthy", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Condition:
    """How an agent is at one moment.

    `running`: its main process is up and it has said that it is ready (Type=). `given_up`: the engine will not start it
    again by itself (start limit, `Restart=no`, it was stopped). `health` is "unchecked" for an agent without checks,
    "starting" until the first check that passes, "unhealthy" after as many failures in a row as its unit tolerates.
    `restarts` counts the engine's own restarts since the agent was last started on request. `reason` is a sentence
    about the last failure, empty when there was none. `pid` is that of the main process on this host, 0 for none.
    """

    running: bool
    given_up: bool
    health: Health
    restarts: int
    reason: str = ""
    pid: int = 0


class Agents(Protocol):
    """What can be done to agents, by the name of their unit without its suffix. All raise SupervisorError."""

    async def start(self, name: str) -> None:
        """Start an agent from its unit and profile *as they are on disk now*; return when it is up.

        Does nothing when it runs already. Raises SupervisorError when it cannot be started, and when it ends before it
        is up; then the engine does not go on trying.
        """

    async def stop(self, name: str) -> None:
        """End an agent, and cancel what the engine would restart; return when no process of it is left.

        Does nothing when it does not run, and when there is no such unit. Until `start` or `release` only `start`
        starts it again.
        """

    def release(self, name: str) -> None:
        """From now on others may start the agent, too; from `stop` to `start` or this nobody else may."""

    async def condition(self, name: str) -> Condition:
        """How it is now. An agent that is not known does not run."""

    def changes(self, names: frozenset[str]) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The name of one of `names` whenever its condition may have changed, from entering the context on."""
