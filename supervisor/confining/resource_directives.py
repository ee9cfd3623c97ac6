"""systemd's directives on resources: control groups, resource limits, and what a process inherits."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from osmoda.host import features
from osmoda.supervisor.confining import directive_values as values
from osmoda.supervisor.confining import plan_demands as demands
from osmoda.supervisor.confining.directive_rules import Rule, inherited, refused, word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.units.unit import Directive

_HARD_ONLY = "a sandbox has one limit of memory, a hard one: MemoryMax="
_WEIGHTS = "sandboxes share what is left of CPU and disk evenly; CPUQuota= bounds the CPU time of one"
_SLICES = "the control group of a sandbox has a place of its own"
_PINNED = "sandboxes run on whichever CPUs and memory the host gives them"


def physical_memory() -> int:
    """Bytes of memory that this machine has (proc_meminfo(5))."""
    return _number_in("/proc/meminfo", "MemTotal:") * 1024


def _number_in(path: str, name: str) -> int:
    with open(path, encoding="ascii") as stream:
        return next((int(line.split()[1]) for line in stream if line.startswith(name)), 0)


def _most_tasks() -> int:
    with open("/proc/sys/kernel/threads-max", encoding="ascii") as stream:
        return int(stream.read())


def _memory(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if last.value:
        most = values.size(last.value, physical_memory())
        if most == 0:
            narrowing.refuse(last, "nothing runs in no memory")
        narrowing.limit(("process", "memory"), most, last)
        if most is not None:
            narrowing.demand(last, demands.memory_limited)


def _cpu(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if last.value:
        narrowing.limit(("process", "cpu"), values.cores(last.value), last)
        narrowing.demand(last, demands.cpu_limited)


def _tasks(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if last.value:
        most = values.count(last.value, _most_tasks())
        if most == 0:
            narrowing.refuse(last, "nothing runs in no process")
        narrowing.limit(("process", "pids"), most, last)
        narrowing.demand(last, demands.processes_limited)


def _swap(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    most = values.size(last.value, physical_memory()) if last.value else None
    if most == 0:
        narrowing.demand(last, _no_swap)
    elif most is not None:
        narrowing.refuse(last, "what has a limit of memory has no swap besides; MemorySwapMax=0 says that")


def _no_swap(built: demands.Built) -> str:
    with open("/proc/swaps", encoding="utf-8", errors="surrogateescape") as stream:
        if len(stream.readlines()) <= 1:
            return ""
    if features.probe().cgroup_version != 2:
        return "only control groups of version 2 keep swap from it"
    return demands.memory_without_swap(built)


def _rlimit(name: str, in_bytes: bool, narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if not last.value:
        return
    most = values.limit(last.value, in_bytes=in_bytes)
    if name == "processes":
        narrowing.limit(("process", "pids"), most, last)
        narrowing.demand(last, demands.processes_limited)
    else:
        narrowing.limit(("process", "limits", name), most, last)


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return next(int(line.split()[1], 8) for line in stream if line.startswith("Umask:"))


def _oom_score() -> int:
    with open("/proc/self/oom_score_adj", encoding="ascii") as stream:
        return int(stream.read())


def _accounting() -> Rule:
    """Counting is no limit: memory and CPU of every sandbox are counted, and connections by its gateway."""
    return word(dict.fromkeys(("yes", "no", "true", "false", "on", "off", "1", "0"), ()))


RULES: dict[str, Rule] = {
    "MemoryMax": _memory,
    "MemoryLimit": _memory,
    "MemoryHigh": refused(_HARD_ONLY, "infinity"),
    "StartupMemoryHigh": refused(_HARD_ONLY, "infinity"),
    "StartupMemoryMax": refused(_HARD_ONLY, "infinity"),
    "MemorySwapMax": _swap,
    "StartupMemorySwapMax": refused(_HARD_ONLY, "infinity"),
    "MemoryZSwapMax": refused(_HARD_ONLY, "infinity"),
    "StartupMemoryZSwapMax": refused(_HARD_ONLY, "infinity"),
    "MemoryZSwapWriteback": refused(_HARD_ONLY, "yes", "true"),
    "MemoryMin": refused("no memory is kept for a sandbox", "0"),
    "MemoryLow": refused("no memory is kept for a sandbox", "0"),
    "StartupMemoryLow": refused("no memory is kept for a sandbox", "0"),
    "DefaultMemoryMin": refused("no memory is kept for a sandbox", "0"),
    "DefaultMemoryLow": refused("no memory is kept for a sandbox", "0"),
    "DefaultStartupMemoryLow": refused("no memory is kept for a sandbox", "0"),
    "MemoryKSM": refused("no memory is merged", "no", "false"),
    "MemoryPressureWatch": refused("nothing watches the pressure of memory", "no", "off", "auto", "skip"),
    "MemoryPressureThresholdSec": refused("nothing watches the pressure of memory"),
    "CPUQuota": _cpu,
    "CPUQuotaPeriodSec": refused("CPU time is given out every 100 ms", "100ms", "0.1", "0.1s"),
    "TasksMax": _tasks,
    **dict.fromkeys(
        ("CPUAccounting", "MemoryAccounting", "TasksAccounting", "IPAccounting"),
        _accounting(),
    ),
    "IOAccounting": refused("nothing counts its disk traffic", "no", "false"),
    "BlockIOAccounting": refused("nothing counts its disk traffic", "no", "false"),
    **dict.fromkeys(("CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight"), refused(_WEIGHTS, "100")),
    **dict.fromkeys(("CPUShares", "StartupCPUShares"), refused(_WEIGHTS, "1024")),
    **dict.fromkeys(
        (
            "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
            "IODeviceLatencyTargetSec", "BlockIOWeight", "StartupBlockIOWeight", "BlockIODeviceWeight",
            "BlockIOReadBandwidth", "BlockIOWriteBandwidth",
        ),
        refused("nothing bounds its disk traffic"),
    ),
    **dict.fromkeys(
        (
            "AllowedCPUs", "StartupAllowedCPUs", "AllowedMemoryNodes", "StartupAllowedMemoryNodes", "CPUAffinity",
            "NUMAMask",
        ),
        refused(_PINNED),
    ),
    "NUMAPolicy": refused(_PINNED, "default"),
    "Slice": refused(_SLICES, "system.slice", "-.slice"),
    "Delegate": refused("no control group is given to a sandbox", "no", "false"),
    "DelegateSubgroup": refused("no control group is given to a sandbox"),
    "DisableControllers": refused(_SLICES),
    "CoredumpReceive": refused("a sandbox is told of no core dump", "no", "false"),
    "ManagedOOMSwap": refused("systemd-oomd does not know sandboxes", "auto"),
    "ManagedOOMMemoryPressure": refused("systemd-oomd does not know sandboxes", "auto"),
    "ManagedOOMMemoryPressureLimit": refused("systemd-oomd does not know sandboxes"),
    "ManagedOOMMemoryPressureDurationSec": refused("systemd-oomd does not know sandboxes"),
    "ManagedOOMPreference": refused("systemd-oomd does not know sandboxes", "none"),
    "OOMPolicy": refused("who has no memory left is killed by the kernel, whole under control groups of version 2"),
    "DevicePolicy": word({"auto": (), "closed": (demands.own_devices,), "strict": "a sandbox has the pseudo devices"}),
    "LimitNOFILE": partial(_rlimit, "open_files", False),
    "LimitFSIZE": partial(_rlimit, "file_size", True),
    "LimitAS": partial(_rlimit, "address_space", True),
    "LimitSTACK": partial(_rlimit, "stack", True),
    "LimitCORE": partial(_rlimit, "core", True),
    "LimitNPROC": partial(_rlimit, "processes", False),
    **dict.fromkeys(
        (
            "LimitCPU", "LimitDATA", "LimitRSS", "LimitMEMLOCK", "LimitLOCKS", "LimitSIGPENDING", "LimitMSGQUEUE",
            "LimitNICE", "LimitRTPRIO", "LimitRTTIME",
        ),
        refused("a profile has no such limit; MemoryMax=, CPUQuota= and TasksMax= bound an agent", "infinity"),
    ),
    "Nice": inherited("nice value", lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    "OOMScoreAdjust": inherited("OOM score", _oom_score),
    "UMask": inherited("umask", _umask, base=8),
    "CoredumpFilter": refused("a sandbox leaves no core dump, unless its profile says so"),
    "TimerSlackNSec": refused("the host's own setting holds"),
    "CPUSchedulingPolicy": refused(_WEIGHTS, "other"),
    "CPUSchedulingPriority": refused(_WEIGHTS, "0"),
    "CPUSchedulingResetOnFork": refused(_WEIGHTS, "no", "false"),
    "IOSchedulingClass": refused(_WEIGHTS, "none", "0"),
    "IOSchedulingPriority": refused(_WEIGHTS),
}  # fmt: skip


def _device_allow(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """Devices that every sandbox has; no other is given to one."""
    for directive in given:
        if directive.value:
            narrowing.demand(directive, demands.devices_in((directive.value.split()[0],)))


RULES["DeviceAllow"] = _device_allow
