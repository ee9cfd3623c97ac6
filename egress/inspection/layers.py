"""mitmproxy's protocol layers, where they are to do more than they do: judge, rewrite, and keep within bounds."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, override

import h11
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._events import RequestData, ResponseProtocolError
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server
from OpenSSL import SSL

from osmoda.egress.http_head import BadHead, HeadReader
from osmoda.egress.inspection.stream import FINISHED, Stream, explanation

if TYPE_CHECKING:
    from mitmproxy.proxy.context import Context

    from osmoda.egress.inspection.adopted import Adopted
    from osmoda.egress.inspection.rules import Refusal
    from osmoda.egress.inspection.work import Work

    type Commands = layer.CommandGenerator[Any]

_MOST_WAITING = 1 << 20
# An answer that only announces another; 101 is none of them.
_INFORMATIONAL = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9][0-9][^0-9\n][^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")


class Entrance(layer.Layer):
    """The outermost layer: TLS or not, and HTTP in it. Nothing else is let through, so nothing is guessed."""

    def __init__(self, context: Context, adopted: Adopted) -> None:
        super().__init__(context)
        self._inner: layer.Layer
        if adopted.flow.tls:
            shell = Shell(context)
            self._http = Http(context, adopted)
            shell.child_layer = self._http
            self._inner = shell
        else:
            self._inner = self._http = Http(context, adopted)

    @override
    def _handle_event(self, event: events.Event) -> Commands:
        yield from self._inner.handle_event(event)

    def waiting(self, *, for_client: bool) -> int:
        """Bytes that wait for the client's window of HTTP/2 to open; or for a server's, or for the server itself."""
        waiting = (
            0
            if for_client
            else sum(stream.waiting() for stream in self._http.streams.values() if isinstance(stream, Stream))
        )
        for connection, outer in self._http.connections.items():
            if (connection is self.context.client) == for_client:
                inner = _innermost(outer)
                if isinstance(inner, Http2Connection):
                    buffers = inner.h2_conn.stream_buffers
                    waiting += sum(len(part.data) for parts in buffers.values() for part in parts)
                if isinstance(inner, Http2Client):
                    queued = [event for part in inner.stream_queue.values() for event in part]
                    waiting += sum(len(event.data) for event in queued if isinstance(event, RequestData))
        return waiting

    def revocation(self, work: Work, refusal: Refusal) -> events.Event | None:
        """What to tell this layer, so that the stream with this work is reset; None when there is none."""
        for stream in self._http.streams.values():
            if isinstance(stream, Stream) and stream.flow.metadata["work"] is work and not stream.flow.websocket:
                told = stream.revocation(refusal)
                self._http.command_sources[told.command] = stream
                return told
        return None

    def overfull(self) -> bool:
        """Whether somebody sends a head without end, or requests without waiting for an answer."""
        for outer in self._http.connections.values():
            inner = _innermost(outer)
            if isinstance(inner, Http1Connection) and len(inner.buf) > _MOST_WAITING:
                return True
        return False


def _innermost(outer: layer.Layer) -> layer.Layer:
    """The layer that speaks HTTP, within those that speak TLS."""
    while True:
        inner = getattr(outer, "child_layer", None)
        if inner is None or isinstance(outer, (Http1Connection, Http2Connection)):
            return outer
        outer = inner


class Shell(tls.ClientTLSLayer):
    """TLS with the client, which is told when it is over: without that, an answer without a length could be cut."""

    @override
    def send_close(self, command: commands.CloseConnection) -> Commands:
        with contextlib.suppress(SSL.Error):
            self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


class Http(HttpLayer):
    """HTTP of either version, with this package's own server side and streams."""

    def __init__(self, context: Context, adopted: Adopted) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._adopted = adopted

    @override
    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            client = self.context.client
            kind = Http2 if client.alpn == b"h2" else Http1
            self.connections[client] = kind(self.context.fork(), self._adopted)
        yield from super()._handle_event(event)

    @override
    def register_connection(self, command: Any) -> Commands:
        inner = _innermost(self.connections[command.connection])
        if type(inner) is Http1Client:
            # mitmproxy makes it by itself, and it has not been used yet.
            inner.__class__ = Upstream1
            inner.state = inner.read_headers
        yield from super().register_connection(command)

    @override
    def make_stream(self, stream_id: int) -> Commands:
        self.streams[stream_id] = stream = Stream(self.context.fork(), stream_id, self._adopted)
        yield from self.event_to_child(stream, events.Start())


