"""The tests' own machine for BPF against the kernel: it takes the same programs, and gets the same answers."""

from __future__ import annotations

import os
import random
import struct

import pytest

from osmoda.sandbox import bpf
from tests import bpf_machine as machine
from tests import kernel_filters as kernel

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
X32 = 1 << 30
EXAMPLES = int(os.environ.get("OSMODA_TEST_EXAMPLES", "200"))
ALLOW = (machine.RET_K, 0, 0, 0x7FFF0000)
PLAIN = {machine.LD_ABS, machine.AND, *machine.CONDITIONAL}  # of what the product's own machine knows
EDGES = (0, 1, 2, 31, 32, 63, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def accepted(code: bytes) -> bool:
    try:
        machine.steps(code)
    except machine.Rejected:
        return False
    return True


def some_program(chance: random.Random) -> list[machine.Step]:
    """One of every kind of instruction, mostly one that the kernel takes; it ends in an errno made of what A holds."""
    body: list[machine.Step] = [
        (machine.LD_ABS, 0, 0, 4 * chance.choice((0, *range(4, 14)))),
        *((machine.ST, 0, 0, word) for word in (0, 3, 15)),
        (machine.LDX_IMM, 0, 0, chance.choice(EDGES)),
    ]
    size = chance.randrange(4, 40)
    for left in range(size, 0, -1):
        code = chance.choice(tuple(sorted(machine.CODES - {machine.RET_K, machine.RET_A})))
        k, jt, jf = chance.choice((*EDGES, chance.getrandbits(32), chance.getrandbits(32))), 0, 0
        if code == machine.LD_ABS:
            k = 4 * chance.choice((0, 1, *range(4, 14)))  # not the instruction pointer, nor the mark
        elif code in (machine.LD_MEM, machine.LDX_MEM, machine.ST, machine.STX):
            k = chance.choice((0, 3, 15))
        elif code in (machine.LSH, machine.RSH):
            k = chance.randrange(32)
        elif code == machine.DIV:
            k = k or 7
        elif code == machine.JA:
            k = chance.randrange(min(left, 5))
        elif code & ~machine.X in machine.CONDITIONAL:
            jt, jf = chance.randrange(min(left, 9)), chance.randrange(min(left, 9))
        body.append((code, jt, jf, k))
    # Twelve bits of A, never none of them: an errno is from 1 to 4095 (MAX_ERRNO).
    end = ((machine.AND, 0, 0, 0xFFF), (machine.OR, 0, 0, 0x50001), (machine.RET_A, 0, 0, 0))
    return [*body, *end]


def damaged(chance: random.Random, steps: list[machine.Step]) -> bytes:
    """`steps` with one field of one instruction changed, or cut short: mostly what the kernel refuses."""
    at = chance.randrange(len(steps))
    code, jt, jf, k = steps[at]
    kind = chance.randrange(5)
    if kind == 0:
        code = chance.choice((0x30, 0x28, 0x40, 0x50, 0xB1, 0x94, 0x9C, 0x0E, 0x16, 0x40, chance.randrange(0x10000)))
    elif kind == 1:
        jt, jf = chance.choice(((len(steps) - at - 1, 0), (0, len(steps) - at - 1), (255, 0), (0, len(steps) - at - 2)))
        jt, jf = jt & 0xFF, jf & 0xFF
    elif kind == 2:
        k = chance.choice((*EDGES, 15, 16, 60, 62, len(steps) - at - 1, len(steps) - at - 2)) & machine.ALL
    elif kind == 3:
        return kernel.program(steps[: chance.randrange(len(steps) + 1)])
    else:
        code, k = chance.choice((machine.LD_MEM, machine.LDX_MEM)), chance.randrange(18)
    return kernel.program([*steps[:at], (code, jt, jf, k), *steps[at + 1 :]])


def test_it_takes_what_this_kernel_takes_and_nothing_else() -> None:
    chance = random.Random(EXAMPLES)
    programs = [damaged(chance, some_program(chance)) for _ in range(EXAMPLES * 10)]
    programs += [kernel.program([ALLOW] * size) for size in (0, 1, 4096, 4097)]
    programs += [kernel.program([(code, 0, 0, k), ALLOW]) for code in range(0x200) for k in (0, 4, 63, 64)]
    found = kernel.accepted(programs)
    assert found.count(True) > EXAMPLES
    assert found.count(False) > EXAMPLES
    for code, taken in zip(programs, found, strict=True):
        assert accepted(code) == taken, list(struct.iter_unpack("<HBBI", code))


def test_the_product_s_own_reader_takes_no_program_that_this_kernel_refuses() -> None:
    chance = random.Random(1)
    refused = 0
    for _ in range(EXAMPLES * 10):
        steps = [step for step in some_program(chance)[:-1] if step[0] in PLAIN]
        code = damaged(chance, [*steps, ALLOW])
        if not accepted(code):
            refused += 1
            with pytest.raises(ValueError, match="BPF"):
                bpf.decode(code)
    assert refused > EXAMPLES


def test_the_product_s_own_machine_computes_the_same() -> None:
    chance = random.Random(EXAMPLES)
    for _ in range(EXAMPLES):
        steps = [step for step in some_program(chance) if step[0] in PLAIN]
        length = len(steps)
        steps = [(c, t % (length - at), f % (length - at), k) for at, (c, t, f, k) in enumerate(steps)]
        code = kernel.program([*steps, (machine.RET_K, 0, 0, 7), ALLOW])
        for _ in range(20):
            nr, args = (
                chance.getrandbits(32),
                tuple(chance.choice((0, *EDGES, chance.getrandbits(64))) for _ in range(6)),
            )
            expected = machine.answer(machine.steps(code), machine.words(nr, ARCH, args, 5))
            assert bpf.simulate(code, nr=nr, arch=ARCH, args=args, ip=5) == expected


@pytest.mark.parametrize("seed", range(20))
def test_it_computes_what_this_kernel_computes(seed: int) -> None:
    chance = random.Random(f"{seed} of {EXAMPLES}")
    for _ in range(max(1, EXAMPLES // 200)):
        steps = machine.steps(kernel.program(some_program(chance)))
        values = (*EDGES, *(edge << 32 for edge in EDGES))
        calls = [
            (chance.choice((0, 39, 1000, X32)), [chance.choice((*values, chance.getrandbits(64))) for _ in range(5)])
            for _ in range(60)
        ]
        expected = [machine.answer(steps, machine.words(nr, ARCH, (*args, kernel.MARK))) for nr, args in calls]
        # A division by an index of 0 ends a program with 0, which kills.
        survived = [(call, answer) for call, answer in zip(calls, expected, strict=True) if answer]
        found = kernel.answers(kernel.marked(steps, lambda k: k), [call for call, _ in survived])
        for (call, answer), real in zip(survived, found, strict=True):
            assert real == answer & 0xFFFF, (steps, call)


def test_a_division_by_nothing_kills() -> None:
    steps = machine.steps(kernel.program([(machine.LDX_IMM, 0, 0, 0), (machine.DIV | machine.X, 0, 0, 0), ALLOW]))
    assert machine.answer(steps, machine.words(0, ARCH)) == bpf.KILL_THREAD
    with pytest.raises(kernel.Died, match="signal 31"):
        kernel.answers(kernel.marked(steps, lambda k: k), [(1000, [0] * 5)])
