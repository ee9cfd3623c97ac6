"""What is said of a service's ends: for the log, and for whoever waits for a start."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.state_messages import Ended, MainEnded


def signal_name(number: int) -> str:
    """As in signal(7); the number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how(event: Ended | MainEnded) -> str:
    """How a program has ended."""
    if event.signal:
        return f"was ended by {signal_name(event.signal)}" + (", for want of memory" if event.out_of_memory else "")
    return f"exited with {event.code}"


def directive(sub: str) -> str:
    """The directive whose commands are run in a sub-state."""
    return "Exec" + "".join(part.capitalize() for part in sub.replace("final-sig", "stop-post-").split("-")[:2]) + "="


def reason(result: str, code: int | None, number: int) -> str:
    """Why a service is not up: a result, the exit code of its program (None: it has none) and the signal."""
    match result:
        case "success":
            return "it ended before it was up"
        case "exec-condition":
            return "its ExecCondition= is not met"
        case "exit-code":
            return f"its program exited with {code}" if code else "a command of it failed"
        case "signal":
            return f"{signal_name(number)} ended it" if number else "a command of it was ended by a signal"
        case "protocol":
            return "its program ended without having said that it is ready (READY=1)"
        case "timeout":
            return "it took too long"
        case "watchdog":
            return "its watchdog was not fed"
        case "unhealthy":
            return "its health checks failed"
        case "oom-kill":
            return "it had used up its memory"
        case "resources":
            return "its sandbox could not be set up"
        case _:
            return result
