"""A command that a supervisor has started, as it holds it: what it tells, and what can be done with it."""

from __future__ import annotations

import marshal
import os
import select
import socket
from typing import TYPE_CHECKING, Self

from osmoda.host import messages
from osmoda.sandbox import assignment
from osmoda.sandbox.answer import read_answer
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.process import result_of
from osmoda.sandbox.resident import RESIDENT
from osmoda.sandbox.service_events import Ended, Event, Failed, MainEnded, Started

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from osmoda.sandbox.assignment import Assignment
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.service import Service

_GONE = "the launcher was killed, or ran out of open files; this sandbox is gone"


class Running:
    """One sandbox and its command, from `Service.start`. As a context manager it is killed on the way out.

    `identity` names it in `osmoda-sandbox ps`, `why` and in what a gateway records. After the last event (`Ended`,
    `Failed`) there is nothing left of it but this, for `close`.
    """

    def __init__(
        self,
        service: Service,
        plan: Plan,
        plan_name: bytes,
        identity: str,
        assignments: socket.socket,
        answer: socket.socket,
    ) -> None:
        self.identity = identity
        self.plan = plan
        self._service = service
        self._plan_name = plan_name
        self._assignments = assignments
        self._answer = answer
        self._poll = select.epoll()
        self._poll.register(answer, select.EPOLLIN)
        self._holds = False
        self._over = False

    def give(self, given: Assignment, streams: Sequence[int], sockets: Sequence[int], terms: bytes) -> bool:
        """Give it its command; false when it has died before that, of which it tells itself."""
        self._holds = given.holds
        try:
            if terms:
                self._answer.send(terms)
            assignment.give(self._assignments, given, streams, sockets)
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            self._assignments.close()
        return True

    def fileno(self) -> int:
        """Readable when there are events, for a loop of the caller's own."""
        return self._poll.fileno()

    def events(self) -> list[Event]:
        """What has happened since the last call, in order; it never waits. The last of all is Ended or Failed."""
        found: list[Event] = []
        while not self._over:
            try:
                data, descriptors = messages.receive(self._answer, 1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data, descriptors = b"", []
            event = self._event(data, descriptors)
            if event is not None:
                found.append(event)
        return found

    def _event(self, data: bytes, descriptors: list[int]) -> Event | None:
        if not data:
            return self._last(Failed(LaunchError(_GONE)))
        kind, *values = marshal.loads(data)
        if kind == "ready":
            return None
        if kind == "started":
            self._service.refill()
            return Started(*values)
        if kind == "main":
            code = os.waitstatus_to_exitcode(values[0])
            number = max(-code, 0)
            return MainEnded(128 + number if number else code, number) if self._holds else None
        if kind == "plan":
            RESIDENT.forget_plan(self._plan_name)
            return self._last(Failed(LaunchError("the launcher has dropped this plan; start it again")))
        outcome = read_answer((kind, *values))
        if isinstance(outcome, SandboxError):
            return self._last(Failed(outcome))
        return self._last(Ended(result_of(outcome, self.plan, {})))

    def _last(self, event: Ended | Failed) -> Event:
        self._over = True
        self._poll.unregister(self._answer)
        self._answer.close()
        return event

    def signal_main(self, number: int) -> None:
        """Send a signal to the command alone; one that was not started yet gets it when it is."""
        self._say(b"M" + bytes([number]))

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the sandbox, but not to its pid 1."""
        self._say(b"A" + bytes([number]))

    def kill(self) -> None:
        """End all that is inside, at once."""
        self._say(b"K")

    def _say(self, message: bytes) -> None:
        if not self._over:
            try:
                self._answer.send(message)
            except OSError:
                return  # it has ended, and its answer waits to be read

    def close(self) -> None:
        """Let go of it: if it still runs, it is killed, and nobody is told."""
        self._over = True
        self._assignments.close()
        self._answer.close()
        self._poll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
