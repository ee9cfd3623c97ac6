"""Fuzz the parsers: `python -m tests.fuzz SECONDS [NAME…]`, for example `python -m tests.fuzz 20 hello dns`.

Each target runs for SECONDS in a process of its own, two at a time, beginning with its kept corpus. What it finds of
interest goes to a working folder; `--keep` makes the smallest set of it and of the corpus the new corpus. Exit status
1: an input crashed a target, took too long or too much memory; it is named, and stays in the working folder. Otherwise
that folder is removed, unless it was named with `--work`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import corpora

AT_ONCE = 2
SLOW = 10  # seconds that one input may take
MEMORY = 2048  # MiB
MOST_BYTES = 4096  # of an input: parsers reach their own limits by inputs that ask for padding
START = 120  # seconds for a target to be imported, and to run the corpus once


class Finding(Exception):
    """What a target stopped at."""


def fuzz(name: str, seconds: int, work: Path) -> str:
    """Run one target: what it did, in a line. Raises Finding with the input's path and what it led to."""
    folder = work / name
    new, found, log = folder / "new", folder / "found", folder / "log"
    new.mkdir(parents=True)
    found.mkdir()
    kept = corpora.CORPUS / name
    command = [sys.executable, "-m", f"tests.fuzz.fuzz_{name}", str(new), str(seconds), *([str(kept)] * kept.is_dir())]
    command += [f"-artifact_prefix={found}/", f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}", f"-max_len={MOST_BYTES}"]
    command += ["-print_final_stats=1"]
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, timeout=seconds + START, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    text = log.read_text(errors="replace")
    inputs = sorted(found.iterdir())
    if status or inputs:
        said = [line for line in text.splitlines() if line.strip() and not re.match(r"#\d|stat::|INFO|WARNING", line)]
        shown = [f"{path}: {path.read_bytes()[:200]!r}" for path in inputs] or [f"no input was kept; see {log}"]
        raise Finding("\n  ".join([f"{name}: exit status {status}", *shown, *said[-20:]]))
    executed = re.search(r"number_of_executed_units: (\d+)", text)
    runs = int(executed[1]) if executed else 0
    return f"{name}: {runs:,} runs, {len([*new.iterdir()])} new inputs, nothing found"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz the parsers of profiles and of the network."
    )
    parser.add_argument("seconds", type=int, metavar="SECONDS", help="how long each target runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(corpora.names())}; all of them")
    parser.add_argument("--keep", action="store_true", help="make the smallest set of inputs the new corpus")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="an empty or new folder for what is found")
    arguments = parser.parse_intermixed_args()
    names = arguments.names or corpora.names()
    for unknown in {*names} - {*corpora.names()}:
        parser.error(f"there is no target {unknown}, only {', '.join(corpora.names())}")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="osmoda-fuzz-"))
    print(f"{', '.join(names)}: {arguments.seconds} s each, in {work}", flush=True)
    failed = False
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for run in [pool.submit(fuzz, name, arguments.seconds, work) for name in names]:
            try:
                print(run.result(), flush=True)
            except Finding as finding:
                failed = True
                print(finding, flush=True)
    if arguments.keep and not failed:
        for name in names:
            before, after = corpora.replace(name, [path.read_bytes() for path in (work / name / "new").iterdir()])
            print(f"{name}: {before} inputs in the corpus before, {after} now")
    if not failed and arguments.work is None:
        shutil.rmtree(work)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
