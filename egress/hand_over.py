"""Connections that are looked into, spread over the workers of the service: one sandbox can have more than one core.

A worker that is busy looking into connections passes some on to neighbours, each with all that is needed to judge it;
records, its end, and edits of its policy go between the two as long as it lasts. When either dies, the connection does.
A connection under a budget stays where the budget is counted.
"""

from __future__ import annotations

import marshal
import posix

from osmoda.egress import memory_file, registration
from osmoda.egress.inspection import InspectedConnection, Inspector
from osmoda.egress.loop import IN, OUT
from osmoda.egress.verdicts import FIELDS, Grant
from osmoda.host import messages
from osmoda.host.frozen import fields_of, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections import deque
    from collections.abc import Sequence
    from typing import Any

    from osmoda.egress.authority import Authority
    from osmoda.egress.inspection.engine import Engine
    from osmoda.egress.loop import Loop
else:
    from _collections import deque

BUSY = 4
"""Connections that a worker looks into before it passes any on: until then the others need not load what that takes."""

_MOST_QUEUED = 20_000  # messages: a neighbour that is so far behind has stopped
_MOST_AUTHORITIES = 256


def budgeted(grants: Sequence[Grant]) -> bool:
    """Whether requests under these grants have to be counted."""
    return any(grant.max_bytes >= 0 or grant.max_requests >= 0 for grant in grants)


