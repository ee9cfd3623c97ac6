"""The text of a unit file to its assignments, as systemd.syntax(7) says, each with the line that it begins at.

Where systemd would warn and go on (an unknown section, a line without "=") this refuses: a directive that was meant
and is not in force would be noticed too late.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units.unit import Origin

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

WHITESPACE = " \t\n\r"
COMMENTS = "#;"
LONGEST_LINE = 1 << 20  # bytes, continuation lines included: systemd's LONG_LINE_MAX
LARGEST_FILE = 4 << 20  # bytes; ours: systemd has no bound
_LINE_ENDS = re.compile(rb"\n\r?|\r\n?")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Assignment:
    """`name=value` in a section; the value is stripped, its continuation lines joined, nothing in it is unquoted."""

    section: str
    name: str
    value: str
    origin: Origin

    @property
    def directive(self) -> str:
        return f"{self.section}.{self.name}"


def assignments(content: bytes, file: str, sections: Collection[str]) -> list[Assignment]:
    """What a unit file assigns, in order. `file` is what it is called in messages.

    Sections and directives whose names begin with "X-" are others' and left out, unless the section is one of
    `sections`. Raises UnitError.
    """
    if len(content) > LARGEST_FILE:
        raise UnitError(f"the file is longer than {LARGEST_FILE} bytes", Origin(file, 1))
    found = []
    section: str | None = None
    taken = False
    for origin, line in _logical_lines(content, file):
        if line.startswith("["):
            section = _section(line, origin)
            taken = section in sections
            if not taken and not section.startswith("X-"):
                known = ", ".join(f"[{name}]" for name in sections)
                raise UnitError(f"[{section[:60]}] is no section of this kind of unit, which has {known}", origin)
            continue
        if section is None:
            raise UnitError(f"{_shown(line)} stands before the first section", origin)
        if not taken:
            continue
        name, equals, value = line.partition("=")
        name = name.rstrip(WHITESPACE)
        if not equals:
            raise UnitError(f"{_shown(line)} is neither a section nor an assignment: there is no '='", origin)
        if not name:
            raise UnitError("there is no directive before '='", origin)
        if not name.startswith("X-"):
            found.append(Assignment(section, name, value.strip(WHITESPACE), origin))
    return found


def _section(line: str, origin: Origin) -> str:
    name = line[1:-1]
    if not line.endswith("]") or len(line) < 3 or not all(" " <= letter != "\x7f" for letter in name):
        raise UnitError(f"{_shown(line)} is no section", origin)
    return name


def _logical_lines(content: bytes, file: str) -> Iterator[tuple[Origin, str]]:
    """Lines that say something, stripped; a backslash at the end of one stands for a space and the next line.

    A comment within a continuation is dropped; an empty line ends it.
    """
    begun: list[bytes] = []
    length = first = number = 0
    for number, line in enumerate(_LINE_ENDS.split(content.removeprefix(_BOM)), 1):
        if b"\0" in line:
            raise UnitError("there is a NUL byte in this line", Origin(file, number))
        if line.lstrip(WHITESPACE.encode())[:1] in (b"#", b";"):
            continue
        if not begun:
            first = number
        length += len(line)
        if length > LONGEST_LINE:
            raise UnitError(f"the line is longer than {LONGEST_LINE} bytes", Origin(file, first))
        goes_on = (len(line) - len(line.rstrip(b"\\"))) % 2 == 1
        begun.append(line[:-1] + b" " if goes_on else line)
        if not goes_on:
            yield from _text(b"".join(begun), Origin(file, first))
            begun, length = [], 0
    if begun:
        yield from _text(b"".join(begun), Origin(file, first))


def _text(line: bytes, origin: Origin) -> Iterator[tuple[Origin, str]]:
    try:
        text = line.decode().strip(WHITESPACE)
    except UnicodeDecodeError:
        raise UnitError("the line is not UTF-8", origin) from None
    if text:
        yield origin, text


def _shown(line: str) -> str:
    """A line in a message: its beginning."""
    return repr(line if len(line) <= 60 else line[:57] + "...")
