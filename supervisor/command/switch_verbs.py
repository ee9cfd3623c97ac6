"""`osmoda-watch switch`: its grammar, and the command's half of its verbs. What only asks loads no compiler."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import shtab

from osmoda.sandbox.grammar import add_verb, completes_files
from osmoda.sandbox.request import UsageError
from osmoda.sandbox.terminal_text import clean
from osmoda.supervisor.command import status_words
from osmoda.supervisor.command import switch_words as words
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.units import values

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

_OF_AN_AGENT = {"name", "unit", "profile", "code", "snapshot-data", "note"}
_OF_A_SWITCH = {"agent", "system", "probation", "keep", "keep-for", "restarts", "window"}


def add_verbs(verbs: Any) -> None:
    """The verb `switch`, with its own verbs."""
    switch = add_verb(
        verbs,
        "switch",
        "deploy generations of agents, and go back",
        "A generation of an agent is its unit, its profile and its code. `begin` makes one, switches to it at once,\n"
        "and watches it for a while: a failed health check, restarts in a row, or an agent that does not come up\n"
        "lead back to the generation before, by themselves, also after a kill or a reboot.",
        ("switch begin research --code ./build", "switch status", "switch rollback research"),
        as_json=False,
    )
    actions = switch.add_subparsers(dest="action", metavar="VERB", title="verbs", required=True)
    _add_begin(actions)
    status = add_verb(
        actions,
        "status",
        "say how switches stand",
        "Says of each agent that is being switched how that stands, and of the others what the last one came to.\n"
        "Exit code 1 when a rollback has not succeeded yet.",
        ("status", "status research --json"),
    )
    listed = add_verb(
        actions,
        "list",
        "list generations",
        "Lists the generations that are kept; the current one has a star.",
        ("list", "list research"),
    )
    commit = add_verb(
        actions,
        "commit",
        "end a probation early",
        "Keeps the new generation, and those that were switched with it, before their probation is over.",
        ("commit research",),
    )
    rollback = add_verb(
        actions,
        "rollback",
        "go back",
        "Goes back to the generation before, with all that were switched together, and returns when that is done:\n"
        "exit code 1 when it has not succeeded yet. Where no switch is going on, it is to a generation that is kept\n"
        "(--to, or the last committed one before the current), which is then on probation like any other.",
        ("rollback research", "rollback research --to 3"),
    )
    told = add_verb(
        actions,
        "history",
        "list switches",
        "Lists what was switched, when, why, and what came of it: the last hundred switches.",
        ("history", "history research --json"),
    )
    for one in (status, listed, told):
        one.add_argument("agents", nargs="*", metavar="AGENT", help="only these")
    for one in (commit, rollback):
        one.add_argument("agent", metavar="AGENT", help="an agent that is switched")
    rollback.add_argument("--to", type=int, metavar="N", help="the generation to go to")
    _add_terms(rollback)


def _add_begin(actions: Any) -> None:
    begin = add_verb(
        actions,
        "begin",
        "make a generation, and switch to it",
        "Copies what is given, checks it, stops the agent, switches to it, starts it, and returns when it is up and\n"
        "on probation. What is not given stays as it is. Exit code 1 when it has gone back already, with the reason.\n"
        "Several agents are switched together, or none, by a file with a table [[agent]] for each (--from).",
        (
            "begin research --code ./build --probation 30min",
            "begin research --unit research.service --profile research.toml --code ./build --snapshot-data",
            "begin --from pipeline.toml --wait",
        ),
    )
    begin.add_argument("agent", nargs="?", metavar="AGENT", help="the agent, by the name of its unit")
    completes_files(begin.add_argument("--unit", default="", metavar="FILE", help="the new unit"))
    completes_files(
        begin.add_argument(
            "--profile", default="", metavar="FILE", help="the new profile; also an installed one's name"
        )
    )
    code = begin.add_argument(
        "--code", default="", metavar="DIR", help="the new code, for the unit's WorkingDirectory="
    )
    code.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    text = "copy what the agent may write, and put it back if this goes back"
    begin.add_argument("--snapshot-data", action="store_true", help=text)
    begin.add_argument("--note", default="", metavar="TEXT", help="what `list` says of it")
    begin.add_argument("--system", type=int, metavar="N", help="switch this NixOS system to its generation N as well")
    completes_files(begin.add_argument("--from", dest="plan", metavar="FILE", help="a file that says all of this"))
    begin.add_argument("--max-size", metavar="SIZE", help="the most that the code may have (default: 8G)")
    begin.add_argument("--wait", action="store_true", help="wait for the end of the probation; exit code 1 if it fails")
    _add_terms(begin)


def _add_terms(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--probation", metavar="TIME", help="how long it is watched (default: 10min)")
    verb.add_argument("--restarts", type=int, metavar="N", help="restarts in a row that lead back (default: 3)")
    verb.add_argument("--window", metavar="TIME", help="within which they count (default: 1min)")
    verb.add_argument("--keep", type=int, metavar="N", help="generations that are kept (default: 5)")
    verb.add_argument("--keep-for", metavar="TIME", help="keep also those that are younger (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Do what is asked; the exit code. Raises SupervisorError, UsageError."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "begin": _begin,
        "status": _status,
        "list": _list,
        "commit": lambda options: _tell(options, control_client.ask("switch-commit", [options.agent], seconds=None)),
        "rollback": _rollback,
        "history": _history,
    }
    return actions[options.action](options)


def _seconds(text: str, what: str) -> float:
    try:
        return values.seconds(text)
    except ValueError as error:
        raise UsageError(f"{what} {error}") from None


def _terms(options: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options over what a file says."""
    found: dict[str, Any] = {}
    for key in ("probation", "window", "keep-for"):
        text = getattr(options, key.replace("-", "_")) or given.get(key)
        if text is not None:
            found[key.replace("-", "_")] = _seconds(str(text), f"{key}={text}")
    for key in ("restarts", "keep"):
        number = getattr(options, key) if getattr(options, key) is not None else given.get(key)
        if number is not None:
            found[key] = number
    return found


