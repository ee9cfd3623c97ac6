"""What `osmoda-watch switch` prints: one sentence a switch, and tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def span(seconds: float) -> str:
    """A time as people say it: "9min 12s"."""
    left = round(seconds)
    parts = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length}{name}")
            left %= length
    return " ".join(parts[:2]) or "0s"


def clock(seconds: float) -> str:
    """A time of the wall clock here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _generation(member: Mapping[str, Any], which: str) -> str:
    number = member[which]
    if number is None:
        return "no generation"
    return f"system generation {number}" if member["kind"] == "nixos" else f"generation {number}"


def sentences(switch: Mapping[str, Any]) -> Iterator[str]:
    """How a switch stands: a line for each member, then what keeps it."""
    reason, error = switch["reason"], switch["error"]
    left = span(switch["seconds_left"]) if switch["seconds_left"] is not None else ""
    for member in switch["members"]:
        name, before, after = member["name"], _generation(member, "before"), _generation(member, "after")
        match switch["phase"]:
            case "staged":
                text = f"{after} is made; nothing has changed yet"
            case "switching":
                text = f"switching from {before} to {after}"
            case "probation":
                until = f" for another {left}" if left else ""
                text = f"{after} is on probation{until}; a failed check leads back to {before}"
            case "committed":
                text = f"{after} is committed since {clock(switch['since'])}: {reason}"
            case "rolling-back":
                text = f"going back from {after} to {before}: {reason}"
            case "rollback-failed":
                text = (
                    f"the rollback to {before} has not succeeded yet: {error}; {_attempts(switch['attempts'])} failed"
                )
                text += f", the next one comes in {left}" if left else ""
                text += f" (why it goes back: {reason})"
            case _:
                text = f"rolled back to {before} since {clock(switch['since'])}: {reason}"
        yield f"{name}: {text}"
        if member["snapshot"] and switch["phase"] == "rolled-back":
            yield (
                f"{name}: its data is that from before the switch; what was written since is kept beside it, in "
                f"*.set-aside-by-switch-{switch['switch']}"
            )
    if switch["trouble"]:
        yield f"switch {switch['switch']}: {switch['trouble']}"
    if switch["not_on_ledger"] and switch["phase"] in ("committed", "rolled-back"):
        yield f"switch {switch['switch']}: the ledger lacks {switch['not_on_ledger']} of its steps, and gets them later"


def _attempts(number: int) -> str:
    return "1 attempt has" if number == 1 else f"{number} attempts have"


def history(switches: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of a table."""
    for switch in switches:
        for member in switch["members"]:
            yield (
                str(switch["switch"]),
                member["name"],
                f"{'-' if member['before'] is None else member['before']} > {member['after']}",
                switch["phase"],
                clock(switch["began"]),
                switch["error"] or switch["reason"],
            )


def generations(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of a table; the current generation has a star."""
    for one in found:
        yield (
            one["agent"],
            f"{one['generation']}{' *' if one['current'] else ''}",
            clock(one["made"]) if "made" in one else "damaged",
            f"{one['size'] / 1048576:.1f}M" if "size" in one else "",
            one["verdict"],
            one.get("note", ""),
        )
