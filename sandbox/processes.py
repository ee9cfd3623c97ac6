"""The sandboxes that are running, found in /proc (`ps`), and their end (`kill`).

A sandbox is a process `osmoda-init` that is pid 1 of a pid namespace below this one, with the command line that the
launch gives it. A payload can name itself so, but it is not pid 1: that place is taken, and it cannot make a namespace
of its own. A user of the host could imitate one from outside; the entry is then shown under that user's uid, and never
taken for the sandbox whose name it has: that is a child, or a child's child, of the process in its name.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from osmoda.sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMM = "osmoda-init"
_TITLE = re.compile(r"osmoda-init ([0-9a-f]+-[0-9a-f]+) tier-([012]) (.*)\Z", re.DOTALL)
# Fields after the command in /proc/PID/stat (proc_pid_stat(5)), from 0.
_STATE, _PPID, _UTIME, _CSTIME, _STARTTIME = 0, 1, 11, 14, 19


@dataclass(frozen=True, slots=True)
class Running:
    """One sandbox of tier 1 or 2; tier 0 has nothing to recognise it by.

    `pid` is its pid 1 as this namespace counts, `payload` its first child (0: none yet) and `command` what that runs;
    `memory` is bytes of PSS (RSS where the kernel keeps that from the caller) of all its processes, `cpu_time` the
    seconds of CPU that they and those that ended have had, `started` seconds after boot, `age` seconds.
    """

    identity: str
    tier: int
    profile: str
    pid: int
    uid: int
    command: str
    payload: int
    processes: int
    memory: int
    cpu_time: float
    started: float
    age: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def running() -> tuple[Running, ...]:
    """Every sandbox that the caller can see, the oldest first."""
    # By descent and not by namespace: /proc/PID/ns of a pid 1 is closed to ordinary users. Whoever loses its parent in
    # a pid namespace becomes a child of its pid 1 (pid_namespaces(7)).
    children: dict[int, list[int]] = {}
    for pid in _pids():
        parent = _field(pid, _PPID)
        if parent:
            children.setdefault(int(parent), []).append(pid)
    inits = [pid for pid in _pids() if is_init(pid)]
    found = [_describe(pid, sorted(children.get(pid, ())), _descendants(pid, children)) for pid in inits]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.started))


def find(identity: str, found: Iterable[Running]) -> Running:
    """The sandbox of that name. Raises SandboxError where none runs, or several that are as good (of containers)."""
    named = [one for one in found if one.identity == identity]
    if len(named) > 1:
        named = [one for one in named if is_genuine(one)] or named
    if len(named) > 1:
        numbers = " and ".join(str(one.pid) for one in named)
        raise SandboxError(f"processes {numbers} both say that they are sandbox {identity}; nothing was done")
    if not named:
        raise SandboxError(f"no sandbox {identity} is running; osmoda-sandbox ps lists them")
    return named[0]


def by_identity() -> dict[str, Running]:
    """Every sandbox that the caller can see, by its name; of several of one name the one that is not imitated."""
    found = running()
    return {one.identity: one for one in (*found, *filter(is_genuine, found))}


def is_genuine(one: Running) -> bool:
    """Whether the process that the name says has made it: nobody can be the child of another user's process.

    It need not be so: the names of sandboxes in a container have that one's numbers.
    """
    maker = str(int(one.identity.partition("-")[0], 16))
    parent = _field(one.pid, _PPID)
    return parent == maker or (parent not in ("", "0") and _field(int(parent), _PPID) == maker)


def _descendants(pid: int, children: dict[int, list[int]]) -> list[int]:
    """`pid` and all below it."""
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def clock(seconds: float) -> str:
    """An age as hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def row(one: Running) -> tuple[str, ...]:
    """The columns of `ps`: id, tier, profile, pid, uid, age, memory, processes, command."""
    memory = f"{one.memory / (1 << 20):.1f} MiB"
    columns = (
        one.identity,
        one.tier,
        one.profile,
        one.pid,
        one.uid,
        clock(one.age),
        memory,
        one.processes,
        one.command,
    )
    return tuple(str(column) for column in columns)


