"""A command that runs in a sandbox, as the program that started it holds it."""

from __future__ import annotations

import marshal
import os
import selectors
import signal
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from osmoda.sandbox import denials
from osmoda.sandbox.answer import read_answer
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.resident import RESIDENT
from osmoda.sandbox.streams import CHUNK

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan


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


def result_of(outcome: Outcome, plan: Plan, captured: Mapping[str, bytes]) -> Result:
    """What the launcher tells of an end, put into words by the plan."""
    return Result(
        status=outcome.status,
        signal=outcome.signal,
        timed_out=outcome.timed_out,
        stdout=captured.get("stdout"),
        stderr=captured.get("stderr"),
        user_time=outcome.user_time,
        system_time=outcome.system_time,
        peak_memory=outcome.peak_memory,
        duration=outcome.duration,
        refused=outcome.refused,
        denials=denials.interpret(outcome, plan),
    )


class Process:
    """A running command. Use `Sandbox.popen`. As a context manager it is killed on the way out, should it still run."""

    def __init__(
        self,
        plan: Plan,
        plan_name: bytes,
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
        self._plan = plan
        self._plan_name = plan_name
        self._answer = answer
        self._outcome: Outcome | SandboxError | None = None
        self.captured: dict[str, bytes] = {}

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
            self._take()
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
                    chunk = os.read(key.fd, CHUNK)
                    if chunk:
                        parts[key.data].append(chunk)
                    else:
                        selector.unregister(key.fileobj)
            self.captured = {name: b"".join(chunks) for name, chunks in parts.items()}
        return self.wait()

    def _feed(self, left: memoryview) -> memoryview:
        assert self.stdin is not None
        try:
            return left[os.write(self.stdin.fileno(), left[:CHUNK]) :]
        except BrokenPipeError:
            return left[:0]  # the command does not want the rest

    def _take(self) -> None:
        try:
            data = self._answer.recv(1 << 20)
        except ConnectionResetError:
            data = b""  # the launcher was killed before it read a signal of ours
        if not data:
            self._outcome = LaunchError("the launcher was killed, or ran out of open files; this sandbox is gone")
        else:
            message = marshal.loads(data)
            if message[0] == "plan":
                RESIDENT.forget_plan(self._plan_name)
                self._outcome = LaunchError("the launcher has dropped this plan; run it again")
            else:
                self._outcome = read_answer(message)
        self._answer.close()
        for thread in self._copying:
            thread.join()

    def _result(self) -> Result:
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, SandboxError):
            raise outcome
        return result_of(outcome, self._plan, self.captured)

    def close(self) -> None:
        """Kill the sandbox, if it still runs, and close the pipes."""
        if self._outcome is None:
            self.kill()
            self._take()
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
