"""The grammar of `osmoda-sandbox` for argparse. Of `run` only its help and its completion are made from this."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

from osmoda.sandbox import request
from osmoda.sandbox.grammar import add_completion, add_verb, top

PROGRAM = "osmoda-sandbox"

_DESCRIPTION = """\
Runs programs in trust tiers: one profile file becomes what the kernel lets a program do.
Tier 0 is unrestricted, 1 a sandbox with declared capabilities, 2 (the default) maximum isolation."""

_EXIT_CODES = """\
exit codes:
  the command's own; 128+n when signal n ended it; 124 after --timeout; 125 when the sandbox could not be set up;
  126 and 127 when the command could not be executed or was not found"""


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of the command, or of one verb of it."""
    command, verbs = top(PROGRAM, _DESCRIPTION, "run --tier 2 -- python3 -V")
    _add_run(verbs)
    _add_learn(verbs)
    _add_serve(verbs)
    _add_meaning(verbs)
    _add_host(verbs)
    _add_workspace(verbs)
    add_completion(verbs, PROGRAM)
    found: argparse.ArgumentParser = verbs.choices[verb] if verb else command
    return found


def _add_run(verbs: Any) -> None:
    """Only for help and completion: a run is read by `request.parse`."""
    run = add_verb(
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


def _add_learn(verbs: Any) -> None:
    learn = add_verb(
        verbs,
        "learn",
        "write the least profile that a command passes under",
        "Runs a command in a sandbox of tier 1 that lets it see the host's files and reach every public name, but\n"
        "throws away what it writes; writes the least profile for what it used, each line with what needed it; and\n"
        "runs the command again under that. What is private (keys, other users' files) is never granted. Exit code 0\n"
        "when that run passes, 1 when it does not. Without -o or --update the profile goes to the standard output,\n"
        "and what the command says to the standard error.",
        (
            "learn -o agent.toml -- python3 agent.py",
            "learn --update agent.toml -- python3 agent.py --other-task",
            "learn --tier 2 -- git clone https://git.example/project.git > clone.toml",
        ),
    )
    where = learn.add_mutually_exclusive_group()
    _completed(where.add_argument("-o", "--output", metavar="FILE", help="write the profile to FILE"), "file")
    text = "add to the profile FILE what it lacks, keeping its comments"
    _completed(where.add_argument("--update", metavar="FILE", help=text), "file")
    learn.add_argument("-t", "--tier", type=int, choices=(1, 2), help="tier of the profile (default: 1, or FILE's)")
    text = "how the current directory is written, where the command needs it (default: overlay)"
    learn.add_argument("--workspace-mode", choices=("overlay", "direct"), default="overlay", help=text)
    text = "let the command reach a network or private name while it is observed, as `run` does (repeatable)"
    learn.add_argument("--allow", action="append", default=[], metavar="RULE", help=text)
    text = "set a variable in each run; it is not written into the profile (repeatable)"
    learn.add_argument("-e", "--env", dest="set", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "pass a variable of the caller on, here and in the profile (repeatable)"
    learn.add_argument("--pass-env", dest="passed", action="append", default=[], metavar="NAME", help=text)
    text = "a layer that this host lacks and that may be missing, here and in the profile (repeatable)"
    learn.add_argument("--degrade", action="append", default=[], metavar="LAYER", help=text)
    learn.add_argument("--timeout", metavar="SECONDS", default="", help="end each run after this time")
    learn.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")


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
        for option, dest in (
            ("--allow", "grant_allow"),
            ("--deny", "grant_deny"),
            ("--env", "set"),
            ("--pass-env", "passed"),
        ):
            _, metavar, text = request.OPTIONS[option]
            verb.add_argument(option, dest=dest, action="append", metavar=metavar, help=text)


def _add_serve(verbs: Any) -> None:
    serve = add_verb(
        verbs,
        "serve",
        "keep sandboxes waiting for run --pool",
        "Keeps sandboxes of a profile that are complete but for their command, and replaces each that is used:\n"
        "`run --pool` with the same options, by the same user, then takes one. Ends with SIGINT or SIGTERM.",
        ("serve agent.toml --size 8", "serve --tier 2"),
    )
    _add_profile(serve, grants=True)
    serve.add_argument("--size", type=int, default=4, metavar="N", help="how many, 1 to 64 (default: %(default)s)")


def _add_meaning(verbs: Any) -> None:
    explain = add_verb(
        verbs,
        "explain",
        "say what a profile means on this host",
        "Says layer by layer what a profile grants, from which line, and whether this host has the layer: made from\n"
        "the operations that a run applies. Without a profile, what holds in a tier.",
        ("explain agent.toml", "explain --tier 1 --read /srv/notes", "explain research --json"),
    )
    _add_profile(explain, grants=True)
    check = add_verb(
        verbs,
        "check",
        "check profiles",
        "Reads and compiles profiles. Exit code 1 when one has an error; each is told as file:line:column: sentence.",
        ("check agent.toml other.toml",),
    )
    _completed(check.add_argument("files", nargs="+", metavar="PROFILE", help="profile file or name"), "files")
    diff = add_verb(
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
    why = add_verb(
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
    add_verb(
        verbs,
        "doctor",
        "try each layer on this host",
        "Fires one real denial at each layer, inside real sandboxes, and says how to mend what is missing. Exit code\n"
        "1 when something is missing that the tiers need.",
        ("doctor", "doctor --json"),
    )
    verify = add_verb(
        verbs,
        "verify",
        "attack a sandbox of a profile, and try what it grants",
        "Makes the attack battery in a sandbox of the profile, and tries what the profile grants and what lies beside\n"
        "that. Each attack is first made outside, where it must succeed. Prints what stopped it. Exit code 1 when\n"
        "anything got through, does not work although it is granted, or could not be judged.",
        ("verify agent.toml", "verify --tier 2", "verify research --json", "verify agent.toml --junit verify.xml"),
    )
    _add_profile(verify, grants=True)
    _completed(verify.add_argument("--junit", metavar="FILE", help="also write a JUnit report to FILE"), "file")
    add_verb(
        verbs,
        "ps",
        "list running sandboxes",
        "Lists the sandboxes of tier 1 and 2 that are running; tier 0 is not a sandbox.",
        ("ps",),
    )
    view = add_verb(
        verbs,
        "top",
        "watch running sandboxes and what they are refused",
        "Shows the running sandboxes of tier 1 and 2 (as root of everybody, else one's own), and below them what is\n"
        "refused as it happens: by which layer, and the line that would allow it. Keys: q quits, s sorts otherwise, h\n"
        "shows or hides what programs try out of habit. CPU is in percent of one core. With --once, and on anything\n"
        "but a terminal, the sandboxes are printed once, with their mean CPU since the start. With --json, one object\n"
        "a line at each look, with what was refused since the one before.",
        ("top", "top --once", "top --json --interval 10"),
    )
    view.add_argument("--once", action="store_true", help="print the sandboxes once and end")
    view.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks, 0.1 to 60 (default: 1)"
    )
    kill = add_verb(
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
    changes = add_verb(
        verbs,
        "changes",
        "say what a commit would change",
        "Lists what programs have changed in an overlay workspace: A added, M modified, D deleted, T of another type,\n"
        "P with other permissions. Nothing is changed on disk.",
        ("changes", "changes --workspace ~/project"),
    )
    commit = add_verb(
        verbs,
        "commit",
        "make the changes of an overlay workspace",
        "Makes the pending changes of an overlay workspace on disk: all, or those at and below PATHs.",
        ("commit", "commit src/main.py docs", "commit --dry-run"),
    )
    commit.add_argument("--dry-run", action="store_true", help="only list what would be changed")
    commit.add_argument("--force", action="store_true", help="also over files that the host has changed meanwhile")
    discard = add_verb(
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
