"""The logs read back: the last lines, those since a moment, those to come; of one unit, of several, of all."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from osmoda.egress import log_reader
from osmoda.supervisor.logs import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

type Line = dict[str, Any]
"""`time` (seconds since the epoch), `unit`, `stream`, `level`, `pid`, `text`."""

_PERIOD = 0.1  # seconds between two looks at logs that are followed


def lines(folder: str, units: Sequence[str], *, last: int | None = None, since: float = 0.0) -> list[Line]:
    """The lines of these units' logs in the order of time: of those `since` a moment the `last` ones."""

    def wanted(line: Line) -> bool:
        return float(line.get("time") or 0) >= since

    found = [log_reader.read(folder, name=files.name_of(unit), matching=wanted, last=last) for unit in units]
    merged = heapq.merge(*found, key=lambda line: float(line["time"]))
    return list(merged) if last is None else list(deque(merged, last))


def follow(
    folder: str,
    units: Sequence[str],
    *,
    last: int = 10,
    since: float = 0.0,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Line]:
    """The same, and then the lines to come, until it is closed. Without `units` those of all, also of later ones."""

    def wanted(line: Line) -> bool:
        return float(line.get("time") or 0) >= since

    def when(line: Line) -> float:
        return float(line["time"])

    with contextlib.ExitStack() as open_logs:
        tails: dict[str, log_reader.Tail] = {}

        def open_new() -> list[log_reader.Tail]:
            new = [unit for unit in units or files.units(folder) if unit not in tails]
            for unit in new:
                tails[unit] = open_logs.enter_context(log_reader.Tail(folder, files.name_of(unit)))
            return [tails[unit] for unit in new]

        first = sorted((line for tail in open_new() for line in tail.last(wanted, last)), key=when)
        yield from first[-last:] if last else []
        while True:
            open_new()
            news = sorted((line for tail in tails.values() for line in tail.news(wanted)), key=when)
            yield from news
            if not news:
                wait(_PERIOD)
