from __future__ import annotations

import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.hello import (
    ACCESS_DENIED,
    MOST_BYTES,
    Hello,
    HelloReader,
    MalformedHello,
    host_name,
    looks_like_tls,
    parse_hello,
)
from tests.client_hellos import (
    ECH,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    alpn,
    ech_outer,
    extension,
    hello,
    message,
    records,
    server_name,
    supported_versions,
    vector,
)


def outcome(pieces):
    """What a reader makes of the pieces: the hello, None, or the text of the error; once found it stays."""
    reader = HelloReader()
    found = None
    for piece in pieces:
        try:
            found = reader.feed(piece)
        except MalformedHello as error:
            with pytest.raises(MalformedHello, match=r"."):
                reader.feed(b"")
            return str(error)
    return found


def client_hello_of_python(name: str | None, protocols: list[str]) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# Well-formed ones


def test_the_hello_of_a_real_client():
    found = parse_hello(client_hello_of_python("API.example.com", ["h2", "http/1.1"]))
    assert found.server_name == "api.example.com"
    assert found.alpn == (b"h2", b"http/1.1")
    assert found.ech is False
    assert 0x0304 in found.versions
    assert found.version == 0x0303


def test_a_real_client_without_a_name():
    assert parse_hello(client_hello_of_python(None, ["h2"])).server_name is None


def test_a_real_client_reads_the_refusal():
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(ACCESS_DENIED)
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        client.do_handshake()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (hello(), Hello("example.com")),
        (hello(b"EXAMPLE.com"), Hello("example.com")),
        (hello(b"xn--bcher-kva.example"), Hello("xn--bcher-kva.example")),
        (hello(b"a_b.example.com", alpn(b"h2")), Hello("a_b.example.com", (b"h2",))),
        (records(message([])), Hello(None)),
        (records(message(None)), Hello(None)),
        (records(message(None, version=0x0301)), Hello(None, version=0x0301)),
        (hello(b"a.b", supported_versions(0x3A3A, 0x0304, 0x0303)), Hello("a.b", versions=(0x3A3A, 0x0304, 0x0303))),
        (hello(b"a.b", extension(0x0A0A, b""), extension(21, bytes(200))), Hello("a.b")),
        (records(message([server_name(b"a.b")]), version=b"\3\0"), Hello("a.b")),
        (records(message([server_name(b"a.b")]), version=b"\3\3"), Hello("a.b")),
    ],
)
def test_what_a_hello_says(data, found):
    assert parse_hello(data) == found
    assert parse_hello(bytearray(data)) == found
    assert parse_hello(memoryview(data)) == found


@pytest.mark.parametrize(
    "more",
    [
        ech_outer(),
        ech_outer(key=b""),  # as after a HelloRetryRequest
        extension(ECH, b"\1"),
        extension(0xFE0C, b"whatever"),
        extension(0xFE08, b""),
        extension(0xFF02, b"whatever"),
        extension(0xFFCE, b"whatever"),
    ],
)
def test_a_hidden_part_is_told(more):
    assert parse_hello(hello(b"a.b", more)) == Hello("a.b", ech=True)


def test_nothing_is_said_before_all_is_there():
    data = hello()
    assert [parse_hello(data[:size]) for size in range(len(data))] == [None] * len(data)


def test_what_follows_the_hello_in_other_records_is_early_data():
    data = hello() + records(b"early", kind=23) + b"\xff" * MOST_BYTES
    assert parse_hello(data) == Hello("example.com")
    reader = HelloReader()
    assert reader.feed(data) == Hello("example.com")
    assert reader.feed(b"\xff" * 100) == Hello("example.com")


# However it is cut


@pytest.mark.parametrize("sizes", [(), (1,), (5,), (1, 300), (2, 3), (4, 1)])
@pytest.mark.parametrize("segment", [1, 2, 5, 6, 7, 10_000])
def test_a_hello_in_pieces_is_the_same_hello(sizes, segment):
    data = records(message([server_name(b"example.com"), alpn(b"h2", b"http/1.1")]), sizes)
    pieces = [data[at : at + segment] for at in range(0, len(data), segment)]
    assert outcome(pieces) == Hello("example.com", (b"h2", b"http/1.1"))


