"""`osmoda-egress`: the verbs."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmoda.egress import log_reader
from osmoda.egress.control_client import Client, ControlError
from osmoda.egress.edits import KEYS, Entry, allow, deny, remove
from osmoda.host import paths
from osmoda.ledger.client import printable
from osmoda.sandbox import egress_edit, egress_grammar, egress_words, profile_file, recording, report
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.request import UsageError
from osmoda.sandbox.verbs import Command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from osmoda.egress.control_client import Served
    from osmoda.egress.edits import Edit
    from osmoda.sandbox.verbs import Verb


def main() -> int:
    """The command; its exit code. What goes wrong is one sentence on the standard error."""
    command = Command(
        egress_grammar.PROGRAM, egress_grammar.parser, _VERBS.__getitem__, "log --denied", (ControlError,)
    )
    return command.main(sys.argv[1:])


# Edits


def _allow(options: argparse.Namespace) -> int:
    more = {name: value for name in KEYS if (value := getattr(options, name)) is not None}
    entries = [Entry(rule, tuple(options.ports or ()), more) for rule in options.rules]
    return _edit(options, lambda text: allow(text, entries))


def _deny(options: argparse.Namespace) -> int:
    return _edit(options, lambda text: deny(text, [Entry(rule) for rule in options.rules]))


def _remove(options: argparse.Namespace) -> int:
    return _edit(options, lambda text: remove(text, options.rules))


def _edit(options: argparse.Namespace, change: Callable[[str], Edit]) -> int:
    return _tell_edit(options, egress_edit.edit(options.profile, change))


def _reload(options: argparse.Namespace) -> int:
    return _tell_edit(options, egress_edit.reload(options.profile))


def _tell_edit(options: argparse.Namespace, made: egress_edit.Edited) -> int:
    if options.json:
        record = asdict(made)
        del record["edit"]["text"]
        report.print_json(record)
    else:
        for line in egress_words.of_edit(made):
            print(report.clean(line))
    return 0 if made.everywhere else 1


# Questions about a profile


def _list(options: argparse.Namespace) -> int:
    found = egress_words.rules(Profile.load(options.profile))
    if options.json:
        report.print_json(found)
    elif found:
        console = report.console()
        console.print(report.lines(((one["words"], one["origin"]) for one in found), indent=0))
    else:
        print("nothing can be reached", file=sys.stderr)
    return 0


def _test(options: argparse.Namespace) -> int:
    from osmoda.sandbox import egress_test

    if options.last == (options.profile is not None):
        raise UsageError("ask about one profile, as in: osmoda-egress test PROFILE URL; or test --last URL")
    profile = _of_last_run() if options.last else Profile.load(options.profile)
    answer = egress_test.ask(profile, options.what, options.method)
    if options.json:
        report.print_json(asdict(answer))
    else:
        print(report.clean(answer.sentence()))
    return 0 if answer.allowed else 1


def _of_last_run() -> Profile:
    from osmoda.sandbox import compilation, why

    run = why.last_run()
    if run is None:
        raise SandboxError("there is no last run to ask about; an example: osmoda-sandbox run -- ls -l")
    print(report.clean(f"for the last run, {shlex.join(run.request.argv)}"), file=sys.stderr)
    return compilation.profile_of(run.request, run.directory)


# Questions that connections wait for


def _pending(options: argparse.Namespace) -> int:
    found = Client().pending()
    if options.json:
        report.print_json(found)
    elif found:
        names = ("id", "agent", "wants", "waits", "profile")
        report.console().print(report.columns(names, (egress_words.question(one) for one in found)))
    else:
        print("no connection waits for a decision", file=sys.stderr)
    return 0


def _approve(options: argparse.Namespace) -> int:
    how = options.how or "once"
    # Whoever writes it into the profile lets this run have it first: the edit may take a moment.
    _put_on_ledger(options.question, how)
    served, name, port = Client().approve(options.question, "run" if how == "save" else how)
    if how == "save":
        return _save(options, served, f"{name}:{port}")
    words = {"once": "this once", "run": "for this run"}[how]
    return _tell_decision(options, {"name": name, "port": port, "sandbox": served.identity, "decision": how}, words)


def _put_on_ledger(question: str, how: str) -> None:
    """Before it is decided; a question that is not open (any more) is nobody's to decide."""
    if not paths.has_ledger():
        return
    for one in Client().pending():
        if one["id"] == question:
            told = {"identity": one["sandbox"], "agent": printable(str(one["agent"])), "what": how}
            recording.act("approval", told | {"question": question, "name": str(one["name"]), "port": int(one["port"])})


