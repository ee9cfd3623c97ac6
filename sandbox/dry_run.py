"""`run --dry-run`: what a launch would apply, in order, and what it would then execute. Nothing is run or made."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import place, plans, report
from osmoda.sandbox.denials import size

if TYPE_CHECKING:
    from rich.console import Console

    from osmoda.sandbox.request import Request


def rehearse(request: Request) -> dict[str, Any]:
    """What `request`, made here, would do. Raises SandboxError as the launch would up to its first system call."""
    plan, cached = plans.for_request(request, os.getcwd())
    work = place.workspace(plan, request.workspace)
    terminals = any(os.isatty(fd) for fd in (0, 1, 2))
    return {
        "profile": plan.name,
        "tier": plan.tier,
        "cached": cached,
        "operations": [
            {
                "operation": type(operation).__name__,
                "layer": operation.layer,
                "text": operation.describe(),
                "origin": operation.origin,
            }
            for operation in plan.operations
        ],
        "cgroup": {"memory_bytes": plan.memory, "cpu_cores": plan.cpu, "pids": plan.pids},
        "degraded": [{"layer": entry.layer, "reason": entry.reason, "origin": entry.origin} for entry in plan.degraded],
        "workspace": os.fsdecode(work),
        "workspace_mode": plan.workspace if plan.tier else "",
        "directory": os.fsdecode(place.start_directory(plan, work, request.directory)),
        "argv": list(request.argv),
        # Names only: a value may be secret.
        "environment": sorted(name for name, _ in place.environment(plan, terminals, request.set)),
        "timeout_s": request.timeout or None,
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Print it for a person."""
    console.print(report.heading(f"{report.clean(found['profile'])}: tier {found['tier']}"))
    if not found["tier"]:
        console.print("nothing is confined but by these limits")
    group = found["cgroup"]
    limits = []
    if group["memory_bytes"]:
        limits.append(f"memory {size(group['memory_bytes'])}")
    if group["cpu_cores"]:
        limits.append(f"{group['cpu_cores']:g} cores")
    if group["pids"]:
        limits.append(f"{group['pids']} processes, pid 1 included")
    rows = [("cgroup", f"a control group: {', '.join(limits)}", "")] if limits else []
    rows.extend((entry["layer"], entry["text"], entry["origin"]) for entry in found["operations"])
    numbered = [(f"{number:2} {layer}: {text}", origin) for number, (layer, text, origin) in enumerate(rows, 1)]
    console.print(report.lines(numbered))
    for entry in found["degraded"]:
        console.print(report.lines([(f"without {entry['layer']}: {entry['reason']}", entry["origin"])]))
    console.print()
    facts = [
        ("execute", shlex.join(found["argv"])),
        ("in", found["directory"]),
        (
            "workspace",
            f"{found['workspace']} ({found['workspace_mode']})" if found["workspace"] else "none of the host's",
        ),
        ("environment", ", ".join(found["environment"])),
    ]
    if found["timeout_s"]:
        facts.append(("time", f"{found['timeout_s']:g} s at most"))
    for name, value in facts:
        console.print(report.lines([(f"{name}: {value}", "")]))
