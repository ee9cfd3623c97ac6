"""A command from its words to its exit code: the verb found and called, and what goes wrong said in one sentence.

All that is so whatever the standard streams are: closed, full, ended by their reader, or without a letter for a name.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host.paths import UntrustedDirectory
from osmoda.sandbox.errors import SandboxError, sentence
from osmoda.sandbox.request import UsageError
from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import TextIO

    type Verb = Callable[[argparse.Namespace], int]

FAILED = 125
_ENDED_BY_READER = 141  # 128 + SIGPIPE
_INTERRUPTED = 130  # 128 + SIGINT


@dataclass(frozen=True)
class Command:
    """One of osmoda's commands.

    `parser` makes its grammar, `verb` finds what carries out a verb of it by its name (`completion` is here already).
    `example` is for whoever gives none. `errors` are what its verbs raise besides SandboxError and UsageError.
    """

    program: str
    parser: Callable[[], argparse.ArgumentParser]
    verb: Callable[[str], Verb]
    example: str
    errors: tuple[type[Exception], ...] = ()

    def main(self, arguments: Sequence[str]) -> int:
        """Carry out what `arguments` say; the exit code."""
        return self.carry_out(lambda: self._called(arguments))

    def _called(self, arguments: Sequence[str]) -> int:
        options = self.parser().parse_args(arguments)
        if options.verb is None:
            raise UsageError(f"which verb? for instance: {self.program} {self.example}; see {self.program} --help")
        if options.verb == "completion":
            import shtab

            print(shtab.complete(self.parser(), shell=options.shell))
            return 0
        return self.verb(options.verb)(options)

    def carry_out(self, verb: Callable[[], int]) -> int:
        """Call `verb`; its exit code."""
        return carry_out(self.program, verb, self.errors)


def carry_out(program: str, verb: Callable[[], int], errors: tuple[type[Exception], ...] = ()) -> int:
    """Call `verb` of the command `program`; its exit code. What goes wrong is one sentence on the standard error.

    `errors` are what it raises besides SandboxError and UsageError.
    """
    _make_streams_usable()
    try:
        code = _code_of(verb)
        # Here, where it can still be said that nobody has got all of it.
        sys.stdout.flush()
        return code
    except (UsageError, UntrustedDirectory) as error:
        return _failed(program, str(error))
    except errors as error:
        return _failed(program, str(error))
    except SandboxError as error:
        for one in (error, *getattr(error, "others", ())):
            _failed(program, str(one))
        return error.exit_code
    except BrokenPipeError:
        return _ENDED_BY_READER  # the reader has seen enough
    except (OSError, ImportError, MemoryError) as error:
        lost = "" if _is_written(sys.stdout) else "the standard output cannot be written: "
        return _failed(program, lost + sentence(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        _drop_what_cannot_be_written()


def _failed(program: str, text: str) -> int:
    with contextlib.suppress(OSError):  # the exit code says it, too
        print(f"{program}: {clean(text)}", file=sys.stderr)
    return FAILED


def _code_of(verb: Callable[[], int]) -> int:
    try:
        return verb()
    except SystemExit as ended:  # argparse has printed help or the version
        return int(ended.code or 0)


def _make_streams_usable() -> None:
    """Have the standard output escape what it cannot encode, as the standard error does, and closed streams opened.

    For one that is closed Python has None, and the next file that is opened takes its number. What is printed into a
    closed output cannot be written, as ever; what is only said to a person is lost.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number
    streams: Any = sys
    if streams.stdout is None:
        streams.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if streams.stderr is None:
        streams.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_what_cannot_be_written() -> None:
    """Or the interpreter would try again at its end, complain about it and exit with 120."""
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        if not _is_written(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _is_written(stream: TextIO) -> bool:
    """Whether all that was printed has gone out."""
    try:
        stream.flush()
    except OSError:
        return False
    return True