class Spread(Inspector):
    """An inspector with neighbours. All methods but `_ready` are called in the loop's thread."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.loop = loop
        self.neighbours: set[Neighbour] = set()
        self.here: set[int] = set()
        """What is looked into in this process: connections of this gateway's, and (below 0) of neighbours'."""
        self.warm = False
        self._elsewhere: dict[int, tuple[InspectedConnection, Neighbour]] = {}
        self._last = 0

    def join(self, socket: _socket.socket) -> None:
        """Have another neighbour, at the other end of this SOCK_SEQPACKET socket."""
        neighbour = Neighbour(self, socket)
        self.neighbours.add(neighbour)
        if self.warm:
            neighbour.say("warm")

    def adopt(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        """As `Inspector.adopt`; here, or at a neighbour's."""
        neighbour = self._choose(flow.grants)
        if neighbour is not None and neighbour.give(fd, peeked, flow):
            self._elsewhere[flow.id] = flow, neighbour
            self.loop.close(fd)
        else:
            self._adopt_here(fd, peeked, flow)

    def _choose(self, grants: tuple[Grant, ...]) -> Neighbour | None:
        if len(self.here) < BUSY or budgeted(grants):
            return None
        for neighbour in self.neighbours:
            neighbour.warm_up()
        ready = [neighbour for neighbour in self.neighbours if neighbour.is_ready()]
        chosen = min(ready, key=lambda neighbour: len(neighbour.given), default=None)
        return chosen if chosen is not None and len(chosen.given) < len(self.here) else None

    def _adopt_here(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        def closed(identity: int, up: int, down: int) -> None:
            self.here.discard(identity)
            flow.on_closed(identity, up, down)

        self.here.add(flow.id)
        values = dict(zip(fields_of(flow), values_of(flow), strict=True))
        super().adopt(fd, peeked, InspectedConnection(**{**values, "on_closed": closed}))

    def adopt_foreign(self, fd: int, peeked: bytes, values: tuple[Any, ...], neighbour: Neighbour, theirs: int) -> int:
        """Look into a connection of a neighbour's, which knows it as `theirs`. What it is called here."""
        self._last -= 1
        session, name, port, tls, addresses, grants, authority, secrets, upstream_authorities = values
        flow = InspectedConnection(
            id=self._last,
            session=session,
            name=name,
            port=port,
            tls=tls,
            addresses=addresses,
            grants=unpacked(grants),
            authority=neighbour.authority(authority),
            secrets=secrets,
            upstream_authorities=upstream_authorities,
            on_record=lambda fields: neighbour.say("record", theirs, _plain(fields)),
            on_closed=lambda _, up, down: neighbour.ended(theirs, up, down),
            take_request=lambda _: "",
            on_moved=lambda *_: None,
        )
        self._adopt_here(fd, peeked, flow)
        return flow.id

    def revoke(self, flow: int) -> None:
        """As `Inspector.revoke`."""
        there = self._elsewhere.pop(flow, None)
        if there is not None:
            there[1].given.discard(flow)
            there[1].say("revoke", flow)
        else:
            self.here.discard(flow)
            super().revoke(flow)

    def recheck(self, flow: int, grants: tuple[Grant, ...]) -> None:
        """As `Inspector.recheck`. What has got a budget cannot stay where that is not counted, and is reset."""
        there = self._elsewhere.get(flow)
        if there is None:
            super().recheck(flow, grants)
        elif budgeted(grants):
            self.revoke(flow)
            there[0].on_closed(flow, 0, 0)
        else:
            there[1].say("recheck", flow, packed(grants))

    def noted(self, flow: int, fields: dict[str, object]) -> None:
        """A neighbour has a record of a connection of ours."""
        there = self._elsewhere.get(flow)
        if there is not None:
            there[0].on_record(fields)

    def closed(self, flow: int, up: int, down: int) -> None:
        """A connection of ours has ended at a neighbour's."""
        there = self._elsewhere.pop(flow, None)
        if there is not None:
            there[1].given.discard(flow)
            there[0].on_closed(flow, up, down)

    def _ready(self, engine: Engine) -> None:
        super()._ready(engine)
        self.loop.call_from_thread(self._is_warm)

    def _is_warm(self) -> None:
        self.warm = True
        for neighbour in tuple(self.neighbours):
            neighbour.say("warm")

    def close(self, timeout: float) -> None:
        """As `Inspector.close`."""
        for neighbour in tuple(self.neighbours):
            neighbour.part()
        super().close(timeout)


class Neighbour:
    """Another worker, at the other end of a socket. `given` are our connections that it looks into."""

    def __init__(self, spread: Spread, socket: _socket.socket) -> None:
        self.given: set[int] = set()
        self._spread = spread
        self._socket = socket
        self._loop = spread.loop
        self._foreign: dict[int, int] = {}
        self._queue: deque[bytes] = deque()
        self._warm = self._told_to_warm = False
        self._authorities: dict[bytes, Authority] = {}
        socket.setblocking(False)
        self._loop.register(socket.fileno(), IN, self._event)

    def is_ready(self) -> bool:
        """Whether it can look into a connection without loading anything first, and listens."""
        return self._warm and not self._queue

    def warm_up(self) -> None:
        """Have it load what it takes, if it has not."""
        if not self._warm and not self._told_to_warm:
            self._told_to_warm = True
            self.say("prewarm")

    # --- what we say ---

    def give(self, fd: int, peeked: bytes, flow: InspectedConnection) -> bool:
        """Pass a connection on; False when it cannot be now. The descriptor stays open here."""
        values: tuple[Any, ...] = values_of(flow)[1:10]
        grants, authority = packed(flow.grants), flow.authority.dump()
        content = marshal.dumps((*values[:5], grants, authority, *values[7:], peeked))
        try:
            body = memory_file.create("osmoda-connection", content)
        except OSError:
            return False
        try:
            messages.send(self._socket, marshal.dumps(("adopt", flow.id)), (body, fd))
        except OSError:
            return False
        finally:
            posix.close(body)
        self.given.add(flow.id)
        return True

    def say(self, kind: str, *values: Any) -> None:
        """Send, at once or as soon as it listens; in order. Parts from one that does not listen at all."""
        if self._socket.fileno() < 0:
            return
        self._queue.append(marshal.dumps((kind, *values)))
        if len(self._queue) == 1:
            self._send()
        elif len(self._queue) > _MOST_QUEUED:
            self.part()

    def _send(self) -> None:
        try:
            while self._queue:
                messages.send(self._socket, self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            self._loop.modify(self._socket.fileno(), IN | OUT)
            return
        except OSError:
            return  # it has died: its end of file is heard
        self._loop.modify(self._socket.fileno(), IN)

    # --- what it says ---

    def _event(self, events: int) -> None:
        if events & OUT and self._queue:
            self._send()
        try:
            content, descriptors = messages.receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            content, descriptors = b"", []
        if not content:
            self.part()
            return
        kind, *values = marshal.loads(content)
        if kind == "adopt":
            self._adopt(values[0], *descriptors)
        elif kind == "revoke":
            ours = self._foreign.pop(values[0], None)
            if ours is not None:
                self._spread.revoke(ours)
        elif kind == "recheck":
            ours = self._foreign.get(values[0])
            if ours is not None:
                self._spread.recheck(ours, unpacked(values[1]))
        elif kind == "record":
            self._spread.noted(*values)
        elif kind == "closed":
            self._spread.closed(*values)
        elif kind == "prewarm":
            self._spread.prewarm()
        elif kind == "warm":
            self._warm = True

    def _adopt(self, theirs: int, body: int, fd: int) -> None:
        try:
            *values, peeked = marshal.loads(registration.read_all(body))
        finally:
            posix.close(body)
        self._foreign[theirs] = self._spread.adopt_foreign(fd, peeked, tuple(values), self, theirs)

    def authority(self, dumped: bytes) -> Authority:
        """The authority of a sandbox of its; kept, with the certificates that it has signed."""
        found = self._authorities.get(dumped)
        if found is None:
            from osmoda.egress.authority import Authority

            if len(self._authorities) >= _MOST_AUTHORITIES:
                self._authorities.clear()
            found = self._authorities[dumped] = Authority.load(dumped)
        return found

    def ended(self, theirs: int, up: int, down: int) -> None:
        """A connection of its has ended here."""
        if self._foreign.pop(theirs, None) is not None:
            self.say("closed", theirs, up, down)

    def fault(self) -> None:
        """A mistake of ours: nothing that was passed on may go on unwatched."""
        self.part()

    def part(self) -> None:
        """It has died, or we end: what either looks into for the other is reset. Does nothing the second time."""
        fd = self._socket.detach()
        if fd < 0:
            return
        self._loop.close(fd)
        self._spread.neighbours.discard(self)
        foreign, self._foreign = self._foreign, {}
        for ours in foreign.values():
            self._spread.revoke(ours)
        for flow in tuple(self.given):
            self._spread.closed(flow, 0, 0)


def packed(grants: Sequence[Grant]) -> tuple[tuple[Any, ...], ...]:
    """Grants as plain values."""
    return tuple([(grant.host, *[getattr(grant, name) for name in FIELDS], grant.origin) for grant in grants])


def unpacked(values: Sequence[Sequence[Any]]) -> tuple[Grant, ...]:
    """`packed` undone."""
    return tuple([Grant(*value) for value in values])


def _plain(fields: dict[str, object]) -> dict[str, object]:
    plain = (str, int, float, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in fields.items()}
