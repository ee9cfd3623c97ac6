"""What `learn` was asked and what came of it, in words on the standard error or as JSON."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from osmoda.sandbox.learning.check import Checked
    from osmoda.sandbox.learning.proposal import Observed, Proposal

SHOWN = 20
"""So many of a kind are told in words."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked: the command, where the profile goes, its tier. `update` is a profile to merge into.

    `degrade` names the layers that may be missing, in the observed run as in the profile.
    """

    argv: tuple[str, ...]
    output: str = ""
    update: str = ""
    tier: int = 1
    workspace: str = "overlay"
    rules: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    degrade: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    timeout: float = 0.0
    json: bool = False

    @property
    def file(self) -> str:
        """Where the profile is written; empty for the standard output."""
        return self.output or self.update


@dataclass(slots=True)
class Learned:
    """The result. `rounds` are the runs under what was learned, each with what was added because of the one before."""

    text: str
    proposal: Proposal
    observed: Observed
    rounds: list[tuple[Checked, tuple[str, ...]]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the last run under the profile went as the observed one."""
        return bool(self.rounds) and self.rounds[-1][0].passed


def as_dict(wish: Wish, learned: Learned) -> dict[str, Any]:
    """For `--json`."""
    outcome = learned.observed.ended.outcome
    return {
        "profile": learned.text,
        "file": wish.file,
        "tier": learned.proposal.tier,
        "status": outcome.status,
        "passed": learned.passed,
        "degraded": [entry.layer for entry in learned.observed.plan.degraded],
        "checks": [
            {
                "status": one.status,
                "passed": one.passed,
                "denials": [denial.as_dict() for denial in one.denials],
                "added_before": list(added),
            }
            for one, added in learned.rounds
        ],
        "not_granted": [
            {
                "what": clean(one.what),
                "why": clean(one.why),
                "programs": [*one.programs],
                "count": one.count,
                "needed": one.needed,
            }
            for one in learned.proposal.refused
        ],
    }


def summarise(wish: Wish, learned: Learned) -> None:
    """Say on the standard error what was learned, what was not granted, and whether it passes."""
    say = _say
    outcome = learned.observed.ended.outcome
    if outcome.status:
        say(f"the observed run ended with exit code {outcome.status}; the profile is for a run that ends so")
    for entry in learned.observed.plan.degraded:
        say(f"observed without {entry.layer}, which the profile now gives up too: {entry.reason}")
    granted = sum(len(lines) for lines in learned.proposal.lists.values()) + len(learned.proposal.values)
    where = wish.file or "the profile"
    say(f"{granted} lines for {where}, of tier {learned.proposal.tier}")
    for title, needed in (("used, not granted", True), ("tried, not granted", False)):
        found = [one for one in learned.proposal.refused if one.needed is needed]
        for one in found[:SHOWN]:
            who = f" ({', '.join(one.programs)})" if one.programs else ""
            say(f"{title}: {one.what}{who}: {one.why}")
        if len(found) > SHOWN:
            say(f"{len(found) - SHOWN} more {title}; --json lists them")
    seen = learned.observed.seen
    if seen.unreadable:
        say(f"{seen.unreadable} names could not be read from the program's memory and are not in it")
    if seen.too_many:
        say("the program used more files than are kept; what came last is not in it")
    for number, (checked, added) in enumerate(learned.rounds, 1):
        if added:
            say(f"added before run {number}: {', '.join(added[:SHOWN])}")
        if not checked.passed:
            say(f"run {number} under it did not pass: {_failure(checked, outcome.status)}")
    if learned.passed:
        say(f"run {len(learned.rounds)} under it passed: exit code {learned.rounds[-1][0].status}, nothing refused")
    else:
        say(f"{where} does not let the command pass; its last words were:")
        for line in learned.rounds[-1][0].output.splitlines()[-10:]:
            say(f"  {line}")


def _failure(checked: Checked, expected: int) -> str:
    parts = [] if checked.same else [f"exit code {checked.status} in place of {expected}"]
    parts += [one.sentence() for one in checked.denials[:3]]
    return "; ".join(parts)


def _say(text: str) -> None:
    print(f"osmoda-sandbox: {clean(text)}", file=sys.stderr, flush=True)
