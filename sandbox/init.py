"""The child's half of a launch: apply the plan, start the command, then be pid 1 until nothing is left.

It runs in the interpreter that the parent cloned. Nothing may be imported here: after pivot_root the standard library
is gone.

Messages to the parent, on a SOCK_SEQPACKET pair, by their first byte: `G` the sockets through which the network leads
out, `N` the socket for notifications, `L` the seccomp listener and the pty master (descriptors), `A` what a sandbox
that has waited is to run, where that goes on the ledger, `P` a pidfd of the command, `Z` the command was stopped, `S`
the last process but this one is gone (wait status, CPU times, peak memory), `E` a step failed (its index, errno, text).
A message comes back when the terminal is set up, the network in a gateway's hands and the launch on the ledger, and
when a stopped command is to continue; after `S` the parent tells its caller and then ends this process. A sandbox that
waits in a pool gets its command on a socket of its own, after `L` (see assignment.py). That of a supervised command is
told more, and says more (see attended.py).
"""

from __future__ import annotations

import _socket
import fcntl
import marshal
import posix

from osmoda.host import cgroup, syscalls
from osmoda.host.frozen import frozen, values_of
from osmoda.sandbox import assignment
from osmoda.sandbox.operations import confinement

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    from osmoda.sandbox import attended
    from osmoda.sandbox.operations import Operation, Setup
else:
    import _signal

_CONTROL, _ASSIGNMENTS = 3, 4
_ABOVE = 16  # above all that are put in place: three streams, the control socket, three more
# What Python ignores (SIGPIPE, SIGXFSZ), and what job control needs, start from the default in the command.
DEFAULTED = (2, 3, 13, 15, 17, 18, 20, 21, 22, 25, 28)
_SIGCONT, _SIGTTIN, _SIGTTOU = 18, 21, 22
_ENOMEM, _EINVAL, _EMFILE = 12, 22, 24
COMMAND = -1
RLIMIT_NOFILE = 7

open_files: tuple[int, int] | None = None
"""The caller's limits of open files (soft, hard), where the launcher has raised its own: children start from them."""


@frozen
class Command:
    """What to run inside: `argv[0]` is looked up in the PATH of `environment`, below the sandbox's root.

    `stdin`, `stdout` and `stderr` are descriptors of the caller's; those in `terminals` (0, 1, 2) become the
    sandbox's own pty.

    A `function` is called in place of the program, where that would be executed, and gives the exit status: it needs no
    interpreter in view. All that it uses must be imported before the launch, and it holds a copy of the launcher's
    memory, so that nothing of a payload's may be called so.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    directory: bytes
    stdin: int
    stdout: int
    stderr: int
    terminals: tuple[int, ...]
    function: Callable[[], int] | None = None

    def with_variables(self, more: tuple[tuple[str, str], ...]) -> Command:
        """The same with `more` variables, which win."""
        environment = tuple((dict(self.environment) | dict(more)).items())
        return Command(self.argv, environment, *values_of(self)[2:])


def enter(
    operations: tuple[Operation, ...],
    setup: Setup,
    command: Command,
    control: _socket.socket,
    groups: tuple[int, ...],
    leases: tuple[int, ...],
    waits_first: bool,
    title: bytes,
    assignments: _socket.socket | None = None,
    life: attended.Life | None = None,
    recorded: bool = False,
) -> NoReturn:
    """Everything the child does; never returns and never raises.

    With `assignments` the command is what comes there when all operations are applied. `life` starts the command and is
    pid 1 from then on, where it is not this module that does so. `recorded`: the command waits until the parent has
    put the launch on the ledger.
    """
    step = COMMAND
    waits = bool(command.terminals)
    own = (control.fileno(), assignments.fileno(), *leases) if assignments else (control.fileno(), *leases)
    setup.kept = _CONTROL + len(own) if life is not None else max(setup.kept, _CONTROL + len(own))
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        if waits_first:
            # The parent writes the id maps, or begins to observe; an end of file means that it died before the line
            # above.
            if control.recv(1) != b"M":
                posix._exit(125)
        elif _closed(control):
            posix._exit(125)
        cgroup.join(groups)
        if groups and posix.getpid() == 1:
            # Now that it is in its group: the name that it has on the host is not the sandbox's to see.
            posix.unshare(syscalls.CLONE_NEWCGROUP)
        _take_stdio(command, own)
        control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _CONTROL)
        step = 0
        for operation in operations:
            if type(operation) is confinement.Capabilities:
                _retitle(title)
                # Nobody inside may look into this process, which began as a copy of the launcher. The command gets a
                # memory of its own, that it may look into, when it is executed.
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            operation.apply(setup)
            if setup.sockets:
                _send(control, b"G", *setup.sockets)
                setup.sockets = ()
                waits = True
            if setup.notify >= 0:
                _send(control, b"N", setup.notify)
                setup.notify = -1
            if operation.layer == "seccomp":
                _send(control, b"L", setup.listener, setup.master)
            step += 1  # noqa: SIM113 - what fails before the first is no step's
        step = COMMAND
        began = b""
        if posix.getpid() != 1:
            # Tier 0 has no pid namespace: what is orphaned comes to this process, and ends with it.
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            if life is not None:
                life.stay(setup.kept)
            _lower_open_files()
        given: Command | assignment.Assignment = command
        if assignments is not None:
            given, began = _await_command()
            if recorded:
                _send(control, b"A", more=marshal.dumps(assignment.shown(given.argv)))
        waits = waits or recorded
        # The first thing the command may ask is the size of its window, or a name of the network.
        if waits and control.recv(1) != b"C":
            posix._exit(125)
        pid = spawn(given, setup.slave) if life is None else life.spawn(given)
        pidfd = posix.pidfd_open(pid)
        _send(control, b"P", pidfd, more=began)
        _give_up_stdio()
        if life is not None:
            life.attend(pid, control)
        _reap(pid, control, bool(given.terminals))
    except OSError as error:
        text = error.strerror or "failed"
        _report(control, step, error.errno or 0, text)
    except MemoryError:
        _report(control, step, _ENOMEM, "the set-up has failed")
    except BaseException as error:
        _report(control, step, 0, f"{type(error).__name__}: {error}")
    finally:
        try:
            if life is not None:
                life.end()
        finally:
            posix._exit(125)


def _lower_open_files() -> None:
    """Go back to the caller's limits of open files, or stay below them (tiers 1 and 2 have a limit of their own)."""
    if open_files is not None:
        # The launcher's descriptors, more than the limit perhaps, would be in the way of this process's next one.
        syscalls.close_range(6, 0x7FFFFFFF)
        now = syscalls.prlimit_get(RLIMIT_NOFILE)
        syscalls.prlimit_self(RLIMIT_NOFILE, min(now[0], open_files[0]), min(now[1], open_files[1]))


