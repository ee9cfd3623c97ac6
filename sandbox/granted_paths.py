"""Which paths of the host a profile may grant, and what a declared path means.

`written_path` and `refusal` only look at text. `resolve_grant` looks at the file system, when a profile is compiled;
the launch opens its answer without following any link, so what was checked is what is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.sandbox.errors import CompileError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_LINKS = 40  # as the kernel: path_resolution(7)


def written_path(text: str, folder: str) -> str:
    """The absolute, normalised path that a profile in `folder` means by `text`. Raises `ValueError` with the reason."""
    if not text or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError("a path is not empty and holds no control character")
    if text == "~" or text.startswith("~/"):
        base, rest = paths.home(), text[2:]
    elif text.startswith("~"):
        raise ValueError("only the caller's own home is known: ~/")
    elif text.startswith("/"):
        base, rest = "/", text
    else:
        base, rest = folder, text
    if base != folder and ".." in rest.split("/"):
        raise ValueError('an absolute path is written without ".."')
    path = os.path.normpath(os.path.join(base, rest))
    if base == folder and not within(path, folder):
        raise ValueError(f"the path escapes the profile's folder {folder}")
    # POSIX lets a path start with two slashes and mean something else; Linux does not.
    return "/" + path.lstrip("/")


def within(path: str, tree: str) -> bool:
    """Whether the normalised `path` is `tree` or lies in it."""
    return tree in (path, "/") or path.startswith(tree + "/")


def denied_by(path: str, denied: Iterable[str]) -> str | None:
    """The first of the trees `denied` that holds `path` or, on this host, what `path` leads to."""
    real = os.path.realpath(path)
    return next((tree for tree in denied if within(path, tree) or within(real, tree)), None)


def own_directories() -> tuple[str, ...]:
    """Where osmoda keeps its configuration, state, caches and sockets: the caller's, and the system's."""
    system = ("/etc/osmoda", "/run/osmoda", "/var/cache/osmoda", "/var/lib/osmoda")
    own = [os.path.normpath(paths.directory(kind)) for kind in ("config", "runtime", "cache", "state")]
    # Also without the links on the way (a home may be one): a grant is compared under its real name.
    return tuple(dict.fromkeys((*system, *own, *map(os.path.realpath, own))))


def secret_places() -> dict[str, str]:
    """Paths that no sandbox sees, with what each is: values of secrets (egress/secrets.py), the ledger's key.

    Each is there without the links on the way, too.
    """
    found: dict[str, str] = {}
    for folder, name, what in (
        (os.path.normpath(paths.directory("config")), "secrets", "where the values of secrets are kept"),
        (os.path.normpath(paths.ledger()), "key", "which the ledger is signed with"),
    ):
        named = os.path.join(os.path.realpath(folder), name)
        path = os.path.join(folder, name)
        found |= dict.fromkeys((path, named, os.path.realpath(path)), what)
    return found


def refusal(path: str, *, write: bool, never: tuple[str, ...]) -> str | None:
    """Why `path` may not be granted, or None.

    `never` are the trees that the tier's ceiling denies (`filesystem.deny`): services listen and the kernel is set up
    there, so neither they, nor what lies in them, nor a tree around them can be granted.
    """
    for tree in never:
        if within(path, tree):
            return f"{path} lies in {tree}, which no profile of this tier may grant"
        if within(tree, path):
            return f"{path} holds {tree}, which no profile of this tier may grant; name the folders that are needed"
    for place, what in secret_places().items():
        if within(path, place):
            return f"{path} cannot be granted: no sandbox sees {place}, {what}"
    if write:
        for tree in own_directories():
            if within(path, tree) or within(tree, path):
                return f"writing {path} would reach {tree}, where osmoda keeps its own files"
    return None


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link on the way, and the folder that holds it."""

    path: str
    folder: str

    def require(self, granted: str, end: str, origin: str) -> None:
        """Raise CompileError unless the link has led to something in its own folder, or is an agent's own place."""
        if not within(end, self.folder) and not is_place(self.path, end):
            raise CompileError(
                f"{granted} cannot be granted: {self.path} is a symbolic link out of its folder, to {end}; "
                "name that path itself if it is meant",
                origin,
            )


def is_place(link: str, end: str) -> bool:
    """Whether `link` is where an agent of the supervisor's finds its code, and `end` the code of its generation.

    `osmoda.supervisor.switch.store` keeps generations below the state directory, which nobody else may write, in
    `switch/agents/NAME/generations/N/code`; `switch/agents/NAME/place` is the path of the link. So a link elsewhere, or
    one that has been led to another agent's code, grants nothing.
    """
    agents = os.path.realpath(os.path.join(paths.directory("state"), "switch", "agents"))
    name, *below = os.path.relpath(end, agents).split("/")
    if not within(end, agents) or len(below) != 3 or (below[0], below[2]) != ("generations", "code"):
        return False
    try:
        with open(os.path.join(agents, name, "place"), encoding="utf-8", errors="surrogateescape") as file:
            return file.read() == link
    except OSError:
        return False


def resolve_grant(path: str, origin: str, *, write: bool, never: tuple[str, ...]) -> str:
    """The path without symbolic links that the declared `path` means on this host.

    A link on the way may lead on within the folder that holds it; one that leads out of that folder would grant
    something that the profile does not name, but for the place of a supervised agent's code. (So the links of the root
    folder, such as `/bin`, are followed wherever they lead.) Raises `CompileError` with `origin` (file:line) for a path
    that is missing, not reachable, neither file nor folder, led elsewhere, or refused under its real name (see
    `refusal`).
    """
    resolved = "/"
    pending: list[str | _Link] = [*filter(None, reversed(path.split("/")))]
    links = 0
    while pending:
        part = pending.pop()
        if isinstance(part, _Link):
            part.require(path, resolved, origin)
            continue
        if part == "..":
            resolved = os.path.dirname(resolved)
            continue
        here = os.path.join(resolved, part)
        target = _link_target(path, here, origin)
        if target is None:
            resolved = here
            continue
        links += 1
        if links > _MOST_LINKS:
            raise CompileError(f"{path} cannot be granted: its symbolic links lead in a circle", origin)
        # Judged when its target has been walked, by where this walk got to: asked again, the link could be another.
        pending.append(_Link(here, resolved))
        if target.startswith("/"):
            resolved = "/"
        pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
    try:
        mode = os.lstat(resolved).st_mode
    except OSError as error:
        raise CompileError(_unreachable(path, resolved, error), origin) from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise CompileError(f"{path} cannot be granted: it is neither a file nor a folder", origin)
    reason = refusal(resolved, write=write, never=never)
    if reason is not None:
        raise CompileError(f"{path} cannot be granted: {reason}", origin)
    return resolved


def _link_target(path: str, here: str, origin: str) -> str | None:
    """What the symbolic link `here` holds; None where it is no link."""
    try:
        return os.readlink(here) if stat.S_ISLNK(os.lstat(here).st_mode) else None
    except OSError as error:
        raise CompileError(_unreachable(path, here, error), origin) from None


def _unreachable(path: str, here: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{path} cannot be granted: {'it' if here == path else here} does not exist"
    return f"{path} cannot be granted: {here}: {error.strerror}"
