"""The resolver of a sandbox: DNS message in, DNS message out, and nothing is ever asked of anybody else.

Whether a name exists here is for `lookup` to say, from the policy and the sandbox's own table of addresses. It only
ever sees canonical names: lower case, ASCII, letters, digits, hyphens and underscores in parts of 1 to 63, no dot at
the end, and no last part that is a number. What a program could carry out in a question (TXT, ANY, odd bytes) ends
here.

Messages are as in RFC 1035 and RFC 6891, reasons as in RFC 8914. Reading is dnspython's. An answer is the question as
it came (with the case of its letters, which some clients draw as a nonce), at most one record and at most one OPT, and
is put together here: with the library's renderer one takes 0.3 ms instead of 0.04, on a loop that others wait for.

**Which rcode.** A name that may not be reached is best answered NXDOMAIN. None of the rcodes makes glibc 2.36, curl,
Java or c-ares wait: all of them give up within 20 ms. But for REFUSED and SERVFAIL glibc asks everything twice (4
queries and records instead of 2) and says "Temporary failure in name resolution", which invites programs to try again;
for NXDOMAIN it says "Name or service not known". Without an SOA record none of it is cached (RFC 2308, section 5), so
an edited profile counts at once. REFUSED is for what may be otherwise in a moment (a budget, a full table), and for
types that an allowed name is not asked for: NXDOMAIN there would deny the name itself.
"""

from __future__ import annotations

import re
from struct import Struct, error
from typing import TYPE_CHECKING, NamedTuple

import dns.edns
import dns.exception
import dns.flags
import dns.ipv4
import dns.ipv6
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.wire

from osmoda.host.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_QUERY = 4096
"""Bytes of the longest query that is read; a real one has a few hundred at most."""

UDP_PAYLOAD = 1232
"""Bytes of the longest answer over UDP, whatever the client could take (DNS Flag Day 2020)."""

MOST_TEXT = 512
"""Bytes of the longest reason given in an answer."""

FILTERED = int(dns.edns.EDECode.FILTERED)
PROHIBITED = int(dns.edns.EDECode.PROHIBITED)
NOT_SUPPORTED = int(dns.edns.EDECode.NOT_SUPPORTED)

# Plain numbers: members of an enum are slow to compare and to pack.
_IN = int(dns.rdataclass.IN)
_A, _AAAA = int(dns.rdatatype.A), int(dns.rdatatype.AAAA)
_PTR, _OPT = int(dns.rdatatype.PTR), int(dns.rdatatype.OPT)
_FALLS_BACK = {
    int(kind)
    for kind in (
        dns.rdatatype.HTTPS,
        dns.rdatatype.SVCB,
        dns.rdatatype.SRV,
        dns.rdatatype.MX,
        dns.rdatatype.NAPTR,
        dns.rdatatype.CNAME,
    )
}
"""Types without which a client goes on with the address: these are said not to be there, and so there is no ECH key."""

_RCODES = {name: int(dns.rcode.from_text(name)) for name in ("NOERROR", "SERVFAIL", "NXDOMAIN", "REFUSED")}
_FORMERR, _NOTIMP, _BADVERS = int(dns.rcode.FORMERR), int(dns.rcode.NOTIMP), int(dns.rcode.BADVERS)

_QR, _OPCODE, _RD, _RA, _CD = 0x8000, 0x7800, int(dns.flags.RD), int(dns.flags.RA), int(dns.flags.CD)
_DO = int(dns.flags.DO)
_HEADER = Struct("!6H")
_RECORD = Struct("!HHHIH")  # a pointer to the question's name, type, class, TTL, length
_PSEUDO_RECORD = Struct("!BHHIH")  # the root, OPT, payload, rcode and version and flags, length
_OPTION = Struct("!HH")
_TO_QUESTION = 0xC000 | _HEADER.size

