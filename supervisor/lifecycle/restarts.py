"""Whether a service is started again, when, and how often: `Restart=`, back-off, start limits, groups.

Pure: times are arguments (seconds of one monotonic clock), and so is chance. Sources: systemd.service(5),
systemd.unit(5) for `StartLimit*=`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.supervisor.units.unit import RestartWhen, Unit

JITTER = 0.1
"""The largest share of a delay that chance adds to it, so that what failed together does not come back together."""

# Which results `Restart=` means (the table of systemd.service(5)); `unhealthy` is a watchdog that looks from outside.
_ABORTED = frozenset({"signal", "core-dump"})
_WATCHED = frozenset({"watchdog", "unhealthy"})
_NEVER = frozenset({"start-limit-hit", "exec-condition"})


def is_wanted(when: RestartWhen, result: str) -> bool:
    """Whether `Restart=` asks for another start after `result`."""
    if result in _NEVER:
        return False
    match when:
        case "always":
            return True
        case "on-success":
            return result == "success"
        case "on-failure":
            return result != "success"
        case "on-abnormal":
            return result not in ("success", "exit-code")
        case "on-abort":
            return result in _ABORTED
        case "on-watchdog":
            return result in _WATCHED
        case _:
            return False


def delay(unit: Unit, failures: int) -> float:
    """Seconds before restart number `failures` (from 1) in a row: RestartSec=, growing to RestartMaxDelaySec=."""
    first, most, steps = unit.restart_sec, unit.restart_max_delay, unit.restart_steps
    if failures <= 1 or not steps or not first or math.isinf(most) or first >= most:
        return first
    if failures > steps:
        return most
    return float(first * (most / first) ** ((failures - 1) / steps))


class StartLimit:
    """`burst` starts within `interval` seconds, and no more; no limit where one of them is 0."""

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval
        self.burst = burst
        self._starts: deque[float] = deque()

    def allows(self, now: float) -> bool:
        """Whether there may be a start now; if so it is counted."""
        if not self.interval or not self.burst:
            return True
        while self._starts and now - self._starts[0] >= self.interval:
            self._starts.popleft()
        if len(self._starts) >= self.burst:
            return False
        self._starts.append(now)
        return True

    def reset(self) -> None:
        """Forget the starts."""
        self._starts.clear()


class Restarts:
    """The restarts of one service. `chance` returns a number from 0 to 1."""

    def __init__(self, unit: Unit, chance: Callable[[], float], group: Group | None = None) -> None:
        self.unit = unit
        self.group = group
        self.count = 0
        """Restarts since somebody asked for a start."""
        self.limit = StartLimit(unit.start_limit_interval, unit.start_limit_burst)
        self._chance = chance
        self._in_a_row = 0

    def replace(self, unit: Unit) -> None:
        """Go on under another reading of the unit's files; starts that were counted stay so."""
        self.unit = unit
        self.limit.interval, self.limit.burst = unit.start_limit_interval, unit.start_limit_burst

    def asked(self) -> None:
        """Somebody asks for a start."""
        self.count = self._in_a_row = 0

    def after(self, result: str, code: int | None, signal: int, ran: float) -> float | None:
        """Seconds until the service is to be started again, None for never.

        `code` is its exit code (None: a signal ended it, or nothing ran), `ran` the seconds that it was up. One that
        was up for longer than the longest delay has recovered: the back-off begins anew.
        """
        if not self._is_wanted(result, code, signal):
            return None
        longest = self.unit.restart_max_delay
        if ran > (self.unit.restart_sec if math.isinf(longest) else longest):
            self._in_a_row = 0
        self.count += 1
        self._in_a_row += 1
        pause = delay(self.unit, self._in_a_row)
        return pause + pause * JITTER * self._chance()

    def _is_wanted(self, result: str, code: int | None, signal: int) -> bool:
        if result in _NEVER:
            return False
        prevent, force = self.unit.restart_prevent, self.unit.restart_force
        if code in prevent.codes or signal in prevent.signals:
            return False
        if code in force.codes or signal in force.signals:
            return True
        return is_wanted(self.unit.restart, result)


class Group:
    """A restart group: more than `burst` restarts of its members within `interval` seconds end it (`[X-Osmoda]`).

    As one-for-one supervision in Erlang has it (its "restart intensity"): what fails that often together has a cause
    that another restart does not mend.
    """

    def __init__(self, name: str, interval: float, burst: int) -> None:
        self.name = name
        self._limit = StartLimit(interval, burst)

    def change(self, interval: float, burst: int) -> None:
        """Another reading of the files."""
        self._limit.interval, self._limit.burst = interval, burst

    def allows(self, now: float) -> bool:
        """Whether one of its members may be restarted now; if so it is counted."""
        return self._limit.allows(now)

    def reset(self) -> None:
        """Somebody has started a member: the count begins anew."""
        self._limit.reset()

    def sentence(self) -> str:
        """Why the group is stopped."""
        return (
            f"group {self.name} is stopped: its members were restarted {self._limit.burst} times within "
            f"{self._limit.interval:g} s"
        )
