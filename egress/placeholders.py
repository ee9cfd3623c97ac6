"""Placeholders of secrets in what a sandbox sends: put the value in their place, or notice them where they may not be.

All of it is bytes in, bytes out. A placeholder is random text that has no use of its own; what is noticed is that a
program sends it somewhere it was not given for.
"""

from __future__ import annotations

import binascii
import functools
import re
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

_BASIC = re.compile(rb"\s*basic\s+([A-Za-z0-9+/=_-]+)\s*", re.IGNORECASE)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNICODE = re.compile(rb"\\+u00([0-9A-Fa-f]{2})")
_SPACE = b" \t\r\n"
_FOLDED = 2  # a line break in base64 or hex may come after any character, as CR LF
_DEEPEST = 3  # escapes within escapes that are undone


def _escaped(text: bytes) -> bytes:
    """A pattern for `text` in which any character may be percent-encoded."""
    return b"".join([b"(?:" + re.escape(bytes([byte])) + b"|(?i:%%%02x))" % byte for byte in text])


@functools.lru_cache(256)
def _pattern(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """One of `names`, in a group of its own; the same for each request of a sandbox."""
    return re.compile(b"|".join([b"(" + _escaped(name) + b")" for name in names]) or b"(?!)")


class Swap:
    """Puts values in place of placeholders, in a header, a query, or a body that comes in pieces.

    It finds a placeholder that is written as it is, or percent-encoded in whole or in part; the value is then encoded
    likewise. In a header it also finds it in the credentials of Basic authentication. It does not find what is encoded
    otherwise (a body that is compressed, base64, JSON escapes): such a placeholder goes out as it is, and the server
    refuses it. A value is never looked into again, so one value cannot bring in another.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """`pairs` are placeholders with their values."""
        self._values = {placeholder.encode(): value.encode() for placeholder, value in pairs}
        # The longest first: one placeholder might begin another.
        self._names = sorted(self._values, key=len, reverse=True)
        self._pattern = _pattern(tuple(self._names))
        self._longest = max([3 * len(name) for name in self._names], default=0)
        self._starts = {name[:1] for name in self._names} | {b"%"}
        self._held = b""
        self.used = False
        """Whether a value has been put in."""

    def __bool__(self) -> bool:
        """Whether there is anything to put in."""
        return bool(self._names)

    @property
    def even(self) -> bool:
        """Whether values are as long as their placeholders: then, what is not percent-encoded keeps its length."""
        return all(len(name) == len(value) for name, value in self._values.items())

    def text(self, whole: bytes) -> bytes:
        """A query, or any text that is all there."""
        return self._pattern.sub(self._value, whole)

    def header(self, value: bytes) -> bytes:
        """The value of a header."""
        basic = _BASIC.fullmatch(value)
        if basic is not None:
            credentials = _decoded(basic[1])
            changed = self.text(credentials)
            if changed != credentials:
                return value[: basic.start(1)] + binascii.b2a_base64(changed, newline=False)
        return self.text(value)

    def body(self, piece: bytes) -> bytes:
        """What of a body can be passed on, now that `piece` has come.

        Only what could be the beginning of a placeholder is held back.
        """
        piece = self._held + piece
        made, end = [], 0
        for match in self._pattern.finditer(piece):
            made += [piece[end : match.start()], self._value(match)]
            end = match.end()
        kept = self._beginning(piece, end)
        self._held = piece[kept:]
        return b"".join([*made, piece[end:kept]])

    @property
    def holds(self) -> bool:
        """Whether something of a body is held back."""
        return bool(self._held)

    def end(self) -> bytes:
        """What was held back, when the body is over, or the rest of it does not come."""
        held, self._held = self._held, b""
        return held

    def _value(self, match: re.Match[bytes]) -> bytes:
        self.used = True
        value = self._values[self._names[(match.lastindex or 1) - 1]]
        return quote_from_bytes(value, safe="").encode() if b"%" in match[0] else value

    def _beginning(self, piece: bytes, at: int) -> int:
        """Where in `piece`, from `at`, a placeholder may have begun that its end cuts off."""
        at = max(at, len(piece) - self._longest + 1)
        for index in range(at, len(piece)):
            if piece[index : index + 1] in self._starts and any(_begins(piece, index, name) for name in self._names):
                return index
        return len(piece)


def _begins(piece: bytes, at: int, name: bytes) -> bool:
    """Whether `piece` from `at` on is the beginning of `name`, as far as it goes."""
    for byte in name:
        if at >= len(piece):
            return True
        if piece[at] == byte:
            at += 1
        elif piece[at] == ord("%") and (b"%%%02x" % byte).startswith(piece[at : at + 3].lower()):
            at += 3
        else:
            return False
    return at > len(piece)  # when all of it is there it has been found already; its last escape may be cut off


class Detect:
    r"""Notices placeholders in what comes in pieces, wherever the pieces begin and end.

    It finds them as they are, in any mixture of percent-encoding and JSON's `\u` escapes (three deep), and whole in
    base64 (either alphabet, any alignment, broken into lines) or hex (either case). It does not find them compressed,
    encrypted, spelled backwards or in an encoding of somebody's own: it is there for programs that are careless or led
    astray, and no bound for one that is determined. That one gains nothing, as a placeholder is not the secret.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        """`names` are secrets with their placeholders."""
        forms = _forms(tuple(names))
        self._plain, self._packed, self._hex = forms.plain, forms.packed, forms.hex
        # Of the encodings, six bytes for each character (`\u0041`) are the most, and so is hex of broken lines.
        longest = max([(6 + _FOLDED) * len(text) * _DEEPEST for text, _ in self._plain], default=0)
        self._overlap = longest
        self._tail = b""

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._plain)

    def feed(self, piece: bytes) -> str:
        """The secret whose placeholder is in what came so far, with `piece`; empty when there is none."""
        if not self._plain or not piece:
            return ""
        window = self._tail + piece
        self._tail = window[-self._overlap :]
        return self.text(window)

    def text(self, whole: bytes) -> str:
        """The same for a text that stands by itself."""
        found = _first(self._plain, whole) or _first(self._packed, whole) or _first(self._hex, whole.lower())
        if found:
            return found
        bare = whole.translate(None, _SPACE)
        if len(bare) != len(whole):
            found = _first(self._packed, bare) or _first(self._hex, bare.lower())
        undone = whole
        for _ in range(_DEEPEST):
            if found:
                break
            before = undone
            if b"%" in undone:
                undone = _PERCENT.sub(_character, undone)
            if b"\\" in undone:
                undone = _UNICODE.sub(_character, undone)
            if undone == before:
                break
            found = _first(self._plain, undone) or _first(self._packed, undone.translate(None, _SPACE))
        return found


