"""How a service is ended: asked by its own commands, by signals, at last killed, within the time that it has."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from osmoda.supervisor.lifecycle.standing import Standing
from osmoda.supervisor.lifecycle.state_messages import Kill, Signal

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.state_messages import Command, Which


class WayDown(Standing):
    """From whatever state to one in which nothing of it runs."""

    def _go_down(self) -> None:
        if self.sub in ("running", "exited"):
            self._enter_stop()
        else:
            self._enter_signal("stop-sigterm", "success")

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

    def _enter_down(self, sub: str) -> None:
        self.sub = sub
        self.main_pid = 0
        self._done("stop")

    def _end_took_too_long(self) -> None:
        """In the states of this way: the next, harder step."""
        match self.sub:
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
