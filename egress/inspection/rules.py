"""Whether a request may be: what its head says, against the grants of its connection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from osmoda.egress.policy import Grant

MOST_OF_A_PATH = 8192
"""Bytes of a path that a path rule is compared with."""

# What some servers read as another path than the one that is compared: encoded separators, dots, NUL, percent signs and
# overlong UTF-8; escapes that are none; separators of another kind; empty segments.
_AMBIGUOUS = re.compile(rb"%(?:2f|5c|2e|00|25|c0|c1)|%(?![0-9a-f]{2})|\\|//|[\x00-\x20\x7f-\xff]|#", re.IGNORECASE)
_DOTS = re.compile(rb"(?:^|/)\.\.?(?:;[^/]*)?(?=/|$)")
_BODILESS = -1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not be, for the client and for the record: an HTTP status, a sentence, `file:line`."""

    status: int
    reason: str
    rule: str = ""
    verdict: str = "deny"


@dataclass(frozen=True, slots=True)
class Request:
    """What is judged. `hosts` are all its Host and `:authority` values; `length` is its Content-Length, -1 for none."""

    method: str
    target: bytes
    version: str
    hosts: Sequence[bytes]
    length: int
    upgrade: str


def misdirected(request: Request, name: str, port: int, rule: str) -> Refusal | None:
    """The refusal of a request that is not for the server that the connection was opened to."""
    if not request.hosts:
        if request.version == "HTTP/1.0":
            return None
        return Refusal(400, "the request names no host (Host), and HTTP/1.1 asks for one")
    for raw in request.hosts:
        if not is_host(raw, name, port):
            shown = raw[:100].decode("ascii", "backslashreplace")
            return Refusal(403, f"the request is for {shown!r}, and the connection for {name} port {port}", rule)
    return None


def is_host(raw: bytes, name: str, port: int) -> bool:
    """Whether `raw`, a Host or `:authority`, names exactly this host, and no other port."""
    host = f"[{name}]" if ":" in name else name
    text = raw.lower()
    return text in [spelling.encode() for spelling in (f"{host}:{port}", host, f"{host}.", f"{host}.:{port}")]


def judge(request: Request, grants: Sequence[Grant], name: str) -> tuple[tuple[Grant, ...], Refusal | None]:
    """The grants that allow the request, or the refusal of what none of them allows."""
    if request.method == "CONNECT":
        return (), Refusal(403, f"CONNECT is refused: {name} is no proxy", _origin(grants))
    if request.method == "TRACE":
        return (), Refusal(403, "TRACE is refused: its answer repeats the request, with secrets in it", _origin(grants))
    if request.upgrade and request.upgrade != "websocket":
        return (), Refusal(403, f"a change to {request.upgrade} is refused: only websocket can be looked into")
    if not grants:
        return (), Refusal(403, f"no rule allows {name} any more")
    allowed = [grant for grant in grants if not grant.methods or request.method in grant.methods]
    if not allowed:
        methods = ", ".join(sorted({method for grant in grants for method in grant.methods}))
        reason = f"{request.method} is not allowed for {name}: {_origin(grants)} allows only {methods}"
        return (), Refusal(403, reason, _origin(grants))
    path = request.target.partition(b"?")[0]
    for_path = [grant for grant in allowed if not grant.paths]
    with_paths = [grant for grant in allowed if grant.paths]
    if with_paths:
        trouble = ambiguity(path)
        if not trouble:
            text = path.decode("ascii")
            for_path += [grant for grant in with_paths if any(matches(pattern, text) for pattern in grant.paths)]
        if not for_path:
            reason = trouble or f"no path of {_origin(with_paths)} matches it"
            shown = path[:200].decode("ascii", "backslashreplace")
            return (), Refusal(
                403, f"{request.method} {shown} is not allowed for {name}: {reason}", _origin(with_paths)
            )
    fitting = tuple([grant for grant in for_path if grant.max_body < 0 or request.length <= grant.max_body])
    if not fitting:
        return (), too_large(for_path)
    return fitting, None


def matches(pattern: str, text: str) -> bool:
    """As `patterns.covers` for a `text` that is no pattern, in linear time."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, last = others
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def ambiguity(path: bytes) -> str:
    """Why servers may not agree about what `path` means; empty when they do."""
    if len(path) > MOST_OF_A_PATH:
        return f"it has more than {MOST_OF_A_PATH} bytes"
    found = _AMBIGUOUS.search(path) or _DOTS.search(path)
    if found is not None:
        return f"servers do not agree about {found[0].decode('ascii', 'backslashreplace')!r} in a path"
    if not path.startswith(b"/") and path != b"*":
        return "it does not begin with a slash"
    return ""


def most_body(grants: Iterable[Grant]) -> int:
    """Bytes that a body under these grants may have; -1 for no limit."""
    limits = [grant.max_body for grant in grants]
    return _BODILESS if min(limits, default=-1) < 0 else max(limits)


def too_large(grants: Sequence[Grant]) -> Refusal:
    """The refusal of a body that is larger than all of these allow."""
    most = max(grants, key=lambda grant: grant.max_body)
    return Refusal(413, f"{most.origin} allows bodies of {most.max_body} bytes (max_body)", most.origin)


def _origin(grants: Sequence[Grant]) -> str:
    return grants[0].origin if grants else ""
