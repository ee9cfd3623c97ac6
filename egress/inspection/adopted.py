"""One connection in the inspecting thread: its sockets, its deadlines, what it may reach, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, override

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, mode_specs, server

from osmoda.egress.inspection.layers import Entrance
from osmoda.egress.inspection.rules import Refusal

if TYPE_CHECKING:
    from mitmproxy import tls
    from mitmproxy.connection import Connection
    from mitmproxy.http import HTTPFlow

    from osmoda.egress.inspection import InspectedConnection
    from osmoda.egress.inspection.engine import Engine
    from osmoda.egress.inspection.work import Work
    from osmoda.egress.policy import Grant

IDLE = 3600.0
"""Seconds after which a connection on which nothing moves is cut."""

FIRST_REQUEST = 30.0
"""Seconds in which the TLS handshake must be over, and the first request have come."""

HANDSHAKE = 10.0
"""Seconds in which a server must have finished its TLS handshake."""

LINGER = 5.0
"""Seconds in which a client that was refused may finish what it was sending, to read why."""

MOST_BUFFERED = 1 << 20
"""Bytes that wait for one side before the other is read no further."""

_DIALLING = 10.0  # seconds for each address
_SERVERS = 32  # connections that one client's requests may hold at a time
_REPORT = 1 << 18  # bytes after which a budget is told of them
_STALLED = 60.0  # seconds that both sides may wait for each other
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7): nothing that is queued is delivered


@dataclass(frozen=True)
class SandboxMode(mode_specs.ProxyMode):  # type: ignore[no-untyped-call]
    """How a connection came to mitmproxy: it was handed over."""

    description = "connections of sandboxes"
    transport_protocol = "tcp"
    default_port = None

    def __post_init__(self) -> None:
        """There is nothing to check."""


_MODE = SandboxMode("sandbox", "", None, None)


class Writer(asyncio.StreamWriter):
    """Counts what is written."""

    sent = 0

    @override
    def write(self, data: Any) -> None:
        self.sent += len(data)
        super().write(data)


class Adopted(server.LiveConnectionHandler):
    """mitmproxy's handler of one client, without its add-ons: what those would decide is decided here."""

    def __init__(
        self,
        engine: Engine,
        reader: asyncio.StreamReader,
        writer: Writer,
        flow: InspectedConnection,
        grants: tuple[Grant, ...],
    ) -> None:
        super().__init__(reader, writer, engine.options, _MODE)
        self.engine = engine
        self.flow = flow
        self.grants = grants
        self.received = 0
        self.revoked = self._is_cut = False
        self.overdue = False
        """Whether a server did not finish its handshake in time."""
        self.working: set[Work] = set()
        self._writer = writer
        self._slots = asyncio.Semaphore(_SERVERS)
        self._progress = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = self._loop.call_later(FIRST_REQUEST, self.cut)
        context = self.layer.context
        context.server = self._server()
        self.entrance = Entrance(context, self)
        self.layer = self.entrance

    def _server(self) -> Server:
        flow = self.flow
        place = Server(address=(flow.name, flow.port))
        place.tls, place.sni = flow.tls, flow.name
        return place

    @property
    def sent(self) -> int:
        """Bytes sent to the client."""
        return self._writer.sent

    # --- what a request is told, and tells ---

    def begun(self) -> None:
        """A request has come."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def linger(self) -> None:
        """It was refused, and told so: whatever else it sends is read, for a while, and nobody sees it."""
        self.begun()
        self._deadline = self._loop.call_later(LINGER, self.cut)

    def record(self, fields: dict[str, object] | None) -> None:
        """Leave a record."""
        if fields is not None:
            on_record = self.flow.on_record
            self.engine.gateway.call_from_thread(lambda: on_record(fields))

    def malformed(self, status: int, reason: str) -> None:
        """Leave the record of what is no request to rely on."""
        flow = self.flow
        rule = self.grants[0].origin if self.grants else ""
        self.record(
            {
                "event": "request",
                "name": flow.name,
                "port": flow.port,
                "protocol": "tls" if flow.tls else "http",
                "method": "",
                "path": "",
                "status": status,
                "verdict": "deny",
                "action": "refused",
                "reason": reason,
                "rule": rule,
            }
        )

    def account(self, work: Work, *, ended: bool = False) -> None:
        """Tell the budgets, where there are any, of what was moved."""
        if work.moved >= _REPORT or (ended and work.moved):
            moved, work.moved = work.moved, 0
            grants = work.grants
            if any(grant.max_bytes >= 0 for grant in grants):
                on_moved = self.flow.on_moved
                self.engine.gateway.call_from_thread(lambda: on_moved(grants, moved))

    async def _take(self, work: Work) -> None:
        """Have one request counted, where somebody counts them."""
        grants = work.grants
        if not any(grant.max_requests >= 0 or grant.max_bytes >= 0 for grant in grants):
            return
        answer: asyncio.Future[str] = self._loop.create_future()

        def take() -> None:
            reason = self.flow.take_request(grants)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, answer, reason)

        self.engine.gateway.call_from_thread(take)
        reason = await answer
        if reason:
            work.refusal = Refusal(403, reason, grants[0].origin)

    # --- what mitmproxy asks of its surroundings ---

    @override
    async def handle_hook(self, hook: commands.StartHook) -> None:
        try:
            (subject,) = hook.args()
            if hook.name == "requestheaders":
                await self._take(subject.metadata["work"])
            elif hook.name == "responseheaders":
                flow: HTTPFlow = subject
                if flow.response is not None:
                    flow.response.stream = True
            elif hook.name == "tls_start_client":
                self._start_client(subject)
            elif hook.name == "tls_start_server":
                self._start_server(subject)
        except Exception as error:
            self._fault(error)
            raise

    def _start_client(self, start: tls.TlsData) -> None:
        wanted = start.context.client.sni
        if wanted is None or wanted.lower().removesuffix(".") == self.flow.name:
            start.ssl_conn = self.engine.contexts.for_client(self.flow.authority, self.flow.name)
        else:
            self.malformed(0, f"the TLS hello names {wanted[:253]!r}, the connection is for {self.flow.name}")
            self.cut()

    def _start_server(self, start: tls.TlsData) -> None:
        flow, client = self.flow, start.context.client
        # What the client did not offer, its requests are not to be turned into.
        offered = [protocol for protocol in (client.alpn_offers or ()) if protocol in (b"h2", b"http/1.1")]
        start.conn.alpn_offers = offered
        start.ssl_conn = self.engine.contexts.for_server(flow.name, offered, flow.upstream_authorities)

    @override
    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """Only what went wrong in mitmproxy itself matters: the connection cannot go on then."""
        if level >= logging.ERROR:
            _, error, _ = exc_info if isinstance(exc_info, tuple) else sys.exc_info()
            self._fault(error if isinstance(error, Exception) else RuntimeError(message))

    def _fault(self, error: Exception) -> None:
        if self._is_cut:
            return
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" at {where[0].filename.rpartition('/')[2]}:{where[0].lineno}" if where else ""
        reason = f"a connection that was looked into could not go on: {error!r:.500}{place}"
        self.record({"event": "fault", "name": self.flow.name, "port": self.flow.port, "reason": reason})
        self.cut()

    @override
    async def server_event(self, event: events.Event) -> None:
        if isinstance(event, events.DataReceived) and event.connection is self.client:
            self.received += len(event.data)
        await super().server_event(event)
        self._progress.set()
        if self.entrance.overfull():
            self.cut()

    @override
    async def drain_writers(self) -> None:
        """Read no further from one side while too much waits for the other.

        mitmproxy looks at what waits in sockets. HTTP/2 has windows besides: what they hold back waits in its layers.
        """
        await super().drain_writers()  # type: ignore[no-untyped-call]
        mine = asyncio.current_task()
        from_client = any(io.handler is mine for connection, io in self.transports.items() if connection is self.client)
        while self.entrance.waiting(for_client=not from_client) > MOST_BUFFERED:
            self._progress.clear()
            try:
                async with asyncio.timeout(_STALLED):
                    await self._progress.wait()
            except TimeoutError:
                self.cut()
                return

    @override
    async def open_connection(self, command: commands.OpenConnection) -> None:
        place = command.connection
        async with self._slots:
            try:
                if place.address != (self.flow.name, self.flow.port) or self.revoked:
                    raise OSError("it is not where this connection leads")
                reader, writer = await self._dial()
            except (OSError, asyncio.CancelledError) as error:
                place.error = str(error) or "it was given up"
                await self.server_event(events.OpenConnectionCompleted(command, place.error))
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            place.state = ConnectionState.OPEN
            place.peername = writer.get_extra_info("peername")
            place.sockname = writer.get_extra_info("sockname")
            self.transports[place] = server.ConnectionIO(asyncio.current_task(), reader, writer)
            if place.tls:
                self._loop.call_later(HANDSHAKE, self._give_up, place, writer)
            await self.server_event(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(place)

    def _give_up(self, place: Connection, writer: asyncio.StreamWriter) -> None:
        """The time for a server's handshake is over."""
        if place.timestamp_tls_setup is None:
            self.overdue = True
            writer.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of the checked addresses that answers."""
        failures: list[str] = []
        for address in self.flow.addresses:
            try:
                async with asyncio.timeout(_DIALLING):
                    return await asyncio.open_connection(address, self.flow.port)
            except TimeoutError:
                failures.append(f"{address} did not answer in time")
            except OSError as error:
                failures.append(f"{address}: {error.strerror or error}")
        raise OSError("; ".join(failures[:3]) or "it has no address that may be reached")

    # --- its end ---

    def recheck(self, grants: tuple[Grant, ...]) -> None:
        """Other grants decide from now on; a request under way that none of them allows is reset.

        Over HTTP/1 that is the connection.
        """
        self.grants = grants
        for work in tuple(self.working):
            rule = work.rule
            if work.still_allowed(grants):
                continue
            refusal = Refusal(403, "no rule allows it any more, since the policy was edited", rule)
            told = self.entrance.revocation(work, refusal) if self.client.alpn == b"h2" else None
            if told is not None:
                task = self._loop.create_task(self.server_event(told))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            else:
                self.record(work.record(0, refusal, "revoked", again=True))
                self.cut()

    def cut(self) -> None:
        """Reset both sides."""
        self._is_cut = True
        for io in tuple(self.transports.values()):
            if isinstance(io.writer, asyncio.StreamWriter):
                taken = io.writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                io.writer.transport.abort()
            if io.handler is not None:
                io.handler.cancel("cut")

    def revoke(self) -> None:
        """Reset both sides; whoever asked for it knows."""
        self.revoked = True
        self.cut()

    def over(self) -> None:
        """It has ended: note what had no answer."""
        self.begun()
        for work in tuple(self.working):
            self.done(work, Refusal(502, "the connection ended before there was an answer", verdict="allow"))

    def done(self, work: Work, failure: Refusal | None = None) -> None:
        """A request is over."""
        self.account(work, ended=True)
        if failure is not None:
            self.record(work.record(0, failure, "revoked" if self.revoked else "failed"))
        self.working.discard(work)


def _resolve(answer: asyncio.Future[str], reason: str) -> None:
    if not answer.done():
        answer.set_result(reason)
