"""A proposal as the text of a profile, new or merged into one that is there: comments, order and layout stay.

Text in, text out. Each result is read again, and must hold what was put into it.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array

from osmoda.egress import destinations, edits
from osmoda.sandbox import seccomp, tiers
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.learning.proposal import Line
from osmoda.sandbox.syscall_groups import calls
from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.learning.proposal import Proposal
    from osmoda.sandbox.profile import Profile

_ORDER = ("degrade", "filesystem", "network", "process", "environment")
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_WORKSPACES = ("none", "overlay", "direct")
_LONGEST_COMMENT = 160


def fresh(proposal: Proposal, command: str) -> str:
    """The text of a new profile, learned from a run of `command` .

    That is a name: arguments may hold what is nobody's business.
    """
    document = tomlkit.document()
    document.add(
        tomlkit.comment(
            clean(f"Learned by osmoda-sandbox learn from a run of {command}: each line says what needed it.")
        )
    )
    document.add("schema", tomlkit.item(1))
    document.add("tier", tomlkit.item(proposal.tier))
    document.add("description", tomlkit.item(clean(f"Learned from {command}")))
    keys = sorted({*proposal.lists, *proposal.values}, key=lambda key: (len(key) > 2, _ORDER.index(key[0])))
    for key in keys:
        _table(document, key[:-1])
    for key, lines in proposal.lists.items():
        _extend(document, key, lines)
    for key, line in proposal.values.items():
        _set(document, key, line)
    return _proven(document, proposal.lists, proposal.values)


def merged(text: str, proposal: Proposal, present: Profile) -> str:
    """`text`, whose meaning is `present`, with what it lacks of `proposal`. Raises SandboxError."""
    try:
        document = tomlkit.parse(text)
    except (TOMLKitError, RecursionError):
        raise SandboxError(f"{present.file} is written in a way that cannot be edited from here") from None
    lists, values = _lacking(proposal, present)
    for key, lines in lists.items():
        _extend(document, key, lines)
    for key, line in values.items():
        _set(document, key, line)
    return _proven(document, lists, values)


# What a profile lacks


def _lacking(
    proposal: Proposal, present: Profile
) -> tuple[dict[tuple[str, ...], list[Line]], dict[tuple[str, ...], Line]]:
    lists: dict[tuple[str, ...], list[Line]] = {}
    files = present.filesystem
    workspace = proposal.values.get(("filesystem", "workspace"))
    opens = workspace is not None and files.workspace == "none"
    for key, lines in proposal.lists.items():
        if key == ("filesystem", "deny"):
            new = [line for line in lines if opens and line.value not in files.deny]
        elif key == ("process", "syscalls"):
            new = _new_calls(lines, present)
        elif key in (("network", "families"), ("environment", "pass")):
            new = _beside_default(key, lines, present)
        else:
            new = [line for line in lines if not _granted(key, line.value, present)]
        if new:
            lists[key] = new
    values = {key: line for key, line in proposal.values.items() if _raises(key, line.value, present)}
    return lists, values


def _granted(key: tuple[str, ...], value: Any, present: Profile) -> bool:
    files = present.filesystem
    if key == ("filesystem", "read"):
        return any(within(value, tree) for tree in (*files.read, *files.write))
    if key == ("filesystem", "write"):
        return any(within(value, tree) for tree in files.write)
    if key == ("network", "allow"):
        rule = destinations.parse_rule(value, destinations.DEFAULT_PORTS)
        return any(edits.covers(one, rule) for one in present.network.allow)
    if key == ("degrade",):
        return value in present.degrade
    return False


def _new_calls(lines: Sequence[Line], present: Profile) -> list[Line]:
    allowed = seccomp.allowed(present.process.syscalls, tier=present.tier)
    possible = seccomp.allowed(tiers.ceiling(present.tier).process.syscalls, tier=present.tier)
    new = [line for line in lines if not calls(line.value) & possible <= allowed]
    return _with_default(("process", "syscalls"), new, present, tiers.default(present.tier).process.syscalls)


def _beside_default(key: tuple[str, ...], lines: Sequence[Line], present: Profile) -> list[Line]:
    default = tiers.default(present.tier)
    there, usual = (
        (present.network.families, default.network.families)
        if key[0] == "network"
        else (present.environment.passed, default.environment.passed)
    )
    return _with_default(key, [line for line in lines if line.value not in there], present, usual)


def _with_default(key: tuple[str, ...], new: list[Line], present: Profile, usual: Sequence[str]) -> list[Line]:
    """`new`, before it the tier's own list where the profile declares none: to declare one is to replace it."""
    if not new or not present.origin(*key).startswith("tier "):
        return new
    own = [Line(value, "of the tier's own list") for value in usual if not value.startswith("~")]
    return [*own, *(line for line in new if line.value not in usual)]


