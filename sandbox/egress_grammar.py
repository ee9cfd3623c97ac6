"""The grammar of `osmoda-egress`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.grammar import add_completion, add_verb, completes_files, top

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "osmoda-egress"
_MOST = 1 << 53
_DESCRIPTION = """\
Says what sandboxes may reach, changes it while they run, and tells what happened."""
_RULE = "HOST, *.HOST, HOST:PORT,PORT, or a network such as 10.0.0.0/8:5432"


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of the command, or of one verb of it."""
    command, verbs = top(PROGRAM, _DESCRIPTION, "allow agent.toml pypi.org")
    _add_edits(verbs)
    _add_questions(verbs)
    _add_records(verbs)
    _add_service(verbs)
    add_completion(verbs, PROGRAM)
    found: argparse.ArgumentParser = verbs.choices[verb] if verb else command
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:20]) <= _MOST:
        raise argparse.ArgumentTypeError(f"want a number from 1, not {text}")
    return int(text)


def _count_or_all(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:20]) <= 65535:
        raise argparse.ArgumentTypeError(f"want a port from 1 to 65535, not {text}")
    return int(text)


def _profiled(
    verbs: Any, name: str, summary: str, description: str, examples: Sequence[str], **more: Any
) -> argparse.ArgumentParser:
    found = add_verb(verbs, name, summary, description, examples)
    completes_files(
        found.add_argument("profile", metavar="PROFILE", help="profile file, or the name of an installed one", **more)
    )
    return found


def _add_edits(verbs: Any) -> None:
    allow = _profiled(
        verbs,
        "allow",
        "let a name be reached",
        "Adds rules to network.allow of a profile: at the end of the list, in its layout, comments kept. The whole\n"
        "profile is validated before it is put in place. Sandboxes that run under it have the rule at once.",
        (
            "allow agent.toml pypi.org files.pythonhosted.org",
            "allow agent.toml github.com --port 22 --port 443",
            "allow agent.toml api.example.com --method GET --path '/v1/*' --secret EXAMPLE_KEY",
        ),
    )
    allow.add_argument("rules", nargs="+", metavar="RULE", help=_RULE)
    allow.add_argument("--port", dest="ports", action="append", type=_port, metavar="PORT", help="(repeatable)")
    allow.add_argument("--method", dest="methods", action="append", metavar="METHOD", help="such as GET (repeatable)")
    allow.add_argument(
        "--path", dest="paths", action="append", metavar="PATH", help="URL path, * stands for any text (repeatable)"
    )
    allow.add_argument("--secret", metavar="NAME", help="the secret that the gateway puts in for this host")
    allow.add_argument("--max-body", dest="max_body", metavar="SIZE", help='most bytes of one request, such as "1M"')
    allow.add_argument("--max-bytes", dest="max_bytes", metavar="SIZE", help="budget of a run, in both directions")
    allow.add_argument(
        "--max-requests",
        dest="max_requests",
        type=_count,
        metavar="N",
        help="budget of a run: connections, or requests",
    )
    allow.add_argument(
        "--ech", action="store_const", const=True, help="connections may hide their server name (encrypted hello)"
    )
    allow.add_argument(
        "--address",
        dest="addresses",
        action="append",
        metavar="NETWORK",
        help="a network that is not public, to which the name may lead (repeatable)",
    )
    deny = _profiled(
        verbs,
        "deny",
        "refuse a name whatever allows it",
        "Adds rules to network.deny of a profile, as allow does. What is open and no longer allowed is closed at once.",
        ("deny agent.toml '*.tracker.example'",),
    )
    deny.add_argument("rules", nargs="+", metavar="RULE", help=_RULE)
    remove = _profiled(
        verbs,
        "remove",
        "take rules away",
        "Removes rules from network.allow and network.deny, named by their host or as `list` shows them.",
        ("remove agent.toml pypi.org", "remove agent.toml 'github.com:22,443'"),
    )
    remove.add_argument("rules", nargs="+", metavar="RULE", help="HOST, or HOST:PORT,PORT as it is listed")
    _profiled(
        verbs,
        "list",
        "list the rules",
        "Lists what a profile lets be reached, with the line of each rule, whether its requests are looked into, and\n"
        "its budgets.",
        ("list agent.toml", "list research --json"),
    )
    test = _profiled(
        verbs,
        "test",
        "say whether something could be reached",
        "Asks the code that enforces, about a profile or with --last about that of the last run. Tells the line that\n"
        "decides, and whether connections are passed on unopened or each request is looked at. Exit code 0 when it is\n"
        "allowed, 1 when it is refused.",
        (
            "test agent.toml https://api.example.com/v1/items --method POST",
            "test agent.toml github.com:22",
            "test --last https://pypi.org/",
        ),
        nargs="?",
    )
    test.add_argument("--last", action="store_true", help="ask about the profile and the options of the last run")
    test.add_argument("what", metavar="URL", help="a URL, HOST or HOST:PORT")
    test.add_argument("--method", default="GET", metavar="METHOD", help="of the request (default: GET)")
    _profiled(
        verbs,
        "reload",
        "put an edited file in force",
        "Puts a profile that was changed by other means in force in the sandboxes that run under it.",
        ("reload agent.toml",),
    )


