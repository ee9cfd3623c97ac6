"""What `osmoda-watch` prints of units: in systemctl's manner, colour on terminals only."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.terminal_text import clean
from osmoda.supervisor.lifecycle.state_words import signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_COLOURS = {"active": "32", "reloading": "32", "activating": "33", "deactivating": "33", "failed": "1;31"}
_DOTS = {"failed": "\u00d7", "inactive": "○", "activating": "●", "deactivating": "●", "active": "●", "reloading": "↻"}
_LEVELS = {3: "1;31", 4: "33"}


def coloured(text: str, code: str, *, colour: bool | None = None) -> str:
    """`text` in a colour, where the standard output is a terminal (or as `colour` says)."""
    wanted = sys.stdout.isatty() if colour is None else colour
    return f"\x1b[{code}m{text}\x1b[0m" if wanted and code else text


def status(one: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One unit in full."""
    state = str(one["state"])
    code = _COLOURS.get(state, "")
    title = f"{one['unit']} - {one['description']}" if one["description"] else str(one["unit"])
    yield f"{coloured(_DOTS.get(state, '●'), code)} {clean(title)}"
    files = [clean(str(name)) for name in one["files"]]
    yield _field("Loaded", f"from {files[0]}" if files else "no")
    for drop_in in files[1:]:
        yield _field("Drop-In", drop_in)
    words = f"{state} ({one['sub']})"
    since = f" since {moment(one['since'])}; {ago(time.time() - one['since'])} ago"
    yield _field("Active", coloured(words, code) + clean(_result(one) + since))
    if one["problem"]:
        yield _field("Why", clean(one["problem"]))
    if one["pid"]:
        yield _field("Main PID", str(one["pid"]))
    if one["says"]:
        yield _field("Status", clean(f'"{one["says"]}"'))
    if one["health"] != "unchecked":
        problem = f": {one['health_problem']}" if one["health_problem"] else ""
        yield _field("Health", clean(one["health"] + problem))
    if "tier" in one:
        sandbox = f", sandbox {one['sandbox']}" if one["sandbox"] else ""
        yield _field("Tier", f"{one['tier']}{sandbox}")
        yield _field("Profile", clean(one["profile"] or f"tier {one['tier']} as the unit stands"))
        if one["plan"]:
            yield _field("Plan", str(one["plan"])[:16])
    if "tasks" in one:
        yield _field("Tasks", str(one["tasks"]))
        yield _field("Memory", size(one["memory"]))
        yield _field("CPU", f"{one['cpu_time']:.3f} s")
    yield _field("Restarts", str(one["restarts"]))
    for note in one.get("notes", ())[:1]:  # all of them are in the log, and in what `check` says
        yield _field("Note", clean(note))
    for denial in one["denials"][-3:]:
        yield _field("Refused", clean(denial))
    if lines:
        yield ""
        yield from (log_line(line) for line in lines)


def _result(one: Mapping[str, Any]) -> str:
    if one["result"] == "success":
        return ""
    if one["exit_signal"]:
        return f" (Result: {one['result']}, {signal_name(one['exit_signal'])})"
    if one["exit_code"]:
        return f" (Result: {one['result']}, exit code {one['exit_code']})"
    return f" (Result: {one['result']})"


def _field(name: str, text: str) -> str:
    return f"{name:>10}: {text}"


def log_line(line: Mapping[str, Any], *, colour: bool | None = None) -> str:
    """A line of a log: when, the unit with the pid that has printed it, and the text, harmless to print."""
    who = clean(str(line.get("unit") or ""))
    pid = line.get("pid")
    mark = {"watch": " osmoda-watch", "systemd": " systemd"}.get(str(line.get("stream")), "")
    text = clean(str(line.get("text") or ""))
    code = _LEVELS.get(int(line.get("level") or 6), "" if line.get("stream") != "stderr" else "33")
    when = time.strftime("%b %d %H:%M:%S", time.localtime(float(line.get("time") or 0)))
    return f"{when} {who}{f'[{pid}]' if pid else ''}{mark}: {coloured(text, code, colour=colour)}"


def moment(seconds: float) -> str:
    """A moment as systemctl prints it."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def ago(seconds: float) -> str:
    """A span in the one or two units that matter."""
    whole = max(int(seconds), 0)
    for span, name, lower, lower_name in ((86400, "day", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= span:
            plural = "s" if name == "day" and whole >= 2 * span else ""
            return f"{whole // span}{' ' if name == 'day' else ''}{name}{plural} {whole % span // lower}{lower_name}"
    return f"{whole}s"


def size(number: int) -> str:
    """Bytes in the unit that fits."""
    return f"{number / (1 << 20):.1f}M" if number < 1 << 30 else f"{number / (1 << 30):.2f}G"


def table(
    names: Sequence[str], rows: Iterable[Sequence[str]], colours: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Columns as wide as what stands in them; a cell that `colours` names is in that colour."""
    cells = [[*map(clean, row)] for row in rows]
    widths = [max(len(row[column]) for row in [[*names], *cells]) for column in range(len(names))]
    for number, row in enumerate([[*names], *cells]):
        parts = []
        for cell, width in zip(row, widths, strict=True):
            code = "1" if number == 0 else (colours or {}).get(cell, "")
            parts.append(coloured(cell, code) + " " * (width - len(cell)))
        yield "  ".join(parts).rstrip()


def listing(units: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows of `list`."""
    rows = [
        (
            str(one["unit"]),
            str(one["state"]),
            str(one["sub"]),
            str(one.get("tier", "-")),
            str(one["pid"] or "-"),
            str(one["restarts"]),
            str(one["health"]) if one["health"] != "unchecked" else "-",
            one["enabled"],
            str(one["description"]),
        )
        for one in units
    ]
    yield from table(
        ("unit", "state", "sub", "tier", "pid", "restarts", "health", "enabled", "description"), rows, _COLOURS
    )
