"""Where the files of units lie: the search path, what a name leads to in it, drop-ins (systemd.unit(5)).

A folder earlier in the path wins. A file that others could write is not read: who may write a unit decides what runs.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import values
from osmoda.supervisor.units.syntax import LARGEST_FILE
from osmoda.supervisor.units.unit import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from osmoda.supervisor.units.specifiers import Name

_SYSTEM = (
    *("/etc/osmoda/units", "/etc/systemd/system", "/run/osmoda/units", "/run/systemd/system"),
    *("/usr/local/lib/systemd/system", "/usr/lib/systemd/system"),
)
GENERATED = "zzz-osmoda.conf"
"""The drop-in that has systemd run a unit's commands in their sandbox: for systemd, not for whoever reads the unit."""
MOST_LINKS = 8  # aliases of aliases, as in systemd


def search_path() -> tuple[str, ...]:
    """Where units are looked for: the system's folders for root, otherwise the user's and those for all users."""
    if os.geteuid() == 0:
        return _SYSTEM
    configuration = paths.environment("XDG_CONFIG_HOME") or f"{paths.home()}/.config"
    runtime = paths.environment("XDG_RUNTIME_DIR")
    data = paths.environment("XDG_DATA_HOME") or f"{paths.home()}/.local/share"
    return (
        f"{paths.directory('config')}/units",
        f"{configuration}/systemd/user",
        "/etc/systemd/user",
        *([f"{runtime}/systemd/user"] if runtime else []),
        "/run/systemd/user",
        f"{data}/systemd/user",
        "/usr/local/lib/systemd/user",
        "/usr/lib/systemd/user",
    )


def systemd_path() -> tuple[str, ...]:
    """Where systemd itself looks for units (systemd.unit(5)), and osmoda when it drives systemd; both in this order."""
    if os.geteuid() == 0:
        return (
            *("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient"),
            *("/run/systemd/generator.early", "/etc/systemd/system", "/etc/systemd/system.attached"),
            *("/run/systemd/system", "/run/systemd/system.attached", "/run/systemd/generator"),
            *("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/generator.late"),
        )
    return search_path()[1:]


class NoSuchUnit(UnitError):
    """There is no file of that name."""


class Masked(UnitError):
    """The unit is masked: a link to /dev/null, or an empty file, stands in its place."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a name led to: the unit's own name, its file, and the other names that lead to it."""

    name: Name
    file: str
    aliases: tuple[str, ...]


