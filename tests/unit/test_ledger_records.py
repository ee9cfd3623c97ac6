"""Events as bytes, their digests, and signed lines: one way to write each thing, and no other is accepted."""

from __future__ import annotations

import dataclasses
import json

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.ledger import chain, record
from osmoda.ledger.errors import LedgerError
from osmoda.ledger.head import Head, Seal

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(1 - (1 << 53), (1 << 53) - 1)
leaves = st.none() | st.booleans() | integers | texts
names = st.text(st.characters(codec="ascii"), max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
bodies = st.dictionaries(names, values, max_size=6)
numbers = st.integers(0, (1 << 32) - 1)


def rfc8785_or_longer(body):
    """Whoever reads takes longer integers than anybody writes: they too are written in one way only."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encoded(body, seq=1, time=5, kind="launch"):
    return record.encode(seq, time, 1000, 4321, 7, 8, kind, record.canonical(body))


@settings(deadline=None)
@given(body=bodies)
def test_a_body_is_what_rfc_8785_says(body):
    assert record.canonical(body) == rfc8785.dumps(body)


@settings(deadline=None)
@given(body=bodies, seq=st.integers(1, 1 << 62), time=st.integers(-(1 << 62), 1 << 62), uid=numbers, pid=numbers)
def test_an_event_can_be_read_back(body, seq, time, uid, pid):
    content = record.encode(seq, time, uid, pid, 7, 8, "egress", record.canonical(body))
    assert record.decode(content) == (seq, time, uid, pid, 7, 8, "egress", body)
    assert record.examine(content) == (seq, time)
    assert record.name_of(content) == (7, 8)


@settings(deadline=None)
@given(
    one=st.tuples(bodies, st.sampled_from(["launch", "end"])),
    other=st.tuples(bodies, st.sampled_from(["launch", "end"])),
)
def test_two_events_have_the_same_bytes_only_when_they_are_the_same(one, other):
    def same(value):  # True is no 1 on the ledger
        return record.canonical(value[0]), value[1]

    assert (encoded(one[0], kind=one[1]) == encoded(other[0], kind=other[1])) == (same(one) == same(other))


@settings(deadline=None)
@given(body=bodies, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_bytes_are_read_in_the_one_form_or_not_at_all(body, place, bit):
    content = bytearray(encoded(body))
    content[int(place * len(content))] ^= 1 << bit
    for read in (record.decode, record.examine):
        try:
            read(bytes(content))
        except LedgerError:
            continue
        event = record.decode(bytes(content))
        assert record.encode(*event[:-1], rfc8785_or_longer(event.body)) == bytes(content)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"x": 1.5}, "float"),
        ({"x": 1 << 53}, "2\\^53"),
        ({"é": 1}, "ASCII"),
        ({1: 2}, "ASCII"),
        ({"x": "\udc80"}, "cannot be written"),
        ({"x": b"bytes"}, "bytes"),
        ({"x": [[[[[[[[[1]]]]]]]]]}, "deep"),
        ({"x": "a" * record.MOST_BODY}, "too long"),
    ],
)
def test_what_could_be_written_in_several_ways_is_refused(body, reason):
    with pytest.raises(LedgerError, match=reason):
        record.canonical(body)


@pytest.mark.parametrize(
    "raw",
    [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1,"a":1}', b"[]", b'{"a":1.0}', b'{"a":"\\u0041"}', b"", b"{", b"\xff"],
)
def test_another_way_of_writing_the_same_is_no_event(raw):
    content = record.encode(1, 5, 0, 1, 7, 8, "launch", raw)
    for read in (record.decode, record.examine):
        with pytest.raises(LedgerError):
            read(content)


@pytest.mark.parametrize("kind", ["", "Launch", "a b", "x" * 40, "-a"])
def test_a_kind_is_a_word(kind):
    content = record.encode(1, 5, 0, 1, 7, 8, kind, b"{}")
    for read in (record.decode, record.examine):
        with pytest.raises(LedgerError):
            read(content)


def test_a_digest_is_of_all_before_it():
    one, two = encoded({"n": 1}), encoded({"n": 2})
    assert record.digest(record.digest(record.ZERO, one), two) != record.digest(record.digest(record.ZERO, two), one)
    assert record.digest(record.ZERO, one) != record.digest(b"\1" * 32, one)


# Signed lines


def head(**changes):
    return dataclasses.replace(Head(b"i" * 32, 17, 1_795_680_000_000_000_000, b"d" * 32, PUBLIC), **changes)


def seal():
    return Seal(b"i" * 32, 3, 100, 200, b"d" * 32, b"f" * 32, 4096)


def test_a_head_can_be_read_back():
    signed = head().sign(KEY)
    assert Head.read(signed.line(), "it") == signed


def test_a_head_that_another_key_signed_for_this_one_is_none():
    forged = head().sign(Ed25519PrivateKey.from_private_bytes(b"x" * 32))
    with pytest.raises(LedgerError, match="not signed with"):
        Head.read(forged.line(), "it")


@settings(deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.booleans())
def test_no_bit_of_a_signed_line_can_change(place, bit, which):
    line = bytearray((head().sign(KEY) if which else seal().sign(KEY)).line().encode())
    line[int(place * len(line))] ^= 1 << bit
    text = line.decode("latin-1")
    with pytest.raises(LedgerError):
        Head.read(text, "it") if which else Seal.read(text, PUBLIC, "it")


@pytest.mark.parametrize(
    "change", [str.upper, str.strip, lambda line: line + "\n", lambda line: line.replace(" 17", " 017")]
)
def test_a_line_has_one_form(change):
    line = head().sign(KEY).line()
    assert change(line) != line
    with pytest.raises(LedgerError):
        Head.read(change(line), "it")


def test_a_seal_can_be_read_back_and_says_what_the_next_segment_does():
    signed = seal().sign(KEY)
    assert Seal.read(signed.line(), PUBLIC, "it") == signed
    assert signed.body()["last"] == 200
    with pytest.raises(LedgerError, match="not signed with"):
        Seal.read(signed.line(), Ed25519PrivateKey.from_private_bytes(b"x" * 32).public_key().public_bytes_raw(), "it")


# Rows


def rows(count, time=lambda number: number):
    found, digest = [], record.ZERO
    for seq in range(1, count + 1):
        content = encoded({"n": seq}, seq, time(seq))
        digest = record.digest(digest, content)
        found.append((seq, content, digest))
    return found


def test_a_chain_that_is_whole_has_no_findings():
    assert chain.check("f", rows(9), 1, 9, record.ZERO) == (9, [], [])


def test_a_part_of_it_goes_on_from_the_digest_before():
    whole = rows(9)
    assert chain.check("f", whole[4:], 5, 9, whole[3][2]).findings == []
    assert chain.check("f", whole[4:], 5, 9, whole[2][2]).findings != []


def test_what_is_missing_is_told_by_its_numbers():
    whole = rows(9)
    (found,) = [
        one for one in chain.check("f", whole[:3] + whole[5:], 1, 9, record.ZERO).findings if "missing" in one.text
    ]
    assert (found.seq, found.text) == (4, "events 4 to 5 are missing")
    (found,) = chain.check("f", whole[:8], 1, 9, record.ZERO).findings
    assert found.text == "event 9 is missing"
    assert found.sentence() == "f: event 9: event 9 is missing"


def test_a_clock_that_was_set_back_is_no_finding():
    checked = chain.check("f", rows(4, lambda number: 100 if number == 2 else number), 1, 4, record.ZERO)
    assert checked.findings == []
    assert checked.set_back == [(3, 97)]
