"""What is done with one request, apart from the wire: judged, rewritten, counted, recorded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from osmoda.egress.inspection.rules import Refusal, Request, judge, misdirected, most_body, too_large
from osmoda.egress.placeholders import Detect, Swap, credentials

if TYPE_CHECKING:
    from mitmproxy import http

    from osmoda.egress.inspection import InspectedConnection
    from osmoda.egress.policy import Grant

_SHOWN = 512  # characters of a path in a record


class Work:
    """One request on its way from client to server, and its answer on the way back."""

    def __init__(self, flow: InspectedConnection, request: http.Request) -> None:
        self.flow = flow
        self.grants: tuple[Grant, ...] = ()
        self.refusal: Refusal | None = None
        self.recorded = False
        self.moved = 0  # bytes that have not been told yet
        self.most = -1
        self._most_with_secrets = -1
        self.sent = 0
        self.length = -1  # what is passed on of its body has to be this long, to the byte
        self.passed = 0
        self.method = request.method[:32]
        self.path = request.data.path.partition(b"?")[0][:_SHOWN].decode("ascii", "backslashreplace")
        self.swap = Swap(())
        self._detect = Detect(())

    def begin(self, request: http.Request, grants: tuple[Grant, ...], *, bodiless: bool) -> Refusal | None:
        """Judge its head, and put in the secrets that belong there; or why it may not be.

        `bodiless`: it is known to have no body.
        """
        flow = self.flow
        asked = _asked(request)
        if isinstance(asked, Request) and bodiless and asked.length > 0:
            asked = Refusal(400, "the request has no body, but a Content-Length")
        if isinstance(asked, Refusal):
            return asked
        rule = grants[0].origin if grants else ""
        refusal = misdirected(asked, flow.name, flow.port, rule)
        if refusal is None:
            self.grants, refusal = judge(asked, grants, flow.name)
        if refusal is not None:
            return refusal
        self.most = most_body(self.grants)
        self._most_with_secrets = most_body([grant for grant in self.grants if grant.secret])
        if flow.secrets:
            return self._rewrite(request, asked)
        return None

    def still_allowed(self, grants: tuple[Grant, ...]) -> bool:
        """Whether one of `grants` is among those that it began under: an edit leaves what it still allows alone."""
        keys = {grant.key for grant in grants}
        self.grants = tuple([grant for grant in self.grants if grant.key in keys])
        return bool(self.grants)

    def _rewrite(self, request: http.Request, asked: Request) -> Refusal | None:
        own = {grant.secret for grant in self.grants if grant.secret}
        self.swap = Swap([(stand_in, value) for name, stand_in, value in self.flow.secrets if name in own])
        others = [(name, stand_in) for name, stand_in, _ in self.flow.secrets if name not in own]
        self._detect = Detect(others)
        everything = [(name, stand_in) for name, stand_in, _ in self.flow.secrets]
        path, question, query = request.data.path.partition(b"?")
        fields = request.headers.fields
        # Where no secret belongs, none may be; elsewhere, those of others may not.
        for places, looked_for in (
            ((path, *[name for name, _ in fields], request.method.encode()), Detect(everything)),
            ((query, *[value for _, value in fields]), self._detect),
        ):
            found = looked_for.text(b"\n".join(places))
            if found:
                return self._misplaced(found)
        for _, value in fields:
            found = self._detect.text(credentials(value))
            if found:
                return self._misplaced(found)
        if self.swap:
            request.data.path = path + question + self.swap.text(query)
            request.headers.fields = tuple(
                [(name, value if name.lower() in _FIXED else self.swap.header(value)) for name, value in fields]
            )
            if asked.upgrade:
                # Messages are looked through as they pass: compressed, nothing would be seen.
                request.headers.pop("sec-websocket-extensions", None)
            if asked.length > 0 and self.swap.even:
                self.length = asked.length
            elif asked.length > 0:
                # Its length is not known before it has been read.
                if not request.is_http11 and not request.is_http2:
                    return Refusal(
                        411, "a secret that is longer or shorter than its placeholder needs HTTP/1.1 or later"
                    )
                del request.headers["content-length"]
                if request.is_http11:
                    request.headers["transfer-encoding"] = "chunked"
        elif asked.upgrade and everything:
            request.headers.pop("sec-websocket-extensions", None)
        return None

    def _misplaced(self, secret: str) -> Refusal:
        flow = self.flow
        reason = f"what stands for the secret {secret} is on its way to {flow.name}, in a place where it may not be"
        return Refusal(403, reason, self.rule)

    def piece(self, content: bytes) -> bytes | Refusal:
        """What to pass on of a piece of its body; or why it may not go on."""
        self.sent += len(content)
        self.moved += len(content)
        if 0 <= self.most < self.sent:
            return too_large([grant for grant in self.grants if grant.max_body >= 0])
        if 0 <= self._most_with_secrets < self.sent and self.swap.used:
            # The rules that the secrets are from do not allow it, whatever others do.
            return too_large([grant for grant in self.grants if grant.secret and grant.max_body >= 0])
        found = self._detect.feed(content)
        if found:
            return self._misplaced(found)
        return self._fitting(self.swap.body(content)) if self.swap else content

    def flush(self) -> bytes | Refusal:
        """What was held back, when it has been long enough."""
        return self._fitting(self.swap.end())

    def finish(self) -> bytes | Refusal:
        """What is left to pass on when its body is over; or why it may not be."""
        return self._fitting(self.swap.end(), over=True)

    def _fitting(self, content: bytes, *, over: bool = False) -> bytes | Refusal:
        """`content`, if the body stays as long as its head says: the rest of it would be read as another request.

        A placeholder that is percent-encoded in part can become longer or shorter, even where the value does not.
        """
        self.passed += len(content)
        if self.length >= 0 and (self.passed > self.length or (over and self.passed != self.length)):
            reason = "a placeholder in the body of the request is percent-encoded, and the body has a Content-Length"
            return Refusal(400, reason, self.rule)
        return content

    def watched(self, content: bytes) -> Refusal | None:
        """Why what the client says in a websocket, or after its body, may not go on. No secret is put in there."""
        found = self._detect.feed(content)
        return self._misplaced(found) if found else None

    @property
    def watches(self) -> bool:
        """Whether there is anything to look for in what the client says."""
        return bool(self._detect)

    @property
    def rule(self) -> str:
        """`file:line` of the first grant that it falls under."""
        return self.grants[0].origin if self.grants else ""

    def record(
        self, status: int, refusal: Refusal | None = None, action: str = "", *, again: bool = False
    ) -> dict[str, object] | None:
        """The record of it; None when there is one already, unless there is more to say (`again`)."""
        if self.recorded and not again:
            return None
        self.recorded = True
        flow = self.flow
        return {
            "event": "request",
            "name": flow.name,
            "port": flow.port,
            "protocol": "tls" if flow.tls else "http",
            "method": self.method,
            "path": self.path,
            "status": status,
            "verdict": refusal.verdict if refusal is not None else "allow",
            "action": action or ("refused" if refusal is not None and refusal.verdict == "deny" else "inspected"),
            "reason": refusal.reason if refusal is not None else "",
            "rule": (refusal.rule if refusal is not None else "") or self.rule,
        }


# Fields by which a request is read: no value goes in there.
_FIXED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"te", b"trailer", b"expect")
)


# HTTP/2 can carry what would be several lines, or another request line, in HTTP/1.
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]*")
_TARGET = re.compile(rb"/[\x21-\x7e]*|\*")
_DECISIVE = frozenset((b"host", b"content-length", b"transfer-encoding"))
_BREAKS = re.compile(rb"[\r\n\0]")


def _asked(request: http.Request) -> Request | Refusal:
    headers = request.headers
    if not _METHOD.fullmatch(request.data.method) or not _TARGET.fullmatch(request.data.path):
        return Refusal(400, "the request has a method or a path that HTTP/1 could not hold")
    if any(_BREAKS.search(value) for _, value in headers.fields):
        return Refusal(400, "the request has a header with a line break or NUL in it")
    if any(b"_" in name and name.lower().replace(b"_", b"-") in _DECISIVE for name, _ in headers.fields):
        return Refusal(400, "the request has a header that some servers take for one that says where it ends")
    hosts = [value for name, value in headers.fields if name.lower() == b"host"]
    if request.data.authority:
        hosts.append(request.data.authority)
    lengths = headers.get_all("content-length")
    if len(lengths) > 1 or (lengths and not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 20)):
        return Refusal(400, "the Content-Length of the request is not one number")
    if lengths and "transfer-encoding" in headers:
        return Refusal(400, "the request has both Content-Length and Transfer-Encoding")
    upgrade = headers.get("upgrade", "").strip().lower()
    if request.is_http2 and (upgrade or "transfer-encoding" in headers):
        return Refusal(400, "a request of HTTP/2 has no Upgrade and no Transfer-Encoding")
    length = int(lengths[0]) if lengths else -1
    return Request(request.method, request.data.path, request.http_version, hosts, length, upgrade)
