"""What else than agents can take part in a switch: something with numbered generations of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Protocol

from osmoda.supervisor.switch import store
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILES = "/nix/var/nix/profiles"
_SECONDS = 900.0  # for one activation: services of the system are restarted


class Generations(Protocol):
    """A member of a switch that keeps its generations by itself."""

    def current(self) -> int:
        """The generation that is the current one. Raises SwitchError where there are none."""

    def verify(self, generation: int) -> None:
        """Raise SwitchError when there is no such generation, or it cannot be activated."""

    async def activate(self, generation: int) -> None:
        """Make it the current one and bring it into effect. Raises SwitchError.

        May be done again wherever it was left.
        """


class NixosSystem:
    """The generations of a NixOS system: links `system-N-link`, of which `system` names the current one.

    `activate` is what `nixos-rebuild --rollback switch` does: the link, under Nix's own lock, and then
    `switch-to-configuration switch` of that generation, which does nothing when the system is there already.
    """

    def __init__(self, profiles: str = PROFILES) -> None:
        self._profiles = profiles

    def current(self) -> int:
        """See `Generations`."""
        link = os.path.join(self._profiles, "system")
        try:
            name = os.path.basename(os.readlink(link))
        except OSError as error:
            raise SwitchError(f"this host has no NixOS system to switch: {link}: {error.strerror}") from None
        number = name.removeprefix("system-").removesuffix("-link")
        if not number.isdigit() or name != f"system-{number}-link":
            raise SwitchError(f"{link} leads to {name}, which is no generation of a NixOS system")
        return int(number)

    def _script(self, generation: int) -> str:
        return os.path.join(self._profiles, f"system-{generation}-link", "bin", "switch-to-configuration")

    def verify(self, generation: int) -> None:
        """See `Generations`."""
        script = self._script(generation)
        if not os.access(script, os.X_OK):
            raise SwitchError(f"generation {generation} of the system cannot be activated: there is no {script}")

    async def activate(self, generation: int) -> None:
        """See `Generations`."""
        self.verify(generation)
        if self.current() != generation:
            with self._lock():
                store.replace_link(f"system-{generation}-link", os.path.join(self._profiles, "system"))
        script = self._script(generation)
        # A session of its own: a signal to the daemon's group does not stop an activation in the middle.
        process = await asyncio.create_subprocess_exec(
            script,
            "switch",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                _, errors = await process.communicate()
        except TimeoutError:
            raise SwitchError(f"{script} switch did not end within {_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            last = errors.decode(errors="backslashreplace").strip().rpartition("\n")[2]
            raise SwitchError(f"{script} switch ended with {process.returncode}: {last or 'it said nothing'}")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = os.path.join(self._profiles, "system.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SwitchError(f"{path} is held: Nix is changing the system's generations") from None
            yield
        finally:
            os.close(fd)
