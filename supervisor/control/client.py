"""The daemon as a command sees it. Small: what asks for a state should take no longer than the answer."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from osmoda.host import paths
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = 10.0
"""How long the daemon has for what it need not wait for."""


class NoDaemon(SupervisorError):
    """No daemon of this user runs."""


def folder() -> str:
    """The daemon's runtime directory. Raises OSError, UntrustedDirectory."""
    return paths.own_directory("runtime", "watch")


def is_there() -> bool:
    """Whether a daemon of this user takes requests, or was killed since this host was booted."""
    return os.path.exists(f"{folder()}/control")


def bus_address() -> str:
    """Where the D-Bus of this user's systemd manager is, root's being the system's; it need not be there."""
    if os.geteuid() == 0:
        return "/run/dbus/system_bus_socket"
    return f"{paths.environment('XDG_RUNTIME_DIR') or f'/run/user/{os.geteuid()}'}/bus"


def systemd_is_here() -> bool:
    """Whether systemd has booted this host (sd_booted(3)), and this user's manager can be reached.

    Whoever names a runtime directory means a daemon of its own.
    """
    if paths.environment("OSMODA_RUNTIME_DIR"):
        return False
    return os.path.isdir("/run/systemd/system") and os.path.exists(bus_address())


def check_text(*texts: object) -> None:
    """Raise SupervisorError where one of `texts` is not UTF-8, which no unit's name is and no request can hold."""
    for text in texts:
        try:
            str(text).encode()
        except UnicodeEncodeError:
            raise SupervisorError(f"{text} is not UTF-8, as all has to be that the daemon is asked for") from None


def ask(
    verb: str,
    units: Sequence[str] = (),
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    seconds: float | None = SECONDS,
    **options: str | int | bool,
) -> dict[str, Any]:
    """Ask the daemon; its answer. `progress` is told what it says before. `seconds` None: as long as it takes.

    Raises NoDaemon, SupervisorError.
    """
    check_text(*units, *options.values())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(f"{folder()}/control")
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon("no daemon of this user runs; `osmoda-watch daemon` is one") from None
        last: dict[str, Any] = {}
        try:
            request = {"verb": verb, "units": list(units), "options": options}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                for line in answers:
                    if last and progress is not None:
                        progress(last)
                    last = json.loads(line)
        except TimeoutError:
            raise SupervisorError(f"the daemon has not answered within {seconds:g} s") from None
        except (ConnectionError, ValueError):
            # It has gone, in the midst of a line perhaps; what it had said before counts.
            last = {} if "done" not in last and "error" not in last else last
    if "error" in last:
        raise SupervisorError(str(last["error"]))
    if not last.get("done"):
        raise SupervisorError("the daemon has ended before it had answered")
    return last
