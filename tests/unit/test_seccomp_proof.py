"""The proof of the filter's compiler: what it makes of a profile answers each call as the profile says.

Three things that know nothing of each other are compared: the compiled filter, run by the tests' own machine
(`tests/bpf_machine.py`), in this kernel, and the profile's own meaning (`tests/seccomp_oracle.py`). The last tests
damage a filter in every place, to show that the comparison would notice.
"""

from __future__ import annotations

import errno
import os
import random
import textwrap
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest

from osmoda.sandbox.operations.confinement import Seccomp
from tests import bpf_machine as machine
from tests import kernel_filters as kernel
from tests.compiled import MACHINE, compiled
from tests.seccomp_oracle import ALLOW, ARCHITECTURES, ERRNO, NEWEST, NOTIFY, OTHERS, X32, Declared
from tests.seccomp_questions import Call, calls, reached

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bpf_machine import Step

EXAMPLES = int(os.environ.get("OSMODA_TEST_EXAMPLES", "200"))
KILL = 0
UNIX, INET, ALL = ("unix", "inet", "inet6"), ("inet", "inet6"), ("unix", "inet", "inet6", "netlink")

# What is written, and what that declares: tier, system calls, families.
PROFILES = {
    "tier 1": ("tier = 1", (1, None, UNIX)),
    "tier 2": ("tier = 2", (2, None, INET)),
    "all of tier 1": (
        """
        tier = 1
        [network]
        families = ["unix", "inet", "inet6", "netlink"]
        [process]
        syscalls = ["@system-service", "@debug", "@pkey", "@sandbox", "@timer"]
        """,
        (1, ("@system-service", "@debug", "@pkey", "@sandbox", "@timer"), ALL),
    ),
    "nothing": ("tier = 1\n[network]\nfamilies = []\n[process]\nsyscalls = []", (1, (), ())),
    "removals": (
        'tier = 1\n[process]\nsyscalls = ["~@network-io", "~personality", "~@sandbox", "~seccomp"]',
        (1, ("~@network-io", "~personality", "~@sandbox", "~seccomp"), UNIX),
    ),
    "one that is named": (
        'tier = 1\n[network]\nfamilies = ["netlink"]\n[process]\nsyscalls = ["@basic-io", "ptrace", "socket", "mkdir"]',
        (1, ("@basic-io", "ptrace", "socket", "mkdir"), ("netlink",)),
    ),
    "tier 2 and less": (
        """
        tier = 2
        [network]
        families = ["inet6"]
        [process]
        syscalls = ["@basic-io", "@file-system", "@network-io", "@process", "~@chown", "~mknod", "~clone3"]
        """,
        (2, ("@basic-io", "@file-system", "@network-io", "@process", "~@chown", "~mknod", "~clone3"), ("inet6",)),
    ),
}
CASES = [(name, arch, True) for name in PROFILES for arch in ARCHITECTURES]
CASES += [("tier 1", "x86_64", False), ("tier 2", "aarch64", False)]
cases = pytest.mark.parametrize(
    ("name", "arch", "notify"), CASES, ids=[f"{n}, {a}{'' if yes else ', silent'}" for n, a, yes in CASES]
)


@cache
def filter_of(name: str, arch: str, notify: bool) -> tuple[tuple[Step, ...], Declared]:
    """The filter in the plan of a profile, and what the profile declares."""
    text, declared = PROFILES[name]
    text = textwrap.dedent(text).strip() if notify else 'degrade = ["notify"]\n' + text
    _, plan = compiled(text, machine=arch, notify=notify)
    (operation,) = [one for one in plan.operations if isinstance(one, Seccomp)]
    assert operation.notify == notify
    return machine.steps(operation.program), Declared(*declared, arch, notify)


