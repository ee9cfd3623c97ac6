"""One switch as it runs: carries out what `phases` says, and waits for what agents do, for times and for requests."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from osmoda.supervisor.switch import phases
from osmoda.supervisor.switch.errors import SwitchError, in_words
from osmoda.supervisor.switch.record import moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Self

    from osmoda.supervisor.switch.agents import Agents
    from osmoda.supervisor.switch.effects import Effects
    from osmoda.supervisor.switch.record import Moment, Record

_LOOK_AGAIN = 10.0  # seconds after which agents are asked for their condition, whatever they have said meanwhile


class Live:
    """One switch that is driven: requests of others wait until the command that is carried out now is done."""

    def __init__(
        self,
        switch: phases.Switch,
        agents: Agents,
        effects: Effects,
        observer: Callable[[str, Record, phases.Command], None],
    ) -> None:
        self.switch = switch
        self._agents = agents
        self._effects = effects
        self._observer = observer
        self._requests: deque[tuple[Callable[[Moment], None], asyncio.Future[None]]] = deque()
        self._woken = asyncio.Event()
        self._back_asked = asyncio.Event()
        """Somebody wants to go back, and does not wait for an agent to be up."""
        self._changed = asyncio.Condition()
        self._idle = False
        self.task: asyncio.Task[None] | None = None

    async def ask(self, act: Callable[[Moment], None]) -> None:
        """Have `act` called between two commands; raises what it raises."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests.append((act, answer))
        self._woken.set()
        await answer

    async def ask_back(self, reason: str) -> None:
        """Go back; raises SwitchError where it does not go back any more."""
        self._back_asked.set()
        await self.ask(lambda now: self.switch.go_back(reason, now))

    async def settled(self, *, over: bool) -> Record:
        """Its record, once it is over or waits; with `over`, at its end."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.switch.over or (self._idle and (not over or self.switch.record.finished))
            )
        return self.switch.record

    async def run(self) -> None:
        """Drive it to its end."""
        switch = self.switch
        while not switch.over:
            command = switch.next(moment())
            if command is None:
                await self._set_idle(True)
                try:
                    await self._wait()
                except Exception as error:  # whatever it was: what cannot be watched is on no probation
                    if switch.on_probation:
                        switch.go_back(f"its agents could not be watched: {in_words(error)}", moment())
                await self._set_idle(False)
            else:
                await self._step(command)
            self._answer(moment())

    async def leave(self) -> None:
        """Drive it no more, be it over or not: others may start its agents, and what is asked of it is refused."""
        for member in self.switch.record.agents:
            self._agents.release(member.name)
        for _, answer in self._requests:
            if not answer.done():
                answer.set_exception(SwitchError(f"switch {self.switch.record.number} is over"))
        await self._set_idle(True)

    def _answer(self, now: Moment) -> None:
        self._woken.clear()
        self._back_asked.clear()
        while self._requests:
            act, answer = self._requests.popleft()
            try:
                act(now)
            except SwitchError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(None)

    async def _set_idle(self, idle: bool) -> None:
        async with self._changed:
            self._idle = idle
            self._changed.notify_all()

    async def _step(self, command: phases.Command) -> None:
        switch = self.switch
        self._observer("before", switch.record, command)
        start = command if isinstance(command, phases.Start) and switch.record.phase == "switching" else None
        try:
            if start is not None:
                await self._start(start)
            else:
                await self._effects.carry_out(command, switch.record)
        except Exception as error:  # also one that nobody has foreseen: an agent that fails is not left as it is for it
            if start is not None and self._back_asked.is_set():
                self._answer(moment())  # it goes back because somebody has asked for it
            else:
                switch.failed(command, in_words(error), moment())
        else:
            self._observer("after", switch.record, command)
            switch.done(command, moment())

    async def _start(self, command: phases.Start) -> None:
        """Start a new generation, which may never be up: whoever wants to go back does not wait for that."""
        work = asyncio.ensure_future(self._effects.carry_out(command, self.switch.record))
        asked = asyncio.ensure_future(self._back_asked.wait())
        try:
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._agents.stop(command.member.name)
            await work
        finally:
            asked.cancel()
            work.cancel()

    async def _wait(self) -> None:
        """Until there may be something to do: what agents do, a time that has come, a request."""
        if self.switch.on_probation:
            await self._watch()
        else:
            await self._pause()
            self.switch.wake(moment())

    async def _watch(self) -> None:
        """Look at the agents of a probation, until it is over or somebody asks for something."""
        switch = self.switch
        names = frozenset(member.name for member in switch.record.agents)
        async with self._agents.changes(names) as changes, _Latest(changes) as latest:
            while switch.on_probation and not self._requests:
                for name in sorted(names):
                    switch.observe(name, await self._agents.condition(name), moment())
                switch.wake(moment())
                if switch.on_probation:
                    await self._pause(latest.news)

    async def _pause(self, news: asyncio.Event | None = None) -> None:
        at = self.switch.wakes_at
        left = _LOOK_AGAIN if at is None else min(max(at - moment().since_boot, 0.0), _LOOK_AGAIN)
        waits = [asyncio.create_task(self._woken.wait())]
        if news is not None:
            waits.append(asyncio.create_task(news.wait()))
        try:
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if news is not None:
            news.clear()


class _Latest:
    """Whether anything has come out of an iterator; what it was does not matter, since all is looked at then."""

    def __init__(self, changes: AsyncIterator[str]) -> None:
        self.news = asyncio.Event()
        self._changes = changes
        self._task: asyncio.Task[None] | None = None

    async def _follow(self) -> None:
        async for _ in self._changes:
            self.news.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
