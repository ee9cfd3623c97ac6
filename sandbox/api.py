"""Sandboxes from Python: `Sandbox(profile).run([...])`, blocking or with asyncio."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import marshal
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from osmoda.host import features
from osmoda.host.frozen import values_of
from osmoda.sandbox import denials, place
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import CommandError, LaunchError, SandboxError
from osmoda.sandbox.launcher import REQUESTS, LaunchRequest
from osmoda.sandbox.monitor import Outcome, RawDenial
from osmoda.sandbox.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.plan import Plan

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
_CHUNK = 1 << 16

type Stream = int | IO[bytes] | None


class CommandFailed(SandboxError):
    """With `check=True`, a command that ended with something else than 0; `result` tells all."""

    def __init__(self, argv: Sequence[str], result: Result) -> None:
        super().__init__(f"{argv[0]} ended with {result.status}")
        self.result = result


class TimedOut(SandboxError):
    """A command that did not end within its time; `result` holds what it wrote until then."""

    exit_code = 124

    def __init__(self, argv: Sequence[str], result: Result, timeout: float) -> None:
        super().__init__(f"{argv[0]} did not end within {timeout:g} s")
        self.result = result


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended.

    `status` is its exit code, 128+n when signal n ended it, 124 when its time was up. Times are seconds of CPU and of
    wall clock, `peak_memory` is in bytes. `denials` are the distinct refused calls and limits that were hit, each
    with layer, object and the profile line that would allow it; `refused` counts all refused calls. `stdout` and
    `stderr` are None unless they were captured.
    """

    status: int
    signal: int
    timed_out: bool
    stdout: bytes | None
    stderr: bytes | None
    user_time: float
    system_time: float
    peak_memory: int
    duration: float
    refused: int
    denials: tuple[Denial, ...]


class _Launcher:
    """The resident launcher of this process, started when first needed and again should it have been killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[bytes] = set()

    def send(self, request: LaunchRequest, descriptors: list[int]) -> socket.socket:
        """Send a request; the answer comes on the socket that is returned."""
        with self._lock:
            requests = self._running()
            if request.plan_name in self._known:
                values = (request.plan_name, b"", *values_of(request)[2:])
            else:
                values = values_of(request)
            body = os.memfd_create("osmoda-request", os.MFD_CLOEXEC)
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                _write_all(body, marshal.dumps(values))
                streams, lock = descriptors[:3], descriptors[3:]
                socket.send_fds(requests, [b"R"], [body, *streams, theirs.fileno(), *lock])
            except BrokenPipeError:
                mine.close()
                self._forget()
                raise LaunchError("the launcher process was killed; the next call starts another") from None
            finally:
                os.close(body)
                theirs.close()
            self._known.add(request.plan_name)
            return mine

    def forget_plan(self, name: bytes) -> None:
        """The launcher has dropped the plan of this name."""
        self._known.discard(name)

    def _running(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._forget()
        if self._socket is None:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # The package's own folder is the only addition to the path: the process imports nothing else.
            top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            program = (
                f"import sys; sys.path.append({_package_root(top)!r}); "
                "from osmoda.sandbox.launcher import serve; serve()"
            )
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _shuffle(theirs.fileno()) + program, " " * 64],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                )
            self._socket = mine
        return self._socket

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._known.clear()

    def close(self) -> None:
        """End the launcher and all its sandboxes, and wait until they are gone."""
        with self._lock:
            self._forget()

    def after_fork(self) -> None:
        """A forked child shares nothing with the launcher: it starts its own."""
        self._lock = threading.Lock()
        if self._socket is not None:
            self._socket.close()
        self._socket, self._process = None, None
        self._known = set()


def _package_root(default: str) -> str:
    """The folder that holds `osmoda`, as this interpreter found it."""
    import osmoda

    return os.path.dirname(next(iter(osmoda.__path__), default))


def _shuffle(fd: int) -> str:
    """Put the passed socket where the launcher expects it."""
    return "" if fd == REQUESTS else f"import posix; posix.dup2({fd}, {REQUESTS}); posix.close({fd}); "


_launcher = _Launcher()
atexit.register(_launcher.close)
os.register_at_fork(after_in_child=_launcher.after_fork)


def close() -> None:
    """End this process's launcher and every sandbox it still runs; the next launch starts it again."""
    _launcher.close()


