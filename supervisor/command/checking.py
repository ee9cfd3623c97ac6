"""`osmoda-watch check`: a unit read, its profile, its plan for this host; nothing is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.confining import preparation
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.units.jobs import before_start, closure
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def check(name: str, search: Sequence[str]) -> dict[str, Any]:
    """What a unit (a name, or a file) would run under; `problem` says why it cannot, and is empty where it can."""
    if "/" in name:
        folder, name = os.path.split(os.path.abspath(name))
        search = [folder, *(search or Loader().search)]
    found: dict[str, Any] = {"unit": name, "problem": ""}
    try:
        loader = Loader(search)
        if name.endswith(".socket"):
            unit = loader.load_socket(name)
            return found | {"unit": unit.name, "files": list(unit.files), "notes": []}
        units, problems = closure(loader, [name])
        if problems:
            return found | {"problem": next(iter(problems.values()))}
        before_start(units)
        service = loader.load(name)
        found |= {"unit": service.name, "files": list(service.files)}
        prepared = preparation.prepare(service)
    except (SupervisorError, SandboxError) as error:
        return found | {"problem": str(error)}
    prepared.service.close()
    return found | {
        "tier": prepared.confined.profile.tier,
        "profile": prepared.confined.file,
        "plan": prepared.plan,
        "notes": list(prepared.confined.notes),
    }


def words(found: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    if found["problem"]:
        yield f"{found['unit']}: {found['problem']}"
        return
    under = f" tier {found['tier']}, profile {found['profile'] or 'as the unit stands'}" if "tier" in found else ""
    yield f"{found['unit']}: it can run;{under}" if under else f"{found['unit']}: it can be listened at"
    for note in found["notes"]:
        yield f"  {note}"
