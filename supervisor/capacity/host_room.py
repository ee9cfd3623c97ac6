"""The memory, CPU and disk that this host has for agents: the machine's, and what control groups leave of it."""

from __future__ import annotations

import os

from osmoda.host import paths
from osmoda.host.delegation import read_file
from osmoda.supervisor.capacity.plans_file import Amount
from osmoda.supervisor.confining.resource_directives import physical_memory

_ROOT = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 for none


def room(root: str = _ROOT, groups: str = "/proc/self/cgroup") -> Amount:
    """The least of what the machine has and what groups allow; disk is what is free where osmoda keeps its state."""
    memory, cpu = physical_memory(), float(len(os.sched_getaffinity(0)))
    for line in read_file(groups).splitlines():
        number, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if number == "0":
            for folder in _up(root, path):
                memory = min(memory, _number(f"{folder}/memory.max"))
                cpu = min(cpu, _quota(read_file(f"{folder}/cpu.max").split()))
        if "memory" in names:
            for folder in _up(f"{root}/memory", path):
                memory = min(memory, _number(f"{folder}/memory.limit_in_bytes"))
        if "cpu" in names:
            for folder in _up(f"{root}/cpu", path):
                both = [read_file(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
                cpu = min(cpu, _quota(both))
    return Amount(memory, cpu, free_disk(paths.directory("state")))


def free_disk(path: str) -> int:
    """Bytes that an ordinary user may still write where `path` is, or would be made (statvfs(3))."""
    while True:
        try:
            found = os.statvfs(path)
        except FileNotFoundError:
            path = os.path.dirname(path)
            continue
        return found.f_bavail * found.f_frsize


def _up(root: str, path: str) -> list[str]:
    """The folder of a group and of each group around it."""
    folders = [root]
    for part in path.strip("/").split("/"):
        if part not in ("", ".."):
            folders.append(f"{folders[-1]}/{part}")
    return folders


def _number(path: str) -> int:
    text = read_file(path).strip()
    return int(text) if text.isdigit() else _NO_LIMIT


def _quota(words: list[str]) -> float:
    """Cores of a quota and its period, both in µs; "max", -1 or nothing is no limit."""
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return float(1 << 20)
