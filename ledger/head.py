"""Signed lines: the head of a ledger, and the seal of a segment.

A head says how far a ledger had come at one moment. Whoever keeps one elsewhere can prove later what was on the ledger
then. The id of a ledger is the digest of its first event, which holds the public key: no other key signs for it.

A line is accepted only in the very form in which it is written, so that no byte of it can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from osmoda.ledger.errors import LedgerError

if TYPE_CHECKING:
    from typing import Self

_HEAD = "osmoda-ledger-head-1"
_SEAL = "osmoda-ledger-seal-1"


@dataclass(frozen=True, slots=True)
class Head:
    """Event `seq`, written at `time` (ns since the epoch), was the last of the ledger `ledger`, and had this digest."""

    ledger: bytes
    seq: int
    time: int
    digest: bytes
    key: bytes
    signature: bytes = b""

    def _signed(self) -> str:
        return f"{_HEAD} {self.ledger.hex()} {self.seq} {self.time} {self.digest.hex()} {self.key.hex()}"

    def sign(self, key: Ed25519PrivateKey) -> Self:
        return type(self)(self.ledger, self.seq, self.time, self.digest, self.key, key.sign(self._signed().encode()))

    def line(self) -> str:
        """One line of ASCII, with its end."""
        return f"{self._signed()} {self.signature.hex()}\n"

    @classmethod
    def read(cls, line: str, what: str) -> Self:
        """The other way round. Raises LedgerError unless it is whole and signed with the key that it names."""
        try:
            word, ledger, seq, time, digest, key, signature = line.split(" ")
            found = cls(*_values(ledger, seq, time, digest, key, signature))
        except ValueError:
            raise LedgerError(f"{what} is no signed head of a ledger") from None
        if word != _HEAD or found.line() != line:
            raise LedgerError(f"{what} is no signed head of a ledger")
        _verify(found.key, found.signature, found._signed(), what)
        return found


@dataclass(frozen=True, slots=True)
class Seal:
    """Segment `number`: events `first` to `last`, the digest of the last one, SHA-256 and size (bytes) of the file."""

    ledger: bytes
    number: int
    first: int
    last: int
    digest: bytes
    file: bytes
    size: int
    signature: bytes = b""

    def _signed(self) -> str:
        numbers = f"{self.number} {self.first} {self.last}"
        return f"{_SEAL} {self.ledger.hex()} {numbers} {self.digest.hex()} {self.file.hex()} {self.size}"

    def sign(self, key: Ed25519PrivateKey) -> Self:
        values = (self.ledger, self.number, self.first, self.last, self.digest, self.file, self.size)
        return type(self)(*values, key.sign(self._signed().encode()))

    def line(self) -> str:
        """One line of ASCII, with its end."""
        return f"{self._signed()} {self.signature.hex()}\n"

    @classmethod
    def read(cls, line: str, key: bytes, what: str) -> Self:
        """The other way round. Raises LedgerError unless it is whole and signed with `key`."""
        try:
            word, ledger, number, first, last, digest, file, size, signature = line.split(" ")
            ends = (int(number), int(first), int(last))
            hashes = (bytes.fromhex(digest), bytes.fromhex(file))
            found = cls(bytes.fromhex(ledger), *ends, *hashes, int(size), bytes.fromhex(signature))
        except ValueError:
            raise LedgerError(f"{what} is no seal of a segment") from None
        if word != _SEAL or found.line() != line:
            raise LedgerError(f"{what} is no seal of a segment")
        _verify(key, found.signature, found._signed(), what)
        return found

    def body(self) -> dict[str, object]:
        """The same as the first event of the segment that follows has it."""
        return {
            "segment": self.number,
            "first": self.first,
            "last": self.last,
            "digest": self.digest.hex(),
            "file": self.file.hex(),
            "size": self.size,
        }


def _values(
    ledger: str, seq: str, time: str, digest: str, key: str, signature: str
) -> tuple[bytes, int, int, bytes, bytes, bytes]:
    ends = bytes.fromhex(signature)
    return bytes.fromhex(ledger), int(seq), int(time), bytes.fromhex(digest), bytes.fromhex(key), ends


def _verify(key: bytes, signature: bytes, signed: str, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed.encode())
    except (InvalidSignature, ValueError):
        raise LedgerError(f"{what} is not signed with the ledger's key") from None
