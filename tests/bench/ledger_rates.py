"""The ledger: events a second from eight writers, beside plain SQLite with a commit each, and verified events a second.

    python tests/bench/ledger_rates.py --json ledger.json

"on their way" writers submit and wait later, as a gateway does; the others wait for each event before the next one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from table import Row, table  # noqa: E402

from osmoda.ledger import folder, record, verification  # noqa: E402
from osmoda.ledger.writer import Entry, Writer  # noqa: E402
from tests.ledgers import end_service  # noqa: E402

WRITERS = 8
TARGETS = {"append": 20_000.0, "verify": 250_000.0}
FIELDS = {
    "identity": "1a2b-1",
    "agent": "research",
    "tier": 2,
    "profile": "/etc/osmoda/profiles/research.toml",
    "plan": "0123456789abcdef" * 4,
    "argv": ["python3", "-m", "research", "--once"],
}

# Each prints how many events it has on the disk when its time is up.
CLIENT = """
import posix, sys, time
state, runtime, window, seconds = sys.argv[1].encode(), sys.argv[2].encode(), int(sys.argv[3]), float(sys.argv[4])
posix.environ.update({b"OSMODA_STATE_DIR": state, b"OSMODA_RUNTIME_DIR": runtime})
from osmoda.ledger.client import open_ledger
ledger, count, waiting, fields = open_ledger(), 0, [], %r
ledger.append("launch", fields)
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
while time.monotonic() < end:
    waiting.append(ledger.submit("launch", fields))
    if len(waiting) >= window:
        waiting.pop(0).wait(60)
        count += 1
for ticket in waiting:
    ticket.wait(60)
    count += 1
print(count, flush=True)
"""
PLAIN = """
import sqlite3, sys, time
path, _, _, seconds = sys.argv[1:]
base = sqlite3.connect(path, isolation_level=None, timeout=60)
base.execute("PRAGMA synchronous = FULL")
count, content = 0, %r
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    base.execute("INSERT INTO event(record) VALUES (?)", (content,))
    count += 1
print(count, flush=True)
"""


def together(program: str, *arguments: str, seconds: float) -> float:
    """Events a second of all writers, from the first one's start to the last one's end."""
    argv = [sys.executable, "-c", program, *arguments, str(seconds)]
    writers = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    for writer in writers:
        assert writer.stdout is not None
        if writer.stdout.readline() != "ready\n":
            raise RuntimeError("a writer has not started")
    began = time.monotonic()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    total = 0
    for writer in writers:
        assert writer.stdout is not None
        total += int(writer.stdout.readline())
    took = time.monotonic() - began
    for writer in writers:
        writer.communicate()
    return total / took


def appended(top: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Medians of rounds that took turns."""
    state, runtime, plain = top / "state", top / "runtime", top / "plain.db"
    state.mkdir(mode=0o700)
    runtime.mkdir(mode=0o700)
    ledger = state / "ledger"
    ledger.mkdir(mode=0o700)
    folder.fill(str(ledger))
    base = sqlite3.connect(plain, isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("CREATE TABLE event(seq INTEGER PRIMARY KEY, record BLOB)")
    base.close()
    found: dict[str, list[float]] = {"on their way": [], "one by one": [], "plain": []}
    content = record.encode(1, time.time_ns(), 0, 1, 7, 8, "launch", record.canonical(FIELDS))
    for _ in range(rounds):
        places = (str(state), str(runtime))
        found["on their way"].append(together(CLIENT % FIELDS, *places, "256", seconds=seconds))
        found["one by one"].append(together(CLIENT % FIELDS, *places, "1", seconds=seconds))
        found["plain"].append(together(PLAIN % content, str(plain), "", "", seconds=seconds))
    end_service(runtime / "ledger", signal.SIGTERM)
    report = verification.verify(str(ledger))
    if report.findings:
        raise RuntimeError(f"the ledger does not verify: {report.findings[0].sentence()}")
    return {name: statistics.median(values) for name, values in found.items()} | {"events": float(report.events)}


def verified(top: Path, events: int, rounds: int) -> dict[str, float]:
    """Events a second that are verified, of a ledger of several segments: with all cores, and with one."""
    ledger = top / "verified"
    ledger.mkdir(mode=0o700)
    folder.fill(str(ledger))
    body = record.canonical(FIELDS)
    with Writer(str(ledger)) as writer:
        for start in range(0, events, 2000):
            writer.append([Entry(0, 1, 7, start + number, "launch", body) for number in range(2000)])
            writer.rotate()
    rates: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for processes, one in rates.items():
            began = time.monotonic()
            report = verification.verify(str(ledger), processes=processes)
            one.append(report.events / (time.monotonic() - began))
            if report.findings:
                raise RuntimeError(f"the ledger does not verify: {report.findings[0].sentence()}")
    size = sum(path.stat().st_size for path in ledger.rglob("*"))
    return {"all": statistics.median(rates[0]), "one": statistics.median(rates[1]), "bytes": size / events}


def bench(who: str, rounds: int = 3, seconds: float = 2.0, events: int = 1_000_000) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the table, and all that was measured, on a disk and not in a file system in memory."""
    parent = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="osmoda-bench-ledger-", dir=parent) as name:
        top = Path(name)
        writing = appended(top, rounds, seconds)
        reading = verified(top, events, rounds)
        shutil.rmtree(top / "verified")
    peer = f"sqlite3, a commit each {writing['plain']:,.0f}/s"

    def row(what: str, value: float, target: float | None, peer: str = "") -> Row:
        return Row(what, who, f"{value:,.0f}/s", peer, None, None, target, "/s", value, at_least=True)

    lines = [
        row(f"ledger: appended, {WRITERS} writers, on their way", writing["on their way"], TARGETS["append"], peer),
        row(f"ledger: appended, {WRITERS} writers, one by one", writing["one by one"], None, peer),
        row("ledger: verified, all cores", reading["all"], TARGETS["verify"]),
        row("ledger: verified, one core", reading["one"], None),
        Row("ledger: size of an event", who, f"{reading['bytes']:.0f} B", "", None, None, None, "B", reading["bytes"]),
    ]
    return lines, {"append": writing, "verify": reading}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round of appending")
    parser.add_argument("--events", type=int, default=1_000_000, help="in the ledger that is verified")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    who = "root" if os.getuid() == 0 else "user"
    lines, found = bench(who, options.rounds, options.seconds, options.events)
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines))
    if options.json:
        rows = [asdict(line) | {"met": line.met} for line in lines]
        options.json.write_text(json.dumps({"rows": rows, "measured": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
