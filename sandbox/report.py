"""What the verbs print: text on 80 to 100 columns, colour on terminals only, or JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

_NARROWEST, _WIDEST = 60, 100

__all__ = ["STYLES", "clean", "columns", "console", "heading", "lines", "print_json", "short"]

STYLES = {
    "active": "green",
    "degraded": "yellow",
    "unavailable": "red",
    "not declared": "dim",
    "allowed": "green",
    "refused": "red",
}


class _Output(Console):
    """A console that leaves a reader's early end to the caller; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError."""
        raise BrokenPipeError


def console() -> Console:
    """The standard output."""
    found = _Output(markup=False, emoji=False, highlight=False, soft_wrap=False)
    width = found.width if found.is_terminal or "COLUMNS" in os.environ else _WIDEST
    found.width = max(min(width, _WIDEST), _NARROWEST)
    return found


def print_json(value: Any) -> None:
    """One JSON document on the standard output, in ASCII."""
    print(json.dumps(value, indent=2))


def short(origin: str) -> str:
    """An origin's file as a person at this place would name it: relative to the current directory, or to the home."""
    here, home = os.getcwd(), os.path.expanduser("~")
    if here != "/" and origin.startswith(here + "/"):
        return origin[len(here) + 1 :]
    if home != "/" and origin.startswith(home + "/"):
        return "~" + origin[len(home) :]
    return origin


def lines(rows: Iterable[tuple[str, str]], *, indent: int = 2) -> Table:
    """A text and where it comes from, in two columns."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=max(indent - 2, 0))
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", overflow="fold", style="dim", max_width=40)
    for text, origin in rows:
        table.add_row("", Text(clean(text)), Text(clean(short(origin))))
    return table


def heading(title: str, status: str = "", note: str = "") -> Text:
    """A title with a status in its colour."""
    text = Text(title, style="bold")
    if status:
        text.append(f"  {status}", style=STYLES.get(status, ""))
    if note:
        text.append(f"  {clean(note)}", style="dim")
    return text


def columns(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table with headings and no lines."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table
