"""The network of a sandbox, end to end: what a program inside gets, against none, squid, srt's proxy and mitmdump.

    python tests/bench/network.py [--rounds N] [--seconds S] [--peers FOLDER] [--json FILE]

`make bench` runs it as part of its own table. It needs root: server and client stand on two machines made of namespaces
(tests/internet.py), and the client runs inside a sandbox that the standing service serves. The ways take turns within
each round; a ratio is the median of the rounds' ratios. `datapath.py` measures the gateway without a sandbox around it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from datapath import cpu, resident  # noqa: E402
from table import Row, table  # noqa: E402

from tests.internet import Internet, Machine, OnlineWorld, make_internet  # noqa: E402
from tests.worlds import make_world  # noqa: E402

NAME, ADDRESS = "origin.test", "198.51.100.10"
SQUID, SRT, MITMDUMP = 3128, 3129, 3130
IDLE = 1000  # connections of one sandbox; two of them
SQUID_CONFIGURATION = """
http_port 127.0.0.1:{port}
http_access allow all
cache deny all
access_log none
cache_log /dev/null
pid_filename none
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
max_filedescriptors 16384
cache_effective_user proxy
"""


@dataclass(frozen=True)
class Measure:
    """What the client does, and what is wanted: at least so much of another way's figure."""

    what: str
    mode: str
    protocol: str
    connections: int
    path: str
    unit: str
    least: Mapping[str, float] = field(default_factory=dict)
    most_cpu: Mapping[str, float] = field(default_factory=dict)


SPLICED = (
    Measure("new TLS connections", "new", "tls", 8, "/small", "/s", {"direct": 0.7, "squid": 0.7}),
    Measure("TLS requests, 16 kept", "kept", "tls", 16, "/small", "/s", {"direct": 0.6}),
    Measure("1 TLS stream", "bytes", "tls", 1, "/large", "MB/s", {"direct": 0.7, "squid": 0.7}, {"squid": 0.7}),
    Measure("8 TLS streams", "bytes", "tls", 8, "/large", "MB/s", {"direct": 0.7, "squid": 0.7}, {"squid": 0.7}),
)
INSPECTED = (
    Measure("inspected: new TLS connections", "new", "tls", 8, "/small", "/s", {"mitmdump": 1.0}),
    Measure("inspected: requests, 16 kept", "kept", "tls", 16, "/small", "/s", {"mitmdump": 1.0}),
)
BY_TWO = {"new": 1.3, "kept": 1.7}  # of mitmdump's, by mode: two processes look into the connections of one sandbox
MOST_IDLE = 40.0  # MiB for two thousand spliced connections
MOST_ADDED_START = {"with the service": 0.5, "with a gateway of its own": 6.0}  # milliseconds
DECISIONS = {"a listed name": 3.0, "a name of 100 labels": 20.0}  # microseconds, with 100,000 rules


@dataclass
class Client:
    """Runs load.c on the machine outside: by itself, through a proxy, or in a sandbox."""

    world: OnlineWorld
    work: Path
    profiles: Mapping[str, Path]

    def argv(self, way: str, measure: Measure, seconds: float) -> list[str]:
        port = 443 if measure.protocol == "tls" else 80
        proxy = {"squid": SQUID, "srt": SRT, "mitmdump": MITMDUMP}.get(way, 0)
        said = f"{port} {proxy} {measure.protocol} {measure.connections} {seconds} {measure.path}"
        if way not in self.profiles:
            return self.world.argv([str(self.work / "load"), measure.mode, ADDRESS, *said.split()])
        script = f"exec ./load {measure.mode} $(getent ahostsv4 {NAME} | head -n 1 | cut -d ' ' -f 1) {said}"
        words = ["run", "--quiet", "--profile", str(self.profiles[way]), "--workspace", str(self.work)]
        return self.world.argv(self.world.osmoda_argv(*words, "--", "sh", "-c", script))

    def once(self, way: str, measure: Measure, seconds: float, pids: list[int]) -> dict[str, float]:
        """One run: its value, and seconds of CPU of the processes between for each connection, request or GB."""
        before = sum(cpu(pid) for pid in pids)
        done = subprocess.run(
            self.argv(way, measure, seconds), env=dict(self.world.environment), stdout=subprocess.PIPE, check=True
        )
        used = sum(cpu(pid) for pid in pids) - before
        answer = json.loads(done.stdout)
        amount = answer["bytes"] / 1e9 if measure.mode == "bytes" else answer["done"]
        value = amount / answer["seconds"] * (1000 if measure.mode == "bytes" else 1)
        return {
            "value": value,
            "cpu": used / amount if amount else 0.0,
            "errors": answer["errors"],
            "p50": answer["p50"] * 1e3,
        }


