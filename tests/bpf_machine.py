"""The machine that runs seccomp filters, read a second time: from the kernel's sources, not from `osmoda.sandbox.bpf`.

What it accepts is what `bpf_check_classic` and `check_load_and_stores` (net/core/filter.c) and `seccomp_check_filter`
(kernel/seccomp.c) accept, every instruction of it, also those that no filter of ours has. What it answers is what
`bpf_convert_filter` makes of a program. `tests/unit/test_bpf_machine.py` compares both with the kernel that the tests
run on; the proof of the compiler (`tests/unit/test_seccomp_proof.py`) then rests on this machine alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
SCRATCH = 16  # BPF_MEMWORDS
DATA = 64  # sizeof(struct seccomp_data)
ALL = 0xFFFFFFFF

# linux/bpf_common.h: class, size or operation, mode or source.
LD_ABS, LD_LEN, LD_IMM, LD_MEM = 0x20, 0x80, 0x00, 0x60
LDX_LEN, LDX_IMM, LDX_MEM = 0x81, 0x01, 0x61
ST, STX = 0x02, 0x03
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, XOR = 0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74, 0x84, 0xA4
X = 0x08  # the operand is the index register
JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
RET_K, RET_A = 0x06, 0x16
TAX, TXA = 0x07, 0x87

BINARY = (ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, XOR)
CONDITIONAL = (JEQ, JGT, JGE, JSET)
PLAIN = (LD_ABS, LD_LEN, LD_IMM, LD_MEM, LDX_LEN, LDX_IMM, LDX_MEM, ST, STX, NEG, JA, RET_K, RET_A, TAX, TXA)
CODES = frozenset((*PLAIN, *BINARY, *CONDITIONAL, *(code | X for code in (*BINARY, *CONDITIONAL))))

type Step = tuple[int, int, int, int]
"""code, jt, jf, k: one `struct sock_filter`."""

type Words = tuple[int, ...]
"""A `struct seccomp_data` as sixteen words of 32 bits: number, architecture, instruction pointer, six arguments."""


class Rejected(Exception):
    """The kernel answers EINVAL to this program."""


def steps(program: bytes) -> tuple[Step, ...]:
    """The instructions of `program`, checked. Raises Rejected."""
    if len(program) % 8 or not 0 < len(program) // 8 <= MOST_INSTRUCTIONS:
        raise Rejected(f"{len(program)} bytes")
    found: tuple[Step, ...] = tuple(struct.iter_unpack("<HBBI", program))
    for at, (code, jt, jf, k) in enumerate(found):
        left = len(found) - at - 1
        if code not in CODES:
            raise Rejected(f"{at}: code {code:#x}")
        if code == LD_ABS and (k >= DATA or k & 3):
            raise Rejected(f"{at}: load at {k}")
        if code in (LD_MEM, LDX_MEM, ST, STX) and k >= SCRATCH:
            raise Rejected(f"{at}: scratch word {k}")
        if (code == DIV and k == 0) or (code in (LSH, RSH) and k >= 32):
            raise Rejected(f"{at}: operand {k}")
        if code == JA and k >= left:
            raise Rejected(f"{at}: leads out")
        if code & ~X in CONDITIONAL and max(jt, jf) >= left:
            raise Rejected(f"{at}: leads out")
    if found[-1][0] not in (RET_K, RET_A):
        raise Rejected("does not end in a return")
    _check_scratch(found)
    return found


def _check_scratch(found: Sequence[Step]) -> None:
    """No word of scratch memory is read that some way there has not written."""
    masks = [-1] * len(found)  # for each instruction, the words that each jump to it has written
    written = 0
    for at, (code, jt, jf, k) in enumerate(found):
        written &= masks[at]
        if code in (ST, STX):
            written |= 1 << k
        elif code in (LD_MEM, LDX_MEM) and not written >> k & 1:
            raise Rejected(f"{at}: scratch word {k} is not written")
        elif code == JA:
            masks[at + 1 + k] &= written
            written = -1
        elif code & ~X in CONDITIONAL:
            masks[at + 1 + jt] &= written
            masks[at + 1 + jf] &= written
            written = -1


def words(nr: int, arch: int, args: Sequence[int] = (), ip: int = 0) -> Words:
    """What the kernel shows a filter of a call; negative values are taken as 32 and 64 bits."""
    halves = [half for value in (ip, *args, *(0,) * (6 - len(args))) for half in (value & ALL, value >> 32 & ALL)]
    return (nr & ALL, arch, *halves)


def answer(program: Sequence[Step], seen: Words, visited: set[int] | None = None) -> int:
    """What the kernel gets from a checked program for this call. The instructions that ran go into `visited`."""
    a = x = at = 0
    memory: dict[int, int] = {}
    while True:
        if visited is not None:
            visited.add(at)
        code, jt, jf, k = program[at]
        at += 1
        if code == JEQ:
            at += jt if a == k else jf
        elif code == JGT:
            at += jt if a > k else jf
        elif code == JGE:
            at += jt if a >= k else jf
        elif code == LD_ABS:
            a = seen[k >> 2]
        elif code == RET_K:
            return k
        elif code == JSET:
            at += jt if a & k else jf
        elif code == AND:
            a &= k
        elif code == JA:
            at += k
        elif code == RET_A:
            return a
        elif code & ~X in CONDITIONAL:
            taken = {JEQ: a == x, JGT: a > x, JGE: a >= x, JSET: a & x != 0}[code & ~X]
            at += jt if taken else jf
        elif code & 7 == 4:
            operand = x if code & X else k
            if code == DIV | X and x == 0:
                return 0
            a = _computed(code & ~X, a, operand)
        elif code in (LD_IMM, LD_LEN, LD_MEM, TXA):
            a = {LD_IMM: k, LD_LEN: DATA, LD_MEM: memory.get(k, 0), TXA: x}[code]
        elif code in (LDX_IMM, LDX_LEN, LDX_MEM, TAX):
            x = {LDX_IMM: k, LDX_LEN: DATA, LDX_MEM: memory.get(k, 0), TAX: a}[code]
        else:
            memory[k] = a if code == ST else x


def _computed(operation: int, a: int, operand: int) -> int:
    if operation == NEG:
        return -a & ALL
    if operation == DIV:
        return a // operand
    if operation in (LSH, RSH):
        operand &= 31
        return (a << operand if operation == LSH else a >> operand) & ALL
    found = {ADD: a + operand, SUB: a - operand, MUL: a * operand, OR: a | operand, AND: a & operand, XOR: a ^ operand}
    return found[operation] & ALL
