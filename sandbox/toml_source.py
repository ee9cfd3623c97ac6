"""TOML text to values, and the line and column of each of them.

`tomllib` decides what the text means; tree-sitter's TOML grammar only says where each key and item stands, so the two
can never disagree about a value.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tree_sitter import Node, Parser

type Path = tuple[str | int, ...]

_DEEPEST = 32  # tables and lists in one another; those of a profile go to five
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a value stands; line and column count from 1, the column in characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed TOML document: its values, and the position of each."""

    file: str
    data: Mapping[str, Any]
    positions: Mapping[Path, tuple[int, int]]

    def position(self, path: Path) -> Position:
        """The key or array item at `path`, or its nearest ancestor that the text holds; line 1 for the document."""
        for end in range(len(path), 0, -1):
            place = self.positions.get(path[:end])
            if place is not None:
                return Position(self.file, *place)
        return Position(self.file, 1, 1)

    def error(self, path: Path, message: str) -> ProfileError:
        """A `ProfileError` that points at `path`."""
        place = self.position(path)
        return ProfileError(message, place.file, place.line, place.column)


def parse(text: str, file: str) -> Source:
    """Parse TOML 1.0; `file` is the name that errors and positions carry.

    Raises `ProfileError` with line and column for text that is not TOML.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(file) from None
    except ValueError as error:
        raise _syntax_error(str(error), text, file) from None
    _check_depth(data, file)
    positions: dict[Path, tuple[int, int]] = {}
    for path, place in _document(text):
        positions.setdefault(path, place)  # where a table is first named
    return Source(file, data, positions)


def _check_depth(data: Mapping[str, Any], file: str) -> None:
    """Refuse what is nested deeper than any profile: dotted keys nest as deep as they are long.

    Everything after this may recurse into the values.
    """
    level: list[Any] = [data]
    for _ in range(_DEEPEST):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise _too_deep(file)


def _too_deep(file: str) -> ProfileError:
    return ProfileError(
        f"the text cannot be read: its values are nested too deeply, in more than {_DEEPEST} tables and lists",
        file,
        1,
        1,
    )


def _syntax_error(message: str, text: str, file: str) -> ProfileError:
    """What tomllib found wrong. It puts the place into the message, and "end of document" for what was never closed."""
    place = _PLACE.search(message)
    if place is not None and place[1] is not None:
        line, column = int(place[1]), int(place[2])
    else:
        lines = text.split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    reason = _PLACE.sub("", message)
    return ProfileError(f"the text is not valid TOML: {reason[:1].lower()}{reason[1:]}", file, line, column)


@cache
def _parser() -> Parser:
    import tree_sitter

    return tree_sitter.Parser(tree_sitter.Language(_grammar()))


def _grammar() -> object:
    """TOML's grammar, as a capsule.

    `tree_sitter_toml` itself imports importlib.resources for its highlighting queries, 10 ms of every compile; the
    grammar is in the extension module beside it.
    """
    package = PathFinder.find_spec("tree_sitter_toml")
    spec = PathFinder.find_spec("_binding", package.submodule_search_locations) if package else None
    if spec is None or spec.loader is None:
        import tree_sitter_toml

        return tree_sitter_toml.language()
    binding = module_from_spec(spec)
    spec.loader.exec_module(binding)
    return binding.language()


class _Places:
    """Line and column of a node. tree-sitter counts bytes; a person counts characters."""

    def __init__(self, encoded: bytes) -> None:
        self._lines = encoded.split(b"\n")

    def __call__(self, node: Node) -> tuple[int, int]:
        row, column = node.start_point
        return row + 1, len(self._lines[row][:column].decode()) + 1


def _document(text: str) -> Iterator[tuple[Path, tuple[int, int]]]:
    # Options of a command are such text, too, and a path in them need not be UTF-8: one byte for one character will do
    # for places, and no value is read from here.
    encoded = text.encode(errors="replace")
    place = _Places(encoded)
    counts: dict[Path, int] = {}  # how many elements each array of tables has so far
    for node in _parser().parse(encoded).root_node.named_children:
        if node.type == "pair":
            yield from _pair(node, (), place)
        elif node.type in ("table", "table_array_element"):
            header, *rest = (child for child in node.named_children if child.type != "comment")
            *parents, last = _keys(header)
            base: Path = ()
            for key in parents:
                base = (*base, key)
                yield base, place(header)
                base = _latest(base, counts)
            base = (*base, last)
            if node.type == "table_array_element":
                counts[base] = counts.get(base, 0) + 1
                if counts[base] == 1:
                    yield base, place(header)
                base = _latest(base, counts)
            yield base, place(header)
            for child in rest:
                yield from _pair(child, base, place)


def _latest(path: Path, counts: dict[Path, int]) -> Path:
    """A header below an array of tables means the array's last element."""
    return (*path, counts[path] - 1) if path in counts else path


def _pair(node: Node, base: Path, place: _Places) -> Iterator[tuple[Path, tuple[int, int]]]:
    if node.type != "pair":
        return
    key, *values = (child for child in node.named_children if child.type != "comment")
    path = base
    for part in _keys(key):
        path = (*path, part)
        yield path, place(key)
    for value in values[:1]:
        yield from _value(value, path, place)


def _value(node: Node, path: Path, place: _Places) -> Iterator[tuple[Path, tuple[int, int]]]:
    if node.type == "inline_table":
        for child in node.named_children:
            yield from _pair(child, path, place)
    elif node.type == "array":
        items = (child for child in node.named_children if child.type != "comment")
        for index, child in enumerate(items):
            yield (*path, index), place(child)
            yield from _value(child, (*path, index), place)


def _keys(node: Node) -> list[str]:
    if node.type == "dotted_key":
        return [key for child in node.named_children for key in _keys(child)]
    text = (node.text or b"").decode()
    if node.type == "quoted_key":
        return list(tomllib.loads(f"{text} = 0"))
    return [text]
