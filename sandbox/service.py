"""Sandboxes for a supervisor: a profile compiled for this host, in which a command is started again and again.

    service = Service(profile, pool=1)
    running = service.start(["python3", "agent.py"], env={}, cwd="/srv/agent", stdin=null, stdout=log, stderr=log)
    loop.add_reader(running.fileno(), heard)  # and there: for event in running.events(): ...

Nothing here waits for a sandbox: what happens to one is told as events. All sandboxes are the children of this
process's launcher (resident.py) and end with it, at the latest when this process does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

from osmoda.sandbox import assignment, launch, opening, overlay, place, plans, supervised
from osmoda.sandbox import listeners as listening
from osmoda.sandbox.assignment import Assignment, Terms
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.freshness import Witness
from osmoda.sandbox.launcher import SERVICE
from osmoda.sandbox.operations import supervision
from osmoda.sandbox.resident import RESIDENT
from osmoda.sandbox.running import Running
from osmoda.sandbox.service_events import Ended, Event, Failed, MainEnded, Notified, Started
from osmoda.sandbox.service_task import ServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

__all__ = ["Ended", "Event", "Failed", "MainEnded", "Notified", "Running", "Service", "Started"]

MOST_WAITING = 16


class Launcher(Protocol):
    """Who builds sandboxes: `resident.Resident`, or this process itself (service_foreground.py)."""

    def send(self, request: ServiceRequest, descriptors: list[int], kind: bytes) -> socket.socket:
        """Have one built; what is said of it comes on the socket that is returned."""
        ...

    def forget_plan(self, name: bytes) -> None:
        """The plan of that name is to be sent again."""
        ...

    def times_started(self) -> int:
        """Another number than before: what had been built is gone, or is about to be."""
        ...


def _compiled(profile: Profile) -> Plan:
    # Who has the plan out of the cache does without all that compiles one.
    from osmoda.host import features
    from osmoda.sandbox.compile import compile_profile

    return compile_profile(profile, features.probe())


class Service:
    """A profile compiled for this host, to start commands in as a supervisor needs it.

    `workspace` is the directory that a profile with a workspace works in, `agent` the name that other agents reach it
    by (default: the profile's). `pool` sandboxes are kept built once a first command was started; the next command
    takes one of them. `launcher` builds them, of the plan that `planned` makes. Where a path that is mounted leads
    elsewhere since, what waits is dropped and the profile compiled again; an edit of the profile's own files counts
    when the caller makes another Service.

    To be used from one thread. Raises CompileError, LaunchError.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        workspace: str = "",
        agent: str = "",
        pool: int = 0,
        launcher: Launcher = RESIDENT,
        planned: Callable[[Profile], Plan] = _compiled,
    ) -> None:
        if not 0 <= pool <= MOST_WAITING:
            raise LaunchError(f"a service keeps 0 to {MOST_WAITING} sandboxes waiting, not {pool}")
        self.profile = profile
        self.agent = opening.agent_name(agent, profile.file)
        self.pool = pool
        self.launcher = launcher
        self._planned = planned
        # From here on the place is this one, wherever the program goes.
        self._asked = os.path.abspath(workspace) if workspace else ""
        self._here = os.getcwd()
        self._waiting: deque[Running] = deque()
        self._built_by = 0
        self._witness: Witness | None = None
        self._closed = False
        self._notify = self._tcp = False
        self._compile()

    def _compile(self) -> None:
        self._read = plans.moment()
        self.plan: Plan = self._planned(self.profile)
        if self.pool:
            from osmoda.sandbox.pool import refuse_unfit

            refuse_unfit(self.plan)
        asked = self._asked or (self._here if self.plan.tier and self.plan.workspace != "none" else "")
        self.workspace = place.workspace(self.plan, asked)
        self._build_for(self._notify, self._tcp)
        if self._witness is not None:
            self._witness.close()
        self._witness = Witness(None, self.plan, self.workspace)

    def _build_for(self, notify: bool, tcp: bool) -> None:
        """The plan of the sandboxes that are built from here on, for commands that are given such sockets."""
        self._drop()
        plan = self.plan
        if plan.tier:
            plan = supervised.with_notify(plan, self.profile.origin("network", "families")) if notify else plan
            plan = supervised.with_tcp_listeners(plan) if tcp else plan
        self._notify, self._tcp = notify, tcp
        self._built = plan
        self._dumped = plan.dump()
        self._plan_name = hashlib.sha256(self._dumped).digest()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdin: int,
        stdout: int,
        stderr: int,
        listeners: Sequence[tuple[str, int]] = (),
        notify: bool = False,
        hold: bool = False,
    ) -> Running:
        """Start `argv`, with the variables `env` over the profile's own, in the directory `cwd` inside.

        The streams are descriptors, none of them a terminal's unless the tier is 0; they stay the caller's, as
        `listeners` do: names and listening sockets, which the command finds as sd_listen_fds(3) says. With `notify` it
        has a NOTIFY_SOCKET (sd_notify(3)). With `hold` what the command leaves behind stays when it ends, until it ends
        itself or `kill` ends it.

        Raises LaunchError for what cannot be passed on, and CompileError where a path that is mounted has changed and
        may not be; whatever happens later is an event.
        """
        if self._closed:
            raise LaunchError("the service is closed")
        if not argv:
            raise LaunchError("there is no command to run")
        self._refuse_streams(stdin, stdout, stderr)
        tcp = listening.are_tcp(listeners, self.plan.tier) if listeners else False
        began = time.monotonic()
        self._follow()
        if (notify, tcp) != (self._notify, self._tcp):
            self._build_for(notify, tcp)
        held = opening.secrets(self.plan, os.environb)
        variables = (*env.items(), *[(name, placeholder) for name, placeholder, _ in held])
        names = tuple([name for name, _ in listeners])
        sockets = [fd for _, fd in listeners]
        terms = self._terms(began, held)
        self._drop_orphans()
        while True:
            fresh = not self._waiting
            running = self._build() if fresh else self._waiting.popleft()
            try:
                given = Assignment(
                    tuple(argv),
                    self._environment((*variables, *running.variables)),
                    place.start_directory(self.plan, self.workspace, cwd),
                    began,
                    names=names,
                    holds=hold,
                )
                if running.give(given, (stdin, stdout, stderr), sockets, terms) or fresh:
                    return running
            except BaseException:
                running.close()
                raise
            # It has died while it waited, and has received nothing: another one.
            running.close()

    def _environment(self, variables: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        # In tier 0, too, it is the supervisor who says what there is, and not what it happened to be started with.
        return place.environment(self.plan, False, variables, os.environb if self.plan.tier else {})

    def _terms(self, began: float, held: tuple[tuple[str, str, str], ...]) -> bytes:
        """What a gateway is told of the command, where there is one."""
        if not self.plan.egress:
            return b""
        token = opening.token_of_file(self.profile.file)
        since = plans.edits_count_from(self._read, plans.moment())
        return b"\0" + assignment.packed(Terms(began, 0.0, self.agent, token, since, held))

    def _refuse_streams(self, *streams: int) -> None:
        for name, fd in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            try:
                mode = os.fstat(fd).st_mode
            except OSError:
                raise LaunchError(f"{name} is closed; give the command one, /dev/null for instance") from None
            if stat.S_ISDIR(mode):
                raise LaunchError(f"{name} is a directory, which would let the command out of its root")
            if self.plan.tier and os.isatty(fd):
                raise LaunchError(f"{name} is a terminal, which does not enter a sandbox: give it a pipe or a file")

    def _follow(self) -> None:
        """Compile again when something that is mounted has changed its place."""
        assert self._witness is not None
        if not self._witness.holds():
            self._drop()
            self._compile()

    def _build(self) -> Running:
        with contextlib.ExitStack() as undone:
            layer, lock = overlay.for_plan(self.plan, self.workspace)
            if lock >= 0:
                undone.callback(os.close, lock)
            identity = launch.new_identity()
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undone.enter_context(theirs)
            request = ServiceRequest(self._plan_name, self._dumped, identity, self.workspace, layer)
            descriptors = [theirs.fileno(), lock] if lock >= 0 else [theirs.fileno()]
            try:
                answer = self.launcher.send(request, descriptors, SERVICE)
            except BaseException:
                mine.close()
                raise
        running = Running(self, self._built, self._plan_name, identity, mine, answer)
        if self._notify:
            try:
                running.listen(supervision.NOTIFY_SOCKET.decode())
            except BaseException:
                running.close()
                raise
        return running

    def refill(self) -> None:
        """Have as many sandboxes waiting as there should be; called when a command was started."""
        self._drop_orphans()
        while not self._closed and len(self._waiting) < self.pool:
            self._waiting.append(self._build())

    def _drop_orphans(self) -> None:
        """Drop what an earlier launcher had built: it ends, but could for a moment be given what it will not run."""
        times = self.launcher.times_started()
        if times != self._built_by:
            self._drop()
            self._built_by = times

    def _drop(self) -> None:
        while self._waiting:
            self._waiting.pop().close()

    def close(self) -> None:
        """End what waits; commands that run are their own holders' to close."""
        self._closed = True
        self._drop()
        if self._witness is not None:
            self._witness.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
