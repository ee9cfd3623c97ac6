"""The observer of a run: system calls, as the tracer tells of them, become `Seen`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.egress.addresses import classify
from osmoda.host import ptrace
from osmoda.sandbox import call_words, syscall_numbers
from osmoda.sandbox.learning import calls, walk
from osmoda.sandbox.learning.seen import ENTRY, LINK, LIST, LISTED, PROBE, READ, STAT, WRITE, Seen, Use
from osmoda.sandbox.seccomp import FLOOR
from osmoda.sandbox.seccomp_arguments import FAMILIES
from osmoda.sandbox.system_view import HOME

if TYPE_CHECKING:
    from osmoda.sandbox.learning.walk import Walked

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
_LONGEST_ADDRESS = 110  # sizeof(struct sockaddr_un)
_SCRATCH = (b"/tmp", os.fsencode(HOME), b"/dev/shm")
_UNKNOWN_PROGRAM = "?"


@dataclass(frozen=True, slots=True)
class _Named:
    """One name of a call that has been entered: what is to be noted once it is known whether the call succeeded."""

    action: str
    walked: Walked
    kind: int
    relative: bool
    existed: bool


@dataclass(frozen=True, slots=True)
class _Pending:
    call: str
    arguments: tuple[int, ...]
    names: tuple[_Named, ...]
    address: bytes


class Watch:
    """The observer of one sandbox, whose pid 1 is `init` and whose command is called `command`.

    What it has seen is `seen`.
    """

    def __init__(self, machine: str, command: str) -> None:
        self.seen = Seen()
        self.init = -1
        self._command = command
        self._started = False
        self._numbers = {number: name for name, number in syscall_numbers.KNOWN[machine].items()}
        self._walker = walk.Walker()
        self._pending: dict[int, _Pending] = {}
        self._programs: dict[int, str] = {}
        self._alive: set[int] = set()

    # --- what the tracer tells ---

    def entered(self, thread: int, call: ptrace.Entry) -> bool:
        """See `tracer.Observer`."""
        if thread == self.init:
            return False
        name = self._numbers.get(call.number)
        if name is None:
            return False
        if name not in FLOOR:
            self._note_call(name, thread)
        if name not in calls.TOLD_BY_RESULT:
            return False
        self._pending[thread] = _Pending(
            name, call.arguments, self._names(thread, name, call.arguments), self._address(thread, name, call.arguments)
        )
        return True

    def left(self, thread: int, result: ptrace.Exit) -> None:
        """See `tracer.Observer`."""
        pending = self._pending.pop(thread, None)
        if pending is None:
            return
        if pending.call in calls.SOCKETS:
            self._socket(thread, pending, result)
        elif not result.failed:
            self._succeeded(thread, pending, result.value)
        elif -result.value in (*_REFUSED, *_MISSING):
            program = self._program(thread)
            for name in pending.names:
                self.seen.fail(name.walked.path, name.kind, program)

    def born(self, parent: int, child: int) -> None:
        """See `tracer.Observer`."""
        self._programs[child] = self._program(parent)
        self._alive.add(child)
        self.seen.threads = max(self.seen.threads, len(self._alive))

    def executed(self, thread: int, former: int) -> None:
        """See `tracer.Observer`."""
        pending = self._pending.pop(former, None)
        if former != thread:
            self._alive.discard(former)
        named = pending.names[0] if pending is not None and pending.names else self._own_name(thread)
        self._started = True
        program = os.path.basename(self._command)
        if named is not None:
            walked = named.walked
            # By the name it was called: what a link leads to may be one program for many names.
            first = walked.links[0][0] if walked.links else walked.path
            program = os.fsdecode(os.path.basename(first))
            self._passed(walked, program)
            self.seen.path(walked.path, READ, program, relative=named.relative)
            self._interpreter(thread, walked.path, program)
        self._programs[thread] = program
        for path in _mapped(thread):
            self.seen.path(path, READ, program)

    def _own_name(self, thread: int) -> _Named | None:
        """The command by the name that its caller gave; None where it was looked up among the system's programs."""
        if self._started or "/" not in self._command:
            return None
        walked = self._walker.walk(thread, calls.AT_FDCWD, os.fsencode(self._command), follow=True)
        if walked is None:
            return None
        return _Named(calls.EXECUTE, walked, READ, not self._command.startswith("/"), True)

    def ending(self, thread: int) -> None:
        """See `tracer.Observer`."""
        used = 0
        for path in _SCRATCH:
            with contextlib.suppress(OSError):
                status = os.statvfs(walk.inside(thread, path))
                used = max(used, (status.f_blocks - status.f_bfree) * status.f_frsize)
        self.seen.scratch = max(self.seen.scratch, used)

    def gone(self, thread: int) -> None:
        """See `tracer.Observer`."""
        self._alive.discard(thread)
        self._pending.pop(thread, None)
        self._programs.pop(thread, None)

    # --- names ---

    def _names(self, thread: int, call: str, arguments: tuple[int, ...]) -> tuple[_Named, ...]:
        if call in calls.ON_DESCRIPTORS:
            return self._descriptor(thread, arguments[0])
        found: list[_Named] = []
        for name in calls.NAMES.get(call, ()):
            address = arguments[name.path]
            if not address:
                # utimensat(2) without a name is about the descriptor.
                found += self._descriptor(thread, arguments[name.folder]) if name.action == calls.CHANGE else ()
                continue
            try:
                text = ptrace.read_string(thread, address)
            except OSError:
                # The command's own name lies in memory that began as the launcher's, which nobody may look into.
                self.seen.unreadable += self._started
                continue
            folder = arguments[name.folder] if name.folder >= 0 else calls.AT_FDCWD
            if not text:
                # AT_EMPTY_PATH: the descriptor itself. To look at what is open needs no grant of its own.
                found += self._descriptor(thread, folder) if name.action == calls.CHANGE else ()
                continue
            walked = self._walker.walk(thread, folder, text, follow=calls.follows(name, call, arguments))
            if walked is None:
                continue
            at_current = not text.startswith(b"/") and folder & 0xFFFFFFFF == calls.AT_FDCWD & 0xFFFFFFFF
            found.append(self._named(thread, call, name.action, walked, arguments, at_current))
        return tuple(found)

    def _named(
        self, thread: int, call: str, action: str, walked: Walked, arguments: tuple[int, ...], relative: bool
    ) -> _Named:
        kind, existed = READ, True
        if action == calls.OPEN:
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
            if call != "creat":
                flags = arguments[2] if call == "openat" else arguments[1]
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                # A file without a name in this folder.
                return _Named(calls.LOOK, walked, LIST | ENTRY, relative, True)
            if flags & os.O_CREAT:
                existed = os.path.lexists(walk.inside(thread, walked.path))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                kind = WRITE
        elif action == calls.ENTRY:
            kind = ENTRY
        elif action == calls.CHANGE:
            kind = WRITE
        elif action == calls.ENTER:
            kind = PROBE
        return _Named(action, walked, kind, relative, existed)

    def _descriptor(self, thread: int, descriptor: int) -> tuple[_Named, ...]:
        path = walk.base_of(thread, descriptor)
        if path is None:
            return ()
        return (_Named(calls.CHANGE, walk.Walked(path, ()), WRITE, False, True),)

    def _succeeded(self, thread: int, pending: _Pending, value: int) -> None:
        program = self._program(thread)
        for name in pending.names:
            path, kind = name.walked.path, name.kind
            listed = name.action == calls.LOOK and pending.call in calls.ATTRIBUTES and self._of_a_list(name.walked)
            self._passed(name.walked, program, LISTED if listed else LINK)
            if name.action == calls.OPEN:
                self.seen.descriptor = max(self.seen.descriptor, value)
                # What the kernel has opened, whatever the name has come to mean since.
                path = walk.linked(thread, b"fd/%d" % value) or path
                if not name.existed:
                    self._walker.forget(path)
                    path, kind = os.path.dirname(path), ENTRY
                elif kind == READ and _is_folder(thread, b"fd/%d" % value):
                    kind = LIST
            elif name.action == calls.ENTRY:
                self._walker.forget(path, tree=pending.call.startswith("rename"))
                path = os.path.dirname(path)
            elif name.action == calls.LOOK and kind == READ:
                if _is_folder(thread, b"root" + path):
                    kind = PROBE
                elif pending.call in calls.ATTRIBUTES:
                    kind = LISTED if listed else STAT
            self.seen.path(path, kind, program, relative=name.relative)

    def _of_a_list(self, walked: Walked) -> bool:
        """Whether the first link of the way stands in a folder that was listed: its name may be of that list."""
        folder = self.seen.paths.get(os.path.dirname(walked.links[0][0])) if walked.links else None
        return folder is not None and bool(folder.kinds & LIST)

    def _passed(self, walked: Walked, program: str, kind: int = LINK) -> None:
        for link, target in walked.links:
            self.seen.links[link] = target
            self.seen.path(link, kind, program)

    def _interpreter(self, thread: int, path: bytes, program: str) -> None:
        """The program that the kernel runs a script with (execve(2), "Interpreter scripts")."""
        try:
            with open(walk.inside(thread, path), "rb") as script:
                line = script.readline(256)
        except OSError:
            return
        words = line[2:].split() if line.startswith(b"#!") else []
        if words and words[0].startswith(b"/"):
            walked = self._walker.from_folder(thread, b"/", words[0], follow=True)
            if walked is not None:
                self._passed(walked, program)

    # --- sockets ---

    def _address(self, thread: int, call: str, arguments: tuple[int, ...]) -> bytes:
        if call not in ("connect", "bind"):
            return b""
        try:
            return ptrace.read_memory(thread, arguments[1], min(arguments[2] & 0xFFFFFFFF, _LONGEST_ADDRESS))
        except OSError:
            self.seen.unreadable += 1
            return b""

    def _socket(self, thread: int, pending: _Pending, result: ptrace.Exit) -> None:
        program, seen = self._program(thread), self.seen
        if pending.call == "socket":
            family = _FAMILY_NAMES.get(pending.arguments[0] & 0xFFFFFFFF)
            if family and not result.failed and not call_words.habitual("socket", pending.arguments):
                seen.families.setdefault(family, Use()).add(READ, program)
                seen.descriptor = max(seen.descriptor, result.value)
            return
        address = pending.address
        family_number = int.from_bytes(address[:2], "little") if len(address) > 2 else 0
        if family_number == socket.AF_UNIX:
            self._unix(thread, pending.call, address[2:], result, program)
            return
        found = _internet(family_number, address)
        if found is None:
            return
        packed, port = found
        text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
        if pending.call == "bind":
            if not result.failed and port:
                seen.listening.setdefault((text, port), Use()).add(READ, program)
                seen.loopback.add(READ, program)
        elif classify(packed) == "loopback":
            seen.loopback.add(READ, program)
        elif classify(packed) != "ours" and port:
            seen.addresses.setdefault((text, port), Use()).add(READ, program)

    def _unix(self, thread: int, call: str, name: bytes, result: ptrace.Exit, program: str) -> None:
        if name.startswith(b"\0") or not (name := name.partition(b"\0")[0]):
            return  # abstract names stay inside
        walked = self._walker.walk(thread, calls.AT_FDCWD, name, follow=call == "connect")
        if walked is None:
            return
        if call == "connect":
            if result.failed and -result.value != errno.EINPROGRESS:
                self.seen.sockets.setdefault(walked.path, Use()).add(READ, program)
        elif not result.failed:
            self._walker.forget(walked.path)
            self.seen.path(os.path.dirname(walked.path), ENTRY, program, relative=not name.startswith(b"/"))

    # --- programs ---

    def _note_call(self, name: str, thread: int) -> None:
        self.seen.calls.setdefault(name, Use()).add(READ, self._program(thread))

    def _program(self, thread: int) -> str:
        known = self._programs.get(thread)
        if known is None:
            # The new thread was heard of before its parent's event.
            try:
                with open(f"/proc/{thread}/comm", errors="replace") as file:
                    known = file.read().strip()
            except OSError:
                known = _UNKNOWN_PROGRAM
            self._programs[thread] = known
        return known


def _internet(family: int, address: bytes) -> tuple[bytes, int] | None:
    """The packed address and the port of a sockaddr_in or sockaddr_in6 (ip(7), ipv6(7))."""
    if family == socket.AF_INET and len(address) >= 8:
        return address[4:8], struct.unpack_from(">H", address, 2)[0]
    if family == socket.AF_INET6 and len(address) >= 24:
        return address[8:24], struct.unpack_from(">H", address, 2)[0]
    return None


def _is_folder(thread: int, what: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(b"/proc/%d/%s" % (thread, what)).st_mode)
    except OSError:
        return False


def _mapped(thread: int) -> set[bytes]:
    """The files that a program begins with: its own, and its loader (proc_pid_maps(5))."""
    found = set()
    try:
        with open(f"/proc/{thread}/maps", "rb") as lines:
            for line in lines:
                fields = line.rstrip(b"\n").split(None, 5)
                # Names with a newline are written with an octal escape.
                if len(fields) == 6 and fields[5].startswith(b"/") and not fields[5].endswith(b" (deleted)"):
                    found.add(fields[5].replace(b"\\012", b"\n"))
    except OSError:
        return set()
    return found
