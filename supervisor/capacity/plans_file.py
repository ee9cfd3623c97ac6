"""`profiles/plans.toml`: what is kept for the system, what an agent counts as, and the plans that machines come in."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from msgspec import Meta

from osmoda.egress.destinations import parse_size
from osmoda.host import paths
from osmoda.sandbox.tiers import SHIPPED
from osmoda.supervisor.errors import SupervisorError

_NAME = "plans.toml"
_MOST_BYTES = 1 << 20

type _Size = int | str


class Amount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory and disk in bytes, CPU in cores."""

    memory: int
    cpu: float
    disk: int


class _AmountTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory: _Size
    cpu: Annotated[float, Meta(ge=0)]
    disk: _Size

    def amount(self) -> Amount:
        return Amount(parse_size(self.memory), self.cpu, parse_size(self.disk))


class _PlanTable(_AmountTable, frozen=True, forbid_unknown_fields=True):
    agents: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1, max_length=2)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    system: _AmountTable
    agent: _AmountTable
    plan: dict[str, _PlanTable]


# Now, and not when it is first needed: two threads that both need a type that msgspec does not know yet crash it.
_SHAPE = msgspec.json.Decoder(_File)


class Plan(msgspec.Struct, frozen=True):
    """A machine, and how many agents it is meant for; `most` is None where there is no top."""

    name: str
    room: Amount
    least: int
    most: int | None

    @property
    def meant_for(self) -> str:
        """`1-2 agents`."""
        return f"{self.least} agents and more" if self.most is None else f"{self.least}-{self.most} agents"


class Plans(msgspec.Struct, frozen=True):
    """The file; `path` is where it lies."""

    path: str
    system: Amount
    agent: Amount
    plans: tuple[Plan, ...]

    def plan(self, name: str) -> Plan:
        """The plan of that name. Raises SupervisorError."""
        for plan in self.plans:
            if plan.name == name.lower():
                return plan
        raise SupervisorError(f"there is no plan {name!a}; {self.path} has {', '.join(p.name for p in self.plans)}")


def load() -> Plans:
    """The administrator's file, else the shipped one. Raises SupervisorError for one that is not valid."""
    folders = (paths.directory("config"), "/etc/osmoda")
    found = [path for folder in folders if os.path.lexists(path := os.path.join(folder, _NAME))]
    return read(found[0] if found else os.path.join(SHIPPED, _NAME))


def read(path: str) -> Plans:
    """The file at `path`. Raises SupervisorError."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_BYTES)
        table = msgspec.toml.decode(content, type=_SHAPE.type)
        plans = tuple(
            Plan(name, one.amount(), one.agents[0], one.agents[1] if one.agents[1:] else None)
            for name, one in table.plan.items()
        )
        return Plans(path, table.system.amount(), table.agent.amount(), plans)
    except OSError as error:
        raise SupervisorError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # msgspec's and parse_size's
        raise SupervisorError(f"{path}: {error}") from None
