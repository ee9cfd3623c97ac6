"""The table of a benchmark: what was measured, beside a peer and a target."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` and `cpu_ratio` are to the peer; `target` is an upper bound of `ratio`, or of
    `measured` where there is no peer; with `at_least` a lower one."""

    what: str
    who: str
    value: str
    peer: str
    ratio: float | None
    cpu_ratio: float | None
    target: float | None
    unit: str = "x"
    measured: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        found = self.ratio if self.ratio is not None else self.measured
        if self.target is None or found is None:
            return None
        return found >= self.target if self.at_least else found <= self.target


def table(lines: list[Row]) -> Table:
    shown = Table(title=f"{platform.node()}, Linux {platform.release()}, {os.cpu_count()} cores; medians, CPU means")
    for heading in ("what", "as", "ours", "peer"):
        shown.add_column(heading, no_wrap=heading != "peer")
    for heading in ("ratio", "cpu", "target", ""):
        shown.add_column(heading, justify="right")
    for row in lines:
        target = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:.3g} {row.unit}"
        met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row.met]
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        cpu = "" if row.cpu_ratio is None else f"{row.cpu_ratio:.3g}"
        shown.add_row(row.what, row.who, row.value, row.peer, ratio, cpu, target, met)
    return shown
