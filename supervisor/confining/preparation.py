"""From a unit to what can be started: conditions, the profile compiled for this host, streams, variables, words."""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.service import Service
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import SupervisorError, UnitError
from osmoda.supervisor.units import conditions, environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.supervisor.confining.confinement import Confined
    from osmoda.supervisor.units.unit import Exec, Output, Unit

MOST_WAITING = 16
"""Sandboxes of one unit that wait for a restart (Pool=)."""

_KILL = ("kill", "/bin/kill", "/usr/bin/kill")
_PATH_FLAGS = {"append": os.O_APPEND, "file": 0, "truncate": os.O_TRUNC}


class Skipped(SupervisorError):
    """A condition of the unit does not hold: it is not started, and that is no failure."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A unit whose sandboxes can be built. `close` ends those that wait."""

    unit: Unit
    confined: Confined
    service: Service

    @property
    def plan(self) -> str:
        """The digest of its plan."""
        return self.service.plan.fingerprint().hex()


def prepare(unit: Unit) -> Prepared:
    """Compile what `unit` asks for; it takes its time. Raises Skipped, UnitError, SandboxError."""
    for kind, error in (("Condition", Skipped), ("Assert", None)):
        unmet = conditions.unmet(unit.conditions, kind)
        if unmet is not None:
            text = f"{unmet.name}={unmet.value} does not hold"
            if error is not None:
                raise Skipped(f"{unmet.origin}: {text}")
            raise UnitError(text, unmet.origin)
    for command in (*unit.exec_condition, *unit.exec_start_pre, *unit.exec_start, *unit.exec_start_post):
        if command.program != command.words[0]:
            raise UnitError(
                'the prefix "@" is not possible here: a sandbox executes what its first word names', command.origin
            )
    if unit.osmoda.pool > MOST_WAITING:
        raise UnitError(f"at most {MOST_WAITING} sandboxes wait for a unit", unit.origins.get("X-Osmoda.Pool"))
    confined = confine(unit)
    service = Service(
        confined.profile,
        workspace=confined.workspace,
        agent=unit.name.rpartition(".")[0],
        pool=unit.osmoda.pool,
    )
    return Prepared(unit, confined, service)


def variables(
    unit: Unit, confined: Confined, more: Mapping[str, str], ignored: list[str] | None = None
) -> dict[str, str]:
    """The environment of a command of `unit`, `more` being what the supervisor says to it. Raises UnitError."""
    return environment.environment_of(unit, {"INVOCATION_ID": uuid.uuid4().hex, **more}, ignored, confined.written)


def signal_to_main(command: Exec) -> int:
    """The signal that a command such as `/bin/kill -HUP $MAINPID` sends to the service's program, 0 for any other.

    The supervisor sends it: the command's own sandbox shows no process of another one.
    """
    if command.words[0] not in _KILL or command.words[-1] not in ("$MAINPID", "${MAINPID}"):
        return 0
    match [word.removeprefix("-") for word in command.words[1:-1]]:
        case []:
            return int(signal.SIGTERM)
        case [name] | ["s", name]:
            return _number(name)
    return 0


def _number(name: str) -> int:
    if name.isdigit():
        return int(name) if int(name) in signal.valid_signals() else 0
    try:
        return int(signal.Signals["SIG" + name.upper().removeprefix("SIG")])
    except KeyError:
        return 0


def open_output(output: Output) -> int:
    """A descriptor of the file that a stream goes to. Raises OSError.

    No link on the way is followed: it lies where the agent may have made one. Nor is a FIFO waited for.
    """
    return _open(output.path, os.O_WRONLY | os.O_CREAT | _PATH_FLAGS[output.kind], 0o644)


def open_input(path: str) -> int:
    """The same to read from."""
    return _open(path, os.O_RDONLY, 0)


def _open(path: str, flags: int, mode: int) -> int:
    flags |= os.O_NOCTTY | os.O_NONBLOCK
    fd = syscalls.openat2(-100, os.fsencode(path), flags, syscalls.RESOLVE_NO_SYMLINKS, mode)
    os.set_blocking(fd, True)
    return fd
