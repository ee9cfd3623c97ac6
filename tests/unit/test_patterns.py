from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.patterns import covers, overlap

_patterns = st.text("ab/*", max_size=6)
_texts = st.text("ab/", max_size=8)


def matches(pattern: str, text: str) -> bool:
    """The meaning, by another way: a regular expression."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("wide", "narrow", "answer"),
    [
        ("*", "", True),
        ("*", "anything/*", True),
        ("file_*", "file_read", True),
        ("file_*", "file_*", True),
        ("file_*", "*", False),
        ("file_read", "file_*", False),
        ("/v1/*", "/v1/a/b", True),
        ("/v1/*", "/v1", False),
        ("a*b", "a*b*b", True),
        ("a*b", "a*bc", False),
        ("**", "*", True),
        ("", "*", False),
        ("*a*", "a", True),
    ],
)
def test_covers(wide, narrow, answer):
    assert covers(wide, narrow) is answer


@given(_patterns, _texts)
def test_a_text_is_covered_when_it_is_matched(pattern, text):
    assert covers(pattern, text) == matches(pattern, text)


@given(_patterns, _patterns, _texts)
def test_what_the_narrow_one_matches_the_wide_one_matches(wide, narrow, text):
    if covers(wide, narrow) and matches(narrow, text):
        assert matches(wide, text)


@given(_patterns, _patterns)
def test_what_is_not_covered_has_a_witness(wide, narrow):
    """Exact, not only safe: a letter that `wide` does not hold tells the two apart."""
    assert covers(wide, narrow) == matches(wide, narrow.replace("*", "z"))


@given(_patterns, _patterns, _texts)
def test_patterns_that_match_one_text_overlap(one, other, text):
    if matches(one, text) and matches(other, text):
        assert overlap(one, other)
    assert overlap(one, other) == overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other", "answer"), [("a*", "*b", True), ("a*", "b*", False), ("a*c", "ab", False), ("", "*", True)]
)
def test_overlap(one, other, answer):
    assert overlap(one, other) is answer
