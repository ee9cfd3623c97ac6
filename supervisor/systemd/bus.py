"""The manager of systemd over D-Bus (org.freedesktop.systemd1(5)): jobs and their results, properties, unit files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from osmoda.supervisor.control.client import bus_address
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUS = "org.freedesktop.DBus"
_MANAGER = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_INTERFACE = "org.freedesktop.systemd1.Manager"
PATIENCE = 30.0
"""Seconds that the manager has for an answer; jobs take as long as they take."""


class NoSuchUnit(SupervisorError):
    """systemd has not loaded a unit of that name."""


class Manager:
    """A connection to this user's manager, root's being the system's; an asynchronous context manager.

    Every call raises SupervisorError with what the manager says when it refuses.
    """

    def __init__(self) -> None:
        self._results: dict[str, str] = {}
        self._waiting: dict[str, asyncio.Future[str]] = {}

    async def __aenter__(self) -> Self:
        try:
            self._bus = await MessageBus(bus_address=f"unix:path={quote(bus_address(), safe='/-_.')}").connect()
        except OSError as error:
            raise SupervisorError(f"systemd cannot be reached at {bus_address()}: {error.strerror or error}") from None
        self._bus.add_message_handler(self._heard)
        rule = f"type='signal',sender='{_MANAGER}',interface='{_INTERFACE}',member='JobRemoved'"
        await self._send(Message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", signature="s", body=[rule]))
        await self.call("Subscribe")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bus.disconnect()

    def _heard(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            _, job, _, result = message.body
            waiting = self._waiting.get(job)
            if waiting is None:
                self._results[job] = result
            elif not waiting.done():
                waiting.set_result(result)

    async def _send(self, message: Message) -> list[Any]:
        try:
            reply = await asyncio.wait_for(self._bus.call(message), PATIENCE)
        except TimeoutError:
            raise SupervisorError(f"systemd has not answered within {PATIENCE:g} s") from None
        except EOFError:
            raise SupervisorError("the bus of systemd hung up") from None
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else str(reply.error_name)
            raise (NoSuchUnit if reply.error_name == f"{_MANAGER}.NoSuchUnit" else SupervisorError)(text)
        return list(reply.body)

    async def call(self, member: str, signature: str = "", *arguments: Any) -> list[Any]:
        """Call a method of the manager: what it answers."""
        message = Message(_MANAGER, _PATH, _INTERFACE, member, signature=signature, body=list(arguments))
        return await self._send(message)

    async def job(self, member: str, unit: str) -> str:
        """Have the manager do a job (StartUnit, StopUnit, …) and wait for its end: "done", or another result."""
        (job,) = await self.call(member, "ss", unit, "replace")
        if job in self._results:
            return self._results.pop(job)  # it was over before its name was known here
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[job] = waiting
        try:
            return await waiting
        finally:
            del self._waiting[job]

    async def properties(self, unit: str) -> dict[str, Any]:
        """All properties of a unit, loaded for it, and of its kind of unit."""
        (path,) = await self.call("LoadUnit", "s", unit)
        message = Message(_MANAGER, path, "org.freedesktop.DBus.Properties", "GetAll", signature="s", body=[""])
        (found,) = await self._send(message)
        return {name: variant.value for name, variant in found.items()}

    async def units(self, patterns: Sequence[str]) -> list[str]:
        """The names of the units that are loaded and match one of the patterns, sorted."""
        (found,) = await self.call("ListUnitsByPatterns", "asas", [], list(patterns))
        return sorted(str(one[0]) for one in found)
