"""From the tables of one file to a `Declaration`: sizes in bytes, absolute paths, canonical destinations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from osmoda.egress import destinations
from osmoda.egress.destinations import ANY_PORT, DEFAULT_PORTS, Rule, parse_size
from osmoda.sandbox import granted_paths, syscall_groups
from osmoda.sandbox.merge import Declaration, Key
from osmoda.sandbox.schema import CapabilitiesTable, ProfileFile, RuleTable
from osmoda.sandbox.validation import dotted, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.sandbox.errors import ProfileError
    from osmoda.sandbox.toml_source import Path, Position, Source

DEGRADABLE = ("cpu", "idmap", "landlock", "landlock-net", "landlock-scope", "memory", "notify")
FAMILIES = ("unix", "inet", "inet6", "netlink")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_VARIABLE_PATTERN = re.compile(r"~?[A-Za-z0-9_*]+\Z")
_TOPIC = re.compile(r"[A-Za-z0-9_.:/*-]+\Z")


class Reader:
    """Reads one table of capabilities; what is wrong is collected in `errors`, each with its place."""

    def __init__(self, source: Source, base: Path, folder: str, *, tier_file: bool = False) -> None:
        self.errors: list[ProfileError] = []
        self._source = source
        self._base = base
        self._folder = folder
        self._tier_file = tier_file
        self._keys: dict[Key, Position] = {}
        self._lists: dict[Key, dict[Any, Position]] = {}
        self._scalars: dict[Key, tuple[Any, Position]] = {}
        self._variables: dict[str, tuple[str, Position]] = {}

    def read(self, table: ProfileFile | CapabilitiesTable) -> Declaration:
        """Everything that `table` declares, `extends` aside."""
        self._list(("degrade",), table.degrade, _one_of(DEGRADABLE))
        if isinstance(table, ProfileFile):
            self._scalar(("tier",), table.tier)
        if table.filesystem is not UNSET:
            self._filesystem(table.filesystem)
        if table.network is not UNSET:
            self._network(table.network)
        if table.process is not UNSET:
            self._process(table.process)
        if table.environment is not UNSET:
            self._environment(table.environment)
        if table.tools is not UNSET:
            self._list(("tools", "allow"), table.tools.allow, _pattern)
            self._list(("tools", "deny"), table.tools.deny, _pattern)
        if table.mesh is not UNSET:
            self._list(("mesh", "send"), table.mesh.send, _pattern)
            self._list(("mesh", "receive"), table.mesh.receive, _pattern)
        return Declaration(self._keys, self._lists, self._scalars, self._variables)

    def _filesystem(self, table: Any) -> None:
        for name in ("read", "write", "deny"):
            self._list(("filesystem", name), getattr(table, name), self._path)
        self._scalar(("filesystem", "workspace"), table.workspace)
        self._scalar(("filesystem", "tmp"), table.tmp, _positive_size)

    def _network(self, table: Any) -> None:
        self._list(("network", "allow"), table.allow, self._rule)
        self._list(("network", "deny"), table.deny, self._denied)
        self._list(("network", "serve"), table.serve, self._port)
        self._list(
            ("network", "connect"),
            table.connect,
            lambda text: destinations.parse_connect(text, tier_file=self._tier_file),
        )
        self._list(("network", "families"), table.families, _one_of(FAMILIES))
        self._scalar(("network", "ask"), table.ask)
        self._scalar(("network", "loopback"), table.loopback)

    def _process(self, table: Any) -> None:
        self._list(("process", "syscalls"), table.syscalls, _syscall)
        self._scalar(("process", "memory"), table.memory, _positive_size)
        self._scalar(("process", "cpu"), table.cpu)
        self._scalar(("process", "pids"), table.pids)
        if table.limits is not UNSET:
            limits = table.limits
            self._scalar(("process", "limits", "open_files"), limits.open_files)
            for name in ("file_size", "address_space", "stack", "core"):
                self._scalar(("process", "limits", name), getattr(limits, name), parse_size)

    def _environment(self, table: Any) -> None:
        self._list(("environment", "pass"), table.passed, self._variable)
        if table.set is UNSET:
            return
        for name, value in table.set.items():
            path = ("environment", "set", name)
            if not _VARIABLE.match(name) and not (self._tier_file and name == "*"):
                self._error(path, f"{dotted(path)}: a variable's name has letters, digits and underscores")
            elif "\0" in value:
                self._error(path, f"{dotted(path)} holds a NUL, which no variable can")
            else:
                self._variables[name] = (value, self._position(path))

    def _list(self, key: Key, values: list[Any] | UnsetType, read: Callable[[Any], Any]) -> None:
        if values is UNSET:
            return
        items: dict[Any, Position] = {}
        for index, value in enumerate(values):
            path: Path = (*key, index)
            try:
                items.setdefault(read(value), self._position(path))
            except ValueError as error:
                self._error(path, _refused(path, value, error))
        self._keys[key] = self._position(key)
        self._lists[key] = items

    def _scalar(self, key: Key, value: Any, read: Callable[[Any], Any] = lambda value: value) -> None:
        if value is UNSET:
            return
        try:
            self._scalars[key] = (read(value), self._position(key))
        except ValueError as error:
            self._error(key, _refused(key, value, error))

    def _position(self, path: Path) -> Position:
        return self._source.position((*self._base, *path))

    def _error(self, path: Path, message: str) -> None:
        self.errors.append(self._source.error((*self._base, *path), message))

    def _path(self, text: str) -> str:
        return granted_paths.written_path(text, self._folder)

    def _port(self, value: int | str) -> int:
        return destinations.parse_port(str(value), self._tier_file)

    def _rule(self, value: str | RuleTable) -> Rule:
        if isinstance(value, str):
            rule = destinations.parse_rule(value, DEFAULT_PORTS, tier_file=self._tier_file)
            return destinations.check_allowed(rule)
        ports = DEFAULT_PORTS if value.ports is UNSET else tuple(self._port(port) for port in value.ports)
        if not ports:
            raise ValueError("its list of ports is empty")
        rule = Rule(
            host=destinations.canonical_host(value.host, tier_file=self._tier_file),
            ports=destinations.canonical_ports(ports),
            methods=_some("methods", value.methods, destinations.check_method),
            paths=_some("paths", value.paths, destinations.check_url_path),
            secret=None if value.secret is UNSET else destinations.check_secret(value.secret, self._tier_file),
            max_body=None if value.max_body is UNSET else parse_size(value.max_body),
            max_bytes=None if value.max_bytes is UNSET else _positive_size(value.max_bytes),
            max_requests=None if value.max_requests is UNSET else value.max_requests,
            ech=value.ech is True,
            addresses=_addresses(value.addresses),
        )
        return destinations.check_allowed(rule)

    def _denied(self, value: str) -> Rule:
        return destinations.parse_rule(value, (ANY_PORT,), tier_file=self._tier_file)

    def _variable(self, text: str) -> str:
        if self._tier_file:
            if not _VARIABLE_PATTERN.match(text):
                raise ValueError("a pattern of names has letters, digits, underscores and *")
        elif not _VARIABLE.match(text):
            raise ValueError("a variable's name has letters, digits and underscores and does not start with a digit")
        return text


def _refused(path: Path, value: Any, error: ValueError) -> str:
    shown = written(value.host if isinstance(value, RuleTable) else value)
    return f"{dotted(path)} is {shown}: {error}"


def _some(name: str, values: list[str] | UnsetType, check: Callable[[str], str]) -> tuple[str, ...]:
    """Sorted values. An empty list would mean "all" where a reader sees "none": refused."""
    if values is UNSET:
        return ()
    if not values:
        raise ValueError(f"its list of {name} is empty; leave the key out for all of them")
    return tuple(sorted({check(value) for value in values}))


def _addresses(values: list[str] | UnsetType) -> tuple[str, ...]:
    if values is UNSET:
        return ()
    if not values:
        raise ValueError("its list of addresses is empty; leave the key out for public addresses only")
    return destinations.canonical_addresses(values)


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"allowed: {', '.join(allowed)}")
        return text

    return read


def _pattern(text: str) -> str:
    if not _TOPIC.match(text):
        raise ValueError("a pattern has letters, digits, and the signs _ . : / - and *")
    return text


def _syscall(text: str) -> str:
    syscall_groups.calls(text.removeprefix("~"))
    return text


def _positive_size(value: int | str) -> int:
    size = parse_size(value)
    if size == 0:
        raise ValueError("it has to be above 0")
    return size
