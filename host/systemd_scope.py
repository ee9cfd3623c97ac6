"""A systemd scope for this process: a group of its own in the v2 hierarchy, delegated to it.

For a user whose processes have no group that they may divide. The manager is asked over D-Bus
(org.freedesktop.systemd1(5), StartTransientUnit; systemd.scope(5)); the scope goes with the last process in it. A
short-lived child does the talking, so that this process stays small, has no thread, and need not trust anybody's
sense of time.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from osmoda.host import cgroup, delegation, syscalls

if TYPE_CHECKING:
    from typing import NoReturn

    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

PATIENCE = 10.0  # seconds for the manager to do it, from when it was asked
_START = 30.0  # seconds for the child that asks to load what it needs
_ASKING, _DONE = b"?", b"+"
_BUS = "org.freedesktop.DBus"
_MANAGER = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_INTERFACE = "org.freedesktop.systemd1.Manager"


class _Refused(Exception):
    """The manager said no; the message is what it said."""


def enter(unit: str) -> None:
    """Move this process into a new scope named `unit` ("osmoda-….scope") with its controllers delegated.

    Raises OSError, its message one sentence, when the manager refuses or does not answer within PATIENCE; from then on
    `cgroup.find` offers no scope.
    """
    try:
        reason = _ask(delegation.manager_bus(), unit, os.getpid())
        if not reason and not cgroup.own_group().endswith(f"/{unit}"):
            reason = f"it says that it did, but this process is in {cgroup.own_group()}"
        if not reason and not cgroup.enter_scope(unit):
            reason = "the scope it started has no controllers to hand down"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        sentence = f"systemd has not started a scope for the limits: {reason}"
        cgroup.refuse_scopes(sentence)
        raise OSError(errno.EPERM, sentence)


def _ask(path: str, unit: str, pid: int) -> str:
    """Have a child ask the manager on the bus at `path`; an empty string, or why it did not."""
    if not path:
        return "there is no bus of its manager any more"
    read, write = os.pipe2(os.O_CLOEXEC)
    # The handlers of this process, and what they write to, are not the child's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if child == 0:
            _answer(write, path, unit, pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write)
    try:
        return _listen(read)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _listen(fd: int) -> str:
    """What the child says: an empty string when the scope is there."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = time.monotonic() + _START
    said = b""
    while poll.poll(max(until - time.monotonic(), 0.0) * 1000):
        data = os.read(fd, 4096)
        if not data:
            break
        if not said:
            until = time.monotonic() + PATIENCE
        said += data
    else:
        return f"it did not answer within {PATIENCE:g} seconds" if said else "D-Bus could not be loaded in time"
    if said == _ASKING + _DONE:
        return ""
    return said.removeprefix(_ASKING).decode(errors="replace") or "the process that was to ask it was killed"


def _answer(fd: int, path: str, unit: str, pid: int) -> NoReturn:
    """The child: a byte when it begins to ask; then one for a success, else a sentence."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        import asyncio

        import dbus_fast.aio  # noqa: F401 - so that the manager's time begins with the question

        os.write(fd, _ASKING)
        _refuse_strangers(path)
        asyncio.run(_start(path, unit, pid))
        os.write(fd, _DONE)
    except (_Refused, OSError) as error:
        os.write(fd, (getattr(error, "strerror", None) or str(error)).encode())
    except EOFError:
        os.write(fd, b"the bus hung up")
    except BaseException as error:
        os.write(fd, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _refuse_strangers(path: str) -> None:
    """A manager in a pid namespace that this process does not see would take its pid for another process's."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PATIENCE)
        try:
            probe.connect(path)
        except OSError as error:
            raise syscalls.explained(error, f"connect {path}") from None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if struct.unpack("iII", credentials)[0] == 0:
        raise _Refused(f"the bus at {path} is of another pid namespace")


async def _start(path: str, unit: str, pid: int) -> None:
    import asyncio

    from dbus_fast import Message, MessageType, Variant
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=f"unix:path={quote(path, safe='/-_.')}").connect()
    results: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def note(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            _, job, _, result = message.body
            results.put_nowait((job, result))

    bus.add_message_handler(note)
    rule = f"type='signal',sender='{_MANAGER}',interface='{_INTERFACE}',member='JobRemoved'"
    await _call(bus, Message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", signature="s", body=[rule]))
    await _call(bus, Message(_MANAGER, _PATH, _INTERFACE, "Subscribe"))
    properties = [
        ["Description", Variant("s", f"osmoda's sandboxes of process {pid}")],
        ["PIDs", Variant("au", [pid])],
        ["Delegate", Variant("b", True)],
        # Else a scope whose process was killed for want of memory would stay listed as failed.
        ["CollectMode", Variant("s", "inactive-or-failed")],
    ]
    start = Message(
        _MANAGER,
        _PATH,
        _INTERFACE,
        "StartTransientUnit",
        signature="ssa(sv)a(sa(sv))",
        body=[unit, "fail", properties, []],
    )
    (wanted,) = await _call(bus, start)
    while True:
        job, result = await results.get()
        if job == wanted:
            break
    bus.disconnect()
    if result != "done":
        raise _Refused(f"the job for {unit} ended with {result}")


async def _call(bus: MessageBus, message: Message) -> list[object]:
    from dbus_fast import MessageType

    reply = await bus.call(message)
    if reply.message_type is MessageType.ERROR:
        raise _Refused(str(reply.body[0]) if reply.body else str(reply.error_name))
    return list(reply.body)
