"""The resident launcher: a small single-threaded process that launches and monitors sandboxes for a Python program.

A program with threads, or a large one, cannot clone itself safely or quickly; this process can. It ends, and its
sandboxes with it, when the program does.

Protocol, on the SOCK_SEQPACKET socket at descriptor 3: each request carries descriptors (answer, body, stdin, stdout,
stderr, and perhaps the lock of an overlay's layer). The body is a memfd with the marshalled request. The answer socket
gets one message, the marshalled outcome; a byte written to it from the other side is a signal number for the command,
its end of file ends the sandbox. Requests of supervisors are another kind of message, see service_task.py.
"""

from __future__ import annotations

import _socket
import gc
import marshal
import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox import init, launch, opening
from osmoda.sandbox.answer import outcome_message, refusal_message
from osmoda.sandbox.doorway import Doorway, Gateways
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.init import Command
from osmoda.sandbox.monitor import Monitor, Outcome
from osmoda.sandbox.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any

    from osmoda.sandbox.monitor import Watched
else:
    import _signal

REQUESTS = 3
LAUNCH, SERVICE = b"R", b"S"
MOST_PLANS = 64  # then both sides forget all of them, at the same request


@frozen
class LaunchRequest:
    """One launch. `plan` is the dumped plan, or empty when the launcher has the one of this `plan_name` from before."""

    plan_name: bytes
    plan: bytes
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: bytes
    workspace: bytes
    layer: bytes
    timeout: float
    agent: str
    token: bytes
    since: int
    secrets: tuple[tuple[str, str, str], ...]


def serve() -> None:
    """Serve until the other end of the request socket is closed."""
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, REQUESTS)
    posix.set_inheritable(REQUESTS, False)
    settle_down()
    gc.disable()
    gc.freeze()
    monitor = Monitor()
    gateways = Gateways()
    plans: dict[bytes, Plan] = {}
    open_requests = [True]

    def received() -> None:
        data, ancillary, flags, _ = requests.recvmsg(64, 256, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            monitor.unregister(REQUESTS)
            open_requests.clear()
            return
        packed = b"".join([content for _, _, content in ancillary])
        descriptors = [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]
        if flags & _socket.MSG_CTRUNC:
            _refuse(descriptors)
        elif data == SERVICE:
            from osmoda.sandbox import service_task

            service_task.Task(monitor, gateways, plans, descriptors)
        else:
            _Task(monitor, gateways, plans, descriptors)

    monitor.register(REQUESTS, received)
    while open_requests:
        monitor.step()
    monitor.close()
    gateways.close()


def settle_down() -> None:
    """Be a process of the program's own, which signals and limits of open files are not meant for."""
    # A Ctrl-C at the terminal is for the program, which decides what it means for its sandboxes.
    for number in (1, 2, 3, 15):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            # A handler, not SIG_IGN: what is ignored would stay so in the commands.
            _signal.signal(number, _not_for_us)
    _raise_open_files()


def _not_for_us(number: int, frame: object) -> None:
    """Go on."""


def _raise_open_files() -> None:
    """Up to the hard limit, since each running sandbox takes half a dozen; a command's own limit is its profile's."""
    soft, hard = syscalls.prlimit_get(init.RLIMIT_NOFILE)
    if soft != hard:
        init.open_files = (soft, hard)
        syscalls.prlimit_self(init.RLIMIT_NOFILE, hard, hard)


def known_plan(plans: dict[bytes, Plan], name: bytes, dumped: bytes) -> Plan | None:
    """The plan of a request: the one that came with it, else that of an earlier one; None when it was forgotten."""
    if dumped:
        if len(plans) >= MOST_PLANS:
            plans.clear()
        plans[name] = Plan.load(dumped)
    return plans.get(name)


def _refuse(descriptors: list[int]) -> None:
    """Answer a request of whose descriptors only these could be received."""
    error = LaunchError("the launcher has too many open files (RLIMIT_NOFILE): too many sandboxes are running")
    if descriptors:
        posix.write(descriptors[0], marshal.dumps(refusal_message(error)))
    for fd in descriptors:
        posix.close(fd)


class _Task:
    """One request, from its descriptors to its answer."""

    def __init__(self, monitor: Monitor, gateways: Gateways, plans: dict[bytes, Plan], descriptors: list[int]) -> None:
        answer, body, stdin, stdout, stderr, *lock = descriptors
        self._monitor = monitor
        self._answer = answer
        self._watched: Watched | None = None
        try:
            size = posix.fstat(body).st_size
            request = LaunchRequest(*marshal.loads(posix.pread(body, size, 0)))
            plan = known_plan(plans, request.plan_name, request.plan)
            if plan is None:
                self._send(("plan",))
                posix.close(answer)
                return
            command = Command(request.argv, request.environment, request.directory, stdin, stdout, stderr, ())
            identity = launch.new_identity()
            doorway = None
            if plan.egress:
                told = opening.opening(plan, identity, request.agent, request.token, request.secrets)
                doorway = Doorway(gateways, told, request.since)
            layer_lock = lock[0] if lock else -1
            launched = launch.launch(
                plan, command, request.workspace, request.layer, layer_lock, identity, doorway, agent=request.agent
            )
        except SandboxError as error:
            self._send(refusal_message(error))
            posix.close(answer)
            return
        finally:
            for fd in (body, stdin, stdout, stderr, *lock):
                posix.close(fd)
        self._watched = monitor.watch(launched, self._ended, request.timeout)
        monitor.register(answer, self._spoken_to)

    def _spoken_to(self) -> None:
        assert self._watched is not None
        numbers = posix.read(self._answer, 64)
        if not numbers:
            self._hang_up()
            self._watched.send_signal(9)
        for number in numbers:
            self._watched.send_signal(number)

    def _ended(self, outcome: Outcome | SandboxError) -> None:
        self._send(refusal_message(outcome) if isinstance(outcome, SandboxError) else outcome_message(outcome))
        self._hang_up()

    def _hang_up(self) -> None:
        if self._answer >= 0:
            self._monitor.unregister(self._answer)
            posix.close(self._answer)
            self._answer = -1

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._answer < 0:
            return
        try:
            posix.write(self._answer, marshal.dumps(message))
        except OSError:
            # The program no longer wants to know.
            return


if __name__ == "__main__":
    serve()
