"""A gateway's loop in a test: run it until something has happened, and see how connections end meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from osmoda.egress.loop import Loop

PATIENCE = 30.0  # seconds, after which something did not happen


def until(loop: Loop, condition: Callable[[], object]) -> None:
    """Run `loop` until `condition()`."""
    deadline = time.monotonic() + PATIENCE

    def look() -> None:
        if condition():
            loop.stop()
        else:
            assert time.monotonic() < deadline, "it never happened"
            loop.call_later(0.001, look)

    look()
    loop.run()


def received(loop: Loop, end: socket.socket, size: int) -> bytes:
    """Exactly the next `size` bytes at `end`."""
    got = bytearray()
    end.setblocking(False)

    def more() -> bool:
        with contextlib.suppress(BlockingIOError):
            part = end.recv(size - len(got))
            assert part, f"an end of file came after {bytes(got[-100:])!r}"
            got.extend(part)
        return len(got) == size

    until(loop, more)
    return bytes(got)


def outcome(loop: Loop, end: socket.socket) -> tuple[str, bytes]:
    """How `end` sees its connection end: "end of file" or "reset", and the bytes that came before that."""
    got = bytearray()
    found = []
    end.setblocking(False)

    def look() -> bool:
        try:
            while part := end.recv(1 << 20):
                got.extend(part)
            found.append("end of file")
        except BlockingIOError:
            return False
        except ConnectionResetError:
            found.append("reset")
        return True

    until(loop, look)
    return found[0], bytes(got)
