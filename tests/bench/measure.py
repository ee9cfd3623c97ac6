"""What is measured in one world, as one user: `measure.py SPEC`; prints JSON. `run.py` starts it.

SPEC is JSON: `tmp`, a directory of this user's; `peers`, where npm's are; `command`, the installed command; `rounds`;
`seconds`, how long a sustained rate is measured.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peers
import pooled
from timing import Sample, Timing, adopt_orphans, children, interleaved, spawned

from osmoda.host import features
from osmoda.sandbox import PIPE, Profile, Sandbox, plans
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.request import Request

TICK = os.sysconf("SC_CLK_TCK")

LOOPS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
/* loops stat|getpid COUNT: that call so often. */
int main(int count, char **words) {
    long left = atol(words[2]);
    struct stat found;
    if (words[1][0] == 's') { while (left--) if (stat("loops.c", &found)) return 1; }
    else { while (left--) if (syscall(SYS_getpid) <= 0) return 1; }
    return count != 3;
}
"""


def launches(rounds: int) -> dict[str, Any]:
    """`Sandbox.run(["true"])` in tier 2 against bubblewrap; as root with limits, which need a control group."""
    limits = []
    for name, value in (("memory", '"512M"'), ("cpu", "1.0")):
        if name in features.probe().controllers:
            limits.append(f"{name} = {value}")
    Path("limited.toml").write_text("\n".join(["schema = 1", "tier = 2", "[process]", "pids = 64", *limits]) + "\n")
    sandbox = Sandbox("limited.toml")
    sandbox.run(["true"])
    (launcher,) = children()

    def ours() -> Sample:
        cpu, began = time.process_time(), time.perf_counter()
        if sandbox.run(["true"]).status:
            raise RuntimeError("true ended with an error")
        return Sample(time.perf_counter() - began, time.process_time() - cpu)

    things: dict[str, Callable[[], Sample]] = {"Sandbox.run": ours}
    things |= {name: spawned(argv) for name, argv in peers.bubblewrap().items()}
    before = _cpu(launcher)
    warm = 5
    timings = interleaved(things, rounds, warm)
    # What the launcher and all that it has reaped used; the calls of this process are in the samples already.
    per_run = (_cpu(launcher) - before) / (rounds + warm)
    own = timings["Sandbox.run"]
    timings["Sandbox.run"] = Timing(own.p50, own.p90, own.p99, own.cpu + per_run, own.runs)
    return {
        "limits": limits,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "launcher_rss": _status(launcher, "VmRSS"),
    }


