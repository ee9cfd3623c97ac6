"""The daemon's control socket: answers, progress, and clients that are slow, hostile or gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading

import pytest

from osmoda.host import peer
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.control.client import NoDaemon
from osmoda.supervisor.control.server import NAME, Control
from osmoda.supervisor.errors import SupervisorError


class Daemon:
    """A control socket in a thread of its own, with verbs for tests."""

    def __init__(self):
        self.path = os.path.join(control_client.folder(), NAME)
        self.ready = threading.Event()
        self.began = threading.Event()
        self.finished = threading.Event()
        self.go_on: asyncio.Event
        self.mistakes = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.mistakes.append(context["exception"]))
        self.end, self.go_on = asyncio.Event(), asyncio.Event()
        verbs = {"echo": self.echo, "wait": self.wait, "refuse": self.refuse, "break": self.broken, "talk": self.talk}
        verbs["where"] = self.where
        async with Control(self.path, verbs):
            self.ready.set()
            await self.end.wait()

    async def echo(self, request, say):
        say({"unit": "a", "state": "starting"})
        return {"done": True, "units": list(request.units), "options": request.options}

    async def wait(self, request, say):
        self.began.set()
        await self.go_on.wait()
        self.finished.set()
        return {"done": True}

    async def where(self, request, say):
        return {"done": True, "search": ["/units/\udcff", "/units/ü"]}

    async def refuse(self, request, say):
        raise SupervisorError("a.service:3: that cannot be")

    async def broken(self, request, say):
        raise ZeroDivisionError

    async def talk(self, request, say):
        for _ in range(100):
            say({"text": "x" * 100_000})
        return {"done": True}

    def tell(self, what):
        self.loop.call_soon_threadsafe(what)

    def __enter__(self):
        self._thread.start()
        assert self.ready.wait(30)
        return self

    def __exit__(self, *_):
        self.tell(self.end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def daemon():
    with Daemon() as found:
        yield found


def raw(path, data, *, shut=False):
    """What comes back for bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(30)
        one.connect(path)
        with contextlib.suppress(BrokenPipeError):
            one.sendall(data)
        if shut:
            one.shutdown(socket.SHUT_WR)
        with one.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


def test_a_request_its_progress_and_its_answer(daemon):
    heard = []
    answer = control_client.ask("echo", ["a", "b"], progress=heard.append, brief=True, lines=3)
    assert answer == {"done": True, "units": ["a", "b"], "options": {"brief": True, "lines": 3}}
    assert heard == [{"unit": "a", "state": "starting"}]
    assert stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o600


def test_names_that_are_not_utf_8(daemon):
    assert control_client.ask("where")["search"] == ["/units/\udcff", "/units/ü"]
    for asked in ({"units": ["b\udcff"]}, {"note": "b\udcff"}):
        with pytest.raises(SupervisorError, match=r"^b\udcff is not UTF-8"):
            control_client.ask("echo", **asked)
    (answer,) = raw(daemon.path, b'{"verb": "echo", "units": ["\\udcff"]}\n')
    assert answer["error"].startswith("that is no request")
    assert daemon.mistakes == []


def test_refusals_are_sentences(daemon):
    with pytest.raises(SupervisorError, match=r"^a.service:3: that cannot be$"):
        control_client.ask("refuse")
    with pytest.raises(SupervisorError, match="there is no verb dance"):
        control_client.ask("dance")


def test_a_mistake_of_the_daemon_s_own_is_told_and_costs_nobody_else(daemon):
    with pytest.raises(SupervisorError, match="has made a mistake in break"):
        control_client.ask("break")
    assert [type(mistake) for mistake in daemon.mistakes] == [ZeroDivisionError]
    assert control_client.ask("echo")["done"]


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"verb": "echo", "more": 1}\n',
        b'{"verb": "echo", "units": "a"}\n',
        b'{"verb": "echo", "options": {"a": []}}\n',
        b"\xff\xfe\n",
        b"x" * 200_000,
        b'{"verb": "echo", "units": [' + b'"a",' * 5000 + b'"a"]}\n',
    ],
)
def test_what_is_no_request(daemon, data):
    (answer,) = raw(daemon.path, data)
    assert "error" in answer
    assert control_client.ask("echo")["done"]


def test_a_client_that_says_nothing_is_let_go(daemon):
    (answer,) = raw(daemon.path, b"", shut=True)
    assert answer["error"].startswith("that is no request")


def test_what_was_begun_goes_on_when_its_client_leaves(daemon):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect(daemon.path)
        one.sendall(b'{"verb": "wait"}\n')
        assert daemon.began.wait(30)
    assert control_client.ask("echo")["done"]
    daemon.tell(daemon.go_on.set)
    assert daemon.finished.wait(30)


def test_a_client_that_does_not_read_stops_nobody(daemon):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect(daemon.path)
        one.sendall(b'{"verb": "talk"}\n')
        assert control_client.ask("echo")["done"]


def test_who_may_not_is_told_so(daemon, monkeypatch):
    monkeypatch.setattr(peer, "refusal", lambda socket: "a process in a sandbox may not")
    with pytest.raises(SupervisorError, match="a process in a sandbox may not"):
        control_client.ask("echo")


def test_without_a_daemon():
    with pytest.raises(NoDaemon):
        control_client.ask("echo")


def test_a_daemon_that_is_killed_while_it_is_asked():
    path = os.path.join(control_client.folder(), NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def hang_up():
            one, _ = listener.accept()
            one.recv(1000)
            one.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(SupervisorError, match="has ended before it had answered"):
            control_client.ask("echo")
        thread.join()
        with pytest.raises(SupervisorError, match=r"has not answered within 0\.05 s"):
            control_client.ask("echo", seconds=0.05)
    os.unlink(path)


def test_the_place_of_a_daemon_that_was_killed_is_taken():
    path = os.path.join(control_client.folder(), NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
    with Daemon():
        assert control_client.ask("echo")["done"]
    assert not os.path.exists(path)
