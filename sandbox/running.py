"""A command that a supervisor has started, as it holds it: what it tells, and what can be done with it."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Self

from osmoda.host import messages
from osmoda.sandbox import assignment, notifications
from osmoda.sandbox.answer import read_answer
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.notifications import Notifications
from osmoda.sandbox.operations import isolation, networking
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
        self.variables: tuple[tuple[str, str], ...] = ()
        """What the command is to find in its environment besides what it is given."""
        self._service = service
        self._plan_name = plan_name
        self._assignments = assignments
        self._answer = answer
        self._poll = select.epoll()
        self._poll.register(answer, select.EPOLLIN)
        self._notifications: Notifications | None = None
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

    def listen(self, path: str) -> None:
        """Have a NOTIFY_SOCKET: inside it is made at `path`, in tier 0 it is made here. Raises LaunchError."""
        if self.plan.tier == 0:
            channel, path = notifications.own_socket(self.identity)
            self._listen_on(channel, path)
        self.variables = (("NOTIFY_SOCKET", path),)

    def _listen_on(self, channel: socket.socket, path: str = "") -> None:
        self._notifications = Notifications(channel, self._poll, self.plan.tier, path)

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
                if self._notifications is not None and not isinstance(event, Started):
                    # Said before it.
                    found += self._notifications.read()
                found.append(event)
        if self._notifications is not None and not self._over:
            found += self._notifications.read()
        return found

    def _event(self, data: bytes, descriptors: list[int]) -> Event | None:
        if not data:
            return self._last(Failed(LaunchError(_GONE)))
        kind, *values = marshal.loads(data)
        if kind == "ready":
            if descriptors:
                self._listen_on(socket.socket(fileno=descriptors[0]))
            return None
        if kind == "started":
            if self._notifications is not None:
                self._notifications.listen(values[0])
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

    def connect(self, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection to `port` of the sandbox's own 127.0.0.1 or ::1 (in tier 0 the host's), blocking.

        It takes some milliseconds, `timeout` seconds at most, and may be called from another thread. Raises LaunchError
        where the plan has no loopback interface that leads there and where the command does not run, OSError as
        connect(2) does.
        """
        if self.plan.tier == 0:
            return socket.create_connection(("localhost", port), timeout)
        _refuse_unreachable(self.plan, port)
        made = self._inner_socket(timeout)
        # Blocking, with a limit: a refusal leaves the socket as it was, to try the other address with (socket(7)).
        made.setblocking(True)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6)))
        places = ("::ffff:127.0.0.1", "::1") if made.family == socket.AF_INET6 else ("127.0.0.1",)
        for last, place in enumerate(places, 1 - len(places)):
            try:
                made.connect((place, port))
            except OSError as error:
                if last == 0 or not isinstance(error, ConnectionRefusedError):
                    made.close()
                    if error.errno == errno.EINPROGRESS:
                        raise TimeoutError(errno.ETIMEDOUT, f"port {port} has not answered") from None
                    raise
            else:
                break
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(16))
        return made

    def _inner_socket(self, timeout: float) -> socket.socket:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors: list[int] = []
        with mine:
            mine.settimeout(timeout)
            with theirs:
                if not self._over:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        messages.send(self._answer, b"C", (theirs.fileno(),))
            with contextlib.suppress(ConnectionResetError):
                descriptors = messages.receive(mine)[1]
        if not descriptors:
            raise LaunchError("nothing can be reached in the sandbox: its command does not run")
        return socket.socket(fileno=descriptors[0])

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
        if self._notifications is not None:
            self._notifications.close()
        self._poll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _refuse_unreachable(plan: Plan, port: int) -> None:
    """Raises LaunchError where no connection to the sandbox's own `port` can be."""
    for operation in plan.operations:
        if isinstance(operation, isolation.Loopback) and not operation.up:
            raise LaunchError(
                f"port {port} cannot be reached: {plan.name} has network.loopback = false, so nothing listens there "
                f"({operation.origin})"
            )
        if not isinstance(operation, networking.NamesOnly):
            continue
        if port in operation.localhost:
            raise LaunchError(f"port {port} of its localhost leads to another agent (network.connect of {plan.name})")
        if not operation.loopback and port not in operation.serve:
            raise LaunchError(
                f"port {port} cannot be reached: {plan.name} has neither network.loopback = true nor {port} in "
                "network.serve"
            )
