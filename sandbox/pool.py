"""A pool of sandboxes from Python: `with Pool(profile, 8) as pool: pool.run([...])`, one message from exec."""

from __future__ import annotations

import atexit
import contextlib
import errno
import marshal
import os
import socket
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from osmoda.host import messages
from osmoda.host.frozen import values_of
from osmoda.sandbox import assignment, keeper, opening, place, resident
from osmoda.sandbox.api import Sandbox
from osmoda.sandbox.assignment import Assignment, Terms
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.freshness import Witness
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.streams import write_all

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from osmoda.sandbox.plan import Plan


class Waiting:
    """A sandbox that waits: where its command is given, where the answer comes, and its terminal (-1: it has none).

    Whoever holds it uses it once; all three are theirs to close.
    """

    __slots__ = ("answer", "assignments", "identity", "terminal")

    def __init__(self, identity: str, assignments: int, answer: int, terminal: int = -1) -> None:
        self.identity = identity
        self.assignments = socket.socket(fileno=assignments)
        self.answer = socket.socket(fileno=answer)
        self.terminal = terminal

    def close(self) -> None:
        """It is not wanted here: if it is not anywhere else either, it ends."""
        self.assignments.close()
        self.answer.close()
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1


class Pool(Sandbox):
    """`size` sandboxes of one profile, built up to the exec and waiting; each serves one command and is replaced.

    `run`, `popen` and `run_async` are those of `Sandbox`, with the same results, under the same enforcement. What
    `Sandbox` says of `profile`, `tier`, `workspace` and `agent` holds here; the profile's file, though, is followed: a
    command never gets a sandbox that was built before an edit of it.
    """

    _terminals = False

    def __init__(
        self,
        profile: Profile | str | os.PathLike[str] | None = None,
        size: int = 4,
        *,
        tier: int = 2,
        workspace: str | os.PathLike[str] | None = None,
        agent: str = "",
    ) -> None:
        if not 1 <= size <= keeper.MOST:
            raise LaunchError(f"a pool holds 1 to {keeper.MOST} sandboxes, not {size}")
        self.size = size
        self._lock = threading.Lock()
        self._ready: deque[Waiting] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._number = 0
        self._closed = False
        self._failure = ""
        """Why the last sandbox could not be built; no more are until that is taken back."""
        self._witness: Witness | None = None
        super().__init__(profile, tier=tier, workspace=workspace, agent=agent)
        # From here on the place is this one, wherever the program goes.
        self._here = os.getcwd()
        self._asked = self._asked and os.path.abspath(self._asked)
        self._running()
        _POOLS.add(self)

    def _compile(self, profile: Profile) -> None:
        super()._compile(profile)
        refuse_unfit(self.plan)
        self._number += 1
        if self._witness is not None:
            self._witness.close()
        self._witness = Witness(profile, self.plan, self.workspace)

    def _start(
        self, argv: tuple[str, ...], numbers: list[int], timeout: float, env: Mapping[str, str], cwd: str
    ) -> socket.socket:
        began = time.monotonic()
        while True:
            with self._lock:
                waiting = self._take()
                # Under the lock: the plan is that of the sandbox.
                held = opening.secrets(self.plan, os.environb)
                given = Assignment(
                    argv, self._environment(env, held), place.start_directory(self.plan, self.workspace, cwd), began
                )
                terms = b""
                if timeout or self.plan.egress:
                    token = opening.token_of_file(self.profile.file)
                    terms = b"\0" + marshal.dumps(
                        values_of(Terms(began, timeout, self.agent, token, self._edits_count_from(), held))
                    )
            try:
                if terms:
                    waiting.answer.send(terms)
                assignment.give(waiting.assignments, given, numbers)
            except (BrokenPipeError, ConnectionResetError):
                # It has died while it waited, so nothing of this has been received: another one.
                waiting.close()
                continue
            except BaseException:
                waiting.close()
                raise
            waiting.assignments.close()
            return waiting.answer

    def prepare(self) -> None:
        """Wait until a sandbox is ready. Raises LaunchError when one cannot be built."""
        with self._lock:
            self._ready.appendleft(self._take())

    def take(self) -> Waiting:
        """A sandbox that nobody else is given, as `run` would use it; it is the caller's to close."""
        with self._lock:
            return self._take()

    def _take(self) -> Waiting:
        requests = self._running()
        self._follow(requests)
        if self._ready:
            return self._ready.popleft()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._hear(requests, socket.MSG_DONTWAIT)
        if self._failure:
            # Of an earlier one: what was in the way may be no more.
            self._failure = ""
            requests.send(b"A")
        while not self._ready:
            self._hear(requests)
            if self._failure:
                raise LaunchError(self._failure)
        return self._ready.popleft()

    def _follow(self, requests: socket.socket) -> None:
        """Drop all that waits when something that it was built from has changed. Raises as the constructor does."""
        if self._witness is not None and self._witness.holds():
            return
        self._drop()
        self._compile(self._load())
        self._tell(requests)

    def _load(self) -> Profile:
        """The profile as it is now."""
        return Profile.load(self.profile.file) if self.profile.file else self.profile

    def _drop(self) -> None:
        while self._ready:
            self._ready.pop().close()

    def _hear(self, requests: socket.socket, flags: int = 0) -> None:
        try:
            data, descriptors = messages.receive(requests, flags=flags)
        except ConnectionResetError:
            data, descriptors = b"", []
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # The sandbox that was to come has ended with what there was of it, and is replaced.
            raise LaunchError("this program has no open files left to be given a sandbox (RLIMIT_NOFILE)") from None
        if not data:
            self._forget()
            raise LaunchError("the pool's process was killed; the next call starts another")
        kind, number, *values = marshal.loads(data)
        if kind == "ready":
            waiting = Waiting(values[0], *descriptors)
            if number == self._number:
                self._ready.append(waiting)
            else:
                waiting.close()
        elif number == self._number:
            self._failure = values[1]

    def _running(self) -> socket.socket:
        if self._closed:
            raise LaunchError("the pool is closed")
        if self._requests is None:
            self._process, self._requests = resident.start("keeper")
            self._tell(self._requests)
        return self._requests

    def _tell(self, requests: socket.socket) -> None:
        body = os.memfd_create("osmoda-plan", os.MFD_CLOEXEC)
        try:
            write_all(body, self._dumped)
            message = b"P" + marshal.dumps((self._number, self.size, self.workspace, self._terminals))
            messages.send(requests, message, (body,))
        finally:
            os.close(body)

    def _forget(self) -> None:
        self._drop()
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the pool and all its sandboxes, those with a command too, and wait until they are gone."""
        with self._lock:
            self._closed = True
            self._forget()
            if self._witness is not None:
                self._witness.close()

    def abandon(self) -> None:
        """Let go without ending anything: in a forked child, where the pool is its parent's. It starts its own."""
        self._lock = threading.Lock()
        self._process = None
        self._forget()
        if self._witness is not None:
            # What the kernel has to tell of mounts it tells once, and that was for the parent.
            self._witness.close()
            self._witness = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def refuse_unfit(plan: Plan) -> None:
    """Raises LaunchError for a plan of which nothing can be prepared."""
    if plan.tier == 0:
        raise LaunchError("a pool holds sandboxes, and tier 0 is none: there is nothing to prepare")
    if plan.workspace == "overlay":
        raise LaunchError(
            f'{plan.name} has an overlay workspace, of which there is one sandbox at a time: a pool wants "direct" or '
            '"none" (filesystem.workspace, or --workspace-mode)'
        )


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in tuple(_POOLS):
        pool.close()


def _leave_all() -> None:
    """A forked child has no part in its parent's pools: what it holds of them would keep their sandboxes."""
    for pool in tuple(_POOLS):
        pool.abandon()


os.register_at_fork(after_in_child=_leave_all)
