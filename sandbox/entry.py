"""The first lines of `osmoda-sandbox`: `run` goes straight to the launch, every other verb to `cli`."""

from __future__ import annotations

import gc
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.sandbox.request import Request


def main() -> int:
    """The command; its exit code."""
    # A collection would touch, and so copy, every page that the child shares with this process.
    gc.disable()
    _occupy_closed_streams()
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "run":
        from osmoda.sandbox.request import UsageError, parse

        try:
            request = parse(arguments[1:])
        except UsageError as error:
            return _say(str(error), 125)
        if request is not None and not request.dry_run:
            code = _run(request)
            # Straight out: taking the interpreter down in order takes as long as a fifth of the launch, and nothing
            # waits for it.
            posix._exit(code)
    from osmoda.sandbox.cli import main as other_verbs

    gc.enable()
    return other_verbs(arguments)


def _occupy_closed_streams() -> None:
    """Put something where a standard stream is closed, or a descriptor of the monitor's own would become the command's.

    It cannot be used any more than a closed one: stdin cannot be read, stdout and stderr cannot be written.
    """
    for fd, flags in ((0, posix.O_WRONLY), (1, posix.O_RDONLY), (2, posix.O_RDONLY)):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", flags)  # the lowest free number


def _run(request: Request) -> int:
    from osmoda.host.paths import UntrustedDirectory
    from osmoda.sandbox.errors import SandboxError, sentence

    try:
        from osmoda.sandbox.foreground import run

        return run(request)
    except SandboxError as error:
        for text in (str(error), *map(str, getattr(error, "others", ()))):
            _say(text, 125)
        return error.exit_code
    except UntrustedDirectory as error:
        return _say(str(error), 125)
    except (OSError, ImportError, MemoryError) as error:
        # The caller's limits, or a file system of osmoda's own directories: whatever ran has ended.
        return _say(sentence(error), 125)
    except KeyboardInterrupt:
        return 130


def _say(text: str, code: int) -> int:
    # Control characters in a name must not reach the terminal.
    clean = "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])
    posix.write(2, f"osmoda-sandbox: {clean}\n".encode(errors="backslashreplace"))
    return code
