"""A row of events against its digests: rows in, findings out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from osmoda.ledger import record
from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_FINDINGS = 100
"""Of one range of events; the first tells what is the matter, and not the thousandth."""


class Finding(NamedTuple):
    """Something that is not as it was written: in which file, at which event (0: none in particular), and what."""

    file: str
    seq: int
    text: str

    def sentence(self) -> str:
        """For a person."""
        return f"{self.file}: event {self.seq}: {self.text}" if self.seq else f"{self.file}: {self.text}"


class Checked(NamedTuple):
    """What was found in a range: how many events, and where the clock had been set back (event, by ns)."""

    events: int
    findings: list[Finding]
    set_back: list[tuple[int, int]]


def check(
    file: str, rows: Iterable[tuple[object, object, object]], since: int, until: int, previous: bytes, time: int = 0
) -> Checked:
    """Whether `rows` are the events `since` to `until`, each once and in order, chained from `previous` on.

    `time` is that of the event before, 0 for none.
    """
    findings: list[Finding] = []
    set_back: list[tuple[int, int]] = []
    expected = since
    examine, sha256, domain = record.examine, hashlib.sha256, record.DOMAIN
    for seq, content, digest in rows:
        if len(findings) >= MOST_FINDINGS:
            break
        if seq != expected:
            if type(seq) is not int:
                findings.append(Finding(file, expected, "its number is none"))
                continue
            missing = f"events {expected} to {seq - 1} are" if seq - 1 > expected else f"event {expected} is"
            findings.append(Finding(file, expected, f"{missing} missing"))
            expected = seq
        expected += 1
        if type(content) is not bytes or type(digest) is not bytes:
            findings.append(Finding(file, seq, "it is not stored as bytes"))
            continue
        if sha256(domain + previous + content).digest() != digest:  # `record.digest`, at less cost
            findings.append(Finding(file, seq, "it, or the event before it, is not what was written"))
        previous = digest
        try:
            named, now = examine(content)
        except LedgerError as error:
            findings.append(Finding(file, seq, str(error)))
            continue
        if named != seq:
            findings.append(Finding(file, seq, f"it was written as event {named}"))
        if now < time and len(set_back) < MOST_FINDINGS:
            set_back.append((seq, time - now))
        time = now
    if expected <= until and len(findings) < MOST_FINDINGS:
        missing = f"events {expected} to {until} are" if until > expected else f"event {expected} is"
        findings.append(Finding(file, expected, f"{missing} missing"))
    return Checked(expected - since, findings, set_back)
