"""A launch that is held, from outside, at a system call of one of its processes: a stage.

`Tracer` runs the command under ptrace(2). It follows each process that belongs to the launch and knows it by its role:

- `monitor`: the command itself, from the first line of Python on
- `gateway`, `janitor`, `map`: what it clones, each by the flags and the order in which it does
- `init`: the sandbox's first process, and `command`, what that starts

A stage is a role, the name of a system call and how many of that name the process has made: nothing in the product
knows that it is looked at. At its stage the process stands before the call; what the others do meanwhile they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from osmoda.host import ptrace
from osmoda.sandbox.syscall_numbers import KNOWN
from tests.worlds import ENTER_WORLD, World

_OPTIONS = ptrace.O_TRACESYSGOOD | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE | ptrace.O_TRACEEXEC
_BORN = {ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE}
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_CLONE_NEWPID, _CLONE_NEWUSER = 0x20000000, 0x10000000
_INFO = struct.Struct("<B3xIQQ7Q")
SECONDS = 30.0

# What changes something that could be left behind, or waits for somebody who could be dead.
_TELLING_LINES = """
bind capset chdir chmod clone clone3 close_range connect epoll_create1 epoll_wait execve exit_group fchmod flock
fsconfig fsmount fsopen ftruncate kill landlock_add_rule landlock_create_ruleset landlock_restrict_self listen
memfd_create mkdir mkdirat mknod mknodat mount mount_setattr move_mount open_tree openat2 pause pidfd_open
pidfd_send_signal pipe2 pivot_root poll prctl prlimit64 pwrite64 recvfrom recvmsg rename renameat rmdir seccomp sendmsg
sendto setgroups sethostname setns setresgid setresuid setsid socket socketpair symlinkat umount2 unlink unlinkat
unshare vfork wait4 waitid write
"""
TELLING = frozenset(_TELLING_LINES.split())


class Stage(NamedTuple):
    role: str
    call: str
    nth: int

    def __str__(self) -> str:
        return f"{self.role} before {self.call} #{self.nth}"


@dataclass
class Traced:
    pid: int
    role: str
    counts: dict[str, int] = field(default_factory=dict)
    looked_at: bool = False


@dataclass(frozen=True)
class Ended:
    """How a held launch ended. `held` says whether its stage was reached, `stages` what its processes went through."""

    status: int
    output: str
    errors: str
    held: bool
    seconds: float
    stages: Sequence[Stage]


class Said:
    """What comes out of a pipe."""

    def __init__(self, fd: int) -> None:
        self.got = b""
        self._fd = fd
        self._ended = False
        os.set_blocking(fd, False)

    def ended(self) -> bool:
        """Take what is there; whether nobody holds the other end any more."""
        with contextlib.suppress(BlockingIOError):
            while not self._ended:
                some = os.read(self._fd, 1 << 16)
                self.got += some
                self._ended = not some
        return self._ended


class TookTooLongError(AssertionError):
    """Some process of the launch was still there at the end."""


_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = {number: name for name, number in KNOWN[os.uname().machine].items()}


class Tracer:
    """One launch. `clones` are the roles of what the monitor clones without namespaces, in order."""

    def __init__(self, world: World, argv: Sequence[str], clones: Sequence[str], **options: Any) -> None:
        self._clones = list(clones)
        self._options = options
        self._argv = ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *world.argv(argv)]
        self._world = world
        self._traced: dict[int, Traced] = {}
        self._early: dict[int, int] = {}
        self._stages: list[Stage] = []
        self._stage: Stage | None = None
        self._act: Callable[[Tracer], None] | None = None
        self._acted = False
        self._gone: set[int] = set()

    def pid(self, role: str) -> int:
        """The process of that role; 0 where there is none (yet, or any more)."""
        return next((traced.pid for traced in self._traced.values() if traced.role == role), 0)

    def run(self, stage: Stage | None = None, act: Callable[[Tracer], None] | None = None) -> Ended:
        """Run it to its end; at `stage` call `act` and from then on let it go."""
        self._stage, self._act = stage, act
        began = time.monotonic()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        process = subprocess.Popen(
            self._argv,
            cwd=self._world.tmp,
            env=dict(self._world.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **self._options,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            said = Said(process.stdout.fileno()), Said(process.stderr.fileno())
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
                os.waitpid(process.pid, os.WUNTRACED)
                ptrace.seize(process.pid, _OPTIONS)
                self._traced[process.pid] = Traced(process.pid, "")
                os.kill(process.pid, signal.SIGCONT)
                process.returncode = self._follow(process.pid, began + SECONDS, said)
            finally:
                for pid in (*self._traced, *self._early):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, ptrace.WALL)
                    process.returncode = process.returncode or -signal.SIGKILL
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        output, errors = (one.got.decode() for one in said)
        return Ended(process.returncode, output, errors, self._acted, time.monotonic() - began, self._stages)

    def _follow(self, main: int, until: float, said: Sequence[Said]) -> int:
        """Until all have ended, and nobody holds the streams: one that was born to a process being killed is late."""
        result: int | None = None
        while self._traced or not all(one.ended() for one in said):
            if not self._traced:
                self._adopt_early()
            pid, status = os.waitpid(-1, os.WNOHANG | ptrace.WALL)
            if pid == 0:
                left = until - time.monotonic()
                if left <= 0:
                    there = ", ".join(f"{traced.role} {traced.pid}" for traced in self._traced.values())
                    raise TookTooLongError(f"after {SECONDS:g} s there is still: {there or 'somebody with a stream'}")
                signal.sigtimedwait({signal.SIGCHLD}, min(left, 0.2))
                continue
            if not os.WIFSTOPPED(status):
                if pid == main:
                    result = os.waitstatus_to_exitcode(status)
                self._traced.pop(pid, None)
                self._early.pop(pid, None)
                self._gone.add(pid)
            elif pid in self._traced:
                self._stopped(self._traced[pid], status)
            elif not self._acted:
                self._early[pid] = status  # its first stop is here before the news of its birth
            else:
                # That news may not come any more.
                self._traced[pid] = Traced(pid, "unknown")
                self._stopped(self._traced[pid], status)
        assert result is not None
        return result

    def _stopped(self, traced: Traced, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        if number == _SYSCALL_STOP:
            self._called(traced)
            number = 0
        elif event in _BORN:
            self._born(traced)
            number = 0
        elif event == ptrace.EVENT_EXEC:
            self._executed(traced)
            number = 0
        elif event:
            if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU) and traced.role:
                ptrace.resume(traced.pid, ptrace.PTRACE_LISTEN)
                return
            number = 0
        self._go_on(traced, number)

    def _go_on(self, traced: Traced, number: int = 0) -> None:
        # Each stop costs: only whom the stage is about is stopped at system calls.
        sought = self._stage is None or traced.role == self._stage.role
        looking = traced.looked_at and sought and not self._acted
        ptrace.resume(traced.pid, ptrace.PTRACE_SYSCALL if looking else ptrace.PTRACE_CONT, number)

    def _called(self, traced: Traced) -> None:
        entered = _entry(traced.pid)
        if entered is None:
            return
        name = _NAMES.get(entered[0], str(entered[0]))
        if name not in TELLING:
            return
        nth = traced.counts[name] = traced.counts.get(name, 0) + 1
        stage = Stage(traced.role, name, nth)
        self._stages.append(stage)
        if self._act is not None and stage == self._stage and not self._acted:
            self._acted = True
            self._adopt_early()
            self._act(self)

    def _adopt_early(self) -> None:
        """Let those go on whose birth nobody will tell of any more."""
        for pid, status in tuple(self._early.items()):
            self._traced[pid] = Traced(pid, "unknown")
            self._stopped(self._traced[pid], status)
        self._early.clear()

    def _born(self, parent: Traced) -> None:
        try:
            pid = ptrace.event_message(parent.pid)
        except OSError:
            return  # it was killed in this very moment, and so is not stopped any more
        if pid in self._gone or pid in self._traced:
            return
        role = "command" if parent.role in ("init", "command") else parent.role and f"{parent.role}'s"
        if parent.role == "monitor":
            flags = _clone_flags(parent.pid)
            if flags & _CLONE_NEWPID:
                role = "init"
            elif flags & _CLONE_NEWUSER:
                role = "map"
            else:
                role = self._clones.pop(0) if self._clones else "another"
        child = self._traced[pid] = Traced(pid, role, looked_at=role in ("init", "gateway", "janitor", "map"))
        status = self._early.pop(pid, None)
        if status is not None:
            self._stopped(child, status)

    def _executed(self, traced: Traced) -> None:
        with open(f"/proc/{traced.pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        entering = os.fsencode(ENTER_WORLD) in words  # the script that becomes the ordinary user, with the same words
        if (
            not traced.role
            and b"-S" in words
            and any(word.endswith(b"osmoda-sandbox") for word in words)
            and not entering
        ):
            traced.role, traced.looked_at = "monitor", True


def _entry(pid: int) -> tuple[int, ...] | None:
    """Number and arguments of the system call before which `pid` has stopped; None after one."""
    buffer = ctypes.create_string_buffer(88)
    address = ctypes.addressof(buffer)
    if _libc.ptrace(ptrace.PTRACE_GET_SYSCALL_INFO, pid, ctypes.c_void_p(88), ctypes.c_void_p(address)) <= 0:
        return None  # it was killed
    operation, _, _, _, *call = _INFO.unpack_from(buffer.raw)
    return tuple(call) if operation == 1 else None


def _clone_flags(pid: int) -> int:
    """What the clone that `pid` is just making is asked for: it stopped within the call."""
    with open(f"/proc/{pid}/syscall") as file:
        number, first, *_ = file.read().split()
    if _NAMES.get(int(number)) != "clone3":
        return 0
    return int.from_bytes(ptrace.read_memory(pid, int(first, 16), 8), "little")
