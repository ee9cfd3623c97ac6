"""Names of sockets in folders that an agent may write: what a link leads to there is not the daemon's to change."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest

from osmoda.supervisor.engine import socket_names
from osmoda.supervisor.engine.socket_names import LinkOnTheWay, SocketName
from osmoda.supervisor.errors import UnitError
from tests.unit.test_activation import Scene, made


@pytest.fixture
def tree(tmp_path):
    """A folder that an agent writes, and one that is none of its business, with a socket in it."""
    (tmp_path / "agent" / "run").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    with socket.socket(socket.AF_UNIX) as precious:
        precious.bind(str(tmp_path / "victim" / "a.sock"))
        yield tmp_path


def put_a_link(tree):
    """What the agent does: in place of its folder, a link to the other one."""
    (tree / "agent" / "run").rename(tree / "agent" / "was")
    (tree / "agent" / "run").symlink_to(tree / "victim")


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("more", [(), ("d",)])
def test_a_link_on_the_way_is_not_followed(tree, more):
    put_a_link(tree)
    path = os.path.join(tree, "agent", "run", *more, "new.sock")
    with socket.socket(socket.AF_UNIX) as control:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        control.bind(path)  # by its path it comes to lie there
    os.unlink(os.path.join(tree, "victim", *more, "new.sock"))
    if more:
        os.rmdir(tree / "victim" / "d")

    async def scene():
        one = Scene(made(("stream", path)))
        link = tree / "agent" / "run"
        with pytest.raises(UnitError, match=rf"^/units/front.socket:2: front.socket cannot listen: {link} is a link, "):
            await one.listen()
        assert one.sockets.names() == {}

    asyncio.run(scene())
    assert names(tree / "victim") == ["a.sock"]


def test_a_socket_elsewhere_does_not_make_room(tree):
    path = tree / "agent" / "run" / "a.sock"
    with SocketName.within(str(path), 0o755) as name, socket.socket(socket.AF_UNIX) as one:
        put_a_link(tree)
        assert stat.S_ISSOCK(path.stat().st_mode)  # by its path it would be that one's turn
        name.bind(one, 0o600)
    assert names(tree / "victim") == ["a.sock"]
    assert stat.S_IMODE((tree / "agent" / "was" / "a.sock").stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as another, pytest.raises(ConnectionRefusedError):
        another.connect(str(tree / "victim" / "a.sock"))  # it is the one that was there: nobody listens


def test_what_is_removed_at_the_end_is_its_own(tree):
    path = tree / "agent" / "run" / "a.sock"

    async def scene():
        one = Scene(made(("stream", str(path)), remove_on_stop=True))
        await one.listen()
        put_a_link(tree)
        assert path.exists()
        one.sockets.close_all()

    asyncio.run(scene())
    assert names(tree / "victim") == ["a.sock"]
    assert names(tree / "agent" / "was") == []


def test_a_link_of_its_own_lies_where_it_was_to(tree):
    path, link = tree / "agent" / "run" / "b.sock", tree / "agent" / "run" / "a.sock"

    async def scene(*, remove):
        one = Scene(made(("stream", str(path)), symlinks=(str(link),), remove_on_stop=remove))
        await one.listen()
        assert link.readlink() == path
        one.sockets.close_all()

    asyncio.run(scene(remove=False))
    asyncio.run(scene(remove=True))  # in place of the one that was left
    assert names(tree / "agent" / "run") == []
    with SocketName.within(str(link), 0o755) as name:
        put_a_link(tree)
        name.link_to("elsewhere")
    assert names(tree / "victim") == ["a.sock"]
    assert (tree / "agent" / "was" / "a.sock").readlink().name == "elsewhere"


def test_only_the_socket_is_given_away(tree):
    """Between its making and that, an agent may put something else in its place."""
    path = tree / "agent" / "run" / "b.sock"
    mine = os.geteuid(), os.getegid()
    with SocketName.within(str(path), 0o755) as name, socket.socket(socket.AF_UNIX) as one:
        name.bind(one, 0o600)
        name.give(*mine)
        path.unlink()
        path.write_text("precious")
        with pytest.raises(FileExistsError, match="something else has taken its place"):
            name.give(*mine)
        path.unlink()
        path.symlink_to(tree / "victim" / "a.sock")
        with pytest.raises(FileExistsError, match="something else has taken its place"):
            name.give(*mine)


def test_a_file_on_the_way_is_no_link(tree):
    (tree / "file").touch()
    with pytest.raises(NotADirectoryError):
        SocketName.within(str(tree / "file" / "a.sock"), 0o755)
    (tree / "link").symlink_to("file")
    with pytest.raises(LinkOnTheWay):
        SocketName.within(str(tree / "link" / "a.sock"), 0o755)


@pytest.mark.skipif(os.path.realpath("/var/run") != "/run", reason="here /var/run is no link to /run")
def test_the_systems_own_link_is_followed():
    assert socket_names._parts("/var/run/agent/a.sock") == ["run", "agent", "a.sock"]
    assert socket_names._parts("/var/running/a.sock") == ["var", "running", "a.sock"]
    assert socket_names._parts("/a.sock") == ["a.sock"]
