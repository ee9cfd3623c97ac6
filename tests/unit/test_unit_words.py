"""Words, quotes and escapes, as systemd takes a command line apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.units import words


def split(value, **how):
    return list(words.split(value, **how))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("  \t ", []),
        ("a b\tc", ["a", "b", "c"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("''", [""]),
        ("a'b c'd", ["ab cd"]),
        ('"it\'s" \'a "b"\'', ["it's", 'a "b"']),
        (r"a\sb \x41 \101 \u20ac \U0001f600 \t\\", ["a b", "A", "A", "€", "😀", "\t\\"]),
        (r'"\"" ' + r"'\''", ['"', "'"]),
        (r"\xff", ["\udcff"]),
        # What is no escape stays as it is written, as in systemd, which warns.
        (r"\. \d+ \xzz \x00 \400 \ud800", [r"\.", r"\d+", r"\xzz", r"\x00", r"\400", r"\ud800"]),
        ("a\\", ["a\\"]),
    ],
)
def test_words(value, expected):
    assert split(value) == expected


@pytest.mark.parametrize("value", ["'a", 'a "b', "'a\\", '"\\"'])
def test_a_quote_that_is_not_closed(value):
    with pytest.raises(words.Unbalanced):
        split(value)


def test_without_escapes_a_backslash_takes_the_next_letter():
    assert split(r"a\ b \n\"", unescape=False) == ["a b", 'n"']


def test_semicolons():
    cursor = words.Cursor("a ; b \\; c;d")
    assert cursor.next() == "a"
    assert cursor.take_separator()
    assert cursor.next() == "b"
    assert not cursor.take_separator()
    assert cursor.take_escaped_semicolon()
    assert cursor.next() == "c;d"
    assert cursor.next() is None


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.just("\udcff\udc80")))
def test_what_is_quoted_is_read_back(sentence):
    assert split(" ".join(words.quote(word) for word in sentence)) == sentence


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_taken_apart_or_not_closed(value):
    try:
        found = split(value)
    except words.Unbalanced:
        assert "'" in value or '"' in value
    else:
        assert all("\0" not in word for word in found) or "\0" in value