class Http1(Http1Server):
    """The server's side of HTTP/1, which reads heads as strictly as the gateway does."""

    def __init__(self, context: Context, adopted: Adopted) -> None:
        super().__init__(context)
        self._adopted = adopted
        self._head: HeadReader | None = None

    @override
    def _handle_event(self, event: events.Event) -> Commands:
        if self.state == self.rejected:
            yield from self.rejected(event)
        else:
            yield from super()._handle_event(event)

    @override
    def read_headers(self, event: Any) -> Commands:
        if isinstance(event, events.DataReceived):
            some = event.data
            if self._head is None:
                self._head, some = HeadReader(), bytes(self.buf)
            try:
                head = self._head.feed(some)
            except BadHead as error:
                yield from self._reject(error.status, f"the HTTP request cannot be relied on: {error}")
                return
            if head is None:
                return
            self._head = None
        yield from super().read_headers(event)

    @override
    def read_body(self, event: events.Event) -> Commands:
        _drop_trailers(self)
        yield from super().read_body(event)

    def _reject(self, status: int, reason: str) -> Commands:
        """Say why, and read on without listening: unread bytes would reset the connection before it is read."""
        self._adopted.malformed(status, reason)
        self._adopted.linger()
        self.state = self.rejected
        yield commands.SendData(self.conn, _raw(status, reason))
        yield commands.CloseTcpConnection(self.conn, half_close=True)

    def rejected(self, event: events.Event) -> Commands:
        """Nothing matters any more but that the client goes."""
        if isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.conn)

    @override
    def send(self, event: Any) -> Commands:
        if isinstance(event, ResponseProtocolError):
            if event.message == FINISHED:
                return  # the connection is closed once the client has read why
            status = event.code.http_status_code()
            if self.response is None and status is not None:
                yield commands.SendData(self.conn, _raw(status, event.message))
                yield commands.CloseConnection(self.conn)
                return
        yield from super().send(event)


class Upstream1(Http1Client):
    """The client's side of HTTP/1, which nobody has asked for answers that are none yet (100 to 199)."""

    @override
    def read_headers(self, event: Any) -> Commands:
        if isinstance(event, events.DataReceived) and self.request is not None:
            while (informational := _INFORMATIONAL.match(bytes(self.buf))) is not None:
                self.buf.maybe_extract_at_most(informational.end())
        yield from super().read_headers(event)

    @override
    def read_body(self, event: events.Event) -> Commands:
        _drop_trailers(self)
        yield from super().read_body(event)


class _Bare:
    """Reads a body, and leaves out what comes after it: mitmproxy has no trailers in HTTP/1."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __call__(self, buffer: Any) -> Any:
        return _without_trailers(self._reader(buffer))

    def read_eof(self) -> Any:
        return _without_trailers(self._reader.read_eof())


def _without_trailers(event: Any) -> Any:
    return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event


def _drop_trailers(connection: Any) -> None:
    if not isinstance(connection.body_reader, _Bare):
        connection.body_reader = _Bare(connection.body_reader)


class Http2(Http2Server):
    """The server's side of HTTP/2."""

    def __init__(self, context: Context, adopted: Adopted) -> None:
        super().__init__(context)
        self._adopted = adopted

    @override
    def _handle_event(self, event: Any) -> Commands:
        if isinstance(event, ResponseProtocolError) and event.message == FINISHED:
            if not self.is_closed(event.stream_id):
                # RFC 9113, section 8.1: the answer is complete, and the rest of the request is not wanted.
                self.h2_conn.reset_stream(event.stream_id, 0)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
            return
        yield from super()._handle_event(event)


def _raw(status: int, reason: str) -> bytes:
    """A whole answer of HTTP/1."""
    raw: bytes = http1.assemble_response(explanation(status, reason, http1=True))  # type: ignore[no-untyped-call]
    return raw
