from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox import toml_source
from osmoda.sandbox.errors import ProfileError

TEXT = """\
# a comment
schema = 1
a.b."c d" = { x = [1, { y = 2 }], z.q = 3 } # behind
lines = [
  "one",  # first
  "two",
]
[t.u]
k = \"\"\"
[not.a.table]
\"\"\"
[[rule]]
n = 1
[[rule]]
n = 2
[rule.sub]
"é" = { m = 3, "ü" = 2 }
[[rule.list]]
q = 1
[t]
v = 1
"""


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        (("schema",), 2, 1),
        (("a", "b"), 3, 1),
        (("a", "b", "c d"), 3, 1),
        (("a", "b", "c d", "x"), 3, 15),
        (("a", "b", "c d", "x", 0), 3, 20),
        (("a", "b", "c d", "x", 1), 3, 23),
        (("a", "b", "c d", "x", 1, "y"), 3, 25),
        (("a", "b", "c d", "z", "q"), 3, 35),
        (("lines", 1), 6, 3),
        (("t",), 8, 2),
        (("t", "u", "k"), 9, 1),
        (("rule", 0, "n"), 13, 1),
        (("rule", 1), 14, 3),
        (("rule", 1, "n"), 15, 1),
        (("rule", 1, "sub"), 16, 2),
        (("rule", 1, "sub", "é", "m"), 17, 9),
        (("rule", 1, "sub", "é", "ü"), 17, 16),
        (("rule", 1, "list", 0, "q"), 19, 1),
        (("t", "v"), 21, 1),
    ],
)
def test_every_key_and_item_has_its_own_place(path, line, column):
    position = toml_source.parse(TEXT, "p.toml").position(path)
    assert (position.file, position.line, position.column) == ("p.toml", line, column)


def test_a_path_that_the_text_does_not_hold_falls_back_to_what_is_around_it():
    source = toml_source.parse(TEXT, "p.toml")
    assert source.position(("rule", 1, "sub", "none", 7)).line == 16
    assert source.position(("nowhere",)) == toml_source.Position("p.toml", 1, 1)


def test_a_position_prints_as_file_and_line():
    assert str(toml_source.parse("\n\na = 1", "/x/p.toml").position(("a",))) == "/x/p.toml:3"


def test_columns_count_characters_and_lines_may_end_in_crlf():
    source = toml_source.parse('"ключ" = [1, 2]\r\nb = 1\r\n', "p")
    assert source.position(("ключ", 1)).column == 14
    assert source.position(("b",)).line == 2


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a = 1\nb = \n", 2, 5),
        ("a = 1\na = 2\n", 2, 6),
        ("a = [1,\n 2", 2, 3),
        ('a = "x', 1, 7),
        ("= 1", 1, 1),
        ("a = 2026-13-45", 1, 9),
        ("a = " + "9" * 5000, 1, 5005),
    ],
)
def test_text_that_is_not_toml_is_refused_with_its_place(text, line, column):
    with pytest.raises(ProfileError) as caught:
        toml_source.parse(text, "p.toml")
    assert (caught.value.line, caught.value.file) == (line, "p.toml")
    assert abs(caught.value.column - column) <= 1
    assert "at line" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_nested_without_end_is_refused():
    for text in ("a = " + "[" * 100_000, "a = " + "[" * 33 + "]" * 33):
        with pytest.raises(ProfileError, match="nested too deeply"):
            toml_source.parse(text, "p.toml")


@pytest.mark.parametrize("depth", [33, 500, 900, 5000])
@pytest.mark.parametrize("text", ["{} = 1", "[{}]", "[[{}]]", "environment.set.{} = 1"])
def test_dotted_keys_do_not_nest_without_end_either(text, depth):
    with pytest.raises(ProfileError, match="nested too deeply"):
        toml_source.parse(text.format(".".join(["a"] * depth)) + "\n", "p.toml")


_keys = st.text("abc é.", min_size=1, max_size=4)
_values = st.recursive(
    st.integers(0, 9) | st.text("x#]}", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


def test_places_in_text_that_is_no_unicode():
    source = toml_source.parse('a = ["\udcff\udcfe", "ü"]\n"\udcff" = 1', "command line")
    assert source.data == {"a": ["\udcff\udcfe", "ü"], "\udcff": 1}
    assert [source.positions["a", index] for index in (0, 1)] == [(1, 6), (1, 12)]


def _inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {_inline(item)}' for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[\n" + ",\n".join(_inline(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _paths(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*path, step), item
        yield from _paths(item, (*path, step))


@given(st.dictionaries(_keys, _values, max_size=4))
def test_the_grammar_finds_what_tomllib_reads(document):
    text = "".join(f'"{key}" = {_inline(value)}\n' for key, value in document.items())
    source = toml_source.parse(text, "p")
    assert source.data == tomllib.loads(text) == document
    assert set(source.positions) == {path for path, _ in _paths(document)}
    lines = text.split("\n")
    for path, item in _paths(document):
        line, column = source.positions[path]
        behind = lines[line - 1][column - 1 :]
        expected = f'"{path[-1]}" =' if isinstance(path[-1], str) else _inline(item).split("\n")[0]
        assert behind.startswith(expected)
