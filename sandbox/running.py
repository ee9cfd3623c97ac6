"""A command that a supervisor has started, as it holds it: what it tells, and what can be done with it."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import socket
from typing import TYPE_CHECKING, Self

from osmoda.host import messages
from osmoda.sandbox import assignment, notifications
from osmoda.sandbox.answer import read_answer
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.notifications import Notifications
from osmoda.sandbox.operations import isolation, networking
from osmoda.sandbox.process import result_of
from osmoda.sandbox.service_events import Ended, Event, Failed, MainEnded, Notified, Started

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from osmoda.sandbox.assignment import Assignment
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.service import Service

_NO_FILES = "this program has no open files left to be told of the sandbox, which is ended (RLIMIT_NOFILE)"
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
                continue  # it ended without having heard all that it was told; what it said last still waits
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                found.append(self._last(Failed(LaunchError(_NO_FILES))))
                break
            event = self._event(data, descriptors)
            if event is not None:
                if not isinstance(event, Started):
                    found += self._said()  # before it
                found.append(event)
        if self._over and self._notifications is not None:
            self._notifications.close()
            self._notifications = None
        return found + self._said()

    def _said(self) -> list[Notified]:
        return self._notifications.read() if self._notifications is not None else []

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
            with contextlib.suppress(SandboxError, OSError):
                # What cannot be built now is built when it is wanted, and says then what is in the way.
                self._service.refill()
            return Started(*values)
        if kind == "main":
            code = os.waitstatus_to_exitcode(values[0])
            number = max(-code, 0)
            return MainEnded(128 + number if number else code, number) if self._holds else None
        if kind == "plan":
            self._service.launcher.forget_plan(self._plan_name)
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
            return _connected_here(port, timeout)
        _refuse_unreachable(self.plan, port)
        with contextlib.ExitStack() as unused:
            # Two, since a socket that was refused at one address is not as it was.
            first, second = [unused.enter_context(made) for made in self._inner_sockets(timeout)]
            if first.family != socket.AF_INET6:
                return _connected(first, "127.0.0.1", port, timeout)
            try:
                return _connected(first, "::ffff:127.0.0.1", port, timeout)
            except ConnectionRefusedError:
                return _connected(second, "::1", port, timeout)

    def _inner_sockets(self, timeout: float) -> list[socket.socket]:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors: list[int] = []
        with mine:
            mine.settimeout(timeout)
            with theirs:
                if not self._over:
                    with contextlib.suppress(OSError):  # it has ended meanwhile
                        messages.send(self._answer, b"C", (theirs.fileno(),))
            with contextlib.suppress(ConnectionResetError):
                descriptors = messages.receive(mine)[1]
        if not descriptors:
            raise LaunchError("nothing can be reached in the sandbox: its command does not run")
        return [socket.socket(fileno=fd) for fd in descriptors]

    def _say(self, message: bytes) -> None:
        if not self._over:
            try:
                self._answer.send(message, socket.MSG_DONTWAIT)
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


def _connected_here(port: int, timeout: float) -> socket.socket:
    """The same in the host's network."""
    try:
        made = socket.create_connection(("127.0.0.1", port), timeout)
    except ConnectionRefusedError:
        made = socket.create_connection(("::1", port), timeout)
    made.setblocking(True)
    return made


def _connected(made: socket.socket, address: str, port: int, timeout: float) -> socket.socket:
    """`made` again, connected: what is left of the one that was passed is to be closed."""
    made.settimeout(timeout)
    made.connect((address, port))
    connected = socket.socket(fileno=made.detach())
    connected.setblocking(True)
    return connected


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
