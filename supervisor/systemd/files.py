"""Drop-ins on disk: which units have one, writing and removing them.

They lie in the folder that outlasts a boot, also those of units that are only started: what systemd starts by itself
then, because somebody has enabled it or something requires it, must not be outside its sandbox.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.supervisor.confining.ownership import other_writer
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins
from osmoda.supervisor.units.files import GENERATED

if TYPE_CHECKING:
    from osmoda.supervisor.units.unit import Unit


def folder() -> str:
    """Where this user's drop-ins are written."""
    if os.geteuid() == 0:
        return "/etc/systemd/system"
    return f"{paths.environment('XDG_CONFIG_HOME') or paths.home() + '/.config'}/systemd/user"


def confined() -> list[str]:
    """The units that have a drop-in, sorted."""
    found = glob.glob(f"{glob.escape(folder())}/*.d/{GENERATED}")
    return sorted(os.path.basename(os.path.dirname(path)).removesuffix(".d") for path in found)


def program() -> str:
    """The path of this command, which systemd is to call. Raises SupervisorError where others could change it."""
    path = os.path.realpath(sys.argv[0])
    if os.path.basename(path) != "osmoda-watch" or not os.access(path, os.X_OK):
        raise SupervisorError(f"{path} is not the installed command osmoda-watch, which systemd has to call")
    why = other_writer(path)
    if why is not None:
        raise SupervisorError(f"{path} is what systemd would run outside of every sandbox, and {why}")
    return path


def write(unit: Unit, program: str) -> bool:
    """Write a unit's drop-in; whether it was another one before. Raises UnitError, OSError."""
    text = systemd_drop_ins.drop_in(unit, program).encode("utf-8", "surrogateescape")
    path = systemd_drop_ins.path(folder(), unit.name)
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.read() == text:
            return False
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    return True


def remove(unit: str) -> bool:
    """Remove a unit's drop-in; whether there was one. Raises OSError."""
    path = systemd_drop_ins.path(folder(), unit)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))  # others' drop-ins may lie there
    return True
