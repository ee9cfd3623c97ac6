"""The texts of a unit's files to the unit: each directive through the table, defaults, contradictions refused.

Sans-I/O: `loading` finds the files.
"""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import directives, syntax
from osmoda.supervisor.units.draft import Draft
from osmoda.supervisor.units.unit import (
    Dependencies,
    ExitStatuses,
    Health,
    Install,
    Origin,
    Osmoda,
    Output,
    SocketUnit,
    Unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from osmoda.supervisor.units.specifiers import Host, Name
    from osmoda.supervisor.units.syntax import Assignment

# A path and what the file holds; the unit's own file first, drop-ins in the order in which they apply.
type Text = tuple[str, bytes]

# Values that messages do not repeat: they may be secrets.
_SECRET = {"Environment", "UnsetEnvironment", "SetCredential", "SetCredentialEncrypted"}
_DOCUMENTATION = ("http://", "https://", "file:/", "info:", "man:")


def service(name: Name, texts: Sequence[Text], host: Host) -> Unit:
    """A service by its files' texts. Raises UnitError."""
    draft = _draft(name, texts, host, directives.SERVICE)
    unit = Unit(**_common(draft, texts), **_service(draft))
    _refuse_contradictions(unit)
    return unit


def socket(name: Name, texts: Sequence[Text], host: Host) -> SocketUnit:
    """A socket unit by its files' texts. Raises UnitError."""
    draft = _draft(name, texts, host, directives.SOCKET)
    for directive in ("StartLimitIntervalSec", "StartLimitInterval", "StartLimitBurst"):
        if origin := draft.origins.get(f"Unit.{directive}"):
            raise UnitError(f"{directive}= is not supported: the service has its own start limit", origin)
    common = _common(draft, texts)
    for key in ("documentation", "default_dependencies", "start_limit_interval", "start_limit_burst"):
        del common[key]
    found = SocketUnit(**common, **_socket(draft))
    if not found.listen:
        raise UnitError("there is nothing to listen at: no ListenStream= or the like", Origin(texts[0][0], 1))
    if found.symlinks and sum(one.address.startswith("/") for one in found.listen) != 1:
        raise UnitError(
            "Symlinks= needs exactly one socket that is a path, to lead to it", found.origins.get("Socket.Symlinks")
        )
    return found


def _draft(name: Name, texts: Iterable[Text], host: Host, table: Mapping[str, Mapping[str, directives.Rule]]) -> Draft:
    draft = Draft(name, host)
    for path, content in texts:
        for assignment in syntax.assignments(content, path, table):
            _take(draft, assignment, table)
            draft.origins[assignment.directive] = assignment.origin
    return draft


def _take(draft: Draft, assignment: Assignment, table: Mapping[str, Mapping[str, directives.Rule]]) -> None:
    rule = table[assignment.section].get(assignment.name)
    if rule is None:
        raise UnitError(_unknown(assignment, table), assignment.origin)
    if rule.handle is None:
        raise UnitError(f"{assignment.name}= is not supported: {rule.reason}", assignment.origin)
    try:
        rule.handle(draft, assignment)
    except ValueError as error:
        shown = "" if assignment.name in _SECRET else _shown(assignment.value)
        raise UnitError(f"{assignment.name}={shown} {error}", assignment.origin) from None


def _unknown(assignment: Assignment, table: Mapping[str, Mapping[str, directives.Rule]]) -> str:
    """What is said of a directive that its section does not have."""
    sentence = f"{_shown(assignment.name)}= is no directive of [{assignment.section}]"
    for section, rules in table.items():
        if assignment.name in rules:
            return f"{sentence}; it belongs into [{section}]"
    near = difflib.get_close_matches(assignment.name[:80], table[assignment.section], 1)
    return f"{sentence}; {near[0]}= is" if near else sentence


def _shown(value: str) -> str:
    """A value in a message: its beginning."""
    return value if len(value) <= 80 else value[:77] + "..."


# Parts of the model


def _common(draft: Draft, texts: Sequence[Text]) -> dict[str, Any]:
    """What services and sockets have alike."""
    values = draft.values
    documentation = [entry for entry in values.get("documentation", ()) if entry.startswith(_DOCUMENTATION)]
    return {
        "name": draft.name.full,
        "files": tuple(path for path, _ in texts),
        "description": values.get("description") or draft.name.full,
        "documentation": tuple(documentation),
        "default_dependencies": values.get("default_dependencies", True),
        "dependencies": Dependencies(**{key: _names(values, key) for key in _DEPENDENCIES}),
        "conditions": tuple(values.get("conditions", ())),
        "start_limit_interval": values.get("start_limit_interval", 10.0),
        "start_limit_burst": values.get("start_limit_burst", 5),
        "install": Install(
            wanted_by=_names(values, "wanted_by"),
            required_by=_names(values, "required_by"),
            also=_names(values, "also"),
            alias=_names(values, "alias"),
            default_instance=values.get("default_instance", ""),
        ),
        "origins": draft.origins,
    }


_DEPENDENCIES = ("after", "before", "requires", "requisite", "wants", "binds_to", "part_of", "conflicts")


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(sorted({*values.get(key, ())}))


def _service(draft: Draft) -> dict[str, Any]:
    values = draft.values
    kind = values.get("type") or ("simple" if values.get("exec_start") else "oneshot")
    watchdog = values.get("watchdog", 0.0)
    notify_access = values.get("notify_access", "none")
    if notify_access == "none" and (kind == "notify" or watchdog):
        notify_access = "main"
    timeout_stop = values.get("timeout_stop", 90.0)
    kill_signal = values.get("kill_signal", 15)
    return {
        "type": kind,
        "remain_after_exit": values.get("remain_after_exit", False),
        **{key: tuple(values.get(key, ())) for key in _COMMANDS},
        "restart": values.get("restart", "no"),
        "restart_sec": values.get("restart_sec", 0.1),
        "restart_steps": values.get("restart_steps", 0),
        "restart_max_delay": values.get("restart_max_delay", math.inf),
        **{
            key: ExitStatuses(*values.get(key, (frozenset(), frozenset())))
            for key in ("success", "restart_prevent", "restart_force")
        },
        "timeout_start": values.get("timeout_start", math.inf if kind == "oneshot" else 90.0),
        "timeout_stop": timeout_stop,
        "timeout_abort": values.get("timeout_abort", timeout_stop),
        "runtime_max": values.get("runtime_max", math.inf),
        "watchdog": watchdog,
        "notify_access": notify_access,
        "kill_mode": values.get("kill_mode", "control-group"),
        "kill_signal": kill_signal,
        "restart_kill_signal": values.get("restart_kill_signal", kill_signal),
        "final_kill_signal": values.get("final_kill_signal", 9),
        "send_sighup": values.get("send_sighup", False),
        "send_sigkill": values.get("send_sigkill", True),
        "working_directory": values.get("working_directory", ""),
        "working_directory_optional": values.get("working_directory_optional", False),
        "user": values.get("user", ""),
        "group": values.get("group", ""),
        "environment": values.get("environment", {}),
        "environment_files": tuple(values.get("environment_files", ())),
        "pass_environment": tuple(dict.fromkeys(values.get("pass_environment", ()))),
        "unset_environment": tuple(dict.fromkeys(values.get("unset_environment", ()))),
        "standard_input": values.get("standard_input", Output("null")),
        "standard_output": values.get("standard_output", Output("journal")),
        "standard_error": values.get("standard_error", Output("inherit")),
        "syslog_identifier": values.get("syslog_identifier", ""),
        "confinement": tuple(values.get("confinement", ())),
        "sockets": _names(values, "sockets"),
        "osmoda": _osmoda(values),
    }


_COMMANDS = (
    *("exec_condition", "exec_start_pre", "exec_start", "exec_start_post"),
    *("exec_reload", "exec_stop", "exec_stop_post"),
)


def _osmoda(values: Mapping[str, Any]) -> Osmoda:
    health = Health(
        checks=tuple(values.get("checks", ())),
        interval=values.get("health_interval", 10.0),
        timeout=values.get("health_timeout", 5.0),
        start_period=values.get("health_start_period", 0.0),
        retries=values.get("health_retries", 3),
    )
    return Osmoda(
        profile=values.get("profile", ""),
        tier=values.get("tier"),
        serve=tuple(sorted({*values.get("serve", ())})),
        health=health,
        group=values.get("restart_group", ""),
        group_burst=values.get("group_burst", 0),
        group_interval=values.get("group_interval", 0.0),
        workspace=values.get("workspace", ""),
        pool=values.get("pool", 0),
    )


def _socket(draft: Draft) -> dict[str, Any]:
    values = draft.values
    return {
        "listen": tuple(values.get("listen", ())),
        "service": values.get("service", f"{draft.name.stem}.service"),
        "descriptor_name": values.get("descriptor_name", draft.name.full),
        "backlog": values.get("backlog", 0xFFFFFFFF),
        "ipv6_only": values.get("ipv6_only"),
        "mode": values.get("mode", 0o666),
        "directory_mode": values.get("directory_mode", 0o755),
        "user": values.get("user", ""),
        "group": values.get("group", ""),
        "symlinks": tuple(values.get("symlinks", ())),
        **{key: values.get(key, False) for key in ("remove_on_stop", "keep_alive", "no_delay")},
        **{key: values.get(key, False) for key in ("reuse_port", "free_bind", "pass_credentials")},
    }


# What each line alone may say, and all together may not (what systemd's service_verify() refuses, and where it warns)


def _refuse_contradictions(unit: Unit) -> None:
    start = Origin(unit.files[0], 1)
    if not unit.exec_start and not unit.exec_stop:
        raise UnitError("there is nothing to run: neither ExecStart= nor ExecStop=", start)
    if not unit.exec_start and unit.type != "oneshot":
        raise _at(unit, "Service.Type", f"Type={unit.type} needs ExecStart=")
    if not unit.exec_start and not unit.remain_after_exit:
        raise UnitError("without ExecStart= a service needs RemainAfterExit=yes", start)
    if len(unit.exec_start) > 1 and unit.type != "oneshot":
        raise _at(unit, "Service.ExecStart", f"Type={unit.type} has one ExecStart=; only Type=oneshot runs several")
    if unit.type == "oneshot" and unit.restart in ("always", "on-success"):
        raise _at(unit, "Service.Restart", f"Type=oneshot would never be done with Restart={unit.restart}")
    if unit.type == "oneshot" and math.isfinite(unit.runtime_max):
        raise _at(unit, "Service.RuntimeMaxSec", "Type=oneshot is bounded by TimeoutStartSec=, not by RuntimeMaxSec=")
    if unit.restart_max_delay < unit.restart_sec:
        raise _at(unit, "Service.RestartMaxDelaySec", "RestartMaxDelaySec= is less than RestartSec=")
    if (unit.restart_steps > 0) != math.isfinite(unit.restart_max_delay):
        line = "Service.RestartSteps" if unit.restart_steps else "Service.RestartMaxDelaySec"
        raise _at(unit, line, "RestartSteps= and RestartMaxDelaySec= mean something only together")


def _at(unit: Unit, directive: str, message: str) -> UnitError:
    """An error at the line of a directive; at the unit's first where nobody wrote it."""
    return UnitError(message, unit.origins.get(directive, Origin(unit.files[0], 1)))
