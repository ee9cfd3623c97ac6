"""What a person asks for, to what a generation is made from: read, checked, and refused before anything is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox import profile_file
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.profile import Profile
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.switch import place
from osmoda.supervisor.switch.driver import Proposed
from osmoda.supervisor.switch.errors import SwitchError
from osmoda.supervisor.switch.store import DROP_IN, Content, check_name
from osmoda.supervisor.units import files as unit_files
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from osmoda.supervisor.switch.store import Generation, Store
    from osmoda.supervisor.units.unit import Unit

# Folders that hold more than one agent's code: a link in the place of one of these would take them all away.
_NO_PLACE = frozenset(
    ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/srv", "/sys")
) | {"/tmp", "/usr", "/var", "/var/lib"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One agent of a switch, as it is asked for.

    `unit` and `code` are paths; `profile` is one, or the name of an installed profile. What is not given (empty) stays
    as it is. `to` is a generation that is there, with which nothing else is given.
    """

    name: str
    unit: str = ""
    profile: str = ""
    code: str = ""
    to: int | None = None
    snapshot: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an agent runs from now: of its current generation, or of what is installed."""

    unit: Mapping[str, bytes]
    profile: bytes | None
    profile_file: str
    code: str | None


def proposed(asked: Asked, store: Store, search: Sequence[str]) -> Proposed:
    """What the driver is to switch to. `search` is where installed units are looked for.

    Raises SwitchError, UnitError with the line that is wrong.
    """
    name = check_name(asked.name)
    if asked.to is not None:
        return Proposed(name, asked.to, snapshot=asked.snapshot)
    current = store.current(name)
    baseline: Content | None = None
    if current is not None:
        now = _of_generation(store.generation(name, current))
    else:
        now, baseline = _installed(name, search)
    files = {f"{name}.service": _bytes(asked.unit)} if asked.unit else now.unit
    if not files:
        raise SwitchError(f"{name} has no unit yet; give the file of one (--unit)")
    code = _folder(asked.code, store) if asked.code else now.code
    # The place is part of the unit, which has to be read for it; a profile that the unit names is used the first time.
    profile, at = (now.profile, now.profile_file) if not asked.profile else _profile(asked.profile)
    unit = _read(store, name, files, None, search, asked.unit, confined=False)
    if profile is None and unit.osmoda.profile:
        profile, at = _profile(unit.osmoda.profile)
    unit = _read(store, name, files, profile, search, asked.unit, confined=True)
    _refuse_own_writes(unit, profile, at)
    content = Content(files, profile, code, _place(unit, code, asked.unit or f"{name}.service"), asked.note)
    return Proposed(name, content, baseline=baseline, snapshot=asked.snapshot)


def written(profile: str) -> Sequence[str]:
    """The paths that a profile's file grants to write. Raises SwitchError."""
    try:
        return Profile.load(profile).filesystem.write
    except SandboxError as error:
        raise SwitchError(str(error)) from None


def _of_generation(generation: Generation) -> _Parts:
    files = {}
    for folder, _, names in os.walk(generation.unit):
        for name in names:
            if name != DROP_IN:
                path = os.path.join(folder, name)
                files[os.path.relpath(path, generation.unit)] = _bytes(path)
    profile = _bytes(generation.profile) if generation.profile is not None else None
    return _Parts(files, profile, generation.profile or "", generation.code)


def _installed(name: str, search: Sequence[str]) -> tuple[_Parts, Content | None]:
    """What an agent without generations runs from, and the same as its first generation; none where it is not there."""
    try:
        unit = Loader(search).load(f"{name}.service")
    except unit_files.NoSuchUnit:
        return _Parts({}, None, "", None), None
    if unit.name != f"{name}.service":
        raise SwitchError(f"{name} is another name of {unit.name}; switch that")
    own, *drop_ins = unit.files
    files = {f"{name}.service": _bytes(own)}
    files |= {f"{name}.service.d/{os.path.basename(path)}": _bytes(path) for path in drop_ins}
    profile, at = _profile(unit.osmoda.profile) if unit.osmoda.profile else (None, "")
    directory = _directory(unit)
    code = directory if directory not in _NO_PLACE and os.path.isdir(directory) else None
    _refuse_own_writes(unit, profile, at)  # it may have to be gone back to
    parts = _Parts(files, profile, at, code)
    return parts, Content(files, profile, code, _place(unit, code, own), "as it was before the first switch")


