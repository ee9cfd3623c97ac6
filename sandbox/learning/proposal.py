"""What a run was seen to need, as lines of a profile: each value with the comment that says what needed it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmoda.egress import destinations
from osmoda.sandbox import advice, tiers
from osmoda.sandbox.denials import size
from osmoda.sandbox.learning import groups
from osmoda.sandbox.learning.fold import Folding, NotGranted
from osmoda.sandbox.learning.seen import ENTRY, LIST, LISTED, STAT, Use
from osmoda.sandbox.learning.tried import tried
from osmoda.sandbox.seccomp_arguments import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from osmoda.host.features import Features
    from osmoda.sandbox.learning.fold import Files
    from osmoda.sandbox.learning.once import Ended
    from osmoda.sandbox.learning.private import PrivatePlaces
    from osmoda.sandbox.learning.seen import Seen
    from osmoda.sandbox.plan import Plan

_MIB = 1 << 20
_DEFAULT_TMP = 256 * _MIB
_LEAST_MEMORY = 32 * _MIB
_LEAST_PIDS = 16


@dataclass(frozen=True, slots=True)
class Line:
    """One value of a list, or of a key that holds a single one, and what needed it."""

    value: Any
    comment: str


@dataclass(slots=True)
class Proposal:
    """A profile in the making. `lists` and `values` are by table and key; `refused` is what it does not grant."""

    tier: int
    lists: dict[tuple[str, ...], list[Line]] = field(default_factory=dict)
    values: dict[tuple[str, ...], Line] = field(default_factory=dict)
    refused: list[NotGranted] = field(default_factory=list)

    def add(self, key: tuple[str, ...], value: Any, comment: str) -> bool:
        """One more item of the list `key`; whether it was not there yet."""
        lines = self.lists.setdefault(key, [])
        if any(line.value == value for line in lines):
            return False
        lines.append(Line(value, comment))
        return True


@dataclass(frozen=True, slots=True)
class Observed:
    """One observed run: what was seen, how it ended, under which plan, and the gateway's records of it."""

    seen: Seen
    ended: Ended
    plan: Plan
    work: str
    argv: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


def propose(
    observed: Observed,
    private: PrivatePlaces,
    host: Features,
    *,
    tier: int,
    passed: Collection[str],
    workspace: str,
    loose: bool,
) -> Proposal:
    """The least profile of `tier` that covers what was seen. `workspace` is the mode, where one is needed."""
    found = Proposal(tier)
    seen = observed.seen
    files = Folding(seen, private, tier, observed.work, observed.argv, loose=loose).fold()
    found.refused = [*files.refused, *tried(seen, observed.ended.outcome, observed.plan, private)]
    for entry in observed.plan.degraded:
        # A limit that cannot be enforced is not written; any other layer that is missing must be given up by name.
        if entry.layer not in ("memory", "cpu"):
            found.add(("degrade",), entry.layer, f"this host lacks it: {entry.reason}")
    _filesystem(found, files, workspace, seen)
    _network(found, observed)
    _process(found, observed, host)
    for name in sorted(passed):
        found.add(("environment", "pass"), name, "passed to the learning run by --pass-env")
    if passed:
        # The key replaces the tier's own list.
        for name in tiers.default(tier).environment.passed:
            found.add(("environment", "pass"), name, "of the tier's own list")
    return found


