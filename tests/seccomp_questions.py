"""The calls that a filter is asked about: every number, under every ABI, with the arguments where answers change.

A filter compares 32-bit words with constants and asks for bits of them. So its answer, as a function of one word, can
only change at a constant that stands in it or at a single bit: those are the values tried, with their neighbours, also
with bits in the other half of the argument.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from tests import bpf_machine as machine
from tests.seccomp_oracle import ARCHITECTURES, FAMILIES, LOOKED_AT, NEWEST, OTHERS, X32, names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

type Call = tuple[int, int, tuple[int, ...]]
"""Number, AUDIT_ARCH, six arguments."""

NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ONES = 2**64 - 1
HIGH_HALVES = (0, 1 << 32, 0xFFFFFFFF << 32)
# Of arguments, what the kernel's headers make special, whether or not a filter knows it.
SPECIAL = (
    *(1 << bit for bit in range(32)),
    *(0x50009400, 0x50009401, 0x50009402, 0x50009417, 0x5000940E, 0x4020BC10, 0x4020BC11),
    *(0x5411, 0x5412, 0x5413, 0x541B, 0x541C, 0x541D, 0x541E, 0x5422, 0x5423, 0x5424),
    *(0o644, 0o755, 0o2755, 0o4755, 0o6755, 0o20600, 0o60600, 0o10600, 0o140600, 0o100644, 0o120777),
    *(0o100, 0o101, 0o102, 0o20000000, 0o20200002, 0o20000100),
    *(0x3D0F00, 0x1200011, 0x4111, 0x7E020000, 0x80),
    *(0, 1, 2, 3, 5, 6, 8, 9, 10, 15, 16, 17, 18, 132, 255, 256, 262, 263, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFF),
)
# Numbers that nobody has, negative ones among them, and both ends.
FAR = (1000, 4095, 65535, 1 << 24, X32 - 1, X32, 0x7FFFFFFF, 1 << 31, machine.ALL - 1, machine.ALL)
MOST = 400  # combinations of arguments for one call
KINDS = (*range(8), 10, 0x80001, 0x801, 0x80802, 0x80003, 0x80000002, 0x11, 0xFFFFFFF5)
PROTOCOLS = (0, 1, 6, 9, 17, 58, 132, 136, 255, 261, 262, 263, 0xFFFFFFFF)


def reached(program: Sequence[machine.Step], known: dict[int, int]) -> dict[int, set[int]]:
    """The instructions that some call can reach of which the words `known`, by their offsets, are known.

    Each with the words that may be in the accumulator there. Comparisons of a known word go one way, all others both.
    """
    found: dict[int, set[int]] = {0: set()}
    for at, (code, jt, jf, k) in enumerate(program):
        if at not in found or code in (machine.RET_K, machine.RET_A):
            continue
        held = {k} if code == machine.LD_ABS else found[at]
        ways = {k} if code == machine.JA else {jt, jf} if code & 7 == 5 else {0}
        if code in (machine.JEQ, machine.JGT, machine.JGE) and len(held) == 1 and held <= known.keys():
            value = known[min(held)]
            ways = {jt if {machine.JEQ: value == k, machine.JGT: value > k, machine.JGE: value >= k}[code] else jf}
        for way in ways:
            found.setdefault(at + 1 + way, set()).update(held)
    return found


def compared(program: Sequence[machine.Step], known: dict[int, int]) -> dict[int, set[int]]:
    """For each word that is looked at, where the words `known` are known: the values at which an answer may change."""
    found: dict[int, set[int]] = {}
    for at, held in reached(program, known).items():
        code, _, _, k = program[at]
        if code in (machine.JEQ, machine.JGT, machine.JGE, machine.JSET, machine.AND):
            bits = {k & 1 << bit for bit in range(32)} if code in (machine.JSET, machine.AND) else set[int]()
            for word in held:
                found.setdefault(word, set()).update(bits | {k - 1 & machine.ALL, k, k + 1 & machine.ALL})
    return found


def calls(program: Sequence[machine.Step], arch: str, seed: int, rounds: int = 1) -> Iterator[Call]:
    """The questions; `rounds` more of those that are drawn at random, from `seed`."""
    chance = random.Random(seed)
    own, named = ARCHITECTURES[arch], names(arch)
    # Between two constants the answer for a number cannot change, so these stand for all 2**32.
    told = compared(program, {ARCH: own})[NUMBER]
    numbers = sorted({*range(NEWEST + 40), *told, *SPECIAL, *(X32 | nr for nr in range(NEWEST + 40)), *FAR})
    zeros, ones = (0,) * 6, (ONES,) * 6

    def drawn() -> tuple[int, ...]:
        return tuple(chance.choice(SPECIAL) | chance.choice(HIGH_HALVES) for _ in range(6))

    def noise() -> tuple[int, ...]:
        return tuple(chance.getrandbits(64) for _ in range(6))

    for nr in numbers:
        for args in (zeros, ones, *(make() for _ in range(rounds) for make in (drawn, noise))):
            yield nr, own, args
        if nr < X32:
            for other in (*OTHERS.values(), *(one for one in ARCHITECTURES.values() if one != own)):
                yield nr, other, chance.choice((zeros, drawn()))
    for nr, name in named.items():
        if name in LOOKED_AT:
            words = compared(program, {ARCH: own, NUMBER: nr})
            for position in range(4):
                for value in sorted({*words.get(ARGUMENTS + 8 * position, ()), *SPECIAL}):
                    others = chance.choice((zeros, ones, drawn()))
                    yield nr, own, (*others[:position], value | chance.choice(HIGH_HALVES), *others[position + 1 :])
            # All of what it compares together, each perhaps with one bit more.
            asked = [sorted(words.get(ARGUMENTS + 8 * position, {0})) for position in range(4)]
            together = [*product(*asked)]
            for four in (*together[:MOST], *chance.choices(together, k=MOST * rounds)):
                bits = (
                    chance.choice(HIGH_HALVES) | chance.choice((0, 0, 1 << 31, 1 << chance.randrange(64))) for _ in four
                )
                yield nr, own, (*(value | more for value, more in zip(four, bits, strict=True)), *noise()[:2])
        if name in ("socket", "socketpair"):
            for three in product((*FAMILIES.values(), 0, 17, 0x10001), KINDS, PROTOCOLS):
                yield nr, own, (*(value | chance.choice(HIGH_HALVES) for value in three), *noise()[:3])
            for domain, kind in product(range(48), range(16)):
                yield nr, own, (domain, kind, chance.choice(PROTOCOLS), *noise()[:3])
