"""The state machine of one service: events in, commands out. No process, no clock, no file (the time is an argument).

States and sub-states are systemd's (systemctl(1)), with one difference: a service of `Type=simple` is up when its
sandbox stands and its program was executed, not before; until then nothing of it has run.
"""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, Literal

from osmoda.supervisor import state_words
from osmoda.supervisor.state_messages import (
    Done,
    Elapsed,
    Ended,
    EndGroup,
    GaveUp,
    Kill,
    MainEnded,
    Notified,
    NotStarted,
    ReloadAsked,
    ResetAsked,
    RestartAsked,
    Run,
    Say,
    Signal,
    StartAsked,
    Started,
    StopAsked,
    Unhealthy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.notifications import Notification
    from osmoda.supervisor.restarts import Restarts
    from osmoda.supervisor.state_messages import Command, Event, Job, Kind, Which
    from osmoda.supervisor.unit import Exec, Unit

type Active = Literal["inactive", "activating", "active", "reloading", "deactivating", "failed"]

ACTIVE: dict[str, Active] = {
    "dead": "inactive",
    "condition": "activating",
    "start-pre": "activating",
    "start": "activating",
    "start-post": "activating",
    "auto-restart": "activating",
    "running": "active",
    "exited": "active",
    "reload": "reloading",
    "reload-notify": "reloading",
    "stop": "deactivating",
    "stop-watchdog": "deactivating",
    "stop-sigterm": "deactivating",
    "stop-sigkill": "deactivating",
    "stop-post": "deactivating",
    "final-sigterm": "deactivating",
    "final-sigkill": "deactivating",
    "failed": "failed",
}
"""Each sub-state's state."""

# Signals that end a daemon cleanly (systemd.service(5), SuccessExitStatus=).
_CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}
_EXIT_EXEC = 203  # what systemd reports for a program that could not be executed (systemd.exec(5))
_STARTING = ("condition", "start-pre", "start", "start-post")
_UP = ("running", "exited", "reload", "reload-notify")
LONGEST = 10
"""So many times its TimeoutStartSec= a service may have for its start, and its TimeoutStopSec= for its end, however
often it asks (EXTEND_TIMEOUT_USEC=)."""
_ENDING = ("stop-watchdog", "stop-sigterm", "stop-sigkill")


