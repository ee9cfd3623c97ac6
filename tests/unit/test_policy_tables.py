from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.egress.destinations import Rule
from osmoda.egress.policy import Policy
from osmoda.egress.policy_source import compile_policy
from osmoda.egress.policy_tables import CHUNK, MAGIC, Names, escaped

BLOB = compile_policy(
    allow=[
        (Rule(host), f"p:{line}")
        for line, host in enumerate(["a.b", "c.b", "*.a.b", "*.b", "*", "10.0.0.0/8", "::/0"], 1)
    ],
    deny=[(Rule("x.a.b", (0,)), "p:9")],
    connect=[("agent:writer:8082", "p:10"), ("localhost:1=agent:a:2", "p:11")],
    serve=(80,),
    ask=True,
    ask_origin="p:12",
    default_origin="p",
)


def chunks(blob: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(MAGIC)
    while at < len(blob):
        size = int.from_bytes(blob[at + 1 : at + 5], "little")
        found.append((blob[at : at + 1], blob[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return MAGIC + b"".join(kind + len(content).to_bytes(4, "little") + content for kind, content in parts)


def changed(kind: bytes, change) -> bytes:
    return joined([(one, change(content) if one == kind else content) for one, content in chunks(BLOB)])


def entries(keys: bytes, *references: int) -> bytes:
    packed = b"".join(number.to_bytes(8, "little") for number in references)
    return len(references).to_bytes(4, "little") + packed + keys


PARTS = chunks(BLOB)
RULE = b"0\t443\t\t\t\t-1\t-1\t-1\t0\t\t0"


def test_the_chunks_are_what_this_file_thinks():
    assert joined(PARTS) == BLOB
    assert [kind for kind, _ in PARTS] == [*CHUNK, b"Z"]
    assert RULE in dict(PARTS)[b"R"].split(b"\n")
    assert Policy.load(BLOB).decide("a.b", 443).allowed


def test_what_is_cut_off_is_refused():
    for end in range(len(BLOB)):
        with pytest.raises(ValueError, match="policy"):
            Policy.load(BLOB[:end])


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"osmoda policy 2\n" + BLOB[len(MAGIC) :],
        BLOB + b"Z\0\0\0\0",
        BLOB + b"\0",
        joined(PARTS[1:]),
        joined(PARTS[-1:]),
        joined([PARTS[0], *PARTS]),
        joined([*PARTS[:4], PARTS[5], PARTS[4], *PARTS[6:]]),
        joined([PARTS[0], (b"Q", b"x"), *PARTS[1:]]),
        joined([*PARTS[:-1], (b"Z", b"x")]),
        *(joined([part for part in PARTS if part[0] != kind]) for kind in (b"F", b"R")),
        changed(b"H", lambda _: b""),
        changed(b"H", lambda head: b"x" + head),
        changed(b"H", lambda head: head.replace(b"\t1\t", b"\t2\t", 1)),
        changed(b"H", lambda head: head.replace(b"\t80\t", b"\t0\t", 1)),
        changed(b"H", lambda head: head + b"\nx"),
        changed(b"F", lambda _: b"\n" * 2000),
        changed(b"R", lambda _: RULE[:-2]),
        changed(b"R", lambda _: RULE.replace(b"443", b"")),
        changed(b"R", lambda _: RULE.replace(b"443", b"65536")),
        changed(b"R", lambda _: RULE.replace(b"443", b"-1")),
        changed(b"R", lambda _: b"2" + RULE[1:]),
        changed(b"R", lambda _: RULE[:-1] + b"9"),
        changed(b"R", lambda _: RULE.replace(b"-1", b"x", 1)),
        changed(b"R", lambda _: RULE.replace(b"-1", b"9" * 5000, 1)),
        changed(b"P", lambda _: b"a.agent\t1"),
        changed(b"P", lambda _: b"a.agent\t0\tagent:a\tp:1\t\t"),
        changed(b"P", lambda _: b"a.agent\t1\tagent:a\tp:1\t\t70000"),
        changed(b"N", lambda _: b""),
        changed(b"N", lambda _: b"\xff\xff\xff\xff"),
        changed(b"N", lambda _: entries(b"")),
        changed(b"N", lambda _: entries(b"a.b\nb.b", 0)),
        changed(b"N", lambda _: entries(b"a.b", 0, 0)),
        changed(b"N", lambda _: entries(b"a.b", 1 << 40)),
        changed(b"N", lambda _: entries(b"a.B", 0)),
        changed(b"N", lambda _: entries(b"a.\xff", 0)),
        changed(b"N", lambda _: entries(b"b.b\na.b", 0, 0)),
        changed(b"N", lambda _: entries(b"a.b\nc.b\nb.b", 0, 0, 0)),
        joined([*PARTS[:5], (b"N", entries(b"a.b", 0)), *PARTS[5:]]),
        changed(b"W", lambda _: entries(b"*.b", 0)),
        changed(b"A", lambda _: entries(b"a.b", 0)),
        changed(b"A", lambda _: entries(b"10.0.0.0", 0)),
        changed(b"A", lambda _: entries(b"10.0.0.0/33", 0)),
        changed(b"A", lambda _: entries(b"10.0.0.0/-1", 0)),
        changed(b"A", lambda _: entries(b"10.0.0.1/8", 0)),
        changed(b"A", lambda _: entries(b"::1%lo/128", 0)),
        changed(b"E", lambda _: entries(b"", *([0] * 9000))),
    ],
)
def test_what_was_not_written_by_the_compiler_is_refused(blob):
    with pytest.raises(ValueError, match=r"."):
        Policy.load(blob)


def test_a_policy_has_a_largest_size(monkeypatch):
    monkeypatch.setattr("osmoda.egress.policy_tables.MOST_BYTES", len(BLOB) - 1)
    with pytest.raises(ValueError, match="not a compiled policy"):
        Policy.load(BLOB)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damage_is_refused_or_decides(data):
    blob = bytearray(BLOB)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        policy = Policy.load(bytes(blob))
    except ValueError:
        return
    for name in ("a.b", "y.a.b", "writer.agent", "", "z"):
        policy.decide(name, 443)
        policy.decide_name(name)
        policy.denied_explicitly(name, 0)
    for address in (b"\x0a\0\0\x01", bytes(16)):
        policy.decide_address(address, 443)
    policy.decide_local(1)


@given(st.lists(st.text("ab.", max_size=3), max_size=40), st.integers(1, 7), st.integers(0, 5))
def test_names_are_found_however_they_are_cut(keys, size, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osmoda.egress.policy_tables._MOST_IN_PART", most)
        names, expected = Names(), {}
        keys.sort()
        for number, key in enumerate(keys):
            expected.setdefault(key, []).append(number)
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            names.extend(part, list(range(start, start + len(part))))
    look_up = names.lookup()
    for key in [*keys, "", "a", "zz", "0"]:
        found = look_up(key)
        assert ([found] if isinstance(found, int) else found) == expected.get(key)


@given(st.text())
def test_any_text_is_a_field(text):
    assert not {"\t", "\n"} & {*escaped(text)}
