"""A small engine for tests of switches: agents are real processes that say which generation they run from.

`PlainAgents` starts them as they are, in 2 ms; `ConfinedAgents` in sandboxes, by the unit that is on disk, as a daemon
does. Both restart what ends, look at its health, and end with the process that has started them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.service import Ended, Failed, Running, Service, Started
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.switch.agents import Condition, Health
from osmoda.supervisor.switch.store import Store
from osmoda.supervisor.units.loading import Loader

PR_SET_PDEATHSIG = 1
MOST_RESTARTS = 8
libc = ctypes.CDLL(None)


class Agent:
    """One that was started on request: what runs, and what it said."""

    def __init__(self) -> None:
        self.generation = ""
        self.pid = 0
        self.restarts = 0
        self.up = False
        self.given_up = False
        self.reason = ""
        self.task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()


class SmallEngine:
    """What both share: `osmoda.supervisor.switch.agents.Agents`, over `_run` of one process from start to end."""

    def __init__(self, store: Store, place: Path) -> None:
        self.store = store
        self.place = place
        self.agents: dict[str, Agent] = {}
        self.started: list[str] = []
        self._queues: list[asyncio.Queue[str]] = []

    async def _run(self, name: str, agent: Agent) -> None:
        raise NotImplementedError

    async def _supervise(self, name: str, agent: Agent) -> None:
        while True:
            try:
                await self._run(name, agent)
            except SupervisorError as error:
                agent.reason = str(error)
            was_up, agent.up, agent.pid = agent.up, False, 0
            if not was_up or agent.restarts >= MOST_RESTARTS:
                agent.given_up = True
                agent.ready.set()
                self._tell(name)
                return
            agent.restarts += 1
            self._tell(name)

    def _is_up(self, name: str, agent: Agent, generation: str, pid: int) -> None:
        agent.generation, agent.pid, agent.up = generation, pid, True
        self.started.append(generation)
        agent.ready.set()
        self._tell(name)

    def _tell(self, name: str) -> None:
        for queue in self._queues:
            queue.put_nowait(name)

    async def start(self, name: str) -> None:
        agent = self.agents.get(name)
        if agent is not None and not agent.given_up:
            return
        agent = self.agents[name] = Agent()
        agent.task = asyncio.create_task(self._supervise(name, agent))
        await agent.ready.wait()
        if agent.given_up:
            raise SupervisorError(f"{name} did not start: {agent.reason}")

    async def stop(self, name: str) -> None:
        agent = self.agents.pop(name, None)
        if agent is not None and agent.task is not None:
            agent.task.cancel()
            await asyncio.gather(agent.task, return_exceptions=True)
            self._tell(name)

    def release(self, name: str) -> None: ...

    async def close(self) -> None:
        for name in tuple(self.agents):
            await self.stop(name)

    async def condition(self, name: str) -> Condition:
        agent = self.agents.get(name)
        if agent is None:
            return Condition(running=False, given_up=True, health="unchecked", restarts=0)
        return Condition(agent.up, agent.given_up, self._health(name), agent.restarts, agent.reason, agent.pid)

    def _health(self, name: str) -> Health:
        """The agent's code holds what its check would say."""
        try:
            text = (self.place / name / "health").read_text().strip()
        except FileNotFoundError:
            return "unchecked"
        return "unhealthy" if text == "unhealthy" else "starting" if text == "starting" else "healthy"

    @contextlib.asynccontextmanager
    async def changes(self, names: frozenset[str]) -> AsyncIterator[AsyncIterator[str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.append(queue)

        async def told() -> AsyncIterator[str]:
            while True:
                name = await queue.get()
                if name in names:
                    yield name

        try:
            yield told()
        finally:
            self._queues.remove(queue)


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class PlainAgents(SmallEngine):
    """Without sandboxes: for what is tried hundreds of times."""

    async def _run(self, name: str, agent: Agent) -> None:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            str(self.place / name / "main.sh"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        try:
            assert process.stdout is not None
            word, _, generation = (await process.stdout.readline()).decode().strip().partition(" ")
            if word == "ready":
                self._is_up(name, agent, generation, process.pid)
            agent.reason = f"it ended with {await process.wait()}"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process._transport.close()  # type: ignore[attr-defined]


class ConfinedAgents(SmallEngine):
    """In sandboxes, by the unit that the current generation holds."""

    def __init__(self, store: Store, place: Path, search: Sequence[str]) -> None:
        super().__init__(store, place)
        self.search = search

    async def _run(self, name: str, agent: Agent) -> None:
        unit = Loader((*self.store.unit_directories(), *self.search)).load(name)
        confined = await asyncio.to_thread(confine, unit)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            service = Service(confined.profile, workspace=confined.workspace, agent=name)
            argv = unit.exec_start[0].words
            running = service.start(argv, env={}, cwd=unit.working_directory, stdin=null, stdout=write_fd, stderr=null)
        except SandboxError as error:
            os.close(read_fd)
            raise SupervisorError(str(error)) from None
        finally:
            os.close(write_fd)
            os.close(null)
        try:
            with service, os.fdopen(read_fd, "rb") as output:
                pid = await self._started(running)
                line = await asyncio.to_thread(output.readline)
                word, _, generation = line.decode().strip().partition(" ")
                if word == "ready":
                    self._is_up(name, agent, generation, pid)
                agent.reason = await self._ended(running)
        except asyncio.CancelledError:
            running.kill()
            await self._ended(running)
            raise
        finally:
            running.close()

    async def _events(self, running: Running) -> Sequence[object]:
        loop = asyncio.get_running_loop()
        heard = loop.create_future()
        loop.add_reader(running.fileno(), lambda: heard.done() or heard.set_result(None))
        try:
            await heard
        finally:
            loop.remove_reader(running.fileno())
        return running.events()

    async def _started(self, running: Running) -> int:
        while True:
            for event in await self._events(running):
                if isinstance(event, Started):
                    return event.pid
                if isinstance(event, Failed):
                    raise SupervisorError(str(event.error))

    async def _ended(self, running: Running) -> str:
        while True:
            for event in await self._events(running):
                if isinstance(event, Ended):
                    return f"it ended with {event.result.status}"
                if isinstance(event, Failed):
                    return str(event.error)