def _filesystem(found: Proposal, files: Files, workspace: str, seen: Seen) -> None:
    for key, uses in (("read", files.read), ("write", files.write)):
        for path, use in uses.items():
            found.add(("filesystem", key), path, _words(use, key))
    if files.workspace is not None:
        note = "; its changes wait for osmoda-sandbox commit" if workspace == "overlay" else ""
        found.values["filesystem", "workspace"] = Line(workspace, _words(files.workspace, "write") + note)
    for path, why in files.deny.items():
        found.add(("filesystem", "deny"), path, why)
    if seen.scratch * 3 // 2 > _DEFAULT_TMP:
        room = _rounded(seen.scratch * 3 // 2, 64 * _MIB)
        found.values["filesystem", "tmp"] = Line(
            size(room), f"{size(_rounded(seen.scratch, _MIB))} were in use at most"
        )


def _network(found: Proposal, observed: Observed) -> None:
    ports: dict[str, dict[int, int]] = {}
    for record in observed.records:
        name, port = record.get("name"), record.get("port")
        if record.get("event") == "connection" and record.get("verdict") == "allow" and name and port:
            counts = ports.setdefault(str(name), {})
            counts[int(port)] = counts.get(int(port), 0) + 1
    for name, counts in sorted(ports.items()):
        if found.tier == 2 and "." not in name:
            found.refused.append(NotGranted(f"connecting to {name}", advice.above(2, "a name of one label").text))
            continue
        rule = destinations.parse_rule(f"{name}:{','.join(map(str, sorted(counts)))}", destinations.DEFAULT_PORTS)
        written = name if rule.ports == destinations.DEFAULT_PORTS else str(rule)
        total = sum(counts.values())
        found.add(("network", "allow"), written, f"{total} connection{'s' if total > 1 else ''}")
    seen = observed.seen
    default = tiers.default(found.tier).network
    families = []
    for name, use in sorted(seen.families.items()):
        changed = advice.for_family(FAMILIES[name], found.tier)
        if changed.line or name in default.families:
            families.append(Line(name, _words(use, "sockets")))
        else:
            found.refused.append(NotGranted(f"{name} sockets", changed.text, tuple(use.programs), use.count, True))
    if {line.value for line in families} != {*default.families}:
        found.lists["network", "families"] = families
    if bool(seen.loopback.count) != default.loopback:
        used = bool(seen.loopback.count)
        comment = _words(seen.loopback, "connections of its own") if used else "nothing used it"
        found.values["network", "loopback"] = Line(used, comment)


def _process(found: Proposal, observed: Observed, host: Features) -> None:
    seen, outcome = observed.seen, observed.ended.outcome
    limit = tiers.ceiling(found.tier).process
    entries = groups.covering(seen.calls, limit.syscalls, found.tier)
    found.lists["process", "syscalls"] = []
    for entry, calls in entries.items():
        found.add(("process", "syscalls"), entry, _calls(calls, seen))
    beyond = sorted({*seen.calls} - {call for calls in entries.values() for call in calls})
    for call in beyond:
        changed = advice.for_call(call, found.tier, "")
        use = seen.calls[call]
        if not changed.line:
            found.refused.append(
                NotGranted(f"the system call {call}", changed.text, tuple(use.programs), use.count, True)
            )
    threads = max(seen.threads, 1)
    pids = min(max(_rounded(threads * 2, 8), _LEAST_PIDS), limit.pids)
    found.values["process", "pids"] = Line(pids, f"{threads} at once at most")
    if "memory" in host.controllers and outcome.peak_memory:
        room = max(_rounded(outcome.peak_memory * 3 // 2, 16 * _MIB), _LEAST_MEMORY)
        peak = size(_rounded(outcome.peak_memory, _MIB))
        found.values["process", "memory"] = Line(size(room), f"{peak} at most, and half as much again")
    if "cpu" in host.controllers:
        cores = float(min(os.cpu_count() or 1, threads))
        found.values["process", "cpu"] = Line(cores, "as many cores as processes and threads, and as there are here")
    files = tiers.default(found.tier).process.limits.open_files
    if files is not None and seen.descriptor * 3 // 2 > files:
        room = _rounded(seen.descriptor * 3 // 2, 1024)
        found.values["process", "limits", "open_files"] = Line(room, f"{seen.descriptor} at once at most")


def _calls(calls: Iterable[str], seen: Seen) -> str:
    names = list(calls)
    programs = list(dict.fromkeys(program for call in names for program in seen.calls[call].programs))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{_who(programs)}: {shown}"


def _words(use: Use, what: str) -> str:
    times = f"{use.count} time{'s' if use.count > 1 else ''}"
    done = {
        "read": "lists and reads" if use.kinds & LIST else "looks at" if not use.kinds & ~(STAT | LISTED) else "reads",
        "write": "makes and changes files" if use.kinds & ENTRY else "writes",
    }.get(what, what)
    return f"{_who(use.programs)}: {done}, {times}"


def _who(programs: list[str]) -> str:
    return ", ".join(programs[:3]) + (", …" if len(programs) > 3 else "") if programs else "the program"


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step
