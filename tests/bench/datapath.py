"""The gateway's data path against a direct connection and squid's CONNECT: one table, and JSON with `--json FILE`.

    python tests/bench/datapath.py [--rounds N] [--seconds S] [--only new,kept,…]

Everything runs in a network namespace of its own, on its loopback: nginx with a certificate made here, squid, a gateway
(sessions, policy, records and all; in place of a sandbox a listener that stands for one name), and a client in C, which
is compiled. The three ways take turns within each round; a ratio is the median of the rounds' ratios. It needs nginx,
squid, openssl and a C compiler with OpenSSL's headers; without squid its columns stay empty.

Nothing here is a test: the exit code says only whether the measuring worked.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
NAME = "origin.test"
ADDRESS = "127.0.0.1"
TLS_PORT, PLAIN_PORT, GATE_TLS, GATE_PLAIN, SQUID = 443, 80, 1443, 1080, 3128
IDLE = 2000
TICK = os.sysconf("SC_CLK_TCK")

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1; worker_rlimit_nofile 16384;
{user}
events {{ worker_connections 8192; }}
http {{
    access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 600;
    client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
    uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
    server {{
        listen {address}:{plain} backlog=4096; listen {address}:{tls} ssl backlog=4096;
        ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        root {folder}/www;
    }}
}}
"""
SQUID_CONFIGURATION = """
http_port 127.0.0.1:{port}
http_access allow all
cache deny all
access_log none
cache_log {folder}/squid.log
pid_filename none
netdb_filename none
coredump_dir {folder}
pinger_enable off
shutdown_lifetime 0 seconds
max_filedescriptors 16384
{user}
"""


@dataclass(frozen=True)
class Measure:
    """What the client does, which column of its answer counts, and what is wanted of the gateway."""

    name: str
    what: str
    mode: str
    protocol: str
    connections: int
    path: str
    least: float | None  # of direct
    least_of_squid: float | None
    unit: str


MEASURES = (
    Measure("new", "new TLS connections", "new", "tls", 8, "/small", 0.7, 0.7, "/s"),
    Measure("kept", "TLS requests, 16 kept", "kept", "tls", 16, "/small", 0.6, None, "/s"),
    Measure("kept-plain", "plain requests, 16 kept", "kept", "plain", 16, "/small", 0.6, None, "/s"),
    Measure("bulk1", "1 TLS stream", "bytes", "tls", 1, "/large", 0.7, 0.7, "MB/s"),
    Measure("bulk8", "8 TLS streams", "bytes", "tls", 8, "/large", 0.7, 0.7, "MB/s"),
    Measure("bulk-plain", "1 plain stream", "bytes", "plain", 1, "/large", None, None, "MB/s"),
    Measure("latency", "one TLS connection after another", "turns", "tls", 1, "/small", None, None, "ms p50"),
)
MOST_CPU = 0.7  # of squid's, per byte
MOST_ADDED = 0.5  # milliseconds at the median, for a new connection
MOST_IDLE = 40.0  # MiB for IDLE connections


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", default="", help=f"some of {','.join(m.name for m in MEASURES)},idle")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    own_network()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osmoda-bench-")))
        folder.chmod(0o755)
        load = prepare(folder)
        stack.enter_context(running("nginx", "-c", str(folder / "nginx.conf")))
        gateway = stack.enter_context(forked_gateway(folder))
        squid = None
        if shutil.which("squid"):
            service = f"bench{os.getpid()}"
            command = ("squid", "-N", "-n", service, "-f", str(folder / "squid.conf"))
            squid = stack.enter_context(running(*command))
        for port in (TLS_PORT, GATE_TLS, *([SQUID] if squid else [])):
            wait_for(port)
        found: dict[str, Any] = {}
        for measure in MEASURES:
            if not only or measure.name in only:
                found[measure.name] = rounds_of(load, measure, gateway, squid, options.rounds, options.seconds)
        if not only or "idle" in only:
            found["idle"] = {"direct": {}, "gateway": idle(load, gateway, GATE_TLS, 0)}
            if squid:
                found["idle"]["squid"] = idle(load, squid, TLS_PORT, SQUID)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    show(found)


# The surroundings


