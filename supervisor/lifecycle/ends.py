"""What the end of a program comes to: whether it was a clean one, and its result as systemd names it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.state_messages import Ended, MainEnded
    from osmoda.supervisor.units.unit import Unit

NOT_EXECUTED = 203
"""What systemd reports for a program that could not be executed (systemd.exec(5))."""

# Signals that end a daemon cleanly (systemd.service(5), SuccessExitStatus=).
_CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}


def is_clean(event: Ended | MainEnded, unit: Unit) -> bool:
    """Whether that end is no failure, by how it ended and by SuccessExitStatus=."""
    if event.signal:
        daemon = event.which == "main" and unit.type != "oneshot"
        return (daemon and event.signal in _CLEAN_SIGNALS) or event.signal in unit.success.signals
    return event.code == 0 or (event.which == "main" and event.code in unit.success.codes)


def result_of(event: Ended | MainEnded, *, clean: bool) -> str:
    """The result, for an end that counts as a clean one or not."""
    if event.out_of_memory and not (clean and not event.signal):
        return "oom-kill"
    return "success" if clean else "signal" if event.signal else "exit-code"
