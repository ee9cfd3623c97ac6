"""What the commands share: verbs with help like a manual page, errors of one sentence, exit codes, completion."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

import shtab

from osmoda.host.paths import UntrustedDirectory
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.request import UsageError
from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

SHELLS = ("bash", "zsh", "tcsh")
FAILED = 125
_ENDED_BY_READER = 141  # 128 + SIGPIPE
_INTERRUPTED = 130  # 128 + SIGINT


def carry_out(program: str, verb: Callable[[], int], errors: tuple[type[Exception], ...] = ()) -> int:
    """Call `verb`; its exit code. What goes wrong, `errors` included, is one sentence on the standard error."""
    try:
        return verb()
    except (UsageError, UntrustedDirectory) as error:
        return _say(program, str(error))
    except errors as error:
        return _say(program, str(error))
    except SandboxError as error:
        for one in (error, *getattr(error, "others", ())):
            _say(program, str(one))
        return error.exit_code
    except BrokenPipeError:
        # The reader has seen enough; nothing may be flushed into the closed pipe at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return _ENDED_BY_READER
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        return _say(program, text)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _say(program: str, text: str) -> int:
    print(f"{program}: {clean(text)}", file=sys.stderr)
    return FAILED


def check_verb(program: str, arguments: list[str], verbs: Collection[str]) -> None:
    """Raise UsageError, with the verb that may be meant, where the first word is none."""
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if arguments and arguments[0] == verb and verb not in verbs:
        near = difflib.get_close_matches(verb, [*verbs], 1)
        hint = f"did you mean {near[0]}? see" if near else "see"
        raise UsageError(f"there is no verb {verb}; {hint} {program} --help")


class Version(argparse.Action):
    """`--version`: asks for the installed version only when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            version = metadata.version("osmoda")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"{parser.prog} {version}")
        parser.exit(0)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written; names and their help side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """Raises UsageError in one sentence; argparse would print the usage and exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but what a verb does not know is answered with the help of that verb."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            which = f"{self.prog} {found.verb}" if found.verb else self.prog
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}; see {which} --help")
        return found


def add_verb(
    verbs: Any, name: str, summary: str, description: str, examples: Sequence[str], *, as_json: bool = True
) -> argparse.ArgumentParser:
    """One verb of a command; each has `--json`, `--help` and an example."""
    program = verbs._prog_prefix
    found: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "\n".join(f"  {program} {example}" for example in examples),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    if as_json:
        found.add_argument("--json", action="store_true", help="print JSON")
    return found


def top(program: str, description: str, example: str) -> tuple[argparse.ArgumentParser, Any]:
    """The parser of a command, and where its verbs are added."""
    found = Parser(
        prog=program,
        description=description,
        epilog=f"an example:\n  {program} {example}\n\n{program} VERB --help tells more of each.",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    found.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    return found, found.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)


def add_completion(verbs: Any, program: str) -> None:
    """The verb that prints a completion script."""
    shell = add_verb(
        verbs,
        "completion",
        "print a completion script",
        "Prints a script that completes verbs, options and files in the named shell.",
        (f"completion bash > ~/.local/share/bash-completion/completions/{program}",),
        as_json=False,
    )
    shell.add_argument("shell", choices=SHELLS)


def completes_files(action: argparse.Action) -> None:
    """The value is a file."""
    action.complete = shtab.FILE  # type: ignore[attr-defined]