def is_init(pid: int) -> bool:
    """Whether `pid` is the pid 1 of a sandbox."""
    if _read(f"/proc/{pid}/comm").rstrip("\n") != COMM:
        return False
    numbers = _status(pid).get("NSpid", "").split()
    return len(numbers) >= 2 and numbers[-1] == "1" and _TITLE.match(_command_line(pid)) is not None


def identities() -> Iterator[tuple[int, str]]:
    """The first processes of all sandboxes, by their titles alone, which are open to everybody: pid and name.

    The name is empty where one is about to end: its memory is gone, and with it its title, but what is inside may go on
    until its exit has come to ending that (do_exit in kernel/exit.c, zap_pid_ns_processes in kernel/pid_namespace.c).
    """
    for pid in _pids():
        if _read(f"/proc/{pid}/comm").rstrip("\n") == COMM:
            title = _command_line(pid)
            match = _TITLE.match(title)
            if match is not None:
                yield pid, match[1]
            elif not title and _field(pid, _STATE) not in ("", "Z", "X"):
                yield pid, ""


def exists(identity: str) -> bool:
    """Whether the first process of the sandbox of that name may be there: when it has ended, so has all inside."""
    return any(found in (identity, "") for _, found in identities())


def end(one: Running, number: int | None) -> None:
    """End a sandbox, or send signal `number` to its payload. Raises SandboxError; one that is gone is no error."""
    target = one.pid if number is None else one.payload
    if not target:
        raise SandboxError(f"sandbox {one.identity} has no command yet to send a signal to")
    try:
        pidfd = os.pidfd_open(target)
    except ProcessLookupError:
        return
    try:
        # The descriptor keeps meaning this process; that it is still the one that was listed is asked again.
        if not is_init(one.pid) or _started(one.pid) != one.started or (number is not None and not _child(one, target)):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL if number is None else number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise SandboxError(f"sandbox {one.identity} belongs to uid {one.uid}; it cannot be signalled") from None
    finally:
        os.close(pidfd)


def signal_number(name: str) -> int:
    """A signal by number or name, with or without SIG. Raises SandboxError."""
    if name.isdigit() and int(name) in signal.valid_signals():
        return int(name)
    try:
        return signal.Signals["SIG" + name.upper().removeprefix("SIG")]
    except KeyError:
        raise SandboxError(f"there is no signal {name}") from None


def _child(one: Running, pid: int) -> bool:
    return _field(pid, _PPID) == str(one.pid)


def _describe(pid: int, children: list[int], members: list[int]) -> Running | None:
    title = _TITLE.match(_command_line(pid))
    if title is None:
        return None
    payload = children[0] if children else 0
    started = _started(pid)
    return Running(
        identity=title[1],
        tier=int(title[2]),
        profile=title[3],
        pid=pid,
        uid=int(_status(pid).get("Uid", "-1").split()[0]),
        command=_command_line(payload) if payload else "",
        payload=payload,
        processes=len(members),
        memory=sum(map(_memory, members)),
        cpu_time=sum(map(_cpu_time, members)),
        started=started,
        age=max(_uptime() - started, 0.0),
    )


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _memory(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return int(_status(pid).get("VmRSS", "0").split()[0]) << 10


def _cpu_time(pid: int) -> float:
    # Of its own and of the children that it has waited for; whoever lost its parent is waited for by pid 1.
    fields = _fields(pid)
    return sum(map(int, fields[_UTIME : _CSTIME + 1])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, str]:
    pairs = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _command_line(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ")


def _fields(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _field(pid: int, index: int) -> str:
    fields = _fields(pid)
    return fields[index] if len(fields) > index else ""


def _started(pid: int) -> float:
    ticks = _field(pid, _STARTTIME)
    return int(ticks) / os.sysconf("SC_CLK_TCK") if ticks else -1.0


def _uptime() -> float:
    return float(_read("/proc/uptime").split()[0])


def _read(path: str) -> str:
    try:
        with open(path, errors="backslashreplace") as stream:
            return stream.read()
    except OSError:
        return ""
