"""The three streams of a command: what the caller asked for, as descriptors; and moving bytes through them."""

from __future__ import annotations

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


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
