"""Connections that are looked into: TLS is opened, each request is judged, secrets are put in, bodies are streamed.

mitmproxy's protocol layers do the wire formats. They run in one thread of the gateway, on an asyncio loop, and are
loaded by that thread: this module costs nothing to import.
"""

from __future__ import annotations

import posix
from _thread import allocate_lock, start_new_thread

from osmoda.host.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.authority import Authority
    from osmoda.egress.inspection.engine import Engine
    from osmoda.egress.loop import Loop
    from osmoda.egress.policy import Grant

__all__ = ["InspectedConnection", "Inspector"]


@frozen
class InspectedConnection:
    """A connection that is handed over to be looked into.

    `name` is what the client asked for, canonical: a host name or an address. Only `addresses` are dialled. `secrets`
    are (name, placeholder, value). `upstream_authorities` is the path of the bundle that servers are checked against,
    empty for the system's. All functions are called in the gateway's loop: `on_record` with the fields of a record,
    `on_closed` once with `id` and the bytes received from and sent to the client, `take_request` with the grants that
    a request falls under (it answers why it may not be, or empty), `on_moved` with those grants and bytes that were
    moved under them.
    """

    id: int
    session: str
    name: str
    port: int
    tls: bool
    addresses: tuple[str, ...]
    grants: tuple[Grant, ...]
    authority: Authority
    secrets: tuple[tuple[str, str, str], ...]
    upstream_authorities: str
    on_record: Callable[[dict[str, object]], None]
    on_closed: Callable[[int, int, int], None]
    take_request: Callable[[tuple[Grant, ...]], str]
    on_moved: Callable[[tuple[Grant, ...], int], None]


class Inspector:
    """The inspecting half of a gateway. Its methods return at once, `close` aside, and may be called in any order."""

    def __init__(self, loop: Loop) -> None:
        """Nothing is started yet."""
        self._loop = loop
        self._lock = allocate_lock()
        self._ended = allocate_lock()  # held while the thread runs
        self._started = self._closed = False
        self._engine: Engine | _Ended | None = None
        self._waiting: list[Callable[[Engine | _Ended], None]] = []  # until there is an engine

    def prewarm(self) -> None:
        """Load what the first connection would wait for."""
        if not self._started and not self._closed:
            self._started = True
            self._ended.acquire()
            start_new_thread(self._run, ())

    def adopt(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        """Take over a connected, non-blocking socket of which `peeked` has been read. It ends with `on_closed`."""
        if self._closed:
            _Ended(self._loop, "the gateway ends").adopt(fd, peeked, flow)
            return
        self.prewarm()
        self._tell(lambda engine: engine.adopt(fd, peeked, flow))

    def revoke(self, flow: int) -> None:
        """Reset it now, both sides. It does not call `on_closed` any more."""
        self._tell(lambda engine: engine.revoke(flow))

    def recheck(self, flow: int, grants: tuple[Grant, ...]) -> None:
        """From now on these grants decide: about requests that begin, and those that are under way."""
        self._tell(lambda engine: engine.recheck(flow, grants))

    def close(self, timeout: float) -> None:
        """Reset what is open, and wait up to `timeout` seconds for the thread to end."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            self._tell(lambda engine: engine.stop())
            if self._ended.acquire(timeout=timeout):
                self._ended.release()

    def _tell(self, call: Callable[[Engine | _Ended], None]) -> None:
        with self._lock:
            engine = self._engine
            if engine is None:
                if self._started:
                    self._waiting.append(call)
                return
        engine.call(call)

    def _run(self) -> None:
        reason = "the gateway ends"
        try:
            from osmoda.egress.inspection.engine import Engine

            Engine(self._loop).run(self._ready)
        except Exception as error:
            reason = f"what looks into connections has failed: {error!r:.300}"
        finally:
            self._settle(_Ended(self._loop, reason))
            self._ended.release()

    def _ready(self, engine: Engine) -> None:
        """Called in the thread, in its loop: from now on it can be told things itself."""
        self._settle(engine)

    def _settle(self, engine: Engine | _Ended) -> None:
        with self._lock:
            self._engine = engine
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(engine)


class _Ended:
    """Stands where an engine was: whatever is handed over is closed."""

    def __init__(self, loop: Loop, reason: str) -> None:
        self._loop = loop
        self._reason = reason

    def adopt(self, fd: int, peeked: bytes, flow: InspectedConnection) -> None:
        posix.close(fd)
        fields: dict[str, object] = {"event": "fault", "name": flow.name, "port": flow.port, "reason": self._reason}
        self._loop.call_from_thread(lambda: flow.on_record(fields))
        self._loop.call_from_thread(lambda: flow.on_closed(flow.id, 0, 0))

    def revoke(self, flow: int) -> None:
        """There is nothing."""

    def recheck(self, flow: int, grants: tuple[Grant, ...]) -> None:
        """There is nothing."""

    def stop(self) -> None:
        """It has."""

    def call(self, call: Callable[[_Ended], None]) -> None:
        """From any thread, at once."""
        call(self)
