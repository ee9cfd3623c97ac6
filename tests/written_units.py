"""Units as values: what a unit file without anything in it means, with the changes that a test makes."""

from __future__ import annotations

import math
from typing import Any

from osmoda.supervisor.unit import (
    Dependencies,
    Directive,
    EnvironmentFile,
    Exec,
    ExitStatuses,
    Health,
    Install,
    Origin,
    Osmoda,
    Output,
    Unit,
)

FILE = "/etc/osmoda/units/agent.service"


def at(line: int, file: str = FILE) -> Origin:
    return Origin(file, line)


def command(*words: str, line: int = 3) -> Exec:
    return Exec(words[0], words, False, True, at(line))


def directives(text: str, first: int = 10) -> tuple[Directive, ...]:
    """One directive a line, `Name=value`, from the line `first` of the unit on."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return tuple(
        Directive(name, value, at(number))
        for number, line in enumerate(lines, first)
        for name, _, value in [line.partition("=")]
    )


def variables_of(*paths: str, line: int = 5) -> tuple[EnvironmentFile, ...]:
    return tuple(EnvironmentFile(path, False, at(line)) for path in paths)


def osmoda(**changed: Any) -> Osmoda:
    values: dict[str, Any] = {
        "profile": "",
        "tier": None,
        "serve": (),
        "health": Health((), 30.0, 5.0, 0.0, 3),
        "group": "",
        "group_burst": 0,
        "group_interval": 0.0,
        "workspace": "",
        "pool": 0,
    }
    return Osmoda(**values | changed)


def unit(**changed: Any) -> Unit:
    """A unit that runs /bin/true, with `changed` fields; `confinement` may be text (see `directives`)."""
    none, nothing = ExitStatuses(frozenset(), frozenset()), Output("null", "")
    if isinstance(changed.get("confinement"), str):
        changed["confinement"] = directives(changed["confinement"])
    values: dict[str, Any] = {
        "name": "agent.service",
        "files": (),
        "description": "",
        "documentation": (),
        "dependencies": Dependencies((), (), (), (), (), (), (), ()),
        "conditions": (),
        "start_limit_interval": 10.0,
        "start_limit_burst": 5,
        "type": "simple",
        "remain_after_exit": False,
        "exec_start": (command("/bin/true"),),
        **dict.fromkeys(
            ("exec_condition", "exec_start_pre", "exec_start_post", "exec_reload", "exec_stop", "exec_stop_post"), ()
        ),
        "restart": "no",
        "restart_sec": 0.1,
        "restart_steps": 0,
        "restart_max_delay": math.inf,
        "success": none,
        "restart_prevent": none,
        "restart_force": none,
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
        "working_directory": "",
        "working_directory_optional": False,
        "user": "",
        "group": "",
        "environment": {},
        "environment_files": (),
        "pass_environment": (),
        "unset_environment": (),
        "standard_input": nothing,
        "standard_output": Output("journal", ""),
        "standard_error": Output("journal", ""),
        "syslog_identifier": "",
        "confinement": (),
        "sockets": (),
        "install": Install((), (), (), ()),
        "osmoda": osmoda(),
        "origins": {
            "Service.WorkingDirectory": at(2),
            "Service.ExecStart": at(3),
            "Service.User": at(6),
            "Service.Group": at(7),
            "X-Osmoda.Profile": at(41),
            "X-Osmoda.Tier": at(42),
            "X-Osmoda.Serve": at(43),
        },
    }
    return Unit(**values | changed)
