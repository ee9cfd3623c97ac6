"""What runs put on the ledger, where this user has one: each launch before its command starts, its end, its refusals.

A launch is submitted when its child has been cloned, and written while that sets itself up; the command waits for it.
What cannot be written is not run. Loaded only where there is a ledger.
"""

from __future__ import annotations

import posix
import time

from osmoda.ledger.client import PATIENCE, Ledger, ServiceGone, open_ledger, printable
from osmoda.ledger.errors import LedgerError
from osmoda.sandbox.errors import LaunchError, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from osmoda.ledger.client import Ticket
    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.monitor import Monitor, Outcome, RawDenial

_DENIALS = 64  # distinct refused calls of one run that get an event each
_LAST_PATIENCE = 5.0  # seconds for the last events, when this process is about to end

_recorder: Recorder | None = None


def recorder() -> Recorder:
    """This process's. Raises LaunchError where the ledger cannot be written."""
    global _recorder
    if _recorder is None:
        made = Ledger()
        try:
            _connect(made)
        except LedgerError as error:
            raise not_run(str(error)) from None
        _recorder = Recorder(made)
    return _recorder


def act(kind: str, fields: dict[str, Any]) -> None:
    """Put an act on the ledger, where there is one, before it is done. Raises SandboxError where that cannot be."""
    try:
        ledger = open_ledger()
        if ledger is not None:
            with ledger:
                ledger.append(kind, fields)
    except LedgerError as error:
        raise SandboxError(f"it cannot be put on the ledger, so it was not done: {error}") from None


def leave(monitor: Monitor) -> None:
    """A loop is about to be closed: what was submitted beside it is waited for, and what is lost of it is said."""
    if _recorder is None:
        return
    _recorder.leave(monitor)
    lost = _recorder.settle()
    if lost:
        posix.write(2, f"osmoda-sandbox: the end of a run is not on the ledger: {lost}\n".encode())


def not_run(reason: str) -> LaunchError:
    """What is raised where the ledger does not have a launch."""
    return LaunchError(f"the launch cannot be put on the ledger, so nothing was run: {reason}")