class Process:
    """A running command. Use `Sandbox.popen`. As a context manager it is killed on the way out, should it still run."""

    def __init__(
        self,
        sandbox: Sandbox,
        argv: Sequence[str],
        answer: socket.socket,
        pipes: dict[str, IO[bytes]],
        copying: list[threading.Thread],
    ) -> None:
        self.argv = tuple(argv)
        self._copying = copying
        self.stdin = pipes.get("stdin")
        self.stdout = pipes.get("stdout")
        self.stderr = pipes.get("stderr")
        self._sandbox = sandbox
        self._answer = answer
        self._outcome: Outcome | SandboxError | None = None
        self._captured: dict[str, bytes] = {}

    def send_signal(self, number: int) -> None:
        """Send a signal to the command (not to what it started)."""
        if self._outcome is None:
            try:
                self._answer.send(bytes([number]))
            except OSError:
                return  # it has ended, and its answer waits to be read

    def terminate(self) -> None:
        """SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything in the sandbox."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> Result:
        """Wait for the end. Raises CommandError or LaunchError when the command could not be started."""
        if self._outcome is None:
            self._take(self._answer.recv(1 << 20))
        return self._result()

    def communicate(self, data: bytes | None = None) -> Result:
        """Feed `data` to stdin, read the captured streams to their ends, and wait."""
        with selectors.DefaultSelector() as selector:
            left = memoryview(data or b"")
            if self.stdin is not None:
                if left:
                    os.set_blocking(self.stdin.fileno(), False)
                    selector.register(self.stdin, selectors.EVENT_WRITE)
                else:
                    self.stdin.close()
            parts: dict[str, list[bytes]] = {}
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)):
                if stream is not None:
                    parts[name] = []
                    selector.register(stream, selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select():
                    if key.fileobj is self.stdin:
                        left = self._feed(left)
                        if not left:
                            selector.unregister(self.stdin)
                            self.stdin.close()
                        continue
                    chunk = os.read(key.fd, _CHUNK)
                    if chunk:
                        parts[key.data].append(chunk)
                    else:
                        selector.unregister(key.fileobj)
            self._captured = {name: b"".join(chunks) for name, chunks in parts.items()}
        return self.wait()

    def _feed(self, left: memoryview) -> memoryview:
        assert self.stdin is not None
        try:
            return left[os.write(self.stdin.fileno(), left[:_CHUNK]) :]
        except BrokenPipeError:
            return left[:0]  # the command does not want the rest

    def _take(self, data: bytes) -> None:
        if not data:
            self._outcome = LaunchError("the launcher process was killed, and this sandbox with it")
        else:
            kind, *values = marshal.loads(data)
            if kind == "ended":
                *numbers, raw = values
                self._outcome = Outcome(*[*numbers, tuple(RawDenial(*entry) for entry in raw)])
            elif kind == "plan":
                _launcher.forget_plan(self._sandbox._plan_name)
                self._outcome = LaunchError("the launcher has dropped this plan; run it again")
            else:
                name, text, code = values
                self._outcome = CommandError(text, code) if name == "CommandError" else LaunchError(text)
        self._answer.close()
        for thread in self._copying:
            thread.join()

    def _result(self) -> Result:
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, SandboxError):
            raise outcome
        return Result(
            status=outcome.status,
            signal=outcome.signal,
            timed_out=outcome.timed_out,
            stdout=self._captured.get("stdout"),
            stderr=self._captured.get("stderr"),
            user_time=outcome.user_time,
            system_time=outcome.system_time,
            peak_memory=outcome.peak_memory,
            duration=outcome.duration,
            refused=outcome.refused,
            denials=denials.interpret(outcome, self._sandbox.plan),
        )

    def close(self) -> None:
        """Kill the sandbox, if it still runs, and close the pipes."""
        if self._outcome is None:
            self.kill()
            self._take(self._answer.recv(1 << 20))
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when the command has ended: for a loop of the caller's own."""
        return self._answer.fileno()


