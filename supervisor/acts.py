"""What the supervisor does, on the ledger: a start is written before it is made, or not made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from osmoda.ledger.client import open_ledger
from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from osmoda.ledger.client import Ledger


class Acts:
    """The ledger of this user, where there is one; without one nothing is written and everything may be done."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say  # told of what could not be written
        self._ledger: Ledger | None = None
        self._told = False

    def open(self) -> None:
        """Open it. Raises SupervisorError where there is one that cannot be written."""
        try:
            self._ledger = open_ledger()
        except LedgerError as error:
            raise SupervisorError(f"{error}; what is supervised here must be on the ledger") from None

    @property
    def is_kept(self) -> bool:
        """Whether there is a ledger."""
        return self._ledger is not None

    async def before(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write what is about to be done. Raises SupervisorError where it cannot be written: it must not be done."""
        if self._ledger is None:
            return
        try:
            await asyncio.to_thread(self._ledger.append, kind, fields)
        except LedgerError as error:
            raise SupervisorError(f"{error}; it must be on the ledger") from None
        self._told = False

    def after(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write what has happened: that cannot be undone, nor does an end wait for it."""
        if self._ledger is None:
            return
        ticket = self._ledger.submit(kind, fields)
        if ticket.error and not self._told:
            self._told = True
            self._say(f"the ledger does not take what has happened: {ticket.error}")

    def close(self) -> None:
        """Let go of it."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
