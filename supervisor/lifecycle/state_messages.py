"""What the state machine of a service hears (events) and orders (commands): plain values, without descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from osmoda.supervisor.lifecycle.notifications import Notification
    from osmoda.supervisor.units.unit import Exec

type Which = Literal["main", "control"]
"""The service's own program, or the command that is run beside it (`ExecStartPre=`, `ExecReload=`, `ExecStop=`, …)."""

type Kind = Literal["condition", "start-pre", "start", "start-post", "reload", "stop", "stop-post"]
type Job = Literal["start", "stop", "reload"]


@dataclass(frozen=True, slots=True)
class StartAsked:
    """Start it. `by_hand`: a person asked, or what the person asked for needs it; false for a trigger of its own."""

    by_hand: bool = True


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Stop it, and do not restart it."""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """Stop it if it runs, and start it."""


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Run `ExecReload=`."""


@dataclass(frozen=True, slots=True)
class ResetAsked:
    """Forget that it failed, and how often it was started."""


@dataclass(frozen=True, slots=True)
class Started:
    """The program has been executed, in its sandbox; `pid` is the host's number for it."""

    which: Which
    pid: int


@dataclass(frozen=True, slots=True)
class MainEnded:
    """The service's program has ended, and has left something behind in its sandbox; `Ended` comes later."""

    code: int
    signal: int = 0
    which: Which = "main"
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """It has ended, and so has everything that it started. `signal` is 0 where it exited with `code`."""

    which: Which
    code: int
    signal: int = 0
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class NotStarted:
    """There is no sandbox, or no program in it; `code` is 126 or 127 where only the program could not be executed."""

    which: Which
    text: str
    code: int = 125


@dataclass(frozen=True, slots=True)
class Notified:
    """A message of sd_notify(3), from a process that may send one."""

    message: Notification


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """Its health checks have failed too often in a row."""

    text: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Its restart group is stopped."""

    text: str


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time has passed: what `Machine.deadline` named may be due."""


type Event = (
    StartAsked
    | StopAsked
    | RestartAsked
    | ReloadAsked
    | ResetAsked
    | Started
    | MainEnded
    | Ended
    | NotStarted
    | Notified
    | Unhealthy
    | GaveUp
    | Elapsed
)


@dataclass(frozen=True, slots=True)
class Run:
    """Run a command in a sandbox of the service."""

    which: Which
    kind: Kind
    command: Exec


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the first process of what runs, or to `everyone` in its sandbox."""

    which: Which
    number: int
    everyone: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """End the sandbox with all that is in it."""

    which: Which


@dataclass(frozen=True, slots=True)
class Say:
    """A line about the unit; `level` as in syslog(3): 3 error, 4 warning, 5 notice, 6 information."""

    text: str
    level: int = 6


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked for has happened, or (not `ok`) will not; `text` says why."""

    job: Job
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class EndGroup:
    """Its restart group has been restarted too often: stop the other members."""

    text: str


type Command = Run | Signal | Kill | Say | Done | EndGroup
