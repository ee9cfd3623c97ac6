"""The values of systemd's sandboxing and resource directives, read as systemd reads them (systemd.exec(5)).

Text in, values out; what cannot be read raises ValueError, to be read behind
"Directive=value". A list that is assigned an empty value
starts again: `items` gives what is left of all assignments.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.supervisor.units import values
from osmoda.supervisor.units.draft import split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from osmoda.supervisor.units.unit import Directive

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]{1,2})?)%\Z")
_LOCALHOST = ("127.0.0.0/8", "::1/128")
_LINK_LOCAL = ("169.254.0.0/16", "fe80::/64")
_MULTICAST = ("224.0.0.0/4", "ff00::/8")
_ANY = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Item:
    """One word of a list, and the directive that it stands in."""

    text: str
    directive: Directive


@dataclass(frozen=True, slots=True)
class HostPath:
    """A path of a list; `optional` (`-` in front): it may be missing."""

    path: str
    optional: bool
    directive: Directive


def items(given: Sequence[Directive]) -> tuple[Item, ...]:
    """The words of a list."""
    found: list[Item] = []
    for directive in given:
        if not directive.value:
            found.clear()
        found.extend(Item(word, directive) for word in split(directive.value, unescape=True))
    return tuple(found)


def paths(given: Sequence[Directive]) -> Iterator[HostPath]:
    """The paths of a list: absolute, `-` or `+` in front of some (`+`: below RootDirectory=, which is / here)."""
    for item in items(given):
        text = item.text.lstrip("-+")
        signs = item.text[: len(item.text) - len(text)]
        yield HostPath(values.absolute_path(text), "-" in signs, item.directive)


def size(text: str, whole: int) -> int | None:
    """Bytes, to the base of 1024, or a percentage of `whole`; None for "infinity" (systemd.resource-control(5))."""
    if text == "infinity":
        return None
    percent = _PERCENT.match(text)
    if percent:
        return int(whole * float(percent[1]) / 100)
    return values.size(text)


def count(text: str, whole: int) -> int | None:
    """A number, or a percentage of `whole`; None for "infinity"."""
    if text == "infinity":
        return None
    percent = _PERCENT.match(text)
    if percent:
        return int(whole * float(percent[1]) / 100)
    return values.unsigned(text)


def cores(text: str) -> float:
    """CPUQuota=: 100% is one core."""
    found = _PERCENT.match(text)
    if found is None or float(found[1]) == 0:
        raise ValueError('is no percentage above 0, such as "150%"')
    return float(found[1]) / 100


def limit(text: str, *, in_bytes: bool) -> int | None:
    """The softer of the two numbers of a resource limit, None for "infinity" (setrlimit(2))."""
    soft, colon, hard = text.partition(":")
    both = [size(part, 0) if in_bytes else count(part, 0) for part in ((soft, hard) if colon else (soft,))]
    bounds = [value for value in both if value is not None]
    return min(bounds) if bounds else None


def networks(given: Sequence[Directive]) -> tuple[Item, ...]:
    """The networks of IPAddressAllow= and IPAddressDeny=, each canonical."""
    names = {"any": _ANY, "localhost": _LOCALHOST, "link-local": _LINK_LOCAL, "multicast": _MULTICAST}
    found = []
    for item in items(given):
        texts = names.get(item.text, (item.text,))
        found += [Item(str(ipaddress.ip_network(text)), item.directive) for text in texts]
    return tuple(found)