class Recorder:
    """The connection to the ledger, beside a monitor's loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        ledger.on_lost = self._gone
        self._monitor: Monitor | None = None
        self._watched = -1
        self._waiting: list[tuple[Ticket, float, Callable[[str], None]]] = []
        self._timer: tuple[float, Callable[[], None]] | None = None
        self._not_before = 0.0
        self._lost = ""

    def launch(self, launched: Launched, argv: tuple[str, ...], words: int, digest: str) -> Ticket:
        """Submit that a command (`assignment.shown`) is about to run. Raises LaunchError where that cannot be."""
        plan = launched.plan
        cut = {"words": words, "argv_sha256": digest} if digest else {}
        try:
            _connect(self._ledger)
        except LedgerError as error:
            raise not_run(str(error)) from None
        return self._ledger.submit(
            "launch",
            {
                "identity": launched.identity,
                "agent": printable(launched.agent or plan.name.removesuffix(".toml")),
                "tier": plan.tier,
                "profile": printable(plan.files[0] if plan.files else plan.name),
                "plan": plan.fingerprint().hex(),
                "degraded": [entry.layer for entry in plan.degraded],
                "init": launched.pid,
                "argv": [printable(word) for word in argv],
                **cut,
            },
        )

    def end(self, launched: Launched, outcome: Outcome) -> None:
        """Submit how a command has ended, and what its sandbox was refused."""
        identity, denials = launched.identity, outcome.denials
        for denial in denials[:_DENIALS]:
            self._later("denial", _denial(identity, denial))
        if len(denials) > _DENIALS:
            count = sum([denial.count for denial in denials[_DENIALS:]])
            self._later("denial", {"identity": identity, "others": len(denials) - _DENIALS, "count": count})
        self._later(
            "end",
            {
                "identity": identity,
                "status": outcome.status,
                "signal": outcome.signal,
                "timed_out": outcome.timed_out,
                "duration_ms": round(outcome.duration * 1000),
                "user_ms": round(outcome.user_time * 1000),
                "system_ms": round(outcome.system_time * 1000),
                "peak_memory": outcome.peak_memory,
                "oom_kills": outcome.oom_kills,
                "forks_refused": outcome.forks_refused,
                "refused": outcome.refused,
                "network_refused": len(outcome.network),
            },
        )

    def failed(self, launched: Launched, error: str) -> None:
        """Submit that a launch has come to nothing, or was ended."""
        self._later("end", {"identity": launched.identity, "error": printable(error)})

    def _later(self, kind: str, fields: dict[str, Any]) -> None:
        """What has happened is no act that could be stopped: what cannot be written of it is said at the end."""
        ticket = self._ledger.submit(kind, fields)
        if ticket.error:
            self._lost = ticket.error
        now = time.monotonic()
        if self._ledger.fileno() < 0 and now >= self._not_before:
            # The service has ended since the launch: no later launch may ever come that would have another one started.
            self._not_before = now + PATIENCE
            self._reconnect()
            self._watch()

    # --- beside a loop ---

    def attend(self, monitor: Monitor, ticket: Ticket, told: Callable[[str], None]) -> None:
        """Call `told` when `ticket` is on the ledger, with an empty text, or with the reason why it is not."""
        self._waiting.append((ticket, time.monotonic() + PATIENCE, told))
        if monitor is not self._monitor:
            self._monitor, self._watched, self._timer = monitor, -1, None
        self._watch()
        self._look_later(0.0 if ticket.done else PATIENCE)

    def _look_later(self, seconds: float) -> None:
        assert self._monitor is not None
        if self._timer is not None:
            self._monitor.cancel(self._timer)
        self._timer = self._monitor.call_at(time.monotonic() + seconds, self._look)

    def leave(self, monitor: Monitor) -> None:
        """The loop is about to be closed."""
        if self._monitor is monitor:
            if self._watched >= 0:
                monitor.unregister(self._watched)
            self._monitor, self._watched, self._timer = None, -1, None

    def _watch(self) -> None:
        fd = self._ledger.fileno()
        if self._monitor is not None and fd >= 0 and fd != self._watched:
            self._monitor.register(fd, self._heard)
            self._watched = fd

    def _gone(self, fd: int) -> None:
        """Its number is soon another's."""
        if self._monitor is not None and fd == self._watched:
            self._monitor.unregister(fd)
        self._watched = -1

    def _heard(self) -> None:
        self._ledger.hear()
        if self._ledger.fileno() < 0 and self._ledger.pending:
            self._reconnect()
        self._watch()
        self._look()

    def _reconnect(self) -> None:
        """Another service takes over: commands that are about to start wait for it."""
        try:
            _connect(self._ledger)
        except LedgerError as error:
            for ticket, _, _ in self._waiting:
                ticket.error = ticket.error or str(error)

    def _look(self) -> None:
        now = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for ticket, until, told in waiting:
            if ticket.done:
                told(ticket.error)
            elif now >= until:
                ticket.error = f"the ledger's service has not answered within {PATIENCE:g} seconds"
                told(ticket.error)
            else:
                self._waiting.append((ticket, until, told))
        if self._monitor is not None and self._timer is not None and not self._waiting:
            self._monitor.cancel(self._timer)
            self._timer = None

    def settle(self) -> str:
        """Wait for what was submitted; why some of it is not on the ledger, or empty. Said once."""
        lost = self._ledger.flush(_LAST_PATIENCE) or self._lost
        self._lost = ""
        return lost


def _connect(ledger: Ledger) -> None:
    try:
        ledger.connect()
    except ServiceGone:
        ledger.connect()  # it was about to end for want of work


def _denial(identity: str, denial: RawDenial) -> dict[str, Any]:
    return {
        "identity": identity,
        "layer": "seccomp",
        "call": denial.number,
        "architecture": denial.architecture,
        "arguments": [f"{argument:#x}" for argument in denial.arguments],
        "command": printable(denial.command),
        "first_ms": int(denial.time * 1000),
        "count": denial.count,
    }
