"""The control: the attacks made outside, by a process of the calling user's in namespaces where they harm nobody."""

from __future__ import annotations

import contextlib
import posix
import sys
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.battery import perform
from osmoda.sandbox.operations import isolation

if TYPE_CHECKING:
    from osmoda.sandbox.battery import Task

# Own mounts, so that what is mounted or remounted is mounted for nobody else; likewise names and queues.
_APART = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS
_MORE = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC


def main() -> None:
    """Read an order (see `rounds`) and make its attacks."""
    import ast

    privileged, tasks, facts = ast.literal_eval(sys.stdin.read())
    _step_aside(privileged=privileged)
    # What stays comes to this process, which ends it: the caller need not meet processes that it has not started.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    _perform(tasks, facts)
    _end_what_stays()


def _perform(tasks: list[Task], facts: dict[str, object]) -> None:
    perform(tasks, facts, lambda line: posix.write(1, line))


def _end_what_stays() -> None:
    path = f"/proc/self/task/{posix.getpid()}/children"
    try:
        while True:
            with open(path, "rb") as file:
                left = file.read().split()
            for pid in left:
                # A set-user-id program may be somebody else's by now: it ends with its input, which is closed.
                with contextlib.suppress(PermissionError):
                    posix.kill(int(pid), 9)
            posix.waitpid(-1, 0)
    except ChildProcessError:
        return  # none is left


def _step_aside(*, privileged: bool) -> None:
    """Into namespaces of our own; an ordinary user has capabilities only in a user namespace."""
    if posix.geteuid() == 0:
        posix.unshare(_APART | (_MORE if privileged else 0))
        syscalls.mount_private()
    elif privileged:
        uid, gid = posix.getuid(), posix.getgid()
        posix.unshare(syscalls.CLONE_NEWUSER | _APART | _MORE)
        isolation.write_file(b"/proc/self/setgroups", b"deny")
        isolation.write_file(b"/proc/self/uid_map", b"0 %d 1" % uid)
        isolation.write_file(b"/proc/self/gid_map", b"0 %d 1" % gid)
