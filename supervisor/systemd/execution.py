"""`osmoda-watch exec`: one command of a unit in its sandbox, as the drop-in has systemd call it.

It reads the unit again, whatever the drop-in was written from, and has nothing but its arguments and what systemd
says to a command (systemd.exec(5)): neither variables nor files that the agent could have written.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from osmoda.ledger.client import open_ledger
from osmoda.ledger.errors import LedgerError
from osmoda.sandbox import plans
from osmoda.sandbox.errors import CommandError, SandboxError
from osmoda.sandbox.service_foreground import run_service
from osmoda.sandbox.terminal_text import clean
from osmoda.sandbox.verbs import carry_out
from osmoda.supervisor.confining import preparation
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins
from osmoda.supervisor.units.environment import expand
from osmoda.supervisor.units.files import systemd_path
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.process import Result
    from osmoda.sandbox.running import Running
    from osmoda.supervisor.confining.confinement import Confined
    from osmoda.supervisor.units.unit import Exec, Unit

NOT_EXECUTED = 203
NO_SANDBOX = 125
"""Exit codes: systemd's own for a program that cannot be executed (systemd.exec(5)), and ours for the rest."""

_SAID_BY_SYSTEMD = (
    *("INVOCATION_ID", "MAINPID", "SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"),
    *("MONITOR_SERVICE_RESULT", "MONITOR_EXIT_CODE", "MONITOR_EXIT_STATUS", "MONITOR_INVOCATION_ID", "MONITOR_UNIT"),
)


def entry(arguments: list[str]) -> int:
    """`main` as a command: what goes wrong is one sentence on the standard error."""
    return carry_out("osmoda-watch", lambda: main(arguments), (SupervisorError,))


def main(arguments: list[str]) -> int:
    """`exec KIND NUMBER MARK UNIT`, for drop-ins: the exit code. Raises SupervisorError for anything else."""
    match arguments:
        case [kind, number, mark, name] if kind in (*systemd_drop_ins.KINDS, "health") and number.isdecimal():
            return run(kind, int(number), mark, name)
    raise SupervisorError("`osmoda-watch exec` is for the drop-ins that `osmoda-watch start` writes for systemd")


def run(kind: str, number: int, mark: str, name: str) -> int:
    """Run a unit's command to its end: the exit code, or this process ends by the signal that has ended the command.

    `kind` and `number` say which one, `mark` is the drop-in's `fingerprint`. What keeps it from running is a sentence
    on the standard error, and the exit code 125 or 203.
    """
    try:
        unit = Loader(systemd_path()).load(name)
        if systemd_drop_ins.fingerprint(unit) != mark:
            raise SupervisorError(
                f"{name} is another one than its drop-in was written for; `osmoda-watch daemon-reload` writes it anew"
            )
        if kind == "health":
            check = unit.osmoda.health.checks[number].command
            assert check is not None
            return _run(unit, kind, check)
        return _run(unit, kind, systemd_drop_ins.commands(unit, kind)[number])
    except CommandError as error:
        return _failed(error, NOT_EXECUTED)
    except (SupervisorError, SandboxError) as error:
        return _failed(error, NO_SANDBOX)


def _failed(error: Exception, code: int) -> int:
    _say(str(error))
    return code


def _run(unit: Unit, kind: str, command: Exec) -> int:
    said = {name: os.environ[name] for name in _SAID_BY_SYSTEMD if name in os.environ}
    signalled = preparation.signal_to_main(command) if kind in ("reload", "stop") else 0
    if signalled:
        # The program has another pid in its sandbox: what stands for it here passes the signal on.
        return _signal(said.get("MAINPID", ""), signalled)
    ignored: list[str] = []
    confined = confine(unit)
    env = preparation.variables(unit, confined, said, ignored)
    for text in ignored:
        _say(text)
    _open_streams(unit)
    is_main = kind == "start"
    if is_main:
        _begin(unit, confined)
    daemon = is_main and unit.type != "oneshot"
    return run_service(
        confined.profile,
        expand(command, env),
        env=env,
        cwd=unit.working_directory,
        workspace=confined.workspace,
        agent=unit.name.rpartition(".")[0],
        from_children=unit.notify_access == "all" or (unit.notify_access == "exec" and not is_main),
        ready_when_started=is_main and unit.type in ("simple", "exec"),
        to_all=unit.kill_signal if daemon and unit.kill_mode == "control-group" else 0,
        patience=unit.timeout_stop,
        beside=_health(unit) if daemon and unit.osmoda.health.checks else None,
        after=_over,
    )


def _health(unit: Unit) -> Callable[[Running, Callable[[bytes], None]], None]:
    # It takes longer to load than all the rest.
    from osmoda.supervisor.systemd import health as systemd_health

    return partial(systemd_health.watch, unit)


def _signal(pid: str, number: int) -> int:
    """What kill(1) does, with its exit code."""
    try:
        os.kill(int(pid), number)
    except (ValueError, ProcessLookupError):
        return 1
    return 0


def _begin(unit: Unit, confined: Confined) -> None:
    """Have the start on the ledger, where there is one: what must be on it and cannot be written is not done."""
    try:
        ledger = open_ledger()
        if ledger is None:
            return
        try:
            profile = confined.profile
            fields = {
                "unit": unit.name,
                "files": list(unit.files),
                "tier": profile.tier,
                "profile": confined.file,
                "plan": plans.for_profile(profile).fingerprint().hex(),
            }
            ledger.append("start", fields)
        finally:
            ledger.close()
    except LedgerError as error:
        raise SupervisorError(f"{error}; it must be on the ledger") from None


def _over(_: Running, result: Result) -> None:
    """What was refused, for the journal; its monitor has put it on the ledger."""
    for denial in result.denials:
        if not denial.habitual:
            _say(denial.sentence())


def _say(text: str) -> None:
    print(f"osmoda-watch: {clean(text)}", file=sys.stderr, flush=True)


def _open_streams(unit: Unit) -> None:
    """Files for the standard streams, over what systemd has opened. Raises SupervisorError."""
    for number, output in enumerate((unit.standard_input, unit.standard_output, unit.standard_error)):
        if systemd_drop_ins.opened_inside(output):
            try:
                fd = preparation.open_output(output) if number else preparation.open_input(output.path)
            except OSError as error:
                raise SupervisorError(f"{output.path}: {error.strerror}") from None
            os.dup2(fd, number)
            os.close(fd)
        elif number == 2 and output.kind == "inherit":
            os.dup2(1, 2)