def _add_questions(verbs: Any) -> None:
    add_verb(
        verbs,
        "pending",
        "list connections that wait for a decision",
        "With network.ask, connections to unlisted names wait until somebody decides, or a minute has passed.",
        ("pending",),
    )
    approve = add_verb(
        verbs,
        "approve",
        "let a waiting connection through",
        "Lets what a question holds through: once, for the rest of the run, or by a rule in its profile.",
        ("approve 3f2a-1", "approve 3f2a-1 --run", "approve 3f2a-1 --save"),
    )
    approve.add_argument("question", metavar="ID", help="as `pending` lists it")
    how = approve.add_mutually_exclusive_group()
    how.add_argument("--once", dest="how", action="store_const", const="once", help="only what waits now (the default)")
    how.add_argument("--run", dest="how", action="store_const", const="run", help="to that name and port in this run")
    how.add_argument("--save", dest="how", action="store_const", const="save", help="write it into the profile")
    refuse = add_verb(
        verbs, "refuse", "refuse a waiting connection", "Refuses what a question holds.", ("refuse 3f2a-1",)
    )
    refuse.add_argument("question", metavar="ID", help="as `pending` lists it")


def _add_records(verbs: Any) -> None:
    log = add_verb(
        verbs,
        "log",
        "print what was reached and refused",
        "Prints the gateways' records, one line each: time, sandbox, what, verdict, bytes, and why.",
        ("log --denied", "log -n 100 --sandbox 1a2b-1", "log --follow --json"),
    )
    log.add_argument("--sandbox", metavar="ID", help="only of this sandbox")
    log.add_argument("--denied", action="store_true", help="only refusals")
    log.add_argument(
        "-n", "--last", type=_count_or_all, default=50, metavar="N", help="the last N (default: 50; 0: all)"
    )
    log.add_argument("-f", "--follow", action="store_true", help="go on with those to come")
    watch = add_verb(
        verbs,
        "watch",
        "print records as they are made",
        "Prints the records of sandboxes as they are made, of all or of those under one profile, also of sandboxes\n"
        "that are started meanwhile.",
        ("watch", "watch agent.toml"),
    )
    completes_files(watch.add_argument("profile", nargs="?", metavar="PROFILE", help="only of sandboxes under it"))
    add_verb(
        verbs,
        "status",
        "list sandboxes that have a way out",
        "Lists the running sandboxes that a gateway serves, and what is open.",
        ("status", "status --json"),
    )
    add_verb(
        verbs,
        "metrics",
        "print numbers for Prometheus",
        "Prints the sums of all gateways of this user in the text format of Prometheus.",
        ("metrics",),
    )


def _add_service(verbs: Any) -> None:
    serve = add_verb(
        verbs,
        "serve",
        "serve many sandboxes from one place",
        "Runs the standing gateway of this user: sandboxes use it instead of a gateway of their own. Each worker is\n"
        "confined by the profile services/gateway.toml. SIGTERM lets open connections end.",
        ("serve", "serve --workers 2 --metrics 127.0.0.1:9464"),
        as_json=False,
    )
    serve.add_argument("--workers", type=_count, default=0, metavar="N", help="processes (default: one a core)")
    serve.add_argument("--metrics", default="", metavar="ADDRESS:PORT", help="answer Prometheus there")
