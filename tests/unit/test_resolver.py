from __future__ import annotations

import ipaddress
import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.resolver import MOST_QUERY, MOST_TEXT, UDP_PAYLOAD, Found, Refused, answer

IPV4, IPV6 = ipaddress.ip_address("198.18.1.0").packed, ipaddress.ip_address("2001:2:0:1::").packed
FOUND = Found(IPV4, IPV6, 60)
DENIED = Refused("NXDOMAIN", 15, "denied.example is not in network.allow; research.toml:7 would allow it")


class Names:
    """A lookup that remembers what it was asked."""

    def __init__(self, **results):
        self.asked = []
        self.results = results

    def __call__(self, name):
        self.asked.append(name)
        return self.results.get(name.partition(".")[0], FOUND if name.endswith("allowed.example") else DENIED)


def ask(query, lookup=None, *, tcp=False, **callables):
    """The answer, parsed by dnspython."""
    wire = query if isinstance(query, bytes) else query.to_wire()
    got = answer(wire, Names() if lookup is None else lookup, tcp=tcp, **callables)
    assert got is not None
    message = dns.message.from_wire(got)
    assert message.flags & dns.flags.QR
    assert message.flags & dns.flags.RA
    assert message.id == int.from_bytes(wire[:2], "big")
    return message


def query(name, kind="A", **options):
    return dns.message.make_query(name, kind, **options)


def raw(labels, kind=1, of_class=1, *, flags=0x0100, counts=(1, 0, 0, 0), tail=b""):
    """A query that a library would not make."""
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!6H", 0x1234, flags, *counts) + name + struct.pack("!HH", kind, of_class) + tail


def opt(payload=1232, version=0, options=b"", *, owner=b"\0", kind=41, length=None):
    size = len(options) if length is None else length
    return owner + struct.pack("!HHBBHH", kind, payload, 0, version, 0, size) + options


def extended(message):
    """Code and text of the extended error, where there is one."""
    found = [option for option in message.options if option.otype == dns.edns.OptionType.EDE]
    assert len(found) <= 1
    return (int(found[0].code), found[0].text) if found else None


# Addresses


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("edns", [-1, 0])
@pytest.mark.parametrize(("kind", "address"), [("A", "198.18.1.0"), ("AAAA", "2001:2:0:1::")])
def test_an_allowed_name_has_its_addresses(kind, address, edns, tcp):
    asked = query("api.allowed.example", kind, use_edns=edns)
    message = ask(asked, tcp=tcp)
    assert message.rcode() == dns.rcode.NOERROR
    assert message.question == asked.question
    (records,) = message.answer
    assert [record.to_text() for record in records] == [address]
    assert (records.name, records.ttl) == (asked.question[0].name, 60)
    assert message.edns == edns
    assert not message.authority
    assert not message.additional


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_no_network_of_a_family_is_no_address_of_it(kind):
    message = ask(query("api.allowed.example", kind, use_edns=0), Names(api=Found(b"", b"", 5)))
    assert message.rcode() == dns.rcode.NOERROR
    assert not message.answer
    assert extended(message)[0] == 17


def test_the_question_comes_back_as_it_was_asked_and_is_looked_up_in_lower_case():
    names = Names()
    message = ask(query("aPi.ALLOWED.example"), names)
    assert message.question[0].name.to_text() == "aPi.ALLOWED.example."
    assert names.asked == ["api.allowed.example"]


def test_flags_of_the_client_come_back():
    asked = query("api.allowed.example", want_dnssec=True)
    asked.flags |= dns.flags.CD | dns.flags.AD
    message = ask(asked)
    assert message.flags & (dns.flags.RD | dns.flags.CD) == dns.flags.RD | dns.flags.CD
    assert message.ednsflags & dns.flags.DO
    assert not message.flags & (dns.flags.AD | dns.flags.AA | dns.flags.TC)


# Refusals


