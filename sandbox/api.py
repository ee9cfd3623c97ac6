"""Sandboxes from Python: `Sandbox(profile).run([...])`, blocking or with asyncio."""

from __future__ import annotations

import hashlib
import os
from typing import IO, TYPE_CHECKING

from osmoda.host import features
from osmoda.sandbox import opening, place, plans, streams
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.launcher import LaunchRequest
from osmoda.sandbox.process import CommandFailed, Process, Result, TimedOut
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.resident import RESIDENT

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Mapping, Sequence

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.streams import Stream


def close() -> None:
    """End this process's launcher and every sandbox it still runs; the next launch starts it again."""
    RESIDENT.close()


class Sandbox:
    """A profile compiled for this host, once; each `run` is a sandbox of its own.

    Only the names that may be reached follow the profile's file: a run under one that was edited gets what it says now.

    `profile` is a `Profile`, a file, the name of an installed one, or None for the defaults of `tier`. `workspace` is
    the directory that a profile with a workspace works in (default: the current one), `agent` the name that other
    agents reach it by (default: the profile's). Raises ProfileError, CompileError, LaunchError.
    """

    def __init__(
        self,
        profile: Profile | str | os.PathLike[str] | None = None,
        *,
        tier: int = 2,
        workspace: str | os.PathLike[str] | None = None,
        agent: str = "",
    ) -> None:
        if profile is None:
            profile = Profile.default(tier)
        elif not isinstance(profile, Profile):
            profile = Profile.load(profile)
        self._agent = agent
        self._asked = os.fspath(workspace) if workspace is not None else ""
        self._here = ""
        self._compile(profile)

    def _edits_count_from(self) -> int:
        """The time of change, in ns since the epoch, from which on a file is not what the profile was read from."""
        return plans.edits_count_from(self._read, plans.moment()) if self._current else 1

    def _compile(self, profile: Profile) -> None:
        self.profile = profile
        self._read = plans.moment()
        self._current = _is_current(profile)
        self.plan: Plan = compile_profile(profile, features.probe())
        asked = self._asked or (self._here if self.plan.workspace != "none" else "")
        self.workspace = place.workspace(self.plan, asked)
        self.agent = opening.agent_name(self._agent, profile.file)
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
        given: list[int] = []
        pipes: dict[str, IO[bytes]] = {}
        copying: list[threading.Thread] = []
        try:
            numbers = streams.prepare(stdin, stdout, stderr, given, pipes, copying)
            answer = self._start(tuple(argv), numbers, float(timeout or 0.0), env or {}, cwd or "")
        except BaseException:
            for pipe in pipes.values():
                pipe.close()
            raise
        finally:
            for fd in given:
                os.close(fd)
        return Process(self.plan, self._plan_name, argv, answer, pipes, copying)

    def _start(
        self, argv: tuple[str, ...], numbers: list[int], timeout: float, env: Mapping[str, str], cwd: str
    ) -> socket.socket:
        """Start `argv` with the streams `numbers`; the answer comes on the socket that is returned."""
        layer, lock = b"", -1
        if self.workspace and self.plan.workspace == "overlay":
            from osmoda.sandbox import overlay

            layer, lock = overlay.for_plan(self.plan, self.workspace)
        try:
            held = opening.secrets(self.plan, os.environb)
            request = LaunchRequest(
                self._plan_name,
                self._dumped,
                argv,
                self._environment(env, held),
                place.start_directory(self.plan, self.workspace, cwd),
                self.workspace,
                layer,
                timeout,
                self.agent,
                opening.token_of_file(self.profile.file),
                self._edits_count_from(),
                held,
            )
            return RESIDENT.send(request, [*numbers, lock] if lock >= 0 else numbers)
        finally:
            if lock >= 0:
                os.close(lock)

    def _environment(
        self, env: Mapping[str, str], held: tuple[tuple[str, str, str], ...]
    ) -> tuple[tuple[str, str], ...]:
        """The command's variables; of the secrets `held` their placeholders."""
        placeholders = tuple([(name, placeholder) for name, placeholder, _ in held])
        return place.environment(self.plan, False, (*env.items(), *placeholders), os.environb)

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
        # For those who call it only: asyncio takes as long to load as all of this.
        import asyncio

        from osmoda.sandbox import async_streams

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
                async_streams.drain(process.stdout),
                async_streams.drain(process.stderr),
                async_streams.feed(process.stdin, input or b""),
                async_streams.readable(process.fileno()),
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


def _is_current(profile: Profile) -> bool:
    """Whether the files that `profile` was read from say the same still."""
    for path, digest in profile.files:
        if os.path.isabs(path):
            try:
                with open(path, "rb") as stream:
                    same = hashlib.sha256(stream.read()).hexdigest() == digest
            except OSError:
                same = False
            if not same:
                return False
    return True
