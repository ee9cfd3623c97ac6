"""What the supervisor does, on the ledger: a start is written before it is made, or not made."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from osmoda.ledger.client import ServiceGone, open_ledger, printable
from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from osmoda.ledger.client import Ledger, Ticket

_LAST_PATIENCE = 5.0  # seconds for the last events
_AGAIN = 10.0  # seconds between two attempts to have the ledger's service back
_MOST_HELD = 10_000  # events that wait for that


class Acts:
    """The ledger of this user, where there is one; without one nothing is written and everything may be done."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say  # told of what could not be written
        self._ledger: Ledger | None = None
        self._told = False
        self._waiting: deque[Ticket] = deque()
        self._held: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=_MOST_HELD)
        self._resuming: asyncio.Future[None] | None = None
        self._not_before = 0.0

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
            await asyncio.to_thread(self._ledger.append, kind, _written(fields))
        except LedgerError as error:
            raise SupervisorError(f"{error}; it must be on the ledger") from None
        self._told = False

    def after(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write what has happened: that cannot be undone, nor does an end wait for it."""
        if self._ledger is None:
            return
        if self._resuming is not None:
            self._held.append((kind, fields))
            return
        self._ledger.hear()
        self._submit(kind, fields)
        if self._ledger.fileno() < 0:
            self._resume()

    def _submit(self, kind: str, fields: Mapping[str, Any]) -> None:
        assert self._ledger is not None
        self._waiting.append(self._ledger.submit(kind, _written(fields)))
        while self._waiting and self._waiting[0].done:
            error = self._waiting.popleft().error
            if error and not self._told:
                self._told = True
                self._say(f"the ledger does not take what has happened: {error}")

    def _resume(self) -> None:
        """The service that writes has ended: have another one take what waits, which no act may ever do else.

        Another thread waits for it; what happens meanwhile is held.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:
            self._not_before = now + _AGAIN
            self._resuming = asyncio.ensure_future(asyncio.to_thread(self._connect))
            self._resuming.add_done_callback(self._resumed)

    def _connect(self) -> None:
        assert self._ledger is not None
        try:
            try:
                self._ledger.connect()
            except ServiceGone:
                self._ledger.connect()  # it was about to end for want of work
        except LedgerError:
            return  # it is tried again with a later event, and at the end; then what is lost is said

    def _resumed(self, _: asyncio.Future[None]) -> None:
        self._resuming = None
        if self._ledger is not None:
            self._submit_held()

    def _submit_held(self) -> None:
        held, self._held = self._held, deque(maxlen=_MOST_HELD)
        for kind, fields in held:
            self._submit(kind, fields)

    def close(self) -> None:
        """Let go of it, with all that has happened written; what is not is said."""
        if self._ledger is not None:
            self._submit_held()
            lost = self._ledger.flush(_LAST_PATIENCE) or next((one.error for one in self._waiting if one.error), "")
            if lost:
                self._say(f"the ledger has not taken all that has happened: {lost}")
            self._waiting.clear()
            self._ledger.close()
            self._ledger = None


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the ledger can write it: else a file whose name is no UTF-8 would leave no trace there."""
    return {name: _as_text(value) for name, value in fields.items()}


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return [_as_text(one) for one in value] if isinstance(value, (list, tuple)) else value
