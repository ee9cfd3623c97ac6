"""How a generation takes the place of the code that a unit names, such as `/opt/agents/research`.

The place is a symbolic link to `current/code` of the agent's generations, made when its first generation is activated;
from then on it stays as it is, and the one rename of `current` moves unit, profile and code at once. So whatever looks
at the path sees the same generation: the unit's WorkingDirectory=, EnvironmentFile= and interpreter, as the engine
reads them or as systemd does, and the sandbox, which mounts what the link leads to when an agent is started: a running
agent keeps the code that it was started with. A sandbox refuses links that lead out of their folder; this one it knows
(`osmoda.sandbox.granted_paths`), since the agent's folder in the store names the place.

Considered and left: mounts in the sandbox alone (EnvironmentFile= and systemd would see another code than the agent),
mounts on the host (gone after a reboot, and not for ordinary users), and exchanging folders (three renames for unit,
profile and code, and what an agent writes into its code would be in the generation).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.supervisor.switch import tree
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from osmoda.supervisor.switch.store import Store


def canonical(path: str) -> str:
    """The name of a place without links on the way to it; it itself may be one."""
    path = os.path.normpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def target(store: Store, name: str) -> str:
    """Where the place of an agent leads."""
    return os.path.join(store.current_link(name), "code")


def is_settled(store: Store, name: str, place: str) -> bool:
    """Whether the place leads to the agent's current generation."""
    return os.path.islink(place) and os.readlink(place) == target(store, name)


def before(place: str) -> str:
    """Where that is kept which lay at the place before its first generation."""
    number, found = 1, f"{place}.before-osmoda"
    while os.path.lexists(found):
        number += 1
        found = f"{place}.before-osmoda-{number}"
    return found


def require_place(place: str) -> None:
    """Raise SwitchError where a link cannot be put at `place`."""
    folder = os.path.dirname(place)
    if not os.path.isdir(folder):
        raise SwitchError(f"{place} cannot be the place of an agent's code: there is no folder {folder}")
    if os.path.ismount(place):
        raise SwitchError(f"{place} is a file system of its own, whose place no link can take; use a folder in it")
    if not os.access(folder, os.W_OK):
        raise SwitchError(f"{place} cannot be the place of an agent's code: {folder} may not be written")


def settle(store: Store, name: str, place: str) -> None:
    """Have `place` lead to the current generation; what lay there is kept beside it. Raises OSError.

    May be done again wherever it was left: what has the temporary name is the link before the exchange, and what lay at
    the place after it.
    """
    folder, base = os.path.split(place)
    temporary = os.path.join(folder, f".{base}.osmoda")
    leads_to = target(store, name)
    _note(os.path.join(os.path.dirname(store.current_link(name)), "place"), place)
    if os.path.lexists(temporary):
        if os.path.islink(temporary) and os.readlink(temporary) == leads_to:
            os.unlink(temporary)
        else:
            os.rename(temporary, before(place))
    if is_settled(store, name, place):
        return
    os.symlink(leads_to, temporary)
    if os.path.lexists(place):
        syscalls.renameat2(os.fsencode(temporary), os.fsencode(place), syscalls.RENAME_EXCHANGE)
        os.rename(temporary, before(place))
    else:
        os.rename(temporary, place)
    tree.sync_folder(folder)


def _note(path: str, place: str) -> None:
    """Have the file at `path` name the place: a sandbox follows the link there, and no other."""
    encoded = os.fsencode(place)
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.read() == encoded:
            return
    with open(f"{path}.new", "wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def leave(store: Store, name: str, place: str) -> None:
    """Remove the link from `place`: there is no current generation. Raises OSError."""
    if is_settled(store, name, place):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        tree.sync_folder(os.path.dirname(place))
