"""How one service stands: what is known of it, the commands of its state, its times, and what is said and ordered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from osmoda.supervisor.lifecycle import state_words
from osmoda.supervisor.lifecycle.state_messages import Done, Run, Say
from osmoda.supervisor.lifecycle.states import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.lifecycle.restarts import Restarts
    from osmoda.supervisor.lifecycle.state_messages import Command, Job, Kind
    from osmoda.supervisor.lifecycle.states import Active
    from osmoda.supervisor.units.unit import Exec, Unit


class Standing:
    """One service. `WayDown` and `WayUp` lead it from state to state, `Machine` hears of events."""

    def __init__(self, unit: Unit, restarts: Restarts) -> None:
        self.unit = unit
        self.restarts = restarts
        self.sub = "dead"
        self.result = "success"
        """Why it is not up, as systemd names it; besides those `unhealthy`."""
        self.main_pid = 0
        self.status = ""
        """What the service says of itself (STATUS=)."""
        self.errno = 0
        self.exit_code: int | None = None
        self.exit_signal = 0
        self.watchdog = unit.watchdog
        self._control = False
        self._main = False  # whether something is left in the program's sandbox
        self._program = False  # and whether the program itself is
        self._queue: list[Exec] = []
        self._ignored = False  # whether the failure of the control command is
        self._main_ignored = False
        self._again = False  # start once it is down
        self._stopping = False  # somebody wants it down
        self._pid_told = False
        self._told = False  # whether the start that was asked for has had its answer
        self._up_since = math.inf
        self._starting_since = math.inf
        self._ending_since = math.inf
        self._refused = ""  # what kept a program of it from being started
        self._timers: dict[str, float] = {}
        self._now = 0.0
        self._out: list[Command] = []

    @property
    def active(self) -> Active:
        """The state that the sub-state belongs to."""
        return ACTIVE[self.sub]

    @property
    def is_down(self) -> bool:
        """Whether nothing of it runs, or will by itself."""
        return self.sub in ("dead", "failed")

    def deadline(self) -> float:
        """When `Elapsed` has to be heard at the latest; infinite for never."""
        return min(self._timers.values(), default=math.inf)

    # --- commands of a state ---

    def _begin(self, sub: str, kind: Kind, commands: Sequence[Exec], timeout: float) -> None:
        """Enter a state in which control commands are run one after the other."""
        self.sub = sub
        self._queue = list(commands)
        self._time_out("state", timeout)
        self._next(kind)

    def _next(self, kind: Kind) -> None:
        """Run the next command of this state, or go on to the state after it."""
        if not self._queue:
            self._all_run(kind)
            return
        command = self._queue.pop(0)
        self._ignored = command.ignore_failure
        self._control = True
        self._out.append(Run("control", kind, command))

    def _all_run(self, kind: Kind) -> None:
        """Go on to the state after the one whose commands have been run."""
        raise NotImplementedError

    # --- time ---

    def _time_out(self, name: str, seconds: float) -> None:
        if math.isinf(seconds):
            self._timers.pop(name, None)
        else:
            self._timers[name] = self._now + seconds

    # --- words ---

    def _blame(self, result: str) -> None:
        """The first reason stays."""
        if self.result == "success":
            self.result = result

    def _sentence(self) -> str:
        if self._stopping:
            return "it was stopped"
        return self._refused or state_words.reason(self.result, self.exit_code, self.exit_signal)

    def _say(self, text: str, level: int = 6) -> None:
        self._out.append(Say(text, level))

    def _done(self, job: Job, problem: str = "") -> None:
        self._told |= job == "start"
        self._out.append(Done(job, not problem, problem))
