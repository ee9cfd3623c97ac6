"""Which system calls name files or sockets, in which registers, and which of them are worth a stop.

A call that no profile can take away, and that names nothing, is let through without a look: reading, writing, memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from osmoda.sandbox import bpf
from osmoda.sandbox.bpf import JEQ, LD_ABS, RET, Instruction
from osmoda.sandbox.seccomp import FLOOR
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000

LOOK, OPEN, EXECUTE, ENTRY, CHANGE, ENTER = "look", "open", "execute", "entry", "change", "enter"
"""What a call does with a name: looks at it, opens it, executes it, makes, replaces or removes it in its folder,
changes what is there, makes it the current directory."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name among the arguments of a call.

    `path` and `folder` are registers, `folder` -1 for calls that start from the current directory. `follows`: a link
    in the last place is followed; `flags` is the register that says otherwise, -1 for none.
    """

    action: str
    path: int
    folder: int = -1
    follows: bool = True
    flags: int = -1


def _looks(*names: str, follows: bool = True) -> dict[str, tuple[Name, ...]]:
    return {name: (Name(LOOK, 0, -1, follows),) for name in names}


NAMES: Mapping[str, tuple[Name, ...]] = MappingProxyType(
    {
        "open": (Name(OPEN, 0, flags=1),),
        "openat": (Name(OPEN, 1, 0, flags=2),),
        "creat": (Name(OPEN, 0),),
        "execve": (Name(EXECUTE, 0),),
        "execveat": (Name(EXECUTE, 1, 0, flags=4),),
        **_looks("stat", "access", "statfs", "getxattr", "listxattr"),
        **_looks("lstat", "readlink", "lgetxattr", "llistxattr", follows=False),
        "newfstatat": (Name(LOOK, 1, 0, flags=3),),
        "statx": (Name(LOOK, 1, 0, flags=2),),
        "faccessat": (Name(LOOK, 1, 0),),
        "faccessat2": (Name(LOOK, 1, 0, flags=3),),
        "readlinkat": (Name(LOOK, 1, 0, False),),
        "inotify_add_watch": (Name(LOOK, 1),),
        "chdir": (Name(ENTER, 0),),
        **{name: (Name(ENTRY, 0, -1, False),) for name in ("mkdir", "rmdir", "unlink", "mknod")},
        **{name: (Name(ENTRY, 1, 0, False),) for name in ("mkdirat", "unlinkat", "mknodat")},
        "rename": (Name(ENTRY, 0, -1, False), Name(ENTRY, 1, -1, False)),
        "renameat": (Name(ENTRY, 1, 0, False), Name(ENTRY, 3, 2, False)),
        "renameat2": (Name(ENTRY, 1, 0, False), Name(ENTRY, 3, 2, False)),
        "link": (Name(CHANGE, 0, -1, False), Name(ENTRY, 1, -1, False)),
        "linkat": (Name(CHANGE, 1, 0, False, 4), Name(ENTRY, 3, 2, False)),
        "symlink": (Name(ENTRY, 1, -1, False),),
        "symlinkat": (Name(ENTRY, 2, 1, False),),
        **{
            name: (Name(CHANGE, 0),)
            for name in ("truncate", "chmod", "chown", "utime", "utimes", "setxattr", "removexattr")
        },
        **{name: (Name(CHANGE, 0, -1, False),) for name in ("lchown", "lsetxattr", "lremovexattr")},
        **{name: (Name(CHANGE, 1, 0),) for name in ("fchmodat", "futimesat")},
        "fchmodat2": (Name(CHANGE, 1, 0, flags=3),),
        "utimensat": (Name(CHANGE, 1, 0, flags=3),),
        "fchownat": (Name(CHANGE, 1, 0, flags=4),),
    }
)
"""The calls that name files."""

ON_DESCRIPTORS = frozenset({"fchmod", "fchown", "fsetxattr", "fremovexattr"})
"""Calls that change what a descriptor is of, however that was opened; their first register is it."""

ATTRIBUTES = frozenset(
    {"stat", "lstat", "newfstatat", "statx", "statfs", "access", "faccessat", "faccessat2"},
)
"""Calls that tell what a file is, and nothing of what is in it."""

SOCKETS = frozenset({"socket", "connect", "bind"})
TOLD_BY_RESULT = frozenset({*NAMES, *ON_DESCRIPTORS, *SOCKETS})
"""The calls of which it matters whether they succeeded."""

_UNOBSERVED = FLOOR - TOLD_BY_RESULT


def follows(name: Name, call: str, arguments: tuple[int, ...]) -> bool:
    """Whether the call follows a link in the last place of `name`."""
    if name.flags < 0:
        return name.follows
    flags = arguments[name.flags]
    if name.action == OPEN:
        return not (flags & os.O_NOFOLLOW or (flags & os.O_CREAT and flags & os.O_EXCL))
    if call == "linkat":
        return bool(flags & AT_SYMLINK_FOLLOW)
    return not flags & AT_SYMLINK_NOFOLLOW


def reporting_filter(machine: str) -> bytes:
    """A filter that answers "trace" to every call of `machine` that is worth a look, and "allow" to all others.

    It stands beside the filter that decides, whose refusals are stricter than both.
    """
    program = [
        Instruction(LD_ABS, 0, 0, bpf.ARCH),
        Instruction(JEQ, 1, 0, AUDIT_ARCH[machine]),
        Instruction(RET, 0, 0, bpf.ALLOW),
        Instruction(LD_ABS, 0, 0, bpf.NR),
    ]
    table = KNOWN[machine]
    for number in sorted(table[name] for name in _UNOBSERVED if name in table):
        program += [Instruction(JEQ, 0, 1, number), Instruction(RET, 0, 0, bpf.ALLOW)]
    program.append(Instruction(RET, 0, 0, bpf.TRACE))
    return bpf.encode(program)
