"""What an agent prints: through pipes, to its log, within its limit."""

from __future__ import annotations

import asyncio
import os

from osmoda.supervisor.logs import capture
from osmoda.supervisor.logs.capture import Outlet, Pipe


class Logs:
    """Keeps what it is given."""

    def __init__(self):
        self.lines = []
        self.said = []

    def write(self, unit, stream, pid, lines):
        self.lines += [(stream, pid, line) for line in lines]

    def say(self, unit, text, level=6):
        self.said.append(text)


async def eventually(look):
    for _ in range(3000):
        if look():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it took too long")


def test_lines_of_both_streams_with_the_pid_and_the_last_one_that_has_no_end():
    logs = Logs()

    async def play():
        outlet = Outlet(asyncio.get_running_loop(), logs, "a.service")
        pipes = {name: Pipe(asyncio.get_running_loop(), outlet, name) for name in ("stdout", "stderr")}
        for name, pipe in pipes.items():
            os.write(pipe.write_end, f"{name} one\n{name} two".encode())
        await asyncio.sleep(0)
        for pipe in pipes.values():
            pipe.listen(7)
        await eventually(lambda: len(logs.lines) == 2)
        for pipe in pipes.values():
            pipe.given()
        await eventually(lambda: len(logs.lines) == 4)
        assert outlet.pipes == set()
        outlet.close()

    asyncio.run(play())
    assert sorted(logs.lines) == [(s, 7, f"{s} {n}".encode()) for s in ("stderr", "stdout") for n in ("one", "two")]


def test_what_was_printed_last_is_there_when_the_program_has_ended():
    logs = Logs()

    async def play():
        outlet = Outlet(asyncio.get_running_loop(), logs, "a.service")
        pipe = Pipe(asyncio.get_running_loop(), outlet, "stdout")
        os.write(pipe.write_end, b"last words\n")
        pipe.drain()  # another process holds the other end still
        assert logs.lines == [("stdout", 0, b"last words")]
        assert outlet.pipes == {pipe}
        outlet.close()
        assert outlet.pipes == set()

    asyncio.run(play())


def test_a_flood_is_cut_counted_and_told_when_it_is_over(monkeypatch):
    logs = Logs()
    monkeypatch.setattr(capture, "INTERVAL", 0.2)
    monkeypatch.setattr(capture, "BURST", 10)

    async def play():
        outlet = Outlet(asyncio.get_running_loop(), logs, "a.service")
        pipe = Pipe(asyncio.get_running_loop(), outlet, "stdout")
        pipe.listen(7)
        os.write(pipe.write_end, b"x\n" * 100)
        await eventually(lambda: len(logs.said) == 2)
        os.write(pipe.write_end, b"after\n")
        await eventually(lambda: logs.lines[-1][2] == b"after")
        outlet.close()

    asyncio.run(play())
    assert logs.said == [
        "it prints more than 10 lines within 0.2 s: what is beyond that is dropped",
        "90 lines of it were dropped",
    ]
    assert len(logs.lines) == 11
