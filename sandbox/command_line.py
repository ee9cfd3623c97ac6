"""The grammar of `osmoda-sandbox` for argparse. Of `run` only its help and its completion are made from this."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

import shtab

from osmoda.sandbox import request
from osmoda.sandbox.request import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

SHELLS = ("bash", "zsh", "tcsh")
PROGRAM = "osmoda-sandbox"

_DESCRIPTION = """\
Runs programs in trust tiers: one profile file becomes what the kernel lets a program do.
Tier 0 is unrestricted, 1 a sandbox with declared capabilities, 2 (the default) maximum isolation."""

_EXIT_CODES = """\
exit codes:
  the command's own; 128+n when signal n ended it; 124 after --timeout; 125 when the sandbox could not be set up;
  126 and 127 when the command could not be executed or was not found"""


class _Version(argparse.Action):
    """`--version`: asks for the installed version only when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            version = metadata.version("osmoda")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"{PROGRAM} {version}")
        parser.exit(0)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written; names and their help side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class _Parser(argparse.ArgumentParser):
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


def _verb(
    verbs: Any, name: str, summary: str, description: str, examples: Sequence[str], *, as_json: bool = True
) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "\n".join(f"  {PROGRAM} {example}" for example in examples),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    if as_json:
        found.add_argument("--json", action="store_true", help="print JSON")
    return found


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of the command, or of one verb of it."""
    top = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=f"an example:\n  {PROGRAM} run --tier 2 -- python3 -V\n\n{PROGRAM} VERB --help tells more of each.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    _add_run(verbs)
    _add_meaning(verbs)
    _add_host(verbs)
    _add_workspace(verbs)
    shell = _verb(
        verbs,
        "completion",
        "print a completion script",
        "Prints a script that completes verbs, options and files in the named shell.",
        (f"completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}",),
        as_json=False,
    )
    shell.add_argument("shell", choices=SHELLS)
    found: argparse.ArgumentParser = verbs.choices[verb] if verb else top
    return found


def _add_run(verbs: Any) -> None:
    """Only for help and completion: a run is read by `request.parse`."""
    run = _verb(
        verbs,
        "run",
        "run a command in a sandbox",
        "Runs a command under a profile, with this process as its monitor. Streams are handed over as they are,\n"
        "signals are forwarded, and at the end nothing of it is left running.\n\n" + _EXIT_CODES,
        (
            "run -- python3 -V",
            "run --profile agent.toml --timeout 30 -- sh build.sh",
            "run --tier 1 --read /srv/notes --workspace-mode overlay -- make",
            "run --profile agent.toml --dry-run -- sh build.sh",
        ),
        as_json=False,
    )
    short = {long: letter for letter, long in request.SHORT.items()}
    for long, (field, metavar, text) in request.OPTIONS.items():
        names = [short[long], long] if long in short else [long]
        _completed(run.add_argument(*names, dest=field, metavar=metavar, help=text), field)
    for long, (field, text) in request.FLAGS.items():
        names = [short[long], long] if long in short else [long]
        run.add_argument(*names, dest=field, action="store_true", help=text)
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")


def _completed(action: argparse.Action, field: str) -> None:
    """Tell shtab what the value of an option is."""
    if field == "workspace":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif field in ("profile", "read", "write", "file", "files", "first", "second", "path", "paths"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _add_profile(verb: argparse.ArgumentParser, *, grants: bool) -> None:
    """The profile that a verb is about: a file or name, and the options of `run` that decide the plan."""
    action = verb.add_argument(
        "file", nargs="?", metavar="PROFILE", help="profile file, or the name of an installed one"
    )
    _completed(action, "file")
    _completed(
        verb.add_argument("-p", "--profile", metavar="FILE", help="the same as an option, as `run` has it"), "file"
    )
    verb.add_argument("-t", "--tier", type=int, choices=(0, 1, 2), help=request.OPTIONS["--tier"][2])
    action = verb.add_argument("-w", "--workspace", metavar="DIR", help=request.OPTIONS["--workspace"][2])
    _completed(action, "workspace")
    modes = ("direct", "overlay", "none")
    verb.add_argument("--workspace-mode", choices=modes, help=request.OPTIONS["--workspace-mode"][2])
    if grants:
        for option, dest in (("--read", "grant_read"), ("--write", "grant_write")):
            text = request.OPTIONS[option][2]
            action = verb.add_argument(option, dest=dest, action="append", metavar="PATH", help=text)
            _completed(action, "path")
        for option, dest in (("--env", "set"), ("--pass-env", "passed")):
            _, metavar, text = request.OPTIONS[option]
            verb.add_argument(option, dest=dest, action="append", metavar=metavar, help=text)


def _add_meaning(verbs: Any) -> None:
    explain = _verb(
        verbs,
        "explain",
        "say what a profile means on this host",
        "Says layer by layer what a profile grants, from which line, and whether this host has the layer: made from\n"
        "the operations that a run applies. Without a profile, what holds in a tier.",
        ("explain agent.toml", "explain --tier 1 --read /srv/notes", "explain research --json"),
    )
    _add_profile(explain, grants=True)
    check = _verb(
        verbs,
        "check",
        "check profiles",
        "Reads and compiles profiles. Exit code 1 when one has an error; each is told as file:line:column: sentence.",
        ("check agent.toml other.toml",),
    )
    _completed(check.add_argument("files", nargs="+", metavar="PROFILE", help="profile file or name"), "files")
    diff = _verb(
        verbs,
        "diff",
        "say what one profile grants beyond another",
        "Says what profile A grants beyond profile B. Exit code 0 when nothing, 1 when something.",
        ("diff agent.toml old/agent.toml", "diff agent.toml tier2"),
    )
    _completed(
        diff.add_argument("first", metavar="A", help="profile file or name; tier0, tier1, tier2 are names"), "first"
    )
    _completed(diff.add_argument("second", metavar="B", help="profile file or name"), "second")
    why = _verb(
        verbs,
        "why",
        "say why something was, or would be, refused",
        "Without an option: what the last run was refused, by which layer, and the line that would allow it.\n"
        "With --path or --syscall: whether that would be allowed, by the profile named or else that of the last run;\n"
        "exit code 0 when allowed, 1 when refused.",
        (
            "why",
            "why agent.toml --path /srv/notes/.env",
            "why --path results.txt --write",
            "why --tier 2 --syscall ptrace",
        ),
    )
    _add_profile(why, grants=False)
    about = why.add_mutually_exclusive_group()
    _completed(about.add_argument("--path", metavar="PATH", help="ask about a file or directory"), "path")
    about.add_argument("--syscall", metavar="NAME", help="ask about a system call")
    mode = why.add_mutually_exclusive_group()
    for name, text in (("write", "writing"), ("exec", "executing"), ("list", "listing")):
        mode.add_argument(
            f"--{name}", dest="mode", action="store_const", const=name, help=f"with --path: about {text}, not reading"
        )


def _add_host(verbs: Any) -> None:
    _verb(
        verbs,
        "doctor",
        "try each layer on this host",
        "Fires one real denial at each layer, inside real sandboxes, and says how to mend what is missing. Exit code\n"
        "1 when something is missing that the tiers need.",
        ("doctor", "doctor --json"),
    )
    _verb(
        verbs,
        "ps",
        "list running sandboxes",
        "Lists the sandboxes of tier 1 and 2 that are running; tier 0 is not a sandbox.",
        ("ps",),
    )
    kill = _verb(
        verbs,
        "kill",
        "end running sandboxes",
        "Ends sandboxes with everything in them, or sends a signal to the command of each.",
        ("kill 1a2b-1", "kill --signal HUP 1a2b-1", "kill --all"),
    )
    kill.add_argument("ids", nargs="*", metavar="ID", help="as `ps` shows it")
    kill.add_argument("--all", action="store_true", help="all that `ps` lists")
    kill.add_argument("--signal", metavar="NAME", help="send this signal to the command instead of ending the sandbox")


def _add_workspace(verbs: Any) -> None:
    changes = _verb(
        verbs,
        "changes",
        "say what a commit would change",
        "Lists what programs have changed in an overlay workspace: A added, M modified, D deleted, T of another type,\n"
        "P with other permissions. Nothing is changed on disk.",
        ("changes", "changes --workspace ~/project"),
    )
    commit = _verb(
        verbs,
        "commit",
        "make the changes of an overlay workspace",
        "Makes the pending changes of an overlay workspace on disk: all, or those at and below PATHs.",
        ("commit", "commit src/main.py docs", "commit --dry-run"),
    )
    commit.add_argument("--dry-run", action="store_true", help="only list what would be changed")
    commit.add_argument("--force", action="store_true", help="also over files that the host has changed meanwhile")
    discard = _verb(
        verbs,
        "discard",
        "forget the changes of an overlay workspace",
        "Forgets the pending changes of an overlay workspace: all, or those at and below PATHs.",
        ("discard", "discard build"),
    )
    for one in (changes, commit, discard):
        text = "the workspace (default: the current directory)"
        _completed(one.add_argument("-w", "--workspace", metavar="DIR", default=".", help=text), "workspace")
        if one is not changes:
            action = one.add_argument("paths", nargs="*", metavar="PATH", help="relative to the workspace")
            _completed(action, "paths")
