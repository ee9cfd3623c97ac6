"""Generations on disk.

    switch/lock                              held by whoever drives switches
    switch/.scratch-*                        what is read before it becomes a generation
    switch/records/                          see `record`
    switch/agents/NAME/current               a link to generations/N: the one rename(2) that switches
    switch/agents/NAME/place                 the path at which the code is found; see `place`
    switch/agents/NAME/generations/N/
        unit/NAME.service, unit/NAME.service.d/     the unit; a drop-in names the profile below
        profile.toml                                the profile, where there is one
        code/                                       the code
        data/                                       the data as this generation left it, where a snapshot was asked for
        manifest                                    SHA-256 of every file; its own is the generation's seal

A generation is complete or not there: it is made under another name, synced, and renamed. Nobody may write to its
files; root may, and what it has changed shows before the generation is activated. No profile may grant a write below
osmoda's state directory, so no agent can change any of this.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host import paths
from osmoda.supervisor.switch import tree
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]*\Z")
_PARTS = ("unit", "profile.toml", "code")
DROP_IN = "90-osmoda-generation.conf"
_SCRATCH = ".scratch-"


@dataclass(frozen=True, slots=True)
class Content:
    """What a generation is made from: bytes of the unit's files by their path in `unit/`, of the profile, and a folder.

    `profile` is None for a unit that names none, `code` None for an agent without code of its own; `place` is where the
    agent finds the code. `note` is for people.
    """

    unit: Mapping[str, bytes]
    profile: bytes | None
    code: str | None
    place: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """One that is complete; `seal` is the SHA-256 of its manifest.

    `made` is in seconds since the epoch, `size` in bytes.
    """

    agent: str
    number: int
    made: float
    size: int
    seal: str
    place: str
    note: str
    directory: str
    entries: Mapping[str, tree.Entry]

    @property
    def code(self) -> str | None:
        """Its code's folder, None when it has none."""
        return os.path.join(self.directory, "code") if "code" in self.entries else None

    @property
    def profile(self) -> str | None:
        """Its profile's file, None when it has none."""
        return os.path.join(self.directory, "profile.toml") if "profile.toml" in self.entries else None

    @property
    def unit(self) -> str:
        """The folder with its unit's files."""
        return os.path.join(self.directory, "unit")


def check_name(name: str) -> str:
    """The name of an agent, without the suffix of its unit. Raises SwitchError."""
    name = name.removesuffix(".service")
    if not _NAME.match(name) or len(name) > 200:
        raise SwitchError(f"{name!r} is not the name of a unit")
    return name


