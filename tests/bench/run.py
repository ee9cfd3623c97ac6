"""Times and memory against the targets, peers in the same run: one table, and JSON with `--json FILE`.

    make bench ARGS="--json bench.json"

Nothing here is a test: the exit code says only whether the measuring worked. The table's last column says whether a
target is met; ratios compare medians of runs that took turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import ledger_rates  # noqa: E402
import network  # noqa: E402
import peers  # noqa: E402
import supervisors  # noqa: E402
from table import Row, table  # noqa: E402

from tests.worlds import World, make_world  # noqa: E402


def milliseconds(timing: dict[str, float]) -> str:
    return f"{timing['p50'] * 1e3:.2f} ms (cpu {timing['cpu'] * 1e3:.2f})"


def compared(
    what: str, who: str, ours: dict[str, float], name: str, peer: dict[str, float], target: float | None
) -> Row:
    cpu = ours["cpu"] / peer["cpu"] if peer["cpu"] else None
    return Row(what, who, milliseconds(ours), f"{name} {milliseconds(peer)}", ours["p50"] / peer["p50"], cpu, target)


def absolute(what: str, who: str, value: float, target: float | None, unit: str) -> Row:
    return Row(what, who, f"{value:.2f} {unit}", "", None, None, target, unit, value)


# Upper bounds: of our median as a multiple of the peer's. A name that is missing has no target.
LAUNCH = {"user": {"bwrap": 1.0}, "root": {"bwrap": 1.2}}
COMMAND = {"bwrap": 4.5, "srt": 1 / 9, "firejail": 1.3}
POOL = {"p50": 0.30, "p99": 1.0, "rate": 1.0, "cpu_ms": 5.5, "idle": 2.0}  # of bubblewrap's; ms of CPU each; MiB
INSIDE = {"stat": 1.06, "getpid": 1.4, "compileall": 1.03}


def rows(who: str, found: dict[str, Any], absent: list[str]) -> list[Row]:
    launches = found["launches"]["timings"]
    what = 'Sandbox.run(["true"])' + (", limited" if found["launches"]["limits"] else "")
    result = [
        compared(what, who, launches["Sandbox.run"], name, timing, LAUNCH[who].get(name))
        for name, timing in launches.items()
        if name != "Sandbox.run"
    ]
    commands = found["commands"]["timings"]
    for name in commands:
        if not name.startswith("osmoda-sandbox"):
            ours = commands.get(f"osmoda-sandbox run, beside {name}", commands["osmoda-sandbox run"])
            result.append(compared("osmoda-sandbox run", who, ours, name, commands[name], COMMAND.get(name)))
    for name in ("bwrap", "firejail", "nsjail", "srt"):
        if name not in commands:
            reason = "absent" if any(name in entry or name == "bwrap" for entry in absent) else "does not run here"
            result.append(Row("osmoda-sandbox run", who, "", f"{name}: {reason}", None, None, COMMAND.get(name)))
    for name, places in found["inside"].items():
        result.append(compared(f"inside: {name}", who, places["inside"], "outside", places["outside"], INSIDE[name]))
    mebibyte = 1 << 20
    if found["pool"]:
        result += pool_rows(who, found["pool"])
    result.append(absolute("monitor, resident", who, found["monitor"]["rss"] / mebibyte, 20, "MiB"))
    result.append(absolute("monitor, private", who, found["monitor"]["private"] / mebibyte, None, "MiB"))
    result.append(absolute("launcher, resident", who, found["launches"]["launcher_rss"] / mebibyte, None, "MiB"))
    result.append(absolute("compile, first in a process", who, found["compiling"]["first"] * 1e3, 80, "ms"))
    result.append(absolute("compile, again", who, found["compiling"]["compile"]["p50"] * 1e3, None, "ms"))
    result.append(absolute("plan from the cache", who, found["compiling"]["cached"]["p50"] * 1e3, 2, "ms"))
    return result


def pool_rows(who: str, found: dict[str, Any]) -> list[Row]:
    """Of a pool: one at a time, the slowest in a hundred, as many as there can be, and what one weighs that waits."""
    ours, peer = found["timings"]["Pool.run"], found["timings"]["bwrap"]
    what = 'Pool.run(["true"])'
    slow, slow_peer = (f"{one['p99'] * 1e3:.2f} ms" for one in (ours, peer))
    rate, rate_peer = (found["sustained"][name]["rate"] for name in ("Pool.run", "bwrap"))
    return [
        compared(what, who, ours, "bwrap", peer, POOL["p50"]),
        Row(f"{what}, 99 in 100", who, slow, f"bwrap {slow_peer}", ours["p99"] / peer["p99"], None, POOL["p99"]),
        Row(
            f"{what}, sustained",
            who,
            f"{rate:.0f}/s",
            f"bwrap {rate_peer:.0f}/s",
            rate / rate_peer,
            None,
            POOL["rate"],
            at_least=True,
        ),
        absolute(f"{what}, sustained, CPU", who, found["sustained"]["Pool.run"]["cpu"] * 1e3, POOL["cpu_ms"], "ms"),
        absolute("a sandbox that waits", who, found["idle"] / (1 << 20), POOL["idle"], "MiB"),
    ]


def with_account(world: World, runtime: Path) -> World:
    """The same world for a user who has an account, where there is one: firejail runs for no other."""
    accounts = [account for account in pwd.getpwall() if 1000 <= account.pw_uid < 60000]
    if world.uid == os.getuid() or not accounts:
        return world
    changed = replace(world, uid=accounts[0].pw_uid, gid=accounts[0].pw_gid)
    changed.own(world.tmp, runtime)
    return changed


def measured(world: World, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    spec = {
        "tmp": str(world.tmp),
        "peers": str(folder),
        "command": world.osmoda_argv()[0],
        "rounds": rounds,
        "seconds": seconds,
    }
    done = world.run([sys.executable, str(HERE / "measure.py"), json.dumps(spec)], timeout=1800, stderr=None)
    if done.returncode:
        sys.exit(f"measuring as {world.name} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Times and memory against the targets.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--rounds", type=int, default=200, help="launches of each kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of sustained rates (default: %(default)s)")
    parser.add_argument("--peers", type=Path, default=HERE.parents[1] / ".venv" / "peers", help="where npm's peers are")
    parser.add_argument("--install-peers", action="store_true", help="install missing peers with apt and npm first")
    options = parser.parse_args()
    if options.install_peers:
        peers.install(options.peers)
    absent = [command for command in peers.PACKAGES.values() if shutil.which(command) is None]
    if not os.access(peers.srt(options.peers), os.X_OK):
        absent.append("srt")
    lines: list[Row] = []
    everything: dict[str, Any] = {}
    for who in ["user", "root"] if os.getuid() == 0 else ["user"]:
        with tempfile.TemporaryDirectory(prefix=f"osmoda-bench-{who}-") as name:
            runtime = Path(name, "runtime")
            os.chmod(name, 0o755)
            (Path(name) / "world").mkdir()
            world = with_account(make_world(who, Path(name) / "world", runtime), runtime)
            everything[who] = measured(world, options.peers.resolve(), options.rounds, options.seconds)
        lines += rows(who, everything[who], absent)
        if os.getuid() == 0:
            found, everything[who]["network"] = network.bench(who, options.peers.resolve(), 3, 2.0)
            lines += found
            found, everything[who]["supervisor"] = supervisors.bench(
                who, options.peers.resolve(), options.rounds // 2, 200
            )
            lines += found
    found, everything["ledger"] = ledger_rates.bench("root" if os.getuid() == 0 else "user")
    lines += found
    Console(width=None if sys.stdout.isatty() else 160).print(table(lines))
    if options.json:
        answer = {"host": list(platform.uname()), "rows": [asdict(row) | {"met": row.met} for row in lines]}
        options.json.write_text(json.dumps(answer | {"measured": everything}, indent=1) + "\n")


if __name__ == "__main__":
    main()
