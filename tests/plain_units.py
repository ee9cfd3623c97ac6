"""Units for tests, made without files: systemd's defaults, and what a test says otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from osmoda.supervisor.units.unit import Dependencies, Exec, ExitStatuses, Health, Install, Origin, Osmoda, Output, Unit

ORIGIN = Origin("/units/agent.service", 7)
NO_STATUSES = ExitStatuses(frozenset(), frozenset())
NO_DEPENDENCIES = Dependencies((), (), (), (), (), (), (), ())
NO_HEALTH = Health((), 30.0, 5.0, 0.0, 3)
PLAIN = Osmoda(
    profile="",
    tier=None,
    serve=(),
    health=NO_HEALTH,
    group="",
    group_burst=0,
    group_interval=0.0,
    workspace="",
    pool=0,
)


def command(*words: str, ignore: bool = False) -> Exec:
    return Exec(words[0], words, ignore_failure=ignore, expand_variables=True, origin=ORIGIN)


def statuses(*codes: int, signals: tuple[int, ...] = ()) -> ExitStatuses:
    return ExitStatuses(frozenset(codes), frozenset(signals))


def depends(**names: tuple[str, ...]) -> Dependencies:
    return replace(NO_DEPENDENCIES, **names)


_DEFAULTS: dict[str, Any] = {
    "name": "agent.service",
    "files": ("/units/agent.service",),
    "description": "An agent",
    "documentation": (),
    "default_dependencies": True,
    "dependencies": NO_DEPENDENCIES,
    "conditions": (),
    "start_limit_interval": 10.0,
    "start_limit_burst": 5,
    "type": "simple",
    "remain_after_exit": False,
    "exec_condition": (),
    "exec_start_pre": (),
    "exec_start": (command("/bin/agent"),),
    "exec_start_post": (),
    "exec_reload": (),
    "exec_stop": (),
    "exec_stop_post": (),
    "restart": "no",
    "restart_sec": 0.1,
    "restart_steps": 0,
    "restart_max_delay": math.inf,
    "success": NO_STATUSES,
    "restart_prevent": NO_STATUSES,
    "restart_force": NO_STATUSES,
    "timeout_start": 90.0,
    "timeout_stop": 90.0,
    "timeout_abort": 90.0,
    "runtime_max": math.inf,
    "watchdog": 0.0,
    "notify_access": "none",
    "kill_mode": "control-group",
    "kill_signal": 15,
    "restart_kill_signal": 15,
    "final_kill_signal": 9,
    "send_sighup": False,
    "send_sigkill": True,
    "working_directory": "/",
    "working_directory_optional": False,
    "user": "",
    "group": "",
    "environment": MappingProxyType({}),
    "environment_files": (),
    "pass_environment": (),
    "unset_environment": (),
    "standard_input": Output("null"),
    "standard_output": Output("journal"),
    "standard_error": Output("inherit"),
    "syslog_identifier": "",
    "confinement": (),
    "sockets": (),
    "install": Install((), (), (), ()),
    "osmoda": PLAIN,
}


def plain(**changes: Any) -> Unit:
    """A unit with `changes`; those of `[X-Osmoda]` are given as `osmoda={…}`."""
    osmoda = replace(PLAIN, **changes.pop("osmoda", {}))
    return Unit(**{**_DEFAULTS, **changes, "osmoda": osmoda})
