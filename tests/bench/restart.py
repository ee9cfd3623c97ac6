"""From SIGKILL of a supervised program to its next exec: `Service`, with and without a pool, runit and supervisord.

    python tests/bench/restart.py --rounds 200 --runsv runit/usr/bin/runsv --supervisord venv/bin/supervisord

What comes between a supervisor's policy and the launch is not in it: the next start follows the event of the end at
once. Each round kills one program of each kind, in turns; a second lies between two rounds, which runsv and supervisord
want before they take an end for a reason to start again.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from osmoda.sandbox import profile_file
from osmoda.sandbox.service import Service
from osmoda.sandbox.service_events import Ended, Failed, Started

SOURCE = Path(__file__).with_name("restart.c")
SECONDS = 30.0
BETWEEN = 1.2

type Restart = Callable[[], float]
"""Kills the program and gives the seconds until it has started again."""


class Starts:
    """A FIFO on which a program says that it has started."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "starts"
        os.mkfifo(self.path, 0o666)
        os.chmod(self.path, 0o666)
        # For writing too, so that it never ends.
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def next(self) -> tuple[float, int]:
        """When it started (monotonic clock, seconds), and its pid as it counts."""
        if not select.select([self._fd], [], [], SECONDS)[0]:
            raise TimeoutError(f"{self.path} has not started")
        nanoseconds, pid = struct.unpack("qq", os.read(self._fd, 16))
        return nanoseconds / 1e9, pid


@contextmanager
def ours(agent: Path, folder: Path, pool: int) -> Iterator[Restart]:
    starts = Starts(folder)
    text = f'schema = 1\ntier = 1\n[filesystem]\nread = ["{agent.parent}"]\nwrite = ["{folder}"]\nworkspace = "none"\n'
    with Service(profile_file.load_text(text, "/bench.toml", "/"), pool=pool) as service:
        null = os.open(os.devnull, os.O_RDWR)
        streams = {"stdin": null, "stdout": null, "stderr": null}
        command = [os.fspath(agent), os.fspath(starts.path)]

        def wait[Kind](kind: type[Kind]) -> Kind:
            while True:
                select.select([running], [], [], SECONDS)
                for event in running.events():
                    if isinstance(event, kind):
                        return event
                    if isinstance(event, Failed):
                        raise event.error

        running = service.start(command, env={}, cwd="/", **streams)  # type: ignore[arg-type]
        main = wait(Started)
        starts.next()

        def restart() -> float:
            nonlocal running, main
            killed = time.monotonic()
            os.kill(main.pid, signal.SIGKILL)
            wait(Ended)
            running.close()
            running = service.start(command, env={}, cwd="/", **streams)  # type: ignore[arg-type]
            main = wait(Started)
            return starts.next()[0] - killed

        try:
            yield restart
        finally:
            running.close()
            os.close(null)


def _killing(starts: Starts) -> Restart:
    pid = starts.next()[1]

    def restart() -> float:
        nonlocal pid
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        started, pid = starts.next()
        return started - killed

    return restart


@contextmanager
def runit(agent: Path, folder: Path, runsv: str) -> Iterator[Restart]:
    starts = Starts(folder)
    service = folder / "service"
    service.mkdir()
    script = service / "run"
    script.write_text(f"#!/bin/sh\nexec {agent} {starts.path}\n")
    script.chmod(0o755)
    with subprocess.Popen([runsv, os.fspath(service)]) as process:
        try:
            yield _killing(starts)
        finally:
            process.terminate()


@contextmanager
def supervisord(agent: Path, folder: Path, program: str) -> Iterator[Restart]:
    starts = Starts(folder)
    configuration = folder / "supervisord.conf"
    configuration.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\n"
        f"[program:agent]\ncommand={agent} {starts.path}\nautorestart=true\nstartretries=1000000\n"
        "stdout_logfile=NONE\nstderr_logfile=NONE\n"
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen([program, "-c", os.fspath(configuration)], stdout=quiet, stderr=quiet) as process:
        try:
            yield _killing(starts)
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--runsv", default=shutil.which("runsv"))
    parser.add_argument("--supervisord", default=shutil.which("supervisord"))
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osmoda-restart-")))
        folder.chmod(0o755)
        program = folder / "program"
        program.mkdir()
        agent = program / "agent"
        subprocess.run(["cc", "-O2", "-o", agent, SOURCE], check=True)
        things = {
            "Service": stack.enter_context(ours(agent, folder / "plain", 0)),
            "Service, pool of 2": stack.enter_context(ours(agent, folder / "pooled", 2)),
        }
        if options.runsv:
            things["runit"] = stack.enter_context(runit(agent, folder / "runit", options.runsv))
        if options.supervisord:
            things["supervisord"] = stack.enter_context(supervisord(agent, folder / "supervisord", options.supervisord))
        took: dict[str, list[float]] = {name: [] for name in things}
        for _ in range(options.rounds):
            time.sleep(BETWEEN)
            for name, restart in things.items():
                took[name].append(restart())
    found = {}
    for name, values in took.items():
        values.sort()
        found[name] = {f"p{part}": round(values[len(values) * part // 100] * 1000, 2) for part in (50, 90, 99)}
    json.dump({"milliseconds": found, "rounds": options.rounds}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
