"""A verification in words for a person, as JSON, and as JUnit's XML for a build server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from rich.table import Table
from rich.text import Text

from osmoda.sandbox import report
from osmoda.sandbox.verification.examine import (
    DOES_NOT_WORK,
    GOT_THROUGH,
    GRANTED,
    NO_CONTROL,
    NOT_JUDGED,
    STOPPED,
    WORKS,
)

if TYPE_CHECKING:
    from rich.console import Console

    from osmoda.sandbox.verification.examine import Row, Verification

_STYLES = {
    STOPPED: "green",
    WORKS: "green",
    GRANTED: "yellow",
    NO_CONTROL: "dim",
    GOT_THROUGH: "bold red",
    DOES_NOT_WORK: "red",
    NOT_JUDGED: "bold red",
}
_ORDER = (GOT_THROUGH, DOES_NOT_WORK, NOT_JUDGED, STOPPED, WORKS, GRANTED, NO_CONTROL)


def show(found: Verification, console: Console) -> None:
    """The matrix, then what was not tried, then the sum."""
    console.print(report.heading(f"{report.clean(found.profile)}, tier {found.tier}"))
    for family in dict.fromkeys(row.family for row in found.rows):
        console.print()
        console.print(_matrix(family, [row for row in found.rows if row.family == family]))
    if found.notes:
        console.print()
        console.print(report.heading("not tried"))
        console.print(report.lines([(note, "") for note in found.notes]))
    console.print()
    console.print(_sum(found))


def _matrix(family: str, rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    table.add_column(family, ratio=5, overflow="fold")
    table.add_column("layer", min_width=12, overflow="fold")
    table.add_column("verdict", min_width=15, overflow="fold")
    for row in rows:
        table.add_row(Text(report.clean(row.title)), Text(row.layer), Text(row.verdict, style=_STYLES[row.verdict]))
        detail = _detail(row)
        if detail:
            table.add_row(Text(f"  {report.clean(detail)}", style="dim"), "", "")
    return table


def _detail(row: Row) -> str:
    """What must be known of a row besides its verdict."""
    if row.verdict == NO_CONTROL:
        return f"outside: {row.control}"
    if not row.good:
        place = f" ({report.short(row.origin)})" if row.origin else ""
        return f"{row.answer}{place}"
    return report.short(row.origin) if row.verdict == GRANTED else ""


def _sum(found: Verification) -> Text:
    counts = {verdict: sum(row.verdict == verdict for row in found.rows) for verdict in _ORDER}
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    if found.holds:
        return Text(f"What the profile says holds: {words}.", style="green")
    return Text(f"What the profile says does not hold, or could not be shown to: {words}.", style="red")


def as_dict(found: Verification) -> dict[str, Any]:
    """For `--json`."""
    return {
        "profile": found.profile,
        "tier": found.tier,
        "holds": found.holds,
        "rows": [row.as_dict() for row in found.rows],
        "notes": list(found.notes),
    }


def junit(found: Verification) -> str:
    """One test case a row; without a control it is a skipped one (the format as Jenkins and GitLab read it)."""
    bad = sum(not row.good for row in found.rows)
    skipped = sum(row.verdict == NO_CONTROL for row in found.rows)
    suite = quoteattr(f"osmoda-sandbox verify {found.profile}")
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuite name={suite} tests="{len(found.rows)}" failures="{bad}" errors="0" skipped="{skipped}">',
    ]
    for row in found.rows:
        lines.append(f"  <testcase classname={quoteattr(_plain(row.family))} name={quoteattr(_plain(row.title))}>")
        if not row.good:
            lines.append(f"    <failure message={quoteattr(row.verdict)}>{escape(_plain(_detail(row)))}</failure>")
        elif row.verdict == NO_CONTROL:
            lines.append(f"    <skipped message={quoteattr(_plain(_detail(row)))}/>")
        elif row.layer:
            lines.append(f"    <system-out>{escape(_plain(f'{row.layer}: {row.answer}'))}</system-out>")
        lines.append("  </testcase>")
    return "\n".join([*lines, "</testsuite>", ""])


def _plain(text: str) -> str:
    """Without what XML 1.0 cannot hold: a path may contain it."""
    return "".join(
        letter if letter.isprintable() and not "\ud800" <= letter <= "\udfff" else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )
