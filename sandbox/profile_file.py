"""Profile files: where a name is looked for, what `extends` brings in, and the check against the tier's ceiling."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING

from msgspec import UNSET

from osmoda.egress import destinations
from osmoda.host import paths
from osmoda.sandbox import answering, granted_paths, grants, schema, seccomp, tiers, toml_source, validation
from osmoda.sandbox.declaration import Reader
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.merge import Declaration, extend
from osmoda.sandbox.syscall_groups import calls, expand
from osmoda.sandbox.toml_source import Path, Position, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from osmoda.sandbox.profile import Profile

MOST_BYTES = 8 << 20
"""The largest profile file that is read, in bytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_TIER_NAME = re.compile(r"tier([012])\Z")


def load(path_or_name: str) -> Profile:
    """See `Profile.load`."""
    named_tier = _TIER_NAME.match(path_or_name)
    path = _path(path_or_name)
    if path is None:
        path = _search(path_or_name)
        if path is None and named_tier:
            return tiers.default(int(named_tier[1]))
    if path is None:
        raise ProfileError(f"no profile has this name; looked in {', '.join(search_path())}", path_or_name)
    chain = _Chain()
    declared = chain.read(path)
    return _within_ceiling(declared, chain.description, path, tuple(chain.files.items()))


def load_text(text: str, name: str, folder: str) -> Profile:
    """A profile from text that lies in no file, such as a command's options; relative paths start from `folder`.

    `name` stands in errors and origins where a file's path would. Raises `ProfileError`.
    """
    chain = _Chain()
    declared = chain.declared(toml_source.parse(text, name), folder, (), name)
    return _within_ceiling(declared, chain.description, name, tuple(chain.files.items()))


def load_declared(own: Declaration, base: str, description: str) -> Profile:
    """A profile of what something else than a profile's file declares, such as a unit; its positions become origins.

    It extends the profile `base` (a path or a name), or nothing where that is empty. Raises `ProfileError`.
    """
    chain = _Chain()
    declared = own
    if base:
        path = find(base)
        if path is None:
            raise ProfileError(f"no profile has this name; looked in {', '.join(search_path())}", base)
        declared = extend(own, (chain.read(path),))
    return _within_ceiling(declared, chain.description or description, "", tuple(chain.files.items()))


def search_path() -> tuple[str, ...]:
    """The folders in which a profile is looked for by name, in order."""
    own = os.path.join(paths.directory("config"), "profiles")
    return tuple(dict.fromkeys((own, "/etc/osmoda/profiles", os.path.join(tiers.SHIPPED, "agents"))))


def find(path_or_name: str) -> str | None:
    """The file that `load` reads, which need not be there; None for a name that no file has."""
    return _path(path_or_name) or _search(path_or_name)


def _path(text: str) -> str | None:
    """The absolute path that `text` is, or None for a name."""
    return os.path.abspath(text) if "/" in text or text.endswith(".toml") else None


def _search(name: str) -> str | None:
    if not _NAME.match(name):
        return None
    candidates = (os.path.join(folder, f"{name}.toml") for folder in search_path())
    return next((path for path in candidates if os.path.lexists(path)), None)


class _Chain:
    """One profile file and all that it extends. `files` maps each path to its SHA-256."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.description = ""
        self._done: dict[str, Declaration] = {}

    def read(self, path: str, extending: tuple[str, ...] = ()) -> Declaration:
        """What `path` declares together with its bases; `extending` are those on the way to it."""
        if path in self._done:
            return self._done[path]
        answering.require((path,))
        content = _content(path)
        self.files[path] = hashlib.sha256(content).hexdigest()
        source = toml_source.parse(_text(content, path), path)
        self._done[path] = self.declared(source, os.path.dirname(path), extending, path)
        return self._done[path]

    def declared(self, source: Source, folder: str, extending: tuple[str, ...], path: str) -> Declaration:
        """What the text of `source` declares together with its bases; it is known as `path` and lies in `folder`."""
        table = validation.validate(source, schema.ProfileFile)
        reader = Reader(source, (), folder)
        own = reader.read(table)
        validation.raise_all(reader.errors)
        if not extending:
            self.description = table.description
        names = [] if table.extends is UNSET else [table.extends] if isinstance(table.extends, str) else table.extends
        bases = []
        for index, name in enumerate(names):
            at: Path = ("extends",) if isinstance(table.extends, str) else ("extends", index)
            base = self._base(name, source, at, folder)
            if base in (*extending, path):
                circle = (*extending, path)[(*extending, path).index(base) :]
                raise source.error(at, f"extends leads in a circle: {' extends '.join((*circle, base))}")
            bases.append(self.read(base, (*extending, path)))
        return extend(own, bases)

    def _base(self, name: str, source: Source, at: Path, folder: str) -> str:
        if "/" in name or name.endswith(".toml"):
            path = os.path.abspath(os.path.join(folder, name))
            answering.require((path,))
            if os.path.lexists(path):
                return path
            raise source.error(at, f"extends {validation.written(name)}, but there is no {path}")
        found = _search(name)
        if found is not None:
            return found
        hint = f"; for the tier write tier = {name[4:]}" if _TIER_NAME.match(name) else ""
        folders = ", ".join(search_path())
        raise source.error(at, f"extends {validation.written(name)}, but no profile has this name in {folders}{hint}")


_replaced: dict[str, bytes] = {}


@contextlib.contextmanager
def replaced(path: str, content: bytes) -> Iterator[None]:
    """Read the profile file `path` (without links) as if it held `content`: to judge an edit before it is made."""
    _replaced[path] = content
    try:
        yield
    finally:
        del _replaced[path]


def _content(path: str) -> bytes:
    """The bytes of a profile; a pipe or a device is refused without waiting for it."""
    if _replaced:
        content = _replaced.get(os.path.realpath(path))
        if content is not None:
            return content
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProfileError(f"the profile cannot be read: {reason}", path) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ProfileError("a profile is a regular file, and this is not", path)
    try:
        with open(fd, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"the profile cannot be read: {error.strerror}", path) from None
    if len(content) > MOST_BYTES:
        raise ProfileError(f"a profile has at most {MOST_BYTES} bytes", path)
    return content


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode()) + 1
        raise ProfileError("the text is not UTF-8", path, before.count(b"\n") + 1, column) from None


def _within_ceiling(declared: Declaration, description: str, file: str, files: tuple[tuple[str, str], ...]) -> Profile:
    """The complete profile. Raises `ProfileError` for what its tier does not allow."""
    tier = declared.scalars["tier",][0] if ("tier",) in declared.scalars else 2
    profile = tiers.complete(declared, tier, description=description, file=file, files=files)
    positions = tiers.positions_of(declared, profile)
    _raise_found(_unenforced(declared) if tier == 0 else _forbidden(profile, declared), positions, file)
    _raise_found(_above(profile), positions, file)
    return profile


type _Finding = tuple[Path, str]


def _raise_found(found: Iterator[_Finding], positions: Mapping[Path, Position], file: str) -> None:
    errors: dict[Path, ProfileError] = {}
    for path, message in found:
        place = positions.get(path, Position(file, 1, 1))
        errors.setdefault(path, ProfileError(message, place.file, place.line, place.column))
    validation.raise_all(list(errors.values()))


def _unenforced(declared: Declaration) -> Iterator[_Finding]:
    """Tier 0 runs without a sandbox: what only a sandbox enforces cannot be declared there."""
    for key in (*declared.keys, *declared.scalars):
        if key[0] in ("filesystem", "network") or key == ("process", "syscalls"):
            yield (
                key,
                f"{validation.dotted(key)} would not be enforced: tier 0 is unrestricted; use tier 1 or 2",
            )


def _forbidden(profile: Profile, declared: Declaration) -> Iterator[_Finding]:
    yield from _never_granted(profile)
    for index, reason in destinations.peer_conflicts(profile.network.connect, profile.network.serve):
        yield ("network", "connect", index), f"network.connect: {reason}"
    yield from _calls_beyond(profile, declared)


def _never_granted(profile: Profile) -> Iterator[_Finding]:
    never = tiers.ceiling(profile.tier).filesystem.deny
    for name, trees in (("read", profile.filesystem.read), ("write", profile.filesystem.write)):
        for index, path in enumerate(trees):
            reason = granted_paths.refusal(path, write=name == "write", never=never)
            if reason is not None:
                yield ("filesystem", name, index), f"filesystem.{name}: {reason}"


def _above(profile: Profile) -> Iterator[_Finding]:
    for item in grants.excess(profile, tiers.ceiling(profile.tier)):
        yield (
            item.path,
            f"{item.kind} grants {item.what}, above the ceiling of tier {profile.tier}; allowed: {item.allowed}",
        )


def _calls_beyond(profile: Profile, declared: Declaration) -> Iterator[_Finding]:
    """Entries above the ceiling.

    A group loses what the tier takes away with `~`; a call asked for by name is not lost silently, and neither is a
    group that holds more than the ceiling's own groups.
    """
    tier, key = profile.tier, ("process", "syscalls")
    ceiling = tiers.ceiling(tier).process.syscalls
    within = expand([entry for entry in ceiling if not entry.startswith("~")])
    removed: Mapping[str, str] = {
        call: entry for entry in ceiling if entry.startswith("~") for call in calls(entry[1:])
    }
    for entry in declared.lists.get(key, {}):
        path = (*key, profile.process.syscalls.index(entry))
        try:
            seccomp.allowed((entry,), tier=tier)
        except ValueError as error:
            yield path, f"process.syscalls: {error}"
            continue
        if entry.startswith("~"):
            continue
        beyond = calls(entry) - within
        if beyond:
            what = entry if beyond == {entry} else f"{entry} ({grants.few(beyond)})"
            allowed = ", ".join(ceiling)
            yield path, f"process.syscalls grants {what}, above the ceiling of tier {tier}; allowed: {allowed}"
        elif calls(entry) <= removed.keys():
            taken = ", ".join(sorted({removed[call] for call in calls(entry)}))
            yield path, f"process.syscalls grants {entry}, which tier {tier} takes away from every profile ({taken})"
