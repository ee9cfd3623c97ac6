"""The first message of a TLS client, read strictly: which name it asks for, and whether it hides another.

Nothing of it is believed before all of it is consistent: every length fits exactly, no extension comes twice, and what
two parsers could read differently is an error. RFC 8446 (TLS 1.3: sections 4.1.2 and 5.1), RFC 5246 (TLS 1.2), RFC 6066
(server_name), RFC 7301 (ALPN), RFC 9849 (encrypted_client_hello).
"""

from __future__ import annotations

from osmoda.host.frozen import frozen

MOST_BYTES = 16384
"""What a hello may take up with its record headers, in bytes. With post-quantum keys real ones have some 2,000."""

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""The record of the fatal alert access_denied(49): RFC 8446, section 6.2."""

_HANDSHAKE, _CLIENT_HELLO, _HOST_NAME = 22, 1, 0
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS, _OUTER_EXTENSIONS = 0, 16, 43, 0xFD00
_ECH = 0xFE0D
# What clients of the drafts send: ESNI, ECH 7, ECH 8 to 12. Servers that still read them would be led elsewhere.
_ECH_DRAFTS = (0xFFCE, 0xFF02, 0xFE08, 0xFE09, 0xFE0A, 0xFE0B, 0xFE0C)
_LABEL = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
_DIGITS, _HEX_DIGITS = b"0123456789", b"0123456789abcdef"


class MalformedHello(ValueError):
    """The bytes are not the start of a TLS connection, or not one to rely on; the text says why."""


@frozen
class Hello:
    """What a client says of itself. `server_name` is lower case; None when it named none.

    `ech`: part of the hello is encrypted, and may hold another name (or is GREASE: nobody outside can tell).
    `versions` are those of supported_versions, in the client's order, empty without that extension; `version` is the
    legacy one, 0x0303 since TLS 1.2.
    """

    server_name: str | None
    alpn: tuple[bytes, ...] = ()
    ech: bool = False
    versions: tuple[int, ...] = ()
    version: int = 0x0303


def looks_like_tls(first: bytes) -> bool | None:
    """Whether a connection that begins so would be read as TLS by a server; None: too early to tell.

    True for every TLS record, since some servers skip alerts that come before a hello, and for the hello of SSL 2,
    which OpenSSL still answers: neither must pass for another protocol.
    """
    if not first:
        return None
    if 20 <= first[0] <= 24:
        return first[1] == 3 if len(first) > 1 else None
    if 0x80 <= first[0] < 0xC0:
        if len(first) > 2 and first[2] != _CLIENT_HELLO:
            return False
        if len(first) < 5:
            return None
        return first[3] == 3 or first[3:5] == b"\0\2"
    return False


def parse_hello(data: bytes | bytearray | memoryview) -> Hello | None:
    """The hello that `data`, the first bytes of a connection, begins with; None when more are needed.

    What follows the record in which it ends (early data) is not looked at. Raises MalformedHello. Whoever reads piece
    by piece takes a HelloReader instead: this begins anew each time.
    """
    return HelloReader().feed(data)


class HelloReader:
    """Reads a hello as it comes in. All pieces together cost time and memory in proportion to the hello."""

    __slots__ = ("_error", "_header", "_hello", "_left", "_message", "_needed", "_taken")

    def __init__(self) -> None:
        self._hello: Hello | None = None
        self._error = ""
        self._header = bytearray()  # of a record, while incomplete
        self._left = 0  # bytes of the record still to come
        self._message = bytearray()
        self._needed = 0  # bytes of the message with its own header; 0 while unknown
        self._taken = 0  # bytes of records, once their headers are known

    def feed(self, data: bytes | bytearray | memoryview) -> Hello | None:
        """The hello as soon as it is complete, and from then on; None when more bytes are needed.

        Raises MalformedHello at the first byte that cannot be right, and from then on. The result and the error do not
        depend on how the bytes are split.
        """
        if self._error:
            raise MalformedHello(self._error)
        if self._hello is None:
            try:
                self._hello = self._read(data)
            except MalformedHello as error:
                self._error = str(error)
                raise
        return self._hello

    def _read(self, data: bytes | bytearray | memoryview) -> Hello | None:
        at, end = 0, len(data)
        while at < end:
            if not self._left:
                size = 5 - len(self._header)
                self._header += data[at : at + size]
                at += size
                self._left = self._fragment()
                continue
            fragment = data[at : at + self._left]
            self._message += fragment
            at += len(fragment)
            self._left -= len(fragment)
            if self._complete():
                return _read_message(bytes(self._message))
        return None

    def _fragment(self) -> int:
        """The length of the fragment that the record's header announces; 0 while the header is incomplete."""
        header = self._header
        if header[0] != _HANDSHAKE:
            raise MalformedHello(f"a TLS connection starts with a handshake record, not with one of type {header[0]}")
        if len(header) < 5:
            return 0
        # The version of a record says nothing (RFC 8446, section 5.1); clients send 3.0 to 3.3.
        if header[1] != 3 or header[2] > 3:
            raise MalformedHello(f"a TLS record cannot have version {header[1]}.{header[2]}")
        size = header[3] << 8 | header[4]
        if not size:
            raise MalformedHello("a handshake record may not be empty")
        header.clear()
        self._taken += 5 + size
        if self._taken > MOST_BYTES:
            raise MalformedHello(f"a TLS hello may have at most {MOST_BYTES} bytes with its records")
        return size

    def _complete(self) -> bool:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise MalformedHello(f"the first message of a TLS client is its hello, not one of type {message[0]}")
        if not self._needed:
            if len(message) < 4:
                return False
            self._needed = 4 + int.from_bytes(message[1:4])
            if self._needed > MOST_BYTES:
                raise MalformedHello(f"a TLS hello may have at most {MOST_BYTES} bytes, not {self._needed}")
        if len(message) + self._left > self._needed:
            raise MalformedHello("something follows the TLS hello in its own record")
        return len(message) == self._needed


