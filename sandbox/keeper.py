"""The process that keeps a pool: builds sandboxes up to the exec, has them wait, monitors those that were given out.

It is a resident launcher (launcher.py) of another kind: small and single-threaded, it ends, and all its sandboxes with
it, when the program that started it does. A command does not come by here. Each sandbox that is ready is passed on as
two sockets, and whoever holds them gives pid 1 its command itself.

Protocol, on the SOCK_SEQPACKET socket at descriptor 3. To the keeper: `P`, marshalled (number, size, workspace,
terminals), and a memfd with the dumped plan: from now on keep `size` sandboxes of this plan, each with a terminal where
`terminals` says so; `A`: try again, after a failure. From it, marshalled: ("ready", number of the plan, identity) with
the assignments' socket, the answer's and the terminal's master; ("failed", number, kind, text, exit code) when one
could not be built: no more are until `A` or `P` comes.

On an answer's socket: to the keeper, before the command is given and where it is needed, a zero byte and the marshalled
`Terms`; signal numbers afterwards, one byte each, or GO_ON. From it ("stopped",) whenever the command on its terminal
was, which GO_ON continues, and at last the outcome, as from the launcher. Its end of file ends the sandbox, waiting or
not.
"""

from __future__ import annotations

import _socket
import gc
import marshal
import posix
import time

from osmoda.host import messages, syscalls
from osmoda.sandbox import init, launch, opening
from osmoda.sandbox.answer import outcome_message, refusal_message
from osmoda.sandbox.assignment import GO_ON, Terms
from osmoda.sandbox.doorway import Doorway, Gateways
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.init import Command
from osmoda.sandbox.launcher import REQUESTS, settle_down
from osmoda.sandbox.monitor import Monitor, Outcome
from osmoda.sandbox.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 64  # sandboxes that wait: as many messages and descriptors may be on their way (unix(7))
_AT_ONCE = 2  # that are being built
# Seconds in which a command that was just started may end before others are built beside it, and in which whoever has
# its answer may go on.
_HOLD, _HOLD_AFTER = 0.01, 0.001
_SIGKILL = 9
_EMFILE, _ENFILE, _ETOOMANYREFS = 24, 23, 109
# Open files: this process's own and those of a set-up (the child starts with a copy of them all), those of one sandbox
# from its set-up to its end, and of its way out.
_OWN, _EACH, _WAY_OUT = 56, 8, 12


def serve() -> None:
    """Keep the pool until the other end of the request socket is closed."""
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, REQUESTS)
    posix.set_inheritable(REQUESTS, False)
    settle_down()
    Keeper(requests).run()


