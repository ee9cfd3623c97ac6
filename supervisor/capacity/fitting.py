"""What fits: agents by their declared limits, against the room of a host or of a plan. Sans-I/O.

Every agent counts with its limit and not with what it uses now: what it may use it may want at any time. One that
declares none counts as `[agent]` of plans.toml says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.supervisor.capacity.plans_file import Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.profile import Profile
    from osmoda.supervisor.capacity.plans_file import Plan, Plans


@dataclass(frozen=True, slots=True)
class Need:
    """What one agent counts as; `declared` are the kinds ("memory", "cpu") that its profile or unit limits."""

    name: str
    amount: Amount
    declared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Agents in a room. `left` is what they and the system leave; `more` how many undeclared agents fit into that.

    `plan` is the plan whose room it is, None for this host.
    """

    room: Amount
    system: Amount
    agent: Amount
    needs: tuple[Need, ...]
    left: Amount
    more: int
    plan: Plan | None


def need_of(name: str, profile: Profile, plans: Plans) -> Need:
    """What an agent that runs under `profile` counts as."""
    memory, cpu = profile.process.memory, profile.process.cpu
    amount = Amount(
        plans.agent.memory if memory is None else memory, plans.agent.cpu if cpu is None else cpu, plans.agent.disk
    )
    both = (("memory", memory), ("cpu", cpu))
    return Need(name, amount, tuple(kind for kind, value in both if value is not None))


def fit(needs: Sequence[Need], room: Amount, plans: Plans, plan: Plan | None = None) -> Fit:
    """`needs` in `room`. Of this host's disk only what is free counts: what agents have written is in that already."""
    used = _sum([need.amount for need in needs])
    left = Amount(
        room.memory - plans.system.memory - used.memory,
        round(room.cpu - plans.system.cpu - used.cpu, 6),
        room.disk - plans.system.disk - (used.disk if plan is not None else 0),
    )
    agent = plans.agent
    ratios = [(left.memory, agent.memory), (left.cpu, agent.cpu), (left.disk, agent.disk)]
    more = min(int(have / each) for have, each in ratios if each)
    return Fit(room, plans.system, agent, tuple(needs), left, max(more, 0), plan)


def refusal(need: Need, around: Fit) -> str:
    """Why one agent more does not fit, with the arithmetic, in one sentence; empty where it does."""
    kinds = (
        ("memory", "of memory", size, need.amount.memory, around.left.memory, around.room.memory, around.system.memory),
        ("cpu", "cores", number, need.amount.cpu, around.left.cpu, around.room.cpu, around.system.cpu),
        ("disk", "of disk", size, need.amount.disk, around.left.disk, around.room.disk, around.system.disk),
    )
    for kind, words, shown, wants, left, whole, system in kinds:
        if wants <= left:
            continue
        others = sum(getattr(one.amount, kind) for one in around.needs)
        how = "its limit" if kind in need.declared else "what an agent without a limit counts as"
        running = f", {shown(others)} for {_agents(len(around.needs))}" if around.needs and kind != "disk" else ""
        free = "free " if kind == "disk" else ""
        return (
            f"{need.name} does not fit: it needs {shown(wants)} {words} ({how}), and of {shown(whole)} {free}there are "
            f"{shown(max(left, 0))} left ({shown(system)} for the system{running})"
        )
    return ""


def _agents(number_of: int) -> str:
    return "1 agent" if number_of == 1 else f"{number_of} agents"


def _sum(amounts: Sequence[Amount]) -> Amount:
    return Amount(sum(one.memory for one in amounts), sum(one.cpu for one in amounts), sum(one.disk for one in amounts))


def size(value: float) -> str:
    """Bytes for a person: "768M", "1.5G"."""
    for unit, factor in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20)):
        if abs(value) >= factor:
            return f"{number(value / factor)}{unit}"
    return f"{number(value / 1024)}K"


def number(value: float) -> str:
    """A number with at most two places, and no zeros at its end."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