@pytest.mark.parametrize("rcode", ["NXDOMAIN", "REFUSED", "SERVFAIL"])
@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS", "TXT", "ANY", "PTR"])
def test_a_refused_name_says_why(kind, rcode):
    refusal = Refused(rcode, 15, "it is not listed")
    message = ask(query("denied.example", kind, use_edns=0), lambda name: refusal)
    assert message.rcode() == dns.rcode.from_text(rcode)
    assert extended(message) == (15, "it is not listed")
    assert not message.answer
    assert not message.authority


def test_without_edns_a_refusal_is_an_rcode_alone():
    message = ask(query("denied.example", use_edns=-1))
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.edns == -1


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB", "SRV", "MX", "NAPTR", "CNAME"])
def test_types_without_which_clients_go_on_are_said_not_to_be_there(kind):
    told = []
    message = ask(query("api.allowed.example", kind, use_edns=0), refused=lambda *what: told.append(what))
    assert message.rcode() == dns.rcode.NOERROR
    assert not message.answer
    assert extended(message) == (17, f"names have addresses only in a sandbox, no {kind} records")
    assert told == []


@pytest.mark.parametrize(
    "kind", ["TXT", "ANY", "AXFR", "IXFR", "NULL", "NS", "SOA", "DNSKEY", "TKEY", "CAA", "PTR", "TYPE65280", "OPT"]
)
def test_types_that_carry_anything_are_refused(kind):
    told = []
    asked = raw([b"api", b"allowed", b"example"], dns.rdatatype.from_text(kind), counts=(1, 0, 0, 1), tail=opt())
    message = ask(asked, refused=lambda *what: told.append(what))
    assert message.rcode() == dns.rcode.REFUSED
    assert not message.answer
    code, text = extended(message)
    assert code == 18
    assert text.startswith(f"{kind} records")
    assert told == [("api.allowed.example", text)]


@pytest.mark.parametrize("of_class", [0, 3, 4, 254, 255, 0x8001])
def test_a_class_other_than_in_is_refused(of_class):
    names = Names()
    message = ask(raw([b"version", b"bind"], 16, of_class, counts=(1, 0, 0, 1), tail=opt()), names)
    assert message.rcode() == dns.rcode.REFUSED
    assert extended(message)[0] == 21
    assert names.asked == []


@pytest.mark.parametrize("opcode", range(1, 16))
def test_only_questions_are_answered(opcode):
    names = Names()
    got = answer(raw([b"api", b"allowed", b"example"], flags=opcode << 11), names, tcp=False)
    assert got == struct.pack("!6H", 0x1234, 0x8080 | opcode << 11 | 4, 0, 0, 0, 0)
    assert names.asked == []


def test_an_answer_and_what_is_no_message_get_no_answer():
    assert answer(raw([b"allowed", b"example"], flags=0x8000), Names(), tcp=False) is None
    for size in range(12):
        assert answer(raw([b"allowed", b"example"])[:size], Names(), tcp=True) is None


# Names


@pytest.mark.parametrize(
    "labels",
    [
        [b"nul\0", b"allowed", b"example"],
        [b"sp ace", b"allowed", b"example"],
        [b"line\r\n", b"allowed", b"example"],
        [b"b\xc3\xbccher", b"allowed", b"example"],
        [b"api.allowed", b"example"],
        [b"api", b"allowed.example"],
        [b"user@evil", b"allowed", b"example"],
        [b"*", b"allowed", b"example"],
        [b"-a", b"allowed", b"example"],
        [b"a-", b"allowed", b"example"],
        [b"allowed", b"example\n"],
        [b"169", b"254", b"169", b"254"],
        [b"127", b"1"],
        [b"2130706433"],
        [b"allowed", b"0x7f"],
        [b"allowed", b"0x"],
    ],
)
def test_what_is_not_the_name_of_a_host_is_never_looked_up(labels):
    names = Names()
    message = ask(raw(labels, counts=(1, 0, 0, 1), tail=opt()), names)
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert extended(message)[0] == 18
    assert names.asked == []
    assert message.question[0].name == dns.name.Name([*labels, b""])


