"""Supervisors: from SIGKILL of a program to its new exec, many agents at once, and what they cost when idle.

    python tests/bench/supervisors.py [--rounds N] [--agents N]

runit's `runsv` and supervisord restart the same program in the same run, killed in turn; they have no sandbox to build.
So does systemd, in a container of its own (systemd_restarts.py), for which osmoda's wheel is needed (tox says where).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import systemd_restarts  # noqa: E402
from table import Row, table  # noqa: E402
from ticks import PATIENCE, restart, tick, unit, wait_until  # noqa: E402

from tests.vm.supplies import Missing  # noqa: E402
from tests.worlds import World, make_directories  # noqa: E402

RESTART, POOLED, AGENTS, IDLE = 12.0, 6.0, 4.0, 1.0  # ms, ms, seconds, percent of a core


# Supervisors: each has the program run, with its output appended to a file, and ends at last.


@contextlib.contextmanager
def daemon(folder: Path, units: Path) -> Iterator[list[str]]:
    """osmoda-watch; how its command begins."""
    (folder / "state").mkdir(parents=True)
    environment = os.environ | make_directories(folder / "runtime", folder / "state")
    os.environ.update(environment)
    words = World.osmoda_argv(command="osmoda-watch")
    errors = folder / "daemon.err"
    with open(errors, "w") as file:
        process = subprocess.Popen([*words, "daemon", "--units", str(units)], stderr=file, env=environment)
    try:
        wait_until(lambda: "supervising\n" in errors.read_text() or process.poll() is not None, "the daemon is up")
        yield words
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def runit(folder: Path, program: Path, output: Path, command: str) -> Iterator[None]:
    service = folder / "service"
    service.mkdir()
    script = service / "run"
    script.write_text(f"#!/bin/sh\nexec {program} >>{output}\n")
    script.chmod(0o755)
    process = subprocess.Popen([command, service])
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def supervisord(folder: Path, program: Path, output: Path, command: str) -> Iterator[None]:
    configuration = folder / "supervisord.conf"
    configuration.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\n"
        f"[program:tick]\ncommand={program}\nautorestart=true\nstartsecs=0\nstdout_logfile={output}\n"
        "stdout_logfile_maxbytes=0\n"
    )
    process = subprocess.Popen([command, "-c", configuration], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def restarts(folder: Path, rounds: int, commands: dict[str, str]) -> dict[str, list[float]]:
    """For each supervisor the milliseconds from SIGKILL to the new exec, killed in turn."""
    programs: dict[str, Path] = {}
    outputs: dict[str, Path] = {}
    for name in ("osmoda-watch", "osmoda-watch, pool", "runit", "supervisord"):
        if name.startswith("osmoda") or name in commands:
            programs[name] = tick(folder / name.replace(", ", "-"))
            outputs[name] = folder / f"{programs[name].parent.name}.out"
            outputs[name].touch()
    units = folder / "units"
    units.mkdir()
    unit(units, "cold", programs["osmoda-watch"], f"append:{outputs['osmoda-watch']}")
    unit(units, "pooled", programs["osmoda-watch, pool"], f"append:{outputs['osmoda-watch, pool']}", pool=2)
    found: dict[str, list[float]] = {name: [] for name in programs}
    with contextlib.ExitStack() as stack:
        words = stack.enter_context(daemon(folder / "osmoda", units))
        subprocess.run([*words, "start", "--force", "cold", "pooled"], check=True)
        if "runit" in commands:
            stack.enter_context(runit(programs["runit"].parent, programs["runit"], outputs["runit"], commands["runit"]))
        if "supervisord" in commands:
            one = programs["supervisord"]
            stack.enter_context(supervisord(one.parent, one, outputs["supervisord"], commands["supervisord"]))
        for output in outputs.values():
            wait_until(lambda output=output: output.stat().st_size, f"{output} has a line")
        for _ in range(rounds):
            for name, program in programs.items():
                found[name].append(restart(program, outputs[name]))
                time.sleep(0.02)  # a pool fills up again; runit restarts at most once a second if the last took less
    return found


def many(folder: Path, agents: int, seconds: float) -> dict[str, float]:
    """Seconds until so many agents are up, and the percent of a core that they cost the daemon and its launcher."""
    program = tick(folder / "many")
    units = folder / "many-units"
    units.mkdir()
    names = [f"agent-{number}" for number in range(agents)]
    for name in names:
        unit(units, name, program, "null")
    with daemon(folder / "osmoda-many", units) as words:
        began = time.monotonic()
        subprocess.run([*words, "start", "--force", *names], check=True)
        took = time.monotonic() - began
        pid = int(next((folder / "osmoda-many" / "runtime").rglob("daemon.lock")).read_text())
        processes = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        before = sum(map(cpu, processes))
        time.sleep(seconds)
        return {"seconds": took, "idle": 100 * (sum(map(cpu, processes)) - before) / seconds}


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands_in(folder: Path) -> dict[str, str]:
    """The other supervisors that are installed."""
    found = {"runit": shutil.which("runsv"), "supervisord": shutil.which("supervisord")}
    installed = folder / "py" / "bin" / "supervisord"
    if os.access(installed, os.X_OK):
        found["supervisord"] = str(installed)
    return {name: path for name, path in found.items() if path}


def systemd_rows(who: str, found: dict[str, list[float]]) -> list[Row]:
    """What was measured in the container, each beside systemd alone."""
    median = {one: statistics.median(times) for one, times in found.items()}
    alone = median[systemd_restarts.ALONE]
    return [
        Row(
            f"SIGKILL to exec, {one}",
            who,
            f"{median[one]:.2f} ms",
            f"systemd {alone:.2f} ms",
            median[one] / alone,
            None,
            None,
        )
        for one in (systemd_restarts.CONFINED, systemd_restarts.ENGINE)
    ]


def under_systemd(rounds: int) -> dict[str, list[float]] | str:
    """What was measured there, or why nothing was."""
    wheel = os.environ.get("TOX_PACKAGE")
    if not wheel:
        return "no wheel: measured by tox only"
    try:
        return systemd_restarts.measured(
            Path(os.environ.get("TOX_WORK_DIR") or HERE.parents[1] / ".tox") / "vm", Path(wheel), rounds
        )
    except Missing as missing:
        return str(missing)


def bench(who: str, peers: Path, rounds: int, agents: int, seconds: float = 10.0) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the table, and all that was measured."""
    with tempfile.TemporaryDirectory(prefix="osmoda-bench-watch-") as name:
        os.chmod(name, 0o755)
        restarted = restarts(Path(name), rounds, commands_in(peers))
        started = many(Path(name), agents, seconds)
    median = {one: statistics.median(times) for one, times in restarted.items()}
    lines = []
    for one, target in (("osmoda-watch", RESTART), ("osmoda-watch, pool", POOLED)):
        what, shown = f"SIGKILL to exec, {one}", f"{median[one]:.2f} ms"
        lines.append(Row(what, who, shown, "", None, None, target, "ms", median[one]))
        for peer in ("runit", "supervisord"):
            if peer in median:
                ratio = median[one] / median[peer]
                lines.append(Row(what, who, shown, f"{peer} {median[peer]:.2f} ms", ratio, None, None))
            else:
                lines.append(Row(what, who, shown, f"{peer}: absent", None, None, None))
    with_systemd = under_systemd(rounds)
    if isinstance(with_systemd, str):
        lines.append(Row("SIGKILL to exec", who, "", f"systemd: absent ({with_systemd})", None, None, None))
    else:
        lines += systemd_rows(who, with_systemd)
    took, idle = started["seconds"], started["idle"]
    lines.append(Row(f"{agents} agents started", who, f"{took:.2f} s", "", None, None, AGENTS, "s", took))
    lines.append(Row(f"{agents} agents, idle", who, f"{idle:.2f} %", "", None, None, IDLE, "%", idle))
    return lines, {"restarts": restarted, "under systemd": with_systemd, "many": started}


def main() -> None:
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="kills of each (default: %(default)s)")
    parser.add_argument("--agents", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument(
        "--peers", type=Path, default=HERE.parents[1] / ".venv" / "peers", help="where PyPI's peers are"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    who = "root" if os.getuid() == 0 else "user"
    lines, found = bench(who, options.peers, options.rounds, options.agents)
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines))
    if options.json:
        options.json.write_text(json.dumps({"host": list(platform.uname()), who: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
