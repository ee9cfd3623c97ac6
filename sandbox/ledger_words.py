"""What `osmoda-ledger` prints: events, and what a verification has found."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from osmoda.ledger.record import Event
    from osmoda.ledger.verification import Report

_RED, _GREEN, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_COLOURS = {"denial": _RED, "launch": _GREEN, "start": _GREEN, "edit": _YELLOW, "approval": _YELLOW, "switch": _YELLOW}
# What a line says without its name, in this order; the rest follows as name=value.
_FIRST = ("identity", "agent", "verdict", "what", "file", "error")


def as_json(event: Event) -> dict[str, Any]:
    """An event as `export` and `--json` have it: the numbers that name it for its writer are of no use to a reader."""
    return {
        "seq": event.seq,
        "time": event.time,
        "kind": event.kind,
        "uid": event.uid,
        "pid": event.pid,
        "event": event.body,
    }


def as_line(event: Event) -> str:
    """The same on one line, in ASCII."""
    return json.dumps(as_json(event), separators=(",", ":"))


def words(event: Event, *, colour: bool) -> str:
    """An event for a person, on one line: what is worth a look; `export` has all of it."""
    moment = datetime.fromtimestamp(event.time / 1e9).astimezone()
    body = _SHORTER.get(event.kind, dict)(event.body)
    parts = [_value(body.pop(name)) for name in _FIRST if body.get(name) not in (None, "")]
    parts += [f"{name}={_value(value)}" for name, value in body.items() if value not in (None, "", [], {})]
    stamp = f"{event.seq:>8}  {moment:%Y-%m-%d %H:%M:%S}.{event.time // 1_000_000 % 1000:03}"
    kind, text = f"{event.kind:<8}", clean("  ".join(parts))
    if not colour:
        return f"{stamp}  {kind}  {text}"
    shade = _RED if event.body.get("verdict") == "deny" else _COLOURS.get(event.kind, "")
    return f"{_DIM}{stamp}{_PLAIN}  {shade}{kind}{_PLAIN}  {text}"


def _launch(body: Mapping[str, Any]) -> dict[str, Any]:
    argv = body.get("argv", [])
    command = shlex.join(map(str, argv)) if isinstance(argv, list) else ""
    shown = {name: value for name, value in body.items() if name not in ("argv", "init")}
    return {"what": command, **shown, "plan": str(body.get("plan", ""))[:12]}


def _end(body: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that are none need no mention."""
    return {name: value for name, value in body.items() if value or name == "status"}


def _denial(body: Mapping[str, Any]) -> dict[str, Any]:
    """A refused call under its own name."""
    from osmoda.sandbox import call_words
    from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, name

    shown = dict(body)
    machine = next((one for one, number in AUDIT_ARCH.items() if number == shown.get("architecture")), "")
    number = shown.get("call")
    if machine and isinstance(number, int):
        call = name(number, machine)
        try:
            arguments = tuple(int(value, 16) for value in shown.pop("arguments", ()))
            shown = {"what": f"{call}({call_words.arguments_of(call, arguments)})", **shown}
        except (ValueError, TypeError, IndexError):
            shown = {"what": f"{call}()", **shown}
        for detail in ("architecture", "call", "first_ms"):
            shown.pop(detail, None)
    return shown


_SHORTER: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {"launch": _launch, "end": _end, "denial": _denial}
)


def _value(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(_value(item) for item in value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def report_json(report: Report) -> dict[str, Any]:
    """What a verification has found, for programs."""
    return {
        "ledger": report.ledger,
        "directory": report.directory,
        "verified": not report.findings,
        "events": report.events,
        "segments": report.segments,
        "head": None if report.head is None else {"seq": report.head.seq, "digest": report.head.digest.hex()},
        "findings": [one._asdict() for one in report.findings],
        "notes": report.notes,
    }


def of_report(report: Report) -> Iterator[str]:
    """The same for a person."""
    for one in report.findings:
        yield one.sentence()
    for note in report.notes:
        yield f"note: {note}"
    if report.findings:
        yield f"{len(report.findings)} findings: this ledger is not as it was written"
    else:
        segments = (
            f" in {report.segments} sealed segments and {report.segments and 'one'} open" if report.segments else ""
        )
        yield f"{report.events} events{segments} are as they were written; ledger {report.ledger[:16]}"
