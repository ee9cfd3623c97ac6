"""`enable` and `disable`: the links that [Install] asks for, in a folder of units (systemctl(1)).

A link is made beside its place and renamed into it; when one cannot be made, those made before it are taken back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import SupervisorError, UnitError
from osmoda.supervisor.units import values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.supervisor.units.loading import Loader
    from osmoda.supervisor.units.unit import Install, Origin

MOST_ALSO = 64  # units that one may enable by Also=, and these by theirs
_KINDS = (".wants", ".requires")


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link and the unit's file that it leads to."""

    path: str
    target: str


def links(loader: Loader, name: str, folder: str) -> list[Link]:
    """The links that enabling a unit, and those of its Also=, makes below `folder`. Raises UnitError."""
    found: dict[str, Link] = {}
    waiting, seen = [name], set[str]()
    while waiting:
        one = waiting.pop(0)
        own, file, install, origins = loader.installation(one)
        if own in seen:
            continue
        seen.add(own)
        if len(seen) > MOST_ALSO:
            raise UnitError(f"Also= leads to more than {MOST_ALSO} units", origins.get("Install.Also"))
        for link in _links(own, file, install, origins, folder):
            found[link.path] = link
        waiting += install.also
    if not found:
        raise UnitError(f"{name} has nothing in [Install] that enabling it could do", None)
    return list(found.values())


def _links(name: str, file: str, install: Install, origins: dict[str, Origin], folder: str) -> Iterator[Link]:
    own = values.unit_name(name)
    linked = name
    if own.instance == "" and (install.wanted_by or install.required_by):
        if not install.default_instance:
            raise UnitError(
                f"{name} is a template without DefaultInstance=: enable an instance of it",
                origins.get("Install.WantedBy") or origins.get("Install.RequiredBy"),
            )
        linked = f"{own.prefix}@{install.default_instance}{own.suffix}"
    for kind, others in ((".wants", install.wanted_by), (".requires", install.required_by)):
        for other in others:
            yield Link(os.path.join(folder, other + kind, linked), file)
    for alias in install.alias:
        also = values.unit_name(alias)
        if also.suffix != own.suffix or (also.instance is None) != (own.instance is None):
            raise UnitError(f"Alias={alias} is a unit of another kind than {name}", origins.get("Install.Alias"))
        if alias != name:
            yield Link(os.path.join(folder, alias), file)


def enable(loader: Loader, name: str, folder: str = "") -> list[Link]:
    """Make the links of a unit, in the first folder of the search path when none is given: those that were not there.

    Raises UnitError, SupervisorError.
    """
    made: list[Link] = []
    wanted = [link for link in links(loader, name, folder or loader.search[0]) if not _is_there(link)]
    try:
        for link in wanted:
            _make(link)
            made.append(link)
    except OSError as error:
        for link in made:
            with contextlib.suppress(OSError):  # the first failure is the one to be told
                os.unlink(link.path)
        raise SupervisorError(f"{error.filename} cannot be made: {error.strerror}") from None
    return made


def disable(loader: Loader, name: str, folder: str = "") -> list[Link]:
    """Remove every link to a unit below a folder, the first of the search path when none is given: those removed.

    Raises UnitError, SupervisorError.
    """
    folder = folder or loader.search[0]
    own, file, install, _ = loader.installation(name)
    removed = []
    for link in _found(own, file, folder):
        try:
            os.unlink(link.path)
        except OSError as error:
            raise SupervisorError(f"{link.path} cannot be removed: {error.strerror}") from None
        removed.append(link)
        if os.path.dirname(link.path) != folder:
            with contextlib.suppress(OSError):  # other units are still in it
                os.rmdir(os.path.dirname(link.path))
    for other in install.also:
        if other != own and any(True for _ in _found(other, "", folder)):
            removed += disable(loader, other, folder)
    return removed


def is_enabled(loader: Loader, name: str, folder: str = "") -> bool:
    """Whether a link of an enabled unit is there. Raises UnitError."""
    folder = folder or loader.search[0]
    own, file, _, _ = loader.installation(name)
    return any(os.path.dirname(link.path) != folder for link in _found(own, file, folder))


def _found(name: str, file: str, folder: str) -> Iterator[Link]:
    """Links to a unit: called as it is in a folder of dependencies, or leading to its file under another name."""
    own = values.unit_name(name)
    for entry in _entries(folder):
        if entry.is_symlink():
            if entry.name != name and file and own.instance in (None, "") and _leads(entry.path, file):
                yield Link(entry.path, file)
        elif entry.name.endswith(_KINDS) and entry.is_dir():
            for link in _entries(entry.path):
                instance = own.instance == "" and link.name.startswith(f"{own.prefix}@")
                if link.is_symlink() and (link.name == name or (instance and link.name.endswith(own.suffix))):
                    yield Link(link.path, file)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SupervisorError(f"{folder} cannot be listed: {error.strerror}") from None


def _leads(link: str, file: str) -> bool:
    return os.path.realpath(link) == os.path.realpath(file)


def _is_there(link: Link) -> bool:
    """Whether the link stands already. Raises SupervisorError where something else stands in its place."""
    if not os.path.lexists(link.path):
        return False
    if os.path.islink(link.path) and _leads(link.path, link.target):
        return True
    raise SupervisorError(f"{link.path} is there already, and does not lead to {link.target}")


def _make(link: Link) -> None:
    folder = os.path.dirname(link.path)
    os.makedirs(folder, 0o755, exist_ok=True)
    new = os.path.join(folder, f".{os.path.basename(link.path)[:200]}.{secrets.token_hex(4)}")
    os.symlink(link.target, new)
    try:
        os.rename(new, link.path)
    except OSError:
        os.unlink(new)
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
