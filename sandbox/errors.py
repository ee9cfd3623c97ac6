"""The exceptions of osmoda.sandbox: each message is one sentence for the person at the terminal."""

from __future__ import annotations

# What an error number says of whoever started us, where the kernel's words alone do not.
_LIMITS = {
    12: "there is not enough memory (RLIMIT_AS, or the memory limit of the control group)",
    23: "the host can open no more files (fs.file-max)",
    24: "no more files can be opened (RLIMIT_NOFILE, see `ulimit -n`)",
}
_NO_MORE_PROCESSES = "no more processes can be started (RLIMIT_NPROC, or the pids limit of the control group)"


def sentence(error: BaseException) -> str:
    """What a person is told of a failure that has no other sentence: the object, the reason, and whose limit it is."""
    if isinstance(error, MemoryError):
        return _LIMITS[12]
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    text = error.strerror or str(error)
    if error.filename is not None:
        name = error.filename
        text = f"{name.decode(errors='backslashreplace') if isinstance(name, bytes) else name}: {text}"
    number = error.errno or 0
    limit = _NO_MORE_PROCESSES if number == 11 and text.startswith(("clone3", "execve")) else _LIMITS.get(number)
    return f"{text}: {limit}" if limit else text


def refused(error: BaseException, what: str = "") -> LaunchError:
    """The launch that `error` ends, as an exception to raise; `what` follows the sentence."""
    number = error.errno if isinstance(error, OSError) else 12 if isinstance(error, MemoryError) else 0
    text = sentence(error)
    limited = number in _LIMITS or text.endswith(_NO_MORE_PROCESSES)
    return (LimitReached if limited else LaunchError)(f"{text}{what}")


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


class LimitReached(LaunchError):
    """The caller may open no more files, start no more processes or have no more memory: no other plan would do."""


class ProfileEdited(LaunchError):
    """The profile was edited while the sandbox was started; its program may have begun, and was ended."""


class CommandError(LaunchError):
    """The command could not be executed: 127 when it was not found, 126 otherwise (as env(1) does)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
