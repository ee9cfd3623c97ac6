"""What an attack is, and the list of all: `battery` imports the files in which they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

type Facts = Mapping[str, Any]
"""What stands around an attack: the scene's victims by name. See `scene`."""

type Action = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    `action` is called with the facts and the arguments of the task. It tells what was gained, or raises Refused; Absent
    where there is nothing to attack. `privileged`: the control has all capabilities, over namespaces of its own at
    least. `seconds` is how long it may take.
    """

    name: str
    family: str
    title: str
    action: Action
    privileged: bool
    seconds: float


ATTACKS: dict[str, Attack] = {}
"""Every attack and probe by name, in the order in which they are made."""


def attack(family: str, title: str, *, privileged: bool = False, seconds: float = 20.0) -> Callable[[Action], Action]:
    """Add the decorated function under its own name."""

    def add(action: Action) -> Action:
        name = action.__name__.replace("_", "-")
        add_attack(name, family, title, action, privileged=privileged, seconds=seconds)
        return action

    return add


def add_attack(
    name: str, family: str, title: str, action: Action, *, privileged: bool = False, seconds: float = 20.0
) -> None:
    """Add one under a name of its own."""
    assert name not in ATTACKS, name
    ATTACKS[name] = Attack(name, family, title, action, privileged, seconds)