class Keeper:
    """The pool's state: what waits, what is being built, and how many of it there should be."""

    def __init__(self, requests: _socket.socket) -> None:
        self.requests = requests
        self.monitor = Monitor()
        self.gateways = Gateways()
        self.plan: Plan | None = None
        self.number = 0
        self.size = 0
        self.paused = False
        """A sandbox could not be built, and nobody has asked for another since."""
        self.workspace = b""
        self.terminals = False
        self.idle: set[_Kept] = set()
        """Those without a command: being built, or waiting."""
        self.building: set[_Kept] = set()
        self.running: set[_Kept] = set()
        self.last_start = self.last_end = 0.0
        self._nothing = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        # Kept for a plan, which must always be received: sandboxes of an earlier one are worth nothing.
        self._spare = posix.dup(self._nothing)
        self._most_files = syscalls.prlimit_get(init.RLIMIT_NOFILE)[0]
        self._open = True

    def run(self) -> None:
        """Until the program has gone."""
        self.monitor.register(self.requests.fileno(), self._heard)
        gc.disable()
        gc.freeze()
        while self._open:
            # What has happened comes first: one more sandbox is built only when there is nothing to answer.
            pause = self._pause()
            if not self.monitor.step(pause) and pause is not None and self._pause() == 0:
                self._build()
        self.monitor.close()
        self.gateways.close()

    def _pause(self) -> float | None:
        """Seconds until the next sandbox should be built; None when none is wanted.

        A command's answer must not wait until one is, so it is not begun while a short command may be about to end;
        unless too few are left for those that come next.
        """
        if self.paused or len(self.idle) >= self.size or len(self.building) >= _AT_ONCE:
            return None
        if 2 * len(self.idle) < self.size:
            return 0
        then = self.last_start + _HOLD if self.running else self.last_end + _HOLD_AFTER
        return max(then - time.monotonic(), 0)

    def _heard(self) -> None:
        if self._spare >= 0:
            posix.close(self._spare)
            self._spare = -1
        try:
            data, descriptors = messages.receive(self.requests)
        except ConnectionResetError:
            data, descriptors = b"", []  # it ended without having read what was said to it
        except OSError as error:
            if error.errno not in (_EMFILE, _ENFILE):
                raise
            data, descriptors = b"", []  # a plan that cannot be known: this process ends, and another one is started
        if not data:
            self._open = False
            self.monitor.unregister(self.requests.fileno())
            return
        self.paused = False
        if data[:1] == b"P":
            (body,) = descriptors
            self.number, self.size, self.workspace, self.terminals = marshal.loads(data[1:])
            self.plan = Plan.load(posix.pread(body, posix.fstat(body).st_size, 0))
            posix.close(body)
            # Those that were passed on are dropped by who has them: one may have its command already.
            for kept in tuple(self.building):
                kept.end()
        self._keep_spare()

    def _keep_spare(self) -> None:
        if self._spare < 0:
            try:
                self._spare = posix.dup(self._nothing)
            except OSError:
                return  # when the next sandbox has ended

    def _build(self) -> None:
        assert self.plan is not None
        command = Command((), (), b"/", self._nothing, self._nothing, self._nothing, ())
        taken = (len(self.idle) + len(self.running) + 1) * (_EACH + (_WAY_OUT if self.plan.egress else 0))
        if _OWN + taken > self._most_files > 0:
            # Before it is so: those that run, and those that are given out, must get all that they need.
            self.failed(self.number, self.too_many())
            return
        try:
            _Kept(self, self.plan, command)
        except SandboxError as error:
            self.failed(self.number, error)
        except OSError as error:
            if error.errno not in (_EMFILE, _ENFILE):
                raise
            self.failed(self.number, self.too_many())

    def too_many(self) -> LaunchError:
        """Why no sandbox is built when there are no open files left for it."""
        held = len(self.idle) + len(self.running)
        return LaunchError(
            f"there are no open files left for one more sandbox beside the {held} of this pool (RLIMIT_NOFILE, whose "
            f"hard limit is {self._most_files}): end some of them, or start the program with a higher limit"
        )

    def failed(self, number: int, error: SandboxError) -> None:
        """One could not be built, and so could not the next: wait until somebody asks again."""
        if number != self.number:
            return
        self.paused = True
        self.tell(("failed", number, *refusal_message(error)[1:]))

    def gone(self) -> None:
        """A sandbox has ended, and its descriptors are there again."""
        self.last_end = time.monotonic()
        self._keep_spare()

    def tell(self, message: tuple[Any, ...], *descriptors: int) -> bool:
        """Say something to the program, which may have gone; false when the kernel takes no descriptors for now."""
        try:
            messages.send(self.requests, marshal.dumps(message), descriptors)
        except OSError as error:
            if error.errno == _ETOOMANYREFS:
                return False
            self._open = False
        return True


