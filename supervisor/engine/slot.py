"""One command of a unit in a sandbox: its streams, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from osmoda.sandbox import processes
from osmoda.sandbox.service import Ended, Failed, Started
from osmoda.supervisor.confining.preparation import open_input, open_output
from osmoda.supervisor.logs.capture import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from osmoda.sandbox.service import Event, Running
    from osmoda.supervisor.confining.preparation import Prepared
    from osmoda.supervisor.lifecycle.state_messages import Which
    from osmoda.supervisor.logs.capture import Outlet
    from osmoda.supervisor.units.unit import Output

_PERIOD = 0.005  # seconds between looks for a sandbox that is being ended
_PATIENCE = 10.0


class Slot:
    """Where one command of a unit runs; `heard` is told of its events, until `close`."""

    def __init__(self, which: Which, outlet: Outlet, heard: Callable[[Slot, Event], None]) -> None:
        self.which = which
        self.running: Running | None = None
        self.started = False
        self.task: asyncio.Task[None] | None = None
        """What has to be waited for before it can be started."""
        self._going: asyncio.Task[None] | None = None  # its launcher was lost, and it may still run for a moment
        self._heard = heard
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._pipes: list[Pipe] = []

    def start(
        self,
        prepared: Prepared,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        listeners: Sequence[tuple[str, int]] = (),
        notify: bool = False,
        hold: bool = False,
    ) -> None:
        """Start `argv`. Raises SandboxError, OSError."""
        unit = prepared.unit
        opened: list[int] = []
        try:
            stdin = open_input(unit.standard_input.path or os.devnull)
            opened.append(stdin)
            stdout = self._output(unit.standard_output, "stdout", opened)
            inherits = unit.standard_error.kind == "inherit" and unit.standard_output.kind not in ("journal", "inherit")
            stderr = stdout if inherits else self._output(unit.standard_error, "stderr", opened)
            self.running = prepared.service.start(
                argv,
                env=env,
                cwd=unit.working_directory,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                listeners=listeners,
                notify=notify,
                hold=hold,
            )
        except BaseException:
            for pipe in self._pipes:
                pipe.close()
            raise
        finally:
            for fd in opened:
                os.close(fd)
        for pipe in self._pipes:
            pipe.given()
        self._loop.add_reader(self.running.fileno(), self._readable)

    def _output(self, output: Output, stream: str, opened: list[int]) -> int:
        if output.kind == "null":
            opened.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        elif output.path:
            opened.append(open_output(output))
        else:
            pipe = Pipe(self._loop, self._outlet, stream)
            self._pipes.append(pipe)
            return pipe.write_end
        return opened[-1]

    def _readable(self) -> None:
        assert self.running is not None
        for event in self.running.events():
            if isinstance(event, Started):
                self.started = True
                for pipe in self._pipes:
                    pipe.listen(event.pid)
            elif isinstance(event, Ended | Failed):
                identity = self.running.identity
                for pipe in self._pipes:
                    pipe.drain()
                self._let_go()
                if isinstance(event, Failed):
                    self._going = self._loop.create_task(self._tell_when_gone(event, identity))
                    return
            self._heard(self, event)

    async def _tell_when_gone(self, event: Failed, identity: str) -> None:
        """Where a launcher is lost, the kernel ends its sandboxes; until it has, another one may not be started."""
        until = self._loop.time() + _PATIENCE
        while await asyncio.to_thread(processes.exists, identity):
            if self._loop.time() > until:
                # Killed it is, all the same: what is left of it waits within the kernel, and runs no more.
                self._outlet.say(f"sandbox {identity} has not ended within {_PATIENCE:g} s", 3)
                break
            await asyncio.sleep(_PERIOD)
        self._going = None
        self._heard(self, event)

    def signal(self, number: int, *, everyone: bool) -> bool:
        """Send a signal; false where nothing runs that could get it."""
        if self.running is None:
            return self._going is not None
        if everyone:
            self.running.signal_all(number)
        else:
            self.running.signal_main(number)
        return True

    def kill(self) -> bool:
        """End all that is inside; false where nothing runs. Its end is an event."""
        if self.running is None:
            return self._going is not None
        self.running.kill()
        return True

    def _let_go(self) -> None:
        if self.running is not None:
            self._loop.remove_reader(self.running.fileno())
            self.running.close()
            self.running = None

    def close(self) -> None:
        """End it, if it still runs, and tell nobody."""
        for task in (self.task, self._going):
            if task is not None:
                task.cancel()
        self._let_go()
        for pipe in self._pipes:
            pipe.close()
