"""A unit as osmoda reads it, and as systemd does: where they differ."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from osmoda.supervisor.units.environment import environment_of, expand
from osmoda.supervisor.units.unit import Exec, ExitStatuses, Unit

INFINITY = (1 << 64) - 1


def microseconds(seconds: float) -> int:
    return INFINITY if math.isinf(seconds) else round(seconds * 1_000_000)


def commands(found: tuple[Exec, ...]) -> list[Any]:
    return [
        [
            one.program,
            list(one.words),
            ["ignore-failure"] * one.ignore_failure + ["no-env-expand"] * (not one.expand_variables),
        ]
        for one in found
    ]


def statuses(found: ExitStatuses) -> list[list[int]]:
    return [sorted(found.codes), sorted(found.signals)]


def conditions(unit: Unit, kind: str) -> list[Any]:
    found = []
    for one in unit.conditions:
        if one.name.startswith(kind):
            rest = one.value.lstrip("|!")
            marks = one.value[: len(one.value) - len(rest)]
            found.append([one.name, "|" in marks, "!" in marks, rest])
    return sorted(found)


# What osmoda says, by the property that says it in systemd.
OURS: dict[str, Callable[[Unit], Any]] = {
    "Id": lambda unit: unit.name,
    "Description": lambda unit: unit.description,
    "Documentation": lambda unit: list(unit.documentation),
    "DefaultDependencies": lambda unit: unit.default_dependencies,
    "Conditions": lambda unit: conditions(unit, "Condition"),
    "Asserts": lambda unit: conditions(unit, "Assert"),
    "StartLimitIntervalUSec": lambda unit: microseconds(unit.start_limit_interval),
    "StartLimitBurst": lambda unit: unit.start_limit_burst,
    "Type": lambda unit: unit.type,
    "RemainAfterExit": lambda unit: unit.remain_after_exit,
    "ExecConditionEx": lambda unit: commands(unit.exec_condition),
    "ExecStartPreEx": lambda unit: commands(unit.exec_start_pre),
    "ExecStartEx": lambda unit: commands(unit.exec_start),
    "ExecStartPostEx": lambda unit: commands(unit.exec_start_post),
    "ExecReloadEx": lambda unit: commands(unit.exec_reload),
    "ExecStopEx": lambda unit: commands(unit.exec_stop),
    "ExecStopPostEx": lambda unit: commands(unit.exec_stop_post),
    "Restart": lambda unit: unit.restart,
    "RestartUSec": lambda unit: microseconds(unit.restart_sec),
    "RestartSteps": lambda unit: unit.restart_steps,
    "RestartMaxDelayUSec": lambda unit: microseconds(unit.restart_max_delay),
    "SuccessExitStatus": lambda unit: statuses(unit.success),
    "RestartPreventExitStatus": lambda unit: statuses(unit.restart_prevent),
    "RestartForceExitStatus": lambda unit: statuses(unit.restart_force),
    "TimeoutStartUSec": lambda unit: microseconds(unit.timeout_start),
    "TimeoutStopUSec": lambda unit: microseconds(unit.timeout_stop),
    "TimeoutAbortUSec": lambda unit: microseconds(unit.timeout_abort),
    "RuntimeMaxUSec": lambda unit: microseconds(unit.runtime_max),
    "NotifyAccess": lambda unit: unit.notify_access,
    "KillMode": lambda unit: unit.kill_mode,
    "KillSignal": lambda unit: unit.kill_signal,
    "RestartKillSignal": lambda unit: unit.restart_kill_signal,
    "FinalKillSignal": lambda unit: unit.final_kill_signal,
    "SendSIGHUP": lambda unit: unit.send_sighup,
    "SendSIGKILL": lambda unit: unit.send_sigkill,
    "WorkingDirectory": lambda unit: "!" * unit.working_directory_optional + unit.working_directory,
    "User": lambda unit: unit.user,
    "Group": lambda unit: unit.group,
    "Environment": lambda unit: sorted(f"{name}={value}" for name, value in unit.environment.items()),
    "EnvironmentFiles": lambda unit: [[one.path, one.optional] for one in unit.environment_files],
    "PassEnvironment": lambda unit: list(unit.pass_environment),
    "UnsetEnvironment": lambda unit: list(unit.unset_environment),
    "StandardInput": lambda unit: unit.standard_input.kind,
    "StandardOutput": lambda unit: unit.standard_output.kind,
    "StandardError": lambda unit: unit.standard_error.kind,
    "SyslogIdentifier": lambda unit: unit.syslog_identifier,
}
# What systemd says, where its form is another.
THEIRS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("Conditions", "Asserts"), lambda value: sorted(one[:4] for one in value)),
    **dict.fromkeys(
        (name for name in OURS if name.endswith("Ex")),
        lambda value: [[one[0], one[1], sorted(one[2])] for one in value],
    ),
    **dict.fromkeys(
        (name for name in OURS if name.endswith("ExitStatus")), lambda value: [sorted(one) for one in value]
    ),
    "Environment": sorted,
}
DEPENDENCIES = {
    "After": "after",
    "Before": "before",
    "Requires": "requires",
    "Requisite": "requisite",
    "Wants": "wants",
    "BindsTo": "binds_to",
    "PartOf": "part_of",
    "Conflicts": "conflicts",
}
# Dependencies that systemd adds by itself (systemd.service(5), systemd.exec(5), systemd.resource-control(5)).
_IMPLICIT = re.compile(
    r"(sysinit|basic|shutdown|multi-user|remote-fs|network|local-fs-pre)\.target|system(-.*)?\.slice"
    r"|.*\.(slice|mount|socket)|systemd-.*\.service|dbus.*"
)


def differences(
    unit: Unit, theirs: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], text_of: Callable[[str], str]
) -> list[str]:
    """Sentences: a property, what osmoda has and what systemd has.

    `known` are all properties, by asked name; `text_of` gives the text of another unit's file.
    """
    found = []
    for name, ours in OURS.items():
        if name in ("User", "Group") and not ours(unit) and theirs["DynamicUser"]:
            continue  # systemd calls them as the unit is called
        mine, its = ours(unit), THEIRS.get(name, lambda value: value)(theirs[name])
        if mine != its:
            found.append(f"{name}: {mine!r}, in systemd {its!r}")
    for name, key in DEPENDENCIES.items():
        mine = {known.get(other, {}).get("Id", other) for other in getattr(unit.dependencies, key)} - {unit.name}
        its = {*theirs[name]}
        if key == "before":  # devices wait for nothing: systemd leaves that out
            mine = {other for other in mine if not other.endswith(".device")}
        if missing := mine - its:
            found.append(f"{name}: {sorted(missing)} are not in systemd")
        # What systemd adds by itself, or because the other unit's file says the reverse.
        added = {other for other in its - mine if not _IMPLICIT.fullmatch(other) and unit.name not in text_of(other)}
        if added:
            found.append(f"{name}: {sorted(added)} are in systemd only")
    return found


def differences_when_run(unit: Unit, text: str, said: bytes) -> list[str]:
    """Sentences on arguments and variables; `text` is the file of variables, `said` what the unit's commands said."""
    *words, rest = said.split(b"\0END\0", 1) if b"\0END\0" in said else (said,)
    theirs = [os.fsdecode(word) for word in b"".join(words).split(b"\0")] if words else []
    variables = dict(os.fsdecode(entry).partition("=")[::2] for entry in rest.split(b"\0") if entry.startswith(b"V_"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        (written,) = unit.environment_files
        here = dataclasses.replace(unit, environment_files=(dataclasses.replace(written, path=file.name),))
        environment = environment_of(here, {})
    ours = {name: value for name, value in environment.items() if name.startswith("V_")}
    arguments = expand(unit.exec_start[0], environment)[2:-1]
    found = [] if variables == ours else [f"variables {ours!r}, under systemd {variables!r}, of {text!r}"]
    if arguments != theirs:
        found.append(f"arguments {arguments!r}, under systemd {theirs!r}, of {unit.exec_start[0].words!r}")
    return found
