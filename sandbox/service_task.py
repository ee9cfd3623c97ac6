"""The launcher's half of a supervised command: one sandbox, from the request to its end.

The sandbox is built as one that waits in a pool, and the supervisor itself gives pid 1 its command (assignment.py), at
once or when an earlier one has ended. A request `S` carries descriptors (answer, body, the assignments' end for pid 1,
and perhaps the lock of an overlay's layer); the body is a memfd with the marshalled `ServiceRequest`.

On the answer socket, to the launcher: a zero byte and the marshalled `Terms`, before the command is given and where the
plan has a network; `M` and the number of a signal, for the command; `A` and one, for all that is inside; `K`, end it;
`C` with a socket, to be answered there with two TCP sockets made inside. From it, marshalled: ("ready",) when all is
applied, ("started", pid on the host, pid inside), ("main", wait status), with descriptors where there are some, and at
last the outcome or the refusal as any launch has it. Its end of file ends the sandbox.
"""

from __future__ import annotations

import _socket
import marshal
import posix
import time

from osmoda.host import messages, syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox import inside, launch, launcher, opening
from osmoda.sandbox.answer import outcome_message, refusal_message
from osmoda.sandbox.assignment import Terms
from osmoda.sandbox.attended import Life
from osmoda.sandbox.doorway import Doorway
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.init import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from osmoda.sandbox.doorway import Gateways
    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.monitor import Monitor, Outcome
    from osmoda.sandbox.plan import Plan

_SIGKILL, _EMFILE = 9, 24
_PATIENCE = 5.0  # seconds


@frozen
class ServiceRequest:
    """One sandbox to be built: `plan_name` and `plan` as in a `LaunchRequest`, `identity` as the caller chose it."""

    plan_name: bytes
    plan: bytes
    identity: str
    workspace: bytes
    layer: bytes


class Task:
    """One request, from its descriptors to its answer."""

    def __init__(self, monitor: Monitor, gateways: Gateways, plans: dict[bytes, Plan], descriptors: list[int]) -> None:
        answer, body, assignments, *lock = descriptors
        self._monitor = monitor
        self._gateways = gateways
        self._answer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, answer)
        self._ready = False
        self._is_started = False
        self._orders: list[bytes] = []
        self._terms: Terms | None = None
        self._authority = b""
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, assignments)
        try:
            size = posix.fstat(body).st_size
            request = ServiceRequest(*marshal.loads(posix.pread(body, size, 0)))
            plan = launcher.known_plan(plans, request.plan_name, request.plan)
            if plan is None:
                self._say(("plan",))
                self._answer.close()
                return
            self.plan = plan
            self.identity = request.identity
            launched = self._launch(request, channel, lock[0] if lock else -1)
        except SandboxError as error:
            self._say(refusal_message(error))
            self._answer.close()
            return
        finally:
            channel.close()
            for fd in (body, *lock):
                posix.close(fd)
        self._watched = monitor.watch(launched, self._ended)
        self._watched.by_order = plan.tier == 0
        self._watched.on_ready = self._is_ready
        self._watched.on_start = self._started
        self._watched.on_main_end = self._main_has_ended
        monitor.register(self._answer.fileno(), self._spoken_to)

    def _launch(self, request: ServiceRequest, channel: _socket.socket, lock: int) -> Launched:
        doorway = None
        nothing = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        try:
            if self.plan.inspects:
                # What programs inside are to trust is mounted when it is built (see keeper.py).
                told = opening.opening(self.plan, f"{self.identity}-waiting", "", b"", ())
                doorway = Doorway(self._gateways, told)
                self._authority = doorway.authority
            command = Command((), (), b"/", nothing, nothing, nothing, ())
            launched = launch.launch(
                self.plan,
                command,
                request.workspace,
                request.layer,
                lock,
                self.identity,
                doorway,
                assignments=channel,
                life=Life(),
            )
        finally:
            posix.close(nothing)
        if doorway is not None:
            doorway.close()
            launched.doorway = None
        return launched

    # --- what happens inside ---

    def _is_ready(self) -> None:
        self._ready = True
        notify, self._watched.notify = self._watched.notify, -1
        if notify < 0:
            self._say(("ready",))
        else:
            self._say(("ready",), notify)
            posix.close(notify)
        if self._terms is not None:
            self._lead_out(self._terms)

    def _started(self) -> None:
        inside = outside = 0
        for line in _content(f"/proc/self/fdinfo/{self._watched.command}").splitlines():
            if line.startswith(b"NSpid:"):
                numbers = line.split()[1:]
                outside, inside = int(numbers[0]), int(numbers[-1])
        self._is_started = True
        self._say(("started", outside, inside))
        for order in (b"G", *self._orders):
            self._watched.order(order)

    def _main_has_ended(self, status: int) -> None:
        self._say(("main", status))

    def _ended(self, outcome: Outcome | SandboxError) -> None:
        self._say(refusal_message(outcome) if isinstance(outcome, SandboxError) else outcome_message(outcome))
        self._hang_up()

    # --- what the supervisor wants ---

    def _spoken_to(self) -> None:
        try:
            data, descriptors = messages.receive(self._answer, flags=_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, descriptors = b"", []
        except OSError as error:
            if error.errno != _EMFILE:
                raise
            return  # whoever asked for a socket waits no longer than it wants to
        kind = data[:1]
        if not kind:
            self._hang_up()
            self._kill()
        elif kind == b"M":
            self._watched.signal_command(data[1])
        elif kind == b"A" and self._is_started:
            self._watched.order(data)
        elif kind == b"A":
            self._orders.append(data)
        elif kind == b"K":
            self._kill()
        elif kind == b"\0":
            self._terms = Terms(*marshal.loads(data[1:]))
            if self._ready:
                self._lead_out(self._terms)
        elif kind == b"C" and descriptors:
            self._make_sockets(descriptors[0])
        for fd in descriptors:
            posix.close(fd)

    def _make_sockets(self, reply: int) -> None:
        made: list[int] = []
        if self._watched.command >= 0 and self.plan.tier:
            made = inside.sockets(((self._watched.command, syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET),), 2)
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, posix.dup(reply))
        try:
            messages.send(channel, b"C", tuple(made))
        except OSError:
            return  # nobody waits any more
        finally:
            channel.close()
            for fd in made:
                posix.close(fd)

    def _kill(self) -> None:
        self._watched.send_signal(_SIGKILL)
        if self._watched.by_order:
            # In tier 0 its first process has been asked; one that was stopped, say, does not do as it is told.
            self._monitor.call_at(time.monotonic() + _PATIENCE, self._kill_first, self._watched)

    def _kill_first(self) -> None:
        syscalls.pidfd_send_signal(self._watched.launched.pidfd, _SIGKILL)

    def _lead_out(self, terms: Terms) -> None:
        told = opening.opening(self.plan, self.identity, terms.agent, terms.token, terms.secrets)
        if self._authority:
            told = told.with_authority(self._authority)
        try:
            doorway = Doorway(self._gateways, told, terms.since)
            doorway.drop_trust()
            self._watched.lead_out(doorway)
        except SandboxError as error:
            self._watched.fail(error)

    def _hang_up(self) -> None:
        self._monitor.unregister(self._answer.fileno())
        self._answer.close()

    def _say(self, message: tuple[Any, ...], *descriptors: int) -> None:
        if self._answer.fileno() < 0:
            return
        try:
            messages.send(self._answer, marshal.dumps(message), descriptors)
        except OSError:
            return  # the supervisor no longer wants to know


def _content(path: str) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 4096)
    finally:
        posix.close(fd)
