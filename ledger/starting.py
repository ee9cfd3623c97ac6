"""The ledger's service started by whoever needs it: one, however many need it at once."""

from __future__ import annotations

import fcntl
import posix
import select
import sys
import time

from osmoda.ledger.client import GREETING, ServiceGone
from osmoda.ledger.errors import BUSY, LedgerBusy, LedgerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

_LOCK = "starting"
_PAUSE = 0.01  # seconds between two looks at a lock that another one holds
# What it needs lies beside osmoda, or where `site` says (an editable installation).
_PROGRAM = """
import sys
sys.path.append({root!r})
try:
    from osmoda.ledger.service import main
except ModuleNotFoundError:
    import site
    site.main()
    from osmoda.ledger.service import main
main({folder!r}, {runtime!r})
"""


def start(
    folder: str, runtime: str, connect: Callable[[], _socket.socket | None], patience: float
) -> _socket.socket | None:
    """A connection, as `connect` makes it, to a service that was started; or that another has started meanwhile.

    Raises LedgerError when it cannot be started within `patience` seconds, OSError.
    """
    until = time.monotonic() + patience
    lock = posix.open(f"{runtime}/{_LOCK}", posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
    try:
        _lock(lock, until)
        connection = connect()
        while connection is None:
            try:
                _spawn(folder, runtime, until)
            except LedgerBusy:
                # A gateway starts one without waiting for its turn (`begin`), which listens in a moment.
                if time.monotonic() >= until:
                    raise
                time.sleep(_PAUSE)
            connection = connect()
        return connection
    finally:
        posix.close(lock)


def _lock(fd: int, until: float) -> None:
    """Wait for those who start it; flock(2) itself could wait for ever for one that is stopped."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise LedgerError(
                    "another process is about to start the ledger's service, and does not get on"
                ) from None
            time.sleep(_PAUSE)
        else:
            return


def _spawn(folder: str, runtime: str, until: float) -> None:
    pid, fd = begin(folder, runtime)
    try:
        said = _read(fd, until)
        posix.waitpid(pid, 0)
    finally:
        posix.close(fd)
    if said != GREETING:
        text = said.decode(errors="backslashreplace").strip().rpartition("\n")[2]
        if text.startswith(BUSY):
            raise LedgerBusy(text)
        if not text:
            raise ServiceGone("the ledger's service was killed while it started, or has no time to")
        raise LedgerError(text)


def begin(folder: str, runtime: str) -> tuple[int, int]:
    """Start one without waiting: the pid of a process that ends at once, and a descriptor that ends when it serves.

    Both are the caller's to wait for and to close. Raises OSError.
    """
    read, write = posix.pipe2(posix.O_CLOEXEC)
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    try:
        # posix_spawn(3), since the caller may have threads.
        actions = [(posix.POSIX_SPAWN_DUP2, null, 0), (posix.POSIX_SPAWN_DUP2, null, 1)]
        actions.append((posix.POSIX_SPAWN_DUP2, write, 2))
        argv = [sys.executable, "-I", "-S", "-c", _PROGRAM.format(root=_root(), folder=folder, runtime=runtime)]
        pid = posix.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsid=True, setsigmask=())
    except BaseException:
        posix.close(read)
        raise
    finally:
        posix.close(null)
        posix.close(write)
    return pid, read


def _read(fd: int, until: float) -> bytes:
    """What the service says before it lets go of the pipe, or until then."""
    said = b""
    look = select.poll()
    look.register(fd, select.POLLIN)
    while look.poll(max(until - time.monotonic(), 0) * 1000):
        some = posix.read(fd, 4096)
        if not some:
            break
        said += some
        if said == GREETING:
            break
    return said


def _root() -> str:
    """The folder that holds `osmoda`, as this interpreter found it."""
    import osmoda

    return next(iter(osmoda.__path__)).rpartition("/")[0]
