"""A program that says when it was executed, and what a benchmark of those who restart it needs.

Imports the standard library only: it also runs in the container that systemd is measured in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

# Says when it was executed, by the clock that all of a host has in common, and stays.
TICK = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec now;
    char line[64];
    clock_gettime(CLOCK_MONOTONIC, &now);
    int size = snprintf(line, sizeof line, "%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    if (write(1, line, size) != size) return 1;
    for (;;) pause();
}
"""
PATIENCE = 60.0


def tick(folder: Path) -> Path:
    """The program, in a folder of its own: that tells who runs it."""
    folder.mkdir(parents=True)
    source = folder / "tick.c"
    source.write_text(TICK)
    # Static: systemd is measured with it in a container whose C library may be another one.
    subprocess.run(["gcc", "-O2", "-static", "-o", folder / "tick", source], check=True)
    return folder / "tick"


def wait_until(look: Any, what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"it took too long until {what}")
        time.sleep(0.0002)
    return found


def running(program: Path) -> list[int]:
    """The processes that execute `program`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/exe") == str(program):
                    found.append(int(entry))
    return found


def unit(folder: Path, name: str, program: Path, output: str, *, pool: int = 0) -> None:
    text = "[Unit]\nStartLimitIntervalSec=0\n[Service]\n"
    text += f"WorkingDirectory={program.parent}\nExecStart={program}\nRestart=always\nRestartSec=0\n"
    text += f"StandardOutput={output}\n" + (f"[X-Osmoda]\nPool={pool}\n" if pool else "")
    (folder / f"{name}.service").write_text(text)


def restart(program: Path, output: Path) -> float:
    """Kill it; the milliseconds from then until it was executed again."""
    (pid,) = wait_until(lambda: running(program), f"{program} runs")
    size = output.stat().st_size
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: output.stat().st_size > size, f"{program} is restarted")
    line = output.read_bytes()[size:]
    return (float(line.split()[0]) - began) * 1e3
