"""A request compiled: the profile it names, with what its options add, and what the result depends on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import tomlkit

from osmoda.host import features
from osmoda.sandbox import answering, cache, granted_paths, profile_file, system_view
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.cache import Witnesses
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request


def profile_of(request: Request, directory: str) -> Profile:
    """The profile that `request`, made in `directory`, asks for; its options are a profile that extends the named one.

    Raises ProfileError.
    """
    declared = _declared(request)
    base = request.profile
    if "/" in base or base.endswith(".toml"):
        base = os.path.join(directory, base)
    if not declared:
        return Profile.load(base) if base else Profile.default(2)
    if not base and declared.keys() <= {"schema", "tier"}:
        return Profile.default(request.tier)
    if base:
        declared["extends"] = base
    return profile_file.load_text(tomlkit.dumps(declared), "command line", directory)


def of_request(request: Request, directory: str) -> tuple[Plan, Witnesses]:
    """The plan of `request`, and the witnesses under which it may be kept.

    Raises ProfileError or CompileError, and LaunchError where a file system does not answer.
    """
    profile = profile_of(request, directory)
    return of_profile(profile, _absent(request, profile))


def of_profile(profile: Profile, looked_for: Sequence[str] = ()) -> tuple[Plan, Witnesses]:
    """The plan of `profile`, and the witnesses under which it may be kept: also that `looked_for` are not there.

    Raises CompileError, and LaunchError where a file system does not answer.
    """
    files = profile.filesystem
    declared = (*files.read, *files.write, *files.deny)
    files_read = tuple((path, digest) for path, digest in profile.files if os.path.isabs(path))
    answering.require(declared)
    try:
        # Before the compilation: what changes while it goes on must show as a change.
        same = tuple((path, _real(path)) for path in declared if os.path.lexists(path))
        # What is denied or hidden and not there may come later, as a link to something that is there for instance.
        hidden = tuple(granted_paths.secret_places()) if files.read else ()
        absent = tuple(path for path in (*declared, *hidden) if not os.path.lexists(path))
        plan = compile_profile(profile, features.probe())
    except OSError as error:
        # A name that was a link when it was asked about and none when it was read, for instance.
        raise CompileError(f"{error.filename} has changed while the profile was compiled: {error.strerror}") from None
    return plan, cache.witness(files_read, (*looked_for, *absent), same, system_view.copied())


def _real(path: str) -> str:
    """Where `path` leads; itself where that may not be asked, as with a link of /proc: the compilation says why."""
    try:
        return os.path.realpath(path)
    except PermissionError:
        return path


def _declared(request: Request) -> dict[str, object]:
    """The options of `request` in the shape of a profile file; empty when there are none."""
    declared: dict[str, object] = {}
    filesystem: dict[str, object] = {}
    if request.workspace_mode:
        filesystem["workspace"] = request.workspace_mode
    for kind, paths in (("read", request.read), ("write", request.write)):
        if paths:
            filesystem[kind] = list(paths)
    network = {kind: list(rules) for kind, rules in (("allow", request.allow), ("deny", request.deny)) if rules}
    environment: dict[str, object] = {}
    if request.passed:
        environment["pass"] = list(request.passed)
    if request.set:
        environment["set"] = {name: "" for name, _ in request.set}
    if filesystem:
        declared["filesystem"] = filesystem
    if network:
        declared["network"] = network
    if environment:
        declared["environment"] = environment
    if request.tier >= 0:
        declared["tier"] = request.tier
    return {"schema": 1, **declared} if declared else {}


def _absent(request: Request, profile: Profile) -> tuple[str, ...]:
    """Where a profile of the requested name would have been found first."""
    name = request.profile
    if not name or "/" in name or name.endswith(".toml"):
        return ()
    found = profile.files[0][0] if profile.files else ""
    absent = []
    for folder in profile_file.search_path():
        path = os.path.join(folder, f"{name}.toml")
        if path == found:
            break
        absent.append(path)
    return tuple(absent)
