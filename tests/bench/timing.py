"""Timing whole processes, interleaved, so that a ratio compares runs of the same seconds."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Sample:
    """One run: seconds of wall clock, and of CPU in user and kernel mode."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Timing:
    """What many runs of one thing took, in seconds: median, 90th and 99th percentile, and the mean of the CPU time.

    CPU is a mean because the kernel counts some of it in hundredths of a second only.
    """

    p50: float
    p90: float
    p99: float
    cpu: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Timing:
        walls = sorted(sample.wall for sample in samples)
        cpu = statistics.fmean(sample.cpu for sample in samples)
        return cls(
            statistics.median(walls), walls[len(walls) * 9 // 10], walls[len(walls) * 99 // 100], cpu, len(walls)
        )


def children() -> set[int]:
    """The processes that this one has started or inherited, and not reaped."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def adopt_orphans() -> None:
    """From now on, what a timed program leaves behind comes to this process, and its CPU time is counted.

    Bubblewrap's outer process does not wait for the inner one, which has done most of the work.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans(own: set[int]) -> float:
    """Seconds of CPU of the processes that have come here."""
    cpu = 0.0
    while orphans := children() - own:
        for pid in orphans:
            _, _, usage = os.wait4(pid, 0)
            cpu += usage.ru_utime + usage.ru_stime
    return cpu


def spawned(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Callable[[], Sample]:
    """Something to time: a process from posix_spawn(3) to its end; CPU with all that it started (wait4(2))."""
    program, words = argv[0], list(argv)
    variables = dict(os.environ if environment is None else environment)
    quiet = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]

    def run() -> Sample:
        own = children()
        began = time.perf_counter()
        pid = os.posix_spawn(program, words, variables, file_actions=quiet)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise RuntimeError(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
        return Sample(wall, usage.ru_utime + usage.ru_stime + _reap_orphans(own))

    return run


def interleaved(things: Mapping[str, Callable[[], Sample]], rounds: int, warm: int = 3) -> dict[str, Timing]:
    """Time each thing `rounds` times, taking turns; who goes first moves on by one each round."""
    for _ in range(warm):
        for thing in things.values():
            thing()
    samples: dict[str, list[Sample]] = {name: [] for name in things}
    names = list(things)
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            samples[name].append(things[name]())
    return {name: Timing.of(found) for name, found in samples.items()}
