"""From the files that a run used to the few folders and files that a profile would name.

Looks at the host's files, which the observed run has not changed: what is not there, the program made itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from osmoda.sandbox import advice, system_view
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.learning.seen import ENTRY, LINK, LIST, LISTED, PROBE, READ, STAT, WRITE, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from osmoda.sandbox.learning.private import PrivatePlaces
    from osmoda.sandbox.learning.seen import Seen

# From so many names in one folder on, it is the folder that is granted.
_READ_TOGETHER, _WRITTEN_TOGETHER, _OF_A_CHECKOUT = 4, 8, 8
_PACKAGES = frozenset({"site-packages", "dist-packages", "node_modules"})
_PYTHON = re.compile(r"python3\.[0-9]+t?\Z")
_CHECKOUTS = (".git", ".hg")
# Read by the C library, and by git, on every host that has them, and done without.
_HABITS = frozenset(
    f"/etc/{name}"
    for name in (
        "gai.conf",
        "gitconfig",
        "host.conf",
        "inputrc",
        "ld.so.preload",
        "locale.alias",
        "locale.conf",
    )
)
_OWN = ("/proc", "/dev", "/sys", "/run", "/boot", system_view.EMPTY_WORKSPACE, system_view.HOME)
_GENERATED = frozenset((*system_view.GENERATED, "/etc/osmoda"))


@dataclass(frozen=True, slots=True)
class NotGranted:
    """Something that the program tried or used and the proposal does not grant, and why.

    `needed`: it was used, where the program was observed; else it was refused there, too.
    """

    what: str
    why: str
    programs: tuple[str, ...] = ()
    count: int = 1
    needed: bool = False


@dataclass(slots=True)
class Files:
    """What of the host's files a profile would grant: each path with all that was done there."""

    read: dict[str, Use] = field(default_factory=dict)
    write: dict[str, Use] = field(default_factory=dict)
    deny: dict[str, str] = field(default_factory=dict)
    workspace: Use | None = None
    refused: list[NotGranted] = field(default_factory=list)