def commands(command: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The installed command against the commands of others."""
    ours = [command, "run", "--tier", "2", "--", "true"]
    found = {name: argv for name, argv in (peers.bubblewrap() | peers.others(folder)).items() if _works(argv)}
    slow = {name: found.pop(name) for name in ("srt",) if name in found}
    things = {"osmoda-sandbox run": spawned(ours), **{name: spawned(argv) for name, argv in found.items()}}
    timings = interleaved(things, rounds)
    if slow:
        pair = {"osmoda-sandbox run": spawned(ours), **{name: spawned(argv) for name, argv in slow.items()}}
        beside = interleaved(pair, max(rounds // 5, 5))
        timings["osmoda-sandbox run, beside srt"] = beside.pop("osmoda-sandbox run")
        timings |= beside
    return {"timings": {name: asdict(timing) for name, timing in timings.items()}}


def inside(rounds: int) -> dict[str, Any]:
    """The same work inside tier 2 and outside: C loops of one system call, and compileall of the standard library."""
    work = Path.cwd() / "work"
    work.mkdir()
    (work / "loops.c").write_text(LOOPS)
    subprocess.run(["gcc", "-O2", "-o", "loops", "loops.c"], cwd=work, check=True)
    library = sysconfig.get_path("stdlib")
    interpreter = os.path.realpath(sys.executable)
    # The interpreter may lie outside tier 2's ceiling, so its tree is granted in tier 1, whose filter is as long.
    prefix = os.path.realpath(sys.base_prefix)
    grant = "" if prefix == "/usr" else f"read = [{json.dumps(prefix)}]\n"
    Path("loops.toml").write_text('schema = 1\ntier = 2\n[filesystem]\nworkspace = "direct"\n')
    Path("python.toml").write_text(f'schema = 1\ntier = 1\n[filesystem]\nworkspace = "direct"\n{grant}')
    loops = Sandbox("loops.toml", workspace=work)
    python = Sandbox("python.toml", workspace=work)
    os.chdir(work)
    skip = r"/(test|site-packages|lib2to3|idlelib|__phello__)/"
    everything = [
        interpreter,
        "-I",
        "-S",
        "-X",
        f"pycache_prefix={work}/pycache",
        "-m",
        "compileall",
        "-qqf",
        "-x",
        skip,
        library,
    ]
    jobs = {
        "stat": (loops, [f"{work}/loops", "stat", "1000000"]),
        "getpid": (loops, [f"{work}/loops", "getpid", "3000000"]),
        "compileall": (python, everything),
    }
    found = {}
    for name, (sandbox, argv) in jobs.items():
        things = {"inside": _inside(sandbox, argv), "outside": spawned(argv)}
        timings = interleaved(things, rounds if name != "compileall" else 3, warm=1)
        found[name] = {place: asdict(timing) for place, timing in timings.items()}
        shutil.rmtree("pycache", ignore_errors=True)
    return found


def _inside(sandbox: Sandbox, argv: list[str]) -> Callable[[], Sample]:
    def run() -> Sample:
        began = time.perf_counter()
        result = sandbox.run(argv, check=True)
        return Sample(time.perf_counter() - began, result.user_time + result.system_time)

    return run


def monitor(command: str) -> dict[str, int]:
    """Bytes of memory that the monitor of a running command holds: resident, and the part no other process shares."""
    argv = [command, "run", "--tier", "2", "--", "sh", "-c", "echo ready; read -r line"]
    with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = {"rss": _status(process.pid, "VmRSS"), "private": _private(process.pid)}
        process.communicate(b"\n")
    return found


def compiling(rounds: int) -> dict[str, Any]:
    """Loading and compiling a profile, and taking the same plan out of the cache."""
    Path("sample.toml").write_text(
        'schema = 1\ntier = 1\n[filesystem]\nread = ["/usr/share"]\nworkspace = "overlay"\n'
        '[network]\nallow = ["*.example.org", "api.example.com:443"]\n'
        '[process]\nsyscalls = ["@system-service", "~@debug"]\n'
    )
    request = Request(("true",), profile=f"{Path.cwd()}/sample.toml")
    plans.for_request(request, "")
    things = {
        "compile": _timed(lambda: compile_profile(Profile.load("sample.toml"), features.probe())),
        "cached": _timed(lambda: plans.for_request(request, "")),
    }
    first = _first_compile()
    return {name: asdict(timing) for name, timing in interleaved(things, rounds).items()} | {"first": first}


def _first_compile() -> float:
    """Seconds for the first compilation of a fresh process, when its modules are loaded."""
    program = (
        "import time\n"
        "from osmoda.host import features\n"
        "from osmoda.sandbox.profile import Profile\n"
        "from osmoda.sandbox import profile_file, compilation\n"
        "from osmoda.sandbox.compile import compile_profile\n"
        "began = time.perf_counter()\n"
        "compile_profile(Profile.load('sample.toml'), features.probe())\n"
        "print(time.perf_counter() - began)"
    )
    times = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return sorted(times)[2]


def _timed(call: Callable[[], object]) -> Callable[[], Sample]:
    def run() -> Sample:
        cpu, began = time.process_time(), time.perf_counter()
        call()
        return Sample(time.perf_counter() - began, time.process_time() - cpu)

    return run


def _works(argv: list[str]) -> bool:
    return peers.works(argv, os.environ)


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process and the children it has reaped have used (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def main() -> None:
    spec = json.loads(sys.argv[1])
    os.chdir(spec["tmp"])
    adopt_orphans()
    rounds: int = spec["rounds"]
    # A peer may leave core dumps behind on a crash.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = {
        "launches": launches(rounds),
        "pool": pooled.pooled(rounds, spec["seconds"]) if peers.bubblewrap() else None,
        "commands": commands(spec["command"], Path(spec["peers"]), max(rounds // 3, 5)),
        "monitor": monitor(spec["command"]),
        "compiling": compiling(max(rounds // 10, 5)),
        "inside": inside(max(rounds // 20, 3)),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
