"""The text of unit files: what stands on which line, and what is no unit file."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import syntax as unit_syntax
from osmoda.supervisor.units.unit import Origin

SECTIONS = ("Unit", "Service", "X-Osmoda")


def read(text: str | bytes) -> list[tuple[int, str, str, str]]:
    content = text.encode() if isinstance(text, str) else text
    found = unit_syntax.assignments(content, "a.service", SECTIONS)
    assert all(one.origin.file == "a.service" for one in found)
    return [(one.origin.line, one.section, one.name, one.value) for one in found]


def test_sections_assignments_and_their_lines():
    text = "# first\n[Unit]\nDescription = An agent \n\n; second\n[Service]\nA=1\n[Unit]\nA=\n"
    assert read(text) == [
        (3, "Unit", "Description", "An agent"),
        (7, "Service", "A", "1"),
        (9, "Unit", "A", ""),
    ]


def test_a_line_goes_on_behind_a_backslash_and_keeps_the_line_that_it_began_at():
    text = "[Service]\nA=one \\\n  two\\\n# not this one\n  ; nor this \\\n three\nB=4\n"
    assert read(text) == [(2, "Service", "A", "one    two  three"), (7, "Service", "B", "4")]


def test_an_escaped_backslash_at_the_end_of_a_line_does_not_carry_it_on():
    assert read("[Service]\nA=x\\\\\nB=y\n") == [(2, "Service", "A", "x\\\\"), (3, "Service", "B", "y")]


def test_a_continuation_ends_at_an_empty_line_and_with_the_file():
    assert read("[Service]\nA=x \\\n\nB=y \\") == [(2, "Service", "A", "x"), (4, "Service", "B", "y")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\r", "\r"])
def test_line_ends(end):
    assert read(end.join(["[Service]", "A=1", "", "B=2"])) == [(2, "Service", "A", "1"), (4, "Service", "B", "2")]


def test_a_byte_order_mark_is_passed():
    assert read(b"\xef\xbb\xbf[Unit]\nA=1") == [(2, "Unit", "A", "1")]


def test_what_is_called_x_is_others_unless_it_is_ours():
    text = "[X-Other]\nno assignment\n[X-Osmoda]\nTier=1\nX-Own=2\n[Unit]\nX-Note=3\nA=4\n"
    assert read(text) == [(4, "X-Osmoda", "Tier", "1"), (8, "Unit", "A", "4")]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("A=1\n", 1, "before the first section"),
        ("[Unit]\n\nA\n", 3, "neither a section nor an assignment"),
        ("[Unit]\n=1\n", 2, "no directive before '='"),
        ("[Unit\n", 1, "is no section"),
        ("[]\n", 1, "is no section"),
        ("[Unit]\n[Sevice]\nA=1\n", 2, "[Sevice] is no section of this kind of unit, which has [Unit], [Service]"),
        ("[Unit]\nA=\0\n", 2, "NUL"),
        (b"[Unit]\n\nA=\xff\n", 3, "not UTF-8"),
        ("[Unit]\nB=1\nA=x\\\n" + "y" * unit_syntax.LONGEST_LINE, 3, "longer than 1048576 bytes"),
        ("#" * (unit_syntax.LARGEST_FILE + 1), 1, "longer than 4194304 bytes"),
        ("[Unit]\n\x1b[2J\n", 2, r"'\x1b[2J' is neither"),
    ],
)
def test_what_is_refused(text, line, says):
    with pytest.raises(UnitError, match=re.escape(says)) as refused:
        read(text)
    assert refused.value.origin == Origin("a.service", line)
    assert str(refused.value).startswith(f"a.service:{line}: ")
    assert str(refused.value).isprintable()


@given(
    st.lists(
        st.tuples(st.from_regex(r"[A-Z][A-Za-z]{0,8}", fullmatch=True), st.text("ab \\=[#;\u00e4", max_size=12)),
        max_size=8,
    )
)
def test_what_is_written_is_read(pairs):
    """Values without line ends come back stripped, on their lines; one that ends in a backslash takes the next line."""
    pairs = [(name, value.strip().rstrip("\\")) for name, value in pairs if not name.startswith("X-")]
    text = "[Unit]\n" + "".join(f"{name}={value}\n" for name, value in pairs)
    assert read(text) == [(number, "Unit", name, value.strip()) for number, (name, value) in enumerate(pairs, 2)]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_their_line(content):
    try:
        found = read(b"[Unit]\n" + content)
    except UnitError as error:
        lines = [error.origin.line if error.origin else 0]
    else:
        lines = [line for line, *_ in found]
    assert lines == sorted(lines)
    assert all(1 <= line <= content.count(b"\n") + content.count(b"\r") + 2 for line in lines)
