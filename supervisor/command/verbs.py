"""`osmoda-watch`: the verbs. What only asks the daemon loads neither asyncio nor the compiler of sandboxes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.request import UsageError
from osmoda.sandbox.terminal_text import clean
from osmoda.sandbox.verbs import Command
from osmoda.supervisor.command import grammar, status_words
from osmoda.supervisor.command import switch_verbs as switch_command
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.logs import files as log_files
from osmoda.supervisor.logs import view as log_view

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from osmoda.sandbox.verbs import Verb
    from osmoda.supervisor.units.enablement import Link

_DOWN, _UNKNOWN = 3, 4  # exit codes of status, which are systemctl's (LSB)
_SPANS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "day": 86400, "days": 86400, "w": 604800}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)(?:\s+ago)?")
_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def main() -> int:
    """The command; its exit code. What goes wrong is one sentence on the standard error."""
    command = Command(grammar.PROGRAM, grammar.parser, lambda name: _verbs()[name], "status", (SupervisorError,))
    return command.main(sys.argv[1:])


def _verbs() -> dict[str, Verb]:
    """The verbs: where no daemon of this user runs and systemd has booted the host, those of systemd's engine."""
    if control_client.is_there() or not control_client.systemd_is_here():
        return _VERBS
    from osmoda.supervisor.command import systemd_verbs as systemd_command

    return {**_VERBS, **systemd_command.VERBS}


def _full(name: str) -> str:
    return name if name.endswith((".service", ".socket")) else f"{name}.service"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


# What is asked of the daemon


def _job(verb: str) -> Verb:
    def ask(options: argparse.Namespace) -> int:
        force = {"force": True} if getattr(options, "force", False) else {}
        return tell_outcomes(options, _asked(verb, getattr(options, "units", ()), quiet=options.json, **force))

    return ask


def _asked(verb: str, units: Sequence[str], *, quiet: bool, **more: bool) -> list[dict[str, Any]]:
    """The outcomes; meanwhile, on a terminal, what is going on."""
    live = sys.stderr.isatty() and not quiet
    states: dict[str, str] = {}

    def show(message: dict[str, Any]) -> None:
        states[str(message.get("unit"))] = str(message.get("state"))
        going_on = [f"{unit} {state}" for unit, state in states.items() if state.endswith("ing")]
        print(f"\r\x1b[K{clean(', '.join(going_on))[:100]}", end="", file=sys.stderr, flush=True)

    answer = control_client.ask(verb, units, progress=show if live else None, seconds=None, **more)
    if live and states:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    outcomes: list[dict[str, Any]] = answer["outcomes"]
    return outcomes


def tell_outcomes(options: argparse.Namespace, outcomes: list[dict[str, Any]]) -> int:
    """Print what has not been done, and why; the exit code."""
    if options.json:
        _print_json(outcomes)
    else:
        for one in outcomes:
            if not one["ok"]:
                print(f"{grammar.PROGRAM}: {clean(one['unit'])}: {clean(one['text'])}", file=sys.stderr)
            elif one["text"]:
                print(f"{clean(one['unit'])}: {clean(one['text'])}")
    return 0 if all(one["ok"] for one in outcomes) else 1


# Looks


def _status(options: argparse.Namespace) -> int:
    names = [_full(name) for name in options.units]
    found = control_client.ask("status", names)["units"]
    lines = {one["unit"]: _last_lines(str(one["unit"]), options.lines) for one in found}
    return tell_status(options, names, found, lines)


def tell_status(
    options: argparse.Namespace,
    names: Sequence[str],
    found: Sequence[dict[str, Any]],
    lines: Mapping[str, Sequence[log_view.Line]],
) -> int:
    """Print units with the last lines of their logs; the exit code, which is systemctl's."""
    if options.json:
        _print_json([one | {"log": lines[one["unit"]]} for one in found])
    else:
        for number, one in enumerate(found):
            if number:
                print()
            for text in status_words.status(one, lines[one["unit"]]):
                print(text)
    missing = [name for name in names if name not in {one["unit"] for one in found}]
    for name in missing:
        print(
            f"{grammar.PROGRAM}: there is no unit {clean(name)} that could be read; `osmoda-watch check` says why",
            file=sys.stderr,
        )
    if missing:
        return _UNKNOWN
    return 0 if all(one["state"] in ("active", "reloading") for one in found) else _DOWN


def _last_lines(unit: str, number: int) -> list[log_view.Line]:
    return log_view.lines(log_files.folder(), [unit], last=number) if number > 0 else []


def _list(options: argparse.Namespace) -> int:
    from osmoda.supervisor.units import enabled
    from osmoda.supervisor.units.loading import Loader

    answer = control_client.ask("list", brief=True)
    loader = Loader(answer["search"])
    linked = {*enabled.names(loader)}
    found = {one["unit"]: one for one in answer["units"]}
    for name in enabled.listed(loader, everything=options.all):
        found.setdefault(name, _not_loaded(name))
    for name, state in answer["sockets"].items():
        found[name] = _not_loaded(name) | {"state": "active", "sub": state}
    units = [one | {"enabled": "yes" if name in linked else "no"} for name, one in sorted(found.items())]
    if options.json:
        _print_json(units)
    elif units:
        for text in status_words.listing(units):
            print(text)
    else:
        print(f"there are no units in {clean(loader.search[0])}", file=sys.stderr)
    return 0


def _not_loaded(name: str) -> dict[str, Any]:
    """A unit that the daemon does not know of."""
    return {"unit": name, "description": "", "state": "inactive", "sub": "dead", "pid": 0, "restarts": 0} | {
        "health": "unchecked"
    }


