"""What a unit means, as scenarios: what its files say, what is done to it, and what must be seen.

Each holds under systemd without osmoda, and must hold the same with both of osmoda's engines. Programs write lines to
`trace` in the scenario's folder.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.parity import commands, dependencies, ends, environments, notifying, restarting, stopping, units
from tests.parity.stage import Stage

ROOMS = (commands, ends, restarting, stopping, notifying, environments, dependencies, units)
SCENARIOS: list[Callable[[Stage], None]] = [
    value
    for room in ROOMS
    for name, value in vars(room).items()
    if callable(value) and getattr(value, "__module__", "") == room.__name__ and not name.startswith("_")
]
