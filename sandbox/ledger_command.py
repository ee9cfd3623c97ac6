"""`osmoda-ledger`: the verbs."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.ledger import database, folder, reading, verification
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.head import Head
from osmoda.sandbox import ledger_grammar, ledger_words, report
from osmoda.sandbox.verbs import Command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from osmoda.ledger.record import Event
    from osmoda.sandbox.verbs import Verb

_AT_ONCE = 10_000  # events, on the way back from the last one
_EVERY = 0.1  # seconds between two lines of progress


def main() -> int:
    """The command; its exit code. What goes wrong is one sentence on the standard error."""
    command = Command(ledger_grammar.PROGRAM, ledger_grammar.parser, _VERBS.__getitem__, "show", (LedgerError,))
    return command.main(sys.argv[1:])


def _directory(options: argparse.Namespace) -> str:
    if options.ledger is not None:
        return os.path.abspath(str(options.ledger))
    if not paths.has_ledger():
        raise LedgerError("this user has no ledger; osmoda-ledger init makes one")
    return paths.own_directory("state", "ledger")


def _init(options: argparse.Namespace) -> int:
    made = folder.make()
    with open(f"{made}/{folder.HEAD}", encoding="ascii") as file:
        head = Head.read(file.read(), folder.HEAD)
    if options.json:
        report.print_json({"directory": made, "ledger": head.ledger.hex(), "key": head.key.hex()})
    else:
        print(report.clean(f"{made}: ledger {head.ledger.hex()[:16]}, signed with {head.key.hex()}"))
        print("what must be on it and cannot be written is not done from now on")
    return 0


# Events


def _wanted(options: argparse.Namespace, events: Iterable[Event]) -> Iterator[Event]:
    since = getattr(options, "since", None)
    for event in events:
        if (
            (options.kind is None or event.kind in options.kind)
            and (options.agent is None or event.body.get("agent") == options.agent)
            and (options.sandbox is None or event.body.get("identity") == options.sandbox)
            and (since is None or event.time >= since)
        ):
            yield event


def _newest(options: argparse.Namespace, directory: str, end: int) -> Iterable[Event]:
    """Of the events up to `end` the last ones that are wanted, in order; found from the end on."""
    if not options.last:
        return _wanted(options, reading.events(directory, 1, end))
    found: deque[Event] = deque()
    since = getattr(options, "since", None)
    while end > 0 and len(found) < options.last:
        some = list(reading.events(directory, max(end - _AT_ONCE + 1, 1), end))
        found.extendleft(reversed(list(_wanted(options, some))))
        if since is not None and all(event.time < since for event in some):
            break
        end -= _AT_ONCE
    return list(found)[-options.last :]


def _show(options: argparse.Namespace) -> int:
    directory = _directory(options)
    found = _newest(options, directory, reading.last(directory))
    if options.json:
        report.print_json([ledger_words.as_json(event) for event in found])
    else:
        colour = sys.stdout.isatty()
        for event in found:
            print(ledger_words.words(event, colour=colour))
    return 0


def _follow(options: argparse.Namespace) -> int:
    directory = _directory(options)
    end = reading.last(directory)
    for event in _newest(options, directory, end):
        _print(options, event)
    for event in _wanted(options, reading.follow(directory, end + 1)):
        _print(options, event)
    return 0


def _print(options: argparse.Namespace, event: Event) -> None:
    line = ledger_words.as_line(event) if options.json else ledger_words.words(event, colour=sys.stdout.isatty())
    print(line, flush=True)


def _export(options: argparse.Namespace) -> int:
    write = sys.stdout.write
    for event in _wanted(options, reading.events(_directory(options), options.first, options.last)):
        write(ledger_words.as_line(event) + "\n")
    return 0


# Proofs


def _verify(options: argparse.Namespace) -> int:
    heads = [head for path in options.checkpoint or () for head in verification.read_heads(path)]
    progress = _Progress() if sys.stderr.isatty() else None
    try:
        found = verification.verify(_directory(options), heads, progress=progress)
    finally:
        if progress is not None:
            progress.close()
    if options.json:
        report.print_json(ledger_words.report_json(found))
    else:
        for line in ledger_words.of_report(found):
            print(report.clean(line))
    return 1 if found.findings else 0


class _Progress:
    """One line on the terminal, written over again."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _EVERY
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next and total:
            self._next, self._shown = now + _EVERY, True
            sys.stderr.write(f"\r{done:,} of {total:,} events ({100 * done // total} %)\x1b[K")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _checkpoint(options: argparse.Namespace) -> int:
    directory = _directory(options)
    path = f"{directory}/{folder.LIVE}"
    connection = database.open_to_read(path)
    try:
        line = database.head_line(connection)
    except database.DAMAGED as error:
        raise LedgerError(f"{path} cannot be read: {error}") from None
    finally:
        connection.close()
    head = Head.read(line, f"the head in {path}")
    if options.json:
        values = {"ledger": head.ledger.hex(), "seq": head.seq, "time": head.time, "digest": head.digest.hex()}
        report.print_json(
            values | {"key": head.key.hex(), "signature": head.signature.hex(), "line": line.rstrip("\n")}
        )
    else:
        sys.stdout.write(line)
    return 0


_VERBS: dict[str, Verb] = {
    "init": _init,
    "show": _show,
    "follow": _follow,
    "verify": _verify,
    "export": _export,
    "checkpoint": _checkpoint,
}
