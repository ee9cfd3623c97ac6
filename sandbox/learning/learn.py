"""`osmoda-sandbox learn`: observe, propose, check, and mend what the check showed, a few times at most."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from osmoda.egress import destinations, log_reader, records
from osmoda.host import features
from osmoda.ledger.client import printable
from osmoda.sandbox import pins, profile_file, recording
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.learning import check, once, report, streams, writing
from osmoda.sandbox.learning.observing import observing
from osmoda.sandbox.learning.permissive import permissive
from osmoda.sandbox.learning.private import PrivatePlaces
from osmoda.sandbox.learning.proposal import Line, Observed, Proposal, propose
from osmoda.sandbox.learning.report import Learned
from osmoda.sandbox.learning.seen import ENTRY, LINK, READ, WRITE
from osmoda.sandbox.profile import Profile

if TYPE_CHECKING:
    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.learning.once import Errand
    from osmoda.sandbox.learning.report import Wish
    from osmoda.sandbox.learning.seen import Seen

_ROUNDS = 3
_ATTEMPTS = 3
_GONE = os.strerror(errno.ENOENT)
_FILE_MODE = 0o644


class TimedOut(SandboxError):
    """The observed run did not end in time: what it would have done after that is not known."""

    exit_code = 124


def learn(wish: Wish) -> int:
    """Carry it out; the exit code: 0 when the profile lets the command pass, else 1. Raises SandboxError."""
    present = Profile.load(wish.update) if wish.update else None
    if present is not None:
        if present.tier == 0:
            raise SandboxError(f"{wish.update} is of tier 0, which is no sandbox: there is nothing to learn")
        rules = tuple(str(rule) for rule in present.network.allow if rule.is_network)
        degrade = tuple(dict.fromkeys((*present.degrade, *wish.degrade)))
        wish = replace(wish, tier=present.tier, rules=(*rules, *wish.rules), degrade=degrade)
    with streams.repeatable() as stdin:
        # Where the profile itself goes to the standard output, what the command says goes to the other one.
        own = 1 if wish.file and not wish.json else 2
        errand = once.Errand(wish.argv, wish.variables, wish.timeout, stdin, own, 2)
        learned = _learn(wish, errand, present)
    if wish.file:
        _write(wish.file, learned.text)
    if wish.json:
        print(json.dumps(report.as_dict(wish, learned), indent=2))
    else:
        if not wish.file:
            print(learned.text, end="", flush=True)
        report.summarise(wish, learned)
    return 0 if learned.passed else 1


def _learn(wish: Wish, errand: Errand, present: Profile | None) -> Learned:
    private = PrivatePlaces()
    observed = _observed(wish, errand, private)
    additions: list[tuple[tuple[str, ...], Any, str]] = []
    learned: Learned | None = None
    added: tuple[str, ...] = ()
    for attempt in range(_ROUNDS):
        proposal = propose(
            observed,
            private,
            features.probe(),
            tier=wish.tier,
            passed=wish.passed,
            workspace=wish.workspace,
            loose=attempt > 0,
        )
        _apply(proposal, additions)
        name, text = _text(wish, proposal, present)
        if learned is None:
            learned = Learned(text, proposal, observed)
        elif text == learned.text:
            break  # there is nothing more that could be added
        learned.text, learned.proposal = text, proposal
        checked = check.check(text, name, errand, observed.ended.outcome, observed.plan)
        learned.rounds.append((checked, added))
        if checked.passed:
            break
        additions += [wanted for denial in checked.denials if (wanted := _wanted(denial)) is not None]
        added = _mend(observed.seen, check.diagnose(text, name, errand))
        added += tuple(f"{'.'.join(key)}: {value}" for key, value, _ in additions)
    assert learned is not None
    return learned


def _observed(wish: Wish, errand: Errand, private: PrivatePlaces) -> Observed:
    """What `_observe` returns; a folder of the host may be gone between being listed and being shown: then again."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return _observe(wish, errand, private)
        except LaunchError as error:
            if error.exit_code != SandboxError.exit_code or not str(error).endswith(_GONE):
                raise
    return _observe(wish, errand, private)


