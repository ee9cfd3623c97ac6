"""What `osmoda-egress` prints: rules, edits, questions, records, sandboxes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from osmoda.egress.control_client import Served
    from osmoda.egress.destinations import Rule
    from osmoda.sandbox.egress_edit import Edited
    from osmoda.sandbox.egress_force import InForce
    from osmoda.sandbox.profile import Profile

_RED, _GREEN, _DIM, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


def rules(profile: Profile) -> list[dict[str, Any]]:
    """Every rule of a profile's network: `kind`, what it says in `words`, its `origin`, and its parts.

    `inspected` are the keys of a rule for which each request is looked at.
    """
    network = profile.network
    found: list[dict[str, Any]] = []
    for kind, listed in (("allow", network.allow), ("deny", network.deny)):
        for index, rule in enumerate(listed):
            reasons = _inspected(rule) if kind == "allow" else []
            words = f"{kind} {rule}"
            if reasons:
                words += f" (each request is looked at, for its {' and '.join(reasons)})"
            found.append(
                {"kind": kind, "words": words}
                | {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(rule).items()}
                | {"inspected": reasons, "origin": profile.origin("network", kind, index)}
            )
    for index, peer in enumerate(network.connect):
        origin = profile.origin("network", "connect", index)
        found.append({"kind": "connect", "words": f"connect {peer}", "peer": peer, "origin": origin})
    for index, port in enumerate(network.serve):
        origin = profile.origin("network", "serve", index)
        found.append({"kind": "serve", "words": f"serve port {port}", "port": port, "origin": origin})
    if network.ask:
        origin = profile.origin("network", "ask")
        found.append({"kind": "ask", "words": "ask about any other name", "origin": origin})
    return found


def _inspected(rule: Rule) -> list[str]:
    """The keys for which connections under `rule` are looked into."""
    wanted = {
        "methods": rule.methods,
        "paths": rule.paths,
        "secret": rule.secret,
        "max_body": rule.max_body is not None,
    }
    return [name for name, value in wanted.items() if value]


def of_edit(made: Edited) -> Iterator[str]:
    """What an edit did, in sentences."""
    name = report.short(made.file)
    for words in (*made.edit.changed, *made.edit.kept):
        yield f"{name}: {words}"
    yield from made.notes
    closed = sum(one.closed for one in made.reached)
    taken = [one for one in made.reached if not one.error]
    if taken:
        which = f"sandbox {_who(taken[0])}" if len(taken) == 1 else f"{len(taken)} running sandboxes"
        yield f"in force in {which}; {_connections(closed)} closed"
    for one in made.reached:
        if one.error:
            yield f"sandbox {_who(one)} does not have it: {one.error}"
    if made.silent:
        pids = ", ".join(map(str, made.silent))
        yield f"process {pids}, a gateway, does not answer: its sandboxes may not have it"


def _who(one: InForce) -> str:
    return f"{one.identity} ({one.agent})" if one.agent else one.identity


def _connections(number: int) -> str:
    return f"{number or 'no'} open connection{'s' * (number != 1)}"


def question(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of `pending`."""
    left = max(float(one["until"]) - time.time(), 0)
    waits = f"{one['connections']}, refused in {left:.0f} s"
    return (
        str(one["id"]),
        str(one["agent"] or one["sandbox"]),
        f"{one['name']}:{one['port']}",
        waits,
        str(one["profile"]),
    )


def served(one: Served) -> tuple[str, ...]:
    """A row of `status`."""
    since = time.strftime("%H:%M:%S", time.localtime(one.opened))
    ports = ", ".join(map(str, one.serve))
    numbers = (str(one.pid), str(one.connections), str(one.pending))
    return one.identity, one.agent, str(one.tier), one.profile, *numbers, ports, since


def as_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON."""
    return json.dumps(record)


def of_record(record: Mapping[str, Any], *, colour: bool) -> str:
    """A record as one line for a person; what a program inside named cannot act on a terminal."""
    moment = time.strftime("%H:%M:%S", time.localtime(float(record.get("time") or 0)))
    who = str(record.get("agent") or record.get("sandbox") or "gateway")
    verdict, action = str(record.get("verdict") or ""), str(record.get("action") or record.get("event") or "")
    parts = [_thing(record)]
    if record.get("method"):
        parts.append(f"{record['method']} {record.get('path', '')} {record.get('status') or ''}".rstrip())
    if record.get("bytes_up") or record.get("bytes_down"):
        parts.append(f"{record.get('bytes_up', 0)} up, {record.get('bytes_down', 0)} down")
    if record.get("duration"):
        parts.append(f"{float(record['duration']):.2f} s")
    if record.get("reason"):
        parts.append(str(record["reason"]))
    text = report.clean(f"{who}  {action:9} {'  '.join(part for part in parts if part)}")
    rule = report.clean(report.short(str(record.get("rule") or "")))
    if not colour:
        return f"{moment}  {text}" + (f"  [{rule}]" if rule else "")
    shade = {"deny": _RED, "allow": _GREEN}.get(verdict, "")
    return f"{_DIM}{moment}{_PLAIN}  {shade}{text}{_PLAIN}" + (f"  {_DIM}[{rule}]{_PLAIN}" if rule else "")


def _thing(record: Mapping[str, Any]) -> str:
    name = str(record.get("name") or record.get("address") or "")
    if record.get("port"):
        name += f":{record['port']}"
    address = record.get("address")
    return f"{name} ({address})" if address and record.get("name") else name