def differences(program: Sequence[Step], declared: Declared, asked: Iterator[Call]) -> Iterator[tuple[Call, int, int]]:
    """Each call that the filter answers otherwise than was declared: the call, its answer, and the right one."""
    for call in asked:
        nr, arch, args = call
        answer, right = machine.answer(program, machine.words(nr, arch, args)), declared.answer(nr, arch, args)
        if answer != right:
            yield call, answer, right


@cases
def test_every_number_under_every_abi_is_answered_as_was_declared(name: str, arch: str, notify: bool) -> None:
    program, declared = filter_of(name, arch, notify)
    rounds = max(1, EXAMPLES // 200)
    for call, answer, right in differences(program, declared, calls(program, arch, EXAMPLES, rounds)):
        pytest.fail(f"{call} is answered {answer:#x} and not {right:#x}")


@cases
def test_a_number_is_only_compared_so_that_those_between_two_constants_are_alike(
    name: str, arch: str, notify: bool
) -> None:
    program, _ = filter_of(name, arch, notify)
    for at, held in reached(program, {}).items():
        if program[at][0] in (machine.JSET, machine.AND):
            assert held
            assert all(word >= 16 for word in held), at
        assert program[at][0] in (0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06, 0x54)


# In the kernel

# uretprobe and uprobe of x86-64: the kernel's own trampolines make them, so newer kernels run no filter for them
# (`__secure_computing` in kernel/seccomp.c). Made from anywhere else they end in SIGILL and ENXIO.
UNFILTERED = {335, 336} if os.uname().machine == MACHINE else set()


def label(answer: int) -> int:
    """An answer as an errno that no call would give by itself."""
    return answer if answer & 0xFFFF0000 == ERRNO else ERRNO | {ALLOW: 3001, NOTIFY: 3002, KILL: 3003}[answer]


@pytest.mark.parametrize("name", ["tier 1", "all of tier 1", "tier 2 and less"])
def test_this_kernel_answers_every_number_as_was_declared(name: str) -> None:
    program, declared = filter_of(name, os.uname().machine, True)
    own, chance = ARCHITECTURES[os.uname().machine], random.Random(EXAMPLES)
    asked = [call for call in calls(program, os.uname().machine, EXAMPLES) if call[1] == own and chance.random() < 0.5]
    asked = [call for call in asked if call[0] not in UNFILTERED]
    found = kernel.answers(kernel.marked(program, label), [(nr, args[:5]) for nr, _, args in asked])
    for (nr, arch, args), answer in zip(asked, found, strict=True):
        assert answer == label(declared.answer(nr, arch, (*args[:5], kernel.MARK))) & 0xFFFF, (nr, args)


@pytest.mark.skipif(os.uname().machine != MACHINE, reason="int 0x80 is x86")
def test_this_kernel_answers_int_0x80_as_was_declared() -> None:
    program, _ = filter_of("all of tier 1", "x86_64", True)
    asked = [(nr, (0,) * 5) for nr in (*range(NEWEST + 40), X32 | 1, 0x7FFFFFFF)]
    found = kernel.answers(kernel.marked(program, label, high=False), asked, i386=True)
    assert set(found) == {errno.ENOSYS}
    # And that it is the architecture which decides: the same calls under a filter that allows i386.
    open_to_it = [(c, t, f, OTHERS["i386"] if k == ARCHITECTURES["x86_64"] else k) for c, t, f, k in program]
    found = kernel.answers(kernel.marked(open_to_it, label, high=False), asked, i386=True)
    assert {3001, 3002, errno.ENOSYS} <= set(found)


# What the comparison notices


def mutants(program: Sequence[Step]) -> Iterator[tuple[int, str, tuple[Step, ...]]]:
    """The program, damaged in one place: the place, what was done, and the result."""
    for at, (code, jt, jf, k) in enumerate(program):

        def put(step: Step, at: int = at) -> tuple[Step, ...]:
            return (*program[:at], step, *program[at + 1 :])

        if code == machine.RET_K:
            for other in (ALLOW, NOTIFY, ERRNO | 1, ERRNO | 38, 0):
                if other != k:
                    yield at, f"answers {other:#x}", put((code, jt, jf, other))
            continue
        yield at, "dropped", put((machine.JA, 0, 0, 0))
        if code == machine.LD_ABS:
            yield at, "loads the next word", put((code, jt, jf, (k + 4) % 64))
        elif code == machine.JA:
            continue
        else:
            for other in (k - 1, k + 1, k ^ 0x80000000):
                yield at, f"constant {other:#x}", put((code, jt, jf, other & machine.ALL))
        if code in (machine.JEQ, machine.JGT, machine.JGE, machine.JSET) and jt != jf:
            yield at, "ways exchanged", put((code, jf, jt, k))


def unnoticed(
    program: Sequence[Step], declared: Declared, asked: Sequence[Call], chosen: slice
) -> list[tuple[int, str]]:
    """Those mutants that no question tells from the program.

    A question can only tell them apart where it leads through the damaged instruction.
    """
    through: dict[int, list[tuple[machine.Words, int]]] = {}
    for nr, arch, args in asked:
        seen, visited = machine.words(nr, arch, args), set[int]()
        right = declared.answer(nr, arch, args)
        assert machine.answer(program, seen, visited) == right
        for at in visited:
            through.setdefault(at, []).append((seen, right))
    missed = []
    for at, what, mutant in [*mutants(program)][chosen]:
        try:
            found = any(machine.answer(mutant, seen) != right for seen, right in through.get(at, ()))
        except IndexError:
            continue  # it runs off its end, which the kernel refuses
        if not found:
            missed.append((at, what))
    return missed


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_damage_to_a_filter_is_noticed(arch: str) -> None:
    """Whatever is dropped, changed or exchanged in our own instructions changes some answer.

    In libseccomp's tree some damage is none: it asks for the architecture once more, and splits the numbers anywhere
    between two that it tells apart. It looks at nothing but the number, and every number was asked.
    """
    program, declared = filter_of("all of tier 1", arch, True)
    tree = max(at for at, (code, _, _, k) in enumerate(program) if (code, k) == (machine.LD_ABS, 4))
    alive = reached(program, {4: ARCHITECTURES[arch]})
    assert {program[at][3] for at in alive if at > tree and program[at][0] == machine.LD_ABS} == {0}
    each = 1 if EXAMPLES > 200 else 2
    chosen = slice([*ARCHITECTURES].index(arch) % each, None, each)
    missed = unnoticed(program, declared, [*calls(program, arch, 1)], chosen)
    ours = [(program[at], what) for at, what in missed if at in alive and at < tree]
    # Of a netlink socket kinds 2 and 3 are allowed, which no other kind becomes without its lowest bit.
    assert ours in ([], [((machine.AND, 0, 0, 0xF), "constant 0xe")])
    assert len(missed) < len([*mutants(program)][chosen]) / 40


OTHER_DECLARATIONS = {
    "one call more": lambda declared: replace(declared, syscalls=(*declared.syscalls, "getcwd")),
    "one call less": lambda declared: replace(declared, syscalls=(*declared.syscalls, "~mkdir")),
    "one family more": lambda declared: replace(declared, families=(*declared.families, "inet6")),
    "one family less": lambda declared: replace(declared, families=()),
    "another tier": lambda declared: replace(declared, tier=2),
    "no notification": lambda declared: replace(declared, notify=False),
    "the other architecture": lambda declared: replace(declared, arch="aarch64"),
}


@pytest.mark.parametrize("other", OTHER_DECLARATIONS)
def test_a_filter_of_another_profile_is_noticed(other: str) -> None:
    program, declared = filter_of("one that is named", "x86_64", True)
    changed = OTHER_DECLARATIONS[other](declared)
    assert next(differences(program, changed, calls(program, "x86_64", 1)), None) is not None
