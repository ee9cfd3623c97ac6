"""Profiles from text, and their plans for a host whose features the test chooses."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from osmoda.host.features import Features
from osmoda.sandbox import profile_file
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.monitor import Outcome, RawDenial
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN

if TYPE_CHECKING:
    from pathlib import Path

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

MACHINE = "x86_64"


def host(**changed: Any) -> Features:
    """A host with every layer, as root sees it."""
    features: dict[str, Any] = {
        "kernel": (6, 18),
        "release": "6.18.0",
        "machine": MACHINE,
        "uid": 0,
        "privileged": True,
        "user_namespaces": 1000,
        "apparmor_restricted": False,
        "landlock": 7,
        "notify": True,
        "cgroup_version": 2,
        "controllers": ("memory", "cpu", "pids"),
        "last_capability": 40,
    }
    return Features(**features | changed)


def compiled(text: str, folder: Path | None = None, **changed: Any) -> tuple[Profile, Plan]:
    """The profile `text`, which is known as `/p/agent.toml`, and its plan."""
    source = "schema = 1\n" + textwrap.dedent(text).lstrip("\n")
    profile = profile_file.load_text(source, "/p/agent.toml", str(folder or "/p"))
    return profile, compile_profile(profile, host(**changed))


def outcome(*denials: RawDenial, **changed: Any) -> Outcome:
    """A run that ended well but for `denials`."""
    values: dict[str, Any] = {
        "status": 0,
        "signal": 0,
        "timed_out": False,
        "user_time": 0.0,
        "system_time": 0.0,
        "peak_memory": 0,
        "duration": 0.0,
        "oom_kills": 0,
        "forks_refused": 0,
        "refused": len(denials),
        "network": (),
        "denials": denials,
    }
    return Outcome(**values | changed)


def refused(call: str, *arguments: int, command: str = "prog", machine: str = MACHINE) -> RawDenial:
    """The kernel's report of a refused `call`."""
    registers = (*arguments, *(0,) * (6 - len(arguments)))
    return RawDenial(1.5, 77, command, KNOWN[machine][call], AUDIT_ARCH[machine], registers, 1)
