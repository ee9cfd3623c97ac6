"""Every verb of `osmoda-sandbox` but a real `run`, which `entry` sends straight to the launch."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING

from osmoda.host import features
from osmoda.sandbox import command_line, compilation, place, plans, report, request
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.request import Request, UsageError
from osmoda.sandbox.verbs import Command

if TYPE_CHECKING:
    import argparse

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.verbs import Verb


def main(arguments: list[str]) -> int:
    """Carry out one verb; its exit code. What goes wrong is one sentence on the standard error."""
    if arguments[:1] == ["run"]:
        return _COMMAND.carry_out(lambda: _run(arguments[1:]))
    return _COMMAND.main(arguments)


def _run(arguments: list[str]) -> int:
    asked = request.parse(arguments)
    if asked is None:
        command_line.parser("run").print_help()
        return 0
    from osmoda.sandbox import dry_run

    found = dry_run.rehearse(asked)
    if asked.json:
        report.print_json(found)
    else:
        dry_run.show(found, report.console())
    return 0


# What a profile means


def _request(options: argparse.Namespace) -> Request:
    """The run that a verb asks about: its profile and the options that `run` has too."""
    if options.file and options.profile:
        raise UsageError("the profile is given twice")
    return Request(
        argv=(),
        profile=options.file or options.profile or "",
        tier=-1 if options.tier is None else options.tier,
        workspace=options.workspace or "",
        workspace_mode=options.workspace_mode or "",
        read=tuple(getattr(options, "grant_read", None) or ()),
        write=tuple(getattr(options, "grant_write", None) or ()),
        passed=tuple(getattr(options, "passed", None) or ()),
        allow=tuple(getattr(options, "grant_allow", None) or ()),
        deny=tuple(getattr(options, "grant_deny", None) or ()),
        set=tuple(_variable(text) for text in getattr(options, "set", None) or ()),
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--env {text}: want NAME=VALUE")
    return name, value


def _compiled(asked: Request, directory: str = "") -> tuple[Profile, Plan]:
    """The profile and the plan that a run would use, its cached one included."""
    directory = directory or os.getcwd()
    return compilation.profile_of(asked, directory), plans.for_request(asked, directory)[0]


def _explain(options: argparse.Namespace) -> int:
    from osmoda.sandbox import explain

    found = explain.explain(*_compiled(_request(options)), features.probe())
    if options.json:
        report.print_json(found.as_dict())
    else:
        explain.show(found, report.console())
    return 0


def _check(options: argparse.Namespace) -> int:
    from osmoda.sandbox import checking

    host = features.probe()
    found = [checking.check(name, host) for name in options.files]
    if options.json:
        report.print_json(found)
    else:
        for one in found:
            if one["ok"]:
                print(f"{report.clean(one['profile'])}: OK")
            for error in one["errors"]:
                print(report.clean(error["sentence"]))
    return 0 if all(one["ok"] for one in found) else 1


def _diff(options: argparse.Namespace) -> int:
    from osmoda.sandbox import checking

    found = checking.diff(options.first, options.second)
    if options.json:
        report.print_json(found)
    elif not found:
        print(f"{report.clean(options.first)} grants nothing beyond {report.clean(options.second)}")
    else:
        rows = [(f"{one['kind']}: {one['what']}; there: {one['allowed']}", one["origin"]) for one in found]
        console = report.console()
        console.print(report.heading(report.clean(f"{options.first} grants beyond {options.second}")))
        console.print(report.lines(rows))
    return 1 if found else 0


def _why(options: argparse.Namespace) -> int:
    from osmoda.sandbox import why

    if options.path is None and options.syscall is None:
        if options.file or options.profile or options.tier is not None:
            raise UsageError("ask about something: osmoda-sandbox why PROFILE --path PATH, or --syscall NAME")
        return _why_last_run(options)
    asked, directory, note = _request(options), "", ""
    if not asked.profile and asked.tier < 0:
        run = why.last_run()
        if run is not None:
            asked, directory = _like_last_run(asked, run.request, run.directory), run.directory
            note = f"for the last run, {shlex.join(run.request.argv)}"
    profile, plan = _compiled(asked, directory)
    if options.syscall is not None:
        call = why.ask_call(plan, profile, options.syscall)
        allowed, record, sentence = call.allowed, call.as_dict(), call.sentence()
    else:
        here = (asked.workspace or directory) if plan.workspace != "none" else asked.workspace
        answer = why.ask_path(plan, profile, place.workspace(plan, here), options.path, options.mode or "read")
        allowed, record, sentence = answer.allowed, answer.as_dict(), answer.sentence()
    if options.json:
        report.print_json(record | {"profile": plan.name, "tier": plan.tier})
    else:
        if note:
            print(report.clean(note), file=sys.stderr)
        print(report.clean(sentence))
    return 0 if allowed else 1


def _like_last_run(asked: Request, last: Request, directory: str) -> Request:
    return Request(
        argv=last.argv,
        profile=last.profile,
        tier=last.tier,
        workspace=asked.workspace or (os.path.join(directory, last.workspace) if last.workspace else ""),
        workspace_mode=asked.workspace_mode or last.workspace_mode,
        read=last.read,
        write=last.write,
        passed=last.passed,
        allow=last.allow,
        deny=last.deny,
    )


def _why_last_run(options: argparse.Namespace) -> int:
    from osmoda.sandbox import why

    run = why.last_run()
    if run is None:
        raise SandboxError("there is no last run to tell of; an example: osmoda-sandbox run -- ls -l")
    profile, plan = _compiled(run.request, run.directory)
    found = why.denials_of(run, plan, profile)
    changed = why.changed_since(run, profile)
    if options.json:
        report.print_json(
            {
                "sandbox": run.identity,
                "argv": list(run.request.argv),
                "profile": plan.name,
                "tier": plan.tier,
                "status": run.status,
                "refused": run.refused,
                "changed_since": list(changed),
                "denials": [denial.as_dict() for denial in found],
            }
        )
    else:
        why.show_run(run, found, changed, report.console())
    return 0


def _learn(options: argparse.Namespace) -> int:
    from osmoda.sandbox.learning.learn import learn
    from osmoda.sandbox.learning.report import Wish

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("there is no command to learn from; an example: osmoda-sandbox learn -- python3 agent.py")
    if options.update and options.tier is not None:
        raise UsageError("--update keeps the tier of the profile; leave --tier out")
    wish = Wish(
        argv=tuple(command),
        output=options.output or "",
        update=options.update or "",
        tier=options.tier or 1,
        workspace=options.workspace_mode,
        rules=tuple(options.allow),
        passed=tuple(options.passed),
        degrade=tuple(options.degrade),
        variables=tuple(_variable(text) for text in options.set),
        timeout=request.seconds("--timeout", options.timeout) if options.timeout else 0.0,
        json=options.json,
    )
    return learn(wish)


# This host and what runs on it


def _doctor(options: argparse.Namespace) -> int:
    from osmoda.sandbox import doctor

    found = doctor.examine()
    if options.json:
        report.print_json([one.as_dict() for one in found])
    else:
        doctor.show(found, report.console())
    return 0 if doctor.healthy(found) else 1


def _verify(options: argparse.Namespace) -> int:
    from osmoda.sandbox.verification import examine, words

    profile, plan = _compiled(_request(options))
    if options.workspace and plan.workspace == "none":
        place.workspace(plan, options.workspace)  # says that there is none
    with contextlib.ExitStack() as exits:
        # Before anything else: a report that cannot be written is to be known at once.
        junit = exits.enter_context(open(options.junit, "w", encoding="utf-8")) if options.junit else None
        found = examine.examine(profile, plan, workspace=options.workspace or "")
        if junit is not None:
            junit.write(words.junit(found))
    if options.json:
        report.print_json(words.as_dict(found))
    else:
        words.show(found, report.console())
    return 0 if found.holds else 1


def _ps(options: argparse.Namespace) -> int:
    from osmoda.sandbox import processes

    found = processes.running()
    if options.json:
        report.print_json([one.as_dict() for one in found])
    elif found:
        names = ("id", "tier", "profile", "pid", "uid", "age", "memory", "procs", "command")
        report.console().print(report.columns(names, (processes.row(one) for one in found)))
    else:
        print("no sandbox is running", file=sys.stderr)
    return 0


def _top(options: argparse.Namespace) -> int:
    from osmoda.sandbox import top

    if not 0.1 <= options.interval <= 60:
        raise UsageError("--interval: from 0.1 to 60 seconds; see osmoda-sandbox top --help")
    return top.show(interval=options.interval, once=options.once, as_json=options.json)


def _kill(options: argparse.Namespace) -> int:
    from osmoda.sandbox import processes

    if bool(options.ids) == options.all:
        raise UsageError("name the sandboxes to end, or --all; osmoda-sandbox ps lists them")
    number = None if options.signal is None else processes.signal_number(options.signal)
    found = processes.running()
    wanted = found if options.all else [processes.find(identity, found) for identity in options.ids]
    for one in wanted:
        processes.end(one, number)
    if options.json:
        report.print_json([one.identity for one in wanted])
    return 0


# The workspace


def _changes(options: argparse.Namespace) -> int:
    from osmoda.sandbox import pending

    return pending.tell(options.workspace, as_json=options.json)


def _commit(options: argparse.Namespace) -> int:
    from osmoda.sandbox import pending

    if options.dry_run:
        return pending.tell(options.workspace, options.paths, as_json=options.json)
    return pending.commit(options.workspace, options.paths, force=options.force, as_json=options.json)


def _discard(options: argparse.Namespace) -> int:
    from osmoda.sandbox import pending

    return pending.discard(options.workspace, options.paths, as_json=options.json)


def _serve(options: argparse.Namespace) -> int:
    from osmoda.sandbox import pool_service

    asked = _request(options).without_variables()

    def ready(address: str) -> None:
        if options.json:
            report.print_json({"size": options.size, "address": address})
        else:
            print(f"{options.size} sandboxes are kept for osmoda-sandbox run --pool")
        sys.stdout.flush()

    pool_service.serve(asked, options.size, ready)
    return 0


_VERBS: dict[str, Verb] = {
    "learn": _learn,
    "serve": _serve,
    "explain": _explain,
    "check": _check,
    "diff": _diff,
    "why": _why,
    "doctor": _doctor,
    "verify": _verify,
    "ps": _ps,
    "top": _top,
    "kill": _kill,
    "changes": _changes,
    "commit": _commit,
    "discard": _discard,
}

_COMMAND = Command(command_line.PROGRAM, command_line.parser, _VERBS.__getitem__, "run -- python3 -V")