def _save(options: argparse.Namespace, served: Served, rule: str) -> int:
    only = f"{rule} is approved for this run only, and not written"
    own = served.files[:-1]  # the last is the tier's, which is nobody's to edit
    if not own:
        raise SandboxError(f"{only}: {served.profile} is no profile file")
    try:
        made = egress_edit.edit(own[0], lambda text: allow(text, [Entry(rule)]))
    except SandboxError as error:
        raise SandboxError(f"{only}: {error}") from None
    return _tell_edit(options, made)


def _refuse(options: argparse.Namespace) -> int:
    _put_on_ledger(options.question, "refuse")
    served, name, port = Client().refuse(options.question)
    record = {"name": name, "port": port, "sandbox": served.identity, "decision": "refuse"}
    return _tell_decision(options, record, "refused")


def _tell_decision(options: argparse.Namespace, record: dict[str, Any], words: str) -> int:
    if options.json:
        report.print_json(record)
    else:
        print(report.clean(f"{record['name']}:{record['port']} {words} ({record['sandbox']})"))
    return 0


# Records


def _log(options: argparse.Namespace) -> int:
    folder = os.path.join(paths.directory("state"), "egress")

    def wanted(record: Mapping[str, Any]) -> bool:
        return (options.sandbox is None or record.get("sandbox") == options.sandbox) and (
            not options.denied or record.get("verdict") == "deny"
        )

    for record in log_reader.read(folder, matching=wanted, last=options.last or None, follow=options.follow):
        _print_record(record, as_json=options.json)
    return 0


def _watch(options: argparse.Namespace) -> int:
    client = Client()
    file = None if options.profile is None else profile_file.find(options.profile)
    if options.profile is not None and file is None:
        raise SandboxError(f"{options.profile} is no profile file; nothing that runs can be told by it")
    under: dict[str, bool] = {}
    for record in client.watch():
        if file is None or _runs_under(client, str(record.get("sandbox")), file, under):
            _print_record(record, as_json=options.json)
    return 0


def _runs_under(client: Client, sandbox: str, file: str, known: dict[str, bool]) -> bool:
    """Whether that sandbox has its profile from `file`, or from one that extends it; asked once for each sandbox."""
    if sandbox not in known:
        wanted = os.path.realpath(file)
        found = {one.identity: wanted in {os.path.realpath(name) for name in one.files} for one in client.sessions()}
        known.update({sandbox: False} | found)
    return known[sandbox]


def _print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(egress_words.as_line(record), flush=True)
    else:
        print(egress_words.of_record(record, colour=sys.stdout.isatty()), flush=True)


def _status(options: argparse.Namespace) -> int:
    found = Client().sessions()
    if options.json:
        report.print_json([asdict(one) | {"token": None} for one in found])
    elif found:
        names = ("sandbox", "agent", "tier", "profile", "gateway", "open", "waiting", "serves", "since")
        report.console().print(report.columns(names, (egress_words.served(one) for one in found)))
    else:
        print("no running sandbox has a way out", file=sys.stderr)
    return 0


def _metrics(options: argparse.Namespace) -> int:
    from osmoda.egress import metrics

    client = Client()
    numbers = metrics.Totals().add(client.metrics(), client.silent)
    if options.json:
        report.print_json(numbers)
    else:
        sys.stdout.write(metrics.text(numbers).decode())
    return 0


# The service


def _serve(options: argparse.Namespace) -> int:
    from osmoda.egress import service
    from osmoda.sandbox import confined_service

    profile = confined_service.profile_of("gateway")
    own = tuple(paths.own_directory(kind, "egress") for kind in ("runtime", "state"))
    try:
        service.serve(
            options.workers,
            confine=lambda: confined_service.confine(profile, own),
            metrics_address=options.metrics,
            ready=lambda: print("osmoda-egress: serving", file=sys.stderr, flush=True),
        )
    except service.ServiceError as error:
        raise SandboxError(str(error)) from None
    return 0


_VERBS: dict[str, Verb] = {
    "allow": _allow,
    "deny": _deny,
    "remove": _remove,
    "list": _list,
    "test": _test,
    "reload": _reload,
    "pending": _pending,
    "approve": _approve,
    "refuse": _refuse,
    "log": _log,
    "watch": _watch,
    "status": _status,
    "metrics": _metrics,
    "serve": _serve,
}