_LABEL = re.compile(rb"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@frozen
class Found:
    """The packed addresses of a name, empty for a family that it has none of; `ttl` in seconds."""

    ipv4: bytes
    ipv6: bytes
    ttl: int


@frozen
class Refused:
    """No address. `rcode` is "NXDOMAIN", "REFUSED", "SERVFAIL" or "NOERROR"; `code` an extended error's (RFC 8914)."""

    rcode: str
    code: int
    text: str


class _Question(NamedTuple):
    """`wire` is the question section as it came; `payload` is 0 without EDNS."""

    labels: tuple[bytes, ...]
    kind: int
    of_class: int
    wire: bytes
    payload: int
    version: int
    flags: int


def answer(
    query: bytes,
    lookup: Callable[[str], Found | Refused],
    *,
    tcp: bool,
    reverse: Callable[[bytes], str | None] | None = None,
    refused: Callable[[str, str], None] | None = None,
) -> bytes | None:
    """The answer to a message; None for one that deserves none: shorter than a header, or an answer itself.

    `reverse` gives the name that a packed address stands for. `refused(name, reason)` is told when `lookup` allows a
    name and it is the type of record asked for that is refused. Raises nothing of its own, whatever the bytes are.
    """
    if len(query) < _HEADER.size:
        return None
    number, flags, *_ = _HEADER.unpack_from(query)
    if flags & _QR:
        return None
    flags = _QR | _RA | flags & (_OPCODE | _RD | _CD)
    if flags & _OPCODE:
        return _HEADER.pack(number, flags | _NOTIMP, 0, 0, 0, 0)
    try:
        question = _read(query)
    except (dns.exception.DNSException, error):
        return _HEADER.pack(number, flags | _FORMERR, 0, 0, 0, 0)
    if question.version:
        return _message(number, flags, question, _BADVERS)
    result = _judge(question, lookup, reverse, refused)
    if isinstance(result, Refused):
        return _message(number, flags, question, _RCODES[result.rcode], reason=result, tcp=tcp)
    return _message(number, flags, question, 0, record=result)


# What is asked.


def _read(query: bytes) -> _Question:
    """One question and at most an OPT record after it. Raises DNSException or struct.error for anything else.

    That is checked before anything is read, so that no message has more than a name's worth of work in it.
    """
    if _HEADER.unpack_from(query)[2:5] != (1, 0, 0) or len(query) > MOST_QUERY:
        raise dns.exception.FormError
    parser = dns.wire.Parser(query, _HEADER.size)
    labels = parser.get_name().labels
    kind, of_class = parser.get_struct("!HH")
    wire = query[_HEADER.size : parser.current]
    # There is nothing before the first name that it could share a part with.
    if len(wire) != sum(map(len, labels)) + len(labels) + 4:
        raise dns.exception.FormError
    payload = version = flags = 0
    additional = _HEADER.unpack_from(query)[5]
    if additional == 1:
        root, kind_of_it, payload, version_and_flags, length = parser.get_struct("!BHHIH")
        if root != 0 or kind_of_it != _OPT:
            raise dns.exception.FormError
        version, flags = version_and_flags >> 16 & 0xFF, version_and_flags & 0xFFFF
        _check_options(parser.get_bytes(length))
        payload = max(payload, 512)  # RFC 6891, section 6.2.3
    if additional > 1 or parser.remaining():
        raise dns.exception.FormError
    return _Question(labels, kind, of_class, wire, payload, version, flags)


def _check_options(options: bytes) -> None:
    """They must be whole (RFC 6891, section 6.1.2); there is none that an answer from here would be changed by."""
    at = 0
    while at < len(options):
        at += 4 + _OPTION.unpack_from(options, at)[1]
    if at != len(options):
        raise dns.exception.FormError


def _canonical(labels: tuple[bytes, ...]) -> str | None:
    """The name as rules have it; None for what is not the name of a host or a service."""
    parts = labels[:-1]
    if not parts or not all(map(_LABEL.fullmatch, parts)):
        return None
    name = b".".join(parts).decode("ascii").lower()
    return None if _NUMBER.fullmatch(name, name.rfind(".") + 1) else name


# What is answered.


def _judge(
    question: _Question,
    lookup: Callable[[str], Found | Refused],
    reverse: Callable[[bytes], str | None] | None,
    refused: Callable[[str, str], None] | None,
) -> bytes | Refused:
    """A record from its type to its end, or a refusal."""
    if question.of_class != _IN:
        return Refused("REFUSED", NOT_SUPPORTED, "the resolver of the sandbox has records of the class IN only")
    name = _canonical(question.labels)
    if name is None:
        return Refused(
            "NXDOMAIN" if question.labels[:-1] else "REFUSED",
            PROHIBITED,
            "it is not the name of a host: no rule of the sandbox's profile could allow it",
        )
    if question.kind == _PTR:
        address = _address(question.labels)
        if address:
            found = reverse(address) if reverse is not None else None
            if found is None:
                return Refused("NXDOMAIN", PROHIBITED, "the address stands for no name in this sandbox")
            return _record(_PTR, 0, dns.name.from_text(found).to_wire() or b"")
    result = lookup(name)
    if isinstance(result, Refused):
        return result
    packed = {_A: result.ipv4, _AAAA: result.ipv6}.get(question.kind, b"")
    if packed:
        return _record(question.kind, result.ttl, packed)
    if question.kind in {_A, _AAAA}:
        return Refused("NOERROR", FILTERED, "the sandbox has no network of this address family")
    asked = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(question.kind))
    if question.kind in _FALLS_BACK:
        return Refused("NOERROR", FILTERED, f"names have addresses only in a sandbox, no {asked} records")
    text = f"{asked} records could carry anything in or out; in a sandbox names have addresses only (A and AAAA)"
    if refused is not None:
        refused(name, text)
    return Refused("REFUSED", PROHIBITED, text)


def _address(labels: tuple[bytes, ...]) -> bytes:
    """The packed address that a name below in-addr.arpa or ip6.arpa is for; empty when it is for none."""
    try:
        text = dns.reversename.to_address(dns.name.Name(labels))
    except dns.exception.DNSException:
        return b""
    return dns.ipv6.inet_aton(text) if ":" in text else dns.ipv4.inet_aton(text)


def _record(kind: int, ttl: int, content: bytes) -> bytes:
    return _RECORD.pack(_TO_QUESTION, kind, _IN, ttl, len(content)) + content


def _message(
    number: int,
    flags: int,
    question: _Question,
    rcode: int,
    *,
    record: bytes = b"",
    reason: Refused | None = None,
    tcp: bool = False,
) -> bytes:
    """An answer that fits its transport.

    A record always does, also into the 512 bytes of a client without EDNS; a reason is cut to what room there is, and
    left out without EDNS.
    """
    message = _HEADER.pack(number, flags | rcode & 0xF, 1, 1 if record else 0, 0, 1 if question.payload else 0)
    message += question.wire + record
    if not question.payload:
        return message
    options = b""
    if reason is not None:
        room = MOST_TEXT if tcp else min(question.payload, UDP_PAYLOAD) - len(message) - _PSEUDO_RECORD.size - 6
        text = reason.text.encode(errors="replace")[: min(room, MOST_TEXT)].decode(errors="ignore")
        option = dns.edns.EDEOption(dns.edns.EDECode.make(reason.code), text).to_wire() or b""
        options = _OPTION.pack(dns.edns.OptionType.EDE, len(option)) + option
    extended = rcode >> 4 << 24 | question.flags & _DO
    return message + _PSEUDO_RECORD.pack(0, _OPT, UDP_PAYLOAD, extended, len(options)) + options
