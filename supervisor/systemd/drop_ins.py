"""A unit to the drop-in that has systemd run each of its commands in the unit's sandbox. No file and no bus is touched.

systemd goes on to decide when something is started, stopped and restarted; what it starts is `osmoda-watch exec`,
which reads the unit again, and runs the one command under the plan that the own engine would run it under. So what the
plan carries out is taken back from systemd here: its own sandboxing would keep the sandbox from being built.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import words
from osmoda.supervisor.units.files import GENERATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.supervisor.units.unit import Exec, Output, Unit

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "condition": "ExecCondition",
        "start-pre": "ExecStartPre",
        "start": "ExecStart",
        "start-post": "ExecStartPost",
        "reload": "ExecReload",
        "stop": "ExecStop",
        "stop-post": "ExecStopPost",
    }
)
"""The directive of each kind of command."""

_HEADING = """\
# Written by osmoda-watch, which has systemd run the commands of {unit} in its sandbox by this.
# Without it they would run outside; `osmoda-watch systemd remove {unit}` removes it.
"""

_NOTHING = (
    *("SystemCallFilter", "SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallLog", "RestrictFileSystems"),
    *("RestrictAddressFamilies", "RestrictNetworkInterfaces", "IPAddressAllow", "IPAddressDeny", "SocketBindAllow"),
    *("SocketBindDeny", "AmbientCapabilities", "SecureBits", "DeviceAllow", "ReadWritePaths", "ReadOnlyPaths"),
    *("InaccessiblePaths", "ReadWriteDirectories", "ReadOnlyDirectories", "InaccessibleDirectories", "ExecPaths"),
    *("NoExecPaths", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountFlags", "RootDirectory"),
    *("CPUQuota", "LimitNOFILE", "LimitFSIZE", "LimitAS", "LimitSTACK", "LimitCORE", "LimitNPROC", "User", "Group"),
)
_NO = (
    *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "PrivateMounts"),
    *("PrivateIPC", "PrivatePIDs", "PrivateBPF", "ProtectClock", "ProtectControlGroups", "ProtectHostname"),
    *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectSystem", "ProtectHome"),
    *("LockPersonality", "RestrictRealtime", "RestrictSUIDSGID", "RestrictNamespaces", "RemoveIPC", "DynamicUser"),
    "MountAPIVFS",
)

TAKEN_BACK: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_NOTHING, ""),
        **dict.fromkeys(_NO, "no"),
        "CapabilityBoundingSet": "~",  # all but none; empty it would be none
        "ProtectProc": "default",
        "ProcSubset": "all",
        "DevicePolicy": "auto",
        **dict.fromkeys(("MemoryMax", "MemoryLimit", "MemorySwapMax", "TasksMax"), "infinity"),
    }
)
"""What the plan carries out instead of systemd, each with the value that undoes it there (systemd.exec(5)).

Every other directive that a unit may have at all asks for nothing, or for what its processes inherit.
"""

# What the wrapper does itself: read as the agent's, files and variables that the agent can write would decide what
# happens outside.
_OURS = ("Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment", "WorkingDirectory")


def commands(unit: Unit, kind: str) -> tuple[Exec, ...]:
    """The commands of one kind."""
    found: tuple[Exec, ...] = getattr(unit, "exec_" + kind.replace("-", "_"))
    return found


def drop_in(unit: Unit, program: str) -> str:
    """The text of `UNIT.d/zzz-osmoda.conf`; `program` is the absolute path of `osmoda-watch`.

    Raises UnitError for what cannot mean the same under systemd.
    """
    _refuse(unit)
    lines = [_HEADING.format(unit=unit.name), "[Service]"]
    lines += _semantics(unit)
    lines += [f"{name}=" for name in _OURS]
    given = dict.fromkeys(directive.name for directive in unit.confinement)
    if unit.user:
        given["User"] = None
    if unit.group:
        given["Group"] = None
    lines += [f"{name}={TAKEN_BACK[name]}" for name in given if name in TAKEN_BACK]
    # A sandbox with limits gets control groups below the service's own.
    lines.append("Delegate=yes")
    mark = fingerprint(unit)
    for kind, directive in KINDS.items():
        lines.append(f"{directive}=")
        for number, command in enumerate(commands(unit, kind)):
            marks = "-:" if command.ignore_failure else ":"
            argv = (marks + program, "exec", kind, str(number), mark, unit.name)
            lines.append(f"{directive}={' '.join(map(escaped, argv))}")
    return "\n".join(lines) + "\n"


def escaped(word: str) -> str:
    """A word as it has to stand in a command line of a unit, for systemd to give just it to the program.

    Its variables are not escaped: the prefix ":" keeps systemd from them.
    """
    return words.quote(word.replace("%", "%%"))


def fingerprint(unit: Unit) -> str:
    """What a drop-in depends on: another one means that it was written for other files than there are now."""
    parts: list[object] = [_semantics(unit), [directive.name for directive in unit.confinement], unit.user, unit.group]
    parts += [[(one.program, one.words, one.ignore_failure) for one in commands(unit, kind)] for kind in KINDS]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _semantics(unit: Unit) -> list[str]:
    """How systemd has to look at the wrapper, for the unit to mean what it says of its program."""
    found = []
    if unit.type != "oneshot":
        # It is up when the program was executed in its sandbox: the wrapper says so; or when the program itself does.
        found.append("Type=notify")
    whoever = unit.notify_access in ("exec", "all")
    found.append(f"NotifyAccess={'all' if whoever else 'main'}")
    # The wrapper passes the signal on, to all that is inside or to the program alone; what is left then is killed.
    found.append("KillMode=mixed")
    found += [
        f"{name}=journal"
        for name, output in (("StandardOutput", unit.standard_output), ("StandardError", unit.standard_error))
        if opened_inside(output)
    ]
    if unit.standard_input.kind == "file":
        found.append("StandardInput=null")
    return found


def opened_inside(output: Output) -> bool:
    """Whether a stream goes to a file, which the wrapper opens: systemd would follow links that the agent has made."""
    return output.kind in ("file", "append", "truncate")


def _refuse(unit: Unit) -> None:
    for kind in KINDS:
        for command in commands(unit, kind):
            if command.program != command.words[0]:
                raise UnitError(
                    'the prefix "@" is not possible here: a sandbox executes what its first word names', command.origin
                )
    if unit.osmoda.group:
        raise UnitError(
            "RestartGroup= needs osmoda's own engine; under systemd, StartLimitBurst= of each unit is what there is",
            unit.origins.get("X-Osmoda.RestartGroup"),
        )


def path(folder: str, unit: str) -> str:
    """Where the drop-in of a unit lies below a folder of units."""
    return f"{folder}/{unit}.d/{GENERATED}"
