"""What the supervisor puts on the ledger: nothing that has happened is left out unsaid."""

from __future__ import annotations

import os

import pytest

from osmoda.ledger import record
from osmoda.ledger.errors import LedgerError
from osmoda.supervisor import acts


class Ticket:
    done, error = False, ""


class Ledger:
    """One whose service answers when it is heard."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.events: list[dict[str, object]] = []
        self.tickets: list[Ticket] = []

    def submit(self, kind: str, fields: dict[str, object]) -> Ticket:
        record.canonical(fields)
        self.events.append(fields)
        self.tickets.append(Ticket())
        return self.tickets[-1]

    def fileno(self) -> int:
        return 0

    def hear(self) -> None:
        for ticket in self.tickets:
            ticket.done, ticket.error = True, self.answer

    def flush(self, patience: float) -> str:
        assert 0 < patience <= 10
        self.hear()
        return self.answer

    def close(self) -> None:
        self.tickets.clear()


@pytest.fixture
def said() -> list[str]:
    return []


def kept(monkeypatch: pytest.MonkeyPatch, said: list[str], ledger: Ledger) -> acts.Acts:
    monkeypatch.setattr(acts, "open_ledger", lambda: ledger)
    made = acts.Acts(said.append)
    made.open()
    return made


def test_a_name_that_is_no_utf8_leaves_its_trace(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """Else an agent would choose such names for what it does not want to be seen doing."""
    fields = {"path": os.fsdecode(b"/shared/\xff"), "folder": False, "pid": 7, "writers": [os.fsdecode(b"\xfe"), "b"]}
    with pytest.raises(LedgerError, match="cannot be written"):
        record.canonical(fields)
    ledger = Ledger()
    kept(monkeypatch, said, ledger).after("file", fields)
    assert ledger.events == [{"path": "/shared/\\xff", "folder": False, "pid": 7, "writers": ["\\xfe", "b"]}]


def test_what_is_refused_later_is_said_once(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    found = kept(monkeypatch, said, Ledger("the disk is full"))
    for number in range(3):
        found.after("stop", {"unit": str(number)})
    assert said == ["the ledger does not take what has happened: the disk is full"]


def test_what_is_not_written_at_the_end_is_said(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    found = kept(monkeypatch, said, Ledger("the disk is full"))
    found.after("stop", {"unit": "a.service"})
    assert said == []
    found.close()
    assert said == ["the ledger has not taken all that has happened: the disk is full"]
