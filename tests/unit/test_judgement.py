"""Whether a connection may be and where it may go: names, addresses, and what the client says of itself."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from osmoda.egress.destinations import Rule
from osmoda.egress.first_bytes import HTTP, TLS
from osmoda.egress.judgement import address_text, contradiction, decide, may_ask, objection, permits_hidden
from osmoda.egress.name_table import RESOLVER_IPV4
from tests.connection_scene import PRIVATE, PUBLIC, policy

RULES = policy(
    Rule("example.com"),
    Rule("ech.example", ech=True),
    Rule("db.example", (5432,), addresses=("10.0.0.0/8",)),
    Rule("10.1.0.0/16", (443,)),
    Rule("10.2.0.0/16", (443,), methods=("GET",)),
    deny=[Rule("denied.example", (0,)), Rule("10.1.9.0/24", (0,))],
    connect=["localhost:8081=agent:research:9000"],
)
NOWHERE = b""
LOCALHOST = socket.inet_aton("127.0.0.1")


def said(host="", protocol=TLS, port=0, hidden=False):
    return SimpleNamespace(host=host, protocol=protocol, port=port, hidden=hidden)


def ip(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def test_by_name_by_address_and_by_local_port():
    assert decide(RULES, "example.com", RESOLVER_IPV4, 443).allowed
    assert not decide(RULES, "example.com", RESOLVER_IPV4, 22).allowed
    assert decide(RULES, "", PRIVATE, 443).allowed
    assert decide(RULES, "", LOCALHOST, 8081).target == "agent:research"
    assert not decide(RULES, "", LOCALHOST, 443).allowed


def test_an_address_of_ours_without_a_name_is_never_allowed():
    everything = policy(Rule("198.18.0.0/15", (443,)))
    verdict = decide(everything, "", ip("198.18.5.5"), 443)
    assert not verdict.allowed
    assert "looked up again" in verdict.reason


def test_who_may_be_asked_about():
    asking = policy(deny=[Rule("denied.example", (0,))], ask=True)
    assert may_ask(asking, "new.example", 443)
    assert not may_ask(asking, "denied.example", 443)
    assert not may_ask(asking, "", 443)
    assert not may_ask(RULES, "new.example", 443)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (said("example.com"), ""),
        (said(""), ""),
        (said("example.com", HTTP, 443), ""),
        (said("evil.example"), "the TLS hello names evil.example, the connection is for example.com"),
        (said("sub.example.com"), "the TLS hello names sub.example.com, the connection is for example.com"),
        (said("evil.example", HTTP), "the HTTP request names evil.example, the connection is for example.com"),
        (said("192.0.2.7", HTTP), "the HTTP request names 192.0.2.7, the connection is for example.com"),
        (said("example.com", HTTP, 80), "the HTTP request is for port 80, the connection for port 443"),
        (
            said("example.com", hidden=True),
            "part of the TLS hello is encrypted (ECH), and no rule for example.com has ech = true",
        ),
    ],
)
def test_what_the_client_says_against_the_bound_name(first, reason):
    verdict = RULES.decide("example.com", 443)
    assert contradiction(RULES, verdict, "example.com", NOWHERE, 443, first)[0] == reason


def test_a_rule_may_permit_a_hidden_name():
    verdict = RULES.decide("ech.example", 443)
    assert permits_hidden(verdict)
    assert contradiction(RULES, verdict, "ech.example", NOWHERE, 443, said(hidden=True)) == ("", "")


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        (said("internal.example"), ""),
        (said("10.1.2.3", HTTP), ""),
        (said("denied.example"), "p.toml:13"),
        (said("research.agent"), "p.toml:15"),
        (said("10.1.2.4", HTTP), "p.toml:7"),
    ],
)
def test_what_the_client_says_to_a_granted_address(first, rule):
    verdict = RULES.decide_address(PRIVATE, 443)
    reason, found = contradiction(RULES, verdict, "", PRIVATE, 443, first)
    assert (found, bool(reason)) == (rule, bool(rule))


def test_a_local_port_takes_any_host():
    verdict = RULES.decide_local(8081)
    assert contradiction(RULES, verdict, "", LOCALHOST, 8081, said("localhost", HTTP, 8081)) == ("", "")


@pytest.mark.parametrize(
    ("name", "address", "port", "rule"),
    [
        ("example.com", "192.0.2.7", 443, ""),
        ("example.com", "10.1.2.3", 443, ""),
        ("example.com", "10.1.9.1", 443, "p.toml:14"),
        ("example.com", "10.2.0.1", 443, "p.toml:8"),
        ("example.com", "10.3.0.1", 443, "p.toml:8"),
        ("example.com", "127.0.0.1", 443, "p.toml:8"),
        ("example.com", "::1", 443, "p.toml:8"),
        ("example.com", "64:ff9b::a01:203", 443, "p.toml:8"),
        ("db.example", "10.3.0.1", 5432, ""),
        ("db.example", "192.168.0.1", 5432, "p.toml:10"),
        ("", "10.1.2.3", 443, ""),
        ("", "10.1.9.1", 443, "p.toml:14"),
    ],
)
def test_which_addresses_may_be_dialled(name, address, port, rule):
    verdict = decide(RULES, name, ip(address), port)
    if name:
        assert verdict.allowed
    reason, found = objection(RULES, verdict, name, ip(address), port)
    assert (found, bool(reason)) == (rule, bool(rule))


def test_addresses_as_people_write_them():
    assert [address_text(one) for one in (b"", PUBLIC, ip("2001:db8::1"))] == ["", "192.0.2.7", "2001:db8::1"]


def test_an_address_of_this_host_is_dialled_only_where_a_rule_names_it():
    public = socket.inet_aton("192.0.2.7")
    plain = policy(Rule("a.example"))
    assert objection(plain, plain.decide("a.example", 443), "a.example", public, 443) == ("", "")
    reason, _ = objection(plain, plain.decide("a.example", 443), "a.example", public, 443, own=True)
    assert "192.0.2.7 is an address of this host" in reason
    named = policy(Rule("a.example", addresses=("192.0.2.0/24",)))
    assert objection(named, named.decide("a.example", 443), "a.example", public, 443, own=True) == ("", "")
    network = policy(Rule("192.0.2.0/24", (443,)))
    assert objection(network, network.decide_address(public, 443), "", public, 443, own=True) == ("", "")
