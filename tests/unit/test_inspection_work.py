"""What is done with one request apart from the wire: a body never becomes longer or shorter than its head says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mitmproxy import http

from osmoda.egress.inspection.rules import Refusal
from osmoda.egress.inspection.work import Work
from osmoda.egress.policy import Grant

STAND_IN, VALUE = "kQgwuWNiqDVHA/F2PJLVU", "wJalrXUt/FEMI/K7MDENG"
SMUGGLED = b"DELETE /forbidden HTTP/1.1\r\nHost: api.example\r\nContent-Length: 0\r\n\r\n"


def begun(body: bytes, *, value: str = VALUE, version: str = "HTTP/1.1", length: int | None = None):
    """A request with `body` as far as its head, and what its head was answered with."""
    grant = Grant("api.example", (443,), methods=("POST",), secret="KEY", origin="p.toml:8")
    flow = SimpleNamespace(name="api.example", port=443, tls=True, secrets=(("KEY", STAND_IN, value),))
    size = str(len(body) if length is None else length)
    request = http.Request.make(
        "POST", "https://api.example/allowed", b"", {"host": "api.example", "content-length": size}
    )
    request.headers["content-length"] = size
    request.http_version = version
    work = Work(flow, request)
    return work, request, work.begin(request, (grant,), bodiless=False)


def passed_on(work: Work, *pieces: bytes) -> bytes | Refusal:
    out = b""
    for piece in pieces:
        made = work.piece(piece)
        if isinstance(made, Refusal):
            return made
        out += made
    rest = work.finish()
    return rest if isinstance(rest, Refusal) else out + rest


def test_a_placeholder_becomes_the_value_and_the_length_stays():
    body = b"key=" + STAND_IN.encode() + b"&a=b"
    work, request, refusal = begun(body)
    assert refusal is None
    assert request.headers["content-length"] == str(len(body))
    assert passed_on(work, body[:9], body[9:]) == body.replace(STAND_IN.encode(), VALUE.encode())


def test_a_placeholder_that_would_make_the_body_longer_sends_nothing_of_what_is_too_long():
    encoded = b"%%%02x" % STAND_IN.encode()[0] + STAND_IN[1:].encode()
    body = encoded * 40 + SMUGGLED
    work, _, refusal = begun(body)
    assert refusal is None
    made = passed_on(work, body)
    assert isinstance(made, Refusal)
    assert made.status == 400
    assert "percent-encoded" in made.reason


def test_a_placeholder_that_would_make_the_body_shorter_is_refused_at_its_end():
    plain = "wJalrXUtnFEMIxK7MDENG"  # nothing that has to be encoded
    body = b"".join(b"%%%02x" % byte for byte in STAND_IN.encode())
    work, _, refusal = begun(body, value=plain)
    assert refusal is None
    assert isinstance(passed_on(work, body), Refusal)


def test_another_length_is_sent_in_chunks():
    work, request, refusal = begun(STAND_IN.encode(), value="a-longer-value-than-its-placeholder")
    assert refusal is None
    assert "content-length" not in request.headers
    assert request.headers["transfer-encoding"] == "chunked"
    assert passed_on(work, STAND_IN.encode()) == b"a-longer-value-than-its-placeholder"


def test_another_length_is_refused_where_there_are_no_chunks():
    _, request, refusal = begun(SMUGGLED, value="a-longer-value-than-its-placeholder", version="HTTP/1.0")
    assert refusal is not None
    assert refusal.status == 411
    assert request.headers["content-length"] == str(len(SMUGGLED))


@pytest.mark.parametrize("target", [b"/forbidden /allowed", b"/a\tb", b"/a\x7f", b"/a\xff", b"http://evil/", b""])
def test_a_target_that_http_1_could_not_hold_is_refused(target):
    grant = Grant("api.example", (443,), methods=("POST",), origin="p.toml:8")
    flow = SimpleNamespace(name="api.example", port=443, tls=True, secrets=())
    request = http.Request.make("POST", "https://api.example/", b"", {"host": "api.example"})
    request.data.path = target
    refusal = Work(flow, request).begin(request, (grant,), bodiless=True)
    assert refusal is not None
    assert refusal.status == 400
