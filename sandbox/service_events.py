"""What a supervisor is told of a command that runs in a sandbox: values, in the order in which things happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osmoda.sandbox.errors import SandboxError
    from osmoda.sandbox.process import Result


@dataclass(frozen=True, slots=True)
class Started:
    """The command was executed: its pid on the host, and `inside` as its own sandbox counts (the same in tier 0)."""

    pid: int
    inside: int


@dataclass(frozen=True, slots=True)
class Notified:
    """A message that came on NOTIFY_SOCKET (sd_notify(3)), of 4096 bytes at most.

    `pid` is its sender as the sandbox counts, 0 when that has ended since; `is_main`: it was the command itself.
    """

    data: bytes
    pid: int
    is_main: bool


@dataclass(frozen=True, slots=True)
class MainEnded:
    """The command has ended, and what it left behind has not: only where `start` was told to hold that.

    `status` is its exit code, 128+n when signal n ended it.
    """

    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The command and all that it started are gone: the last event."""

    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """The command was not started, or its sandbox was ended for the reason that `error` gives: the last event."""

    error: SandboxError


type Event = Started | Notified | MainEnded | Ended | Failed
