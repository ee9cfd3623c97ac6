"""Whether what runs since a switch is good: decided from conditions and times, without a clock or a process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from osmoda.supervisor.switch.agents import Condition
    from osmoda.supervisor.switch.record import Moment, Terms

DEFAULT_SECONDS = 600.0
GRACE = 60.0
"""Seconds that a probation lasts at least after the daemon has come back within it: its agents were started anew."""


class Probation:
    """One probation, from `began` on.

    The time counts while nobody watches, too, within one boot (CLOCK_BOOTTIME goes on in suspend); after another boot
    there is no saying what time has passed under load, so the caller lets it begin anew. All times that are asked for
    are seconds since boot.
    """

    def __init__(self, terms: Terms, agents: Iterable[str], began: Moment, resumed: float | None = None) -> None:
        self._terms = terms
        self._conditions: dict[str, Condition | None] = dict.fromkeys(agents)
        self._restarts: dict[str, deque[float]] = {name: deque() for name in self._conditions}
        self.deadline = began.since_boot + terms.seconds
        if resumed is not None:
            self.deadline = max(self.deadline, resumed + min(terms.seconds, GRACE))

    def observe(self, name: str, condition: Condition, now: float) -> str:
        """Take note of a condition; why the agent has failed its probation, empty when it has not."""
        before = self._conditions[name]
        known = before.restarts if before is not None else 0
        # A count that went down was begun anew; what it holds has happened since.
        new = condition.restarts - known if condition.restarts >= known else condition.restarts
        seen = self._restarts[name]
        # More of them than make a loop say nothing more.
        seen.extend([now] * min(new, self._terms.restarts))
        while seen and seen[0] <= now - self._terms.window:
            seen.popleft()
        self._conditions[name] = condition
        because = f": {condition.reason}" if condition.reason else ""
        if condition.given_up and not condition.running:
            return f"{name} does not run and is not started again{because}"
        if len(seen) >= self._terms.restarts:
            return f"{name} was restarted {len(seen)} times within {self._terms.window:g} s{because}"
        if condition.health == "unhealthy":
            return f"{name} is not healthy{because}"
        return ""

    def conclude(self) -> str:
        """At the deadline: why it has failed, empty when all agents run and those with health checks are healthy."""
        for name, condition in self._conditions.items():
            if condition is None or not condition.running:
                because = f": {condition.reason}" if condition is not None and condition.reason else ""
                return f"{name} did not run at the end of its probation{because}"
            if condition.health not in ("healthy", "unchecked"):
                because = f": {condition.reason}" if condition.reason else ""
                return f"{name} did not become healthy within its probation of {self._terms.seconds:g} s{because}"
        return ""
