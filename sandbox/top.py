"""`osmoda-sandbox top`: running sandboxes and what they are refused, once, as JSON lines, or on a screen."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from osmoda.sandbox import processes, report
from osmoda.sandbox.live import Live, Sampler
from osmoda.sandbox.report import clean
from osmoda.sandbox.wakeups import ENDING, Wakeups, end_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.live import Sample, Shown

ORDERS = ("age", "cpu", "memory", "name")
"""What sandboxes can be sorted by."""

_NAMES = ("id", "agent", "tier", "profile", "pid", "age", "cpu%", "memory", "procs", "conns")
_RIGHT = {"pid", "age", "cpu%", "memory", "procs", "conns"}
_COMMAND_FROM = 110  # columns, from which on there is room for the command


def show(*, interval: float, once: bool, as_json: bool) -> int:
    """The verb; its exit code. On anything but a terminal the table is printed once."""
    if as_json:
        return _once_as_json() if once else _json_lines(interval)
    # Not what these variables say, but what the window is, which may change.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    console = Console(markup=False, emoji=False, highlight=False, _environ=environment)
    if once or not console.is_terminal or console.is_dumb_terminal:
        sample = Sampler().look()
        console = report.console()
        if not sample.sandboxes:
            print("no sandbox is running", file=sys.stderr)
        else:
            console.print(sandboxes(sample.sandboxes, console.width))
        if sample.note:
            print(f"osmoda-sandbox: {clean(sample.note)}", file=sys.stderr)
        return 0
    from osmoda.sandbox import top_screen

    return top_screen.show(console, interval)


# As JSON


def _once_as_json() -> int:
    report.print_json(_record(Sampler().look(), (), 0))
    return 0


def _record(sample: Sample, denials: Iterable[Denial], missed: int) -> dict[str, Any]:
    return {
        "time": round(sample.time, 3),
        "sandboxes": [one.as_dict() for one in sample.sandboxes],
        "denials": [one.as_dict() for one in denials],
        "missed": missed,
        "note": sample.note,
    }


def _json_lines(interval: float) -> int:
    """One object each `interval`, to the end of the reader or until a signal."""
    with Wakeups() as wakeups, Live(interval, wakeups.wake) as live:
        while True:
            _, signals = wakeups.wait()
            number = next((number for number in signals if number in ENDING), 0)
            if number:
                break
            if live.take() and live.sample is not None:
                print(json.dumps(_record(live.sample, live.refusals.changed(), live.missed)), flush=True)
    return end_by(number)


# As a table


def sandboxes(shown: Iterable[Shown], width: int) -> Table:
    """One line each, on `width` columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), expand=True, width=width)
    names = (*_NAMES, "command") if width >= _COMMAND_FROM else _NAMES
    for name in names:
        ratio = {"agent": 1, "profile": 1, "command": 3}.get(name)
        justify = "right" if name in _RIGHT else "left"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify, ratio=ratio)  # type: ignore[arg-type]
    for one in shown:
        cells = (*_row(one), one.running.command)[: len(names)]
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table


def _row(one: Shown) -> tuple[str, ...]:
    running = one.running
    profile = running.profile.rpartition("/")[2]
    numbers = (f"{one.cpu:.1f}", size(running.memory), str(running.processes))
    connections = "-" if one.connections is None else str(one.connections)
    who = (running.identity, one.agent or "-", str(running.tier), profile, str(running.pid))
    return (*who, processes.clock(running.age), *numbers, connections)


def size(value: float) -> str:
    """Bytes in at most six characters."""
    for unit in ("B", "K", "M", "G"):
        if value < 1000 or unit == "G":
            return f"{value:.1f}{unit}" if unit != "B" and value < 100 else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError


def ordered(shown: Iterable[Shown], by: str) -> list[Shown]:
    """Sorted by one of `ORDERS`: the oldest, busiest, largest first, or by agent and id."""
    found = list(shown)
    if by == "cpu":
        found.sort(key=lambda one: -one.cpu)
    elif by == "memory":
        found.sort(key=lambda one: -one.running.memory)
    elif by == "name":
        found.sort(key=lambda one: (one.agent or one.running.profile, one.running.identity))
    return found


