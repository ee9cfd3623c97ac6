from __future__ import annotations

import pytest

from osmoda.egress.destinations import ANY_PORT, EVERY_DOMAIN, Rule
from osmoda.egress.policy import Policy
from osmoda.egress.policy_source import compile_policy

NOTHING = {
    "allow": (),
    "deny": (),
    "connect": (),
    "serve": (),
    "ask": False,
    "ask_origin": "tier 2",
    "default_origin": "tier 2",
}


def compiled(**fields) -> bytes:
    return compile_policy(**{**NOTHING, **fields})


def test_nothing_compiles_to_a_policy_that_denies_all():
    policy = Policy.load(compiled())
    assert policy.decide("a.b", 443).reason == "a.b is not in network.allow of tier 2"
    assert policy.serve == policy.secrets == ()
    assert policy.local_ports == {}


def test_the_same_rules_are_the_same_bytes():
    rules = [(Rule("a.b"), "p:1"), (Rule("*.c"), "p:2"), (Rule("c.b", secret="S"), "q:3")]
    assert compiled(allow=rules, serve=[2, 1, 2]) == compiled(allow=tuple(rules), serve=(1, 2))
    assert compiled(allow=rules) != compiled(allow=rules[:2])


@pytest.mark.parametrize(
    "origin",
    [
        "/srv/agent.toml:8",
        "tier 2",
        "x",
        "",
        "a:b:12",
        "a:08",
        "a:0",
        "a:99999999",
        "a:9999999",
        ":5",
        "the command line",
        "/srv/ü\n\t%0A%25 agent.toml:8",
        "/srv/\udcff.toml:8",
    ],
)
def test_origins_come_back_as_they_are(origin):
    policy = Policy.load(
        compiled(
            allow=[(Rule("a.b"), origin)],
            deny=[(Rule("d.b", (ANY_PORT,)), origin)],
            connect=[("agent:a:1", origin)],
            ask_origin=origin,
            default_origin=origin,
        )
    )
    assert policy.ask_origin == origin
    for name, port in (("a.b", 443), ("d.b", 443), ("a.agent", 1), ("x.b", 443)):
        assert policy.decide(name, port).origin == origin


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Rule("A.b"), '"A.b" is not in its canonical form, a.b'),
        (Rule("a.b."), "not in its canonical form"),
        (Rule("10.0.0.1"), "not in its canonical form, 10.0.0.1/32"),
        (Rule(EVERY_DOMAIN), 'a "\\*" may only be the whole first part'),
        (Rule("writer.agent"), "reached through network.connect"),
        (Rule("a.b", secret="*"), "is not a rule that a profile may hold"),
        (Rule("a.b", secret=""), "is not a rule that a profile may hold"),
        (Rule("a.b", paths=("/a b",)), "is not a rule that a profile may hold"),
        (Rule("a.b", methods=("GET\t1",)), "is not a rule that a profile may hold"),
        (Rule("a.b", paths=("",)), "is not a rule that a profile may hold"),
        (Rule("a.b", addresses=("10.0.0.0/8\n",)), "is not a rule that a profile may hold"),
        (Rule("a.b", ()), "ports that are not in their canonical form"),
        (Rule("a.b", (443, 80)), "ports that are not in their canonical form"),
        (Rule("a.b", (0, 80)), "ports that are not in their canonical form"),
        (Rule("a.b", (65536,)), "ports that are not in their canonical form"),
    ],
)
def test_what_no_profile_holds_is_refused(rule, reason):
    for key in ("allow", "deny"):
        with pytest.raises(ValueError, match=reason):
            compiled(**{key: [(rule, "p:1")]})


def test_peers_that_contradict_are_refused():
    with pytest.raises(ValueError, match="are both localhost:1 inside"):
        compiled(connect=[("localhost:1=agent:a:1", "p:1"), ("localhost:1=agent:b:1", "p:2")])
    with pytest.raises(ValueError, match=r"which network\.serve gives to the sandbox itself"):
        compiled(connect=[("localhost:1=agent:a:1", "p:1")], serve=[1])
    with pytest.raises(ValueError, match="it is not"):
        compiled(connect=[("agent:*:1", "p:1")])


def test_the_same_peer_twice_is_one():
    policy = Policy.load(compiled(connect=[("agent:a:1", "p:1"), ("localhost:5=agent:a:1", "p:2")]))
    assert len(policy.decide_name("a.agent").grants) == 1
    assert policy.decide_local(5).origin == "p:2"


def test_a_policy_has_a_largest_size(monkeypatch):
    monkeypatch.setattr("osmoda.egress.policy_source.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="100 are the most"):
        compiled(allow=[(Rule("a" * 60 + ".b"), "p:1")])


def test_all_fields_of_a_rule_arrive():
    rule = Rule(
        "a.b", (80, 443), ("GET", "POST"), ("/ü/*", "/v1"), "KEY", 0, 1 << 60, 7, True, ("10.0.0.0/8", "2001:db8::/32")
    )
    (grant,) = Policy.load(compiled(allow=[(rule, "p:1")])).decide("a.b", 80).grants
    assert (grant.host, grant.ports, grant.methods, grant.paths) == (rule.host, rule.ports, rule.methods, rule.paths)
    assert (grant.secret, grant.max_body, grant.max_bytes, grant.max_requests) == ("KEY", 0, 1 << 60, 7)
    assert (grant.ech, grant.addresses, grant.origin) == (True, rule.addresses, "p:1")