def _read_message(message: bytes) -> Hello:
    version = int.from_bytes(message[4:6])
    # RFC 8446 fixes this at 3.3 for all later versions; SSL 3 is prohibited (RFC 7568).
    if not 0x0301 <= version <= 0x0303:
        raise MalformedHello(f"a TLS hello cannot have version {version >> 8}.{version & 255}")
    at = 6 + 32  # the random number; if it is cut short, the vectors will not fit
    _, at = _vector(message, at, 1, 0, 32, "the session id")
    suites, at = _vector(message, at, 2, 2, 0xFFFE, "the list of cipher suites")
    if len(suites) % 2:
        raise MalformedHello("the list of cipher suites in the TLS hello ends within one")
    compressions, at = _vector(message, at, 1, 1, 255, "the list of compression methods")
    if 0 not in compressions:
        raise MalformedHello("the TLS hello does not offer to go uncompressed")
    if at == len(message):
        return Hello(None, version=version)  # as RFC 5246 allows
    block, at = _vector(message, at, 2, 0, 0xFFFF, "the block of extensions")
    if at != len(message):
        raise MalformedHello("something follows the extensions of the TLS hello")
    return _read_extensions(block, version)


def _read_extensions(block: bytes, version: int) -> Hello:
    extensions: dict[int, bytes] = {}
    at = 0
    end = len(block)
    while at < end:
        start = at + 4
        if start > end:
            raise MalformedHello("an extension of the TLS hello is cut short")
        kind = block[at] << 8 | block[at + 1]
        at = start + (block[at + 2] << 8 | block[at + 3])
        if at > end:
            raise MalformedHello(f"extension {kind} is longer than what holds it")
        if kind in extensions:
            raise MalformedHello(f"the TLS hello has extension {kind} twice")
        extensions[kind] = block[start:at]
    if _OUTER_EXTENSIONS in extensions:
        raise MalformedHello("the TLS hello has an extension that stands only within an encrypted one")
    name = extensions.get(_SERVER_NAME)
    protocols = extensions.get(_ALPN)
    versions = extensions.get(_SUPPORTED_VERSIONS)
    hidden = extensions.get(_ECH)
    if hidden is not None:
        _check_ech(hidden)
    return Hello(
        None if name is None else _read_server_name(name),
        () if protocols is None else read_protocols(protocols),
        hidden is not None or not extensions.keys().isdisjoint(_ECH_DRAFTS),
        () if versions is None else read_versions(versions),
        version,
    )


