"""The exceptions of osmoda.sandbox: each message is one sentence for the person at the terminal."""

from __future__ import annotations


class SandboxError(Exception):
    """Anything that kept a sandbox from being set up. `exit_code` is what the command exits with."""

    exit_code = 125


class ProfileError(SandboxError):
    """A profile that cannot be read, is not valid, or asks for more than its tier allows.

    `line` and `column` count from 1; they are 0 where the error has no place in the file. `others` holds what else was
    wrong with the same profile.
    """

    others: tuple[ProfileError, ...] = ()

    def __init__(self, message: str, file: str, line: int = 0, column: int = 0) -> None:
        place = file if not line else f"{file}:{line}:{column}"
        super().__init__(f"{place}: {message}")
        self.message = message
        self.file = file
        self.line = line
        self.column = column


class CompileError(SandboxError):
    """A valid profile that this host cannot enforce; `origin` is the `file:line` that asked for it."""

    def __init__(self, message: str, origin: str = "") -> None:
        super().__init__(f"{origin}: {message}" if origin else message)
        self.message = message
        self.origin = origin


class LaunchError(SandboxError):
    """The kernel refused a step of the set-up; nothing was run and nothing is left behind."""


class CommandError(LaunchError):
    """The command could not be executed: 127 when it was not found, 126 otherwise (as env(1) does)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
