"""Sandboxes from a pool, from a running Python process: one at a time, as many as there can be, and what they weigh."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peers
from timing import Sample, children, interleaved, spawned

from osmoda.sandbox import Pool

SIZE = 8
_TICK = os.sysconf("SC_CLK_TCK")


def pooled(rounds: int, seconds: float) -> dict[str, Any]:
    """`Pool.run(["true"])` in tier 2: against bubblewrap in turns, then against it for `seconds` on all cores."""
    before = children()
    with Pool(size=SIZE, tier=2) as pool:
        pool.prepare()
        (keeper,) = children() - before
        memory = _idle(keeper)

        def ours() -> Sample:
            cpu, began = time.process_time(), time.perf_counter()
            _check(pool)
            return Sample(time.perf_counter() - began, time.process_time() - cpu)

        bubblewrap = peers.bubblewrap()["bwrap"]
        timings = interleaved({"Pool.run": ours, "bwrap": spawned(bubblewrap)}, rounds, warm=5)
        sustained = {
            "Pool.run": _sustained(lambda: _check(pool), seconds),
            "bwrap": _sustained(lambda: _spawn(bubblewrap), seconds),
        }
    return {
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "sustained": sustained,
        "idle": memory,
    }


def _check(pool: Pool) -> None:
    if pool.run(["true"]).status:
        raise RuntimeError("true ended with an error")


def _spawn(argv: list[str]) -> None:
    pid = os.posix_spawn(argv[0], argv, os.environ)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{argv[0]} ended with an error")


def _sustained(call: Callable[[], None], seconds: float) -> dict[str, float]:
    """How often a second, from as many threads as there are cores, and the CPU seconds that the machine spent on each.

    That of the whole machine, since much of it is the kernel's, for nobody: it is a quiet machine that this wants.
    """
    end = time.monotonic() + seconds
    counts: list[int] = []

    def work() -> None:
        count = 0
        while time.monotonic() < end:
            call()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in range(len(os.sched_getaffinity(0)))]
    busy, began = _busy(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"rate": sum(counts) / (time.monotonic() - began), "cpu": (_busy() - busy) / sum(counts)}


def _busy() -> float:
    """Seconds of CPU that the machine has spent, idle time apart (proc_stat(5))."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / _TICK


def _idle(keeper: int) -> float:
    """Bytes of PSS of a waiting sandbox, the mean of all; when the last one is built."""
    while True:
        waiting = [
            pid
            for pid in map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split())
            if Path(f"/proc/{pid}/comm").read_text() == "osmoda-init\n"
        ]
        if len(waiting) == SIZE:
            break
        time.sleep(0.01)
    time.sleep(0.2)  # the last one settles
    return sum(_pss(pid) for pid in waiting) / SIZE


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise LookupError(pid)
