"""What a websocket client says, unmasked: the payload of its frames as they come (RFC 6455, section 5.2)."""

from __future__ import annotations


class BadFrame(ValueError):
    """No frame that can be looked into; the text says why."""


class Frames:
    """Reads frames as they come in, and keeps nothing but the beginning of a header."""

    __slots__ = ("_at", "_header", "_left", "_mask")

    def __init__(self) -> None:
        self._header = b""
        self._left = 0  # bytes of payload that are still to come
        self._mask = b""
        self._at = 0  # where in the mask they go on

    def feed(self, some: bytes) -> bytes:
        """The payload in `some`, of one or several frames. Raises BadFrame."""
        found = []
        rest = memoryview(some)
        while rest:
            if not self._left:
                taken = self._read_header(rest)
                rest = rest[taken:]
                continue
            piece = rest[: self._left]
            rest = rest[len(piece) :]
            self._left -= len(piece)
            found.append(self._unmasked(piece))
        return b"".join(found)

    def _read_header(self, rest: memoryview) -> int:
        """How much of `rest` the header takes; it is complete when `_header` is empty again."""
        taken = 0
        while taken < len(rest):
            self._header += rest[taken : taken + 1]
            taken += 1
            header = self._header
            if len(header) < 2:
                continue
            if header[0] & 0x70:
                raise BadFrame("a message of the websocket is compressed, or extended in another way")
            if not header[1] & 0x80:
                raise BadFrame("a message of the websocket's client is not masked")
            wide = {126: 2, 127: 8}.get(header[1] & 0x7F, 0)
            if len(header) < 2 + wide + 4:
                continue
            self._left = int.from_bytes(header[2 : 2 + wide]) if wide else header[1] & 0x7F
            self._mask = header[2 + wide :]
            self._at = 0
            self._header = b""
            break
        return taken

    def _unmasked(self, piece: memoryview) -> bytes:
        size = len(piece)
        mask = self._mask[self._at :] + self._mask[: self._at]
        self._at = (self._at + size) % 4
        repeated = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(piece) ^ int.from_bytes(repeated)).to_bytes(size)
