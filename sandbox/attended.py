"""pid 1 of a sandbox that a supervisor looks after: it starts the command with its sockets, and does as it is told.

An ordinary run needs no more of its pid 1 than to reap, to end what the command leaves behind, and to say so (init.py).
A supervisor may want to signal all that is inside, and to let what a command leaves behind have its time after its end
(KillMode= in systemd.kill(5)). Only pid 1 can do that without a race: it is told on the control socket, whose news come
as a signal (O_ASYNC), so that one call waits for them and for children.

Orders are messages to pid 1: `G`, the parent has seen the command, which may be reaped from now on; `A` and the number
of a signal, for every process but pid 1; `K`, end them all. It says `M` with the wait status, CPU times and peak memory
of the command when that has ended, and `S` as any pid 1 does when nothing is left. Without a pid namespace (tier 0)
"every process" is this one's descendants, as a subreaper has them.

Nothing may be imported here after the launch: this runs where init.py does.
"""

from __future__ import annotations

import _socket
import fcntl
import marshal
import posix

from osmoda.host import syscalls
from osmoda.sandbox import init
from osmoda.sandbox.assignment import Assignment

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn

    from osmoda.sandbox.init import Command
else:
    import _signal

FIRST_SOCKET = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_SIGKILL, _SIGCHLD, _SIGIO = 9, 17, 29
_WAKING = (_SIGCHLD, _SIGIO)
_F_SETOWN, _F_SETFL, _O_ASYNC = 8, 4, 0o20000


class Life:
    """What becomes of pid 1 once its sandbox is built. Made before the launch, used inside."""

    def __init__(self) -> None:
        self._holds = False

    def stay(self, kept: int) -> None:
        """In tier 0, outlive the launcher by as much as it takes to end what is inside: the end of file tells of it.

        Descriptors from `kept` on are the launcher's: those of other sandboxes would keep these from their ends of
        file.
        """
        syscalls.close_range(kept, 0x7FFFFFFF)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)

    def spawn(self, given: Command | Assignment) -> int:
        """Start the command: its pid. Raises OSError as `init.spawn` does."""
        assert isinstance(given, Assignment), "a supervised command is assigned"
        self._holds = given.holds
        if not given.names:
            return init.spawn(given, b"")
        try:
            return _fork_with_sockets(given)
        finally:
            for fd in given.sockets:
                posix.close(fd)

    def end(self) -> None:
        """This process ends of an error: in tier 0 what was started would stay."""
        try:
            while posix.getpid() != 1:
                signal_all(_SIGKILL)
                posix.waitpid(-1, 0)
        except ChildProcessError:
            return

    def attend(self, main: int, control: _socket.socket) -> NoReturn:
        """Reap, say what ends, do as told; when nothing is left, wait for the parent to end this process."""
        # All signals are blocked here, so that none is lost between two waits; anyone inside may send these two, which
        # costs a look at what there is.
        fcntl.fcntl(control.fileno(), _F_SETOWN, posix.getpid())
        fcntl.fcntl(control.fileno(), _F_SETFL, posix.O_RDWR | _O_ASYNC)
        ending = False
        end = b""
        # Who it is on the host can be told only while there is a process of that number.
        orders = [_order(control)]
        while True:
            orders += _orders(control)
            try:
                while True:
                    pid, status, user, system, peak = syscalls.wait4(-1, posix.WNOHANG)
                    if pid == 0:
                        break
                    if pid == main:
                        end = marshal.dumps((status, user, system, peak))
                        _tell(control, b"M" + end)
                        ending = ending or not self._holds
            except ChildProcessError:
                _tell(control, b"S" + end)
                while _order(control) not in (b"", b"K"):
                    continue  # orders that came too late
                posix._exit(0)
            for order in orders:
                if order[:1] == b"A" and not ending:
                    signal_all(order[1])
                ending = ending or order in (b"K", b"")
            orders = []
            if ending:
                signal_all(_SIGKILL)
            _signal.sigwait(_WAKING)


