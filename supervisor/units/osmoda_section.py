"""The directives of [X-Osmoda], which systemd ignores: profile, tier, ports, health checks, restart groups, pool."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from osmoda.supervisor.units import commands, values
from osmoda.supervisor.units.draft import split
from osmoda.supervisor.units.unit import HealthCheck

if TYPE_CHECKING:
    from osmoda.supervisor.units.draft import Draft
    from osmoda.supervisor.units.syntax import Assignment

MOST_CHECKS = 16
MOST_WAITING = 16  # sandboxes in a pool of one agent
MOST_RETRIES = 1000
_URL = re.compile(r"http://(?:localhost|127\.0\.0\.1)?:([0-9]{1,5})(/[\x21-\x7e]*)?")
_GROUP = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def profile(text: str) -> str:
    """A profile's file, or the name of an installed profile."""
    if text.startswith("/"):
        return values.absolute_path(text)
    if not _PROFILE.fullmatch(text):
        raise ValueError("is neither an absolute path nor the name of a profile")
    return text


def tier(text: str) -> int:
    if text not in ("0", "1", "2"):
        raise ValueError("is no tier, which are 0, 1 and 2")
    return int(text)


def pool(text: str) -> int:
    return values.unsigned(text, MOST_WAITING)


def retries(text: str) -> int:
    number = values.unsigned(text, MOST_RETRIES)
    if number == 0:
        raise ValueError("would make every agent unhealthy at once; it is at least 1")
    return number


def span(text: str) -> float:
    """A time that has an end and is not over at once."""
    found = values.seconds(text)
    if not 0 < found <= 86400:
        raise ValueError("is not between 1us and 1 day")
    return found


def period(text: str) -> float:
    """A time that has an end; it may be none."""
    found = values.seconds(text)
    if found > 86400:
        raise ValueError("is longer than 1 day")
    return found


def serve(draft: Draft, assignment: Assignment) -> None:
    """Serve=: ports; an empty value takes back those before it."""
    if not assignment.value:
        draft.forget("serve")
    draft.add("serve", [values.port(word) for word in split(assignment.value)])


def health_check(draft: Draft, assignment: Assignment) -> None:
    """HealthCheck=: one check a line; an empty value takes back those before it."""
    if not assignment.value:
        draft.forget("checks")
        return
    draft.add("checks", [_check(draft, assignment)])
    if len(draft.values["checks"]) > MOST_CHECKS:
        raise ValueError(f"is one more than {MOST_CHECKS}")


def _check(draft: Draft, assignment: Assignment) -> HealthCheck:
    origin = assignment.origin
    kind, _, rest = assignment.value.partition(":")
    if kind == "tcp":
        return HealthCheck("tcp", str(values.port(draft.text(rest))), origin)
    if kind == "http":
        match = _URL.fullmatch(draft.text(assignment.value))
        if match is None:
            raise ValueError('is no address of the agent itself, such as "http://:8080/health"')
        return HealthCheck("http", f"http://:{values.port(match[1])}{match[2] or '/'}", origin)
    if kind == "exec":
        found = list(commands.read(draft, rest.strip(), origin))
        if len(found) != 1 or found[0].ignore_failure:
            raise ValueError('is not one command, without the prefix "-"')
        return HealthCheck("command", rest.strip(), origin, found[0])
    raise ValueError('is no check: "http://:PORT/PATH", "tcp:PORT" or "exec:COMMAND"')


def restart_group(draft: Draft, assignment: Assignment) -> None:
    """RestartGroup=NAME, or NAME BURST/SPAN: more restarts than BURST within SPAN stop the group."""
    parts = draft.text(assignment.value).split(maxsplit=1)
    if not parts or not _GROUP.fullmatch(parts[0]):
        raise ValueError('is no group: NAME, or NAME BURST/SPAN such as "pipeline 5/1min"')
    draft.values["restart_group"] = parts[0]
    draft.values["group_burst"], draft.values["group_interval"] = 0, 0.0
    if len(parts) == 2:
        burst, slash, interval = parts[1].partition("/")
        if not slash:
            raise ValueError('has an intensity that is not BURST/SPAN such as "5/1min"')
        number = values.unsigned(burst.strip(), 10_000)
        if number == 0:
            raise ValueError("has an intensity of 0, which no restart is within")
        draft.values["group_burst"], draft.values["group_interval"] = number, span(interval.strip())


def workspace(draft: Draft, assignment: Assignment) -> None:
    draft.values["workspace"] = values.absolute_path(draft.text(assignment.value))
