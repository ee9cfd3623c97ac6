"""Command lines of a unit (systemd.service(5) "Command lines"): prefixes, words, several in one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.supervisor.units import values, words
from osmoda.supervisor.units.unit import Exec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.supervisor.units.draft import Draft, Handler
    from osmoda.supervisor.units.syntax import Assignment
    from osmoda.supervisor.units.unit import Origin

MOST_WORDS = 10_000  # of one command line
_PRIVILEGED = {
    "+": "it would run outside the sandbox",
    "!": "it would run as another user than the agent",
    "|": "it would run in the user's shell",
}


def commands(key: str) -> Handler:
    """Command lines are added; an empty value takes back those before it."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if not assignment.value:
            draft.forget(key)
            return
        draft.add(key, list(read(draft, assignment.value, assignment.origin)))

    return handle


def read(draft: Draft, value: str, origin: Origin) -> Iterator[Exec]:
    """The commands of one value; a lone ";" stands between them. Raises ValueError."""
    try:
        yield from _read(draft, words.Cursor(value), origin)
    except words.Unbalanced:
        raise ValueError("has a quote that is not closed") from None


def _read(draft: Draft, cursor: words.Cursor, origin: Origin) -> Iterator[Exec]:
    while (first := cursor.next()) is not None:
        if first == ";":
            continue
        marks, path = _prefixes(first)
        path = draft.text(path)
        if not path:
            raise ValueError("has no program")
        if any(letter < " " or letter in "\"'\\\x7f" for letter in path):
            raise ValueError("names a program with a quote, a backslash or a control character in it")
        if path.endswith("/") or ("/" in path and not path.startswith("/")) or path in (".", ".."):
            raise ValueError("names a program that is neither an absolute path nor a plain name")
        arguments = [] if "@" in marks else [path]
        arguments += _arguments(draft, cursor)
        if not arguments or not arguments[0]:
            raise ValueError('has no name for the program behind "@"')
        program = values.absolute_path(path) if path.startswith("/") else path
        yield Exec(program, tuple(arguments), "-" in marks, ":" not in marks, origin)


def _prefixes(word: str) -> tuple[str, str]:
    """The marks before a program, each at most once, and the program."""
    marks = ""
    while word and word[0] not in marks:
        if word[0] in _PRIVILEGED:
            raise ValueError(f'has the prefix "{word[0]}", which is not supported: {_PRIVILEGED[word[0]]}')
        if word[0] not in "-@:":
            break
        marks, word = marks + word[0], word[1:]
    return marks, word


def _arguments(draft: Draft, cursor: words.Cursor) -> Iterator[str]:
    for _ in range(MOST_WORDS):
        if cursor.take_separator():
            return
        if cursor.take_escaped_semicolon():
            yield ";"
            continue
        word = cursor.next()
        if word is None:
            return
        yield draft.text(word)
    raise ValueError(f"has more than {MOST_WORDS} arguments")
