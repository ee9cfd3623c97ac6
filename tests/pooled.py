"""`osmoda-sandbox run …` in a sandbox that has waited in a pool: `pooled.py COMMAND… run OPTIONS…`.

With OSMODA_TEST_POOL=1 every run of a test that goes through `World.osmoda_argv` is started by this: it serves a pool
for the same options, and becomes `run --pool`. What cannot be pooled (tier 0, overlay workspaces, rehearsals) runs as
it is. So any test of the command is a test of pooled sandboxes too:

    OSMODA_TEST_POOL=1 pytest tests/attacks
"""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys

from osmoda.sandbox import request

PR_SET_NAME = 15
# An interpreter does not start with a folder as a standard stream: this one gets them here.
AWAY = (7, 8, 9)
START = 'exec "$0" "$@" 7<&0 8>&1 9>&2 0</dev/null 1>/dev/null 2>/dev/null'
UNFIT = ("a pool holds sandboxes, and tier 0 is none", "of which there is one sandbox at a time")
# What belongs to one command and not to the pool.
OF_THE_COMMAND = {"--chdir", "--timeout", "--agent", "--env", *request.FLAGS}


def served_with(arguments: list[str]) -> list[str]:
    """The options of `serve` for a `run` with these."""
    kept: list[str] = []
    position = 0
    while position < len(arguments) and arguments[position].startswith("-") and arguments[position] != "--":
        name, equals, _ = arguments[position].partition("=")
        name = request.SHORT.get(name, name)
        words = arguments[position : position + (1 if equals or name in request.FLAGS else 2)]
        position += len(words)
        if name not in OF_THE_COMMAND:
            kept += words
    return kept


def serve(words: list[str]) -> tuple[bytes, bytes]:
    """Start a service that ends when this process does, whatever it becomes: its first line, or why there is none."""
    mine = os.pidfd_open(os.getpid())
    first, reported = os.pipe()
    errors, written = os.pipe()
    if os.fork():
        for fd in (reported, written, mine):
            os.close(fd)
        line = os.read(first, 4096)
        return line, b"" if line else os.read(errors, 1 << 16)
    # A terminal that the test hangs up is the command's, and no reason for the service to end (SIGHUP).
    os.setsid()
    # Between the two is one who waits for the end of both: an orphan that is no leftover of the tests' own (leftovers).
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"holds-a-pool")
    service = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=reported, stderr=written)
    os.close(reported)
    os.close(written)
    os.closerange(0, 3)
    ended = select.poll()
    ended.register(mine, select.POLLIN)
    ended.poll()
    service.terminate()
    service.wait()
    os._exit(0)


def main() -> None:
    for number, fd in enumerate(AWAY):
        os.dup2(fd, number)
        os.close(fd)
    verb = sys.argv.index("run")
    command, arguments = sys.argv[1:verb], sys.argv[verb + 1 :]
    plain = [*command, "run", *arguments]
    try:
        asked = request.parse(list(arguments))
    except request.UsageError:
        asked = None
    if asked is None or asked.dry_run:
        os.execv(plain[0], plain)
    # One waits, so that each test meets one that was built before its command came.
    line, errors = serve([*command, "serve", "--size", "1", *served_with(arguments)])
    if not line:
        if any(text.encode() in errors for text in UNFIT):
            os.execv(plain[0], plain)
        sys.stderr.buffer.write(errors)
        sys.stderr.flush()
        os._exit(125)
    os.execv(command[0], [*command, "run", "--pool", *arguments])


if __name__ == "__main__":
    main()
