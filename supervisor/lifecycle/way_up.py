"""How a service comes up: conditions, what runs before its program, the program, what runs after it; and reloads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from osmoda.supervisor.lifecycle.state_messages import Done, EndGroup, Kill, Run
from osmoda.supervisor.lifecycle.states import UP
from osmoda.supervisor.lifecycle.way_down import WayDown

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.state_messages import Kind


class WayUp(WayDown):
    """From down to up; what fails on the way is led down."""

    def _start(self) -> None:
        self._again = self._stopping = False
        if not self.restarts.limit.allows(self._now):
            limit = self.restarts.limit
            origin = self.unit.origins.get("Unit.StartLimitBurst")
            place = f" ({origin})" if origin is not None else ""
            text = f"it was started {limit.burst} times within {limit.interval:g} s, as often as its start limit allows"
            self._say(f"{text}{place}; `osmoda-watch reset-failed {self.unit.name}` lifts that", 3)
            self.result = "start-limit-hit"
            self._done("start", text)
            self._enter_down("failed")
            return
        self.result, self.exit_code, self.exit_signal, self.main_pid = "success", None, 0, 0
        self.status, self.errno, self.watchdog = "", 0, self.unit.watchdog
        self._told, self._pid_told, self._up_since, self._refused = False, False, math.inf, ""
        self._starting_since = self._now
        self._begin("condition", "condition", self.unit.exec_condition, self.unit.timeout_start)

    def _all_run(self, kind: Kind) -> None:
        match kind:
            case "condition":
                self._begin("start-pre", "start-pre", self.unit.exec_start_pre, self.unit.timeout_start)
            case "start-pre":
                self._enter_start()
            case "start-post":
                self._enter_running()
            case "reload":
                self._reloaded("")
            case "stop":
                self._enter_signal("stop-sigterm", "success")
            case "stop-post":
                self._enter_dead()

    def _enter_start(self) -> None:
        self.sub = "start"
        self._queue = list(self.unit.exec_start)
        self._time_out("state", self.unit.timeout_start)
        if self._queue:
            self._run_main()
        else:  # a oneshot may have nothing but ExecStop=
            self._enter_start_post()

    def _run_main(self) -> None:
        command = self._queue.pop(0)
        self._main = self._program = True
        self._main_ignored = command.ignore_failure
        self._out.append(Run("main", "start", command))

    def _enter_start_post(self) -> None:
        self._begin("start-post", "start-post", self.unit.exec_start_post, self.unit.timeout_start)

    def _enter_running(self) -> None:
        """Up; or, where the program has ended meanwhile, what follows from that."""
        if self.result != "success":
            self._enter_signal("stop-sigterm", self.result)
        elif self._program:
            if self.sub == "start-post":
                self._up_since = self._now
                self._time_out("runtime", self.unit.runtime_max)
                self._feed_watchdog()
                self._done("start")
            self._timers.pop("state", None)
            self.sub = "running"
        elif self.unit.remain_after_exit:
            self._timers.clear()
            self.sub = "exited"
            self._up_since = self._now
            self._done("start")
        else:
            if not self._told:
                self._done("start")
            self._enter_stop()

    def _reloaded(self, problem: str) -> None:
        self._done("reload", problem)
        if self.result != "success" or not self._program:
            self._enter_running()
        else:
            self._timers.pop("state", None)
            self.sub = "running"

    def _feed_watchdog(self) -> None:
        if self._up_since is not math.inf and self._program and self.sub in (*UP, "start-post"):
            self._time_out("watchdog", self.watchdog or math.inf)

    def _state_timed_out(self) -> None:
        self._say(f"{self.sub} took too long", 4)
        match self.sub:
            case "condition" | "start-pre" | "start" | "start-post":
                self._enter_signal("stop-sigterm", "timeout")
            case "reload" | "reload-notify":
                if self._control:
                    self._control = False
                    self._out.append(Kill("control"))
                self._queue = []
                self._reloaded("its reload took too long")
            case _:
                self._end_took_too_long()

    def _enter_dead(self) -> None:
        """Nothing of it runs any more: start it again, or leave it so."""
        self._timers.clear()
        self.main_pid = 0
        failed = self.result not in ("success", "exec-condition")
        if not self._told and not self._again:
            self._out.append(Done("start", self.result == "exec-condition", self._sentence()))
        if self._again:
            self._done("stop")
            self.sub = "dead"
            self.restarts.asked()
            self._start()
            return
        pause = None
        if not self._stopping:
            ran = self._now - self._up_since if self._up_since is not math.inf else 0.0
            pause = self.restarts.after(self.result, self.exit_code, self.exit_signal, ran)
            group = self.restarts.group
            if pause is not None and group is not None and not group.allows(self._now):
                pause, failed, self.result = None, True, "start-limit-hit"
                self._say(group.sentence(), 3)
                self._out.append(EndGroup(group.sentence()))
        if pause is None:
            self._enter_down("failed" if failed else "dead")
            return
        self._done("stop")
        self.sub = "auto-restart"
        self._say(f"it is restarted in {pause:.1f} s (restart {self.restarts.count})" if pause else "it is restarted")
        if pause:
            self._time_out("restart", pause)
        else:
            self._start()