def _observe(wish: Wish, errand: Errand, private: PrivatePlaces) -> Observed:
    plan, work = permissive(wish.argv, wish.rules, wish.passed, wish.degrade, private)
    with observing(wish.argv[0]) as (watch, observe):
        ended = once.run(plan, errand, work, b"", observe)
    if ended.outcome.timed_out:
        raise TimedOut(f"the command did not end within {wish.timeout:g} s (--timeout); nothing was learned")
    found = log_reader.read(records.folder(), matching=lambda one: one.get("sandbox") == ended.identity)
    return Observed(watch.seen, ended, plan, os.fsdecode(work), wish.argv, tuple(found))


def _text(wish: Wish, proposal: Proposal, present: Profile | None) -> tuple[str, str]:
    """The name that a profile is read under, and its text."""
    if present is None:
        return os.path.abspath(wish.file) if wish.file else "the learned profile", writing.fresh(
            proposal, os.path.basename(wish.argv[0])
        )
    path = profile_file.find(wish.update)
    assert path is not None
    with open(path, encoding="utf-8", newline="") as file:
        return path, writing.merged(file.read(), proposal, present)


# What a run under the profile showed


def _wanted(denial: Denial) -> tuple[tuple[str, ...], Any, str] | None:
    """What would keep `denial` from happening; None for what only a person may add, or nobody."""
    comment = f"{denial.command or 'the program'}: refused in a run under this profile"
    if denial.layer == "seccomp" and denial.line.startswith("syscalls"):
        return ("process", "syscalls"), denial.operation, comment
    if denial.layer == "egress":
        name, _, port = denial.object.rpartition(":")
        try:
            rule = destinations.parse_rule(denial.object if name else f"{port}:443", destinations.DEFAULT_PORTS)
        except ValueError:
            return None
        if rule.is_network:
            return None
        usual = rule.ports == destinations.DEFAULT_PORTS
        return ("network", "allow"), rule.host if usual else str(rule), comment
    if denial.layer == "cgroup" and " = " in denial.line:
        key, _, value = denial.line.partition(" = ")
        return ("process", key), json.loads(value), comment
    return None


def _apply(proposal: Proposal, additions: list[tuple[tuple[str, ...], Any, str]]) -> None:
    for key, value, comment in additions:
        if key[0] == "process" and key[-1] != "syscalls":
            proposal.values[key] = Line(value, comment)
        else:
            proposal.add(key, value, comment)


def _mend(seen: Seen, later: Seen) -> tuple[str, ...]:
    """Add to `seen` what a later run lacked or did besides; in words."""
    added = []
    for path, use in later.failed.items():
        if os.path.lexists(path) and path not in seen.paths:
            kind = use.kinds & (READ | WRITE | ENTRY | LINK) or READ
            place = os.path.dirname(path) if kind & ENTRY else path
            for program in use.programs:
                seen.path(place, kind, program)
            added.append(f"filesystem: {os.fsdecode(path)}")
    for path, use in later.paths.items():
        if path not in seen.paths:
            seen.paths[path] = use
    for link, target in later.links.items():
        seen.links.setdefault(link, target)
    for name, use in later.calls.items():
        seen.calls.setdefault(name, use)
    for name, use in later.families.items():
        seen.families.setdefault(name, use)
    if later.loopback.count and not seen.loopback.count:
        seen.loopback = later.loopback
    seen.threads = max(seen.threads, later.threads)
    seen.descriptor = max(seen.descriptor, later.descriptor)
    seen.scratch = max(seen.scratch, later.scratch)
    return tuple(added)


# What goes in and out


def _write(path: str, text: str) -> None:
    """Replace the file `path`, whole or not at all. Raises OSError, SandboxError."""
    real = os.path.realpath(path)
    pins.check_replaceable(real)
    try:
        mode = os.stat(real).st_mode & 0o7777
    except FileNotFoundError:
        mode = _FILE_MODE
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(real), prefix=".learned-")
    try:
        with open(fd, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(fd, mode)
        digest = hashlib.sha256(text.encode()).hexdigest()
        recording.act("edit", {"file": printable(real), "what": "learned", "sha256": digest})
        os.rename(temporary, real)
    except BaseException:
        os.unlink(temporary)
        raise
