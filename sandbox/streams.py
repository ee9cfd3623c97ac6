"""The three streams of a command: what the caller asked for, as descriptors; and moving bytes through them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from typing import IO

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
CHUNK = 1 << 16

type Stream = int | IO[bytes] | None


def prepare(
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
    given: list[int],
    pipes: dict[str, IO[bytes]],
    copying: list[threading.Thread],
) -> list[int]:
    """The three descriptors for the command. Those made here are added to `given`, the other ends to `pipes`.

    A terminal never enters a sandbox: on stdin it reads as empty, and for stdout and stderr a thread copies to it.
    """
    numbers: list[int] = []
    for number, (name, stream) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
        if stream is None:
            stream = number
        if isinstance(stream, int) and stream >= 0 and os.isatty(stream):
            if name == "stdin":
                stream = DEVNULL
            else:
                given.append(_copied_to(stream, copying))
                stream = given[-1]
        if stream == PIPE:
            read, write = os.pipe()
            theirs, mine = (read, write) if name == "stdin" else (write, read)
            given.append(theirs)
            pipes[name] = open(mine, "wb" if name == "stdin" else "rb", buffering=0)  # noqa: SIM115 - handed out
            numbers.append(theirs)
        elif stream == DEVNULL:
            given.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            numbers.append(given[-1])
        elif stream == STDOUT:
            numbers.append(numbers[1])
        else:
            numbers.append(stream if isinstance(stream, int) else stream.fileno())
    return numbers


def _copied_to(terminal: int, copying: list[threading.Thread]) -> int:
    """The writing end of a pipe that a thread copies to `terminal`."""
    read, write = os.pipe()
    output = os.dup(terminal)

    def copy() -> None:
        with open(read, "rb", buffering=0) as source, open(output, "wb", buffering=0) as target:
            while chunk := os.read(source.fileno(), CHUNK):
                write_all(target.fileno(), chunk)

    copying.append(threading.Thread(target=copy, daemon=True, name="osmoda-terminal"))
    copying[-1].start()
    return write


async def readable(fd: int) -> None:
    """Wait until `fd` can be read or has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def drain(stream: IO[bytes] | None) -> bytes:
    """All that comes out of `stream` until its end."""
    if stream is None:
        return b""
    os.set_blocking(stream.fileno(), False)
    chunks: list[bytes] = []
    while True:
        await readable(stream.fileno())
        try:
            chunk = os.read(stream.fileno(), CHUNK)
        except BlockingIOError:
            continue
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


async def feed(stream: IO[bytes] | None, data: bytes) -> None:
    """Write `data` to `stream` and close it; a command that does not want the rest is no error."""
    if stream is None:
        return
    loop = asyncio.get_running_loop()
    os.set_blocking(stream.fileno(), False)
    left = memoryview(data)
    while left:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(stream.fileno(), _settle, ready)
        try:
            await ready
        finally:
            loop.remove_writer(stream.fileno())
        try:
            left = left[os.write(stream.fileno(), left[:CHUNK]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            break  # the command does not want the rest
    stream.close()


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
