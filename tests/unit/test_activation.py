"""Listening sockets that are there before their service."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest

from osmoda.supervisor.engine.activation import Sockets
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units.unit import Install, Listen, Origin, SocketUnit
from tests.plain_units import NO_DEPENDENCIES, plain


def made(*listen, name="front.socket", **changes):
    values = {
        "name": name,
        "files": (f"/units/{name}",),
        "description": "",
        "dependencies": NO_DEPENDENCIES,
        "conditions": (),
        "listen": tuple(
            Listen(kind, address, Origin(f"/units/{name}", 2 + n)) for n, (kind, address) in enumerate(listen)
        ),
        "service": "front.service",
        "descriptor_name": name,
        "backlog": 4294967295,
        "ipv6_only": None,
        "mode": 0o666,
        "directory_mode": 0o755,
        "user": "",
        "group": "",
        "symlinks": (),
        "remove_on_stop": False,
        "keep_alive": False,
        "no_delay": False,
        "reuse_port": False,
        "free_bind": False,
        "pass_credentials": False,
        "install": Install((), (), (), ()),
    }
    return SocketUnit(**values | changes)


class Scene:
    """Sockets, a service that wants them, and who was started."""

    def __init__(self, *units):
        self.units = {unit.name: unit for unit in units}
        self.service = plain(name="front.service", sockets=tuple(self.units))
        self.started = []
        self.said = []
        self.sockets = Sockets(self.started.append, self)

    def load_socket(self, name):
        return self.units[name]

    def say(self, unit, text, level=6):
        self.said.append((unit, text))

    async def listen(self):
        for name in self.units:
            await self.sockets.listen(lambda: self, name)

    async def until_started(self, number):
        for _ in range(3000):
            if len(self.started) >= number:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nobody was started")


def connected(path):
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.connect(str(path))
    return one


def play(scene):
    asyncio.run(scene())


def test_the_first_connection_starts_the_service_and_none_while_it_runs(tmp_path):
    async def scene():
        path = tmp_path / "deep" / "front.sock"
        one = Scene(made(("stream", str(path)), mode=0o600, remove_on_stop=True))
        await one.listen()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert one.sockets.names() == {"front.socket": "listening"}
        with connected(path):
            await one.until_started(1)
            assert one.sockets.names() == {"front.socket": "running"}
            await one.sockets.open(lambda: one, one.service)
            ((name, fd),) = one.sockets.of(one.service)
            assert name == "front.socket"
            with connected(path):
                for _ in range(20):
                    await asyncio.sleep(0)  # a look at all descriptors each
                assert one.started == ["front.service"]
            with socket.socket(fileno=os.dup(fd)) as given:
                for _ in range(2):
                    given.accept()[0].close()
        one.sockets.resume(one.service, gave_up=False)
        assert one.sockets.is_waiting("front.service")
        with connected(path):
            await one.until_started(2)
        one.sockets.close_all()
        assert not path.exists()

    play(scene)


def test_all_kinds_of_addresses():
    async def scene():
        name = f"@osmoda-test-{os.getpid()}"
        one = Scene(made(("stream", "127.0.0.1:0"), ("datagram", "[::]:0"), ("sequential-packet", name), no_delay=True))
        await one.listen()
        families = []
        for _, fd in one.sockets.of(one.service):
            with socket.socket(fileno=os.dup(fd)) as each:
                families.append((each.family, each.type))
        assert families == [
            (socket.AF_INET, socket.SOCK_STREAM),
            (socket.AF_INET6, socket.SOCK_DGRAM),
            (socket.AF_UNIX, socket.SOCK_SEQPACKET),
        ]
        one.sockets.close_all()

    play(scene)


def test_an_address_that_cannot_be_had_names_its_line(tmp_path):
    async def scene():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            one = Scene(made(("stream", str(tmp_path / "a.sock")), ("stream", f"127.0.0.1:{port}")))
            with pytest.raises(UnitError, match=r"^/units/front.socket:3: front.socket cannot listen: Address already"):
                await one.listen()
        assert one.sockets.names() == {}

    play(scene)


def test_only_a_socket_is_removed_from_its_place(tmp_path):
    async def scene():
        path = tmp_path / "front.sock"
        path.write_text("precious")
        one = Scene(made(("stream", str(path))))
        with pytest.raises(UnitError):
            await one.listen()
        assert path.read_text() == "precious"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        await one.listen()
        one.sockets.close_all()

    play(scene)


def test_a_service_that_cannot_be_started_costs_its_sockets(tmp_path):
    async def scene():
        one = Scene(made(("stream", str(tmp_path / "front.sock"))))
        await one.listen()
        one.sockets.resume(one.service, gave_up=True)
        assert one.sockets.names() == {}
        assert one.said == [("front.socket", "it is closed: front.service was started too often")]

    play(scene)