def _closed(control: _socket.socket) -> bool:
    try:
        return control.recv(1, _socket.MSG_DONTWAIT | _socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def _take_stdio(command: Command, own: tuple[int, ...]) -> None:
    """Put the command's streams at 0-2, the control socket at 3, and what pid 1 holds besides (leases) from 4 on."""
    # The sources may lie in each other's way: move them above everything first.
    streams = (command.stdin, command.stdout, command.stderr)
    try:
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in (*streams, *own)]
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        raise OSError(_EMFILE, posix.strerror(_EMFILE)) from None  # the limit is not above that number
    for target, fd in enumerate(moved):
        posix.dup2(fd, target, target < _CONTROL)


def _await_command() -> tuple[assignment.Assignment, bytes]:
    """Wait in a pool; the command and, for the monitor, when it was given."""
    assignments = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _ASSIGNMENTS)
    room = bytearray(assignment.SMALL)
    syscalls.close_range(0, 2)
    given = assignment.take(assignments, room)
    if given is None:
        posix._exit(125)
    assignments.close()
    return given, marshal.dumps(given.began)


def _send(control: _socket.socket, kind: bytes, *descriptors: int, more: bytes = b"") -> None:
    """Send descriptors (those that are not -1) and close them here."""
    real = [fd for fd in descriptors if fd >= 0]
    packed = b"".join([fd.to_bytes(4, "little") for fd in real])
    flags = bytes([fd >= 0 for fd in descriptors])
    control.sendmsg([kind + flags + more], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if real else [])
    for fd in real:
        posix.close(fd)


def _report(control: _socket.socket, step: int, number: int, text: str) -> None:
    try:
        control.send(b"E" + marshal.dumps((step, number, text)))
    except OSError:
        # The parent is gone, and with it whoever could be told.
        posix._exit(125)


def _retitle(title: bytes) -> None:
    """Overwrite the command line, which would show the launcher's arguments in the sandbox's /proc/1/cmdline."""
    syscalls.prctl_set_name(b"osmoda-init")
    if _argv_area is not None:
        start, end = _argv_area
        syscalls.overwrite(start, end - start, title)


def _find_area(field: int) -> tuple[int, int] | None:
    """Where the kernel reads this process's arguments or environment (proc_pid_stat(5), from field 48 or 50)."""
    fd = posix.open(b"/proc/self/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    fields = posix.read(fd, 4096).rpartition(b")")[2].split()
    posix.close(fd)
    start, end = int(fields[field - 3]), int(fields[field - 2])
    return (start, end) if 0 < start < end else None


_argv_area = _find_area(48)
_environment_area = _find_area(50)


def spawn(command: Command | assignment.Assignment, slave: bytes) -> int:
    """Start the command: its pid. Raises OSError, whose text says what is in the way."""
    environment = dict(command.environment)
    enter_directory(command.directory)
    if command.function is not None:
        return _fork_function(command.function, environment)
    program = find(command.argv[0], environment.get("PATH", ""))
    try:
        if command.terminals:
            return _fork_on_terminal(program, command, environment, slave)
        return posix.posix_spawn(program, command.argv, environment, setsid=True, setsigmask=(), setsigdef=DEFAULTED)
    except OSError as error:
        raise syscalls.explained(error, f"execve {program}") from None