class Machine:
    """One service. `handle` takes what has happened and returns what is to be done, in order."""

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
        if self.sub in _UP:
            self._done("start")
        elif self.active == "deactivating":
            self._again, self._stopping = True, False
        elif self.sub not in _STARTING:
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

    def _go_down(self) -> None:
        if self.sub in ("running", "exited"):
            self._enter_stop()
        else:
            self._enter_signal("stop-sigterm", "success")

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

    # --- up ---

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

    def _begin(self, sub: str, kind: Kind, commands: Sequence[Exec], timeout: float) -> None:
        """Enter a state in which control commands are run one after the other."""
        self.sub = sub
        self._queue = list(commands)
        self._time_out("state", timeout)
        self._next(kind)

    def _next(self, kind: Kind) -> None:
        """Run the next command of this state, or go on to the state after it."""
        if self._queue:
            command = self._queue.pop(0)
            self._ignored = command.ignore_failure
            self._control = True
            self._out.append(Run("control", kind, command))
            return
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

    # --- down ---

    def _enter_stop(self) -> None:
        self._timers.clear()
        self._begin("stop", "stop", self.unit.exec_stop, self.unit.timeout_stop)

    def _enter_signal(self, sub: str, result: str) -> None:
        """End what runs: politely (`stop-sigterm`), for its core (`stop-watchdog`), or at once (`stop-sigkill`)."""
        self._blame(result)
        self._timers.clear()
        self._queue = []
        self.sub = sub
        aborting = sub == "stop-watchdog"
        self._time_out("state", self.unit.timeout_abort if aborting else self.unit.timeout_stop)
        for which in self._alive():
            if sub == "stop-sigkill" or self._is_left_behind(which):
                self._out.append(self._last_signal(which))
                continue
            number = self.unit.restart_kill_signal if self._again else self.unit.kill_signal
            everyone = which == "control" or self.unit.kill_mode == "control-group"
            self._out.append(Signal(which, signal.SIGABRT if aborting else number, everyone))
            if self.unit.send_sighup and not aborting:
                self._out.append(Signal(which, signal.SIGHUP, everyone))
        self._when_gone()

    def _is_left_behind(self, which: Which) -> bool:
        """Whether KillMode= has it that what is left there is killed (systemd.kill(5), "mixed")."""
        return which == "main" and self._main and not self._program and self.unit.kill_mode == "mixed"

    def _alive(self) -> list[Which]:
        alive: list[tuple[Which, bool]] = [("main", self._main), ("control", self._control)]
        return [which for which, runs in alive if runs]

    def _last_signal(self, which: Which) -> Command:
        """FinalKillSignal=; where that is a milder one, the sandbox is ended all the same when its time is up."""
        if self.unit.final_kill_signal == signal.SIGKILL:
            return Kill(which)
        return Signal(which, self.unit.final_kill_signal, everyone=True)

    def _when_gone(self) -> None:
        if not self._main and not self._control:
            self._enter_stop_post()

    def _enter_stop_post(self) -> None:
        self._begin("stop-post", "stop-post", self.unit.exec_stop_post, self.unit.timeout_stop)

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

    def _enter_down(self, sub: str) -> None:
        self.sub = sub
        self.main_pid = 0
        self._done("stop")

    # --- what happens to its processes ---

    def _started(self, event: Started) -> None:
        if event.which == "main" and self._main:
            self.main_pid = event.pid
            if self.sub == "start" and self.unit.type in ("simple", "exec"):
                self._enter_start_post()

    def _ended(self, event: Ended) -> None:
        clean = self._is_clean(event)
        if event.which == "main":
            self._main = False
            if self._program:
                self._main_program_ended(event)
                return
            if event.out_of_memory and self.result == "signal":
                self.result = "oom-kill"
            if self.sub in _ENDING:
                self._when_gone()
        elif self._control:
            self._control = False
            ignored, self._ignored = self._ignored, False
            self._control_ended(self._result_of(event, clean=clean or ignored), event)

    def _main_program_ended(self, event: Ended | MainEnded) -> None:
        self._program = False
        self.main_pid = 0
        self.exit_code, self.exit_signal = (None, event.signal) if event.signal else (event.code, 0)
        self._main_ended(self._result_of(event, clean=self._is_clean(event) or self._main_ignored), event)

    def _not_started(self, event: NotStarted) -> None:
        missing = event.code in (126, 127)
        self._say(event.text, 3)
        self._refused = self._refused or event.text
        result = "exit-code" if missing else "resources"
        if event.which == "main":
            self._main = self._program = False
            self.exit_code = _EXIT_EXEC if missing else None
            if missing and self._main_ignored:
                result = "success"
            self._main_ended(result, None)
        elif self._control:
            self._control = False
            if missing and self._ignored:
                result = "success"
            self._control_ended(result, None)

    def _is_clean(self, event: Ended | MainEnded) -> bool:
        if event.signal:
            daemon = event.which == "main" and self.unit.type != "oneshot"
            return (daemon and event.signal in _CLEAN_SIGNALS) or event.signal in self.unit.success.signals
        return event.code == 0 or (event.which == "main" and event.code in self.unit.success.codes)

    @staticmethod
    def _result_of(event: Ended | MainEnded, *, clean: bool) -> str:
        if event.out_of_memory and not (clean and not event.signal):
            return "oom-kill"
        return "success" if clean else "signal" if event.signal else "exit-code"

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
        elif self.sub in _ENDING:
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
        if result != "success" and event is not None and self.sub not in _ENDING:
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
            elif self.sub in _STARTING:
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
        elif message.watchdog == "trigger" and self.sub in _UP and self._program:
            self._say("it says itself that it hangs (WATCHDOG=trigger)", 4)
            self._enter_signal("stop-watchdog", "watchdog")

    def _is_ready(self) -> None:
        if self.sub == "start" and self.unit.type == "notify" and self._program:
            self._enter_start_post()
        elif self.sub == "reload-notify":
            self._reloaded("")

    def _feed_watchdog(self) -> None:
        if self._up_since is not math.inf and self._program and self.sub in (*_UP, "start-post"):
            self._time_out("watchdog", self.watchdog or math.inf)

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

    def _time_out(self, name: str, seconds: float) -> None:
        if math.isinf(seconds):
            self._timers.pop(name, None)
        else:
            self._timers[name] = self._now + seconds

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
            case "stop":
                self._enter_signal("stop-sigterm", "timeout")
            case "stop-sigterm" | "stop-watchdog":
                if self.unit.send_sigkill:
                    self._say("it is killed", 4)
                    self._enter_signal("stop-sigkill", "timeout")
                else:
                    # Nothing may outlive its unit: systemd would leave it running, out of anybody's sight.
                    self._say("it is killed although SendSIGKILL= says no: nothing outlives its unit here", 4)
                    self._blame("timeout")
                    self.sub = "stop-sigkill"
                    self._out.extend(Kill(which) for which in self._alive())
            case "stop-sigkill":
                self._out.extend(Kill(which) for which in self._alive())
                self._time_out("state", self.unit.timeout_stop)
            case "stop-post":
                self._blame("timeout")
                self.sub = "final-sigterm"
                self._queue = []
                self._out.append(Signal("control", self.unit.kill_signal, everyone=True))
                self._time_out("state", self.unit.timeout_stop)
            case "final-sigterm":
                self.sub = "final-sigkill"
                self._out.append(Kill("control"))

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
