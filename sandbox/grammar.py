"""What the commands' grammars share: verbs with help like a manual page, one sentence for what is none, completion."""

from __future__ import annotations

import argparse
import difflib
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

import shtab

from osmoda.sandbox.request import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SHELLS = ("bash", "zsh", "tcsh")


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

    verbs: Collection[str] = ()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but what a verb does not know is answered with the help of that verb."""
        self._check_verb(args)
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            which = f"{self.prog} {found.verb}" if found.verb else self.prog
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}; see {which} --help")
        return found

    def _check_verb(self, words: Sequence[str]) -> None:
        """Raise UsageError, with the verb that may be meant, where the first word is none."""
        if words and not words[0].startswith("-") and words[0] not in self.verbs:
            near = difflib.get_close_matches(words[0], [*self.verbs], 1)
            hint = f"did you mean {near[0]}? see" if near else "see"
            raise UsageError(f"there is no verb {words[0]}; {hint} {self.prog} --help")


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
    verbs = found.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)
    found.verbs = verbs.choices
    return found, verbs


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