class _Kept:
    """One sandbox, from its launch to its answer."""

    def __init__(self, keeper: Keeper, plan: Plan, command: Command) -> None:
        self.keeper = keeper
        self.plan = plan
        self.number = keeper.number
        self.identity = launch.new_identity()
        self.authority = b""
        self.answer: _socket.socket | None = None
        self.master = -1
        self.taken = False
        self.given, inner = _pair()
        try:
            doorway = self._trusted() if plan.inspects else None
            launched = launch.launch(
                plan,
                command,
                keeper.workspace,
                b"",
                -1,
                self.identity,
                doorway,
                assignments=inner,
                terminal=keeper.terminals,
            )
        except BaseException:
            self.given.close()
            raise
        finally:
            inner.close()
        if doorway is not None:
            doorway.close()
            launched.doorway = None
        self.watched = keeper.monitor.watch(launched, self._ended)
        self.watched.on_ready = self._ready
        self.watched.on_start = self._started
        self.watched.on_terminal = self._has_terminal
        self.watched.on_stop = self._stopped
        keeper.idle.add(self)
        keeper.building.add(self)

    def end(self) -> None:
        """It is not wanted."""
        self.watched.send_signal(_SIGKILL)

    def _trusted(self) -> Doorway:
        """What programs inside are to trust is mounted now: a gateway makes it, under a name that nobody asks for.

        The sandbox itself is given to a gateway with its command: its name, policy and secrets are those of then.
        """
        told = opening.opening(self.plan, f"{self.identity}-waiting", "", b"", ())
        doorway = Doorway(self.keeper.gateways, told)
        self.authority = doorway.authority
        return doorway

    def _has_terminal(self, master: int) -> None:
        self.master = master

    def _ready(self) -> None:
        terminal = (self.master,) if self.master >= 0 else ()
        try:
            self.answer, theirs = _pair()
        except OSError:
            self._cannot_wait()
            return
        given = (self.given.fileno(), theirs.fileno(), *terminal)
        told = self.keeper.tell(("ready", self.number, self.identity), *given)
        theirs.close()
        if not told:
            self.answer.close()
            self.answer = None
            self._cannot_wait()
            return
        self.keeper.building.discard(self)
        self.keeper.monitor.register(self.answer.fileno(), self._spoken_to)
        self.given.close()
        for fd in terminal:
            posix.close(fd)

    def _cannot_wait(self) -> None:
        """No descriptors are left to give it out with."""
        self.watched.fail(self.keeper.too_many())

    def _started(self) -> None:
        self.taken = True
        self.keeper.idle.discard(self)
        self.keeper.running.add(self)
        self.keeper.last_start = time.monotonic()

    def _stopped(self) -> None:
        self._send(("stopped",))

    def _spoken_to(self) -> None:
        assert self.answer is not None
        try:
            data = self.answer.recv(1 << 18, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._hang_up()
            self.end()
        elif data[0]:
            for number in data:
                if number == GO_ON:
                    self.watched.go_on()
                else:
                    self.watched.send_signal(number)
        else:
            self._agree(Terms(*marshal.loads(data[1:])))

    def _agree(self, terms: Terms) -> None:
        if terms.timeout:
            self.keeper.monitor.call_at(terms.began + terms.timeout, self.watched.expire, self.watched)
        if self.plan.egress:
            told = opening.opening(self.plan, self.identity, terms.agent, terms.token, terms.secrets)
            if self.authority:
                told = told.with_authority(self.authority)
            try:
                doorway = Doorway(self.keeper.gateways, told, terms.since)
                doorway.drop_trust()
                self.watched.lead_out(doorway)
            except SandboxError as error:
                self.watched.fail(error)

    def _ended(self, outcome: Outcome | SandboxError) -> None:
        keeper = self.keeper
        if self.taken and not isinstance(outcome, SandboxError):
            # First of all: its caller waits for it.
            self._send(outcome_message(outcome))
            self._hang_up()
            keeper.running.discard(self)
            keeper.gone()
            return
        keeper.idle.discard(self)
        keeper.running.discard(self)
        keeper.gone()
        if self in keeper.building:
            keeper.building.discard(self)
            self.given.close()
            if self.master >= 0:
                posix.close(self.master)
            if not isinstance(outcome, SandboxError):
                outcome = LaunchError("the sandbox was killed while it was set up")
            keeper.failed(self.number, outcome)
        elif isinstance(outcome, SandboxError):
            self._send(refusal_message(outcome))
        elif outcome.timed_out:
            self._send(outcome_message(outcome))
        else:
            self._send(refusal_message(LaunchError("the sandbox was killed before it had told of its command")))
        self._hang_up()

    def _hang_up(self) -> None:
        if self.answer is not None:
            self.keeper.monitor.unregister(self.answer.fileno())
            self.answer.close()
            self.answer = None

    def _send(self, message: tuple[Any, ...]) -> None:
        if self.answer is None:
            return
        try:
            self.answer.send(marshal.dumps(message))
        except OSError:
            return  # nobody wants to know any more


def _pair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


if __name__ == "__main__":
    serve()
