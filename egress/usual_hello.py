"""The TLS hello as nearly every client sends it, whole and in one record, read in one pass.

A connection's first bytes are the dearest part of it in Python. This takes a third of what HelloReader takes, and says
nothing about anything unusual: what it does not read, or doubts, is for the reader. What it does read is what the
reader makes of the same bytes; a test compares them.
"""

from __future__ import annotations

from osmoda.egress.hello import MOST_BYTES, Hello, MalformedHello, host_name, read_protocols, read_versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Extensions that the reader alone judges: encrypted hellos, their drafts, and what stands only within one.
_UNUSUAL = frozenset((0xFE0D, 0xFFCE, 0xFF02, 0xFE08, 0xFE09, 0xFE0A, 0xFE0B, 0xFE0C, 0xFD00))
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
_MOST_KEPT = 256
_MOST_LENGTH = 256  # of what is kept, in bytes

_names: dict[bytes, str] = {}
_protocols: dict[bytes, tuple[bytes, ...]] = {}
_versions: dict[bytes, tuple[int, ...]] = {}


def read(data: bytes) -> Hello | None:
    """The hello that `data` begins with; None when that is for the reader to say."""
    try:
        return _read(data)
    except (IndexError, MalformedHello):
        return None


def _read(data: bytes) -> Hello | None:
    # A handshake record of version 3.0 to 3.3 that holds the message client_hello of version 3.3, and nothing else.
    size = data[3] << 8 | data[4]
    end = 5 + size
    if data[0] != 22 or data[1] != 3 or data[2] > 3 or end > MOST_BYTES or end > len(data):
        return None
    if data[5] != 1 or (data[6] << 16 | data[7] << 8 | data[8]) != size - 4 or data[9] != 3 or data[10] != 3:
        return None
    at = 43  # behind the random number
    if data[at] > 32:
        return None
    at += 1 + data[at]
    suites = data[at] << 8 | data[at + 1]
    at += 2 + suites
    # Uncompressed alone, and then extensions up to the end.
    if not suites or suites % 2 or data[at] != 1 or data[at + 1] or at + 4 + (data[at + 2] << 8 | data[at + 3]) != end:
        return None
    at += 4
    starts: dict[int, int] = {}
    count = 0
    while at < end:
        start = at + 4
        starts[data[at] << 8 | data[at + 1]] = start
        at = start + (data[at + 2] << 8 | data[at + 3])
        count += 1
    if at != end or len(starts) != count or not _UNUSUAL.isdisjoint(starts):
        return None
    name = None
    start = starts.get(_SERVER_NAME, 0)
    if start:
        length = data[start - 2] << 8 | data[start - 1]
        if (data[start] << 8 | data[start + 1]) != length - 2 or data[start + 2] or length < 6:
            return None
        if (data[start + 3] << 8 | data[start + 4]) != length - 5:
            return None
        name = _kept(_names, host_name, data[start + 5 : start + length])
    protocols, versions = starts.get(_ALPN, 0), starts.get(_SUPPORTED_VERSIONS, 0)
    return Hello(
        name,
        _kept(_protocols, read_protocols, _body(data, protocols)) if protocols else (),
        False,
        _kept(_versions, read_versions, _body(data, versions)) if versions else (),
    )


def _body(data: bytes, start: int) -> bytes:
    return data[start : start + (data[start - 2] << 8 | data[start - 1])]


def _kept[T](kept: dict[bytes, T], read: Callable[[bytes], T], raw: bytes) -> T:
    """`read(raw)`, from what is kept where it has been read before. Raises what it raises."""
    found = kept.get(raw)
    if found is None:
        found = read(raw)
        if len(raw) <= _MOST_LENGTH:
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            kept[raw] = found
    return found