def _directory(unit: Unit) -> str:
    """Its working directory; empty for none, and for the home of whoever runs it."""
    return os.path.normpath(unit.working_directory) if unit.working_directory.startswith("/") else ""


def _place(unit: Unit, code: str | None, shown: str) -> str:
    """Where the agent finds its code; empty for one that has none. `shown` is the unit's file for people."""
    if code is None:
        return ""
    directory = _directory(unit)
    if not directory:
        raise SwitchError(f"{shown}: the code of an agent is found in its WorkingDirectory=, and this unit names none")
    if directory in _NO_PLACE:
        raise SwitchError(
            f"{shown}: WorkingDirectory={directory} holds more than the code of one agent, so no generation can take "
            "its place"
        )
    return place.canonical(directory)


def _folder(path: str, store: Store) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise SwitchError(f"{path} is no folder; --code names one with the new code")
    if within(os.path.realpath(store.directory), real):
        raise SwitchError(f"{path} holds the generations themselves; --code names a folder with the new code alone")
    return real


def _profile(path_or_name: str) -> tuple[bytes | None, str]:
    """The text of a profile and its file. None for a tier's own, which is no file."""
    try:
        file = Profile.load(path_or_name).file
    except SandboxError as error:
        raise SwitchError(str(error)) from None
    return (_bytes(file), file) if os.path.isabs(file) else (None, "")


def _read(
    store: Store,
    name: str,
    files: Mapping[str, bytes],
    profile: bytes | None,
    search: Sequence[str],
    shown: str,
    *,
    confined: bool,
) -> Unit:
    """The unit as it will be in a generation; with `confined`, also what it is confined to can be said.

    It is read from a folder of its own, before the others of the search path, as the engine will.
    """
    with store.scratch() as folder:
        own = dict(files)
        if profile is not None:
            own[f"{name}.service.d/{DROP_IN}"] = f"[X-Osmoda]\nProfile={folder}/profile.toml\n".encode()
            _put(folder, "profile.toml", profile)
        for path, content in own.items():
            _put(folder, path, content)
        try:
            unit = Loader((folder, *search)).load(f"{name}.service")
            # The standard profile shows the working directory, which the first generation of a new agent makes.
            if confined and (unit.osmoda.profile or os.path.isdir(_directory(unit))):
                confine(unit)
        except UnitError as error:
            # The person knows the file under another name.
            known = str(error).replace(f"{folder}/{name}.service:", f"{shown or name + '.service'}:")
            raise SwitchError(known) from None
        return unit


def _put(folder: str, path: str, content: bytes) -> None:
    full = os.path.join(folder, path)
    os.makedirs(os.path.dirname(full), 0o700, exist_ok=True)
    with open(os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)


def _refuse_own_writes(unit: Unit, profile: bytes | None, at: str) -> None:
    """Raise SwitchError for a profile that means something else in a generation, or would let the agent change it."""
    if profile is None:
        return
    try:
        text = profile.decode()
        here = profile_file.load_text(text, at, os.path.dirname(at))
        moved = profile_file.load_text(text, at, "/a generation")
    except (SandboxError, UnicodeDecodeError) as error:
        raise SwitchError(f"{at} cannot be kept with a generation: {error}") from None
    if here != moved:
        raise SwitchError(
            f"{at} has paths relative to its folder, which a generation does not keep; write them in full"
        )
    directory = _directory(unit)
    if directory in ("", "/"):
        return
    where = place.canonical(directory)
    for index, path in enumerate(here.filesystem.write):
        if within(path, where) or within(where, path) or within(path, directory):
            raise SwitchError(
                f"{here.origin('filesystem', 'write', index)}: the code of a generation is not written, and {path} "
                f"would reach {where}; let the agent write to a folder outside it"
            )
    workspace = unit.osmoda.workspace or directory
    if here.filesystem.workspace != "none" and within(place.canonical(workspace), where):
        raise SwitchError(
            f"{here.origin('filesystem', 'workspace')}: the code of a generation is not written, and the workspace is "
            f'{where}; name another (Workspace= in [X-Osmoda]), or set workspace = "none"'
        )


def _bytes(path: str) -> bytes:
    """A file that a person names, or the store holds. Raises SwitchError."""
    try:
        with open(path, "rb") as file:
            content = file.read(profile_file.MOST_BYTES + 1)
    except OSError as error:
        raise SwitchError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > profile_file.MOST_BYTES:
        raise SwitchError(f"{path} has more than {profile_file.MOST_BYTES} bytes")
    return content
