"""Edits of a profile's `[network]` table: text in, text out. Comments, order and layout stay as they are.

Each result is read again, and must mean what the edit was to make of it. Whether the whole profile holds is for whoever
reads profiles.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array

from osmoda.egress import destinations, patterns
from osmoda.egress.destinations import ANY_PORT, DEFAULT_PORTS, Rule, host_covers, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULTS = {"allow": DEFAULT_PORTS, "deny": (ANY_PORT,)}
"""The ports of a rule that names none."""

KEYS = ("methods", "paths", "secret", "max_body", "max_bytes", "max_requests", "ech", "addresses")
"""What the table form of a rule may hold beside `host` and `ports`, in the order in which it is written."""

_BY_HAND = "network is written in a way that cannot be edited from here; edit it by hand, then reload it"


class EditError(Exception):
    """An edit that cannot be made; one sentence."""


@dataclass(frozen=True, slots=True)
class Edit:
    """The text after an edit. `changed` are sentences of what was done, `kept` of what is otherwise than one may think.

    `added` and `removed` are the rules themselves, each with its list: "allow" or "deny".
    """

    text: str
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    added: tuple[tuple[str, Rule], ...] = ()
    removed: tuple[tuple[str, Rule], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule to be written: `text` as `HOST` or `HOST:PORT,PORT`, or `ports` apart; `more` is for the table's keys."""

    text: str
    ports: tuple[int, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def written(self, key: str) -> tuple[str | dict[str, Any], Rule]:
        """As the profile has it, a string or a table; and the rule that it is. Raises EditError."""
        try:
            rule = parse_rule(self.text, DEFAULTS[key])
            if self.ports:
                if parse_rule(self.text, (ANY_PORT,)).ports != (ANY_PORT,):
                    raise ValueError("its ports are given twice")
                rule = replace(rule, ports=_ports(self.ports))
        except ValueError as error:
            raise EditError(f"{self.text} is no rule: {error}") from None
        if not self.more:
            return str(rule) if self.ports else self.text, rule
        table: dict[str, Any] = {"host": rule.host}
        if rule.ports != DEFAULTS[key]:
            table["ports"] = list(rule.ports)
        table.update({name: self.more[name] for name in KEYS if name in self.more})
        try:
            rule = _rule(table, key)
            if not str(rule).isprintable():
                raise ValueError("it holds what is no printable text")
        except ValueError as error:
            raise EditError(f"{self.text} is no rule: {error}") from None
        return table, rule


def allow(text: str, entries: Sequence[Entry]) -> Edit:
    """`entries` at the end of `network.allow`, but those that are covered. Raises EditError."""
    return _add(text, "allow", entries)


def deny(text: str, entries: Sequence[Entry]) -> Edit:
    """The same for `network.deny`."""
    return _add(text, "deny", entries)


def remove(text: str, wanted: Iterable[str]) -> Edit:
    """Every item of `network.allow` and `network.deny` that one of `wanted` names: by its host, or as it is listed.

    Raises EditError for what is not there.
    """
    data = _read(text)
    lists = {key: _items(data, key) for key in ("allow", "deny")}
    gone: dict[str, set[int]] = {key: set() for key in lists}
    for one in wanted:
        asked = _asked(one)
        found = {
            key: {
                i
                for i, (value, rule) in enumerate(items)
                if value == one or (rule is not None and (_is_asked(rule, asked) or str(rule) == one))
            }
            for key, items in lists.items()
        }
        if not any(found.values()):
            raise EditError(_not_there(one, lists["allow"]))
        for key, indices in found.items():
            gone[key] |= indices
    document = _document(text)
    changed, removed = [], []
    for key, items in lists.items():
        if not gone[key]:
            continue
        array = _array(document, key)
        for index in sorted(gone[key], reverse=True):
            del array[index]
        for index in sorted(gone[key]):
            value, rule = items[index]
            changed.append(f"{_words(value)} removed from network.{key}")
            if rule is not None:
                removed.append((key, rule))
        data["network"][key] = [value for i, (value, _) in enumerate(items) if i not in gone[key]]
    return Edit(_proven(document, data, _newline(text)), tuple(changed), (), (), tuple(removed))


def _add(text: str, key: str, entries: Sequence[Entry]) -> Edit:
    data = _read(text)
    present = _Listed(rule for _, rule in _items(data, key) if rule is not None)
    denied = _Listed(rule for _, rule in _items(data, "deny") if rule is not None and key == "allow")
    changed, kept, values = [], [], []
    added: list[tuple[str, Rule]] = []
    for entry in entries:
        value, rule = entry.written(key)
        words = _words(value)
        wide = next((one for one in present.near(rule.host) if covers(one, rule)), None)
        if wide is not None:
            kept.append(_covered(words, key, rule, wide))
        else:
            values.append(value)
            present.add(rule)
            added.append((key, rule))
            changed.append(f"{words} added to network.{key}")
        kept += [f"{words} {_stays_refused(rule, one)}" for one in denied.near(rule.host) if denies(one, rule)]
    if not values:
        return Edit(text, (), tuple(kept))
    document = _document(text)
    newline = _newline(text)
    _append(_array(document, key), values, newline)
    network = data.setdefault("network", {})
    network[key] = [*network.get(key, []), *values]
    return Edit(_proven(document, data, newline), tuple(changed), tuple(kept), tuple(added))


# What rules mean


class _Listed:
    """The rules of a list, by host: of a long one only a few are near a name."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self.add(rule)

    def add(self, rule: Rule) -> None:
        self._rules.setdefault("/" if rule.is_network else rule.host, []).append(rule)

    def near(self, host: str) -> list[Rule]:
        """Those whose host may cover `host`."""
        if "/" in host:
            return self._rules.get("/", [])
        labels = host.split(".")
        wide = ["*", "*.*", *[f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels))]]
        return [rule for one in dict.fromkeys([host, *wide]) for rule in self._rules.get(one, ())]


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether `narrow` would add nothing where `wide` is listed."""
    if not host_covers(wide.host, narrow.host) or not (ANY_PORT in wide.ports or {*narrow.ports} <= {*wide.ports}):
        return False
    same = replace(wide, host=narrow.host, ports=narrow.ports)
    if same == narrow:
        # A budget is each rule's own, and a wider host's is not a narrower one's.
        return wide == narrow or wide.max_bytes is wide.max_requests is None
    return (
        wide.max_bytes is wide.max_requests is None
        and (narrow.inspected or not wide.inspected)
        and (not wide.methods or (bool(narrow.methods) and {*narrow.methods} <= {*wide.methods}))
        and (not wide.paths or (bool(narrow.paths) and all(_path_covered(wide, path) for path in narrow.paths)))
        and narrow.secret in (None, wide.secret)
        and (wide.max_body is None or (narrow.max_body is not None and narrow.max_body <= wide.max_body))
        and all(any(host_covers(one, address) for one in wide.addresses) for address in narrow.addresses)
        and (wide.ech or not narrow.ech)
    )


def _path_covered(wide: Rule, path: str) -> bool:
    return any(patterns.covers(one, path) for one in wide.paths)


def denies(denied: Rule, rule: Rule) -> bool:
    """Whether `denied` takes something away from every host that `rule` means."""
    ports = ANY_PORT in denied.ports or ANY_PORT in rule.ports or bool({*denied.ports} & {*rule.ports})
    return ports and host_covers(denied.host, rule.host)


def _stays_refused(rule: Rule, denied: Rule) -> str:
    some = [port for port in rule.ports if ANY_PORT not in denied.ports and port in denied.ports]
    where = f" at port {', '.join(map(str, some))}" if some and len(some) < len(rule.ports) else ""
    return f"stays refused{where}: network.deny has {denied}, and deny wins"


def _covered(words: str, key: str, rule: Rule, wide: Rule) -> str:
    if _limits(rule) and not _limits(wide):
        return f"{words} is not added: {wide} in network.{key} allows all of it already; remove that to limit it"
    return f"{words} is covered by {wide} in network.{key} already"


def _limits(rule: Rule) -> bool:
    return rule.inspected or rule.max_bytes is not None or rule.max_requests is not None


def _rule(value: Any, key: str) -> Rule:
    """Raises ValueError for what is no rule."""
    if isinstance(value, str):
        return parse_rule(value, DEFAULTS[key])
    try:
        sizes = {name: destinations.parse_size(value[name]) for name in ("max_body", "max_bytes") if name in value}
        return Rule(
            host=destinations.canonical_host(value["host"]),
            ports=_ports(value.get("ports", ())) or DEFAULTS[key],
            methods=tuple(sorted({destinations.check_method(text) for text in value.get("methods", ())})),
            paths=tuple(sorted({destinations.check_url_path(text) for text in value.get("paths", ())})),
            secret=destinations.check_secret(value["secret"]) if "secret" in value else None,
            max_requests=value.get("max_requests"),
            ech=value.get("ech") is True,
            addresses=destinations.canonical_addresses(value.get("addresses", ())),
            **sizes,
        )
    except (TypeError, KeyError, AttributeError):
        raise ValueError("a rule is text, or a table with a host") from None


def _ports(values: Iterable[Any]) -> tuple[int, ...]:
    return destinations.canonical_ports(destinations.parse_port(str(value)) for value in values)


def _asked(wanted: str) -> Rule | None:
    """What is wanted, with every port where none is named; None for no host and ports."""
    try:
        return parse_rule(wanted, (ANY_PORT,))
    except ValueError:
        return None


def _is_asked(rule: Rule, asked: Rule | None) -> bool:
    return asked is not None and asked.host == rule.host and asked.ports in ((ANY_PORT,), rule.ports)


def _not_there(wanted: str, allowed: list[tuple[Any, Rule | None]]) -> str:
    said = f"neither network.allow nor network.deny has a rule {wanted}"
    asked = _asked(wanted)
    wide = next((rule for _, rule in allowed if rule and asked and host_covers(rule.host, asked.host)), None)
    return said if wide is None else f"{said}; {wide} is what allows it, and deny would take it away"


def _words(value: Any) -> str:
    """An item as a sentence names it."""
    if isinstance(value, str):
        return value
    try:
        return str(_rule(value, "allow"))
    except ValueError:
        return str(value)


# What the text means


def _read(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise EditError("the profile cannot be read: its values are nested too deeply") from None
    except ValueError as error:
        reason = str(error)
        raise EditError(f"the profile is not TOML: {reason[:1].lower()}{reason[1:]}") from None


def _items(data: dict[str, Any], key: str) -> list[tuple[Any, Rule | None]]:
    """The items of a list, None in place of a rule for those that are none: the profile's own errors tell of those."""
    network = data.get("network", {})
    if not isinstance(network, dict):
        raise EditError("network is no table in this profile")
    values = network.get(key, [])
    if not isinstance(values, list):
        raise EditError(f"network.{key} is no list in this profile")
    found: list[tuple[Any, Rule | None]] = []
    for value in values:
        try:
            found.append((value, _rule(value, key)))
        except ValueError:
            found.append((value, None))
    return found


# How it is written


def _document(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, RecursionError):
        raise EditError(_BY_HAND) from None


def _array(document: tomlkit.TOMLDocument, key: str) -> Array:
    """The list `network.KEY`, made where there is none."""
    if "network" not in document:
        document["network"] = tomlkit.table()
    network: Any = document["network"]
    if key not in network:
        network[key] = tomlkit.array()
    found = network[key]
    if not isinstance(found, Array):
        raise EditError(_BY_HAND)
    return found


def _append(array: Array, values: Sequence[str | dict[str, Any]], newline: str) -> None:
    """Put `values` at the end of `array`: each on a line of its own where the array has several lines."""
    items = [_item(value) for value in values]
    raw = array.as_string()
    if "\n" not in raw:
        array.extend(items)
        return
    lines = [line for line in raw.splitlines()[1:] if line.strip(" \t]")]
    indent = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())] if lines else "  "
    # A list that ends without a comma goes on to do so.
    ended = not array or _after_last(array, raw).lstrip().startswith(",")
    for number, item in enumerate(items, 1):
        array.add_line(item, indent=newline + indent, newline=False, add_comma=ended or number < len(items))


def _after_last(array: Array, raw: str) -> str:
    """What stands behind the last item."""
    return raw.rpartition(array[-1].as_string())[2]


def _item(value: str | dict[str, Any]) -> Any:
    if isinstance(value, str):
        return tomlkit.item(value)
    inside = ", ".join(f"{name} = {tomlkit.item(part).as_string()}" for name, part in value.items())
    # Parsed, not built: built ones have no spaces inside their braces.
    return tomlkit.parse(f"item = {{ {inside} }}")["item"]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _proven(document: tomlkit.TOMLDocument, meant: dict[str, Any], newline: str) -> str:
    """The text of `document`, which must mean `meant`: what went wrong on the way to it must not be written."""
    text = tomlkit.dumps(document)
    if newline == "\r\n":
        # Where tomlkit moves a comment to a line of its own, it ends the line in its own way.
        text = re.sub("(?<!\r)\n", "\r\n", text)
    try:
        if tomllib.loads(text) == meant:
            return text
    except ValueError:
        pass
    raise EditError(_BY_HAND)
