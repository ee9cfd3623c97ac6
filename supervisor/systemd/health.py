"""Health checks of a unit that systemd runs: made by the process that systemd has started for it, in a thread.

An agent that is unhealthy is reported as one whose watchdog was not fed (WATCHDOG=trigger of sd_notify(3)), so that
systemd ends it, and restarts it where Restart= says so for a watchdog.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.lifecycle import health
from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from osmoda.sandbox.running import Running
    from osmoda.supervisor.units.unit import Exec, Health, Unit

_FIRST_CHECKS = 1.0  # seconds between checks until one has passed, where the interval is longer


def watch(unit: Unit, running: Running, tell: Callable[[bytes], None]) -> None:
    """Check the program of `unit`, which has just been executed, for as long as this process lives."""

    def check() -> None:
        problem = asyncio.run(_until_unhealthy(unit.osmoda.health, _Agent(unit, running)))
        print(f"osmoda-watch: it is unhealthy: {problem}", file=sys.stderr, flush=True)
        tell(b"STATUS=unhealthy: " + problem.replace("\n", " ").encode() + b"\nWATCHDOG=trigger")

    threading.Thread(target=check, name="health", daemon=True).start()


async def _until_unhealthy(wanted: Health, agent: health.Agent) -> str:
    loop = asyncio.get_running_loop()
    tally = health.Tally(wanted, loop.time())
    while True:
        problem = await health.check_all(wanted, agent)
        if not problem:
            tally.passed()
        elif tally.failed(problem, loop.time()):
            return problem
        await asyncio.sleep(min(wanted.interval, _FIRST_CHECKS) if tally.state == "starting" else wanted.interval)


class _Agent:
    """What runs, for the checks."""

    def __init__(self, unit: Unit, running: Running) -> None:
        self._unit = unit
        self._running = running

    async def connect(self, port: int) -> socket.socket:
        # Not in yet another thread, which this process would have to wait for at its end.
        try:
            connection = self._running.connect(port, self._unit.osmoda.health.timeout)
        except SandboxError as error:
            raise OSError(0, str(error)) from None
        connection.setblocking(False)
        return connection

    async def run(self, command: Exec) -> int:
        number = [check.command for check in self._unit.osmoda.health.checks].index(command)
        argv = (sys.argv[0], "exec", "health", str(number), systemd_drop_ins.fingerprint(self._unit), self._unit.name)
        process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL, env={})
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