class Folding:
    """The files of one observed run, in the workspace `work` (empty for none), under a tier.

    With `loose` also what a program merely looked for, and what it reads out of habit: for a run that does not pass
    without.
    """

    def __init__(
        self, seen: Seen, private: PrivatePlaces, tier: int, work: str, argv: tuple[str, ...], *, loose: bool
    ) -> None:
        # A program that asks where it is, and was not told so, makes whole names of those it was given.
        self._asks = "getcwd" in seen.calls and not any(work in word for word in argv)
        self._seen = seen
        self._private = private
        self._tier = tier
        self._work = work
        self._loose = loose
        self._shown = (*system_view.trees(), *system_view.copied())
        self._exists = cache(os.path.lexists)
        self._refused: dict[str, NotGranted] = {}

    def fold(self) -> Files:
        """All of it."""
        uses = {os.fsdecode(path): use for path, use in self._seen.paths.items() if not self._own(os.fsdecode(path))}
        files = Files()
        files.workspace = self._workspace(uses)
        if files.workspace is not None:
            uses = {path: use for path, use in uses.items() if not within(path, self._work)}
            files.deny = {
                place: "kept from the program in the workspace"
                for place in self._private.places
                if within(place, self._work) and self._exists(place)
            }
        written = self._written(uses)
        read = self._read(uses)
        files.write = self._outermost(self._together(written, _WRITTEN_TOGETHER), ())
        files.read = self._outermost(self._together(read, _READ_TOGETHER), files.write)
        for granted in (files.read, files.write):
            for path in tuple(granted):
                granted[path] = _sum(use for one, use in uses.items() if within(one, path)) or granted[path]
        trees = (*files.read, *files.write, *([self._work] if files.workspace else []))
        files.refused = [one for path, one in self._refused.items() if not any(within(path, tree) for tree in trees)]
        return files

    # --- which uses count ---

    def _own(self, path: str) -> bool:
        """Whether every sandbox has `path`, or one of its own in its place."""
        return (
            path == "/"
            or path in _GENERATED
            or any(within(path, tree) for tree in (*self._shown, *_OWN))
            or system_view.through_link(path)
            or any(within(tree, path) for tree in self._shown)
        )

    def _workspace(self, uses: Mapping[str, Use]) -> Use | None:
        """What makes a workspace necessary: names from the current directory, and writing."""
        work = self._work
        found = [use for path, use in uses.items() if work and within(path, work) and self._exists(path)]
        inside = {id(use) for path, use in uses.items() if path != work}
        by_name = READ | STAT | LIST | LINK | LISTED
        return _sum(
            use
            for use in found
            if use.kinds & (WRITE | ENTRY)
            or (use.relative and use.kinds & LIST)
            or (id(use) in inside and (use.relative or self._loose or (self._asks and use.kinds & by_name)))
        )

    def _written(self, uses: Mapping[str, Use]) -> dict[str, Use]:
        found: dict[str, Use] = {}
        for path, use in uses.items():
            if not use.kinds & (WRITE | ENTRY):
                continue
            place = path
            if use.kinds & ENTRY:
                while not self._exists(place):
                    place = os.path.dirname(place)
            elif not self._exists(path):
                continue  # it made it itself, which counts for the folder
            if place == "/tmp" or self._own(place):
                continue  # private, and gone with the sandbox
            if self._grantable(place, use, write=True):
                found[place] = _sum(filter(None, (found.get(place), use))) or use
        return found

    def _read(self, uses: Mapping[str, Use]) -> dict[str, Use]:
        found: dict[str, Use] = {}
        for path, use in uses.items():
            if not self._exists(path) or path == "/tmp":
                continue
            place = ""
            if use.kinds & LINK or (self._loose and use.kinds & LISTED and os.fsencode(path) in self._seen.links):
                place = self._link(path)
            elif use.kinds & READ or (use.kinds & LIST and path != self._work) or self._asked_for(path, use):
                place = self._unit(path)
            elif self._loose and use.kinds & (PROBE | LIST | LISTED) and not self._private.wide(path):
                place = path
            if not place or self._own(place) or (self._habit(path) and not self._loose):
                continue
            if self._grantable(place, use, write=False):
                found[place] = _sum(filter(None, (found.get(place), use))) or use
        return found

    def _asked_for(self, path: str, use: Use) -> bool:
        """Whether a file that was only looked at was looked for by its name.

        Whoever has listed a folder looks at what was in the list, and will not miss what a profile's list has not.
        """
        folder = self._seen.paths.get(os.fsencode(os.path.dirname(path)))
        listed = folder is not None and bool(folder.kinds & LIST)
        return bool(use.kinds & STAT) and (self._loose or not listed)

    def _habit(self, path: str) -> bool:
        """Whether `path` is read out of habit, or was reached by a link of the system that leads nowhere elsewhere."""
        return path in _HABITS or any(
            os.fsdecode(target) == path and any(within(os.fsdecode(link), tree) for tree in self._shown)
            for link, target in self._seen.links.items()
        )

    def _grantable(self, path: str, use: Use, *, write: bool) -> bool:
        """Whether a profile may and should name `path`; if not, why is kept."""
        why = _unwritable(path) or self._private.holds(path)
        if why is None and os.path.isdir(path):
            why = self._private.wide(path)
        if why is None:
            changed = advice.for_path(path, self._tier, write=write)
            why = None if changed.line else changed.text
        if why is not None:
            done = "writing" if write else "listing" if use.kinds & LIST else "reading"
            self._refused[path] = NotGranted(f"{done} {path}", why, tuple(use.programs), use.count, needed=True)
        return why is None

    # --- which folder stands for a file ---

    def _unit(self, path: str) -> str:
        """The tree of packages, or the environment, that `path` is a part of; else itself."""
        for marked in (_of_packages, _of_a_library, self._of_an_environment):
            tree = _outermost_folder(path, marked)
            if tree and not self._private.wide(tree):
                return tree
        return path

    def _of_an_environment(self, folder: str) -> bool:
        return self._exists(f"{folder}/pyvenv.cfg")

    def _of_a_checkout(self, folder: str) -> bool:
        return any(self._exists(f"{folder}/{name}") for name in _CHECKOUTS)

    def _link(self, path: str) -> str:
        """What shows the link `path`: itself, where it leads on within its folder, else that folder."""
        folder = os.path.dirname(path)
        target = os.fsdecode(self._seen.links.get(os.fsencode(path), b""))
        unit = self._unit(path)
        if unit != path:
            return unit
        return path if within(target, folder) else folder

    def _together(self, found: dict[str, Use], many: int) -> dict[str, Use]:
        """Many names in one folder become the folder, from the innermost out."""
        result = dict(found)
        depth = max((path.count("/") for path in result), default=0)
        while depth > 2:
            folders: dict[str, list[str]] = {}
            for path in result:
                if path.count("/") == depth:
                    folders.setdefault(os.path.dirname(path), []).append(path)
            for folder, inside in folders.items():
                if len(inside) >= many and not self._private.wide(folder) and not self._private.holds(folder):
                    merged = _sum(result.pop(path) for path in inside)
                    result[folder] = _sum(filter(None, (merged, result.get(folder)))) or Use()
            depth -= 1
        return self._checkouts(result)

    def _checkouts(self, found: dict[str, Use]) -> dict[str, Use]:
        """Many folders and files of one checkout become the checkout."""
        trees: dict[str, list[str]] = {}
        for path in found:
            tree = _outermost_folder(path, self._of_a_checkout)
            if tree and not self._private.wide(tree):
                trees.setdefault(tree, []).append(path)
        result = dict(found)
        for tree, inside in trees.items():
            if len(inside) >= _OF_A_CHECKOUT:
                result[tree] = _sum(result.pop(path) for path in inside) or Use()
        return result

    def _outermost(self, found: dict[str, Use], wider: Iterable[str]) -> dict[str, Use]:
        trees = (*found, *wider)
        return {
            path: use
            for path, use in sorted(found.items())
            if not any(path != tree and within(path, tree) for tree in trees) and path not in wider
        }


def _outermost_folder(path: str, marked: Callable[[str], bool]) -> str:
    """The outermost folder that holds `path`, or is it, and that `marked` is true of; empty for none."""
    parts = path.split("/")
    folders = ("/".join(parts[:end]) for end in range(3, len(parts) + 1))
    return next((folder for folder in folders if marked(folder)), "")


def _of_packages(folder: str) -> bool:
    return os.path.basename(folder) in _PACKAGES


def _of_a_library(folder: str) -> bool:
    return bool(_PYTHON.match(os.path.basename(folder))) and os.path.basename(os.path.dirname(folder)) == "lib"


def _sum(uses: Iterable[Use]) -> Use | None:
    """All of `uses` as one; None for none."""
    total: Use | None = None
    for use in uses:
        if total is None:
            total = Use()
        total.kinds |= use.kinds
        total.count += use.count
        total.relative |= use.relative
        total.programs += [one for one in use.programs if one not in total.programs][: 3 - len(total.programs)]
    return total


def _unwritable(path: str) -> str | None:
    """Why a profile cannot hold the name `path`; None when it can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, which a profile cannot hold; grant a folder around it by hand"
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return "its name holds a control character, which a profile may not; grant a folder around it by hand"
    return None
