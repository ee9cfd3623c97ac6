"""Servers of no particular protocol, each with a way of its own: `tcp_server.py LOG`. Prints "ready" when it listens.

They listen on every address. LOG gets a line of JSON for each connection when it is accepted.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TextIO

# Ports. Those of `GREETING` speak first, as ssh and SMTP do.
ECHO, GREETING, RESET, MUTE, CLOSE, COUNT, SLOW = 7, 2525, 4441, 4442, 4443, 4444, 4445
BANNER = b"220 ready\r\n"


async def serve(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if port == GREETING:
        writer.write(BANNER)
    if port == RESET:
        # Once something has come, so that it is not the connect that fails.
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif port == MUTE:
        while await reader.read(65536):
            pass
    elif port == COUNT:
        # Answers only when the other side has said all: a relay that does not pass on half a close hangs here.
        count = 0
        while data := await reader.read(65536):
            count += len(data)
        writer.write(b"%d\n" % count)
    elif port == SLOW:
        # A byte whenever one comes, but never in a hurry.
        while data := await reader.read(1):
            await asyncio.sleep(0.2)
            writer.write(data)
    elif port in {ECHO, GREETING}:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    if not writer.is_closing():
        writer.close()


async def main(log: TextIO) -> None:
    def handler(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address = writer.get_extra_info("sockname")[0]
            log.write(json.dumps({"time": time.time(), "address": address, "port": port}) + "\n")
            try:
                await serve(port, reader, writer)
            except (ConnectionError, TimeoutError):
                writer.close()

        return handle

    for port in (ECHO, GREETING, RESET, MUTE, CLOSE, COUNT, SLOW):
        await asyncio.start_server(handler(port), None, port, backlog=1024)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with open(sys.argv[1], "a", buffering=1) as file:
        asyncio.run(main(file))
