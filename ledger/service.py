"""The process that writes a ledger for all that a user runs: what has come meanwhile goes to the disk at once.

It is started by whoever needs it first (`starting`), and ends when it has had nothing to do for a while. Clients
(`client`) speak to it over a SOCK_SEQPACKET socket in the runtime directory, in marshalled tuples:

    ("hello", version, client, floor)          who; `floor`: no event of theirs is unaccounted for up to this number
    ("welcome", ledger, seq, written)          the ledger's id, its last event, (counter, event) of this client's above
    ("refused", reason)                        in place of it
    ("events", counter, (event, …))            the first one's counter, those of the others follow; (kind, fields),
                                               marshalled, each
    ("done", counter, seq)                     on the disk: all up to `counter`, and that one is event `seq`
    ("failed", counter, last, reason)          not written: these and no others

A counter is written once: what a client sends again, since it did not hear, is answered with what was written before.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import sqlite3
from collections import deque
from typing import TYPE_CHECKING, Any

from osmoda.host import peer, syscalls
from osmoda.ledger import reading, record
from osmoda.ledger.client import GREETING, SOCKET, VERSION
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.writer import SEGMENT_BYTES, Entry, Writer

if TYPE_CHECKING:
    from collections.abc import Iterable

IDLE = 60.0
"""Seconds without a client after which the service ends."""

_MOST_MESSAGE = 1 << 18
_AT_ONCE = 4096  # events of one client in a group
_MESSAGES = 32  # of one client before the next one is heard
_MOST_UNSAID = 10_000  # answers that a client has not read
_BACKLOG = 512


class _Peer:
    """One client: who it is, by the kernel, and what of it waits for the next commit."""

    __slots__ = ("client", "pid", "received", "socket", "uid", "unsaid", "waiting")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid, self.uid = peer.credentials(packed)
        self.client = -1
        self.waiting: list[Entry] = []
        self.received = 0
        """The highest counter that has come: it is in `waiting`, or answered."""
        self.unsaid: deque[bytes] = deque()

    def say(self, *message: Any) -> None:
        """Tell it something, or keep that until it reads."""
        self.unsaid.append(marshal.dumps(message))
        self.flush()

    def flush(self) -> None:
        """Say what it has not heard; one that is gone is noticed where it is heard."""
        try:
            while self.unsaid:
                self.socket.send(self.unsaid[0], socket.MSG_DONTWAIT)
                self.unsaid.popleft()
        except OSError:
            return


class Service:
    """Serves `writer` at the socket in `runtime` until `stop` is called or nobody has come for `idle` seconds."""

    def __init__(self, writer: Writer, runtime: str, idle: float = IDLE) -> None:
        """Raises OSError."""
        self._writer = writer
        self._idle = idle
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._poll = select.epoll()
        self._peers: dict[int, _Peer] = {}
        self._stopping = False
        path = f"{runtime}/{SOCKET}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a service that was killed: this one holds the ledger's lock
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)

    def stop(self, *_: object) -> None:
        """End, after what has been received; may be called by a handler of signals."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, b"!")

    def run(self) -> None:
        """Serve."""
        while not self._stopping:
            ready = self._poll.poll(None if self._peers else self._idle)
            if not ready:
                break  # nobody has come for so long
            for fd, events in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._peers:
                    one = self._peers[fd]
                    if events & select.EPOLLOUT:
                        one.flush()
                    if events & ~select.EPOLLOUT:
                        self._hear(one)
            self._commit()
        # Whoever connects from now on finds nobody, and starts another.
        self._listener.close()
        for one in tuple(self._peers.values()):
            self._hear(one)
        self._commit()

    def close(self) -> None:
        """Close all sockets; the name in the directory stays for the next one to replace."""
        for one in tuple(self._peers.values()):
            self._drop(one)
        self._listener.close()
        self._poll.close()
        for fd in (self._wake, self._woken):
            os.close(fd)

    # --- clients ---

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone, or there are no descriptors left: it is asked again at the next turn
        connection.setblocking(False)
        try:
            reason = peer.refusal(connection)
            one = _Peer(connection)
        except OSError:
            connection.close()
            return
        if reason:
            one.say("refused", reason)
            connection.close()
            return
        self._peers[connection.fileno()] = one
        self._poll.register(connection, select.EPOLLIN)

    def _drop(self, one: _Peer) -> None:
        fd = one.socket.fileno()
        if self._peers.pop(fd, None) is not None:
            self._poll.unregister(fd)
            one.socket.close()

    def _hear(self, one: _Peer) -> None:
        for _ in range(_MESSAGES):
            try:
                data = one.socket.recv(_MOST_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                # What it has sent before is written all the same.
                self._write([one])
                self._drop(one)
                return
            try:
                self._understand(one, marshal.loads(data))
            except (ValueError, TypeError, EOFError, LedgerError, sqlite3.Error) as error:
                one.say("refused", f"the ledger's service does not go on with this client: {error}")
                self._write([one])
                self._drop(one)
                return
            if len(one.waiting) >= _AT_ONCE:
                return

    def _understand(self, one: _Peer, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "hello":
            version, client, floor = values
            if version != VERSION:
                raise LedgerError("one of the two is of an older version of osmoda")
            for other in tuple(self._peers.values()):
                if other.client == client and other is not one:
                    # An earlier connection of the same: what it has sent counts, and nothing more comes.
                    self._write([other])
                    self._drop(other)
            one.client = client
            written = self._written(client, floor)
            one.received = written[-1][0] if written else 0
            one.say("welcome", self._writer.ledger, self._writer.seq, written)
        elif kind == "events" and one.client >= 0:
            self._take(one, *values)
        else:
            raise LedgerError(f"{kind!r} cannot come now")

    def _take(self, one: _Peer, counter: int, events: Iterable[bytes]) -> None:
        for event in events:
            if counter > one.received:
                one.received = counter
                kind, fields = marshal.loads(event)
                try:
                    if not record.KIND.fullmatch(kind) or kind in record.OWN:
                        raise LedgerError(f"{kind!r} is no kind of event that is written for others")
                    one.waiting.append(Entry(one.uid, one.pid, one.client, counter, kind, record.canonical(fields)))
                except LedgerError as error:
                    one.say("failed", counter, counter, str(error))
            counter += 1

    def _written(self, client: int, floor: int) -> tuple[tuple[int, int], ...]:
        """What `client` has on the ledger above event `floor`, as (counter, event); a new client, with -1, nothing."""
        if floor < 0:
            return ()
        live = floor + 1 >= self._writer.first
        rows = self._writer.rows(floor + 1) if live else reading.rows(self._writer.folder, floor + 1)
        found = []
        for seq, content, _ in rows:
            writer, counter = record.name_of(content)
            if writer == client:
                found.append((counter, seq))
        return tuple(found)

    # --- the disk ---

    def _commit(self) -> None:
        self._write([one for one in self._peers.values() if one.waiting])
        for one in tuple(self._peers.values()):
            if len(one.unsaid) > _MOST_UNSAID:
                self._drop(one)
            elif one.unsaid:
                self._poll.modify(one.socket, select.EPOLLIN | select.EPOLLOUT)
            else:
                self._poll.modify(one.socket, select.EPOLLIN)

    def _write(self, peers: list[_Peer]) -> None:
        """One transaction for what `peers` have sent, each one's events in a row."""
        entries = [entry for one in peers for entry in one.waiting]
        if not entries:
            return
        try:
            seq = self._writer.append(entries) - 1
        except LedgerError as error:
            for one in peers:
                if one.waiting:
                    one.say("failed", one.waiting[0].counter, one.waiting[-1].counter, str(error))
                    one.waiting.clear()
            return
        for one in peers:
            if one.waiting:
                seq += len(one.waiting)
                one.say("done", one.waiting[-1].counter, seq)
                one.waiting.clear()
        self._writer.rotate()


def main(directory: str, runtime: str, idle: float = IDLE, segment_bytes: int = SEGMENT_BYTES) -> None:
    """Be the service of the ledger in `directory`, at a socket in `runtime`.

    The process that was started ends at once, its child serves (daemon(7)); descriptor 2 gets GREETING when it does, or
    the reason why not.
    """
    # Of whoever needed it first: nothing of theirs is kept open, or in use.
    syscalls.close_range(3, 0x7FFFFFFF)
    os.chdir("/")
    os.umask(0o077)
    # Before the database is opened: SQLite's locks are a process's own.
    if os.fork():
        os._exit(0)
    syscalls.prctl_set_name(b"osmoda-ledger")
    try:
        writer = Writer(directory, segment_bytes=segment_bytes)
        service = Service(writer, runtime, idle)
    except (LedgerError, OSError) as error:
        text = str(error) if isinstance(error, LedgerError) else f"{error.filename or runtime}: {error.strerror}"
        os.write(2, text.encode(errors="backslashreplace"))
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, service.stop)
    os.write(2, GREETING)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        service.run()
    finally:
        service.close()
        writer.close()
        os._exit(0)
