"""The state machine of one service: events in, commands out. No process, no clock, no file (the time is an argument).

States and sub-states are systemd's (systemctl(1)), with one difference: a service of `Type=simple` is up when its
sandbox stands and its program was executed, not before; until then nothing of it has run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from osmoda.supervisor.lifecycle import ends, state_words
from osmoda.supervisor.lifecycle.ends import NOT_EXECUTED
from osmoda.supervisor.lifecycle.state_messages import (
    Elapsed,
    Ended,
    GaveUp,
    MainEnded,
    Notified,
    NotStarted,
    ReloadAsked,
    ResetAsked,
    RestartAsked,
    StartAsked,
    Started,
    StopAsked,
    Unhealthy,
)
from osmoda.supervisor.lifecycle.states import ENDING, STARTING, UP
from osmoda.supervisor.lifecycle.way_up import WayUp

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.notifications import Notification
    from osmoda.supervisor.lifecycle.state_messages import Command, Event, Kind
    from osmoda.supervisor.units.unit import Unit

LONGEST = 10
"""So many times its TimeoutStartSec= a service may have for its start, and its TimeoutStopSec= for its end, however
often it asks (EXTEND_TIMEOUT_USEC=)."""


class Machine(WayUp):
    """One service. `handle` takes what has happened and returns what is to be done, in order."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event at the time `now`, in seconds of a monotonic clock."""
        self._now, self._out = now, []
        match event:
            case StartAsked():
                self._start_asked(by_hand=event.by_hand)
            case StopAsked():
                self._stop_asked()
            case RestartAsked():
                self._restart_asked()
            case ReloadAsked():
                self._reload_asked()
            case ResetAsked():
                self._reset()
            case Started():
                self._started(event)
            case MainEnded():
                self._main_program_ended(event)
            case Ended():
                self._ended(event)
            case NotStarted():
                self._not_started(event)
            case Notified():
                self._notified(event.message)
            case Unhealthy():
                self._unhealthy(event.text)
            case GaveUp():
                self._give_up(event.text)
            case Elapsed():
                self._elapsed()
        self._ending_since = min(self._ending_since, now) if self.active == "deactivating" else math.inf
        return self._out

    def read_again(self, unit: Unit) -> None:
        """Another reading of the unit's files; it decides from the next step on."""
        self.unit = unit
        self.restarts.replace(unit)

    # --- what is asked ---

    def _start_asked(self, *, by_hand: bool) -> None:
        if self.sub in UP:
            self._done("start")
        elif self.active == "deactivating":
            self._again, self._stopping = True, False
        elif self.sub not in STARTING:
            if by_hand:
                self.restarts.asked()
            self._timers.clear()
            self._start()

    def _stop_asked(self) -> None:
        if self._again:
            self._again = False
            self._done("start", "it was stopped")
        if self.is_down:
            self._done("stop")
            return
        self._stopping = True
        if self.sub == "auto-restart":
            self._timers.clear()
            self._done("start", "it was stopped")
            self._enter_down("dead")
        elif self.active != "deactivating":
            self._go_down()

    def _restart_asked(self) -> None:
        if self.is_down or self.sub == "auto-restart":
            self._start_asked(by_hand=True)
            return
        self._again, self._stopping = True, False
        if self.active != "deactivating":
            self._go_down()

    def _reload_asked(self) -> None:
        if self.sub != "running":
            self._done("reload", f"it is {self.active}, not running")
        elif not self.unit.exec_reload:
            self._done("reload", "it has no ExecReload= that would say how it is reloaded")
        else:
            self._begin("reload", "reload", self.unit.exec_reload, self.unit.timeout_start)

    def _reset(self) -> None:
        self.restarts.limit.reset()
        self.restarts.count = 0
        if self.sub == "failed":
            self.sub, self.result = "dead", "success"

    # --- what happens to its processes ---

    def _started(self, event: Started) -> None:
        if event.which == "main" and self._main:
            self.main_pid = event.pid
            if self.sub == "start" and self.unit.type in ("simple", "exec"):
                self._enter_start_post()

    def _ended(self, event: Ended) -> None:
        clean = ends.is_clean(event, self.unit)
        if event.which == "main":
            self._main = False
            if self._program:
                self._main_program_ended(event)
                return
            if event.out_of_memory and self.result == "signal":
                self.result = "oom-kill"
            if self.sub in ENDING:
                self._when_gone()
        elif self._control:
            self._control = False
            ignored, self._ignored = self._ignored, False
            self._control_ended(ends.result_of(event, clean=clean or ignored), event)

    def _main_program_ended(self, event: Ended | MainEnded) -> None:
        self._program = False
        self.main_pid = 0
        self.exit_code, self.exit_signal = (None, event.signal) if event.signal else (event.code, 0)
        self._main_ended(ends.result_of(event, clean=ends.is_clean(event, self.unit) or self._main_ignored), event)

    def _not_started(self, event: NotStarted) -> None:
        missing = event.code in (126, 127)
        self._say(event.text, 3)
        self._refused = self._refused or event.text
        result = "exit-code" if missing else "resources"
        if event.which == "main":
            self._main = self._program = False
            self.exit_code = NOT_EXECUTED if missing else None
            if missing and self._main_ignored:
                result = "success"
            self._main_ended(result, None)
        elif self._control:
            self._control = False
            if missing and self._ignored:
                result = "success"
            self._control_ended(result, None)

    def _main_ended(self, result: str, event: Ended | MainEnded | None) -> None:
        if event is not None:
            how = state_words.how(event)
            self._say(f"its program {how}", 6 if result == "success" else 4)
        if self.sub == "start":
            if self.unit.type == "oneshot" and result == "success":
                if self._queue:
                    self._run_main()
                else:
                    self._enter_start_post()
            else:
                # It was to say that it is ready, or has not even been executed.
                self._enter_signal("stop-sigterm", "protocol" if result == "success" else result)
        elif self.sub == "running":
            self._blame(result)
            self._enter_running()
        elif self.sub in ENDING:
            self._blame(result)
            if self._is_left_behind("main"):
                self._out.append(self._last_signal("main"))
            self._when_gone()
        else:
            # A control command is running (start-post, reload, stop): what follows is decided when that has ended.
            self._timers.pop("watchdog", None)
            self._blame(result)
            if self.sub == "reload-notify":
                self._reloaded("its program ended")

    def _control_ended(self, result: str, event: Ended | None) -> None:
        if result != "success" and event is not None and self.sub not in ENDING:
            self._say(f"a command of {state_words.directive(self.sub)} {state_words.how(event)}", 4)
        match self.sub:
            case "condition":
                if result == "exit-code" and event is not None and event.code < 255:
                    self._say("its ExecCondition= is not met: it is not started")
                    result = "exec-condition"
                self._go_on(result, "condition")
            case "start-pre" | "start-post":
                self._go_on(result, "start-pre" if self.sub == "start-pre" else "start-post")
            case "reload":
                if result == "success":
                    self._next("reload")
                else:
                    self._queue = []
                    self._reloaded("its ExecReload= failed")
            case "stop":
                if result == "success":
                    self._next("stop")
                else:
                    self._enter_signal("stop-sigterm", result)
            case "stop-sigterm" | "stop-sigkill" | "stop-watchdog":
                self._when_gone()
            case "stop-post" | "final-sigterm" | "final-sigkill":
                self._blame(result)
                if self.sub == "stop-post" and result == "success":
                    self._next("stop-post")
                else:
                    self._enter_dead()

    def _go_on(self, result: str, kind: Kind) -> None:
        if result == "success":
            self._next(kind)
        else:
            self._enter_signal("stop-sigterm", result)

    # --- what it says of itself ---

    def _notified(self, message: Notification) -> None:
        if message.status is not None:
            self.status = message.status
        if message.errno:
            self.errno = message.errno
        if message.main_pid and not self._pid_told:
            self._pid_told = True  # it may send this as often as it likes
            self._say("MAINPID= is not taken from a service: its program is the one that was started", 4)
        if message.watchdog_every is not None:
            self.watchdog = message.watchdog_every
            self._feed_watchdog()
        if message.extend is not None and "state" in self._timers:
            until = self._now + message.extend
            if self.active == "deactivating":
                # What has to end cannot put that off for ever: a switch may have to go back from it.
                until = min(until, self._ending_since + LONGEST * self.unit.timeout_stop)
            elif self.sub in STARTING:
                # Nor its start: until it is up nobody checks it, and no probation of it begins.
                until = min(until, self._starting_since + LONGEST * self.unit.timeout_start)
            self._timers["state"] = max(self._timers["state"], until)
        if message.ready:
            self._is_ready()
        if message.reloading and self.sub == "running":
            self.sub = "reload-notify"
            self._time_out("state", self.unit.timeout_start)
        if message.stopping and self.sub in ("running", "reload-notify"):
            # It ends by itself; if it does not in time, it is ended.
            self._timers.clear()
            self.sub = "stop-sigterm"
            self._time_out("state", self.unit.timeout_stop)
        if message.watchdog == "keep":
            self._feed_watchdog()
        elif message.watchdog == "trigger" and self.sub in UP and self._program:
            self._say("it says itself that it hangs (WATCHDOG=trigger)", 4)
            self._enter_signal("stop-watchdog", "watchdog")

    def _is_ready(self) -> None:
        if self.sub == "start" and self.unit.type == "notify" and self._program:
            self._enter_start_post()
        elif self.sub == "reload-notify":
            self._reloaded("")

    # --- what others say of it ---

    def _unhealthy(self, text: str) -> None:
        if self.sub in ("running", "reload", "reload-notify"):
            self._say(f"it is unhealthy: {text}", 4)
            self._enter_signal("stop-sigterm", "unhealthy")

    def _give_up(self, text: str) -> None:
        self._say(text, 3)
        self._again, self._stopping = False, True
        if self.sub == "auto-restart":
            self._timers.clear()
            self.result = "start-limit-hit"
            self._done("start", text)
            self._enter_down("failed")
        elif not self.is_down and self.active != "deactivating":
            self._enter_signal("stop-sigterm", "start-limit-hit")

    # --- time ---

    def _elapsed(self) -> None:
        for name, when in sorted(self._timers.items(), key=lambda timer: timer[1]):
            if when > self._now:
                return
            if self._timers.get(name) != when:
                continue  # what came before it has changed that
            del self._timers[name]
            match name:
                case "restart":
                    self._start()
                case "watchdog":
                    self._say(f"it has not been heard of for {self.watchdog:g} s (WatchdogSec=): it is aborted", 4)
                    self._enter_signal("stop-watchdog", "watchdog")
                case "runtime":
                    self._say(f"it has run for {self.unit.runtime_max:g} s (RuntimeMaxSec=)", 4)
                    self._enter_signal("stop-sigterm", "timeout")
                case _:
                    self._state_timed_out()
