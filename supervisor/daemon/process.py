"""`osmoda-watch daemon`: the engine, its control socket, and what the daemon does when it begins and ends.

One daemon of a user runs (a lock in its runtime directory). It ends on SIGTERM and SIGINT, having stopped all units in
reverse order; SIGHUP has it read the unit files again. Killed, it takes all agents with it (`remains`), and the next
one starts those that were running.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import processes
from osmoda.sandbox.resident import RESIDENT
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.control.server import NAME, Control
from osmoda.supervisor.daemon import remains
from osmoda.supervisor.daemon.wanted import Wanted
from osmoda.supervisor.engine import snapshots
from osmoda.supervisor.engine.acts import Acts
from osmoda.supervisor.engine.services import Engine
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.logs import files as log_files
from osmoda.supervisor.logs import journal
from osmoda.supervisor.logs.writer import DAEMON, Logs
from osmoda.supervisor.switch import candidate, verbs
from osmoda.supervisor.switch.driver import Switches
from osmoda.supervisor.switch.engine_agents import EngineAgents
from osmoda.supervisor.switch.store import Store
from osmoda.supervisor.units import enabled
from osmoda.supervisor.units import files as unit_files
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from osmoda.supervisor.control.server import Request, Say, Verb
    from osmoda.supervisor.engine.services import Outcome

_LOCK = "daemon.lock"
_STANDARD_ERROR = 2
_THREADS = 64  # that wait for disks, and for agents that a check connects to


def run(search: Sequence[str], ready: Callable[[], None]) -> None:
    """Be the daemon until a signal ends it; `ready` is called when it takes requests. Raises SupervisorError."""
    folder = control_client.folder()
    lock, before = _lock(folder)
    try:
        left = remains.wait(folder, before)
        remains.mark(folder)
        _raise_open_files()
        echo = -1 if journal.has_stream(_STANDARD_ERROR) and os.path.exists(journal.SOCKET) else _STANDARD_ERROR
        with Logs(log_files.folder(), echo=echo) as logs:
            if left:
                logs.say(DAEMON, f"an earlier daemon was killed; {left} processes that it left behind have ended", 4)
            asyncio.run(Daemon(folder, search, logs).run(ready))
    finally:
        os.close(lock)


def _lock(folder: str) -> tuple[int, int]:
    """A descriptor whose lock is this daemon's for as long as it lives, and the pid of the last one that had it.

    Raises SupervisorError.
    """
    fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _pid_in(fd)
        os.close(fd)
        raise SupervisorError(
            f"a daemon of this user runs already, with pid {pid}: it holds {folder}/{_LOCK}"
        ) from None
    before = _pid_in(fd)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd, before


def _pid_in(fd: int) -> int:
    written = os.pread(fd, 32, 0).strip()
    return int(written) if written.isdigit() else 0


def _raise_open_files() -> None:
    """Each agent takes half a dozen descriptors, each log one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Daemon:
    """The parts put together, for one run of an event loop."""

    def __init__(self, folder: str, search: Sequence[str], logs: Logs) -> None:
        self._folder = folder
        self._search = search
        self._logs = logs
        self._acts = Acts(lambda text: logs.say(DAEMON, text, 3))
        self._wanted = Wanted(os.path.join(folder, "wanted.json"))
        self._ended = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Until a signal comes. Raises SupervisorError when it cannot begin."""
        self._acts.open()
        try:
            store = Store()
        except OSError as error:
            raise SupervisorError(f"{error.filename}: {error.strerror}; generations are kept there") from None
        self.engine = Engine(self._search, self._logs, self._acts, store.unit_directories)
        self._switches = Switches(
            store,
            EngineAgents(self.engine, self._runs),
            self._acts.opened,
            candidate.written,
            reading=self.engine.compiling,
        )
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="waits"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.engine.soon(self._read_again()))
        async with AsyncExitStack() as stack:
            stack.callback(self._acts.close)
            stack.callback(RESIDENT.close)
            stack.push_async_callback(self.engine.close)
            try:
                stack.callback(self._acts.when_made(self.engine.shared.follow))
            except SupervisorError as error:
                self._say(
                    f"what agents do in shared directories is not put on a ledger that is made from now on: {error}", 4
                )
            await stack.enter_async_context(self._switches)
            # A switch that is asked for before they run must know that they are to run again should it go back.
            expected = await self._to_run()
            self.engine.coming |= {*expected}
            await stack.enter_async_context(Control(os.path.join(self._folder, NAME), self._verbs()))
            self.engine.soon(self._start_wanted(expected))
            _notify(f"READY=1\nMAINPID={os.getpid()}")
            ready()
            await self._ended.wait()
            _notify("STOPPING=1")
            self._say("stopping all units")

    def _say(self, text: str, level: int = 6) -> None:
        self._logs.say(DAEMON, text, level)

    def _runs(self, unit: str, runs: bool) -> None:
        """A switch has started or stopped a unit."""
        with suppress(OSError):
            self._wanted.start([unit]) if runs else self._wanted.stop([unit])

    async def _to_run(self) -> list[str]:
        return self._wanted.now(await asyncio.to_thread(lambda: enabled.names(Loader(self._search))))

    async def _start_wanted(self, expected: Sequence[str]) -> None:
        # First what was being switched when the last daemon ended: until that is settled, nobody knows what to start.
        for problem in await self._switches.recover():
            self._say(problem, 3)
        names = [name for name in await self._to_run() if name.removesuffix(".service") not in self._switches.held()]
        self.engine.coming -= {*expected} - {*names}
        if not names:
            return
        self._say(f"starting {', '.join(names)}")
        try:
            await self.engine.start(names)
        except SupervisorError as error:
            self._say(str(error), 3)

    async def _read_again(self) -> list[Outcome]:
        try:
            outcomes = await self.engine.read_again()
        except SupervisorError as error:
            self._say(str(error), 3)
            return []
        self._say("the files of all units are read again")
        return outcomes

    # --- what can be asked for ---

    def _verbs(self) -> dict[str, Verb]:
        return {
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "reload": self._reload,
            "reset-failed": self._reset_failed,
            "daemon-reload": self._daemon_reload,
            "status": self._status,
            "list": self._status,
            **verbs.verbs(self._switches, lambda: self._search or unit_files.search_path()),
        }

    async def _start(self, request: Request, say: Say) -> Mapping[str, Any]:
        with suppress(OSError):  # where it cannot be written, a killed daemon's successor does not know of it
            self._wanted.start(self._full(request))
        forced = bool(request.options.get("force"))
        return _done(await self.engine.start(request.units, report=_reporter(say), forced=forced))

    async def _stop(self, request: Request, say: Say) -> Mapping[str, Any]:
        with suppress(OSError):
            self._wanted.stop(self._full(request))
        return _done(await self.engine.stop(request.units, report=_reporter(say)))

    async def _restart(self, request: Request, say: Say) -> Mapping[str, Any]:
        with suppress(OSError):
            self._wanted.start(self._full(request))
        return _done(await self.engine.restart(request.units, report=_reporter(say)))

    async def _reload(self, request: Request, say: Say) -> Mapping[str, Any]:
        return _done(await self.engine.reload(request.units))

    async def _reset_failed(self, request: Request, say: Say) -> Mapping[str, Any]:
        return _done(self.engine.reset_failed(request.units))

    async def _daemon_reload(self, request: Request, say: Say) -> Mapping[str, Any]:
        return _done(await self._read_again())

    async def _status(self, request: Request, say: Say) -> Mapping[str, Any]:
        """The units asked for, or all that are loaded; with what their sandboxes use, unless `brief`."""
        held = await self.engine.look_up(self._full(request)) if request.units else [*self.engine.units.values()]
        running = {}
        if not request.options.get("brief") and held:
            running = await asyncio.to_thread(processes.by_identity)
        units = [snapshots.of(one, running) for one in sorted(held, key=lambda one: one.name)]
        sockets = self.engine.sockets.names()
        return {"done": True, "units": units, "sockets": sockets, "search": self._search, "daemon": os.getpid()}

    def _full(self, request: Request) -> list[str]:
        return [self.engine.full_name(name) for name in request.units]


def _reporter(say: Say) -> Callable[[str, str], None]:
    return lambda unit, state: say({"unit": unit, "state": state})


def _done(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    return {"done": True, "outcomes": [{"unit": one.unit, "ok": one.ok, "text": one.text} for one in outcomes]}


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it has started this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
