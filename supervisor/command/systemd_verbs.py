"""The verbs of `osmoda-watch` that are otherwise where systemd is the engine; words and exit codes are the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.request import UsageError
from osmoda.sandbox.terminal_text import clean
from osmoda.supervisor.command import status_words
from osmoda.supervisor.command import verbs as command
from osmoda.supervisor.systemd import files as systemd_files
from osmoda.supervisor.systemd import snapshots as systemd_snapshots
from osmoda.supervisor.systemd.engine import SystemdEngine, converse, full_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from osmoda.sandbox.verbs import Verb


def _job(do: Callable[[SystemdEngine, Sequence[str]], Any]) -> Verb:
    def ask(options: argparse.Namespace) -> int:
        names = getattr(options, "units", ())
        return command.tell_outcomes(options, converse(lambda engine: do(engine, names)))

    return ask


def _start(options: argparse.Namespace) -> int:
    forced = bool(getattr(options, "force", False))  # `enable --now` has no such option
    return command.tell_outcomes(options, converse(lambda engine: engine.start(options.units, forced=forced)))


def _status(options: argparse.Namespace) -> int:
    names = [full_name(name) for name in options.units]
    found = converse(lambda engine: engine.snapshots(names, brief=False))
    logs = {one["unit"]: _last_lines(str(one["unit"]), options.lines) for one in found}
    return command.tell_status(options, names, found, logs)


def _last_lines(unit: str, number: int) -> list[dict[str, Any]]:
    return list(systemd_snapshots.log([unit], last=number)) if number > 0 else []


def _list(options: argparse.Namespace) -> int:
    units = converse(lambda engine: engine.snapshots([], brief=True))
    if options.json:
        print(json.dumps(units, indent=2))
    elif units:
        for text in status_words.listing(units):
            print(text)
    return 0


def _logs(options: argparse.Namespace) -> int:
    units = [full_name(name) for name in options.units] or systemd_files.confined()
    if not units:
        return 0
    since = command.moment(options.since) if options.since else 0.0
    last = options.lines if options.lines is not None or not options.follow else 10
    for line in systemd_snapshots.log(units, last=last, since=since, follow=options.follow):
        text = json.dumps(line) if options.json else status_words.log_line(line)
        print(text, flush=options.follow)
    return 0


def _links(do: Callable[[SystemdEngine, Sequence[str]], Any], job: str) -> Verb:
    def carry_out(options: argparse.Namespace) -> int:
        if options.search:
            raise UsageError("systemd has its own folders of units: --units is for osmoda's own engine")
        for text in converse(lambda engine: do(engine, options.units)):
            print(clean(text))
        return VERBS[job](options) if options.now else 0

    return carry_out


def drop_ins(options: argparse.Namespace) -> int:
    """`systemd check|write|remove`."""
    if options.action == "check":
        if options.units:
            raise UsageError("`systemd check` is about all units; `osmoda-watch check` about one")
        outcomes = converse(SystemdEngine.check)
        if not options.json:
            for one in outcomes:
                if one["ok"]:
                    print(f"{clean(one['unit'])}: systemd runs it in its sandbox")
        return command.tell_outcomes(options, outcomes)
    if not options.units:
        raise UsageError(f"which unit? for instance: osmoda-watch systemd {options.action} research-agent")
    do = SystemdEngine.write if options.action == "write" else SystemdEngine.release
    return command.tell_outcomes(options, converse(lambda engine: do(engine, options.units)))


VERBS: dict[str, Verb] = {
    "start": _start,
    "stop": _job(SystemdEngine.stop),
    "restart": _job(SystemdEngine.restart),
    "reload": _job(SystemdEngine.reload),
    "reset-failed": _job(SystemdEngine.reset_failed),
    "daemon-reload": _job(lambda engine, _: engine.read_again()),
    "status": _status,
    "list": _list,
    "logs": _logs,
    "enable": _links(SystemdEngine.enable, "start"),
    "disable": _links(SystemdEngine.disable, "stop"),
}
"""Those that the own engine's daemon answers otherwise."""