class _Forms:
    """How placeholders may be written, with the secret that each stands for."""

    def __init__(self, names: tuple[tuple[str, str], ...]) -> None:
        self.plain: list[tuple[bytes, str]] = []
        self.packed: list[tuple[bytes, str]] = []
        self.hex: list[tuple[bytes, str]] = []
        for name, placeholder in names:
            text = placeholder.encode()
            self.plain.append((text, name))
            self.packed += [(form, name) for form in _base64_forms(text)]
            self.hex.append((text.hex().encode(), name))


_forms = functools.lru_cache(256)(_Forms)  # the same for each request of a sandbox


def _first(forms: list[tuple[bytes, str]], text: bytes) -> str:
    for form, name in forms:
        if form in text:
            return name
    return ""


def _character(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)])


def _base64_forms(text: bytes) -> set[bytes]:
    """What every base64 text that holds `text` holds, whatever stands before and after it."""
    forms = set()
    for before in range(3):
        encoded = binascii.b2a_base64(bytes(before) + text, newline=False).rstrip(b"=")
        # A character stands for six bits; those at the edges are shared with what is next to them.
        first = -(-before * 8 // 6)
        last = (before + len(text)) * 8 // 6
        forms |= {encoded[first:last], encoded[first:last].replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def credentials(value: bytes) -> bytes:
    """User and password in a header of Basic authentication; empty when it is none."""
    basic = _BASIC.fullmatch(value)
    return _decoded(basic[1]) if basic is not None else b""


def _decoded(encoded: bytes) -> bytes:
    """What is in base64, either alphabet, padded or not; empty when it is none."""
    standard = encoded.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return binascii.a2b_base64(standard + b"=" * (-len(standard) % 4))
    except ValueError:
        return b""
