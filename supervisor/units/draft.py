"""A unit while its files are read: what has been assigned so far, and how values of each kind are taken in.

A handler takes one assignment into a draft. It raises ValueError with what is wrong and what is allowed, to be read
behind "Directive=value".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmoda.supervisor.units import specifiers, values, words
from osmoda.supervisor.units.unit import Directive, Origin

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.supervisor.units.specifiers import Host, Name
    from osmoda.supervisor.units.syntax import Assignment

type Handler = Callable[[Draft, Assignment], None]

MOST_ENTRIES = 10_000  # of one list: a unit's own directives are far fewer


@dataclass
class Draft:
    """Values by the model's names of fields; a field that is absent has its default."""

    name: Name
    host: Host
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def text(self, value: str) -> str:
        """A value with its specifiers resolved."""
        return specifiers.resolve(value, self.name, self.host)

    def add(self, key: str, entries: list[Any]) -> None:
        """Lengthen a list."""
        entries = [*self.values.get(key, ()), *entries]
        if len(entries) > MOST_ENTRIES:
            raise ValueError(f"makes the list longer than {MOST_ENTRIES}")
        self.values[key] = entries

    def forget(self, key: str) -> None:
        """Back to the default."""
        self.values.pop(key, None)


def split(text: str, *, unescape: bool = False) -> list[str]:
    """Words of a value, quotes taken away."""
    try:
        return list(words.split(text, unescape=unescape))
    except words.Unbalanced:
        raise ValueError("has a quote that is not closed") from None


# Single values


def scalar(key: str, parse: Callable[[str], Any]) -> Handler:
    """A value that the last assignment decides."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        draft.values[key] = parse(assignment.value)

    return handle


def choice(key: str, *allowed: str) -> Handler:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"is not supported, only {', '.join(allowed)}")
        return text

    return scalar(key, parse)


def only(parse: Callable[[str], Any], default: object, reason: str) -> Handler:
    """A directive that may say what holds anyway, and nothing else."""

    def handle(_: Draft, assignment: Assignment) -> None:
        if parse(assignment.value) != default:
            raise ValueError(f"is not supported: {reason}")

    return handle


def text(key: str) -> Handler:
    """Any text, with specifiers; empty takes it back."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        resolved = draft.text(assignment.value)
        if any((letter < " " and letter != "\t") or letter == "\x7f" for letter in resolved):
            raise ValueError("holds a control character")
        draft.values[key] = resolved

    return handle


def parsed_text(key: str, parse: Callable[[str], Any]) -> Handler:
    """Text with specifiers, of a form; empty takes it back."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if assignment.value:
            draft.values[key] = parse(draft.text(assignment.value))
        else:
            draft.forget(key)

    return handle


# Lists


def strings(key: str, parse: Callable[[str], Any], *, unescape: bool = False) -> Handler:
    """Words with specifiers, each of a form; an empty value takes back those before it."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if not assignment.value:
            draft.forget(key)
        draft.add(key, [parse(draft.text(word)) for word in split(assignment.value, unescape=unescape)])

    return handle


def unit_names(key: str) -> Handler:
    """Names of other units; a template is completed with this unit's instance. An empty value changes nothing.

    Quotes and backslashes are letters here, as in systemd.
    """

    def handle(draft: Draft, assignment: Assignment) -> None:
        found = []
        for word in assignment.value.split():
            other = complete(values.unit_name(draft.text(word)), draft.name)
            draft.origins[f"{assignment.directive}={other}"] = assignment.origin
            found.append(other)
        draft.add(key, found)

    return handle


def complete(other: Name, own: Name) -> str:
    """The unit that a template stands for where `own` names it: the same instance, or one called as `own` itself."""
    if other.instance != "":
        return other.full
    return f"{other.prefix}@{own.instance or own.prefix}{other.suffix}"


def installed_names(key: str) -> Handler:
    """Names in [Install]: a template stays one."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if not assignment.value:
            draft.forget(key)
        draft.add(key, [values.unit_name(draft.text(word)).full for word in assignment.value.split()])

    return handle


def directive(key: str, *, resolve: bool) -> Handler:
    """Kept as it is, for those who decide on it."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        value = draft.text(assignment.value) if resolve else assignment.value
        draft.add(key, [Directive(assignment.name, value, assignment.origin)])

    return handle


def condition(parse: Callable[[str], str]) -> Handler:
    """A condition: a value of a form behind "|" (one of those suffices) and "!"; empty takes all of its kind back."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        kind = "Assert" if assignment.name.startswith("Assert") else "Condition"
        if not assignment.value:
            conditions = draft.values.get("conditions", [])
            draft.values["conditions"] = [one for one in conditions if not one.name.startswith(kind)]
            return
        rest = assignment.value
        marks = ""
        for mark in "|!":
            if rest.startswith(mark):
                marks += mark
                rest = rest[1:]
        value = parse(draft.text(rest))
        draft.add("conditions", [Directive(assignment.name, marks + value, assignment.origin)])

    return handle
