"""The grammar of `osmoda-watch`, for argparse, help and completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shtab

from osmoda.sandbox.grammar import add_completion, add_verb, completes_files, top
from osmoda.supervisor.command import switch_verbs as switch

if TYPE_CHECKING:
    import argparse

PROGRAM = "osmoda-watch"

_DESCRIPTION = """\
Runs agents as services, each in a sandbox of its own: units in systemd's syntax, restarted, checked and logged.
A unit whose sandbox cannot be enforced does not start."""

_UNITS = "a unit; its suffix .service may be left out"


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of the command, or of one verb of it."""
    command, verbs = top(PROGRAM, _DESCRIPTION, "start research-agent")
    _add_daemon(verbs)
    _add_jobs(verbs)
    _add_looks(verbs)
    _add_files(verbs)
    _add_systemd(verbs)
    switch.add_verbs(verbs)
    add_completion(verbs, PROGRAM)
    found: argparse.ArgumentParser = verbs.choices[verb] if verb else command
    return found


def _units(verb: argparse.ArgumentParser, how: str = "+") -> None:
    verb.add_argument("units", nargs=how, metavar="UNIT", help=_UNITS)


def _folder(verb: argparse.ArgumentParser) -> None:
    action = verb.add_argument("--units", dest="search", metavar="DIR", action="append", default=[])
    action.help = "look for units in DIR only, instead of the usual folders (repeatable)"
    action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _add_daemon(verbs: Any) -> None:
    daemon = add_verb(
        verbs,
        "daemon",
        "supervise units",
        "Starts the units that are enabled and those that were running when a daemon was killed, and supervises\n"
        "them until SIGTERM, which stops them in reverse order. SIGHUP has it read the unit files again. Killed,\n"
        "it takes all its agents with it. One daemon of a user runs; it says what it does on the standard error.",
        ("daemon", "daemon --units ~/agents"),
        as_json=False,
    )
    _folder(daemon)


def _add_jobs(verbs: Any) -> None:
    start = add_verb(
        verbs,
        "start",
        "start units",
        "Starts units and what they require, in order, as their files are now; returns when they are up. Exit\n"
        "code 1 when one is not, with the reason. One more than this host has room for is refused: see capacity.",
        ("start research-agent writer-agent", "start --force one-more"),
    )
    start.add_argument("--force", action="store_true", help="also where this host has no room for it")
    stop = add_verb(
        verbs,
        "stop",
        "stop units",
        "Stops units and what requires them; returns when nothing of them is left. They are not restarted, nor\n"
        "started with the daemon until the next boot.",
        ("stop writer-agent",),
    )
    restart = add_verb(
        verbs,
        "restart",
        "restart units",
        "Stops and starts units as their files are now. One that could not be started as it is there is not\nstopped.",
        ("restart research-agent",),
    )
    reload = add_verb(
        verbs,
        "reload",
        "have units read their own configuration",
        "Runs ExecReload= of units. Of the unit files themselves: daemon-reload.",
        ("reload research-agent",),
    )
    reset = add_verb(
        verbs,
        "reset-failed",
        "forget that units failed",
        "Lifts the start limit of units, and the state failed; without a UNIT of all.",
        ("reset-failed research-agent", "reset-failed"),
    )
    add_verb(
        verbs,
        "daemon-reload",
        "have the daemon read the unit files",
        "Has the daemon read the files of all units again. What runs is not touched; it is restarted under what\n"
        "they say.",
        ("daemon-reload",),
    )
    for one in (start, stop, restart, reload):
        _units(one)
    _units(reset, "*")