def test_the_root_is_there_but_not_for_a_sandbox():
    names = Names()
    assert ask(raw([], 2), names).rcode() == dns.rcode.REFUSED
    assert names.asked == []


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([b"localhost"], "localhost"),
        ([b"XN--bcher-KVA", b"example"], "xn--bcher-kva.example"),
        ([b"_ldap", b"_tcp", b"example"], "_ldap._tcp.example"),
        ([b"analysis", b"server-2", b"mesh"], "analysis.server-2.mesh"),
        ([b"9", b"1a"], "9.1a"),
        ([b"a"] * 127, ".".join(["a"] * 127)),
        ([b"x" * 63] * 3 + [b"x" * 61], ".".join(["x" * 63] * 3 + ["x" * 61])),
    ],
)
def test_names_are_looked_up_in_one_form(labels, name):
    names = Names()
    ask(raw(labels), names)
    assert names.asked == [name]


# Malformed messages


@pytest.mark.parametrize(
    "wire",
    [
        raw([b"allowed", b"example"], counts=(0, 0, 0, 0)),
        raw([b"allowed", b"example"], counts=(2, 0, 0, 0), tail=raw([b"allowed", b"example"])[12:]),
        raw([b"allowed", b"example"], counts=(65535, 0, 0, 0)),
        raw([b"allowed", b"example"], counts=(1, 1, 0, 0), tail=b"\xc0\x0c" + struct.pack("!HHIH4s", 1, 1, 0, 4, IPV4)),
        raw([b"allowed", b"example"], counts=(1, 0, 1, 0)),
        raw([b"allowed", b"example"], tail=b"junk"),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1)),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt() + b"\0"),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt()[:-1]),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 2), tail=opt() * 2),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(owner=b"\1a\0")),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(owner=b"\xc0\x0c")),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(kind=250)),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(options=b"\0\x0a\0\x09cookie")),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(options=b"\0\x0a\0")),
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(length=9)),
        raw([b"allowed", b"example"])[:-1],
        raw([b"allowed", b"example"])[:20],
        raw([])[:12],
        raw([b"a"] * 128),
        raw([b"x" * 63] * 4),
        raw([])[:12] + b"\xc0\x0c\0\1\0\1",  # points at itself
        raw([])[:12] + b"\xc0\x0e\xc0\x0c\0\1\0\1",  # and at one another
        raw([])[:12] + b"\xc0\x00\0\1\0\1",  # into the header
        raw([], flags=0x0100)[:12] + b"\xc0\x03\0\1\0\1",
        raw([])[:12] + b"\x01a\xc0\x05\0\1\0\1",
        raw([])[:12] + b"\xff\xff\0\1\0\1",
        raw([])[:12] + b"\x41a\0\0\1\0\1",  # a label type that is none
        raw([])[:12] + b"\x80a\0\0\1\0\1",
        raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(options=b"\0\x0c\x0f\xc8" + bytes(MOST_QUERY))),
    ],
)
def test_a_malformed_question_is_answered_so_and_looks_nothing_up(wire):
    names = Names()
    assert answer(wire, names, tcp=True) == struct.pack("!6H", 0x1234, 0x8181, 0, 0, 0, 0)
    assert names.asked == []


# EDNS


@pytest.mark.parametrize("options", [b"", b"\0\x0a\0\x08badcafe!", b"\0\x08\0\0", b"\xff\xff\0\1x" * 9])
def test_options_are_read_over(options):
    message = ask(raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(options=options)))
    assert [record.to_text() for record in message.answer[0]] == ["198.18.1.0"]
    assert message.edns == 0
    assert message.payload == UDP_PAYLOAD
    assert not message.options


def test_a_version_to_come_is_told_ours():
    message = ask(raw([b"allowed", b"example"], counts=(1, 0, 0, 1), tail=opt(version=1)))
    assert message.rcode() == dns.rcode.BADVERS
    assert message.edns == 0
    assert not message.answer