# On a screen


def page(live: Live, size: tuple[int, int], *, by: str, habitual: bool, interval: float) -> RenderableType:
    """The whole screen, of `size` columns and lines."""
    width, height = size
    sample = live.sample
    if sample is None:
        return Text("looking …", style="dim")
    room = max(height - _TITLES, 2)
    shown = ordered(sample.sandboxes, by)
    most = max(room // 2, room - _MOST_REFUSALS)
    left_out = max(len(shown) - most + 1, 0) if len(shown) > most else 0
    if left_out:
        shown = shown[: most - 1]
    parts: list[RenderableType] = [_title(sample, width), sandboxes(shown, width)]
    if left_out:
        parts.append(Text(f"… {left_out} more", style="dim"))
    lines = room - len(shown) - bool(left_out)
    body = refusals(live.refusals.latest(lines, habitual=habitual), width, lines)
    parts += [_refusals_title(live, width), *body, *[Text("")] * (lines - len(body))]
    keys = f"q quit  s sort ({by})  h {'hide' if habitual else 'show'} what programs try out of habit"
    parts.append(Text(f"{keys}  every {interval:g} s"[:width], style="dim"))
    return Group(*parts)


_TITLES = 4  # lines: of the page, of both tables, and the keys
_MOST_REFUSALS = 20  # lines, where there are more sandboxes than half of the screen has room for


def _title(sample: Sample, width: int) -> Text:
    count = len(sample.sandboxes)
    text = Text("osmoda-sandbox top", style="bold", no_wrap=True, overflow="ellipsis")
    moment = time.strftime("%H:%M:%S", time.localtime(sample.time))
    text.append(f"  {moment}  {count or 'no'} sandbox{'es' * (count != 1)}", style="not bold")
    if sample.note:
        text.append(f"  {clean(sample.note)}", style="not bold yellow")
    text.truncate(width)
    return text


def _refusals_title(live: Live, width: int) -> Text:
    text = Text("refused", style="bold")
    if live.missed:
        text.append(f"  {live.missed} more came too fast to be shown", style="not bold yellow")
    text.truncate(width)
    return text


def refusals(denials: Sequence[Denial], width: int, lines: int) -> list[Text]:
    """The newest that fit on so many lines of `width` columns, the newest last: when, who, layer, what, what allows it.

    Each is a line, and what would allow it stands below where it does not fit beside.
    """
    found: list[Text] = []
    for denial in reversed(denials):
        mine = _refusal(denial, width)
        if found and len(found) + len(mine) > lines:
            break
        found = [*mine, *found]
    return found[:lines]


def _refusal(denial: Denial, width: int) -> list[Text]:
    moment = time.strftime("%H:%M:%S", time.localtime(denial.time))
    call = denial.layer == "seccomp"
    what = f"{denial.operation}({denial.object})" if call else f"{denial.operation} {denial.object}"
    if denial.count > 1:
        what += f" {denial.count} times"
    place = report.short(denial.origin)
    if denial.line:
        change = clean(f"{place}: {denial.line}" if place else denial.line)
    else:
        change = clean(f"{denial.advice} [{place}]" if place else denial.advice)
    head = Text(f"{moment} ", style="dim" if denial.habitual else "", no_wrap=True)
    head.append(f"{clean(denial.sandbox):<10} {denial.layer:<8} ")
    indent = " " * head.cell_len
    head.append(clean(what), style="" if denial.habitual else "red")
    if head.cell_len + 2 + len(change) <= width:
        head.append(f"  {change}", style="dim")
        return [head]
    head.truncate(width, overflow="ellipsis")
    beside = max(width - len(indent), 20)
    below = Text(change).wrap(Console(width=beside), beside)
    return [head, *(Text(f"{indent}{line.plain}", style="dim", no_wrap=True, overflow="crop") for line in below)]
