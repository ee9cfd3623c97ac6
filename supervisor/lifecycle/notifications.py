"""The protocol of sd_notify(3): a datagram in, what it says out."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 4096  # bytes of a datagram; systemd takes as many (NOTIFY_BUFFER_MAX)


@dataclass(frozen=True, slots=True)
class Notification:
    """What a service said of itself in one message. Times are seconds, None where nothing was said.

    `watchdog` is "keep" (WATCHDOG=1), "trigger" or empty; `errno` 0 and `main_pid` 0 where they were not given.
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    watchdog: str = ""
    watchdog_every: float | None = None
    extend: float | None = None
    errno: int = 0
    main_pid: int = 0


def parse(data: bytes) -> Notification:
    """Read one datagram. What is not understood is passed over, as systemd does it: a service may know newer words."""
    said: dict[str, str] = {}
    for line in data[:LONGEST].decode(errors="replace").split("\n"):
        name, found, value = line.partition("=")
        if found:
            said[name] = value
    watchdog = {"1": "keep", "trigger": "trigger"}.get(said.get("WATCHDOG", ""), "")
    return Notification(
        ready=said.get("READY") == "1",
        reloading=said.get("RELOADING") == "1",
        stopping=said.get("STOPPING") == "1",
        status=said.get("STATUS"),
        watchdog=watchdog,
        watchdog_every=_seconds(said.get("WATCHDOG_USEC", "")),
        extend=_seconds(said.get("EXTEND_TIMEOUT_USEC", "")),
        errno=_number(said.get("ERRNO", "")),
        main_pid=_number(said.get("MAINPID", "")),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else 0


def _seconds(text: str) -> float | None:
    """Microseconds in decimal digits, as seconds."""
    return _number(text) / 1e6 if text.isascii() and text.isdigit() and len(text) <= 19 else None
