"""What `run` says at its end, when there is something to say: refusals, limits that were hit, the outcome as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from osmoda.sandbox import denials, report

if TYPE_CHECKING:
    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request


def say_degraded(plan: Plan) -> None:
    """Write to stderr which layers this run goes without: `explain` could not know that they would fail just now."""
    for entry in plan.degraded:
        text = f"without the layer {entry.layer}, as {entry.origin} allows: {entry.reason}"
        print(f"osmoda-sandbox: {report.clean(text)}", file=sys.stderr)


def summarise(request: Request, plan: Plan, identity: str, outcome: Outcome) -> None:
    """Write the summary to stderr: nothing when quiet, nothing for refusals that programs make out of habit."""
    found = denials.interpret(outcome, plan)
    if request.json:
        record = {
            "sandbox": identity,
            "tier": plan.tier,
            "profile": plan.name,
            "status": outcome.status,
            "signal": outcome.signal,
            "timed_out": outcome.timed_out,
            "duration_s": round(outcome.duration, 6),
            "cpu_user_s": outcome.user_time,
            "cpu_system_s": outcome.system_time,
            "peak_memory_bytes": outcome.peak_memory,
            "degraded": [{"layer": entry.layer, "reason": entry.reason} for entry in plan.degraded],
            "denials": [denial.as_dict() for denial in found],
        }
        print(json.dumps(record), file=sys.stderr)
        return
    if request.quiet:
        return
    if outcome.timed_out:
        print(f"osmoda-sandbox: ended after {request.timeout:g} s (--timeout)", file=sys.stderr)
    telling = [denial for denial in found if not denial.habitual]
    for denial in telling[:3]:
        print(f"osmoda-sandbox: {denial.sentence()}", file=sys.stderr)
    if len(telling) > 3:
        print(f"osmoda-sandbox: {len(telling) - 3} more; osmoda-sandbox why", file=sys.stderr)
