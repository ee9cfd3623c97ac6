"""Putting events on the ledger: hot, since each launch does it.

    ledger = open_ledger()          None where this user has made none
    if ledger is not None:
        ledger.append("edit", {"file": path})           on the disk when it returns
        ticket = ledger.submit("egress", {"name": …})   on its way; ticket.wait() is as append

Where there is a ledger it is compulsory: what cannot be written raises LedgerError, and the act is not done. The
service that writes (`service`) is started when there is none; one that dies loses nothing that was acknowledged, and
what was not is sent again to the next one, which knows what it has already.
"""

from __future__ import annotations

import _socket
import _thread
import marshal
import posix
import select
import time

from osmoda.host import paths, peer
from osmoda.ledger.errors import LedgerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self

VERSION = 1
SOCKET = "service.sock"
GREETING = b"serving\n"
PATIENCE = 10.0
"""Seconds that an event waits for its acknowledgement, or a client for the service."""

_PAUSE = 0.01  # seconds before a service is looked for again
_MOST_PENDING = 10_000  # events that wait for an acknowledgement
_MOST_BYTES = 72 << 10  # of one event, and of a message of several


def open_ledger(*, start: bool = True) -> Ledger | None:
    """This user's ledger; None where there is none. Raises LedgerError where there is one that cannot be written.

    With `start` false the service is not started where it does not run: for a process that may start none.
    """
    if not paths.has_ledger():
        return None
    ledger = Ledger(start=start)
    try:
        ledger.connect()
    except ServiceGone:
        ledger.connect()  # it was about to end for want of work
    return ledger


def printable(value: str) -> str:
    """As it can be written: bytes that are no UTF-8 (of names, of arguments) in Python's escaped form."""
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode()  # half a character that no bytes stand for


class ServiceGone(LedgerError):
    """The service has ended while it was asked, or while it was started: the next one may do."""


class Ticket:
    """An event on its way. `seq` is its number once it is on the ledger, else 0; `error` says why it is not."""

    __slots__ = ("_ledger", "counter", "error", "event", "seq")

    def __init__(self, ledger: Ledger, counter: int, event: bytes) -> None:
        self._ledger = ledger
        self.counter = counter
        self.event = event
        self.seq = 0
        self.error = ""

    @property
    def done(self) -> bool:
        """Whether it is known what has become of it."""
        return self.seq > 0 or self.error != ""

    def wait(self, patience: float = PATIENCE) -> int:
        """Its number, once it is on the disk. Raises LedgerError when it is not, after `patience` seconds at most."""
        self._ledger.wait_for(self, patience)
        if self.error:
            raise LedgerError(self.error)
        return self.seq


