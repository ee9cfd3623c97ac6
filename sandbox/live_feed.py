"""What is refused, told to whoever watches live (`osmoda-sandbox top`): the monitor's end.

Who watches has a datagram socket `PID.sock` in the folder `top` of the runtime directory, which is this user's alone;
there is no such folder while nobody does. Nothing here waits or fails: a reader that is slow is told later, one that
was killed has its socket removed.
"""

from __future__ import annotations

import _socket
import marshal
import posix

from osmoda.host import paths
from osmoda.host.frozen import values_of
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.launch import Launched
    from osmoda.sandbox.monitor import RawDenial

FORMAT = 1
FOLDER = "top"
SUFFIX = ".sock"
MOST_BYTES = 128 << 10
"""Of a message: 512 refusals take 60 KiB, the filter 4."""

_EAGAIN, _ECONNREFUSED = 11, 111
_KINDS = (confinement.Seccomp, confinement.ProcessLimit)


def tell(
    launched: Launched, denials: Sequence[RawDenial], beyond: int, limits: tuple[int, int, bool] = (0, 0, False)
) -> bool:
    """Send refused calls of one sandbox, each with its count so far, to all who watch.

    `beyond`: how many refused calls so far are of none of the kinds that are kept. `limits`: processes killed for want
    of memory, forks refused, whether the time was up; known at the end. False when somebody has not read what was sent
    before.
    """
    try:
        folder = paths.own_directory("runtime", FOLDER)
        names = [name for name in posix.listdir(folder) if name.removesuffix(SUFFIX).isdigit()]
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    except (OSError, paths.UntrustedDirectory):
        return True  # nobody who could be trusted watches
    taken = True
    try:
        message = _message(launched, denials, beyond, limits)
        for name in names:
            try:
                channel.sendto(message, f"{folder}/{name}")
            except OSError as error:
                if error.errno == _EAGAIN:
                    taken = False
                elif error.errno == _ECONNREFUSED:
                    remove_if_dead(folder, name)
    finally:
        channel.close()
    return taken


def _message(launched: Launched, denials: Sequence[RawDenial], beyond: int, limits: tuple[int, int, bool]) -> bytes:
    # Of the plan only what its refusals are explained by: no variables, no paths, no policy.
    plan = launched.plan
    operations = tuple([operation for operation in plan.operations if isinstance(operation, _KINDS)])
    numbers = (plan.memory, plan.cpu, plan.pids)
    part = Plan(plan.tier, plan.name, "", (), operations, (), (), "none", *numbers, b"", (), False, ())
    values = tuple([values_of(denial) for denial in denials])
    return marshal.dumps((FORMAT, launched.identity, part.dump(), values, beyond, limits))


def remove_if_dead(folder: str, name: str) -> None:
    """Remove the socket of a process that is gone. One that lives has only just made it, or is about to remove it."""
    try:
        posix.kill(int(name.removesuffix(SUFFIX)), 0)
    except ProcessLookupError:
        try:
            posix.unlink(f"{folder}/{name}")
        except OSError:
            return  # somebody else has
    except OSError:
        return  # it lives, and is another user's: a process of that number since
