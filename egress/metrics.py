"""The numbers of gateways in the text format of Prometheus.

`snapshot` is taken in the gateway; the rest runs in a command, or beside the standing service, and is what imports
prometheus_client.
"""

from __future__ import annotations

import posix

from osmoda.egress.counters import BUCKETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from prometheus_client import Metric

    from osmoda.egress.gateway import Gateway

PREFIX = "osmoda_egress_"

_GAUGES = {
    "sessions": "Sandboxes that are served",
    "open": "Connections that are open",
    "visits": "Connections from other agents that are open",
    "pending": "Questions that wait for an answer",
}
_TOTALS = {
    "accepted": "Connections that sandboxes have made",
    "records": "Records of the log",
    "records_lost": "Records that could not be written",
    "faults": "Mistakes of the gateway's own, and shortages of descriptors or memory",
}
_BYTES = {"bytes_up": "up", "bytes_down": "down"}
_NAMES = {"names": "answered", "names_refused": "refused", "names_dropped": "dropped"}
_CLIENT_SECONDS = 5.0
_MOST_CLIENTS = 16


def snapshot(gateway: Gateway) -> dict[str, Any]:
    """All numbers of a gateway now, fit for JSON."""
    counters = gateway.counters
    sessions = list(gateway.sessions.values())
    return {
        "pid": posix.getpid(),
        "sessions": len(sessions),
        "open": sum([len(session.connections) for session in sessions]),
        "visits": sum([len(session.visits) for session in sessions]),
        "pending": sum([len(session.desk.open) for session in sessions if session.desk]),
        "accepted": counters.accepted,
        "records": counters.records,
        "records_lost": gateway.log.lost,
        "faults": counters.faults,
        "bytes_up": counters.bytes_up,
        "bytes_down": counters.bytes_down,
        "names": counters.names,
        "names_refused": counters.names_refused,
        "names_dropped": counters.dropped + sum([session.dropped_queries() for session in sessions]),
        "verdicts": [[*key, count] for key, count in counters.verdicts.items() if key[0] != "name"],
        "setup": counters.setup,
        "setup_sum": counters.setup_sum,
    }


class Totals:
    """Sums over gateways that come and go: what one has counted stays in the sums, so that they never fall."""

    def __init__(self) -> None:
        self._last: dict[int, Mapping[str, Any]] = {}
        self._departed = total([])

    def add(self, snapshots: Iterable[Mapping[str, Any]], silent: Iterable[int] = ()) -> dict[str, Any]:
        """The sums, with what the gateways say now; for those that are silent, with what they said last."""
        now = {int(taken["pid"]): taken for taken in snapshots}
        for pid, last in self._last.items():
            if pid not in now and pid in silent:
                now[pid] = last
            # One whose numbers have fallen is another process that has got the number.
            elif pid not in now or any(now[pid][name] < last[name] for name in ("accepted", "records", "names")):
                self._departed = total([self._departed, {**last, **dict.fromkeys(_GAUGES, 0)}])
        self._last = now
        return total([self._departed, *now.values()])


def total(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of several snapshots, as one."""
    summed: dict[str, Any] = dict.fromkeys((*_GAUGES, *_TOTALS, *_BYTES, *_NAMES), 0)
    summed["setup_sum"] = 0.0
    setup = [0] * (len(BUCKETS) + 1)
    verdicts: dict[tuple[str, str, str], int] = {}
    for taken in snapshots:
        for name in summed:
            summed[name] += taken[name]
        setup = [ours + theirs for ours, theirs in zip(setup, taken["setup"], strict=True)]
        for event, verdict, action, count in taken["verdicts"]:
            key = event, verdict, action
            verdicts[key] = verdicts.get(key, 0) + count
    return {**summed, "setup": setup, "verdicts": [[*key, count] for key, count in sorted(verdicts.items())]}


def text(summed: Mapping[str, Any]) -> bytes:
    """A snapshot, or a sum of them, in the text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Sums(summed))
    return generate_latest(registry)


class _Sums:
    """What prometheus_client takes for a collector."""

    def __init__(self, summed: Mapping[str, Any]) -> None:
        self._summed = summed

    def describe(self) -> list[Metric]:
        """Nothing to compare with other collectors: it is alone."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        summed = self._summed
        for name, help_text in _GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, help_text, value=summed[name])
        for name, help_text in _TOTALS.items():
            yield CounterMetricFamily(PREFIX + name, help_text, value=summed[name])
        decided = CounterMetricFamily(
            f"{PREFIX}decisions",
            "Connections and requests, by what became of them",
            labels=["event", "verdict", "action"],
        )
        for *labels, count in summed["verdicts"]:
            decided.add_metric(labels, count)
        yield decided
        relayed = CounterMetricFamily(f"{PREFIX}bytes", "Bytes relayed; up is from the sandboxes", labels=["direction"])
        for name, direction in _BYTES.items():
            relayed.add_metric([direction], summed[name])
        yield relayed
        queries = CounterMetricFamily(f"{PREFIX}dns_queries", "DNS queries, by what became of them", labels=["outcome"])
        for name, outcome in _NAMES.items():
            queries.add_metric([outcome], summed[name])
        yield queries
        buckets, passed = [], 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), summed["setup"], strict=True):
            passed += count
            buckets.append((bound, passed))
        yield HistogramMetricFamily(
            f"{PREFIX}setup_seconds",
            "Time from accepting a connection to passing it on",
            buckets=buckets,
            sum_value=summed["setup_sum"],
        )


def serve(listener: socket.socket, collect: Callable[[], bytes]) -> None:
    """Answer GET /metrics on a listening TCP socket with what `collect` gives, for ever; one slow client is no harm."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import prometheus_client

    room = threading.BoundedSemaphore(_MOST_CLIENTS)
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS

        def handle(self) -> None:
            if room.acquire(blocking=False):
                try:
                    super().handle()
                except OSError:
                    return  # it has gone
                finally:
                    room.release()

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            with turn:
                content = collect()
            self.send_response(200)
            self.send_header("Content-Type", prometheus_client.CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = listener.family

    with Server(("", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listener
        server.serve_forever()
