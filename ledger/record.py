"""One event as bytes: what is hashed, stored and read back.

    seq, time, uid, pid, client, counter, length of kind, length of body   (big-endian; 8, 8, 4, 4, 8, 8, 1, 4 bytes)
    kind                                                                    (ASCII)
    body                                                                    (JSON)

All lengths are stated, so no two events have the same bytes. The body is the JSON of RFC 8785: keys sorted, no space,
nothing escaped that need not be. To be sure of that without a slow encoder, what JSON has more than one habit of
writing is refused: numbers that are no integers, integers beyond 2^53, keys that are not ASCII, lone surrogates.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_BODY = 64 << 10
"""Bytes of one body."""

MOST_DEPTH = 8
ZERO = bytes(32)
"""What stands for the digest before the first event."""

OWN = ("ledger", "segment")
"""Kinds that only the ledger writes: its first event, and the first one of each further segment."""

KIND = re.compile(r"[a-z][a-z-]{0,30}")
_OTHERWISE = "it is not written as the ledger writes events"
_HEAD = struct.Struct(">QqIIQQBI")
_SIZE = _HEAD.size
_unpack = _HEAD.unpack_from
DOMAIN = b"osmoda ledger 1\0"
"""What is hashed before each event: nothing else that SHA-256 is made of is one."""

_MOST_INTEGER = 1 << 53


def _no_float(text: str) -> float:
    raise ValueError(f"{text} is no integer")


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(float_hook=_no_float).decode
_sha256 = hashlib.sha256


class Event(NamedTuple):
    """One event. `time` is ns since the epoch by the ledger's clock; `uid` and `pid` are the writer's, by the kernel.

    `client` and `counter` name it for its writer: what is sent twice is written once.
    """

    seq: int
    time: int
    uid: int
    pid: int
    client: int
    counter: int
    kind: str
    body: dict[str, Any]


def canonical(fields: Mapping[str, object]) -> bytes:
    """The body of an event. Raises LedgerError for what has no one way to be written, or is too long."""
    _check(fields, 0)
    try:
        body = _encode(fields)
    except (UnicodeEncodeError, TypeError) as error:
        raise LedgerError(f"an event holds what cannot be written: {error}") from None
    if len(body) > MOST_BODY:
        raise LedgerError(f"an event of {len(body)} bytes is too long for the ledger; the most is {MOST_BODY}")
    return body


def _check(value: object, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -_MOST_INTEGER < value < _MOST_INTEGER:  # type: ignore[operator]
            raise LedgerError(f"an event holds {value}, and integers are below 2^53")
        return
    if depth >= MOST_DEPTH:
        raise LedgerError(f"an event is nested more than {MOST_DEPTH} deep")
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or not key.isascii():
                raise LedgerError(f"an event has the key {key!r}, and keys are ASCII text")
            _check(item, depth + 1)
    elif kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]
            _check(item, depth + 1)
    else:
        raise LedgerError(
            f"an event holds a {kind.__name__}; texts, integers, truth values, lists and tables are written"
        )


def encode(seq: int, time: int, uid: int, pid: int, client: int, counter: int, kind: str, body: bytes) -> bytes:
    """The bytes of an event whose `body` is canonical."""
    return _HEAD.pack(seq, time, uid, pid, client, counter, len(kind), len(body)) + kind.encode() + body


def decode(record: bytes) -> Event:
    """The event of these bytes. Raises LedgerError where they are not exactly what `encode` makes of it."""
    try:
        seq, time, uid, pid, client, counter, named, long = _unpack(record)
        kind = record[_SIZE : _SIZE + named].decode("ascii")
        raw = record[_SIZE + named :]
        body = _decode(raw)
        if len(raw) != long or type(body) is not dict or not KIND.fullmatch(kind) or _encode(body) != raw:
            raise LedgerError(_OTHERWISE)
    except (struct.error, UnicodeError, msgspec.DecodeError, RecursionError) as error:
        raise LedgerError(f"it is no event: {error}") from None
    return Event(seq, time, uid, pid, client, counter, kind, body)


def examine(record: bytes) -> tuple[int, int]:
    """`seq` and `time` of an event. Raises LedgerError exactly where `decode` does; twice as fast."""
    try:
        seq, time, _, _, _, _, named, long = _unpack(record)
        body = named + _SIZE
        raw = record[body:]
        if record[_SIZE:body] not in _seen:
            _remember(record[_SIZE:body])
        if len(raw) != long or raw[:1] != b"{" or _encode(_decode(raw)) != raw:
            raise LedgerError(_OTHERWISE)
    except (struct.error, UnicodeError, msgspec.DecodeError, RecursionError) as error:
        raise LedgerError(f"it is no event: {error}") from None
    return seq, time


_seen: set[bytes] = set()


def _remember(kind: bytes) -> None:
    """Kinds are few; each is looked at once. Raises LedgerError."""
    if not KIND.fullmatch(kind.decode("ascii")):
        raise LedgerError(_OTHERWISE)
    _seen.add(kind)


def name_of(record: bytes) -> tuple[int, int]:
    """`client` and `counter` of an event, without the rest."""
    _, _, _, _, client, counter, _, _ = _unpack(record)
    return client, counter


def digest(previous: bytes, record: bytes) -> bytes:
    """SHA-256 of what the ledger is up to and with `record`; `previous` is that of the event before, or ZERO."""
    return _sha256(DOMAIN + previous + record).digest()