@dataclass
class UnitFiles:
    """The folders of a search path, listed once: what is added later is found by another one."""

    search: Sequence[str]
    _entries: dict[str, list[str]] = field(default_factory=dict)
    _links: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.search = tuple(os.path.abspath(folder) for folder in self.search)
        for folder in self.search:
            for entry in _scan(folder):
                self._entries.setdefault(entry.name, []).append(folder)
                if entry.is_symlink():
                    target = self._alias(folder, entry.name)
                    if target:
                        self._links.setdefault(target, set()).add(entry.name)

    def names(self, suffix: str) -> list[str]:
        """All units of a kind that have a file or are an alias, sorted; templates among them, masked ones not."""
        found = []
        for name in self._entries:
            if name.endswith(suffix) and _is_name(name):
                path = os.path.join(self._entries[name][0], name)
                if not _is_masked(path) and os.path.isfile(path):
                    found.append(name)
        return sorted(found)

    def find(self, name: Name) -> Found:
        """The file of a unit. Raises NoSuchUnit, Masked, UnitError."""
        asked = name.full
        for _ in range(MOST_LINKS):
            folder, entry = self._fragment(name, asked)
            path = os.path.join(folder, entry)
            if _is_masked(path):
                raise Masked(f"{asked} is masked by {path}", None)
            target = self._alias(folder, entry)
            if target is None:
                return Found(name, path, self._aliases(name, asked))
            following = values.unit_name(target)
            if following.suffix != name.suffix or (following.instance is None) != (name.instance is None):
                raise UnitError(f"{path} leads to {target}, a unit of another kind", None)
            if following.instance == "" and name.instance:
                following = values.unit_name(f"{following.prefix}@{name.instance}{following.suffix}")
            if following == name:  # an instance's link to its own template
                return Found(name, path, self._aliases(name, asked))
            name = following
        raise UnitError(f"{asked} leads from one link to the next, more than {MOST_LINKS} times", None)

    def drop_ins(self, found: Found) -> list[str]:
        """The files of a unit's drop-ins, in the order in which they apply.

        Of several with one name counts the first in the path, `NAME.d` before `PREFIX-.d`; those in `service.d` last.
        """
        chosen: dict[str, str] = {}
        names = [found.name.full, *found.aliases]
        folders = [f"{folder}/{one}.d" for name in names for folder in self.search for one in _specific(name)]
        folders += [f"{folder}/{found.name.suffix[1:]}.d" for folder in self.search]
        for folder in folders:
            for entry in _scan(folder):
                if entry.name.endswith(".conf") and not entry.name.startswith(".") and entry.name != GENERATED:
                    chosen.setdefault(entry.name, entry.path)
        return [chosen[name] for name in sorted(chosen) if not _is_masked(chosen[name])]

    def linked(self, found: Found, kind: str) -> list[tuple[str, str]]:
        """What `NAME.wants` or `NAME.requires` (`kind`) adds: units' names, each with the link's path."""
        links: dict[str, str] = {}
        for name in (found.name.full, found.name.template if found.name.instance else "", *found.aliases):
            for folder in self.search if name else ():
                for entry in _scan(f"{folder}/{name}.{kind}"):
                    if _is_name(entry.name):
                        links.setdefault(entry.name, entry.path)
        return sorted((name, path) for name, path in links.items() if not _is_masked(path))

    def _fragment(self, name: Name, asked: str) -> tuple[str, str]:
        for candidate in (name.full, name.template if name.instance else ""):
            if candidate in self._entries:
                return self._entries[candidate][0], candidate
        raise NoSuchUnit(f"there is no unit {asked} in {', '.join(self.search)}", None)

    def _alias(self, folder: str, name: str) -> str | None:
        """The unit that a link stands for; None for a file, a mask, and a link to a file elsewhere."""
        path = os.path.join(folder, name)
        try:
            target = os.path.join(folder, os.readlink(path))
        except OSError:
            return None
        other = os.path.basename(target)
        inside = os.path.realpath(os.path.dirname(target)) in {os.path.realpath(one) for one in self.search}
        return other if inside and other != name and _is_name(other) else None

    def _aliases(self, name: Name, asked: str) -> tuple[str, ...]:
        found = {asked, *self._links.get(name.full, ())}
        if name.instance:
            for link in self._links.get(name.template, ()):
                one = values.unit_name(link)
                if one.instance == "":
                    found.add(f"{one.prefix}@{name.instance}{one.suffix}")
        return tuple(sorted(found - {name.full}))


def _specific(name: str) -> Iterator[str]:
    """Names whose `.d` folders hold for a unit: itself, its template, its prefixes up to a dash, the longest first.

    A prefix of an instance has that instance; one of a template is no template, as in systemd.
    """
    parts = values.unit_name(name)
    yield name
    if parts.instance:
        yield from _specific(parts.template)
    head, dash, _ = parts.prefix.removesuffix("-").rpartition("-")
    if dash:
        instance = f"@{parts.instance}" if parts.instance else ""
        yield from _specific(f"{head}-{instance}{parts.suffix}")


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """A folder's entries; none where there is no such folder, or it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_name(text: str) -> bool:
    try:
        values.unit_name(text)
    except ValueError:
        return False
    return True


def _is_masked(path: str) -> bool:
    """Whether there is a link to /dev/null, or an empty file."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (stat.S_ISREG(status.st_mode) and status.st_size == 0) or (
        stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
    )


def _open(path: str, flags: int) -> int:
    """A FIFO would hold up whoever opens it to read."""
    return os.open(path, flags | os.O_NONBLOCK)


def read(path: str) -> bytes:
    """A unit's file, whose owner is root or this user, and which nobody else can write, nor any folder on its way.

    Raises UnitError.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnitError("this is no file", Origin(path, 1))
            _trust(status, path)
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UnitError(f"{path} cannot be read: {error.strerror}", None) from None
    folder = os.path.dirname(os.path.realpath(path))
    while True:
        _trust(os.lstat(folder), folder)
        if folder == "/":
            return content
        folder = os.path.dirname(folder)


def _trust(status: os.stat_result, path: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UnitError(f"{path} belongs to another user (uid {status.st_uid}), who could change what runs", None)
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not sticky:
        raise UnitError(f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})", None)