class Store:
    """The generations below the folder `directory`, by default that of the state directory.

    Making one checks that the folder is this user's alone. Raises SwitchError, OSError.
    """

    def __init__(self, directory: str | None = None) -> None:
        try:
            self.directory = directory or paths.own_directory("state", "switch")
        except paths.UntrustedDirectory as error:
            raise SwitchError(str(error)) from None
        self.records = os.path.join(self.directory, "records")
        for path in (self.directory, self.records, os.path.join(self.directory, "agents")):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one that drives switches. Raises SwitchError when another process is."""
        fd = os.open(
            os.path.join(self.directory, "lock"), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SwitchError(f"another process drives the switches of {self.directory}") from None
            yield
        finally:
            os.close(fd)

    def _agent(self, name: str) -> str:
        return os.path.join(self.directory, "agents", name)

    def _generations(self, name: str) -> str:
        return os.path.join(self._agent(name), "generations")

    def agents(self) -> list[str]:
        """The names of those that have generations."""
        return sorted(os.listdir(os.path.join(self.directory, "agents")))

    def numbers(self, name: str) -> list[int]:
        """The generations of an agent, in order."""
        try:
            return sorted(int(entry) for entry in os.listdir(self._generations(name)) if entry.isdigit())
        except FileNotFoundError:
            return []

    def current(self, name: str) -> int | None:
        """The generation that is the current one; None for none."""
        try:
            return int(os.path.basename(os.readlink(os.path.join(self._agent(name), "current"))))
        except (FileNotFoundError, ValueError):
            return None

    def current_link(self, name: str) -> str:
        """The path through which the current generation is found."""
        return os.path.join(self._agent(name), "current")

    def unit_directories(self) -> list[str]:
        """Where units are looked for before all other places: those of the current generations."""
        return [os.path.join(self.current_link(name), "unit") for name in self.agents() if self.current(name)]

    def data(self, name: str, number: int) -> str:
        """Where the snapshot of a generation's data lies."""
        return os.path.join(self._generations(name), str(number), "data")

    # --- making ---

    def stage(self, name: str, content: Content, now: float, bounds: tree.Bounds | None = None) -> Generation:
        """Make the next generation of an agent, complete and on disk. Raises SwitchError, and leaves nothing behind."""
        bounds = bounds or tree.Bounds()
        generations = self._generations(name)
        for folder in (self._agent(name), generations):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        number = max(self.numbers(name), default=0) + 1
        staging, final = os.path.join(generations, f".staging-{number}"), os.path.join(generations, str(number))
        try:
            tree.remove(staging)
            if content.code is not None:
                tree.require_room(self.directory, tree.measure(content.code, bounds), content.code)
            os.mkdir(staging, 0o700)
            manifest = self._fill(staging, final, name, number, content, now, bounds)
            os.rename(staging, final)
            tree.sync_folder(generations)
        except OSError as error:
            raise SwitchError(f"no generation {number} of {name} was made: {_words(error)}") from None
        finally:
            with contextlib.suppress(OSError):  # one that is gone, or is removed when the next one is made
                tree.remove(staging)
        return _generation(name, number, final, manifest)

    def _fill(
        self, staging: str, final: str, name: str, number: int, content: Content, now: float, bounds: tree.Bounds
    ) -> bytes:
        files = {f"unit/{path}": text for path, text in content.unit.items()}
        if content.profile is not None:
            files["profile.toml"] = content.profile
            # The generation's own path, not the link's: a unit of one never names the profile of another.
            line = f"[X-Osmoda]\nProfile={os.path.join(final, 'profile.toml').replace('%', '%%')}\n"
            files[f"unit/{name}.service.d/{DROP_IN}"] = line.encode()
        for path, text in files.items():
            os.makedirs(os.path.dirname(os.path.join(staging, path)), 0o700, exist_ok=True)
            _write(os.path.join(staging, path), text)
        for folder, _, _ in os.walk(os.path.join(staging, "unit"), topdown=False):
            os.chmod(folder, 0o500)
            tree.sync_folder(folder)
        entries = tree.describe(staging)
        if content.code is not None:
            code = tree.copy(content.code, os.path.join(staging, "code"), bounds, sealed=True)
            mode = os.lstat(os.path.join(staging, "code")).st_mode & 0o7777
            entries |= {"code": ("d", mode, 0, ""), **{f"code/{path}": entry for path, entry in code.items()}}
        values = {
            "schema": 1,
            "agent": name,
            "generation": number,
            "made": now,
            "place": content.place,
            "note": content.note,
            "entries": entries,
        }
        manifest = json.dumps(values, separators=(",", ":"), sort_keys=True).encode()
        _write(os.path.join(staging, "manifest"), manifest)
        tree.sync_folder(staging)
        return manifest

    # --- reading ---

    def generation(self, name: str, number: int) -> Generation:
        """One that is complete. Raises SwitchError."""
        directory = os.path.join(self._generations(name), str(number))
        try:
            with open(os.path.join(directory, "manifest"), "rb") as file:
                return _generation(name, number, directory, file.read())
        except FileNotFoundError:
            raise SwitchError(f"{name} has no generation {number}; `osmoda-watch switch list` shows them") from None
        except OSError as error:
            raise SwitchError(f"generation {number} of {name} cannot be read: {_words(error)}") from None

    def verify(self, name: str, number: int, seal: str) -> None:
        """Compare a generation with its manifest, and that with `seal`. Raises SwitchError, naming what has changed."""
        generation = self.generation(name, number)
        changed = "its manifest has another content" if generation.seal != seal else ""
        if not changed:
            try:
                found = {
                    path: entry
                    for path, entry in tree.describe(generation.directory).items()
                    if path.partition("/")[0] not in ("data", "data.partial", "manifest")
                }
            except OSError as error:
                raise SwitchError(f"generation {number} of {name} cannot be read: {_words(error)}") from None
            changed = tree.difference(generation.entries, found)
        if changed:
            raise SwitchError(
                f"generation {number} of {name} is not what it was when it was made, and is not activated: {changed}"
            )

    # --- switching ---

    def flip(self, name: str, number: int | None) -> None:
        """Make a generation the current one, in one step; None: there is none. Raises OSError."""
        link = self.current_link(name)
        if number is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
        elif self.current(name) != number:
            replace_link(f"generations/{number}", link)
        tree.sync_folder(self._agent(name))

    # --- keeping ---

    def prune(self, name: str, keep: int, keep_seconds: float, needed: Collection[int], now: float) -> list[int]:
        """Remove the generations beyond the newest `keep` that are older than `keep_seconds`; their numbers.

        The current one and those `needed` stay. Raises OSError.
        """
        numbers = self.numbers(name)
        removed = []
        for number in numbers[: -keep or None]:
            if number in needed or number == self.current(name):
                continue
            with contextlib.suppress(SwitchError):  # one whose manifest cannot be read is as old as can be
                if now - self.generation(name, number).made < keep_seconds:
                    continue
            gone = os.path.join(self._generations(name), f".removed-{number}")
            tree.remove(gone)
            os.rename(os.path.join(self._generations(name), str(number)), gone)
            tree.remove(gone)
            removed.append(number)
        return removed

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """A folder for files that are only read once; `clean` removes one that a killed process has left."""
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.directory) as folder:
            yield folder

    def clean(self) -> None:
        """Remove what a process that was killed has left half made or half removed. Raises OSError."""
        for entry in os.listdir(self.directory):
            if entry.startswith(_SCRATCH):
                tree.remove(os.path.join(self.directory, entry))
        for entry in os.listdir(self.records):
            if entry.endswith(".new"):
                os.unlink(os.path.join(self.records, entry))
        for name in self.agents():
            generations = self._generations(name)
            if not os.path.isdir(generations):
                continue
            for entry in os.listdir(generations):
                unfinished = entry if entry.startswith(".") else f"{entry}/data.partial"
                tree.remove(os.path.join(generations, unfinished))


def replace_link(target: str, link: str) -> None:
    """Make `link` a symbolic link to `target`, whatever link it was, in one step (rename(2))."""
    temporary = f"{link}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, link)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)


def _words(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _generation(name: str, number: int, directory: str, manifest: bytes) -> Generation:
    try:
        values: dict[str, Any] = json.loads(manifest)
        entries = {path: (kind, mode, size, text) for path, (kind, mode, size, text) in values["entries"].items()}
        return Generation(
            agent=name,
            number=number,
            made=float(values["made"]),
            size=sum(size for _, _, size, _ in entries.values()),
            seal=hashlib.sha256(manifest).hexdigest(),
            place=values["place"],
            note=values["note"],
            directory=directory,
            entries=entries,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SwitchError(f"the manifest of generation {number} of {name} cannot be read") from None
