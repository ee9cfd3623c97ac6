"""What the supervisor does, on the ledger: a start is written before it is made, or not made.

A thread speaks to the ledger, so that a service which does not answer keeps those waiting that need it, and not the
loop that looks after all agents. Whether there is a ledger is looked at for each act: one that is made while the daemon
runs has all from then on. One that was there and is gone is not taken for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host import paths, syscalls
from osmoda.ledger.client import PATIENCE, Ledger, ServiceGone, open_ledger, printable
from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from osmoda.ledger.client import Ticket

_LAST_PATIENCE = 5.0  # seconds for the last events
_PAUSE = 0.01  # seconds before a service that has ended is looked for again


@dataclass(slots=True)
class _Act:
    """What is to be written; `told` is where somebody waits for it, with why it is not on the ledger, or nothing."""

    kind: str
    fields: dict[str, Any]
    told: asyncio.Future[str] | None


class Acts:
    """The ledger of this user, once there is one; without one nothing is written and everything may be done.

    To be used in one event loop; `opened` in any thread.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say  # told of what could not be written
        self._kept = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = -1
        self._failing = False
        self._news = threading.Condition()
        self._queue: deque[_Act] = deque()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._lost = ""

    def open(self) -> None:
        """See that it can be written, where there is one. Raises SupervisorError where it cannot."""
        try:
            ledger = self.opened()
        except LedgerError as error:
            raise SupervisorError(f"{error}; what is supervised here must be on the ledger") from None
        if ledger is not None:
            ledger.close()

    @property
    def is_kept(self) -> bool:
        """Whether there is a ledger, or was since this daemon began."""
        self._kept = self._kept or paths.has_ledger()
        return self._kept

    def opened(self) -> Ledger | None:
        """A connection of the caller's own; None where there has been no ledger. Raises LedgerError."""
        if not self.is_kept:
            return None
        found = open_ledger()
        if found is None:
            raise LedgerError(_gone())
        return found

    def when_made(self, hear: Callable[[], None]) -> Callable[[], None]:
        """Have `hear` called in the loop once there is a ledger, at once where there is one; the value ends that.

        Raises SupervisorError.
        """
        loop = asyncio.get_running_loop()
        try:
            self._watch = syscalls.inotify_init1()
            state = os.fsencode(paths.own_directory("state"))
            syscalls.inotify_add_watch(self._watch, state, syscalls.IN_CREATE | syscalls.IN_MOVED_TO)
        except (OSError, paths.UntrustedDirectory) as error:
            self._look_no_more()
            reason = error.strerror if isinstance(error, OSError) else error
            raise SupervisorError(f"whether a ledger is made cannot be followed: {reason}") from None

        def changed() -> None:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._watch, 1 << 16):
                    continue
            if self.is_kept:
                self._look_no_more()
                hear()

        loop.add_reader(self._watch, changed)
        changed()  # one that was made before it was watched for
        return self._look_no_more

    def _look_no_more(self) -> None:
        if self._watch >= 0:
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1

    async def before(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write what is about to be done. Raises SupervisorError where it cannot be written: it must not be done."""
        if not self.is_kept:
            return
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._put(_Act(kind, _written(fields), told))
        error = await told
        if error:
            raise SupervisorError(f"{error}; it must be on the ledger")

    def after(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write what has happened: that cannot be undone, nor does an end wait for it."""
        if self.is_kept:
            self._put(_Act(kind, _written(fields), None))

    def _put(self, act: _Act) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            # Not one that the end of the process waits for: `close` says how long that may take.
            self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
            self._thread.start()
        with self._news:
            self._queue.append(act)
            self._news.notify()

    def close(self) -> None:
        """Let go of it, with all that has happened written; what is not is said."""
        if self._thread is None:
            return
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join(2 * _LAST_PATIENCE)
        lost = self._lost if not self._thread.is_alive() else "its service does not answer"
        if lost:
            self._say(f"the ledger has not taken all that has happened: {lost}")
        self._thread = None

    # --- in the thread ---

    def _write(self) -> None:
        pending: deque[Ticket] = deque()  # what has happened, and is not known to be written
        with Ledger() as ledger:
            while (acts := self._taken(again=bool(pending))) is not None:
                try:
                    if paths.has_ledger():
                        self._submit(ledger, acts, pending)
                    else:
                        self._refuse(acts, _gone())
                except Exception as error:  # that nobody has foreseen: else all would wait for ever
                    self._refuse(acts, f"the ledger cannot be written: {type(error).__name__}: {error}")
            self._lost = ledger.flush(_LAST_PATIENCE) or self._lost

    def _taken(self, *, again: bool) -> list[_Act] | None:
        """What is to be written now; nothing, after a while, where something is to be tried `again`; None: no more."""
        with self._news:
            while not self._queue and not self._ending:
                if not self._news.wait(PATIENCE if again else None) and again:
                    break
            if self._ending and not self._queue:
                return None
            acts = [*self._queue]
            self._queue.clear()
            return acts

    def _submit(self, ledger: Ledger, acts: list[_Act], pending: deque[Ticket]) -> None:
        """All at once, since what comes together goes to the disk together; in the order in which it has come."""
        until = time.monotonic() + PATIENCE
        asked: list[tuple[_Act, Ticket]] = []
        for act in acts:
            ticket = ledger.submit(act.kind, act.fields)
            if act.told is None:
                pending.append(ticket)
            else:
                asked.append((act, ticket))
        lost = _awaited(ledger, [ticket for _, ticket in asked], until)
        for act, ticket in asked:
            if not ticket.done:
                ticket.error = lost  # nobody waits any more, so it is not sent again: its act is not done
            self._tell(act, ticket.error)
        lost = _awaited(ledger, pending, until)
        while pending and pending[0].done:
            if error := pending.popleft().error:
                self._lost = lost = error
        if lost:
            self._fails(lost)
        elif acts:
            self._failing = False

    def _refuse(self, acts: list[_Act], reason: str) -> None:
        for act in acts:
            self._tell(act, reason)
        if any(act.told is None for act in acts):
            self._lost = reason
            self._fails(reason)

    def _fails(self, reason: str) -> None:
        """Say that what has happened is not written, once until something is again."""
        if not self._failing:
            self._failing = True
            self._in_loop(self._say, f"the ledger does not take what has happened: {reason}")

    def _tell(self, act: _Act, error: str) -> None:
        if act.told is not None:
            self._in_loop(_settle, act.told, error)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _awaited(ledger: Ledger, pending: Collection[Ticket], until: float) -> str:
    """Wait until all of `pending` is written or refused; why it is not by then, or empty.

    Unlike `Ticket.wait` this leaves it pending: a service that answers later, or the next one, still writes it.
    """
    look = select.poll()
    while any(not ticket.done for ticket in pending):
        left = until - time.monotonic()
        if left <= 0:
            return ledger.lost or f"the ledger's service has not answered within {PATIENCE:g} seconds"
        try:
            ledger.connect(left)
        except ServiceGone:
            time.sleep(_PAUSE)  # while it was asked: another one may be there
            continue
        except LedgerError as error:
            return str(error)
        fd = ledger.fileno()
        if fd >= 0 and any(not ticket.done for ticket in pending):
            look.register(fd, select.POLLIN)
            look.poll(left * 1000)
            look.unregister(fd)
            ledger.hear()
    return ""


def _gone() -> str:
    return f"the ledger in {paths.ledger()} is gone; without it the daemon goes on only when it is started anew"


def _settle(told: asyncio.Future[str], error: str) -> None:
    if not told.done():
        told.set_result(error)


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the ledger can write it: else a file whose name is no UTF-8 would leave no trace there."""
    return {name: _as_text(value) for name, value in fields.items()}


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return [_as_text(one) for one in value] if isinstance(value, (list, tuple)) else value
