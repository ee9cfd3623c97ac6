"""What a daemon that was killed leaves behind, for the moment that the kernel takes: waited for, at last ended.

Its agents die with it: their sandboxes' first processes are told by the kernel that the launcher has died
(PR_SET_PDEATHSIG), and the launcher sees the end of file on its socket. The next daemon begins when all of that is
gone, so that no agent ever runs twice. A daemon marks what it starts with a variable of the environment: what carries
the mark was forked or started by a daemon of this runtime directory, and only osmoda's own programs have it, since an
agent's environment is made anew. That of a sandbox's first process is closed to ordinary users; its title is not, which
begins with the pid of the daemon. Anybody may call their own processes so, and have them replaced as fast as they are
killed: those of other users, and what runs in a sandbox, are no remains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from osmoda.sandbox import lease, processes
from osmoda.supervisor.errors import SupervisorError

VARIABLE = "OSMODA_WATCH_DAEMON"
_GRACE = 3.0  # seconds until what is left is killed
_PATIENCE = 20.0
_PERIOD = 0.01


def mark(folder: str) -> None:
    """Mark what this process starts from now on as that of the daemon whose runtime directory is `folder`."""
    os.environ[VARIABLE] = folder


def wait(folder: str, daemon: int = 0) -> int:
    """Wait until nothing of an earlier daemon of `folder`, whose pid was `daemon`, is left.

    Returns how many processes that were. Raises SupervisorError when something does not end.
    """
    began = time.monotonic()
    first = found = left(folder, daemon)
    while found:
        waited = time.monotonic() - began
        if waited > _PATIENCE:
            raise SupervisorError(
                f"process {found[0]} of an osmoda-watch that was killed does not end; no agent is started beside it"
            )
        if waited > _GRACE:
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_PERIOD)
        found = left(folder, daemon, ending=waited <= _GRACE)
    return len(first)


def left(folder: str, daemon: int, *, ending: bool = True) -> list[int]:
    """What carries the mark of `folder`, and the first processes of the sandboxes of a daemon that has ended.

    With `ending` also those of which it cannot be said any more whose they are.
    """
    gone = daemon and not os.path.exists(f"/proc/{daemon}")
    return sorted({*marked(folder), *(_sandboxes(daemon, ending=ending) if gone else ())})


def _sandboxes(daemon: int, *, ending: bool) -> list[int]:
    """The sandboxes that a process has made; where the number is another one's by now, they are its own."""
    return [
        pid
        for pid, identity in processes.identities()
        if (identity.startswith(f"{daemon:x}-") or (ending and not identity)) and _may_be_ours(pid)
    ]


def marked(folder: str) -> list[int]:
    """The processes that carry the mark of `folder`, but for this one. One that has ended has no environment."""
    wanted = f"{VARIABLE}={folder}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            if wanted in file.read().split(b"\0") and _may_be_ours(int(entry)):
                found.append(int(entry))
    return found


def _may_be_ours(pid: int) -> bool:
    """Whether it is a process of this user's, or the first one of a sandbox of this user's: not one inside."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    except OSError:
        return False  # it has ended
    uid, numbers = int(fields[b"Uid"].split()[0]), fields[b"NSpid"].split()
    leased = os.geteuid() == 0 and lease.FIRST_UID <= uid < lease.FIRST_UID + lease.COUNT
    return (leased or uid == os.geteuid()) and (len(numbers) == 1 or numbers[-1] == b"1")