_cuts = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at, turn = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[turn % len(sizes)]])
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return pieces


_names = st.lists(st.text("abcxyz019-_", min_size=1, max_size=12), min_size=1, max_size=4).map(".".join)


@given(_names, st.lists(st.binary(min_size=1, max_size=9), max_size=3), st.booleans(), _cuts, _cuts)
def test_any_hello_in_any_pieces(name, protocols, hidden, fragments, segments):
    more = [alpn(*protocols)] if protocols else []
    more += [ech_outer()] if hidden else []
    whole = message([server_name(name.encode()), *more])
    try:
        expected = Hello(host_name(name.encode()), tuple(protocols), hidden)
    except MalformedHello as error:
        expected = str(error)
    assert outcome([records(whole)]) == expected
    assert outcome(cut(records(whole, fragments), segments)) == expected


@given(st.data(), _cuts)
def test_a_damaged_hello_is_judged_the_same_in_any_pieces(data, segments):
    damaged = bytearray(records(message([server_name(b"example.com"), alpn(b"h2"), ech_outer()]), (100,)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert outcome([bytes(damaged)]) == outcome(cut(bytes(damaged), segments))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for candidate in (data, b"\x16\x03\x01" + data, records(b"\1\0\0" + data[:1] + data)):
        found = outcome([candidate])
        assert found is None or isinstance(found, Hello) or len(found) > 10


# Names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"192.0.2.1", "an address"),
        (b"127.1", "an address"),
        (b"2130706433", "an address"),
        (b"0x7f.0x1", "an address"),
        (b"a.0x", "an address"),
        (b"2001:db8::1", "letters"),
        (b"[evil.com]", "letters"),
        (b"evil.com\0.allowed.com", "letters"),
        (b"evil.com\r\n", "letters"),
        (b"a b", "letters"),
        (b"allowed@evil.com", "letters"),
        (b"*.example.com", "letters"),
        ("bücher.example".encode(), "letters"),
        (b"\xff.com", "letters"),
        (b"example.com.", "1 to 63"),
        (b".", "1 to 63"),
        (b"a..b", "1 to 63"),
        (b"-a.com", "hyphen"),
        (b"a-.com", "hyphen"),
        (b"a" * 64 + b".com", "1 to 63"),
        (b".".join([b"abcdefg"] * 32), "253"),
    ],
)
def test_a_name_that_two_programs_could_read_differently(name, reason):
    with pytest.raises(MalformedHello, match=reason):
        parse_hello(hello(name))


def test_a_name_of_253_characters():
    name = ".".join(["abcdefg"] * 31 + ["abcde"])
    assert len(name) == 253
    assert parse_hello(hello(name.encode())).server_name == name


# Malformed ones


def with_length(data: bytes, at: int, width: int, change: int) -> bytes:
    value = int.from_bytes(data[at : at + width]) + change
    return data[:at] + value.to_bytes(width) + data[at + width :]


PLAIN = message([server_name(b"example.com")])
SNI = server_name(b"example.com")
# Where the lengths of PLAIN stand: session, suites, compressions, extensions, extension, list, name.
LENGTHS = {"session": (38, 1), "suites": (39, 2), "compressions": (45, 1), "extensions": (47, 2)}
LENGTHS |= {"extension": (51, 2), "list": (53, 2), "name": (56, 2)}


