"""The reader of TLS hellos: the same result for any split, the name that was put in, and the one others would read."""

from __future__ import annotations

import re

from mitmproxy.tls import ClientHello

from osmoda.egress import usual_hello
from osmoda.egress.hello import (
    MOST_BYTES,
    Hello,
    HelloReader,
    MalformedHello,
    looks_like_tls,
    parse_hello,
)
from tests import client_hellos as make
from tests.fuzz.lane import Choices, cut, run

LABELS = re.compile(rb"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
NAMES = (
    b"example.com",
    b"EXAMPLE.com",
    b"a.b",
    b"localhost",
    b"xn--bcher-kva.example",
    b"127.0.0.1",
    b"a..b",
    b"a.0x",
    b"a." * 126 + b"b",
    b"a." * 126 + b"bc",
    b"a.b.",
)


def outcome(pieces: list[bytes]) -> Hello | str | None:
    """What a reader makes of the pieces: the hello, None, or the text of the error."""
    reader = HelloReader()
    found = None
    try:
        for piece in pieces:
            found = reader.feed(piece)
    except MalformedHello as error:
        return str(error)
    return found


def any_bytes(choices: Choices) -> None:
    check(choices.sizes(), choices.rest())


def any_message(choices: Choices) -> None:
    """Bytes behind a header that fits them, so that the parts within are reached."""
    segments, fragments = choices.sizes(), choices.sizes(1, 300)
    check(segments, make.records(b"\1" + make.vector(3, choices.rest()), fragments))


def well_formed(choices: Choices) -> None:
    """A hello from its parts: exactly they are found, however it is cut into records and segments."""
    whole, expected = build(choices)
    sizes = choices.sizes(4, 40)
    data = make.records(whole, sizes, version=choices.pick((b"\3\1", b"\3\3", b"\3\0")))
    if choices.number(15) == 15:  # an empty record before or within the others
        first = 5 + min(sizes[0], len(whole)) if sizes and choices.number(1) else 0
        data, expected = data[:first] + b"\x16\3\1\0\0" + data[first:], None if first < len(data) else expected
    found = check(choices.sizes(), data)
    if expected is None or len(data) > MOST_BYTES:
        assert isinstance(found, str)
    else:
        assert found == expected


def damaged(choices: Choices) -> None:
    data = bytearray(make.records(build(choices)[0], choices.sizes(1, 200)))
    for _ in range(choices.number(3) + 1):
        data[choices.number(len(data) - 1)] = choices.number(255)
    check(choices.sizes(), bytes(data))


def build(choices: Choices) -> tuple[bytes, Hello | None]:
    """A handshake message, and what it says; None where it is one to refuse."""
    name = choices.pick(NAMES) if choices.number(1) else choices.piece(40)
    protocols = tuple(choices.piece(12) or b"h2" for _ in range(choices.number(3)))
    versions = tuple(choices.number(0xFFFF) for _ in range(choices.number(3)))
    flags = choices.number(15)
    parts = [make.server_name(name)] if flags & 1 else []
    parts += [make.alpn(*protocols)] if protocols else []
    parts += [make.supported_versions(*versions)] if versions else []
    parts += [make.ech_outer(choices.piece(32), choices.piece(80) or b"\0")] if flags & 2 else []
    parts += [make.extension(21, bytes(choices.number(3000)))] if flags & 4 else []
    parts += [make.extension(0x0A0A, choices.piece(8))] if flags & 8 else []
    turn = choices.number(4)
    parts = parts[turn:] + parts[:turn]
    twins = [choices.pick(parts)] if parts and choices.number(7) == 7 else []
    twins += [make.server_name(b"other.example")] if twins and flags & 1 and choices.number(1) else []
    version = choices.pick((0x0303, 0x0301, 0x0302))
    whole = make.message(
        parts + twins, session=choices.piece(32), suites=choices.piece(30) * 2 or b"\0\1", version=version
    )
    if twins or (flags & 1 and not is_name(name)):
        return whole, None
    return whole, Hello(name.decode().lower() if flags & 1 else None, protocols, bool(flags & 2), versions, version)


def is_name(name: bytes) -> bool:
    """Whether it is a host name and no address, by another way than the code under test."""
    *_, last = name.split(b".")
    address = last.isdigit() or re.fullmatch(rb"0[xX][0-9a-fA-F]*", last)
    return bool(LABELS.fullmatch(name)) and len(name) < 254 and not address


def check(sizes: list[int], data: bytes) -> Hello | str | None:
    found = outcome([data])
    pieces = cut(data, sizes)
    assert outcome(pieces) == found, "it depends on how it is cut"
    assert looks_like_tls(pieces[0]) in (None, looks_like_tls(data)), "it takes back what it said"
    assert usual_hello.read(data) in (None, found), "the short way reads it differently"
    if isinstance(found, Hello):
        assert parse_hello(data) == found
        assert looks_like_tls(data) is True
        compare(data, found)
    return found


def compare(data: bytes, found: Hello) -> None:
    """Another parser reads the same name in what was accepted."""
    body, at = b"", 0
    while len(body) < 4 or len(body) < 4 + int.from_bytes(body[1:4]):
        size = int.from_bytes(data[at + 3 : at + 5])
        body += data[at + 5 : at + 5 + size]
        at += 5 + size
    assert at <= MOST_BYTES
    other = ClientHello(body[4:])
    assert (other.sni or "").lower() == (found.server_name or "")
    assert tuple(other.alpn_protocols) == found.alpn
    assert found.ech or all(kind not in (0xFE0D, 0xFFCE) for kind, _ in other.extensions)


MODES = (any_bytes, any_message, well_formed, damaged)


def one(data: bytes) -> None:
    choices = Choices(data)
    choices.pick(MODES)(choices)


if __name__ == "__main__":
    run(one)