def enter_directory(path: bytes) -> None:
    """Where the command starts. Raises OSError that says so."""
    try:
        posix.chdir(path)
    except OSError as error:
        raise syscalls.explained(error, f"chdir {path.decode(errors='backslashreplace')}") from None


def _fork_function(function: Callable[[], int], environment: dict[str, str]) -> int:
    """Call `function` in a process that is what execve(2) makes of one: descriptors, signals, environment, dumpable."""
    pid = posix.fork()
    if pid == 0:
        status = 125
        try:
            posix.setsid()
            for fd in range(_CONTROL, syscalls.prlimit_get(RLIMIT_NOFILE)[0]):
                # Those only that execve(2) would close: one that was left open by mistake must stay.
                if _closes_on_exec(fd):
                    posix.close(fd)
            for number in DEFAULTED:
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            if _environment_area is not None:
                # What /proc/self/environ shows is the launcher's still, which execve(2) would have left behind.
                start, end = _environment_area
                syscalls.overwrite(start, end - start, b"")
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            posix.environ.clear()
            posix.environ.update(
                {
                    name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
                    for name, value in environment.items()
                }
            )
            status = function()
        finally:
            posix._exit(status)
    return pid


def _closes_on_exec(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    except OSError:
        return False


def _fork_on_terminal(
    program: str, command: Command | assignment.Assignment, environment: dict[str, str], slave: bytes
) -> int:
    """Start the command in the foreground of the sandbox's terminal, in a session that pid 1 leads.

    The command gets a process group of its own in that session: in a group whose every parent is in another session,
    an orphaned one, Ctrl-Z would stop nothing (setpgid(2)). It must be in the foreground before it runs, or keys that
    are typed early are lost, and posix_spawn(3) cannot see to that; hence the fork.
    """
    if not slave:
        raise OSError(25, "the terminal was not set up")
    posix.setsid()
    # Opened by a session leader without a terminal, it becomes its controlling one.
    terminal = posix.open(slave, posix.O_RDWR | posix.O_CLOEXEC)
    failure, report = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid == 0:
        try:
            posix.setpgid(0, 0)
            # Allowed from the background too: SIGTTOU is blocked, as all signals are up to here (tcsetpgrp(3)).
            posix.tcsetpgrp(terminal, posix.getpid())
            for fd in command.terminals:
                posix.dup2(terminal, fd)
            for number in DEFAULTED:
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            posix.execve(program, command.argv, environment)
        except OSError as error:
            posix.write(report, (error.errno or 0).to_bytes(4, "little"))
        finally:
            posix._exit(127)
    for fd in (terminal, report):
        posix.close(fd)
    failed = posix.read(failure, 4)
    posix.close(failure)
    if failed:
        posix.waitpid(pid, 0)
        number = int.from_bytes(failed, "little")
        raise OSError(number, posix.strerror(number))
    return pid


def find(name: str, path: str) -> str:
    """The program that execvp(3) would take: the first executable file of that name in `path`."""
    if "/" in name:
        return name
    found = 2
    for folder in path.split(":"):
        candidate = f"{folder or '.'}/{name}"
        if not posix.access(candidate, posix.F_OK):
            continue  # at less cost than an exception
        try:
            status = posix.stat(candidate)
        except OSError:
            continue
        if status.st_mode & 0o170000 == 0o100000:
            if status.st_mode & 0o111:
                return candidate
            found = 13
    raise OSError(found, f"execve {name}: {posix.strerror(found)}")


def _give_up_stdio() -> None:
    """Let go of the command's streams: a reader must see their end when the command is gone, not when pid 1 is."""
    syscalls.close_range(0, 2)


def _reap(main: int, control: _socket.socket, stops: bool) -> NoReturn:
    """Reap until the command ends, then end the rest, tell the parent, and exit."""
    options = posix.WUNTRACED if stops else 0
    while True:
        pid, status, user, system, peak = syscalls.wait4(-1, options)
        if pid != main:
            continue
        if posix.WIFSTOPPED(status):
            # Stopped for using the terminal from the background, it waits for its fellows, not for the caller.
            if posix.WSTOPSIG(status) not in (_SIGTTIN, _SIGTTOU):
                control.send(b"Z")
                control.recv(1)
                posix.killpg(main, _SIGCONT)
            continue
        break
    try:
        while True:
            _end_others()
            posix.waitpid(-1, 0)
    except (ChildProcessError, ProcessLookupError):
        # No process but this one is left.
        control.send(b"S" + marshal.dumps((status, user, system, peak)))
        # Whoever waits for the answer need not wait for this process to be taken down: the parent ends it, when it has
        # answered.
        control.recv(1)
    posix._exit(0)


def _end_others() -> None:
    """SIGKILL to every process of the sandbox; in tier 0, which has no pid namespace, to the children that are left."""
    if posix.getpid() == 1:
        posix.kill(-1, 9)
        return
    fd = posix.open(b"/proc/self/task/%d/children" % posix.getpid(), posix.O_RDONLY | posix.O_CLOEXEC)
    children = posix.read(fd, 65536).split()
    posix.close(fd)
    for child in children:
        posix.kill(int(child), 9)
