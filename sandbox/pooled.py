"""`run --pool`: this process gives its command to a sandbox that `osmoda-sandbox serve` keeps, and attends to it."""

from __future__ import annotations

import _socket
import marshal
import posix
import time

from osmoda.host import messages, paths
from osmoda.host.frozen import values_of
from osmoda.sandbox import assignment, foreground, opening, place, plans
from osmoda.sandbox.answer import read_answer
from osmoda.sandbox.assignment import GO_ON, Assignment, Terms
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import sha256
    from typing import Any

    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request
else:
    from _sha2 import sha256


def address(request: Request, directory: str, work: bytes) -> str:
    """Where a pool for requests like this one listens: the same options, this user, and the same workspace."""
    asked: tuple[Any, ...] = (*plans.key(request, directory), work)
    folder = paths.own_directory("runtime", "pools")
    return f"{folder}/{sha256(marshal.dumps(asked, 2)).hexdigest()[:32]}.sock"


def run(request: Request) -> int:
    """Run `request` to its end in a sandbox of a pool; the exit code by convention. Raises SandboxError."""
    directory = posix.getcwd() if not request.profile.startswith("/") else ""
    since = plans.moment()
    plan, _ = plans.for_request(request, directory)
    # Values of variables come with the command: the pool is the one of the same request without them.
    kept = request.without_variables()
    built = plans.for_request(kept, directory)[0] if request.set else plan
    work = place.workspace(plan, request.workspace)
    terminals = tuple([fd for fd in (0, 1, 2) if posix.isatty(fd)])
    held = opening.secrets(plan)
    placeholders = tuple([(name, placeholder) for name, placeholder, _ in held])
    given = Assignment(
        request.argv,
        place.environment(plan, bool(terminals), (*request.set, *placeholders)),
        place.start_directory(plan, work, request.directory),
        time.monotonic(),
        terminals,
    )
    signals = foreground.Signals()
    try:
        remote = Remote(_channel(address(kept, directory, work)), built)
        try:
            if request.timeout or plan.egress:
                agent = opening.agent_name(request.agent, request.profile)
                token = opening.token_of_request(request, posix.getcwd())
                remote.agree(
                    Terms(
                        given.began, request.timeout, agent, token, plans.edits_count_from(since, plans.moment()), held
                    )
                )
            outcome = _attend(remote, given, signals)
        finally:
            remote.close()
    finally:
        signals.close()
    if isinstance(outcome, SandboxError):
        raise outcome
    return foreground.conclude(request, plan, remote.identity, outcome)


def _channel(path: str) -> _socket.socket:
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        channel.connect(path)
    except OSError:
        channel.close()
        raise LaunchError(
            "no pool is served for these options and this workspace; osmoda-sandbox serve, with the same ones, does"
        ) from None
    return channel


class Remote:
    """A sandbox of the pool's, as `Watched` is one of this process's."""

    def __init__(self, channel: _socket.socket, plan: Plan) -> None:
        """Be given one. Raises LaunchError."""
        self.on_terminal: Callable[[int], None] | None = None
        self.on_stop: Callable[[], None] | None = None
        self.ended: Outcome | SandboxError | None = None
        try:
            data, descriptors = messages.receive(channel)
        except ConnectionResetError:
            data, descriptors = b"", []
        finally:
            channel.close()
        if not data:
            raise LaunchError("the pool has ended")
        kind, *values = marshal.loads(data)
        if kind != "ready":
            raise LaunchError(f"the pool gives no sandbox: {values[0]}")
        fingerprint, self.identity = values
        self._assignments, self.answer = [
            _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd) for fd in descriptors[:2]
        ]
        self._master = descriptors[2]
        if fingerprint != plan.fingerprint():
            self.close()
            raise LaunchError("the pool was made under another state of this host than the plan; serve it again")

    def agree(self, terms: Terms) -> None:
        self._say(b"\0" + marshal.dumps(values_of(terms)))

    def give(self, given: Assignment) -> None:
        """Start the command. Raises LaunchError when the sandbox has died while it waited."""
        try:
            if given.terminals and self.on_terminal is not None:
                master, self._master = self._master, -1
                self.on_terminal(master)
            assignment.give(self._assignments, given, (0, 1, 2))
        except (BrokenPipeError, ConnectionResetError):
            raise LaunchError("the sandbox was killed while it waited; its command was not started") from None

    def send_signal(self, number: int) -> None:
        """As `Watched` does."""
        self._say(bytes([number]))

    def go_on(self) -> None:
        """Continue the command after `on_stop`."""
        self._say(bytes([GO_ON]))

    def _say(self, message: bytes) -> None:
        try:
            self.answer.send(message)
        except OSError:
            return  # it has ended, and its answer waits to be read

    def hear(self) -> None:
        """A message has come."""
        try:
            data = self.answer.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = LaunchError("the pool was ended, and this sandbox with it")
            return
        message = marshal.loads(data)
        if message[0] != "stopped":
            self.ended = read_answer(message)
        elif self.on_stop is not None:
            self.on_stop()

    def close(self) -> None:
        """Let go of it, which ends it if it still runs."""
        self._assignments.close()
        self.answer.close()
        if self._master >= 0:
            posix.close(self._master)
            self._master = -1


def _attend(remote: Remote, given: Assignment, signals: foreground.Signals) -> Outcome | SandboxError:
    monitor = Monitor()
    relay = None
    try:
        monitor.register(remote.answer.fileno(), remote.hear)
        signals.forward(monitor, remote)
        if given.terminals:
            from osmoda.sandbox.terminal import Relay

            relay = Relay(monitor, remote)
        remote.give(given)
        while remote.ended is None:
            monitor.step()
    finally:
        if relay is not None:
            relay.close()
        monitor.close()
    return remote.ended