def _tell(control: _socket.socket, message: bytes) -> None:
    try:
        control.send(message)
    except OSError:
        return  # the parent was killed: the next order is the end of file


def _order(control: _socket.socket, flags: int = 0) -> bytes:
    """The next order; an empty one is the end of file."""
    try:
        return control.recv(16, flags)
    except ConnectionResetError:
        return b""  # the parent was killed before it had read all


def _orders(control: _socket.socket) -> list[bytes]:
    """What has come since the last look."""
    found: list[bytes] = []
    try:
        while not found or found[-1]:
            found.append(_order(control, _socket.MSG_DONTWAIT))
    except BlockingIOError:
        return found
    return found


def _fork_with_sockets(given: Assignment) -> int:
    """Start the command with its sockets from descriptor 3 on, and what says so (sd_listen_fds(3)).

    LISTEN_PID must be the pid of the process that is executed, which posix_spawn(3) cannot put into its environment.
    """
    environment = dict(given.environment)
    init.enter_directory(given.directory)
    program = init.find(given.argv[0], environment.get("PATH", ""))
    failure, report = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            above = FIRST_SOCKET + len(given.sockets)
            report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in given.sockets]
            for fd in given.sockets:
                # Those that have come are inherited, as streams are meant to be.
                posix.close(fd)
            for number, fd in enumerate(moved, FIRST_SOCKET):
                posix.dup2(fd, number)
            posix.setsid()
            environment["LISTEN_PID"] = str(posix.getpid())
            environment["LISTEN_FDS"] = str(len(moved))
            environment["LISTEN_FDNAMES"] = ":".join(given.names)
            for number in init.DEFAULTED:
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            posix.execve(program, given.argv, environment)
        except OSError as error:
            posix.write(report, (error.errno or 0).to_bytes(4, "little"))
        finally:
            posix._exit(127)
    posix.close(report)
    failed = posix.read(failure, 4)
    posix.close(failure)
    if failed:
        posix.waitpid(pid, 0)
        number = int.from_bytes(failed, "little")
        raise OSError(number, f"execve {program}: {posix.strerror(number)}")
    return pid


def signal_all(number: int) -> None:
    """Signal every process of the sandbox but this one."""
    if posix.getpid() == 1:
        try:
            posix.kill(-1, number)
        except ProcessLookupError:
            return  # there is none
        return
    told: set[int] = set()
    # Who is forked while the others are told is found by the next pass; who forks faster than that is not waited for:
    # SIGKILL is repeated whenever one of them has ended.
    for _ in range(8):
        found = [(pid, parent) for pid, parent in _descendants(posix.getpid()) if pid not in told]
        if not found:
            return
        for pid, parent in found:
            told.add(pid)
            _signal_child(pid, parent, number)


def _descendants(top: int) -> list[tuple[int, int]]:
    """All that are below `top`, each with its parent; the list is of different moments."""
    found: list[tuple[int, int]] = []
    parents = [top]
    for parent in parents:
        for child in _children(parent):
            found.append((child, parent))
            parents.append(child)
    return found


def _children(parent: int) -> list[int]:
    """The children of all threads of a process (proc_pid_task(5)); none where it has ended."""
    found: list[int] = []
    try:
        for thread in posix.listdir(f"/proc/{parent}/task"):
            found += [int(word) for word in _content(f"/proc/{parent}/task/{thread}/children").split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def _signal_child(pid: int, parent: int, number: int) -> None:
    """Signal `pid` if it is a child of `parent`, or of this process, whom orphans come to; else it has ended."""
    try:
        pidfd = posix.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # A number may be another process's by now. Whoever the descriptor means is there still when it can be
        # signalled, so what was read of its number between the two was its own.
        fields = _content(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if len(fields) > 1 and int(fields[1]) in (parent, posix.getpid()):
            syscalls.pidfd_send_signal(pidfd, number)
    except (FileNotFoundError, ProcessLookupError):
        return
    except PermissionError:
        return  # it has become another user's, as a set-user-id program may in tier 0
    finally:
        posix.close(pidfd)


def _content(path: str) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 1 << 16)
    finally:
        posix.close(fd)
