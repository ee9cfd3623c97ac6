"""Encoding, decoding, simulating and printing BPF programs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox import bpf
from osmoda.sandbox.bpf import (
    AND,
    JA,
    JEQ,
    JGE,
    JGT,
    JSET,
    LD_ABS,
    RET,
    Instruction,
    assemble,
    decode,
    encode,
    simulate,
)

ARCH = 0xC000003E
ALLOW = Instruction(RET, 0, 0, bpf.ALLOW)
REFUSE = Instruction(RET, 0, 0, bpf.ERRNO | 13)


def answers(code: int, k: int, value: int) -> bool:
    """Whether a jump of `code` with `k` is taken for the number `value`."""
    program = encode([Instruction(LD_ABS, 0, 0, bpf.NR), Instruction(code, 0, 1, k), ALLOW, REFUSE])
    return simulate(program, nr=value, arch=ARCH) == bpf.ALLOW


words = st.integers(0, 2**32 - 1)


@given(words, words)
def test_comparisons_are_unsigned_32_bit(k: int, value: int) -> None:
    assert answers(JEQ, k, value) == (value == k)
    assert answers(JGT, k, value) == (value > k)
    assert answers(JGE, k, value) == (value >= k)
    assert answers(JSET, k, value) == bool(value & k)


@pytest.mark.parametrize("k", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_comparisons_at_their_edges(k: int) -> None:
    for value in {max(k - 1, 0), k, min(k + 1, 2**32 - 1)}:
        assert answers(JGT, k, value) == (value > k)
        assert answers(JGE, k, value) == (value >= k)


@given(st.tuples(*[st.integers(-(2**63), 2**64 - 1)] * 6), st.integers(0, 5), st.booleans())
def test_loads_see_each_half_of_each_argument(args: tuple[int, ...], index: int, high: bool) -> None:
    expected = (args[index] & (2**64 - 1)) >> (32 if high else 0) & 0xFFFFFFFF
    load = Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 8 * index + 4 * high)
    program = encode([load, Instruction(JEQ, 0, 1, expected), ALLOW, REFUSE])
    assert simulate(program, nr=0, arch=ARCH, args=args) == bpf.ALLOW


def test_number_architecture_and_instruction_pointer_are_where_the_kernel_has_them() -> None:
    for offset, expected in ((0, 0xFFFFFFFF), (4, ARCH), (8, 0x55667788), (12, 0x11223344)):
        program = encode([Instruction(LD_ABS, 0, 0, offset), Instruction(JEQ, 0, 1, expected), ALLOW, REFUSE])
        assert simulate(program, nr=-1, arch=ARCH, ip=0x1122334455667788) == bpf.ALLOW


def test_and_masks_what_was_loaded() -> None:
    program = encode(
        [Instruction(LD_ABS, 0, 0, 0), Instruction(AND, 0, 0, 0xF), Instruction(JEQ, 0, 1, 5), ALLOW, REFUSE]
    )
    assert simulate(program, nr=0x75, arch=ARCH) == bpf.ALLOW
    assert simulate(program, nr=0x76, arch=ARCH) == bpf.ERRNO | 13


def test_labels_become_distances() -> None:
    lines: list[bpf.Line] = [
        Instruction(LD_ABS, 0, 0, 0),
        (JEQ, 7, "yes", ""),
        (JA, 0, "no", ""),
        "yes:",
        ALLOW,
        "no:",
        REFUSE,
    ]
    program = encode(assemble(lines))
    assert simulate(program, nr=7, arch=ARCH) == bpf.ALLOW
    assert simulate(program, nr=8, arch=ARCH) == bpf.ERRNO | 13


@pytest.mark.parametrize(
    "lines",
    [
        [(JEQ, 1, "nowhere", ""), ALLOW],
        ["back:", Instruction(LD_ABS, 0, 0, 0), (JEQ, 1, "back", ""), ALLOW],
        [(JEQ, 1, "far", ""), *[ALLOW] * 257, "far:", ALLOW],
    ],
)
def test_a_label_out_of_reach_is_an_error(lines: list[bpf.Line]) -> None:
    with pytest.raises(ValueError, match="no label"):
        assemble(lines)


def test_encoding_is_struct_sock_filter() -> None:
    program = encode([Instruction(LD_ABS, 0, 0, 4), Instruction(JEQ, 1, 0, ARCH), REFUSE, ALLOW])
    assert program == struct.pack(
        "<HBBIHBBIHBBIHBBI", 0x20, 0, 0, 4, 0x15, 1, 0, ARCH, 6, 0, 0, 0x5000D, 6, 0, 0, 0x7FFF0000
    )
    assert encode(decode(program)) == program


def raw(*fields: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<HBBI", *one) for one in fields)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\0" * 7,
        raw((0x20, 0, 0, 0)),  # does not return
        raw((0x20, 0, 0, 2), (6, 0, 0, 0)),  # unaligned
        raw((0x20, 0, 0, 64), (6, 0, 0, 0)),  # beyond seccomp_data
        raw((0x15, 0, 1, 0), (6, 0, 0, 0)),  # jumps past the end
        raw((0x05, 0, 0, 0xFFFFFFFF), (6, 0, 0, 0)),
        raw((0x30, 0, 0, 0), (6, 0, 0, 0)),  # a byte load
        raw((0x61, 0, 0, 0), (6, 0, 0, 0)),  # the index register
        raw(*[(6, 0, 0, 0)] * 4097),
    ],
)
def test_invalid_programs_are_refused(program: bytes) -> None:
    for read in (decode, bpf.disassemble, lambda p: simulate(p, nr=0, arch=ARCH)):
        with pytest.raises(ValueError, match="BPF"):
            read(program)


@pytest.mark.parametrize(
    "wrong", [Instruction(JEQ, 256, 0, 0), Instruction(RET, 0, 0, -1), Instruction(RET, 0, 0, 2**32)]
)
def test_fields_that_do_not_fit_are_refused(wrong: Instruction) -> None:
    with pytest.raises(ValueError, match="out of range"):
        encode([wrong, ALLOW])


def test_more_than_six_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="six"):
        simulate(encode([ALLOW]), nr=0, arch=ARCH, args=(0,) * 7)


@given(st.binary(max_size=160))
def test_any_bytes_decode_to_the_same_bytes_or_are_refused(program: bytes) -> None:
    try:
        found = decode(program)
    except ValueError:
        return
    assert encode(found) == program
    simulate(program, nr=0, arch=ARCH)


def test_disassembly_reads_as_text() -> None:
    program = encode(
        [
            Instruction(LD_ABS, 0, 0, 28),
            Instruction(JSET, 2, 0, 0x40),
            Instruction(JA, 0, 0, 0),
            REFUSE,
            Instruction(RET, 0, 0, bpf.USER_NOTIF),
        ]
    )
    assert bpf.disassemble(program).splitlines() == [
        "   0 load arg1.high",
        "   1 if & 0x40 goto 4 else 2",
        "   2 goto 3",
        "   3 return errno 13",
        "   4 return notify",
    ]
