"""The thread that traces a sandbox: from the kernel's stops to what an observer is told.

It traces pid 1 of the sandbox from before its first step until it has started the command, and then the command and
everything that comes of it; the kernel tells of the
calls that `calls.reporting_filter` names. It changes nothing: no register, no memory, no signal. When it ends, whatever
it still traces ends too (PTRACE_O_EXITKILL).
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from osmoda.host import ptrace
from osmoda.sandbox.errors import LaunchError

if TYPE_CHECKING:
    from typing import Protocol

    class Observer(Protocol):
        """Who is told. Threads are named by the ids that the host knows them by."""

        def entered(self, thread: int, call: ptrace.Entry) -> bool:
            """A call is about to be made; whether its result is to be told."""

        def left(self, thread: int, result: ptrace.Exit) -> None:
            """The result of a call for which `entered` was true."""

        def born(self, parent: int, child: int) -> None:
            """A process or thread was started."""

        def executed(self, thread: int, former: int) -> None:
            """A thread, until now `former`, runs another program."""

        def ending(self, thread: int) -> None:
            """A thread is about to end; its process can still be looked at."""

        def gone(self, thread: int) -> None:
            """It is gone."""


_OPTIONS = (
    ptrace.O_TRACESYSGOOD
    | ptrace.O_TRACEFORK
    | ptrace.O_TRACEVFORK
    | ptrace.O_TRACECLONE
    | ptrace.O_TRACEEXEC
    | ptrace.O_TRACEEXIT
    | ptrace.O_TRACESECCOMP
    | ptrace.O_EXITKILL
)
_BORN = (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE)
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_ANY_EVENT = os.WEXITED | os.WSTOPPED
_STOPPED = (os.CLD_TRAPPED, os.CLD_STOPPED)
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


class Tracer:
    """Traces what `begin` is given, in a thread of its own, until all of it is gone."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._thread: threading.Thread | None = None
        self._seized = threading.Event()
        self._refusal: OSError | None = None
        self._fault: BaseException | None = None
        self._begun = False

    def begin(self, pid: int) -> None:
        """Trace `pid` and all that it starts. Raises LaunchError where this host forbids it."""
        self._thread = threading.Thread(target=self._run, args=(pid,), name="tracer", daemon=True)
        self._thread.start()
        self._seized.wait()
        if self._refusal is not None:
            self._thread.join()
            raise LaunchError(f"the program cannot be observed: {self._refusal.strerror}{_hint()}")

    def end(self) -> None:
        """Wait until all that is traced is gone. Raises what went wrong in the thread."""
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _run(self, pid: int) -> None:
        try:
            ptrace.seize(pid, _OPTIONS)
        except OSError as error:
            self._refusal = error
            return
        finally:
            self._seized.set()
        try:
            self._follow(pid)
        except BaseException as error:
            # The thread's end kills all that it traces, so nothing runs on unobserved; `end` raises it.
            self._fault = error

    def _follow(self, first: int) -> None:
        while self._begun or self._peek(first):
            try:
                thread, status = os.waitpid(-1, ptrace.WALL | ptrace.WNOTHREAD)
            except ChildProcessError:
                return
            if not os.WIFSTOPPED(status):
                self._observer.gone(thread)
                continue
            try:
                if thread == first and status >> 16 in _BORN:
                    self._let_go(first)
                else:
                    self._stopped(thread, status)
            except ProcessLookupError:
                # It was killed while it was looked at; its end is still to be reported.
                ptrace.resume(thread, ptrace.PTRACE_CONT)

    def _peek(self, first: int) -> bool:
        """Wait for the next event; whether it is one, and not the end of pid 1 before it has started anything.

        That end is for whoever launched it: to the kernel this thread and they are the same parent.
        """
        try:
            found = os.waitid(os.P_ALL, 0, _ANY_EVENT | ptrace.WALL | ptrace.WNOTHREAD | os.WNOWAIT)
        except ChildProcessError:
            return False
        return found is not None and (found.si_pid != first or found.si_code in _STOPPED)

    def _let_go(self, first: int) -> None:
        """The first process has started the command, which stays traced with all that comes of it."""
        self._observer.born(first, ptrace.event_message(first))
        ptrace.resume(first, ptrace.PTRACE_DETACH)
        self._begun = True

    def _stopped(self, thread: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        how = ptrace.PTRACE_CONT
        if event == ptrace.EVENT_SECCOMP:
            call = ptrace.syscall_info(thread)
            if isinstance(call, ptrace.Entry) and self._observer.entered(thread, call):
                how = ptrace.PTRACE_SYSCALL
        elif number == _SYSCALL_STOP:
            result = ptrace.syscall_info(thread)
            if isinstance(result, ptrace.Exit):
                self._observer.left(thread, result)
        elif event in _BORN:
            self._observer.born(thread, ptrace.event_message(thread))
        elif event == ptrace.EVENT_EXEC:
            self._observer.executed(thread, ptrace.event_message(thread))
        elif event == ptrace.EVENT_EXIT:
            self._observer.ending(thread)
        elif event == ptrace.EVENT_STOP:
            # A new thread, or a stop of its whole process, which is to last (ptrace(2), "Group-stop").
            if number in _STOPPING:
                how = ptrace.PTRACE_LISTEN
        else:
            ptrace.resume(thread, how, number)  # a signal for the program
            return
        ptrace.resume(thread, how)


def _hint() -> str:
    """What forbids it, where that can be said."""
    try:
        with open(_YAMA) as file:
            scope = file.read().strip()
    except OSError:
        scope = ""
    if scope in ("2", "3"):
        return f" ({_YAMA} is {scope}: only an administrator may trace programs, or nobody; see ptrace(2))"
    return ""
