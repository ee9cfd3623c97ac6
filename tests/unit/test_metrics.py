"""The numbers of gateways, for Prometheus."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from osmoda.egress import metrics
from tests.egress_fakes import Gateway, Session


@pytest.fixture
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.close()


def busy(gateway):
    """A gateway that has seen something of everything."""
    session = Session(gateway, "box", "research")
    session.connections.update({1, 2})
    counters = gateway.counters
    counters.accepted, counters.records, counters.faults = 10, 20, 1
    counters.bytes_up, counters.bytes_down = 1000, 2000
    counters.names, counters.names_refused, counters.dropped = 7, 3, 2
    counters.decided("connection", "allow", "spliced")
    counters.decided("connection", "allow", "spliced")
    counters.decided("request", "deny", "refused")
    counters.decided("name", "deny", "refused")
    counters.set_up(0.0004)
    counters.set_up(0.2)
    counters.set_up(99.0)
    gateway.log.lost = 4
    return metrics.snapshot(gateway)


def values(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_snapshot_survives_json(gateway):
    taken = busy(gateway)
    assert json.loads(json.dumps(taken)) == taken
    assert taken["pid"] == os.getpid()


def test_the_text_has_every_number(gateway):
    found = values(metrics.text(busy(gateway)))
    expected = {
        ("osmoda_egress_sessions",): 1,
        ("osmoda_egress_open",): 2,
        ("osmoda_egress_visits",): 0,
        ("osmoda_egress_pending",): 0,
        ("osmoda_egress_accepted_total",): 10,
        ("osmoda_egress_records_total",): 20,
        ("osmoda_egress_records_lost_total",): 4,
        ("osmoda_egress_faults_total",): 1,
        ("osmoda_egress_decisions_total", "allow", "connection", "spliced"): 2,
        ("osmoda_egress_decisions_total", "deny", "refused", "request"): 1,
        ("osmoda_egress_bytes_total", "up"): 1000,
        ("osmoda_egress_bytes_total", "down"): 2000,
        ("osmoda_egress_dns_queries_total", "answered"): 7,
        ("osmoda_egress_dns_queries_total", "refused"): 3,
        ("osmoda_egress_dns_queries_total", "dropped"): 5,
        ("osmoda_egress_setup_seconds_bucket", "0.0005"): 1,
        ("osmoda_egress_setup_seconds_bucket", "0.1"): 1,
        ("osmoda_egress_setup_seconds_bucket", "0.25"): 2,
        ("osmoda_egress_setup_seconds_bucket", "5.0"): 2,
        ("osmoda_egress_setup_seconds_bucket", "+Inf"): 3,
        ("osmoda_egress_setup_seconds_count",): 3,
        ("osmoda_egress_setup_seconds_sum",): 99.2004,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert not any("name" in key for key in found)


def test_sums_over_gateways(gateway):
    taken = busy(gateway)
    summed = metrics.total([taken, taken])
    assert summed["accepted"] == 20
    assert summed["verdicts"] == [["connection", "allow", "spliced", 4], ["request", "deny", "refused", 2]]
    assert summed["setup"] == [2 * count for count in taken["setup"]]
    assert metrics.total([])["accepted"] == 0
    assert values(metrics.text(metrics.total([])))["osmoda_egress_sessions",] == 0


def test_sums_do_not_fall_when_a_gateway_ends(gateway):
    taken = busy(gateway)
    first, second = {**taken, "pid": 1}, {**taken, "pid": 2}
    totals = metrics.Totals()
    assert totals.add([first, second])["accepted"] == 20
    summed = totals.add([second])
    assert (summed["accepted"], summed["sessions"]) == (20, 1)
    assert totals.add([second])["accepted"] == 20
    # Another process has got the number of the first.
    assert totals.add([second, {**first, "accepted": 1, "records": 1, "names": 0}])["accepted"] == 21
    assert totals.add([])["accepted"] == 21
    assert totals.add([])["accepted"] == 21


def test_a_gateway_that_is_silent_for_a_while_is_not_counted_twice(gateway):
    first = {**busy(gateway), "pid": 1}
    totals = metrics.Totals()
    totals.add([first])
    assert totals.add([], silent=[1])["accepted"] == 10
    assert totals.add([{**first, "accepted": 12}])["accepted"] == 12


# Over HTTP


@pytest.fixture
def address():
    """Where a process serves it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            try:
                metrics.serve(listener, lambda: b"# numbers\n")
            finally:
                os._exit(1)
        yield listener.getsockname()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def get(address, path, method="GET"):
    connection = http.client.HTTPConnection(*address, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()


def test_get_metrics(address):
    status, content_type, body = get(address, "/metrics")
    assert (status, body) == (200, b"# numbers\n")
    assert content_type.startswith("text/plain; version=")
    assert get(address, "/metrics?name=x")[0] == 200


def test_nothing_else(address):
    assert get(address, "/")[0] == 404
    assert get(address, "/metrics", "POST")[0] == 501


def test_clients_that_say_nothing_are_no_harm(address):
    silent = [socket.create_connection(address) for _ in range(10)]
    assert get(address, "/metrics")[0] == 200
    for client in silent:
        client.close()
