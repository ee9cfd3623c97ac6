"""The thread that looks into connections: its asyncio loop, and what is open in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from osmoda.egress.inspection.adopted import IDLE, Adopted, Writer
from osmoda.egress.inspection.tls import Contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import options as mitmproxy_options

    from osmoda.egress.inspection import InspectedConnection
    from osmoda.egress.loop import Loop
    from osmoda.egress.policy import Grant

_BUFFER = 65536


class _Coming:
    """A connection on its way into the loop, and what was said of it meanwhile."""

    def __init__(self, flow: InspectedConnection) -> None:
        self.grants = flow.grants
        self.revoked = False

    def revoke(self) -> None:
        """It is not to be served."""
        self.revoked = True

    def recheck(self, grants: tuple[Grant, ...]) -> None:
        """These decide about its first request."""
        self.grants = grants


class Engine:
    """Lives in one thread. Everything but `call` is called there."""

    def __init__(self, gateway: Loop) -> None:
        self.gateway = gateway
        self.contexts = Contexts()
        self.options = _options()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._open: dict[int, Adopted | _Coming] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, ready: Callable[[Engine], None]) -> None:
        """Until `stop`; calls `ready` once it can be told things."""
        # What mitmproxy has to say of a connection is in its records.
        logging.getLogger("mitmproxy").setLevel(logging.CRITICAL + 1)
        with asyncio.Runner() as runner:
            runner.run(self._main(ready))

    async def _main(self, ready: Callable[[Engine], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(asyncio.eager_task_factory)
        self._loop.set_exception_handler(self._fault)
        self._stopped = asyncio.Event()
        ready(self)
        await self._stopped.wait()
        for adopted in tuple(self._open.values()):
            adopted.revoke()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def call(self, call: Callable[[Engine], None]) -> None:
        """Have it called in the thread; from any thread. Once it has stopped, nothing is called any more."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # closed between the caller's look at it and now: the gateway ends
            self._loop.call_soon_threadsafe(call, self)

    def stop(self) -> None:
        """Reset what is open, and let `run` end."""
        assert self._stopped is not None
        self._stopped.set()

    def adopt(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        """Take over a connection."""
        assert self._loop is not None
        task = self._loop.create_task(self._serve(fd, peeked, flow))
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        served: Adopted | _Coming = _Coming(flow)
        self._open[flow.id] = served
        accepted = socket.socket(fileno=fd)
        try:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(limit=_BUFFER, loop=loop)
            reader.feed_data(peeked)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
            adopted = Adopted(self, reader, Writer(transport, protocol, reader, loop), flow, served.grants)
            if served.revoked:
                adopted.revoke()
                served = adopted
                return
            served = adopted
            self._open[flow.id] = adopted
            await adopted.handle_client()
        except OSError:
            accepted.close()
        finally:
            if isinstance(served, Adopted):
                served.over()
            if self._open.get(flow.id) is served:
                del self._open[flow.id]
            if not served.revoked:
                up, down = (served.received, served.sent) if isinstance(served, Adopted) else (0, 0)
                self.gateway.call_from_thread(lambda: flow.on_closed(flow.id, up, down))

    def revoke(self, flow: int) -> None:
        """Reset a connection, and forget it: another may have its number soon."""
        adopted = self._open.pop(flow, None)
        if adopted is not None:
            adopted.revoke()

    def recheck(self, flow: int, grants: tuple[Grant, ...]) -> None:
        """Have other grants decide about it."""
        adopted = self._open.get(flow)
        if adopted is not None:
            adopted.recheck(grants)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A task of some connection has failed: it is told where it was, by its own handler."""


def _options() -> mitmproxy_options.Options:
    """What the layers ask for. Connections are made when a request needs them, and never by a layer's own choice.

    Plain values: mitmproxy's own object copies an option, deeply, each time that it is looked at.
    """
    chosen = SimpleNamespace(
        body_size_limit=None,
        connection_strategy="lazy",
        http2=True,
        http2_ping_keepalive=0,
        http3=False,
        keep_host_header=True,
        normalize_outbound_headers=True,
        proxy_debug=False,
        rawtcp=False,
        store_streamed_bodies=False,
        stream_large_bodies=None,
        tcp_timeout=int(IDLE),
        validate_inbound_headers=True,
        websocket=True,
    )
    return cast("mitmproxy_options.Options", chosen)
