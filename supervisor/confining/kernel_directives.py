"""systemd's directives on privileges, namespaces, system calls and the kernel's interfaces."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from osmoda.sandbox import seccomp
from osmoda.sandbox.grants import few
from osmoda.sandbox.syscall_groups import GROUPS, calls
from osmoda.supervisor.confining import plan_demands as demands
from osmoda.supervisor.confining.directive_rules import Rule, bound, refused, switch, word
from osmoda.supervisor.units.values import boolean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.units.unit import Directive

_MODULES = "/usr/lib/modules"
_SET_ID = stat.S_ISUID | 0o755
_PER_LINUX32 = 8
_REALTIME = ("sched_setattr", "sched_setparam", "sched_setscheduler")


def _no_modules(narrowing: Narrowing, last: Directive) -> None:
    narrowing.deny(_MODULES, last.origin)


def _no_realtime(narrowing: Narrowing, last: Directive) -> None:
    # systemd's filter looks at the policy; this one takes the calls away, which is less than that still allows.
    narrowing.remove_calls(_REALTIME, last.origin)


def _system_calls(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """config_parse_syscall_filter() of systemd, then all that the result refuses is taken away from the profile."""
    listed: set[str] = set()
    allows: bool | None = None
    for directive in given:
        if not directive.value:
            listed, allows = set(), None
            continue
        inverted = directive.value.startswith("~")
        if allows is None:
            allows = not inverted
            listed = set(GROUPS["@default"]) if allows else set()
        for word_ in directive.value.removeprefix("~").split():
            name, colon, answer = word_.partition(":")
            if colon and answer not in ("EPERM", "1"):
                narrowing.refuse(directive, f"a refused call is answered with EPERM, and not with {answer}")
            if inverted != allows:
                listed |= calls(name)
            else:
                listed -= calls(name)
    if allows is None:
        return
    last = given[-1]
    narrowing.sandboxed(last)
    held = seccomp.allowed(narrowing.profile.process.syscalls, tier=narrowing.profile.tier)
    taken = held - listed if allows else held & listed
    needed = taken & seccomp.FLOOR
    if needed:
        narrowing.refuse(last, f"it takes away {few(needed)}, without which no sandbox starts a program")
    narrowing.remove_calls(taken, last.origin)
    narrowing.demand(last, demands.calls_refused(sorted(taken)))


def _namespaces(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """`no`, or which kinds may be made: a sandbox lets none be made, whatever the list."""
    last = given[-1]
    try:
        asked = boolean(last.value)
    except ValueError:
        asked = bool(last.value)
    if asked:
        narrowing.sandboxed(last)
        narrowing.demand(last, demands.no_nested_namespaces)


def _error_number(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if last.value:
        narrowing.sandboxed(last)
        number = int(last.value) if last.value.isdecimal() else getattr(errno, last.value, 0)
        narrowing.demand(last, demands.answers_with(number))


RULES: dict[str, Rule] = {
    "NoNewPrivileges": switch(demands.no_capabilities),
    "CapabilityBoundingSet": bound(demands.no_capabilities),
    "AmbientCapabilities": refused("nothing in a sandbox has a capability"),
    "SecureBits": refused("nothing in a sandbox has a capability, or gains one"),
    "PrivateUsers": switch(demands.namespace("user"), also=("self",)),
    "PrivateIPC": switch(demands.namespace("ipc")),
    "PrivatePIDs": switch(demands.namespace("pid")),
    "RemoveIPC": switch(demands.namespace("ipc")),
    "ProtectHostname": switch(
        demands.namespace("uts"),
        demands.calls_refused(("sethostname", "setdomainname")),
        also=("private",),
    ),
    "ProtectControlGroups": switch(
        demands.path_refused("/sys/fs/cgroup", "read", "write"),
        demands.namespace("cgroup"),
        also=("private", "strict"),
    ),
    "ProtectKernelTunables": switch(demands.sealed_proc),
    "ProtectKernelModules": switch(
        demands.no_capabilities,
        demands.calls_refused(GROUPS["@module"]),
        demands.path_refused(_MODULES, "read"),
        narrow=_no_modules,
    ),
    "ProtectKernelLogs": switch(
        demands.no_capabilities, demands.calls_refused(("syslog",)), demands.path_refused("/dev/kmsg", "read", "write")
    ),
    "ProtectClock": switch(demands.no_capabilities, demands.calls_refused(GROUPS["@clock"]), demands.own_devices),
    "PrivateDevices": switch(
        demands.own_devices,
        demands.no_capabilities,
        demands.calls_refused(GROUPS["@raw-io"]),
        demands.call_refused_with("mknodat", 0, 0, stat.S_IFCHR | 0o600),
    ),
    "PrivateBPF": switch(demands.calls_refused(("bpf",)), demands.no_capabilities),
    "ProtectProc": word(
        {
            "default": (),
            "invisible": (demands.namespace("pid"),),
            "noaccess": (demands.namespace("pid"),),
            "ptraceable": (demands.namespace("pid"),),
        }
    ),
    "ProcSubset": word({"all": (), "pid": "/proc shows more than processes, read-only"}),
    "RestrictNamespaces": _namespaces,
    "RestrictRealtime": switch(demands.calls_refused(_REALTIME), narrow=_no_realtime),
    "RestrictSUIDSGID": switch(
        demands.call_refused_with("fchmodat", 0, 0, _SET_ID),
        demands.call_refused_with("fchmod", 0, _SET_ID),
        demands.call_refused_with("openat", 0, 0, os.O_CREAT, _SET_ID),
        demands.call_refused_with("mkdirat", 0, 0, stat.S_ISGID | 0o755),
        demands.call_refused_with("mknodat", 0, 0, stat.S_IFREG | _SET_ID),
    ),
    "LockPersonality": switch(demands.call_refused_with("personality", _PER_LINUX32)),
    "Personality": word(
        {
            name: (() if name in ("x86-64", "arm64") else "a sandbox runs programs of this machine only")
            for name in ("x86", "x86-64", "arm", "arm64")
        }
    ),
    "MemoryDenyWriteExecute": refused(
        "no layer of a sandbox looks at the protection of memory, which interpreters with a compiler change",
        "no",
        "false",
    ),
    "SystemCallFilter": _system_calls,
    "SystemCallArchitectures": bound(demands.only_native_calls),
    "SystemCallErrorNumber": _error_number,
    "SystemCallLog": refused("calls are reported where they are refused, and not where they are allowed"),
    "KeyringMode": word(
        {
            "private": (demands.own_keyring,),
            "inherit": "no sandbox reaches a key ring, which no namespace separates",
            "shared": "no sandbox reaches a key ring, which no namespace separates",
        }
    ),
    "DynamicUser": switch(demands.own_host_uid, demands.no_capabilities, demands.namespace("ipc")),
    "SupplementaryGroups": refused("a sandbox belongs to no group of the host"),
    "PAMName": refused("a sandbox has no session of PAM"),
    "SELinuxContext": refused("osmoda confines without SELinux, and sets no label"),
    "AppArmorProfile": refused("osmoda confines without AppArmor, and sets no profile"),
    "SmackProcessLabel": refused("osmoda confines without Smack, and sets no label"),
    "IgnoreSIGPIPE": word({"no": (), "false": (), "yes": "a program starts with the default action for SIGPIPE"}),
}