def _raises(key: tuple[str, ...], value: Any, present: Profile) -> bool:
    """Whether the profile sets less than `value`."""
    process, files = present.process, present.filesystem
    if key == ("filesystem", "workspace"):
        return _WORKSPACES.index(value) > _WORKSPACES.index(files.workspace)
    if key == ("network", "loopback"):
        return bool(value) and not present.network.loopback
    there = {
        ("filesystem", "tmp"): files.tmp,
        ("process", "pids"): process.pids,
        ("process", "memory"): process.memory,
        ("process", "cpu"): process.cpu,
        ("process", "limits", "open_files"): process.limits.open_files,
    }[key]
    return there is not None and there < _number(value)


def _number(value: Any) -> float:
    if isinstance(value, str):
        return float(int(value[:-1]) << _UNITS[value[-1]]) if value[-1] in _UNITS else float(value.split()[0])
    return float(value)


# How it is written


def _table(document: tomlkit.TOMLDocument, path: tuple[str, ...]) -> Any:
    """The table at `path`, made where there is none."""
    found: Any = document
    for name in path:
        if name not in found:
            if found is document:
                found.add(tomlkit.nl())
            found.add(name, tomlkit.table())
        found = found[name]
    return found


def _extend(document: tomlkit.TOMLDocument, key: tuple[str, ...], lines: Sequence[Line]) -> None:
    table = _table(document, key[:-1])
    if key[-1] not in table:
        table.add(key[-1], tomlkit.array())
    array = table[key[-1]]
    if not isinstance(array, Array):
        raise SandboxError(f"{'.'.join(key)} is written in a way that cannot be edited from here")
    if not lines:
        return
    for line in lines:
        array.add_line(line.value, indent="  ", comment=_comment(line.comment))
    if not array.as_string().rstrip("]").endswith("\n"):
        array.add_line(indent="")


def _set(document: tomlkit.TOMLDocument, key: tuple[str, ...], line: Line) -> None:
    item = tomlkit.item(line.value)
    item.comment(_comment(line.comment))
    _table(document, key[:-1])[key[-1]] = item


def _comment(text: str) -> str:
    shown = clean(text)
    return shown if len(shown) <= _LONGEST_COMMENT else shown[: _LONGEST_COMMENT - 1] + "…"


def _proven(
    document: tomlkit.TOMLDocument, lists: dict[tuple[str, ...], list[Line]], values: dict[tuple[str, ...], Line]
) -> str:
    text = tomlkit.dumps(document)
    holds = True
    try:
        meant = tomllib.loads(text)
        for key, lines in lists.items():
            found = _at(meant, key)
            holds = holds and all(line.value in found for line in lines)
        holds = holds and all(_at(meant, key) == line.value for key, line in values.items())
    except (ValueError, KeyError):
        holds = False
    if not holds:
        raise SandboxError("what was learned cannot be written into this file; edit it by hand")
    return text


def _at(table: dict[str, Any], key: tuple[str, ...]) -> Any:
    found: Any = table
    for name in key:
        found = found[name]
    return found
