"""Sandboxes from Python: `Sandbox(profile).run([...])`, blocking or with asyncio."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import IO, TYPE_CHECKING

from osmoda.host import features
from osmoda.sandbox import place, streams
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.launcher import LaunchRequest
from osmoda.sandbox.process import CommandFailed, Process, Result, TimedOut
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.resident import RESIDENT

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.streams import Stream


def close() -> None:
    """End this process's launcher and every sandbox it still runs; the next launch starts it again."""
    RESIDENT.close()


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
            numbers = streams.prepare(stdin, stdout, stderr, given, pipes, copying)
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
            answer = RESIDENT.send(request, [*numbers, lock] if lock >= 0 else numbers)
        except BaseException:
            for pipe in pipes.values():
                pipe.close()
            raise
        finally:
            for fd in given:
                os.close(fd)
            if lock >= 0:
                os.close(lock)
        return Process(self.plan, self._plan_name, argv, answer, pipes, copying)

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
            stdin=streams.PIPE if input is not None else stdin,
            stdout=streams.PIPE if capture_output else stdout,
            stderr=streams.PIPE if capture_output else stderr,
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
            stdin=streams.PIPE if input is not None else stdin,
            stdout=streams.PIPE if capture_output else stdout,
            stderr=streams.PIPE if capture_output else stderr,
            timeout=timeout,
            env=env,
            cwd=cwd,
        )
        with process:
            captured = await asyncio.gather(
                streams.drain(process.stdout),
                streams.drain(process.stderr),
                streams.feed(process.stdin, input or b""),
                streams.readable(process.fileno()),
            )
            if process.stdout is not None:
                process.captured["stdout"] = captured[0]
            if process.stderr is not None:
                process.captured["stderr"] = captured[1]
            result = process.wait()
        return _judged(argv, result, timeout, check)


def _judged(argv: Sequence[str], result: Result, timeout: float | None, check: bool) -> Result:
    if result.timed_out and timeout is not None:
        raise TimedOut(argv, result, timeout)
    if check and result.status != 0:
        raise CommandFailed(argv, result)
    return result