def own_network() -> None:
    """A network namespace with nothing but `lo`, also as an ordinary user."""
    uid, gid = os.getuid(), os.getgid()
    if uid:
        os.unshare(os.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    os.unshare(os.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh22x", b"lo", 1 | 0x40)  # IFF_UP, IFF_RUNNING (netdevice(7))
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS


def prepare(folder: Path) -> str:
    """Certificate, files and configurations; the path of the compiled client."""
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-keyout", key, "-out", certificate, "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
    (folder / "www").mkdir()
    (folder / "www" / "small").write_text("hello")
    with open(folder / "www" / "large", "wb") as large:
        large.truncate(1 << 30)
    user = "user root;" if os.getuid() == 0 else ""
    nginx = NGINX.format(folder=folder, address=ADDRESS, plain=PLAIN_PORT, tls=TLS_PORT, user=user)
    (folder / "nginx.conf").write_text(nginx)
    # As root squid insists on another user, and cannot open its files in our folder then.
    user = "cache_effective_user proxy" if os.getuid() == 0 else ""
    squid = SQUID_CONFIGURATION.format(folder=folder, port=SQUID, user=user)
    (folder / "squid.conf").write_text(squid.replace(f"{folder}/squid.log", "/dev/null"))
    load = str(folder / "load")
    subprocess.run(["cc", "-O2", "-o", load, str(HERE / "load.c"), "-lssl", "-lcrypto", "-lpthread"], check=True)
    return load


@contextmanager
def running(*command: str) -> Iterator[int]:
    """A program until the end of the block; its pid."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((ADDRESS, port)).close()
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"nobody listens on port {port}")
            time.sleep(0.05)
        else:
            return


@contextmanager
def forked_gateway(folder: Path) -> Iterator[int]:
    """A gateway in a process of its own; its pid."""
    (folder / "log").mkdir()
    pid = os.fork()
    if pid == 0:
        be_a_gateway(str(folder / "log"))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def be_a_gateway(log: str) -> NoReturn:
    """Serve one sandbox that is not there: two listeners stand for its connections to the origin."""
    import gc

    from osmoda.egress import registration
    from osmoda.egress.connection import Connection
    from osmoda.egress.destinations import Rule
    from osmoda.egress.gateway import Gateway
    from osmoda.egress.loop import Acceptor
    from osmoda.egress.policy import Policy
    from osmoda.egress.policy_source import compile_policy
    from osmoda.egress.records import Log
    from osmoda.egress.session import Session
    from osmoda.egress.upstream import Upstream

    try:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        rule = Rule(NAME, (PLAIN_PORT, TLS_PORT), addresses=("127.0.0.0/8",))
        blob = compile_policy(
            allow=[(rule, "bench.toml:3")],
            deny=[],
            connect=[],
            serve=[],
            ask=False,
            ask_origin="",
            default_origin="bench.toml:2",
        )
        gateway = Gateway(Log(log))
        gateway.upstream = Upstream(gateway.loop, lookup=lambda name: [socket.inet_aton(ADDRESS)])
        channel, kept = registration.pair()
        opening = registration.Opening("1-1", "bench", 1, "bench", b"", (), (), blob, False)
        session = Session(gateway, channel, opening, Policy.load(blob))
        session.budgets._connections = 2 * IDLE
        address = session.table.ipv4(session.table.bind(NAME))
        for gate, port in ((GATE_TLS, TLS_PORT), (GATE_PLAIN, PLAIN_PORT)):
            listener = socket.create_server((ADDRESS, gate), backlog=4096)
            # As Session accepts them, but for the original destination, which nothing redirected here.
            Acceptor(gateway.loop, listener, lambda fd, port=port: Connection(session, fd, (address, port)) and None)
        gc.collect()
        gc.freeze()
        gateway.run()
        del kept
    finally:
        os._exit(1)


# Measuring


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def once(load: str, measure: Measure, port: int, proxy: int, pid: int | None, seconds: float) -> dict[str, float]:
    """One run of the client: value, CPU seconds per connection, request or GB, and errors."""
    before = cpu(pid) if pid else 0.0
    arguments = [measure.mode, ADDRESS, str(port), str(proxy), measure.protocol, str(measure.connections)]
    done = subprocess.run([load, *arguments, str(seconds), measure.path], check=True, stdout=subprocess.PIPE)
    used = (cpu(pid) if pid else 0.0) - before
    answer = json.loads(done.stdout)
    amount = answer["bytes"] / 1e9 if measure.mode == "bytes" else answer["done"]
    value = amount / answer["seconds"] * (1000 if measure.mode == "bytes" else 1)
    return {"value": value, "cpu": used / amount if amount else 0.0, "errors": answer["errors"], "p99": answer["p99"]}


def rounds_of(
    load: str, measure: Measure, gateway: int, squid: int | None, rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    origin, gate = (TLS_PORT, GATE_TLS) if measure.protocol == "tls" else (PLAIN_PORT, GATE_PLAIN)
    ways: dict[str, tuple[int, int, int | None]] = {"direct": (origin, 0, None), "gateway": (gate, 0, gateway)}
    if squid:
        ways["squid"] = (origin, SQUID, squid)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    if measure.mode == "turns":
        command = [
            load,
            "turns",
            ADDRESS,
            str(origin),
            str(SQUID if squid else 0),
            "tls",
            "1",
            str(seconds * len(ways)),
        ]
        for _ in range(rounds):
            done = subprocess.run([*command, measure.path, str(gate)], check=True, stdout=subprocess.PIPE)
            answer = json.loads(done.stdout)
            for way, runs in found.items():
                runs.append({"value": answer[way] * 1e3, "cpu": 0.0, "errors": 0})
        return found
    for turn in range(rounds):
        # Not always in the same order: what comes after a long run finds another machine.
        names = list(ways) if turn % 2 == 0 else list(reversed(ways))
        for way in names:
            port, proxy, pid = ways[way]
            found[way].append(once(load, measure, port, proxy, pid, seconds))
    return found


def idle(load: str, pid: int, port: int, proxy: int) -> dict[str, float]:
    """How much a process grows by IDLE open TLS connections."""
    before = resident(pid)
    command = [load, "hold", ADDRESS, str(port), str(proxy), "tls", str(IDLE), "0", "/small"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        client.stdout.readline()
        grown = resident(pid) - before
        answer = json.loads(client.communicate()[0].splitlines()[-1])
    return {"value": grown, "errors": answer["errors"]}


# Printing


def median(runs: list[dict[str, float]], key: str = "value") -> float:
    return statistics.median(run[key] for run in runs)


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str = "value") -> float:
    """The median of the rounds' ratios: what slows a whole round down does not count."""
    return statistics.median(
        one[key] / other[key] if other[key] else 0.0 for one, other in zip(ours, theirs, strict=True)
    )


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{platform.node()}, Linux {platform.release()}, {os.cpu_count()} cores; medians"
    table = Table(title=title)
    for heading in (
        "what",
        "direct",
        "gateway",
        "squid",
        "of direct",
        "of squid",
        "CPU",
        "squid's",
        "ratio",
        "target",
        "",
    ):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    for measure in MEASURES:
        if measure.name in found:
            table.add_row(*row(measure, found[measure.name]))
    if "idle" in found:
        grown = found["idle"]["gateway"]["value"]
        squid = found["idle"].get("squid")
        theirs = f"{squid['value']:.1f} MiB" if squid else ""
        cells = (f"{IDLE} idle connections", "", f"{grown:.1f} MiB", theirs, "", "", "", "", "", f"≤ {MOST_IDLE:g} MiB")
        table.add_row(*cells, verdict(grown <= MOST_IDLE))
    Console().print(table)


def row(measure: Measure, ways: dict[str, list[dict[str, float]]]) -> list[str]:
    direct, gateway, squid = ways["direct"], ways["gateway"], ways.get("squid")
    digits = ".2f" if measure.name == "latency" else ",.0f"
    cells = [
        measure.what,
        *(f"{median(way):{digits}} {measure.unit}" if way else "" for way in (direct, gateway, squid)),
    ]
    targets, met = [], True
    if measure.name == "latency":
        added = statistics.median(one["value"] - other["value"] for one, other in zip(gateway, direct, strict=True))
        cells += [f"+{added:.2f} ms", ""]
        if squid:
            less = statistics.median(one["value"] - other["value"] for one, other in zip(gateway, squid, strict=True))
            cells[-1] = f"{less:+.2f} ms"
        targets, met = [f"≤ +{MOST_ADDED} ms"], added <= MOST_ADDED
    else:
        of_direct = ratio(gateway, direct)
        cells.append(f"{of_direct:.2f}")
        if measure.least is not None:
            targets.append(f"≥ {measure.least}")
            met = met and of_direct >= measure.least
        of_squid = ratio(gateway, squid) if squid else None
        cells.append("" if of_squid is None else f"{of_squid:.2f}")
        if of_squid is not None and measure.least_of_squid is not None:
            met = met and of_squid >= measure.least_of_squid
    if measure.mode == "turns":
        cells += ["", "", ""]
    else:
        scale, unit = (1.0, " s/GB") if measure.mode == "bytes" else (1e6, " µs")
        cells += [f"{median(way, 'cpu') * scale:.2f}{unit}" if way else "" for way in (gateway, squid)]
        of_cpu = ratio(gateway, squid, "cpu") if squid else None
        cells.append("" if of_cpu is None else f"{of_cpu:.2f}")
        if measure.mode == "bytes" and measure.protocol == "tls":
            targets.append(f"CPU ≤ {MOST_CPU}")
            met = met and (of_cpu is None or of_cpu <= MOST_CPU)
    errors = sum(run["errors"] for way in ways.values() for run in way)
    cells.append(", ".join(targets))
    cells.append(f"[red]{errors:.0f} errors[/]" if errors else verdict(met) if targets else "")
    return cells


def verdict(met: bool) -> str:
    return "[green]met[/]" if met else "[red]missed[/]"


if __name__ == "__main__":
    main()
