"""Socket activation: listening sockets that are there before their service, which the first connection starts.

systemd.socket(5), with Accept=no: the service gets the sockets themselves (sd_listen_fds(3)).
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import pwd
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmoda.supervisor.engine.socket_names import LinkOnTheWay, SocketName
from osmoda.supervisor.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.supervisor.logs.writer import Logs
    from osmoda.supervisor.units.loading import Loader
    from osmoda.supervisor.units.unit import Listen, Origin, SocketUnit, Unit

_KINDS = {
    "stream": socket.SOCK_STREAM,
    "datagram": socket.SOCK_DGRAM,
    "sequential-packet": socket.SOCK_SEQPACKET,
}
_IP_FREEBIND = 15
_MOST_BACKLOG = 0x7FFFFFFF  # listen(2) takes an int, and makes net.core.somaxconn of it


@dataclass(slots=True)
class _Listening:
    """The sockets of one unit, and whether the engine waits for a connection."""

    unit: SocketUnit
    sockets: list[socket.socket]
    waiting: bool = False
    names: list[SocketName] = field(default_factory=list)


class Sockets:
    """All socket units that are open. `activate` is told of the service that somebody has connected to."""

    def __init__(self, activate: Callable[[str], None], logs: Logs) -> None:
        self._activate = activate
        self._logs = logs
        self._open: dict[str, _Listening] = {}
        self._loop = asyncio.get_running_loop()

    def names(self) -> dict[str, str]:
        """The open socket units, and what each is doing."""
        return {name: "listening" if one.waiting else "running" for name, one in self._open.items()}

    async def listen(self, loader: Callable[[], Loader], name: str) -> None:
        """Open a socket unit and wait for a connection. Raises UnitError."""
        await self._ensure(loader, name)
        self._wait(self._open[name])

    async def open(self, loader: Callable[[], Loader], service: Unit) -> None:
        """Open what `service` listens at; it is about to be started. Raises UnitError."""
        for name in service.sockets:
            await self._ensure(loader, name)
            self._stop_waiting(self._open[name])

    def of(self, service: Unit) -> list[tuple[str, int]]:
        """The sockets that `service` is given, with their names."""
        return [
            (one.unit.descriptor_name, each.fileno())
            for one in self._of(service.name, service.sockets)
            for each in one.sockets
        ]

    def resume(self, service: Unit, *, gave_up: bool) -> None:
        """`service` is down: wait for a connection again, unless it was started too often."""
        if gave_up:
            self.give_up(service.name, f"{service.name} was started too often")
        for one in self._of(service.name, service.sockets):
            self._wait(one)

    def give_up(self, service: str, reason: str) -> None:
        """Close what leads to `service`, which cannot be started."""
        for one in self._of(service):
            self._logs.say(one.unit.name, f"it is closed: {reason}", 3)
            self.close(one.unit.name)

    def is_waiting(self, service: str) -> bool:
        """Whether a connection would start `service`."""
        return any(one.waiting for one in self._of(service))

    def _of(self, service: str, names: Sequence[str] = ()) -> list[_Listening]:
        return [one for name, one in self._open.items() if name in names or one.unit.service == service]

    async def _ensure(self, loader: Callable[[], Loader], name: str) -> None:
        if name in self._open:
            return
        unit = await asyncio.to_thread(lambda: loader().load_socket(name))
        if name not in self._open:
            self._open[name] = _opened(unit)

    def _wait(self, one: _Listening) -> None:
        if not one.waiting:
            one.waiting = True
            for each in one.sockets:
                self._loop.add_reader(each.fileno(), self._connected, one)

    def _stop_waiting(self, one: _Listening) -> None:
        if one.waiting:
            one.waiting = False
            for each in one.sockets:
                self._loop.remove_reader(each.fileno())

    def _connected(self, one: _Listening) -> None:
        for other in self._of(one.unit.service):
            self._stop_waiting(other)
        self._logs.say(one.unit.name, f"somebody has connected: {one.unit.service} is started")
        self._activate(one.unit.service)

    def close(self, name: str) -> None:
        """Close a socket unit, if it is open."""
        one = self._open.pop(name, None)
        if one is None:
            return
        self._stop_waiting(one)
        for each in one.sockets:
            each.close()
        for held in one.names:
            if one.unit.remove_on_stop:
                with contextlib.suppress(OSError):  # an agent may have put a folder there
                    held.remove()
            held.close()

    def close_all(self) -> None:
        """Close all of them."""
        for name in tuple(self._open):
            self.close(name)


def _opened(unit: SocketUnit) -> _Listening:
    """Bind and listen. Raises UnitError, with the line of the address that cannot be had."""
    made = _Listening(unit, [])
    try:
        for listen in unit.listen:
            one = _bound(unit, listen, made.names)
            made.sockets.append(one)
            if listen.kind != "datagram":
                one.listen(min(unit.backlog, _MOST_BACKLOG))
        for link in unit.symlinks:
            target = next(listen.address for listen in unit.listen if listen.address.startswith("/"))
            _named(unit, link, made.names).link_to(target)
    except (OSError, LinkOnTheWay) as error:
        for each in made.sockets:
            each.close()
        for held in made.names:
            held.close()
        raise UnitError(f"{unit.name} cannot listen: {_words(error)}", _origin(unit, len(made.sockets))) from None
    return made


def _words(error: OSError | LinkOnTheWay) -> str:
    if isinstance(error, LinkOnTheWay):
        return f"{error.path} is a link, which could lead it elsewhere; name the folder itself"
    return str(error.strerror or error)


def _named(unit: SocketUnit, path: str, names: list[SocketName]) -> SocketName:
    names.append(SocketName.within(path, unit.directory_mode))
    return names[-1]


def _origin(unit: SocketUnit, index: int) -> Origin | None:
    return unit.listen[min(index, len(unit.listen) - 1)].origin if unit.listen else None


def _bound(unit: SocketUnit, listen: Listen, names: list[SocketName]) -> socket.socket:
    path = listen.address.startswith(("/", "@"))
    host, _, port = listen.address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, _KINDS[listen.kind])
    try:
        _set_options(unit, one, family)
        if not path:
            one.bind((host, int(port)))
        elif listen.address.startswith("@"):
            one.bind(f"\0{listen.address[1:]}")
        else:
            _bind_path(unit, one, _named(unit, listen.address, names))
    except BaseException:
        one.close()
        raise
    return one


def _set_options(unit: SocketUnit, one: socket.socket, family: int) -> None:
    if family == socket.AF_UNIX:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, unit.pass_credentials)
        return
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, unit.keep_alive)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, unit.reuse_port)
    if unit.no_delay and one.type == socket.SOCK_STREAM:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if unit.free_bind:
        one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if family == socket.AF_INET6 and unit.ipv6_only is not None:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, unit.ipv6_only)


def _bind_path(unit: SocketUnit, one: socket.socket, name: SocketName) -> None:
    name.bind(one, unit.mode)
    if unit.user or unit.group:
        uid = pwd.getpwnam(unit.user).pw_uid if unit.user else -1
        gid = grp.getgrnam(unit.group).gr_gid if unit.group else -1
        name.give(uid, gid)
