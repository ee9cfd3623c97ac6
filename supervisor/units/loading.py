"""Units by their names: found, read, checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import files, reading, specifiers, values
from osmoda.supervisor.units.unit import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.units.files import Found
    from osmoda.supervisor.units.specifiers import Host, Name
    from osmoda.supervisor.units.unit import Dependencies, Install, SocketUnit, Unit


class Loader:
    """Loads units from a search path (the usual one when none is given), whose folders it lists once.

    After a change on disk make another Loader: it is what a daemon's reload is.
    """

    def __init__(self, search: Sequence[str] = (), host: Host | None = None) -> None:
        self.search: tuple[str, ...] = tuple(search) or files.search_path()
        self.host = host or specifiers.host_here()
        self._files = files.UnitFiles(self.search)

    def names(self, suffix: str = ".service") -> list[str]:
        """Units of a kind that have a file, sorted; templates among them, masked ones not."""
        return self._files.names(suffix)

    def load(self, name: str) -> Unit:
        """The service of that name; ".service" may be left out. Its own name is another when `name` is an alias.

        Raises NoSuchUnit, Masked (both of `files`), UnitError.
        """
        found, texts = self._texts(name, ".service")
        unit = reading.service(found.name, texts, self.host)
        return dataclasses.replace(unit, dependencies=self._with_links(unit.dependencies, unit.origins, found))

    def load_socket(self, name: str) -> SocketUnit:
        """The socket unit of that name; ".socket" may be left out. Raises as `load` does."""
        found, texts = self._texts(name, ".socket")
        unit = reading.socket(found.name, texts, self.host)
        return dataclasses.replace(unit, dependencies=self._with_links(unit.dependencies, unit.origins, found))

    def installation(self, name: str) -> tuple[str, str, Install, dict[str, Origin]]:
        """What enabling a service or a socket is about: its own name, its file, [Install], and where that stands.

        `name` may be a template. Raises as `load` does.
        """
        parsed = _parsed(name, ".service")
        found = self._files.find(parsed)
        texts = self._read(found)
        read = reading.socket if parsed.suffix == ".socket" else reading.service
        if parsed.suffix not in (".service", ".socket"):
            raise UnitError(f"{parsed.full} is neither a service nor a socket", None)
        unit = read(found.name, texts, self.host)
        return unit.name, found.file, unit.install, dict(unit.origins)

    def _texts(self, name: str, suffix: str) -> tuple[Found, list[reading.Text]]:
        parsed = _parsed(name, suffix)
        if parsed.suffix != suffix:
            raise UnitError(f"{parsed.full} is no unit that ends in {suffix}", None)
        if parsed.instance == "":
            raise UnitError(f"{parsed.full} is a template; a unit of it has a name between '@' and '{suffix}'", None)
        found = self._files.find(parsed)
        return found, self._read(found)

    def _read(self, found: Found) -> list[reading.Text]:
        paths = [found.file, *self._files.drop_ins(found)]
        return [(path, files.read(path)) for path in paths]

    def _with_links(self, written: Dependencies, origins: object, found: Found) -> Dependencies:
        """The dependencies that links in `NAME.wants` and `NAME.requires` add."""
        assert isinstance(origins, dict)
        added = {}
        for kind, key in (("wants", "wants"), ("requires", "requires")):
            names = set(getattr(written, key))
            for name, path in self._files.linked(found, kind):
                names.add(name)
                origins.setdefault(f"Unit.{kind.title()}={name}", Origin(path, 1))
            added[key] = tuple(sorted(names))
        return dataclasses.replace(written, **added)


def _parsed(name: str, suffix: str) -> Name:
    """A name as a person gives it. Raises UnitError."""
    try:
        return values.unit_name(name if name.endswith(values.SUFFIXES) else name + suffix)
    except ValueError as error:
        raise UnitError(f"{name[:80]!a} {error}", None) from None
