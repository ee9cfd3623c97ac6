"""One request and its answer, as they pass: mitmproxy's stream with this package's judgement in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, override

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpStream,
    SendHttp,
    validate_request,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from osmoda.egress.inspection.frames import BadFrame, Frames
from osmoda.egress.inspection.rules import Refusal
from osmoda.egress.inspection.work import Work

if TYPE_CHECKING:
    from mitmproxy.proxy.context import Context

    from osmoda.egress.inspection.adopted import Adopted

    type Commands = layer.CommandGenerator[Any]

_HELD = 0.05  # seconds for which the beginning of a placeholder is waited for its end

FINISHED = "the answer is complete, and the request is not wanted"
"""What ends a stream that has been answered before its request was read."""


def explanation(status: int, reason: str, *, http1: bool) -> http.Response:
    """An answer that says in one sentence why there is no other."""
    headers = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}
    if http1:
        headers["connection"] = "close"
    response = http.Response.make(status, f"osmoda: {reason}\n", headers)
    response.http_version = "HTTP/1.1" if http1 else "HTTP/2.0"
    return response


class Stream(HttpStream):
    """A request is judged when its head is there; then its body is passed on piece by piece, and so is the answer."""

    def __init__(self, context: Context, stream_id: int, adopted: Adopted) -> None:
        super().__init__(context, stream_id)
        self._adopted = adopted
        self._started = False  # whether the client has something of an answer
        self._bodiless = False
        self._flushing: commands.RequestWakeup | None = None
        self._revoking: commands.RequestWakeup | None = None
        self.work: Work

    def waiting(self) -> int:
        """Bytes of its body that wait for a server to be there."""
        if self._paused is None:
            return 0
        return sum(len(event.data) for event in self._paused_event_queue if isinstance(event, RequestData))

    def revocation(self, refusal: Refusal) -> events.Wakeup:
        """What to have it told, for it to be reset."""
        self.work.refusal = refusal
        self._revoking = commands.RequestWakeup(0)
        return events.Wakeup(self._revoking)

    @override
    def _handle_event(self, event: events.Event) -> Commands:
        if not isinstance(event, events.Wakeup):
            yield from super()._handle_event(event)
        elif event.command is self._revoking:
            refusal, self.work.refusal = self.work.refusal, None
            if refusal is not None and self.client_state != self.state_errored:
                yield from self._break_off(refusal, "revoked")
        elif event.command is self._flushing:
            self._flushing = None
            if self.client_state == self.state_stream_request_body:
                yield from self._flush()

    # --- the request ---

    @override
    def state_wait_for_request_headers(self, event: Any) -> Commands:
        self._bodiless = event.end_stream
        yield from super().state_wait_for_request_headers(event)

    @override
    def check_invalid(self, request: bool) -> Commands:
        if not request:
            return (yield from self._check_answer())
        adopted, asked = self._adopted, self.flow.request
        adopted.begun()
        self.work = Work(adopted.flow, asked)
        self.flow.metadata["work"] = self.work
        adopted.working.add(self.work)
        refusal = self.work.begin(asked, adopted.grants, bodiless=self._bodiless)
        if refusal is None and validate_request(self.mode, asked, validate_inbound_headers=True):
            refusal = Refusal(400, "the request has headers that servers do not agree about")
        if refusal is not None:
            yield from self._refuse(refusal)
            return True
        if not asked.is_http2:
            asked.authority = ""
        asked.stream = True
        return False

    @override
    def check_killed(self, emit_error_hook: bool) -> Commands:
        refusal, self.work.refusal = self.work.refusal, None
        if refusal is not None:
            yield from self._refuse(refusal)
            return True
        return (yield from super().check_killed(emit_error_hook))

    @override
    def make_server_connection(self) -> Commands:
        flow = self._adopted.flow
        connection, error = yield GetHttpConnection((flow.name, flow.port), flow.tls, None, "tcp")
        if error:
            yield from self._fail(error)
            return False
        self.context.server = self.flow.server_conn = connection
        return True

    @override
    def start_request_stream(self) -> Commands:
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        request, server = self.flow.request, self.context.server
        headers = request.headers
        if server.alpn != b"h2" and "content-length" not in headers and "transfer-encoding" not in headers:
            # HTTP/2 needs no length; HTTP/1 would take such a body for the next request, which nobody has judged.
            headers["transfer-encoding"] = "chunked"
        yield SendHttp(RequestHeaders(self.stream_id, request, end_stream=False), server)
        self.client_state = self.state_stream_request_body

    @override
    def state_stream_request_body(self, event: Any) -> Commands:
        if isinstance(event, RequestData):
            piece = self.work.piece(event.data)
            self._adopted.account(self.work)
            if isinstance(piece, Refusal):
                yield from self._break_off(piece)
                return
            if piece:
                yield SendHttp(RequestData(self.stream_id, piece), self.context.server)
            if self.work.swap.holds and self._flushing is None:
                self._flushing = commands.RequestWakeup(_HELD)
                yield self._flushing
            return
        if isinstance(event, RequestTrailers):
            refusal = self.work.watched(b"\n".join([b"\n".join(field) for field in event.trailers.fields]))
            if refusal is not None:
                yield from self._break_off(refusal)
                return
        elif isinstance(event, RequestEndOfMessage):
            held = self.work.finish()
            if isinstance(held, Refusal):
                yield from self._break_off(held)
                return
            if held:
                yield SendHttp(RequestData(self.stream_id, held), self.context.server)
        yield from super().state_stream_request_body(event)

    def _flush(self) -> Commands:
        """Pass on what looked like the beginning of a placeholder: the server may be waiting for it."""
        held = self.work.flush()
        if isinstance(held, Refusal):
            yield from self._break_off(held)
        elif held:
            yield SendHttp(RequestData(self.stream_id, held), self.context.server)

    # --- the answer ---

    def _check_answer(self) -> Commands:
        response = self.flow.response
        assert response is not None
        if 100 <= response.status_code < 200 and response.status_code != 101:
            yield commands.CloseConnection(self.flow.server_conn)
            yield from self._fail(f"it announced an answer ({response.status_code}) that nobody had asked for")
            return True
        return (yield from super().check_invalid(False))

    @override
    def start_response_stream(self) -> Commands:
        self._answered()
        yield from super().start_response_stream()

    @override
    def state_stream_response_body(self, event: Any) -> Commands:
        if isinstance(event, ResponseData):
            self.work.moved += len(event.data)
            self._adopted.account(self.work)
        yield from super().state_stream_response_body(event)

    @override
    def send_response(self, already_streamed: bool = False) -> Commands:
        self._answered()
        response = self.flow.response
        if self.client_state == self.state_done and response is not None and response.status_code != 101:
            # The client may have all of it before the next line is read: no edit cuts it any more.
            self._adopted.done(self.work)
        yield from super().send_response(already_streamed)

    def _answered(self) -> None:
        self._started = True
        response = self.flow.response
        assert response is not None
        self._adopted.record(self.work.record(response.status_code))

    @override
    def flow_done(self) -> Commands:
        if self.flow.websocket is None:
            self._adopted.done(self.work)
            yield from super().flow_done()
            return
        # mitmproxy's own layer keeps every message.
        self.child_layer = Messages(self.context, self.work, self._adopted)
        self._handle_event = self.passthrough  # type: ignore[method-assign]
        yield from self.child_layer.handle_event(events.Start())
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    # --- when it does not come to that ---

    @override
    def handle_protocol_error(self, event: Any) -> Commands:
        if self.client_state == self.state_errored and self.server_state == self.state_errored:
            yield DropStream(self.stream_id)
            return
        if isinstance(event, ResponseProtocolError) and not self._started:
            yield from self._fail(event.message)
            return
        failure = Refusal(0, event.message[:500], verdict="allow")
        self._adopted.done(self.work, failure)
        yield from super().handle_protocol_error(event)

    def _fail(self, reason: str) -> Commands:
        """The server could not be reached, or has not answered as it should."""
        flow = self._adopted.flow
        if self._adopted.overdue:
            reason = f"it did not finish its TLS handshake in time ({reason})"
        status = 504 if "in time" in reason else 502
        yield from self._answer(
            Refusal(status, f"{flow.name} port {flow.port}: {reason[:500]}", verdict="allow"), "failed"
        )

    def _refuse(self, refusal: Refusal) -> Commands:
        yield from self._answer(refusal, "refused")

    def _break_off(self, refusal: Refusal, action: str = "refused") -> Commands:
        """The server has got some of a request that may not go on."""
        yield SendHttp(RequestProtocolError(self.stream_id, refusal.reason, ErrorCode.CANCEL), self.context.server)
        if self._started:
            self._close(refusal, action)
            yield SendHttp(ResponseProtocolError(self.stream_id, refusal.reason, ErrorCode.KILL), self.context.client)
            yield DropStream(self.stream_id)
        else:
            yield from self._answer(refusal, action)

    def _answer(self, refusal: Refusal, action: str) -> Commands:
        self._close(refusal, action)
        asked, client = self.flow.request, self.context.client
        http1 = not asked.is_http2
        response = explanation(refusal.status, refusal.reason, http1=http1)
        self.flow.response = response
        content = response.raw_content if asked.method != "HEAD" else b""
        yield SendHttp(ResponseHeaders(self.stream_id, response, not content), client)
        if content:
            yield SendHttp(ResponseData(self.stream_id, content), client)
        if http1:
            self._adopted.linger()
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        yield SendHttp(ResponseProtocolError(self.stream_id, FINISHED, ErrorCode.CANCEL), client)
        yield DropStream(self.stream_id)

    def _close(self, refusal: Refusal, action: str) -> None:
        adopted, work = self._adopted, self.work
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        adopted.record(work.record(refusal.status, refusal, action, again=True))
        adopted.done(work)


class Messages(layer.Layer):
    """A websocket, both ways; what the client says is looked through for placeholders, and no secret is put in."""

    def __init__(self, context: Context, work: Work, adopted: Adopted) -> None:
        super().__init__(context)
        self._work = work
        self._adopted = adopted
        self._frames = Frames() if work.watches else None

    @override
    def _handle_event(self, event: events.Event) -> Commands:
        client, server = self.context.client, self.context.server
        if isinstance(event, events.DataReceived):
            self._work.moved += len(event.data)
            self._adopted.account(self._work)
            if event.connection == client:
                refusal = self._refusal(event.data)
                if refusal is not None:
                    self._adopted.record(self._work.record(101, refusal, "refused", again=True))
                    yield from self._end()
                    return
                yield commands.SendData(server, event.data)
            else:
                yield commands.SendData(client, event.data)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._end()

    def _refusal(self, content: bytes) -> Refusal | None:
        if self._frames is None:
            return None
        try:
            return self._work.watched(self._frames.feed(content))
        except BadFrame as error:
            return Refusal(403, f"{error}, and cannot be looked through for secrets", self._work.rule)

    def _end(self) -> Commands:
        self._adopted.done(self._work)
        self._handle_event = self._over  # type: ignore[method-assign]
        yield commands.CloseConnection(self.context.server)
        yield commands.CloseConnection(self.context.client)

    def _over(self, event: events.Event) -> Commands:
        yield from ()
