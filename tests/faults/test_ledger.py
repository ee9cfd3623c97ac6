"""The ledger's service killed under its writers, and its disk full: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from osmoda.host import syscalls
from osmoda.ledger import folder, reading, verification
from osmoda.ledger.client import open_ledger
from osmoda.ledger.errors import LedgerError
from tests.ledgers import end_service, service_of

KILLS = int(os.environ.get("OSMODA_TEST_KILLS", "5"))
WRITERS = 8

# Appends without end, a few on their way at a time, until its standard input ends; says what was acknowledged.
WRITER = """
import posix, select, sys
posix.environ.update({b"OSMODA_STATE_DIR": sys.argv[1].encode(), b"OSMODA_RUNTIME_DIR": sys.argv[2].encode()})
from osmoda.ledger.client import open_ledger
ledger, name, number, waiting = open_ledger(), sys.argv[3], 0, []
while not select.select([0], [], [], 0)[0]:
    waiting.append((number, ledger.submit("launch", {"writer": name, "n": number})))
    number += 1
    if len(waiting) == 5:
        first, ticket = waiting.pop(0)
        print(first, ticket.wait(60), flush=True)
for first, ticket in waiting:
    print(first, ticket.wait(60), flush=True)
"""


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.orphans
def test_a_service_killed_at_any_moment_under_eight_writers(places, tmp_path: Path):
    directory, runtime = places
    folder.make()
    argv = [sys.executable, "-c", WRITER, str(directory.parent), str(runtime.parent)]
    files = [tmp_path / f"acknowledged-{number}" for number in range(WRITERS)]
    writers = []
    for number, file in enumerate(files):
        with file.open("wb") as output:
            writers.append(subprocess.Popen([*argv, str(number)], stdin=subprocess.PIPE, stdout=output))
    chance = random.Random(7)
    try:
        for _ in range(KILLS):
            # Each has had something acknowledged since the last one was killed: so the next one has begun to serve.
            before = [file.stat().st_size for file in files]
            wait_for(
                lambda before=before: all(file.stat().st_size > size for file, size in zip(files, before, strict=True)),
                "a writer does not get on",
            )
            time.sleep(chance.random() * 0.05)  # any moment, not one that is waited for
            pid = service_of(runtime)
            if pid:
                os.kill(pid, signal.SIGKILL)
    finally:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        for writer in writers:
            writer.wait(120)
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    report = verification.verify(str(directory))
    assert report.findings == []
    written = [event for event in reading.events(str(directory)) if event.kind == "launch"]
    found = {(event.body["writer"], event.body["n"]): event.seq for event in written}
    assert max(Counter((event.body["writer"], event.body["n"]) for event in written).values()) == 1, (
        "one is there twice"
    )
    for number, file in enumerate(files):
        lines = [line.split() for line in file.read_text().splitlines()]
        assert lines
        for n, seq in lines:
            assert found[str(number), int(n)] == int(seq), "what was acknowledged is not where it was said to be"
        mine = [seq for (writer, _), seq in sorted(found.items(), key=lambda one: one[0][1]) if writer == str(number)]
        assert mine == sorted(mine)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system")
def test_a_full_disk_refuses_events_and_nothing_else(places, own_mounts, tmp_path: Path):
    directory, runtime = places
    state = directory.parent
    state.mkdir()
    syscalls.mount(b"none", os.fsencode(state), b"tmpfs", 0, b"size=1m,mode=700")
    try:
        folder.make()
        ledger = open_ledger()
        assert ledger is not None
        with ledger:
            assert ledger.append("launch", {"n": 0}) == 2
            pid = service_of(runtime)
            (state / "filler").write_bytes(bytes(600_000))
            acknowledged = [0]
            error = ""
            while not error:
                ticket = ledger.submit("launch", {"n": len(acknowledged), "text": "x" * 2000})
                ledger.wait_for(ticket)
                error = ticket.error
                if not error:
                    acknowledged.append(len(acknowledged))
                assert len(acknowledged) < 4000, "the control: the disk does fill"
            assert "full" in error
            for _ in range(3):
                with pytest.raises(LedgerError, match="full"):
                    ledger.append("launch", {"n": -1, "text": "x" * 2000})
            (state / "filler").unlink()
            ledger.append("launch", {"n": 5000})
            acknowledged.append(5000)
            assert service_of(runtime) == pid, "it lives on"
        report = verification.verify(str(directory))
        assert report.findings == []
        assert [event.body["n"] for event in reading.events(str(directory), 2)] == acknowledged
        end_service(runtime)
    finally:
        syscalls.umount2(os.fsencode(state), syscalls.MNT_DETACH)