@pytest.mark.parametrize("payload", [0, 1, 512, 600, 1232, 4096, 65535])
@pytest.mark.parametrize("text", ["x" * 5000, "ü€" * 2000, "\ud800" * 900])
def test_a_reason_is_cut_to_what_the_client_takes(payload, text):
    wire = raw([b"x" * 63] * 3 + [b"x" * 61], counts=(1, 0, 0, 1), tail=opt(payload))
    for tcp in (False, True):
        got = answer(wire, lambda name: Refused("NXDOMAIN", 15, text), tcp=tcp)
        if not tcp:
            assert len(got) <= min(max(payload, 512), UDP_PAYLOAD)
        message = dns.message.from_wire(got)
        code, reason = extended(message)
        assert code == 15
        assert 150 < len(reason.encode()) <= MOST_TEXT
        assert text.encode(errors="replace").decode().startswith(reason)
        assert not message.flags & dns.flags.TC


# The way back


def test_an_address_leads_back_to_its_name():
    table = {IPV4: "api.allowed.example", IPV6: "api.allowed.example"}
    for pointer in ("0.1.18.198.in-addr.arpa", "0." * 16 + "1.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.ARPA"):
        names = Names()
        message = ask(query(pointer, "PTR"), names, reverse=table.get)
        (records,) = message.answer
        assert [record.to_text() for record in records] == ["api.allowed.example."]
        assert records.ttl == 0
        assert names.asked == []


@pytest.mark.parametrize("pointer", ["1.1.18.198.in-addr.arpa", "8.8.8.8.in-addr.arpa", "1" + ".0" * 31 + ".ip6.arpa"])
@pytest.mark.parametrize("reverse", [None, {IPV4: "api.allowed.example"}.get])
def test_an_address_that_stands_for_nothing_has_no_name(pointer, reverse):
    names = Names()
    message = ask(query(pointer, "PTR", use_edns=0), names, reverse=reverse)
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert extended(message)[0] == 18
    assert names.asked == []


@pytest.mark.parametrize(
    "pointer",
    ["in-addr.arpa", "18.198.in-addr.arpa", "256.1.18.198.in-addr.arpa", "01.1.18.198.in-addr.arpa", "g.ip6.arpa"],
)
def test_a_pointer_that_is_none_is_a_name_like_any(pointer):
    names = Names()
    assert ask(query(pointer, "PTR"), names, reverse=dict.get).rcode() == dns.rcode.NXDOMAIN
    assert names.asked == [pointer]


# Whatever comes


_labels = st.lists(st.binary(min_size=1, max_size=63), max_size=6)


@given(_labels, st.integers(0, 65535), st.sampled_from([1, 1, 1, 3, 255]), st.booleans(), st.binary(max_size=40))
def test_any_question_is_answered_in_kind(labels, kind, of_class, edns, options):
    wire = raw(labels, kind, of_class, counts=(1, 0, 0, int(edns)), tail=opt(options=options) if edns else b"")
    names = Names()
    message = dns.message.from_wire(answer(wire, names, tcp=False))
    if message.rcode() == dns.rcode.FORMERR:
        assert len(b"".join(labels)) + len(labels) > 254 or edns
        return
    (question,) = message.question
    assert (question.name, question.rdtype, question.rdclass) == (dns.name.Name([*labels, b""]), kind, of_class)
    for name in names.asked:
        assert name == name.lower()
        assert name.encode() == b".".join(labels).lower()


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: raw([b"allowed", b"example"])[:12] + tail))
def test_any_bytes_are_answered_or_not(data):
    got = answer(data, Names(), tcp=False)
    if got is None:
        assert len(data) < 12 or data[2] & 0x80
    else:
        assert dns.message.from_wire(got).id == int.from_bytes(data[:2], "big")
        assert len(got) <= 512 or dns.message.from_wire(got).edns == 0