class Sandbox:
    """A profile compiled for this host; each `run` is a sandbox of its own.

    `profile` is a `Profile`, a file, the name of an installed one, or None for the defaults of `tier`. `workspace` is
    the directory that a profile with a workspace works in (default: the current one). Raises ProfileError,
    CompileError, LaunchError.
    """

    def __init__(
        self,
        profile: Profile | str | os.PathLike[str] | None = None,
        *,
        tier: int = 2,
        workspace: str | os.PathLike[str] | None = None,
    ) -> None:
        if profile is None:
            profile = Profile.default(tier)
        elif not isinstance(profile, Profile):
            profile = Profile.load(profile)
        self.profile = profile
        self.plan: Plan = compile_profile(profile, features.probe())
        self.workspace = place.workspace(self.plan, os.fspath(workspace) if workspace is not None else "")
        self._dumped = self.plan.dump()
        self._plan_name = hashlib.sha256(self._dumped).digest()

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start `argv`; streams as for subprocess.Popen (None inherits, PIPE, DEVNULL, STDOUT, a descriptor or file).

        `env` sets variables over those of the profile; `timeout` is in seconds; `cwd` is a directory inside.
        """
        if not argv:
            raise LaunchError("there is no command to run")
        layer, lock = b"", -1
        if self.workspace and self.plan.workspace == "overlay":
            from osmoda.sandbox import overlay

            layer, lock = overlay.for_plan(self.plan, self.workspace)
        given: list[int] = []
        pipes: dict[str, IO[bytes]] = {}
        copying: list[threading.Thread] = []
        try:
            numbers = self._streams(stdin, stdout, stderr, given, pipes, copying)
            request = LaunchRequest(
                self._plan_name,
                self._dumped,
                tuple(argv),
                place.environment(self.plan, False, tuple((env or {}).items())),
                place.start_directory(self.plan, self.workspace, cwd or ""),
                self.workspace,
                layer,
                float(timeout or 0.0),
            )
            answer = _launcher.send(request, [*numbers, lock] if lock >= 0 else numbers)
        except BaseException:
            for pipe in pipes.values():
                pipe.close()
            raise
        finally:
            for fd in given:
                os.close(fd)
            if lock >= 0:
                os.close(lock)
        return Process(self, argv, answer, pipes, copying)

    @staticmethod
    def _streams(
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        given: list[int],
        pipes: dict[str, IO[bytes]],
        copying: list[threading.Thread],
    ) -> list[int]:
        """The three descriptors for the command. Those made here are added to `given`, the other ends to `pipes`.

        A terminal never enters a sandbox: on stdin it reads as empty, and for stdout and stderr a thread copies to it.
        """
        numbers: list[int] = []
        for number, (name, stream) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
            if stream is None:
                stream = number
            if isinstance(stream, int) and stream >= 0 and os.isatty(stream):
                if name == "stdin":
                    stream = DEVNULL
                else:
                    given.append(_copied_to(stream, copying))
                    stream = given[-1]
            if stream == PIPE:
                read, write = os.pipe()
                theirs, mine = (read, write) if name == "stdin" else (write, read)
                given.append(theirs)
                pipes[name] = open(mine, "wb" if name == "stdin" else "rb", buffering=0)  # noqa: SIM115 - handed out
                numbers.append(theirs)
            elif stream == DEVNULL:
                given.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
                numbers.append(given[-1])
            elif stream == STDOUT:
                numbers.append(numbers[1])
            else:
                numbers.append(stream if isinstance(stream, int) else stream.fileno())
        return numbers

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - as subprocess.run has it
        capture_output: bool = False,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
    ) -> Result:
        """Run `argv` to its end, as subprocess.run does.

        Raises CommandError (127 not found, 126 not executable), LaunchError, TimedOut, and with `check` CommandFailed.
        """
        with self.popen(
            argv,
            stdin=PIPE if input is not None else stdin,
            stdout=PIPE if capture_output else stdout,
            stderr=PIPE if capture_output else stderr,
            timeout=timeout,
            env=env,
            cwd=cwd,
        ) as process:
            result = (
                process.communicate(input) if input is not None or process.stdout or process.stderr else process.wait()
            )
        return _judged(argv, result, timeout, check)

    async def run_async(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - as subprocess.run has it
        capture_output: bool = False,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
    ) -> Result:
        """`run` for asyncio. When the task is cancelled, the sandbox is killed before the cancellation goes on."""
        process = self.popen(
            argv,
            stdin=PIPE if input is not None else stdin,
            stdout=PIPE if capture_output else stdout,
            stderr=PIPE if capture_output else stderr,
            timeout=timeout,
            env=env,
            cwd=cwd,
        )
        with process:
            captured = await asyncio.gather(
                _drain(process.stdout), _drain(process.stderr), _feed(process.stdin, input or b""), _ended(process)
            )
            if process.stdout is not None:
                process._captured["stdout"] = captured[0]
            if process.stderr is not None:
                process._captured["stderr"] = captured[1]
            result = process.wait()
        return _judged(argv, result, timeout, check)


def _copied_to(terminal: int, copying: list[threading.Thread]) -> int:
    """The writing end of a pipe that a thread copies to `terminal`."""
    read, write = os.pipe()
    output = os.dup(terminal)

    def copy() -> None:
        with open(read, "rb", buffering=0) as source, open(output, "wb", buffering=0) as target:
            while chunk := os.read(source.fileno(), _CHUNK):
                _write_all(target.fileno(), chunk)

    copying.append(threading.Thread(target=copy, daemon=True, name="osmoda-terminal"))
    copying[-1].start()
    return write


def _judged(argv: Sequence[str], result: Result, timeout: float | None, check: bool) -> Result:
    if result.timed_out and timeout is not None:
        raise TimedOut(argv, result, timeout)
    if check and result.status != 0:
        raise CommandFailed(argv, result)
    return result


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _drain(stream: IO[bytes] | None) -> bytes:
    if stream is None:
        return b""
    os.set_blocking(stream.fileno(), False)
    chunks: list[bytes] = []
    while True:
        await _readable(stream.fileno())
        try:
            chunk = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            continue
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


async def _feed(stream: IO[bytes] | None, data: bytes) -> None:
    if stream is None:
        return
    loop = asyncio.get_running_loop()
    os.set_blocking(stream.fileno(), False)
    left = memoryview(data)
    while left:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(stream.fileno(), _settle, ready)
        try:
            await ready
        finally:
            loop.remove_writer(stream.fileno())
        try:
            left = left[os.write(stream.fileno(), left[:_CHUNK]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            break  # the command does not want the rest
    stream.close()


async def _ended(process: Process) -> None:
    await _readable(process.fileno())


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
