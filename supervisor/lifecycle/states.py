"""The states of a service, which are systemd's (systemctl(1))."""

from __future__ import annotations

from typing import Literal

type Active = Literal["inactive", "activating", "active", "reloading", "deactivating", "failed"]

ACTIVE: dict[str, Active] = {
    "dead": "inactive",
    "condition": "activating",
    "start-pre": "activating",
    "start": "activating",
    "start-post": "activating",
    "auto-restart": "activating",
    "running": "active",
    "exited": "active",
    "reload": "reloading",
    "reload-notify": "reloading",
    "stop": "deactivating",
    "stop-watchdog": "deactivating",
    "stop-sigterm": "deactivating",
    "stop-sigkill": "deactivating",
    "stop-post": "deactivating",
    "final-sigterm": "deactivating",
    "final-sigkill": "deactivating",
    "failed": "failed",
}
"""Each sub-state's state."""

STARTING = ("condition", "start-pre", "start", "start-post")
UP = ("running", "exited", "reload", "reload-notify")
ENDING = ("stop-watchdog", "stop-sigterm", "stop-sigkill")
"""Sub-states in which its program is being ended."""
