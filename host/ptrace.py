"""ptrace(2) and process_vm_readv(2), for whoever looks on while a program runs: one thin function each.

What is read of a program's memory is what stood there at that moment: another thread of it may have changed it since.
Nothing may be allowed because of it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

# linux/ptrace.h
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SEIZE = 0x4206
PTRACE_GETEVENTMSG = 0x4201
PTRACE_LISTEN = 0x4208
PTRACE_GET_SYSCALL_INFO = 0x420E

O_TRACESYSGOOD = 1 << 0
O_TRACEFORK = 1 << 1
O_TRACEVFORK = 1 << 2
O_TRACECLONE = 1 << 3
O_TRACEEXEC = 1 << 4
O_TRACEEXIT = 1 << 6
O_TRACESECCOMP = 1 << 7
O_EXITKILL = 1 << 20

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC = 1, 2, 3, 4
EVENT_EXIT, EVENT_SECCOMP, EVENT_STOP = 6, 7, 128

# bits/waitflags.h: children that are threads too, and of those only the caller's own and those that it traces.
WALL = 0x40000000
WNOTHREAD = 0x20000000

_INFO_EXIT, _INFO_SECCOMP = 2, 3
_INFO_SIZE = 88
_HEAD = struct.Struct("<B3xIQQ")  # op, arch, instruction pointer, stack pointer
_PAGE = 4096

# The interpreter's lock stays held: each call is shorter than giving it up and taking it again.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long
_readv = _libc.process_vm_readv
_readv.argtypes = (
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_readv.restype = ctypes.c_ssize_t


@dataclass(frozen=True, slots=True)
class Entry:
    """A system call that is about to be made: `arguments` are the six registers."""

    architecture: int
    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exit:
    """One that was made: `value` is what it returned, negative (`-errno`) when it failed."""

    value: int
    failed: bool


def _checked(result: int, request: str, pid: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request} {pid}: {os.strerror(number)}")
    return result


def seize(pid: int, options: int) -> None:
    """Trace `pid` from now on, without stopping it; events come to the calling thread. Raises OSError."""
    _checked(_ptrace(PTRACE_SEIZE, pid, None, options), "PTRACE_SEIZE", pid)


def resume(pid: int, request: int, number: int = 0) -> None:
    """Let a stopped thread go on, with the signal `number`; PTRACE_SYSCALL stops it again after its system call.

    One that was killed meanwhile is nothing to complain of: its end is reported by waitpid(2).
    """
    if _ptrace(request, pid, None, number) < 0 and ctypes.get_errno() != 3:
        _checked(-1, "resume", pid)


def event_message(pid: int) -> int:
    """What belongs to an event: the new thread's id, the former id of one that executes. Raises OSError."""
    value = ctypes.c_ulong()
    _checked(_ptrace(PTRACE_GETEVENTMSG, pid, None, ctypes.addressof(value)), "PTRACE_GETEVENTMSG", pid)
    return int(value.value)


def syscall_info(pid: int) -> Entry | Exit | None:
    """Which system call a thread has stopped at (Linux 5.3); None at another kind of stop. Raises OSError."""
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    _checked(
        _ptrace(PTRACE_GET_SYSCALL_INFO, pid, _INFO_SIZE, ctypes.addressof(buffer)), "PTRACE_GET_SYSCALL_INFO", pid
    )
    raw = buffer.raw
    operation, architecture, _, _ = _HEAD.unpack_from(raw)
    if operation == _INFO_SECCOMP:
        number, *arguments = struct.unpack_from("<7Q", raw, _HEAD.size)
        return Entry(architecture, number, tuple(arguments))
    if operation == _INFO_EXIT:
        value, failed = struct.unpack_from("<qB", raw, _HEAD.size)
        return Exit(value, bool(failed))
    return None


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Up to `length` bytes of a process's memory. Raises OSError where nothing can be read."""
    buffer = ctypes.create_string_buffer(length)
    local = struct.pack("<QQ", ctypes.addressof(buffer), length)
    remote = struct.pack("<QQ", address & 0xFFFFFFFFFFFFFFFF, length)
    read = _checked(_readv(pid, local, 1, remote, 1, 0), "process_vm_readv", pid)
    return buffer.raw[:read]


def read_string(pid: int, address: int, most: int = _PAGE) -> bytes:
    """A string that ends with NUL, without it. Raises OSError when it cannot be read, or is `most` bytes or longer."""
    found = b""
    while len(found) < most:
        # Not over the end of a page: the next one need not be there.
        here = address + len(found)
        part = read_memory(pid, here, min(_PAGE - here % _PAGE, most - len(found)))
        text, end, _ = part.partition(b"\0")
        found += text
        if end:
            return found
    raise OSError(36, f"process_vm_readv {pid}: {os.strerror(36)}")