@pytest.mark.parametrize("change", [-1, 1, 40])
@pytest.mark.parametrize("where", LENGTHS)
def test_a_length_that_lies(where, change):
    at, width = LENGTHS[where]
    value = int.from_bytes(PLAIN[at : at + width])
    if value + change < 0:
        change = 3
    with pytest.raises(MalformedHello):
        parse_hello(records(with_length(PLAIN, at, width, change)))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_length_of_the_message_that_lies(change):
    data = records(with_length(PLAIN, 1, 3, change))
    if change > 0:  # it may go on in another record, which then is not one of this message
        assert parse_hello(data) is None
        data += records(b"\1" * 2)
    with pytest.raises(MalformedHello, match="follows"):
        parse_hello(data)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (message([SNI, SNI]), "extension 0 twice"),
        (message([extension(0x1234, b""), SNI, extension(0x1234, b"x")]), "twice"),
        (message([ech_outer(), ech_outer()]), "twice"),
        (message([server_name(b"example.com", b"evil.com")]), "more than one server name"),
        (message([server_name(b"example.com", b"")]), "more than one server name"),
        (message([server_name(b"example.com", kind=1)]), "unknown type 1"),
        (message([server_name()]), "list of server names in the TLS hello has a length of 0"),
        (message([server_name(b"")]), "server name in the TLS hello has a length of 0"),
        (message([extension(SERVER_NAME, b"")]), "longer"),
        (message([extension(SERVER_NAME, SNI[4:] + b"\0")]), "follows the list of server names"),
        (message([SNI], trailing=b"\0"), "follows the extensions"),
        (message(None, trailing=b"\0"), "longer"),
        (message([SNI], version=0x0300), r"version 3\.0"),
        (message([SNI], version=0x0304), r"version 3\.4"),
        (message([SNI], version=0x0002), r"version 0\.2"),
        (message([SNI], session=bytes(33)), "session id"),
        (message([SNI], suites=b""), "cipher suites"),
        (message([SNI], suites=b"\x13\x01\x13"), "within one"),
        (message([SNI], compressions=b""), "compression"),
        (message([SNI], compressions=b"\1"), "uncompressed"),
        (message([alpn()]), "list of protocols"),
        (message([alpn(b"h2", b"")]), "name of a protocol"),
        (message([extension(16, vector(2, b"\2h2") + b"\0")]), "follows the list of protocols"),
        (message([extension(16, vector(2, b"\3h2"))]), "longer"),
        (message([supported_versions()]), "list of versions"),
        (message([extension(SUPPORTED_VERSIONS, b"\3\3\4\3")]), "versions"),
        (message([extension(SUPPORTED_VERSIONS, b"\2\3\4\0")]), "versions"),
        (message([extension(ECH, b"")]), "unknown type"),
        (message([extension(ECH, b"\2")]), "unknown type"),
        (message([extension(ECH, b"\1\0")]), "unknown type"),
        (message([ech_outer(payload=b"")]), "encrypted part"),
        (message([extension(ECH, ech_outer()[4:] + b"\0")]), "follows the encrypted part"),
        (message([extension(ECH, b"\0\0\1")]), "longer"),
        (message([extension(0xFD00, b"\2\0\0")]), "only within"),
        (message([b"\0\1\0"]), "cut short"),
        (message([b"\0\1\0\1"]), "longer"),
        (b"\2" + PLAIN[1:], "not one of type 2"),
        (b"\1\0\0\0", "version"),
        (b"\1\0\0\2\3\3", "longer"),
    ],
)
def test_a_malformed_hello(whole, reason):
    data = records(whole)
    with pytest.raises(MalformedHello, match=reason):
        parse_hello(data)
    pieces = [data[at : at + 1] for at in range(len(data))]
    assert outcome(pieces) == outcome([data])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x17\3\1\0\5", "type 23"),
        (b"\x14\3\1\0\1\1", "type 20"),
        (b"\x15\3\1\0\2\1\0" + hello(), "type 21"),
        (b"GET / HTTP/1.1\r\n", "type 71"),
        (b"\x80\x2e\1\3\1", "type 128"),  # the hello of SSL 2
        (b"\x16\2\0\0\5", r"version 2\.0"),
        (b"\x16\3\4\0\5", r"version 3\.4"),
        (b"\x16\xfe\xfd\0\5", r"version 254\.253"),  # DTLS
        (b"\x16\3\1\0\0", "empty"),
        (b"\x16\3\1\x40\0", "16384"),
        (b"\x16\3\1\xff\xff", "16384"),
        (b"\x16\3\1\0\4\1\xff\xff\xff", "not 16777219"),
        (b"\x16\3\1\0\4\1\0\x40\0", "not 16388"),
        (records(PLAIN[:50]) + records(PLAIN[50:], kind=23), "type 23"),
        (records(PLAIN[:50]) + records(PLAIN[50:], version=b"\3\x09"), r"version 3\.9"),
        (records(PLAIN[:50]) + b"\x16\3\1\0\0" + records(PLAIN[50:]), "empty"),
        (records(PLAIN + PLAIN), "follows"),
        (records(PLAIN + b"\0"), "follows"),
        (records(PLAIN[:50]) + records(PLAIN[50:] + b"\x0b\0\0\0"), "follows"),
    ],
)
def test_records_that_are_no_hello(data, reason):
    with pytest.raises(MalformedHello, match=reason):
        parse_hello(data)
    assert outcome([bytes([byte]) for byte in data]) == outcome([data])


