"""System calls as an attacker makes them: raw, so that nothing between the attack and the kernel decides.

A call that fails raises `Refused`, which holds all that must be known to tell afterwards which layer refused it.
"""

from __future__ import annotations

import errno as errors
import posix
from ctypes import Array, addressof, c_char, create_string_buffer
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.syscall_numbers import KNOWN

if TYPE_CHECKING:
    from typing import Any

MACHINE = posix.uname().machine
NUMBERS = KNOWN[MACHINE]
AT_FDCWD = -100

type About = tuple[Any, ...]
"""What a refused call was about: its kind, then what of that kind, as `verify_layers` reads it."""


class Refused(Exception):
    """The kernel refused: `number` is the errno, `call` and `registers` what was asked, `about` what it was about."""

    def __init__(self, number: int, call: str, registers: tuple[int, ...] = (), about: About = ()) -> None:
        self.number = number
        self.call = call
        self.registers = registers
        self.about = about
        what = errors.errorcode.get(number, str(number)) if number else "nothing was gained"
        super().__init__(f"{call}: {what}" if call else what)


class Absent(Exception):
    """There is nothing here to attack; the message says what is missing."""


def buffer(content: bytes | int) -> Array[c_char]:
    """Memory of the attack's own with `content`, or that many zero bytes; `raw` is what it holds."""
    return create_string_buffer(content)


type Argument = int | bytes | Array[c_char]


def call(name: str, *arguments: Argument, about: About = ()) -> int:
    """The system call `name`; bytes are passed by their address. Raises Refused, and Absent where there is none."""
    if name not in NUMBERS:
        raise Absent(f"{MACHINE} has no call {name}")
    held = [buffer(argument) if isinstance(argument, bytes) else argument for argument in arguments]
    registers = tuple([(one if isinstance(one, int) else addressof(one)) & 0xFFFFFFFFFFFFFFFF for one in held])
    result, number = syscalls.syscall(NUMBERS[name], *registers)
    if result < 0:
        raise Refused(number, name, registers, about)
    return result


def reach(name: str, *arguments: Argument, answers: str = "", about: About = ()) -> str:
    """A call that has got as far as the kernel's own code for it: it works, or fails as only that code does.

    `answers` are the names of those errors.
    """
    try:
        call(name, *arguments, about=about)
    except Refused as refused:
        found = errors.errorcode.get(refused.number, "")
        if found in answers.split():
            return f"the kernel looked at the arguments: {found}"
        raise
    return "it worked"


# Files


def open_path(path: str, flags: int, mode: int = 0, *, about: About = ()) -> int:
    """Open `path`; a refusal is about that path, or about what it leads to."""
    reading = "list" if flags & posix.O_DIRECTORY else "read"
    about = about or ("path", path, "write" if flags & (posix.O_WRONLY | posix.O_RDWR) else reading)
    return call("openat", AT_FDCWD, path.encode("utf-8", "surrogateescape"), flags, mode, about=about)


def read(fd: int, length: int = 4096, about: About = ()) -> bytes:
    """Up to `length` bytes of `fd`."""
    memory = buffer(length)
    count = call("read", fd, memory, length, about=about)
    return bytes(memory.raw[:count])


def content(path: str, length: int = 65536, about: About = ()) -> bytes:
    """The beginning of a file."""
    about = about or ("path", path, "read")
    fd = open_path(path, posix.O_RDONLY | posix.O_NONBLOCK, about=about)
    try:
        return read(fd, length, about)
    finally:
        posix.close(fd)


def writable(path: str) -> str:
    """Open a file for writing, and leave it as it is."""
    posix.close(open_path(path, posix.O_WRONLY | posix.O_NONBLOCK))
    return f"{path} is open for writing"


def status(name: str) -> str:
    """A field of /proc/self/status (proc_pid_status(5))."""
    for line in content("/proc/self/status").decode().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    raise Absent(f"this kernel does not tell {name}")
