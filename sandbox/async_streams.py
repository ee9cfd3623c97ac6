"""Moving bytes through a command's streams with asyncio."""

from __future__ import annotations

import asyncio
import os
from typing import IO

from osmoda.sandbox.streams import CHUNK


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