def _absolute(agent: Mapping[str, Any], folder: str) -> dict[str, Any]:
    found = {key.replace("snapshot-data", "snapshot"): value for key, value in agent.items() if value}
    for key in ("unit", "profile", "code"):
        path = found.get(key)
        # A profile without a slash is the name of an installed one.
        if isinstance(path, str) and (key != "profile" or "/" in path or path.endswith(".toml")):
            found[key] = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
    return found


def _begin(options: argparse.Namespace) -> int:
    given = _plan(options.plan) if options.plan else {}
    agents = [_absolute(agent, os.path.dirname(os.path.abspath(options.plan))) for agent in given.get("agent", [])]
    own = {key: getattr(options, key) for key in ("unit", "profile", "code", "note")}
    if options.agent:
        own |= {"name": options.agent, "snapshot-data": options.snapshot_data}
        agents.append(_absolute(own, os.getcwd()))
    elif any(own.values()) or options.snapshot_data:
        raise UsageError("which agent? for instance: osmoda-watch switch begin research --code ./build")
    system = options.system if options.system is not None else given.get("system")
    if not agents and system is None:
        raise UsageError("which agent? for instance: osmoda-watch switch begin research --code ./build")
    begin = {"agents": agents, "system": system, "wait": options.wait, **_terms(options, given)}
    if options.max_size is not None:
        try:
            begin["max_size"] = values.size(options.max_size)
        except ValueError as error:
            raise UsageError(f"--max-size {options.max_size} {error}") from None
    return _send(options, begin)


def _send(options: argparse.Namespace, begin: Mapping[str, Any]) -> int:
    control_client.check_text(*(value for agent in begin["agents"] for value in agent.values()))
    return _tell(options, control_client.ask("switch-begin", seconds=None, begin=json.dumps(begin)))


