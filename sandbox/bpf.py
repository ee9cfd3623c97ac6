"""Classic BPF as seccomp uses it: encode, decode, disassemble and simulate a filter.

Sources: linux/filter.h, linux/bpf_common.h, linux/seccomp.h, and `seccomp_check_filter` in kernel/seccomp.c for what
the kernel accepts. Programs are arrays of `struct sock_filter`, little-endian, as both supported architectures are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Instruction codes: class | size or operation | mode or operand.
LD_ABS = 0x20  # A = 32 bits of seccomp_data at k
JA = 0x05
JEQ = 0x15
JGT = 0x25
JGE = 0x35
JSET = 0x45
RET = 0x06
AND = 0x54  # A &= k

# Offsets in struct seccomp_data; arguments are 64 bits each, low half first.
NR = 0
ARCH = 4
INSTRUCTION_POINTER = 8
ARGUMENTS = 16
_DATA_SIZE = 64

# Answers (the high half; the low half is data, an errno for ERRNO).
KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
USER_NOTIF = 0x7FC00000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000
ACTION = 0xFFFF0000

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_JUMPS = {JEQ: "==", JGT: ">", JGE: ">=", JSET: "&"}
_CODES = frozenset((LD_ABS, JA, RET, AND, *_JUMPS))
_ANSWERS = {
    KILL_PROCESS: "kill process",
    KILL_THREAD: "kill thread",
    TRAP: "trap",
    ERRNO: "errno",
    USER_NOTIF: "notify",
    TRACE: "trace",
    LOG: "log",
    ALLOW: "allow",
}
_ENTRY = struct.Struct("<HBBI")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One `struct sock_filter`: `jt` and `jf` count the instructions to skip, 0 to 255; `k` is 32 bits, unsigned."""

    code: int
    jt: int
    jf: int
    k: int


def encode(instructions: Iterable[Instruction]) -> bytes:
    """The program as bytes. Raises ValueError when a field does not fit or the kernel would not accept the program."""
    try:
        program = b"".join(_ENTRY.pack(i.code, i.jt, i.jf, i.k) for i in instructions)
    except struct.error as error:
        raise ValueError(f"a BPF field is out of range: {error}") from None
    decode(program)
    return program


type Line = str | Instruction | tuple[int, int, str, str]
"""What `assemble` takes: a label, an instruction, or a jump to labels."""


def assemble(lines: Iterable[Line]) -> tuple[Instruction, ...]:
    """Resolve labels to distances.

    A line is an instruction, a label (`"name:"`), or a jump `(code, k, label when true, label when false)`; the empty
    label is the next line. JA takes its label first. Raises ValueError for an unknown label, a jump backwards or one
    over more than 255 instructions.
    """
    places: dict[str, int] = {}
    body: list[Instruction | tuple[int, int, str, str]] = []
    for line in lines:
        if isinstance(line, str):
            places[line.removesuffix(":")] = len(body)
        else:
            body.append(line)

    def distance(at: int, label: str) -> int:
        target = at + 1 if not label else places.get(label, -1)
        if not 0 <= target - at - 1 <= 255:
            raise ValueError(f"BPF instruction {at}: no label {label!r} within 255 instructions after it")
        return target - at - 1

    def resolve(at: int, line: Instruction | tuple[int, int, str, str]) -> Instruction:
        if isinstance(line, Instruction):
            return line
        code, k, then, otherwise = line
        if code == JA:
            return Instruction(JA, 0, 0, distance(at, then))
        return Instruction(code, distance(at, then), distance(at, otherwise), k)

    return tuple(resolve(at, line) for at, line in enumerate(body))


def decode(program: bytes) -> tuple[Instruction, ...]:
    """The instructions of `program`.

    Raises ValueError for what the kernel refuses (wrong length, a jump out of the program, an end that does not return,
    a load outside seccomp_data) and for instructions that no filter of ours has (scratch memory, the index register).
    """
    if len(program) % _ENTRY.size or not 0 < len(program) // _ENTRY.size <= MAX_INSTRUCTIONS:
        raise ValueError(f"a BPF program of {len(program)} bytes")
    found = tuple(Instruction(*fields) for fields in _ENTRY.iter_unpack(program))
    for at, i in enumerate(found):
        if i.code not in _CODES:
            raise ValueError(f"BPF instruction {at}: code {i.code:#x} is not used in seccomp filters here")
        if i.code == LD_ABS and (i.k % 4 or i.k >= _DATA_SIZE):
            raise ValueError(f"BPF instruction {at}: load at {i.k} is outside struct seccomp_data")
        skip = max(i.jt, i.jf) if i.code in _JUMPS else i.k if i.code == JA else 0
        if at + 1 + skip >= len(found) and i.code != RET:
            raise ValueError(f"BPF instruction {at}: leads out of the program")
    return found


def simulate(program: bytes, *, nr: int, arch: int, args: tuple[int, ...] = (), ip: int = 0) -> int:
    """What the kernel would get from `program` for this call: the answer with its data, 32 bits.

    `nr` and `args` (at most six, missing ones are 0) may be negative; they are taken as 32 and 64 bits. `arch` is an
    AUDIT_ARCH number. Raises ValueError for an invalid program.
    """
    return run(decode(program), nr=nr, arch=arch, args=args, ip=ip)


def run(instructions: Sequence[Instruction], *, nr: int, arch: int, args: tuple[int, ...] = (), ip: int = 0) -> int:
    """As `simulate`, for a program that `decode` returned."""
    if len(args) > 6:
        raise ValueError("a system call has at most six arguments")
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*args, *(0,) * (6 - len(args)))]
    seen = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, arch, ip, *words)
    accumulator = at = 0
    while True:
        i = instructions[at]
        at += 1
        match i.code:
            case 0x20:
                accumulator = int.from_bytes(seen[i.k : i.k + 4], "little")
            case 0x06:
                return i.k
            case 0x05:
                at += i.k
            case 0x54:
                accumulator &= i.k
            case code:
                at += i.jt if _holds(code, accumulator, i.k) else i.jf


def _holds(code: int, accumulator: int, k: int) -> bool:
    if code == JEQ:
        return accumulator == k
    if code == JGT:
        return accumulator > k
    if code == JGE:
        return accumulator >= k
    return bool(accumulator & k)


def describe(answer: int) -> str:
    """An answer in words: "allow", "notify", "errno 1"."""
    action = answer & ACTION
    word = _ANSWERS.get(action, f"{action:#x}")
    return f"{word} {answer & 0xFFFF}" if action in (ERRNO, TRACE) else word


def disassemble(program: bytes) -> str:
    """The program as text, one numbered instruction a line, jumps as line numbers. Raises ValueError when invalid."""
    lines = []
    for at, i in enumerate(decode(program)):
        if i.code == LD_ABS:
            text = f"load {_field(i.k)}"
        elif i.code == RET:
            text = f"return {describe(i.k)}"
        elif i.code == JA:
            text = f"goto {at + 1 + i.k}"
        elif i.code == AND:
            text = f"and {i.k:#x}"
        else:
            text = f"if {_JUMPS[i.code]} {i.k:#x} goto {at + 1 + i.jt} else {at + 1 + i.jf}"
        lines.append(f"{at:4} {text}")
    return "\n".join(lines) + "\n"


def _field(offset: int) -> str:
    if offset == NR:
        return "nr"
    if offset == ARCH:
        return "arch"
    if offset < ARGUMENTS:
        return "ip" if offset == INSTRUCTION_POINTER else "ip.high"
    argument, high = divmod(offset - ARGUMENTS, 8)
    return f"arg{argument}.high" if high else f"arg{argument}"