def _read_server_name(body: bytes) -> str:
    names, end = _vector(body, 0, 2, 1, 0xFFFF, "the list of server names")
    if end != len(body):
        raise MalformedHello("something follows the list of server names")
    if names[0] != _HOST_NAME:
        raise MalformedHello(f"the TLS hello has a server name of the unknown type {names[0]}")
    name, end = _vector(names, 1, 2, 1, 0xFFFF, "the server name")
    if end != len(names):
        raise MalformedHello("the TLS hello has more than one server name")
    return host_name(name)


def host_name(raw: bytes) -> str:
    """A host name in lower case, by the rules for names in profiles; no address, no dot at the end.

    RFC 1123 section 2.1, and `_`. What resolvers would read as an address (`127.1`) is none. Raises MalformedHello.
    """
    name = raw.lower()
    if len(name) > 253:
        raise MalformedHello("a host name has at most 253 characters")
    labels = name.split(b".")
    for label in labels:
        # No more than the length goes into the text: the name may be anything.
        if not 0 < len(label) < 64 or label.strip(b"-") != label or label.translate(None, _LABEL):
            raise MalformedHello("a part of a host name has 1 to 63 letters, digits and hyphens, no hyphen at its ends")
    last = labels[-1]
    if not last.translate(None, _DIGITS) or (last[:2] == b"0x" and not last[2:].translate(None, _HEX_DIGITS)):
        raise MalformedHello("an address is no host name")
    return name.decode("ascii")


def read_protocols(body: bytes) -> tuple[bytes, ...]:
    """The body of the extension ALPN (RFC 7301, section 3.1). Raises MalformedHello."""
    block, end = _vector(body, 0, 2, 2, 0xFFFF, "the list of protocols")
    if end != len(body):
        raise MalformedHello("something follows the list of protocols")
    protocols = []
    at = 0
    while at < len(block):
        protocol, at = _vector(block, at, 1, 1, 255, "the name of a protocol")
        protocols.append(protocol)
    return tuple(protocols)


def read_versions(body: bytes) -> tuple[int, ...]:
    """The body of the extension supported_versions (RFC 8446, section 4.2.1). Raises MalformedHello."""
    block, end = _vector(body, 0, 1, 2, 254, "the list of versions")
    if end != len(body) or len(block) % 2:
        raise MalformedHello("the list of versions in the TLS hello ends within one, or something follows it")
    return tuple([block[at] << 8 | block[at + 1] for at in range(0, len(block), 2)])


def _check_ech(body: bytes) -> None:
    """RFC 9849, section 5: `outer`(0) with the encrypted hello, or `inner`(1), which is empty."""
    if body == b"\1":
        return
    if body[:1] != b"\0":
        raise MalformedHello("the encrypted part of the TLS hello is of an unknown type")
    at = 1 + 4 + 1  # its cipher suite, and the number of the configuration
    _, at = _vector(body, at, 2, 0, 0xFFFF, "the key of the encrypted part")
    _, at = _vector(body, at, 2, 1, 0xFFFF, "the encrypted part")
    if at != len(body):
        raise MalformedHello("something follows the encrypted part of the TLS hello")


def _vector(block: bytes, at: int, width: int, least: int, most: int, what: str) -> tuple[bytes, int]:
    """The vector at `at` whose length takes `width` bytes (RFC 8446, section 3.4), and where it ends."""
    start = at + width
    size = int.from_bytes(block[at:start])
    end = start + size
    if end > len(block):
        raise MalformedHello(f"{what} is longer than what holds it")
    if not least <= size <= most:
        raise MalformedHello(f"{what} in the TLS hello has a length of {size}")
    return block[start:end], end
