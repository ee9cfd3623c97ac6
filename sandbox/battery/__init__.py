"""The attack battery: what a sandbox is attacked with, as a program that needs nothing where it runs.

Each file holds one family of attacks. An attack is a function that tells what it gained or raises `Refused`; it is made
by the same code outside, as the control, and inside. `perform` makes a list of them; whoever can run a Python function
in a sandbox passes that, whoever can only run a program runs `python -m osmoda.sandbox.battery`.
"""

from __future__ import annotations

from osmoda.sandbox.battery import (
    descriptors,
    namespaces,
    network,
    paths,
    probes,
    processes,
    resources,
    sockets,
    surface,
)
from osmoda.sandbox.battery.attacks import ATTACKS, Attack, Facts
from osmoda.sandbox.battery.trials import Answer, Task, answers, perform

__all__ = ["ATTACKS", "FAMILIES", "GRANTS", "Answer", "Attack", "Facts", "Task", "answers", "families", "perform"]

FAMILIES = {
    module.FAMILY: module
    for module in (descriptors, processes, namespaces, surface, paths, sockets, network, resources, probes)
}
"""The files by the name of their family, in the order in which the battery makes the attacks."""

GRANTS = probes.FAMILY
"""The family of what is made from a profile."""


def families() -> tuple[str, ...]:
    """Every family but that of the probes, which are made from a profile."""
    return tuple(name for name in FAMILIES if name != GRANTS)
