"""Words of a value: quotes and C escapes as systemd has them (systemd.syntax(7), systemd.service(5) "Command lines").

A value is text; a word is text too, in which a byte that an escape made and that is not UTF-8 stands as a lone
surrogate, as `os.fsencode` takes it back.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHITESPACE = b" \t\n\r"
_SIMPLE = dict(zip(b"abfnrtvs\\\"'", b"\a\b\f\n\r\t\v \\\"'", strict=True))
_NUMERIC = re.compile(rb"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")


class Unbalanced(ValueError):
    """A quote that is not closed, or a backslash with nothing behind it."""


class Cursor:
    """A place in a value from which words are taken. An escape that is none stays as it is written, as in systemd."""

    def __init__(self, value: str) -> None:
        self._value = value.encode("utf-8", "surrogateescape")
        self._at = 0

    def next(self, *, unescape: bool = True) -> str | None:
        """The next word, its quotes taken away, or None behind the last. Separators after it are passed.

        `unescape`: C escapes are resolved; otherwise a backslash takes the next letter as it is. Raises Unbalanced.
        """
        value, at = self._value, self._skip(self._at)
        if at == len(value):
            self._at = at
            return None
        word = bytearray()
        quote = 0
        while at < len(value):
            letter = value[at]
            if letter == 0x5C:
                if at + 1 == len(value):
                    if quote:
                        raise Unbalanced
                    if unescape:  # systemd's second, tolerant reading keeps it
                        word += b"\\"
                        at += 1
                        break
                    raise Unbalanced
                at = self._escape(at + 1, word) if unescape else self._plain(at + 1, word)
            elif quote:
                if letter == quote:
                    quote = 0
                else:
                    word.append(letter)
                at += 1
            elif letter in b"'\"":
                quote = letter
                at += 1
            elif letter in _WHITESPACE:
                break
            else:
                word.append(letter)
                at += 1
        if quote:
            raise Unbalanced
        self._at = self._skip(at)
        return word.decode("utf-8", "surrogateescape")

    def take_separator(self) -> bool:
        """Pass a semicolon that stands alone and unquoted: whether there was one."""
        return self._take(b";")

    def take_escaped_semicolon(self) -> bool:
        r"""Pass `\;` that stands alone: the word ";" of a command line."""
        return self._take(b"\\;")

    def _take(self, token: bytes) -> bool:
        end = self._at + len(token)
        if self._value[self._at : end] != token or self._value[end : end + 1] not in (b"", b" ", b"\t", b"\n", b"\r"):
            return False
        self._at = self._skip(end)
        return True

    def _skip(self, at: int) -> int:
        while at < len(self._value) and self._value[at] in _WHITESPACE:
            at += 1
        return at

    def _plain(self, at: int, word: bytearray) -> int:
        word.append(self._value[at])
        return at + 1

    def _escape(self, at: int, word: bytearray) -> int:
        """Add what the escape whose backslash stands before `at` means: the place behind it."""
        simple = _SIMPLE.get(self._value[at])
        if simple is not None:
            word.append(simple)
            return at + 1
        match = _NUMERIC.match(self._value, at)
        resolved = _number(match) if match else None
        if match is None or resolved is None:
            word += b"\\" + self._value[at : at + 1]
            return at + 1
        word += resolved
        return match.end()


def _number(match: re.Match[bytes]) -> bytes | None:
    """The bytes of a numeric escape; None for NUL, and what is no character or byte."""
    byte, short, long, octal = match.groups()
    if byte or octal:
        number = int(byte, 16) if byte else int(octal, 8)
        return bytes([number]) if 0 < number < 256 else None
    number = int(short or long, 16)
    if not 0 < number <= 0x10FFFF or 0xD800 <= number <= 0xDFFF or 0xFDD0 <= number <= 0xFDEF:
        return None
    if number & 0xFFFE == 0xFFFE:
        return None
    return chr(number).encode()


def split(value: str, *, unescape: bool = True) -> Iterator[str]:
    """All words of a value; raises Unbalanced."""
    cursor = Cursor(value)
    while (word := cursor.next(unescape=unescape)) is not None:
        yield word


def quote(word: str) -> str:
    """A word as it has to be written for `split` to give it back; specifiers and variables are not escaped."""
    raw = word.encode("utf-8", "surrogateescape")
    if raw and not re.search(rb"[\x00-\x20\"'\\;\x7f-\xff]", raw):
        return word
    written = []
    for letter in word:
        if letter in '"\\':
            written.append("\\" + letter)
        elif "\udc80" <= letter <= "\udcff":
            written.append(f"\\x{ord(letter) - 0xDC00:02x}")
        elif letter < " " or letter == "\x7f":
            written.append(f"\\x{ord(letter):02x}")
        else:
            written.append(letter)
    return '"' + "".join(written) + '"'