class Ledger:
    """A connection to the service that writes. Threads may share it; a forked child gets one of its own."""

    def __init__(self, *, start: bool = True) -> None:
        self._start = start
        self.on_lost: Callable[[int], None] | None = None
        """Called with the descriptor of a connection that is about to be closed, for whoever watches it."""
        self._socket: _socket.socket | None = None
        self._begin()

    def _begin(self) -> None:
        self._process = posix.getpid()
        self.lost = ""
        """Why events cannot be written now; empty while they can."""
        self.ready = False
        """Whether there is a service that takes events, as far as this process knows."""
        self._refused = False
        self._client = int.from_bytes(posix.urandom(7), "little")
        self._counter = 0
        self._floor = -1
        self._pending: dict[int, Ticket] = {}
        self._unsent: list[Ticket] = []
        self._state = _thread.RLock()
        self._waiting = _thread.allocate_lock()

    # --- events ---

    def append(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Put an event on the ledger; its number, when it is on the disk. Raises LedgerError."""
        return self.submit(kind, fields).wait()

    def submit(self, kind: str, fields: Mapping[str, Any]) -> Ticket:
        """The same without waiting. Never blocks on a connection that is there; an error is the ticket's.

        `fields` are texts, integers, truth values, None, and lists and tables of them.
        """
        try:
            event = marshal.dumps((kind, dict(fields)))
        except ValueError:
            event = b""
        if posix.getpid() != self._process:
            # The connection, and what waits for an answer on it, are the parent's.
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._begin()
        with self._state:
            self._counter += 1
            ticket = Ticket(self, self._counter, event)
            if not event:
                ticket.error = "an event holds what cannot be written; texts, integers, lists and tables can"
                return ticket
            if len(event) > _MOST_BYTES:
                ticket.error = f"an event of {len(event)} bytes is too long for the ledger"
                return ticket
            if len(self._pending) >= _MOST_PENDING:
                self.hear()
            if len(self._pending) >= _MOST_PENDING:
                ticket.error = "the ledger does not keep up with what is to be written"
                return ticket
            self._pending[ticket.counter] = ticket
            self._unsent.append(ticket)
            self._send()
            return ticket

    def wait_for(self, ticket: Ticket, patience: float = PATIENCE) -> None:
        """Until it is known what has become of it; what is not known after `patience` seconds is an error."""
        until = time.monotonic() + patience
        while not ticket.done:
            # One thread waits for the socket; it hears what the others wait for, too.
            if not self._waiting.acquire(True, max(until - time.monotonic(), 0.0)):
                break
            try:
                self._wait(ticket, until)
            finally:
                self._waiting.release()
            if time.monotonic() >= until:
                break
        with self._state:
            if not ticket.done:
                # It stays among those that are pending: the service may have it, and count it.
                ticket.error = self.lost or f"the ledger's service has not answered within {patience:g} seconds"

    def _wait(self, ticket: Ticket, until: float) -> None:
        while not ticket.done:
            left = until - time.monotonic()
            if left <= 0:
                return
            try:
                self.connect(left)
            except ServiceGone:
                time.sleep(_PAUSE)  # while it was asked: another one may be there
                continue
            except LedgerError as error:
                ticket.error = str(error)
                return
            if ticket.seq or ticket.error:
                return  # the service that was connected to has said so
            with self._state:
                self._send()
                events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
                fd = self.fileno()
            if fd >= 0:
                look = select.poll()
                look.register(fd, events)
                look.poll(left * 1000)
                self.hear()

    def flush(self, patience: float = PATIENCE) -> str:
        """Wait for all that was submitted, `patience` seconds at most; why some of it is not on it, or empty."""
        until = time.monotonic() + patience
        with self._state:
            tickets = tuple(self._pending.values())
        for ticket in tickets:
            self.wait_for(ticket, max(until - time.monotonic(), 0.0))
        return next((ticket.error for ticket in tickets if ticket.error), "")

    @property
    def pending(self) -> int:
        """How many events wait for an acknowledgement."""
        return len(self._pending)

    @property
    def oldest(self) -> Ticket | None:
        """The event that has waited longest for an acknowledgement."""
        return next((ticket for ticket in self._pending.values() if not ticket.error), None)

    # --- the connection ---

    def fileno(self) -> int:
        """For a loop: to be watched for reading, and `hear` called. -1 when there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def hear(self) -> None:
        """Take what the service has said; never blocks. When it has gone, `lost` says so and `fileno` is -1."""
        with self._state:
            while self._socket is not None:
                try:
                    data = self._socket.recv(1 << 18, _socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                if not data:
                    self._lose("the ledger's service has ended")
                    return
                self._heard(marshal.loads(data))
            self._send()

    def _heard(self, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "welcome":
            self._welcomed(*values[1:])
        elif kind == "done":
            counter, seq = values
            # Its events of one commit are in a row; earlier ones were told of before.
            told = [number for number in self._pending if number <= counter]
            for number in told:
                ticket = self._pending.pop(number)
                if not ticket.error:
                    ticket.seq = seq - (len(told) - 1)
                seq += 1
            self._floor = values[1]
        elif kind == "failed":
            first, last, reason = values
            for number in [number for number in self._pending if first <= number <= last]:
                self._pending.pop(number).error = reason
        elif kind == "refused":
            self._refused = True
            self._lose(str(values[0]))

    def _send(self) -> None:
        """Send what is not sent yet, as far as the socket takes it now."""
        while self._unsent and self._socket is not None and self.ready:
            first = self._unsent[0].counter
            events: list[bytes] = []
            size = 0
            for ticket in self._unsent:
                size += len(ticket.event)
                if ticket.counter != first + len(events) or (events and size > _MOST_BYTES):
                    break
                events.append(ticket.event)
            try:
                self._socket.send(marshal.dumps(("events", first, tuple(events))), _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._lose("the ledger's service has ended")
                return
            del self._unsent[: len(events)]

    def _lose(self, reason: str) -> None:
        self.close()
        self.lost = reason
        self._again()

    def _again(self) -> None:
        """Nobody knows yet which of them were written: the next service says so, and gets the others."""
        # What nobody waits for any more is not sent again: its act was not done.
        self._pending = {counter: ticket for counter, ticket in self._pending.items() if not ticket.error}
        self._unsent = list(self._pending.values())

    def connect(self, patience: float = PATIENCE) -> None:
        """Be connected, to a service that is started where there is none. Raises LedgerError."""
        with self._state:
            until = time.monotonic() + patience
            if self._socket is None:
                self._dial(patience)
            while not self.ready:
                if self._socket is None:
                    raise ServiceGone(self.lost)
                look = select.poll()
                look.register(self._socket.fileno(), select.POLLIN)
                if not look.poll(max(until - time.monotonic(), 0) * 1000):
                    self._lose("the ledger's service does not answer")
                    raise LedgerError(self.lost)
                self.hear()
                if self._refused:
                    raise LedgerError(self.lost)

    def dial(self) -> None:
        """Connect to a service that is there, without waiting for its answer: `hear` makes it `ready`.

        Raises LedgerError.
        """
        with self._state:
            if self._socket is None:
                self._dial(0.0)

    def _dial(self, patience: float) -> None:
        self._refused = False
        try:
            runtime = paths.own_directory("runtime", "ledger")
            connection = _connect(runtime)
            if connection is None and self._start:
                from osmoda.ledger import starting

                connection = starting.start(paths.own_ledger(), runtime, lambda: _connect(runtime), patience)
        except paths.UntrustedDirectory as error:
            self.lost = f"the ledger cannot be used: {error}"
            raise LedgerError(self.lost) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self.lost = f"the ledger's service cannot be reached: {where}{error.strerror or error}"
            raise LedgerError(self.lost) from None
        except LedgerError as error:
            self.lost = str(error)
            raise
        if connection is None:
            self.lost = "the ledger's service does not run"
            raise ServiceGone(self.lost)
        self._socket = connection
        try:
            connection.send(marshal.dumps(("hello", VERSION, self._client, self._floor)))
        except OSError:
            self._lose("the ledger's service has ended")  # at this moment

    def _welcomed(self, seq: int, written: tuple[tuple[int, int], ...]) -> None:
        for counter, number in written:
            ticket = self._pending.pop(counter, None)
            if ticket is not None:
                ticket.seq = number
        # What is not among those is not on the ledger, so it will be above this number.
        self._floor = seq
        self._again()
        self.ready = True
        self.lost = ""
        self._send()

    def close(self) -> None:
        """Let go of it: what was sent is written, nobody waits for it."""
        with self._state:
            if self._socket is not None:
                if self.on_lost is not None:
                    self.on_lost(self._socket.fileno())
                self._socket.close()
                self._socket = None
            self.ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(runtime: str) -> _socket.socket | None:
    """A connection to the service; None when there is none. Raises LedgerError where it is somebody else's."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        # One that is stopped, and whose queue is full, is not waited for.
        connection.setblocking(False)
        connection.connect(f"{runtime}/{SOCKET}")
        connection.setblocking(True)
        _, uid = peer.credentials(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError:
        connection.close()
        raise
    if uid != posix.geteuid():
        connection.close()
        raise LedgerError(f"the ledger's service is of uid {uid}, not of this user")
    return connection
