"""The grammar of `osmoda-ledger`."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.grammar import add_completion, add_verb, completes_files, top

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "osmoda-ledger"
_DESCRIPTION = """\
Shows and verifies the audit ledger: launches, denials, egress verdicts, edits, approvals, restarts and switches, in
a chain that cannot be rewritten unseen."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of the command, or of one verb of it."""
    command, verbs = top(PROGRAM, _DESCRIPTION, "show --kind launch --since 1h")
    _add_init(verbs)
    _add_reading(verbs)
    _add_proofs(verbs)
    add_completion(verbs, PROGRAM)
    found: argparse.ArgumentParser = verbs.choices[verb] if verb else command
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:20]) < 1 << 53:
        raise argparse.ArgumentTypeError(f"want a number from 1, not {text}")
    return int(text)


def _count_or_all(text: str) -> int:
    return 0 if text == "0" else _count(text)


def moment(text: str) -> int:
    """A time in ns since the epoch: `10m` ago (s, m, h, d), or as ISO 8601 has it; local where no zone is given."""
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago:
        return time.time_ns() - int(ago[1]) * _UNITS[ago[2]] * 1_000_000_000
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want a time such as 10m, 2h or 2026-11-26T08:00, not {text}") from None
    if found.tzinfo is None:
        found = found.astimezone()
    return int((found - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000) * 1000


def _add_init(verbs: Any) -> None:
    add_verb(
        verbs,
        "init",
        "make the ledger of this user",
        "Makes the ledger, and the key that it is signed with. From then on it is compulsory: what must be on it and\n"
        "cannot be written is not done. Root's ledger and each user's are different ones.",
        ("init",),
    )


def _filters(verbs: Any, name: str, summary: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    found = add_verb(verbs, name, summary, description, examples)
    found.add_argument("--kind", action="append", metavar="KIND", help="only of this kind, such as launch (repeatable)")
    found.add_argument("--agent", metavar="NAME", help="only of this agent")
    found.add_argument("--sandbox", metavar="ID", help="only of this sandbox")
    _place(found)
    return found


def _place(found: argparse.ArgumentParser) -> None:
    completes_files(
        found.add_argument("--ledger", metavar="DIR", help="another ledger than this user's, or a copy of it")
    )


def _last(found: argparse.ArgumentParser, count: int) -> None:
    words = f"the last N (default: {count}; 0: all)"
    found.add_argument("-n", "--last", type=_count_or_all, default=count, metavar="N", help=words)


def _add_reading(verbs: Any) -> None:
    show = _filters(
        verbs,
        "show",
        "print events",
        "Prints the last events, one line each: number, time, kind, and what happened. It does not verify.",
        ("show", "show -n 0 --kind launch --kind end --since 2h", "show --agent research --json"),
    )
    _last(show, 50)
    show.add_argument("--since", type=moment, metavar="TIME", help="not before: 10m, 2h, 3d (ago), 2026-11-26T08:00")
    follow = _filters(
        verbs,
        "follow",
        "print events as they are written",
        "Prints the last events and those to come, as they are written.",
        ("follow", "follow --kind denial --kind egress"),
    )
    _last(follow, 10)
    export = _filters(
        verbs,
        "export",
        "print events as JSON lines",
        "Prints events as JSON, one object a line, all of them or a range. It does not verify.",
        ("export > ledger.jsonl", "export --from 1000 --to 1999"),
    )
    export.add_argument("--from", dest="first", type=_count, default=1, metavar="N", help="from this event on")
    export.add_argument("--to", dest="last", type=_count, default=1 << 62, metavar="N", help="up to this event")


def _add_proofs(verbs: Any) -> None:
    verify = add_verb(
        verbs,
        "verify",
        "prove that nothing was changed",
        "Looks at every event and every file. Exit code 0 when all is as it was written, 1 with a line for each\n"
        "finding when it is not. A checkpoint that was kept elsewhere also proves that it was not replaced as a whole.",
        ("verify", "verify --checkpoint /mnt/usb/ledger.head", "verify --ledger /backup/ledger --json"),
    )
    completes_files(
        verify.add_argument(
            "--checkpoint", action="append", metavar="FILE", help="heads as `checkpoint` printed them (repeatable)"
        )
    )
    _place(verify)
    checkpoint = add_verb(
        verbs,
        "checkpoint",
        "print the signed head, to keep elsewhere",
        "Prints one line: the ledger's id, how far it has come, and the key's signature. Whoever has it can prove\n"
        "with `verify --checkpoint` that the ledger still holds what it held then.",
        ("checkpoint >> /mnt/usb/ledger.head", "checkpoint --json"),
    )
    _place(checkpoint)