def _top(options: argparse.Namespace) -> int:
    once = options.once or not (sys.stdout.isatty() or options.json)
    before: dict[str, float] = {}
    began = time.monotonic()
    while True:
        units = [one for one in control_client.ask("status")["units"] if "tasks" in one]
        now = time.monotonic()
        rows = []
        for one in units:
            span = now - began if one["sandbox"] in before else max(time.time() - one["since"], 0.001)
            one["cpu"] = 100 * (one["cpu_time"] - before.get(one["sandbox"], 0.0)) / max(span, 0.001)
            numbers = (f"{one['cpu']:.1f}", status_words.size(one["memory"]), str(one["tasks"]), str(one["restarts"]))
            rows.append((one["unit"], str(one["pid"]), *numbers, status_words.ago(time.time() - one["since"])))
        before, began = {one["sandbox"]: one["cpu_time"] for one in units}, now
        if options.json:
            print(json.dumps(units), flush=True)
        else:
            clear = "" if once else "\x1b[H\x1b[2J"
            heading = ("unit", "pid", "cpu%", "memory", "tasks", "restarts", "up")
            print(clear + "\n".join(status_words.table(heading, rows)), flush=True)
        if once:
            return 0
        time.sleep(min(max(options.interval, 0.1), 60.0))


def _capacity(options: argparse.Namespace) -> int:
    from osmoda.supervisor.command import capacity_words

    found = capacity_words.found(options.plan)
    if options.json:
        _print_json(capacity_words.as_dict(*found))
    else:
        for line in capacity_words.words(*found):
            print(line)
    return 0


def _logs(options: argparse.Namespace) -> int:
    folder = log_files.folder()
    since = moment(options.since) if options.since else 0.0
    units = [_full(name) for name in options.units]
    unknown = [name for name in units if name not in log_files.units(folder)]
    if unknown and not options.follow:
        raise SupervisorError(f"{unknown[0]} has no log: it was never started")
    for line in _wanted_lines(options, folder, units, since):
        if options.json:
            print(json.dumps(line), flush=options.follow)
        else:
            print(status_words.log_line(line), flush=options.follow)
    return 0


def _wanted_lines(options: argparse.Namespace, folder: str, units: list[str], since: float) -> Iterator[log_view.Line]:
    if options.follow:
        last = options.lines if options.lines is not None else 10
        return log_view.follow(folder, units, last=last if not since else 1 << 30, since=since)
    return iter(log_view.lines(folder, units or log_files.units(folder), last=options.lines, since=since))


def moment(text: str) -> float:
    """Seconds since the epoch of "10min", "2h ago", "2026-01-31 12:00". Raises UsageError."""
    match = _AGO.fullmatch(text.strip())
    if match is not None and match[2] in _SPANS:
        return time.time() - float(match[1]) * _SPANS[match[2]]
    for layout in _FORMATS:
        try:
            return time.mktime(time.strptime(text.strip(), layout))
        except ValueError:
            continue
    raise UsageError(f'{text!a} is no time; "10min", "2h ago" and "2026-01-31 12:00" are')


# Files


def _enable(options: argparse.Namespace) -> int:
    from osmoda.supervisor.units import enablement
    from osmoda.supervisor.units.loading import Loader

    loader = Loader(options.search)
    made = [link for name in options.units for link in enablement.enable(loader, name)]
    return _tell_links(options, made, "start")


def _disable(options: argparse.Namespace) -> int:
    from osmoda.supervisor.units import enablement
    from osmoda.supervisor.units.loading import Loader

    loader = Loader(options.search)
    removed = [link for name in options.units for link in enablement.disable(loader, name)]
    return _tell_links(options, removed, "stop")


def _tell_links(options: argparse.Namespace, links: Sequence[Link], verb: str) -> int:
    """Say which links were made or removed and, with --now, start or stop the units."""
    outcomes = _asked(verb, options.units, quiet=options.json) if options.now else []
    if options.json:
        _print_json({"links": [{"path": one.path, "target": one.target} for one in links], "outcomes": outcomes})
        return 0 if all(one["ok"] for one in outcomes) else 1
    for one in links:
        print(clean(f"{'created' if verb == 'start' else 'removed'} {one.path} → {one.target}"))
    return tell_outcomes(options, outcomes)


def _check(options: argparse.Namespace) -> int:
    from osmoda.supervisor.command import checking

    found = [checking.check(name, options.search) for name in options.units]
    if options.json:
        _print_json(found)
    else:
        for one in found:
            for text in checking.words(one):
                print(clean(text), file=sys.stderr if one["problem"] else sys.stdout)
    return 1 if any(one["problem"] for one in found) else 0


def _daemon(options: argparse.Namespace) -> int:
    from osmoda.supervisor.daemon import process as daemon

    search = [os.path.abspath(folder) for folder in options.search]

    def ready() -> None:
        # In one piece: the thread that writes the logs writes here, too.
        os.write(2, b"osmoda-watch: supervising\n")

    daemon.run(search, ready)
    return 0


def _systemd(options: argparse.Namespace) -> int:
    from osmoda.supervisor.command import systemd_verbs as systemd_command

    return systemd_command.drop_ins(options)


_VERBS: dict[str, Verb] = {
    "daemon": _daemon,
    "start": _job("start"),
    "stop": _job("stop"),
    "restart": _job("restart"),
    "reload": _job("reload"),
    "reset-failed": _job("reset-failed"),
    "daemon-reload": _job("daemon-reload"),
    "status": _status,
    "list": _list,
    "top": _top,
    "logs": _logs,
    "capacity": _capacity,
    "enable": _enable,
    "disable": _disable,
    "check": _check,
    "systemd": _systemd,
    "switch": switch_command.run,
}