def turns(
    client: Client, measure: Measure, ways: Mapping[str, list[int]], rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        names = list(ways) if number % 2 == 0 else list(reversed(ways))
        for way in names:
            found[way].append(client.once(way, measure, seconds, ways[way]))
    return found


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def service(world: OnlineWorld, workers: int) -> Iterator[list[int]]:
    """The standing service; the pids of its workers."""
    argv = world.argv(world.osmoda_argv("serve", "--workers", str(workers), command="osmoda-egress"))
    with running(argv, env=dict(world.environment), stderr=subprocess.PIPE, cwd=world.tmp) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if line != "osmoda-egress: serving\n":
            raise RuntimeError(f"the service did not start: {line}")
        yield [pid for pid in below(process.pid) if not below(pid)]


def below(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [further for child in children for further in below(child)]


def wait_for(machine: Machine, port: int) -> None:
    deadline = time.monotonic() + 20
    while not machine.run("ss", "-Hltn", f"sport = :{port}"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.05)


def proxies(stack: ExitStack, internet: Internet, folder: Path, peers: Path) -> dict[str, list[int]]:
    """Those that are installed, on the machine outside; the pids of each."""
    found: dict[str, list[int]] = {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    configuration = folder / "squid.conf"
    configuration.write_text(SQUID_CONFIGURATION.format(port=SQUID))
    mitmdump = shutil.which("mitmdump", path=os.path.dirname(sys.executable))
    package = peers / "node_modules" / "@anthropic-ai" / "sandbox-runtime"
    confdir = f"confdir={folder}/mitmproxy"
    upstream = "ssl_insecure=true"
    commands = {
        "squid": (SQUID, ["squid", "-N", "-n", f"bench{os.getpid()}", "-f", str(configuration)], shutil.which("squid")),
        "srt": (SRT, ["node", str(HERE / "srt_proxy.mjs"), str(peers), str(SRT)], package.exists()),
        "mitmdump": (
            MITMDUMP,
            [str(mitmdump), "-q", "-p", str(MITMDUMP), "--set", confdir, "--set", upstream],
            mitmdump is not None,
        ),
    }
    for name, (port, command, there) in commands.items():
        if there:
            process = stack.enter_context(running(internet.outside.argv(command), **quiet))
            wait_for(internet.outside, port)
            found[name] = [process.pid]
    return found


def idle(client: Client, pids: list[int]) -> float:
    """MiB by which the service grows for two thousand connections of two sandboxes."""
    hold = Measure("", "hold", "tls", IDLE, "/small", "")
    before = sum(resident(pid) for pid in pids)
    with ExitStack() as stack:
        held = []
        for _ in range(2):
            argv = client.argv("osmoda", hold, 0)
            environment = dict(client.world.environment)
            process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            stack.enter_context(process)
            assert process.stdout is not None
            process.stdout.readline()
            held.append(process)
        grown = sum(resident(pid) for pid in pids) - before
        for process in held:
            errors = json.loads(process.communicate(b"")[0].splitlines()[-1])["errors"]
            if errors:
                raise RuntimeError(f"{errors} of {IDLE} idle connections could not be made")
    return grown


STARTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from timing import interleaved, spawned
things = {name: spawned(argv) for name, argv in json.loads(sys.argv[2]).items()}
print(json.dumps({name: timing.p50 for name, timing in interleaved(things, int(sys.argv[3])).items()}))
"""


def starts(client: Client, rounds: int) -> float:
    """Milliseconds that a start with an allowlist takes longer than one without, at the median."""
    world = client.world
    things = {
        name: world.osmoda_argv("run", "--tier", "2", *rules, "--", "true")
        for name, rules in {"without": (), "with": ("--allow", NAME)}.items()
    }
    for argv in things.values():
        argv[0] = shutil.which(argv[0]) or argv[0]
    done = world.run(
        [sys.executable, "-c", STARTS, str(HERE), json.dumps(things), str(rounds)], check=True, timeout=600
    )
    found = json.loads(done.stdout)
    return float(found["with"] - found["without"]) * 1e3


def decisions() -> dict[str, float]:
    """Microseconds of one decision with 100,000 rules."""
    from osmoda.egress.destinations import parse_rule
    from osmoda.egress.policy import Policy
    from osmoda.egress.policy_source import compile_policy

    allow = [
        (parse_rule(f"{'*.' if n % 2 else ''}host{n}.example{n % 977}.test", (443,)), f"b.toml:{n}")
        for n in range(100_000)
    ]
    blob = compile_policy(allow=allow, deny=[], connect=[], serve=[], ask=False, ask_origin="", default_origin="b.toml")
    policy = Policy.load(blob)
    names = {"a listed name": "host5000.example115.test", "a name of 100 labels": "a." * 100 + "test"}
    return {
        what: min(timeit.repeat(lambda name=name: policy.decide(name, 443), number=20_000, repeat=5)) / 20_000 * 1e6
        for what, name in names.items()
    }


def rows_of(measure: Measure, who: str, found: Mapping[str, list[dict[str, float]]], ours: str) -> list[Row]:
    """Our figure beside each peer's: ratios of the same round, at the median."""
    rows = []
    for way, runs in found.items():
        if way == ours:
            continue
        ratio = statistics.median(
            one["value"] / other["value"] if other["value"] else 0.0
            for one, other in zip(found[ours], runs, strict=True)
        )
        both = [(one["cpu"], other["cpu"]) for one, other in zip(found[ours], runs, strict=True)]
        spent = statistics.median(one / other if other else 0.0 for one, other in both)
        errors = sum(run["errors"] for run in found[ours])
        value = f"{_median(found[ours]):,.0f} {measure.unit}" + (f", {errors:.0f} errors" if errors else "")
        peer = f"{way} {_median(runs):,.0f} {measure.unit}"
        least = measure.least.get(way)
        rows.append(Row(measure.what, who, value, peer, ratio, spent or None, least, at_least=True))
        most = measure.most_cpu.get(way)
        if most is not None and spent:
            seconds = [statistics.median(run["cpu"] for run in side) for side in (found[ours], runs)]
            texts = [f"{value:.2f} s/GB" for value in seconds]
            rows.append(Row(f"{measure.what}: CPU", who, texts[0], f"{way} {texts[1]}", spent, None, most))
    return rows


def by_two(
    client: Client, who: str, ways: Mapping[str, list[int]], rounds: int, seconds: float, found: dict[str, Any]
) -> list[Row]:
    """What `INSPECTED` found for one process, for two; `found` has the former and gets the latter."""
    rows = []
    for one in INSPECTED:
        least = {"mitmdump": BY_TWO[one.mode]}
        measure = replace(one, what=f"two processes {one.what}", least=least)
        client.once("inspected", measure, 0.5, [])  # the second loads what it needs when the first is busy
        found[measure.what] = turns(client, measure, ways, rounds, seconds)
        rows += rows_of(measure, who, found[measure.what], "inspected")
        before, after = (_median(found[what]["inspected"]) for what in (one.what, measure.what))
        peer = f"one process {before:,.0f} {one.unit}"
        rows.append(Row(measure.what, who, f"{after:,.0f} {one.unit}", peer, after / before, None, None))
    return rows


def _median(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["value"] for run in runs)


def bench(who: str, peers: Path, rounds: int, seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """Everything, as "root" or "user": rows of the table, and all that was measured."""
    with ExitStack() as stack:
        internet = stack.enter_context(make_internet())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osmoda-bench-net-")))
        folder.chmod(0o755)
        (folder / "world").mkdir()
        world = OnlineWorld.of(make_world(who, folder / "world", folder / "runtime"), internet.outside)
        _serve(internet)
        stack.enter_context(internet.dns.answering(**{NAME: {"A": [ADDRESS]}}))
        client = _client(world)
        found: dict[str, Any] = {}
        rows: list[Row] = []
        alone = starts(client, 20 * rounds)
        between = proxies(stack, internet, folder, peers)
        with service(world, 1) as pids:
            ways = {"direct": [], "osmoda": pids, **{way: between[way] for way in ("squid", "srt") if way in between}}
            for measure in SPLICED:
                found[measure.what] = turns(client, measure, ways, rounds, seconds)
                rows += rows_of(measure, who, found[measure.what], "osmoda")
            latency = turns(client, Measure("", "new", "tls", 1, "/small", ""), ways, rounds, seconds)
            found["latency"] = latency
            pairs = zip(latency["osmoda"], latency["direct"], strict=True)
            added = statistics.median(one["p50"] - other["p50"] for one, other in pairs)
            rows.append(Row("added to a new connection", who, f"{added:.2f} ms", "", None, None, 0.5, "ms", added))
            ways = {"direct": [], "inspected": pids, **{way: between[way] for way in ("mitmdump",) if way in between}}
            for measure in INSPECTED:
                found[measure.what] = turns(client, measure, ways, rounds, seconds)
                rows += rows_of(measure, who, found[measure.what], "inspected")
            served = starts(client, 20 * rounds)
        with service(world, 2) as pids:
            rows += by_two(client, who, {**ways, "inspected": pids}, rounds, seconds, found)
        with service(world, 1) as pids:
            client.once("osmoda", Measure("", "new", "tls", 1, "/small", ""), 0.2, pids)
            found["idle"] = grown = idle(client, pids)
        rows.append(Row("2,000 idle connections", who, f"{grown:.1f} MiB", "", None, None, MOST_IDLE, "MiB", grown))
        for what, value in (("with the service", served), ("with a gateway of its own", alone)):
            found[f"start {what}"] = value
            most = MOST_ADDED_START[what]
            rows.append(
                Row(f"a start {what}", who, f"+{value:.2f} ms", "without a list", None, None, most, "ms", value)
            )
        found["decisions"] = decisions()
        for what, value in found["decisions"].items():
            row = Row(f"100,000 rules: {what}", who, f"{value:.2f} µs", "", None, None, DECISIONS[what], "µs", value)
            rows.append(row)
    return rows, found


def _serve(internet: Internet) -> None:
    """nginx as the tests have it, but without a log, which would cost more than what is measured."""
    from tests.internet_servers import repository
    from tests.servers import nginx

    configuration = nginx.configure(internet.folder, internet.authority)
    text = configuration.read_text()
    configuration.write_text(text.replace("access_log ", "access_log off; # "))
    internet.authority.write(internet.folder, "nobody", [NAME])
    repository(internet.folder)
    command = ["nginx", "-e", str(internet.folder / "nginx-error.log"), "-c", str(configuration)]
    internet.serve("nginx", *command, ready=lambda: internet.listens(8080))


def _client(world: OnlineWorld) -> Client:
    work = world.tmp / "work"
    work.mkdir()
    command = ["cc", "-O2", "-o", str(work / "load"), str(HERE / "load.c"), "-lssl", "-lcrypto", "-lpthread"]
    subprocess.run(command, check=True)
    head = 'schema = 1\ntier = 2\n[filesystem]\nworkspace = "direct"\n[process.limits]\nopen_files = 4096\n[network]\n'
    profiles = {}
    for way, rule in {"osmoda": f'"{NAME}:80,443"', "inspected": f'{{ host = "{NAME}", methods = ["GET"] }}'}.items():
        profiles[way] = world.tmp / f"{way}.toml"
        profiles[way].write_text(f"{head}allow = [{rule}]\n")
    world.own(world.tmp)
    return Client(world, work, profiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--peers", type=Path, default=HERE.parents[1] / ".venv" / "peers", help="where npm's peers are")
    parser.add_argument("--as", dest="who", choices=["root", "user"], default="user")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows, found = bench(options.who, options.peers.resolve(), options.rounds, options.seconds)
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "measured": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