def test_a_hello_that_claims_16_mb_is_refused_at_its_fourth_byte():
    reader = HelloReader()
    assert reader.feed(b"\x16\3\1\x20\0\1\xff\xff") is None
    with pytest.raises(MalformedHello, match="16777219"):
        reader.feed(b"\xff")


# Bounds


@pytest.mark.parametrize(
    ("size", "sizes", "fits"),
    [
        (MOST_BYTES - 5, (), True),
        (MOST_BYTES - 4, (), False),
        (MOST_BYTES // 6, (1,), True),
        (MOST_BYTES // 6 + 1, (1,), False),
    ],
)
def test_a_hello_has_16_kib_with_its_records(size, sizes, fits):
    padding = size - len(message([SNI, extension(21, b"")]))
    data = records(message([SNI, extension(21, bytes(padding))]), sizes)
    if fits:
        assert parse_hello(data).server_name == "example.com"
    else:
        with pytest.raises(MalformedHello, match=f"at most {MOST_BYTES} bytes"):
            parse_hello(data)


def test_hostile_pieces_cost_no_more_than_their_bytes():
    """The largest hello in records of one byte, by one byte at a time: time in proportion, not its square."""

    def seconds(size: int) -> float:
        padding = size - len(message([SNI, extension(21, b"")]))
        data = records(message([SNI, extension(21, bytes(padding))]), (1,))
        best = 1.0
        for _ in range(5):
            reader, began = HelloReader(), time.process_time()
            for at in range(len(data)):
                reader.feed(data[at : at + 1])
            best = min(best, time.process_time() - began)
        return best

    assert seconds(2700) < 10 * seconds(675)


# Telling TLS from the rest


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\3", True),
        (b"\x16\3\1\0\5", True),
        (b"\x16\3\xff", True),  # malformed, but nothing else
        (b"\x16\2", False),
        (b"\x15\3\1\0\2", True),
        (b"\x14\3\3", True),
        (b"\x17\3\3", True),
        (b"\x80", None),
        (b"\x80\x2e\1\3", None),
        (b"\x80\x2e\1\3\1", True),
        (b"\x80\x2e\1\0\2", True),
        (b"\x80\x2e\1\0\3", False),
        (b"\x80\x2e\2", False),
        (b"\xff\xfb\1", False),  # telnet
        (b"GET / HTTP/1.1\r\n", False),
        (b"SSH-2.0-OpenSSH_9.2", False),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", False),  # PostgreSQL asks for TLS
    ],
)
def test_looks_like_tls(first, answer):
    assert looks_like_tls(first) is answer


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_an_answer_does_not_change(first, more):
    early = looks_like_tls(first)
    assert early is None or looks_like_tls(first + more) is early


@given(st.binary(min_size=5, max_size=40))
def test_what_a_reader_takes_looks_like_tls(data):
    try:
        parse_hello(data)
    except MalformedHello:
        return
    assert looks_like_tls(data) is True
