"""How values of a service's own directives are taken in: environment, streams, times, exit statuses.

Handlers of a draft, as those in `draft`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from osmoda.supervisor.units import values
from osmoda.supervisor.units.draft import split
from osmoda.supervisor.units.environment import is_name
from osmoda.supervisor.units.unit import EnvironmentFile, Output

if TYPE_CHECKING:
    from osmoda.supervisor.units.draft import Draft, Handler
    from osmoda.supervisor.units.syntax import Assignment


# Environment


def environment(draft: Draft, assignment: Assignment) -> None:
    """Environment=: assignments, of which later ones win."""
    if not assignment.value:
        draft.forget("environment")
        return
    found = dict(draft.values.get("environment", {}))
    for word in split(assignment.value, unescape=True):
        name, equals, value = draft.text(word).partition("=")
        if not equals or not is_name(name):
            raise ValueError("holds something that is no assignment to a variable")
        if any("\ud800" <= letter <= "\udfff" for letter in value) or "\0" in value:
            raise ValueError(f"gives {name} a value that is not UTF-8")
        found[name] = value
    draft.values["environment"] = found


def environment_file(draft: Draft, assignment: Assignment) -> None:
    """EnvironmentFile=: one path, or pattern of paths, with "-" before it where it may be missing."""
    if not assignment.value:
        draft.forget("environment_files")
        return
    resolved = draft.text(assignment.value)
    path = values.absolute_path(resolved.removeprefix("-"))
    draft.add("environment_files", [EnvironmentFile(path, resolved.startswith("-"), assignment.origin)])


def variable(word: str) -> str:
    if not is_name(word):
        raise ValueError("holds something that is no name of a variable")
    return word


def variable_or_assignment(word: str) -> str:
    variable(word.partition("=")[0])
    return word


# Where a process is, and its streams


def working_directory(draft: Draft, assignment: Assignment) -> None:
    """An absolute path or "~", the home of the unit's user; with "-" before it where it may be missing."""
    value = assignment.value
    draft.values["working_directory_optional"] = value.startswith("-")
    value = value.removeprefix("-")
    if not value:
        draft.forget("working_directory")
        draft.forget("working_directory_optional")
    else:
        draft.values["working_directory"] = "~" if value == "~" else values.absolute_path(draft.text(value))


_FILES: dict[str, Literal["file", "append", "truncate"]] = {"file": "file", "append": "append", "truncate": "truncate"}
_STREAMS: dict[str, Literal["journal", "null", "inherit"]] = {
    "journal": "journal",
    "null": "null",
    "inherit": "inherit",
    "syslog": "journal",  # as systemd has it since version 246
}


def output(key: str) -> Handler:
    """StandardOutput=, StandardError=. An output that inherits from an input goes to the journal, as in systemd."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        value = assignment.value
        kind, colon, path = value.partition(":")
        if colon and kind in _FILES:
            draft.values[key] = Output(_FILES[kind], values.absolute_path(draft.text(path)))
        elif value in _STREAMS:
            of_input = value == "inherit" and key == "standard_output"
            draft.values[key] = Output("journal" if of_input else _STREAMS[value])
        else:
            raise ValueError("is not supported, only journal, null, inherit, file:PATH, append:PATH and truncate:PATH")

    return handle


def standard_input(draft: Draft, assignment: Assignment) -> None:
    kind, colon, path = assignment.value.partition(":")
    if kind == "file" and colon:
        draft.values["standard_input"] = Output("file", values.absolute_path(draft.text(path)))
    elif assignment.value == "null":
        draft.values["standard_input"] = Output("null")
    else:
        raise ValueError("is not supported, only null and file:PATH")


# The life of a service

_OTHER_TYPES = {
    "forking": "what stays of a process that ends cannot be told from what it left behind; run it in the foreground",
    "dbus": "an agent has no name on the bus",
    "idle": "a start waits for nothing but the units it is ordered after",
    "notify-reload": "a reload is ExecReload=",
}
_OTHER_KILL_MODES = {
    "process": "processes would be left behind",
    "none": "processes would be left behind",
}


def service_type(draft: Draft, assignment: Assignment) -> None:
    draft.values["type"] = _of(assignment.value, ("simple", "exec", "notify", "oneshot"), _OTHER_TYPES)


def kill_mode(draft: Draft, assignment: Assignment) -> None:
    draft.values["kill_mode"] = _of(assignment.value, ("control-group", "mixed"), _OTHER_KILL_MODES)


def _of(value: str, allowed: tuple[str, ...], others: dict[str, str]) -> str:
    if value in others:
        raise ValueError(f"is not supported: {others[value]}")
    if value not in allowed:
        raise ValueError(f"is not one of {', '.join(allowed)}")
    return value


def timeouts(*keys: str) -> Handler:
    """Times in which 0 stands for "infinity", as it has from systemd's beginning."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        found = values.seconds(assignment.value) or math.inf
        for key in keys:
            draft.values[key] = found

    return handle


def timeout_abort(draft: Draft, assignment: Assignment) -> None:
    """TimeoutAbortSec=; empty for that of TimeoutStopSec=."""
    if assignment.value:
        draft.values["timeout_abort"] = values.seconds(assignment.value)
    else:
        draft.forget("timeout_abort")


def watchdog(text: str) -> float:
    """0 for no watchdog, which "infinity" says too."""
    found = values.seconds(text)
    return 0.0 if math.isinf(found) else found


def exit_statuses(key: str) -> Handler:
    """Exit codes and signals are added, as (codes, signals); an empty value takes back those before it."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if not assignment.value:
            draft.forget(key)
            return
        codes, signals = draft.values.get(key, (frozenset(), frozenset()))
        for word in assignment.value.split():
            try:
                codes |= {values.exit_status(word)}
            except ValueError:
                try:
                    signals |= {values.signal_number(word)}
                except ValueError:
                    raise ValueError(f"holds {word!a}, which is neither an exit status nor a signal") from None
        draft.values[key] = codes, signals

    return handle


def socket_name(text: str) -> str:
    return _named(text, ".socket")


def service_name(text: str) -> str:
    return _named(text, ".service")


def _named(text: str, suffix: str) -> str:
    name = values.unit_name(text)
    if name.suffix != suffix or name.instance == "":
        raise ValueError(f"is no name that ends in {suffix}")
    return name.full


def default_instance(draft: Draft, assignment: Assignment) -> None:
    if draft.name.instance is None:
        raise ValueError("means nothing for a unit that is no template")
    found = draft.text(assignment.value)
    values.unit_name(f"a@{found}.service")
    draft.values["default_instance"] = found
