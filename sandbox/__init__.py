"""Profile to plan to running sandbox.

    from osmoda.sandbox import Profile, Sandbox

    result = Sandbox(Profile.load("agent.toml"), workspace=".").run(["python3", "agent.py"], timeout=60)

The names below are loaded when they are first used, so that the launch path imports nothing that it does not need.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.sandbox.api import Sandbox, close
    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.errors import CommandError, CompileError, LaunchError, ProfileError, SandboxError
    from osmoda.sandbox.process import CommandFailed, Process, Result, TimedOut
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.streams import DEVNULL, PIPE, STDOUT

_HOME = {
    "DEVNULL": "streams",
    "PIPE": "streams",
    "STDOUT": "streams",
    "CommandError": "errors",
    "CommandFailed": "process",
    "CompileError": "errors",
    "Denial": "denials",
    "LaunchError": "errors",
    "Pool": "pool",
    "Process": "process",
    "Profile": "profile",
    "ProfileError": "errors",
    "Result": "process",
    "Sandbox": "api",
    "SandboxError": "errors",
    "TimedOut": "process",
    "close": "api",
}

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CommandError",
    "CommandFailed",
    "CompileError",
    "Denial",
    "LaunchError",
    "Pool",
    "Process",
    "Profile",
    "ProfileError",
    "Result",
    "Sandbox",
    "SandboxError",
    "TimedOut",
    "close",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
