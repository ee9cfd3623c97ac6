"""Checks a profile's values against its shape, and says what is wrong as a person would.

msgspec stops at the first fault and words it for programmers. Here each fault becomes a sentence with its place and
what is allowed, and is then mended in a copy, so that all of them are found in one go.
"""

from __future__ import annotations

import copy
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from osmoda.sandbox.schema import SCHEMA_VERSION, ProfileFile, TierFile

if TYPE_CHECKING:
    from osmoda.sandbox.errors import ProfileError
    from osmoda.sandbox.toml_source import Path, Source

# How msgspec words what is wrong; the place stands at the end, and is left out for the document itself.
_PLACE = re.compile(r" - at `\$((?:\.[A-Za-z0-9_]+|\[(?:\d+|\.\.\.)\])+)`\Z")
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`\Z")
_FITTING = {"schema": SCHEMA_VERSION, "tier": 1, "host": "x"}
_MOST_ERRORS = 20
# msgspec works out a type's fields when they are first needed, and the interpreter dies of two threads that do.
_CONVERTING = threading.Lock()


def validate[S: (ProfileFile, TierFile)](source: Source, shape: type[S]) -> S:
    """The values of `source` as a `shape`. Raises `ProfileError` for the first thing wrong, the rest in `others`."""
    data = source.data
    errors: list[ProfileError] = []
    while True:
        try:
            with _CONVERTING:
                valid = msgspec.convert(data, shape)
            break
        except msgspec.ValidationError as error:
            if not errors:
                data = copy.deepcopy(dict(data))
            fault = _fault(str(error), data, shape)
            errors.append(source.error(fault.path, _sentence(fault, shape)))
            if len(errors) == _MOST_ERRORS or not _set_aside(fault, data):
                break
    raise_all(errors)
    return valid


def raise_all(errors: list[ProfileError]) -> None:
    """Raise the error that stands first in its file; `others` of it holds the rest, in order."""
    if not errors:
        return
    first, *others = sorted(errors, key=lambda error: (error.file, error.line, error.column))
    first.others = tuple(others)
    raise first


def dotted(path: Path) -> str:
    """`network.allow[1].ports`, as a person writes it."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


@dataclass(frozen=True, slots=True)
class _Fault:
    """What msgspec found: `kind` is "unknown" (a key), "missing" (a key) or "value"."""

    kind: str
    path: Path
    found: Any = None


def _fault(message: str, data: Any, shape: type[Struct]) -> _Fault:
    place = _PLACE.search(message)
    path: Path = ()
    value = data
    try:
        for name, index in _STEP.findall(place[1] if place else ""):
            step: str | int = (int(index) if index.isdigit() else _unfit(value)) if index else name
            path = (*path, step)
            value = value[step]
    except (KeyError, IndexError, TypeError):
        path, value, place = (), data, None  # the place was part of a key's name
    reason = message[: place.start()] if place else message
    missing = _MISSING.match(reason)
    if missing:
        return _Fault("missing", (*path, missing[1]))
    unknown = _UNKNOWN.match(reason)
    if unknown is None:
        return _Fault("value", path, value)
    if unknown[1] in value:
        return _Fault("unknown", (*path, unknown[1]))
    known = _keys((), shape)
    return _Fault("unknown", (next(key for key in data if key not in known),))


def _unfit(table: Any) -> str:
    """The first key with a value that is no text: msgspec does not say which key of `environment.set` it was."""
    return str(next(key for key, item in table.items() if not isinstance(item, str)))


def _set_aside(fault: _Fault, data: Any) -> bool:
    """Mend `data` at the fault, so that the next one shows; False where that cannot be done."""
    if not fault.path:
        return False
    parent = data
    for step in fault.path[:-1]:
        parent = parent[step]
    last = fault.path[-1]
    if isinstance(last, int):
        # Keep the indices of what follows: put a value there that fits every list of its kind.
        parent[last] = 1 if fault.path[-2] in ("ports", "serve") else "x"
    elif fault.kind != "unknown" and last in _FITTING:
        parent[last] = _FITTING[last]
    elif fault.kind == "missing":
        return False
    else:
        del parent[last]
    return True


def _sentence(fault: _Fault, shape: type[Struct]) -> str:
    path = fault.path
    if fault.kind == "missing":
        return f"{dotted(path)} is missing; allowed: {_allowed(path, shape)}"
    if fault.kind == "unknown":
        keys = _keys(path[:-1], shape)
        guess = _nearest(str(path[-1]), keys)
        hint = f'; did you mean "{guess}"?' if guess else ";"
        return f"{printable(dotted(path))} is not a key of a profile{hint} allowed here: {', '.join(keys)}"
    return f"{printable(dotted(path))} is {written(fault.found)}; allowed: {_allowed(path, shape)}"


def written(value: Any) -> str:
    """A found value in TOML's words, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return printable(text)


def printable(text: str) -> str:
    """`text` without characters that a terminal would act on, cut where it is long."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(name: str, keys: list[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, keys, 1, 0.6)), None)


def _struct_in(hint: Any) -> type[Struct] | None:
    if isinstance(hint, type):
        return hint if issubclass(hint, Struct) else None
    return next((found for part in get_args(hint) if (found := _struct_in(part))), None)


def _hint(path: Path, shape: type[Struct]) -> Any:
    """The annotation of the key that `path` lies in or under, or None where no such key is."""
    hint: Any = shape
    for step in path:
        if isinstance(step, int):
            continue
        struct = _struct_in(hint)
        if struct is None:
            break
        names = {item.encode_name: item.name for item in msgspec.structs.fields(struct)}
        if step not in names:
            return None
        hint = get_type_hints(struct, include_extras=True)[names[step]]
    return hint


def _keys(path: Path, shape: type[Struct]) -> list[str]:
    struct = _struct_in(_hint(path, shape))
    return [item.encode_name for item in msgspec.structs.fields(struct)] if struct else []


def _description(hint: Any) -> str | None:
    for part in get_args(hint):
        if isinstance(part, Meta) and part.description:
            return part.description
    return next((text for part in get_args(hint) if (text := _description(part))), None)


def _allowed(path: Path, shape: type[Struct]) -> str:
    hint = _hint(path, shape)
    text = _description(hint)
    struct = _struct_in(hint)
    if struct is not None and not isinstance(path[-1] if path else "", int) and (text is None or hint is struct):
        return f"a table with the keys {', '.join(_keys(path, shape))}"
    return text or "nothing"