def _add_looks(verbs: Any) -> None:
    status = add_verb(
        verbs,
        "status",
        "say how units are",
        "Says how units are: state, sandbox, restarts, health, the last refusals, the last lines of their logs.\n"
        "Without a UNIT of all that the daemon has loaded. Exit code 0 when all are up, 3 when one is not, 4 when\n"
        "there is none of that name.",
        ("status research-agent", "status --json"),
    )
    _units(status, "*")
    status.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="lines of the log (default: 10)")
    listed = add_verb(
        verbs,
        "list",
        "list units",
        "Lists the units that the daemon has loaded, and those that osmoda's folder of units holds; with --all\n"
        "those of systemd's folders, too.",
        ("list", "list --all"),
    )
    listed.add_argument("--all", action="store_true", help="also units of systemd's folders")
    view = add_verb(
        verbs,
        "top",
        "watch what units use",
        "Shows the units that run with CPU (percent of one core), memory, processes and restarts, again and\n"
        "again. With --once, and on anything but a terminal, once. With --json, one object a line at each look.",
        ("top", "top --once", "top --json --interval 10"),
    )
    view.add_argument("--once", action="store_true", help="print the units once and end")
    view.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    capacity = add_verb(
        verbs,
        "capacity",
        "say what fits on this host",
        "Adds up the limits of the agents that run, and says how many more have room: on this host, or with\n"
        "--plan on a machine of that plan. What an agent counts as that declares no limit, what is kept for the\n"
        "system, and the plans are in plans.toml.",
        ("capacity", "capacity --plan team", "capacity --json"),
    )
    capacity.add_argument("--plan", default="", metavar="NAME", help="solo, pro, team, scale, or one of your own")
    logs = add_verb(
        verbs,
        "logs",
        "show what units print",
        "Shows the logs of units: what they print, and what the daemon says of them. Without a UNIT those of all.\n"
        "They are read from the disk, with or without a daemon.",
        ("logs research-agent -n 100", "logs -f", "logs writer-agent --since 10min --json", "logs | grep research"),
    )
    _units(logs, "*")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with the lines to come")
    logs.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N lines (with -f: 10)")
    logs.add_argument(
        "--since", default="", metavar="TIME", help="only lines since TIME: 90s, 10min, 2h, 1d ago, or 2026-01-31 12:00"
    )


def _add_files(verbs: Any) -> None:
    enable = add_verb(
        verbs,
        "enable",
        "start units with the daemon",
        "Links units as their [Install] says, so that the daemon starts them when it begins.",
        ("enable research-agent", "enable --now writer-agent"),
    )
    disable = add_verb(
        verbs,
        "disable",
        "do not start units with the daemon",
        "Removes the links that `enable` has made.",
        ("disable research-agent",),
    )
    check = add_verb(
        verbs,
        "check",
        "check unit files",
        "Reads units, their profiles and their directives, and compiles them for this host; says what each would\n"
        "run under. Exit code 1 when one has an error; each is told as file:line: sentence. Needs no daemon.",
        ("check research-agent", "check ./research-agent.service"),
    )
    completes_files(check.add_argument("units", nargs="+", metavar="UNIT", help="a unit, or a file"))
    for one in (enable, disable):
        _units(one)
        one.add_argument("--now", action="store_true", help=f"also {'start' if one is enable else 'stop'} them")
    for one in (enable, disable, check):
        _folder(one)


def _add_systemd(verbs: Any) -> None:
    systemd = add_verb(
        verbs,
        "systemd",
        "drop-ins that have systemd confine units",
        "Where systemd has booted the host and no daemon of osmoda's runs, systemd starts the units, and drop-ins\n"
        "have it run each of their commands in its sandbox. `start` and `enable` write them; `systemd write` does\n"
        "only that. `systemd check` says of each unit with a section [X-Osmoda], and of each with a drop-in,\n"
        "whether systemd would run it in its sandbox; exit code 1 when it would not. `systemd remove` takes the\n"
        "drop-ins of units away that do not run: then systemd starts them unconfined.",
        ("systemd check", "systemd write research-agent", "systemd remove research-agent"),
    )
    systemd.add_argument("action", choices=["check", "write", "remove"], help="what to do")
    _units(systemd, "*")
