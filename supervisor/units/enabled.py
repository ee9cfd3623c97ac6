"""Which units a starting daemon runs: those that `enable` has linked in osmoda's own folder of units.

Links in the folders of systemd are systemd's: what it starts at boot is not started here a second time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.supervisor.units.loading import Loader

_TARGETS = ("default.target", "multi-user.target", "graphical.target", "sockets.target")
_KINDS = (".wants", ".requires")


def names(loader: Loader) -> list[str]:
    """The enabled units of the first folder of the search path, sorted."""
    found = set()
    for target in _TARGETS:
        for kind in _KINDS:
            try:
                found |= {*os.listdir(os.path.join(loader.search[0], target + kind))}
            except OSError:
                continue  # nothing is linked there
    return sorted(name for name in found if name.endswith((".service", ".socket")))


def listed(loader: Loader, *, everything: bool) -> list[str]:
    """The units of the first folder of the search path or, with `everything`, of all; templates are none themselves."""
    found = [name for suffix in (".service", ".socket") for name in loader.names(suffix) if "@." not in name]
    if everything:
        return found
    try:
        here = {*os.listdir(loader.search[0])}
    except OSError:
        here = set()
    return [name for name in found if name in here]
