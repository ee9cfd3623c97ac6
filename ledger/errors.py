"""The exception of osmoda.ledger: its message is one sentence for the person at the terminal."""

from __future__ import annotations


class LedgerError(Exception):
    """Something that cannot be put on the ledger, or a ledger that cannot be used."""


BUSY = "another service writes the ledger"


class LedgerBusy(LedgerError):
    """There is a service already; its text begins with BUSY."""
