"""Seccomp filters asked in the kernel itself, by a child that lives for that.

What a filter would do with a call is made harmless and visible: a call that bears MARK as its sixth argument goes
through the filter, every other one is allowed, and each return of the filter is relabelled as an errno.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import struct
import traceback
from typing import TYPE_CHECKING

from tests import bpf_machine as machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LIBC = ctypes.CDLL(None, use_errno=True)
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
MARK = 0x5EC0_0517_C0DE_F117
LOW, HIGH = MARK & 0xFFFFFFFF, MARK >> 32
_SIXTH = 16 + 8 * 5
_ALLOW = 0x7FFF0000
_NEW_LISTENER = 1 << 3

# eax, ebx, ecx, edx, esi, edi and ebp from the seven words that rdi points to; int 0x80.
_INT_0X80 = bytes.fromhex("53554989f8418b00418b5804418b4808418b500c418b7010418b7814418b6818cd805d5bc3")


def program(steps: Iterable[machine.Step]) -> bytes:
    """The instructions as bytes."""
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def marked(steps: Sequence[machine.Step], label: Callable[[int], int], *, high: bool = True) -> bytes:
    """`steps` for calls that bear the mark only, each constant answer as `label` says.

    Without `high` the low half of the mark is enough: the sixth argument of an i386 call has 32 bits.
    """
    guard = [
        (machine.LD_ABS, 0, 0, _SIXTH),
        (machine.JEQ, 1, 0, LOW),
        (machine.RET_K, 0, 0, _ALLOW),
        *([(machine.LD_ABS, 0, 0, _SIXTH + 4), (machine.JEQ, 1, 0, HIGH), (machine.RET_K, 0, 0, _ALLOW)] * high),
    ]
    return program((*guard, *((c, t, f, label(k) if c == machine.RET_K else k) for c, t, f, k in steps)))


class _Fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(code: bytes, flags: int = 0) -> int:
    """seccomp(2): set a filter on this process for good; the errno, or 0."""
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = _Fprog(len(code) // 8, ctypes.addressof(buffer))
    LIBC.prctl(38, 1, 0, 0, 0)
    failed = LIBC.syscall(ctypes.c_long(SECCOMP), ctypes.c_long(1), ctypes.c_long(flags), ctypes.byref(fprog)) < 0
    return ctypes.get_errno() if failed else 0


class Died(Exception):
    """The child did not come to the end of its work."""


def in_a_child(work: Callable[[], object]) -> object:
    """What `work` returns, as JSON has it, in a forked child that ends with it. Raises Died."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            with open(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise Died(f"signal {-status}" if status < 0 else "an error, told above")
    return json.loads(text)


def accepted(programs: Sequence[bytes]) -> list[bool]:
    """Whether the kernel takes each program.

    Nothing is set: where a listener is there already, a second one is EBUSY, but only after the program was checked.
    """

    def work() -> list[bool]:
        assert install(program([(machine.RET_K, 0, 0, _ALLOW)]), _NEW_LISTENER) == 0
        found = []
        for code in programs:
            answer = install(code, _NEW_LISTENER)
            assert answer in (errno.EBUSY, errno.EINVAL), answer
            found.append(answer == errno.EBUSY)
        return found

    return in_a_child(work)  # type: ignore[return-value]


def answers(code: bytes, calls: Sequence[tuple[int, Sequence[int]]], *, i386: bool = False) -> list[int]:
    """The errno that each call, a number and five arguments, gets under a program that `marked` made."""

    def work() -> list[int]:
        ask = _through_int_0x80() if i386 else _through_syscall
        assert install(code) == 0
        return [ask(nr, args) for nr, args in calls]

    return in_a_child(work)  # type: ignore[return-value]


def _through_syscall(nr: int, args: Sequence[int]) -> int:
    ctypes.set_errno(0)
    values = [ctypes.c_ulong(value & 0xFFFFFFFFFFFFFFFF) for value in (nr, *args, MARK)]
    return ctypes.get_errno() if LIBC.syscall(*values) == -1 else -1


def _through_int_0x80() -> Callable[[int, Sequence[int]], int]:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_INT_0X80)
    code = ctypes.c_char.from_buffer(page)
    enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(ctypes.addressof(code))

    def ask(nr: int, args: Sequence[int]) -> int:
        registers = (ctypes.c_uint32 * 7)(*(value & 0xFFFFFFFF for value in (nr, *args, LOW)))
        assert code.value == b"\x53"  # the page lives as long as this function
        return -int(enter(ctypes.addressof(registers)))

    return ask