def _plan(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for key in found.keys() - _OF_A_SWITCH:
        raise UsageError(f"{path}: there is no key {key}; {', '.join(sorted(_OF_A_SWITCH))} are")
    agents = found.get("agent", [])
    if not isinstance(agents, list) or not all(isinstance(agent, dict) and agent.get("name") for agent in agents):
        raise UsageError(f"{path}: agents are tables [[agent]], each with a name")
    for agent in agents:
        for key in agent.keys() - _OF_AN_AGENT:
            raise UsageError(f"{path}: an agent has no {key}; {', '.join(sorted(_OF_AN_AGENT))} are known")
    return found


def _rollback(options: argparse.Namespace) -> int:
    name = options.agent.removesuffix(".service")
    going_on = [one for one in control_client.ask("switch-status")["switches"] if _has(one, name)]
    if going_on:
        if options.to is not None and options.to not in {one["before"] for one in going_on[0]["members"]}:
            raise UsageError(f"{name} is in switch {going_on[0]['switch']}; go back from that first, without --to")
        return _tell(options, control_client.ask("switch-rollback", [name], seconds=None))
    to = options.to if options.to is not None else _last_good(name)
    return _send(options, {"agents": [{"name": name, "to": to}], **_terms(options, {})})


def _last_good(name: str) -> int:
    """The newest generation before the current one that was not rolled back."""
    from osmoda.supervisor.switch import views

    found = views.generations([name])
    current = next((one["generation"] for one in found if one["current"]), 0)
    good = [one["generation"] for one in found if one["generation"] < current and one["verdict"] != "rolled-back"]
    if not good:
        raise UsageError(f"{name} has no generation to go back to; osmoda-watch switch list {name} shows what it has")
    return int(good[-1])


def _has(switch: Mapping[str, Any], name: str) -> bool:
    return any(member["name"] == name for member in switch["members"])


def _tell(options: argparse.Namespace, answer: Mapping[str, Any]) -> int:
    """Say how one switch stands; 0 when it is where it was to go."""
    switch = answer["switch"]
    if options.json:
        print(json.dumps(switch, indent=2))
    else:
        for line in words.sentences(switch):
            print(clean(line))
    good = {"begin": ("probation", "committed"), "commit": ("committed",)}.get(
        options.action, ("rolled-back", "probation", "committed")
    )
    return 0 if switch["phase"] in good else 1


def _status(options: argparse.Namespace) -> int:
    from osmoda.supervisor.switch import views

    try:
        live = control_client.ask("switch-status")["switches"]
    except control_client.NoDaemon:
        live = []
    driven = {one["switch"]: one for one in live}
    latest: dict[str, dict[str, Any]] = {}
    for one in (driven.get(one["switch"], one) for one in views.records()):
        for member in one["members"]:
            latest[member["name"]] = one
    names = [name.removesuffix(".service") for name in options.agents] or [*latest]
    found = {latest[name]["switch"]: latest[name] for name in names if name in latest}
    if options.json:
        print(json.dumps([*found.values()], indent=2))
    else:
        for _, one in sorted(found.items()):
            for line in words.sentences(one):
                print(clean(line))
        for name in (name for name in names if name not in latest):
            print(f"{clean(name)}: was never switched")
        if not names:
            print("nothing was ever switched")
    return 1 if any(one["phase"] == "rollback-failed" for one in found.values()) else 0


def _list(options: argparse.Namespace) -> int:
    from osmoda.supervisor.switch import views

    found = views.generations(options.agents)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        heading = ("agent", "generation", "made", "size", "verdict", "note")
        for line in status_words.table(heading, [*words.generations(found)]):
            print(line)
    return 0


def _history(options: argparse.Namespace) -> int:
    from osmoda.supervisor.switch import views

    names = {name.removesuffix(".service") for name in options.agents}
    found = [one for one in views.records() if not names or any(_has(one, name) for name in names)]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        heading = ("switch", "agent", "generations", "phase", "began", "why")
        for line in status_words.table(heading, [*words.history(found)]):
            print(line)
    return 0
