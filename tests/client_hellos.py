"""TLS client hellos made to order: well-formed by default, with any part replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SERVER_NAME, ALPN, SUPPORTED_VERSIONS, ECH = 0, 16, 43, 0xFE0D


def vector(width: int, body: bytes) -> bytes:
    return len(body).to_bytes(width) + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, body)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    return extension(SERVER_NAME, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def alpn(*protocols: bytes) -> bytes:
    return extension(ALPN, vector(2, b"".join(vector(1, protocol) for protocol in protocols)))


def supported_versions(*versions: int) -> bytes:
    return extension(SUPPORTED_VERSIONS, vector(1, b"".join(version.to_bytes(2) for version in versions)))


def ech_outer(key: bytes = bytes(32), payload: bytes = bytes(64)) -> bytes:
    return extension(ECH, b"\0" + b"\0\1\0\1" + b"\7" + vector(2, key) + vector(2, payload))


def message(
    extensions: Iterable[bytes] | None = (),
    *,
    version: int = 0x0303,
    session: bytes = b"",
    suites: bytes = b"\x13\x01\x13\x02",
    compressions: bytes = b"\0",
    trailing: bytes = b"",
) -> bytes:
    """The handshake message; without a block of extensions where they are None."""
    body = version.to_bytes(2) + bytes(range(32)) + vector(1, session) + vector(2, suites) + vector(1, compressions)
    if extensions is not None:
        body += vector(2, b"".join(extensions))
    return b"\1" + vector(3, body + trailing)


def records(whole: bytes, sizes: Sequence[int] = (), *, kind: int = 22, version: bytes = b"\3\1") -> bytes:
    """`whole` in records of `sizes` bytes, over and over; in one without."""
    out, at, turn = b"", 0, 0
    while at < len(whole):
        size = sizes[turn % len(sizes)] if sizes else len(whole)
        out += bytes([kind]) + version + vector(2, whole[at : at + size])
        at, turn = at + size, turn + 1
    return out


def hello(name: bytes = b"example.com", *more: bytes) -> bytes:
    """A whole hello in one record, as a client sends it."""
    return records(message([server_name(name), *more]))
