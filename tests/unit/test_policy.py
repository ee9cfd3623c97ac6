"""Decisions against a reference that walks all rules, one by one, and knows no tables."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.egress.destinations import ANY_PORT, Rule, canonical_host, parse_peer, parse_rule
from osmoda.egress.policy import Grant, Policy, is_host_name
from osmoda.egress.policy_source import compile_policy
from tests.unit.test_destinations import means

FILE = "agent.toml"


@dataclass
class Written:
    """Rules with the lines they stand in, and what is made of them."""

    allow: list[tuple[Rule, str]]
    deny: list[tuple[Rule, str]]
    connect: list[tuple[str, str]]
    ask: bool = False

    def blob(self) -> bytes:
        return compile_policy(
            allow=self.allow,
            deny=self.deny,
            connect=self.connect,
            serve=(7000,),
            ask=self.ask,
            ask_origin=f"{FILE}:2",
            default_origin=FILE,
        )

    def policy(self) -> Policy:
        return Policy.load(self.blob())


def written(allow=(), deny=(), connect=(), *, ask=False) -> Written:
    """As a profile would have them: `allow` from line 11, `deny` from 21, `connect` from 31."""
    return Written(
        [
            (rule if isinstance(rule, Rule) else parse_rule(rule, (443,)), f"{FILE}:{11 + at}")
            for at, rule in enumerate(allow)
        ],
        [
            (rule if isinstance(rule, Rule) else parse_rule(rule, (0,)), f"{FILE}:{21 + at}")
            for at, rule in enumerate(deny)
        ],
        [(entry, f"{FILE}:{31 + at}") for at, entry in enumerate(connect)],
        ask,
    )


# ---- The reference


def matches(rule: Rule, target: str, port: int) -> bool:
    return means(rule.host, target) and (port in rule.ports or ANY_PORT in rule.ports)


def as_grant(rule: Rule, origin: str) -> Grant:
    limits = [-1 if limit is None else limit for limit in (rule.max_body, rule.max_bytes, rule.max_requests)]
    return Grant(
        rule.host, rule.ports, rule.methods, rule.paths, rule.secret or "", *limits, rule.ech, rule.addresses, origin
    )


def is_ours(name: str) -> bool:
    return name.endswith((".agent", ".osmoda", ".mesh"))


def reference(rules: Written, target: str, port: int) -> tuple[bool, set[Grant], set[str]]:
    """Whether it is allowed, by which grants, and the lines of all denials."""
    denials = {origin for rule, origin in rules.deny if matches(rule, target, port)}
    for entry, origin in rules.connect:
        peer = parse_peer(entry)
        if target in peer.names and port == peer.port:
            denials = {line for rule, line in rules.deny if any(matches(rule, name, port) for name in peer.names)}
            return not denials, set() if denials else {Grant(target, (port,), origin=origin)}, denials
    if is_ours(target):
        return False, set(), set()
    grants = {as_grant(rule, origin) for rule, origin in rules.allow if matches(rule, target, port)}
    return bool(grants) and not denials, set() if denials else grants, denials


NAMES = ["a.b", "x.a.b", "y.x.a.b", "c.b", "b", "single", "xa.b", "a.b.c", "host", "host.osmoda", "w.agent", "v.agent"]
HOSTS = ["a.b", "x.a.b", "c.b", "single", "host", "*.a.b", "*.b", "*.x.a.b", "*"]
NETWORKS = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "::1/128",
]
ADDRESSES = [
    "10.1.2.3",
    "10.1.9.9",
    "10.9.9.9",
    "11.0.0.1",
    "255.255.255.255",
    "2001:db8::1",
    "2001:db8:1::1",
    "::1",
    "2001:db9::",
]
PORTS = [22, 80, 443, 5432]

ports = st.just((ANY_PORT,)) | st.lists(st.sampled_from(PORTS), min_size=1, max_size=3, unique=True).map(
    lambda found: tuple(sorted(found))
)
rules = st.builds(
    Rule,
    host=st.sampled_from([*HOSTS, *NETWORKS]),
    ports=ports,
    methods=st.sampled_from([(), (), ("GET",), ("GET", "POST")]),
    paths=st.sampled_from([(), (), ("/v1/*",)]),
    secret=st.sampled_from([None, None, "KEY"]),
    max_body=st.sampled_from([None, None, 0, 10]),
    max_bytes=st.sampled_from([None, 10]),
    max_requests=st.sampled_from([None, 10]),
    ech=st.booleans(),
    addresses=st.sampled_from([(), ("10.0.0.0/8", "::/0")]),
)
denials = st.builds(Rule, host=st.sampled_from([*HOSTS, *NETWORKS]), ports=ports)
connects = st.lists(
    st.sampled_from(["agent:w:22", "agent:w:80", "host:5432", "localhost:80=agent:v:443", "mesh:s/t:22"]),
    max_size=3,
    unique=True,
)


@st.composite
def policies(draw):
    allow, deny, connect = draw(st.lists(rules, max_size=6)), draw(st.lists(denials, max_size=2)), draw(connects)
    lines = st.sampled_from([f"{FILE}:{line}" for line in range(3, 9)] + ["/a b/ba%se\n.toml:7", "tier 2"])
    return Written(*([(item, draw(lines)) for item in items] for items in (allow, deny, connect)))


@settings(max_examples=400, deadline=None)
@given(policies())
def test_names_are_decided_as_by_the_reference(rules):
    policy = rules.policy()
    for name in NAMES:
        for port in [*PORTS, 9]:
            allowed, grants, denied = reference(rules, name, port)
            for _ in range(2):  # the second time it is kept
                verdict = policy.decide(name, port)
                assert (verdict.allowed, {*verdict.grants}) == (allowed, grants)
                assert (verdict.reason == "") == allowed
            if allowed:
                assert verdict.origin in {grant.origin for grant in grants}
                secret = any(grant.secret for grant in grants)
                assert verdict.inspect == (secret or all(grant.inspected for grant in grants))
            elif denied:
                assert verdict.origin in denied
                assert verdict.reason == f"{name}:{port} is refused by the deny at {verdict.origin}"
            assert policy.denied_explicitly(name, port) == (
                is_ours(name) or any(matches(rule, name, port) for rule, _ in rules.deny)
            )


@settings(max_examples=400, deadline=None)
@given(policies())
def test_addresses_are_decided_as_by_the_reference(rules):
    policy = rules.policy()
    for text in ADDRESSES:
        packed = ipaddress.ip_address(text).packed
        for port in [*PORTS, 9]:
            allowed, grants, denied = reference(rules, text, port)
            verdict = policy.decide_address(packed, port)
            assert (verdict.allowed, {*verdict.grants}) == (allowed, grants)
            found = policy.denies_address(packed, port)
            assert (found is not None) == bool(denied)
            assert found is None or (found.origin in denied and not found.allowed)


@settings(max_examples=300, deadline=None)
@given(policies())
def test_a_name_is_answered_when_some_port_of_it_may_be_reached(rules):
    policy = rules.policy()
    numbers = [*PORTS, 9]  # 9 stands for all that no rule names
    for name in NAMES:
        open_at = [port for port in numbers if reference(rules, name, port)[0]]
        verdict = policy.decide_name(name)
        assert verdict.allowed == bool(open_at)
        grants = {grant for port in open_at for grant in reference(rules, name, port)[1]}
        # A rule for a host of the internet that is called as a peer is may have no port left.
        assert {*verdict.grants} == grants or (name == "host" and {*verdict.grants} > grants)
        if name not in ("host", "host.osmoda", "w.agent", "v.agent"):
            denied = all(any(matches(rule, name, port) for rule, _ in rules.deny) for port in range(1, 100))
            assert policy.denied_explicitly(name, 0) == denied


# ---- Names


@pytest.mark.parametrize(
    ("allow", "name"),
    [
        (["*.example.com"], "example.com"),
        (["*.example.com"], "notexample.com"),
        (["*.example.com"], "example.com.evil.com"),
        (["evil.com.example"], "evil.com"),
        (["example.com"], "a.example.com"),
        ([], "example.com"),
        (["*"], "127.1"),
        (["*"], "2130706433"),
        (["*"], "0x7f.1"),
        (["*"], "a.0x7f000001"),
        (["*"], "[evil.com]"),
        (["*"], "10.0.0.1"),
        (["*"], "writer.agent"),
        (["*"], "mcp.osmoda"),
        (["*"], "a.b.mesh"),
    ],
)
def test_what_is_like_a_name_but_not_it_is_denied(allow, name):
    policy = written(allow).policy()
    assert not policy.decide(name, 443).allowed
    assert not policy.decide_name(name).allowed


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A.b",
        "a b",
        "a\0b.com",
        "a\n.b",
        "-a.b",
        "a-.b",
        "a.-b",
        "a.b-",
        "bücher.example",
        "\udc80.com",
        "*.b",
        "*",
        "a/b",
        "a:443",
        "a@b.com",
        "x" * 64,
        f"a.{'x' * 64}.b",
        f"{'x' * 63}.{'y' * 64}",
        ".".join(["abcdefg"] * 32),
        "1",
        "1.2.3.4",
        "a.1",
        "a.0x",
        "0xa.0Xb",
    ],
)
def test_what_is_no_host_name_is_refused_and_never_asked_about(name):
    policy = written(["*", "a.b"], ask=True).policy()
    for verdict in (policy.decide(name, 443), policy.decide_name(name)):
        assert not verdict.allowed
        assert verdict.reason == "what was asked for is not a host name"
        assert verdict.origin == FILE
    assert policy.denied_explicitly(name, 443)
    assert policy.denied_explicitly(name, 0)


@given(st.text(max_size=12) | st.text("ab.-_x09*", max_size=12) | st.text("a.-", min_size=60, max_size=260))
def test_a_host_name_is_what_a_rule_can_name(text):
    try:
        canonical = canonical_host(text)
    except ValueError:
        canonical = None
    named = canonical == text and "/" not in text and not text.startswith("*")
    ours = text.rpartition(".")[2] in ("agent", "osmoda", "mesh")
    assert is_host_name(text) == named or ours


@pytest.mark.parametrize("port", [0, -1, 65536, 1 << 40])
def test_what_is_no_port_is_denied_where_every_port_is_allowed(port):
    assert not written([Rule("a.b", (ANY_PORT,))]).policy().decide("a.b", port).allowed
    assert not written([Rule("0.0.0.0/0", (ANY_PORT,))]).policy().decide_address(b"\x08" * 4, port).allowed


# ---- What is said


@pytest.mark.parametrize(
    ("rules", "name", "port", "origin", "reason"),
    [
        (
            written(["api.example.com"]),
            "api.example.com",
            22,
            f"{FILE}:11",
            f"api.example.com:22 is not allowed: {FILE}:11 allows only port 443",
        ),
        (
            written(["*.example.com:80,443", "api.example.com:8080"]),
            "api.example.com",
            22,
            f"{FILE}:12",
            f"api.example.com:22 is not allowed: {FILE}:12 and 1 more allow only ports 80, 443 and 8080",
        ),
        (
            written([Rule("a.b", tuple(range(1, 20)))]),
            "a.b",
            22,
            f"{FILE}:11",
            f"a.b:22 is not allowed: {FILE}:11 allows only ports 1, 2, 3, 4, 5, 6, 7 and 12 more",
        ),
        (written(), "evil.example", 443, FILE, f"evil.example is not in network.allow of {FILE}"),
        (
            written(["*"], ["evil.example"]),
            "evil.example",
            443,
            f"{FILE}:21",
            f"evil.example:443 is refused by the deny at {FILE}:21",
        ),
        (
            written(connect=["agent:writer:8082"]),
            "writer.agent",
            80,
            f"{FILE}:31",
            f"writer.agent:80 is not allowed: {FILE}:31 allows only port 8082",
        ),
        (
            written(["*"]),
            "writer.agent",
            80,
            FILE,
            "writer.agent:80 is not allowed: no entry of network.connect leads there",
        ),
    ],
)
def test_a_denial_says_what_would_change_it(rules, name, port, origin, reason):
    verdict = rules.policy().decide(name, port)
    assert (verdict.allowed, verdict.origin, verdict.reason) == (False, origin, reason)


def test_a_name_that_is_denied_everywhere_says_so():
    policy = written(["a.b:80,443", "*.c"], ["a.b:80", "a.b:443", "x.c"]).policy()
    assert policy.decide_name("a.b").reason == f"a.b is refused by the deny at {FILE}:21"
    assert policy.decide_name("x.c").reason == f"x.c is refused by the deny at {FILE}:23"
    assert policy.decide_name("d").reason == f"d is not in network.allow of {FILE}"
    assert policy.decide_name("x.agent").reason == "x.agent is not allowed: no entry of network.connect leads there"


def test_an_address_in_words():
    policy = written(["10.0.0.0/8:80", "[2001:db8::]:80"], ["10.1.0.0/16"]).policy()
    assert policy.decide_address(b"\x0a\x00\x00\x01", 22).reason == (
        f"10.0.0.1:22 is not allowed: {FILE}:11 allows only port 80"
    )
    assert policy.decide_address(b"\x0a\x01\x00\x01", 22).reason == f"10.1.0.1:22 is refused by the deny at {FILE}:21"
    assert policy.decide_address(ipaddress.ip_address("2001:db8::").packed, 22).reason == (
        f"[2001:db8::]:22 is not allowed: {FILE}:12 allows only port 80"
    )
    assert policy.decide_address(b"\x08\x08\x08\x08", 22).reason == f"8.8.8.8 is not in network.allow of {FILE}"
    assert policy.decide_address(b"\x08\x08\x08", 22).reason == "what was asked for is no address"


def test_grants_come_with_the_narrowest_host_first():
    policy = written(["*", "*.b", "*.a.b", "x.a.b", "x.a.b:80,443"]).policy()
    verdict = policy.decide("x.a.b", 443)
    assert [grant.host for grant in verdict.grants] == ["x.a.b", "x.a.b", "*.a.b", "*.b", "*"]
    assert verdict.origin == f"{FILE}:14"
    policy = written(["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1"]).policy()
    hosts = [grant.host for grant in policy.decide_address(b"\x0a\x00\x00\x01", 443).grants]
    assert hosts == ["10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0"]


def test_the_rest_of_a_policy():
    rules = written([Rule("a.b", secret="B"), Rule("c.b", secret="A"), Rule("d.b", secret="B")], ask=True)
    policy = rules.policy()
    assert policy.secrets == ("A", "B")
    assert policy.serve == (7000,)
    assert (policy.ask, policy.ask_origin) == (True, f"{FILE}:2")
    assert policy.digest == rules.policy().digest
    assert policy.digest != written(ask=True).policy().digest
    assert not written().policy().ask


# ---- Names of ours


def test_peers_have_names_inside():
    rules = written(connect=["agent:Writer:8082", "host:5432", "mesh:server-2/analysis:9000"])
    policy = rules.policy()
    for name, port, target in [
        ("writer.agent", 8082, "agent:Writer"),
        ("host", 5432, "host"),
        ("host.osmoda", 5432, "host"),
        ("analysis.server-2.mesh", 9000, "mesh:server-2/analysis"),
    ]:
        verdict = policy.decide(name, port)
        assert (verdict.allowed, verdict.target, verdict.inspect) == (True, target, False)
        assert [grant.host for grant in verdict.grants] == [name]
        assert policy.decide_name(name).target == target
        assert not policy.decide(name, port + 1).allowed


def test_a_port_of_localhost_leads_to_an_agent():
    policy = written(connect=["localhost:8081=agent:Research:80", "localhost:8082=agent:b:8082"]).policy()
    assert policy.local_ports == {8081: "agent:Research:80", 8082: "agent:b:8082"}
    verdict = policy.decide_local(8081)
    assert (verdict.allowed, verdict.target, verdict.origin) == (True, "agent:Research", f"{FILE}:31")
    assert [(grant.host, grant.ports) for grant in verdict.grants] == [("research.agent", (80,))]
    assert policy.decide("research.agent", 80).target == "agent:Research"
    assert policy.decide_local(80).reason == (
        "localhost:80 leads to no other agent: no entry of network.connect says so"
    )


def test_a_host_of_the_internet_may_have_the_name_of_ours():
    policy = written(["host:80"], connect=["host:5432"]).policy()
    assert policy.decide("host", 80).target == ""
    assert policy.decide("host", 5432).target == "host"
    assert {grant.ports for grant in policy.decide_name("host").grants} == {(80,), (5432,)}


@pytest.mark.parametrize("denied", ["*", "*:5432", "host", "host:5432"])
def test_a_denial_holds_for_all_names_of_a_peer(denied):
    policy = written(connect=["host:5432", "agent:a:5432", "localhost:1=agent:a:5432"], deny=[denied]).policy()
    assert policy.decide("host.osmoda", 5432).reason == f"host.osmoda:5432 is refused by the deny at {FILE}:21"
    assert policy.decide_name("host").reason == f"host is refused by the deny at {FILE}:21"
    assert policy.decide("a.agent", 5432).allowed == policy.decide_local(1).allowed == ("host" in denied)


# ---- Addresses that hold others


@pytest.mark.parametrize(
    "address", ["::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "::10.0.0.1", "2001::f5ff:fffe"]
)
def test_a_denied_network_holds_for_what_is_inside_an_address(address):
    packed = ipaddress.ip_address(address).packed
    verdict = written(["*"], ["10.0.0.0/8"]).policy().denies_address(packed, 443)
    assert verdict is not None
    assert verdict.reason == f"10.0.0.1:443 is refused by the deny at {FILE}:21"


def test_a_mapped_address_is_the_one_it_holds():
    policy = written(["10.0.0.0/8"], ["10.1.0.0/16"]).policy()
    assert policy.decide_address(ipaddress.ip_address("::ffff:10.0.0.1").packed, 443).allowed
    assert not policy.decide_address(ipaddress.ip_address("::ffff:10.1.0.1").packed, 443).allowed
    assert not written(["::/0"]).policy().decide_address(ipaddress.ip_address("::ffff:10.0.0.1").packed, 443).allowed


# ---- Long lists


def test_a_long_list_is_read_in_short_steps_and_decides_like_a_short_one():
    letters = "abcdefgh"
    names = [f"n{number}.{letters[number % 8]}.example" for number in range(45_000)]
    wildcards = [f"*.w{number}.{'x.' * (number % 3)}example" for number in range(25_000)]
    crowd = [Rule("crowd.example", paths=(f"/{number}",)) for number in range(5_000)]
    networks = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(5_000)]
    rules = written([*(Rule(host) for host in [*names, *wildcards, *networks]), *crowd], ["n7.h.example"])
    random.Random(1).shuffle(rules.allow)
    loader = Policy.loader(rules.blob())
    steps, policy = 0, None
    while policy is None:
        policy, steps = loader.step(), steps + 1
    assert steps > (len(names) + len(wildcards)) / 2048
    lines = dict(rules.allow)
    for name in random.Random(2).sample(names, 500):
        (grant,) = policy.decide(name, 443).grants
        assert (grant.host, grant.origin) == (name, lines[Rule(name)])
        assert not policy.decide(f"{name}x", 443).allowed
    for host in random.Random(3).sample(wildcards, 500):
        (grant,) = policy.decide(f"q.r.{host[2:]}", 443).grants
        assert (grant.host, grant.origin) == (host, lines[Rule(host)])
        assert not policy.decide(host[2:], 443).allowed
    assert {grant.paths for grant in policy.decide("crowd.example", 443).grants} == {rule.paths for rule in crowd}
    assert policy.decide_address(b"\x0a\x13\x87\x01", 443).allowed
    assert not policy.decide_address(b"\x0a\x13\x88\x01", 443).allowed
    assert policy.decide("n7.h.example", 443).origin == f"{FILE}:21"


def test_what_is_kept_is_bounded():
    policy = written(["*"]).policy()
    first = policy.decide("a.b", 443)
    assert policy.decide("a.b", 443) is first
    for number in range(1500):
        assert policy.decide(f"n{number}.b", 443).allowed
    assert len(policy._kept) <= 1024
    assert policy.decide("a.b", 443).grants == first.grants


# ---- Inspection


@pytest.mark.parametrize(
    ("rules", "inspect"),
    [
        ([Rule("a.b", methods=("GET",))], True),
        ([Rule("a.b", methods=("GET",)), Rule("*.b")], False),
        ([Rule("a.b", secret="S"), Rule("*.b")], True),
        ([Rule("a.b", max_body=0)], True),
        ([Rule("a.b", max_bytes=1, max_requests=1, ech=True, addresses=("::/0",))], False),
        ([Rule("a.b", methods=("GET",)), Rule("*.b", (80,))], True),
    ],
)
def test_when_a_connection_is_looked_into(rules, inspect):
    verdict = written(rules).policy().decide("a.b", 443)
    assert verdict.inspect is inspect
    unread = {rule.host for rule in rules if not rule.inspected and 443 in rule.ports}
    assert {grant.host for grant in verdict.spliced} == unread


def test_an_inspected_rule_lends_nothing_to_a_connection_that_nobody_looks_into():
    plain = Rule("a.example", (443,), max_requests=1)
    inspected = Rule("a.example", (443,), methods=("GET",), addresses=("10.0.0.0/8",))
    policy = Policy.load(
        compile_policy(
            allow=[(plain, "t:1"), (inspected, "t:2")],
            deny=(),
            connect=(),
            serve=(),
            ask=False,
            ask_origin="",
            default_origin="t",
        )
    )
    verdict = policy.decide("a.example", 443)
    assert not verdict.inspect
    assert len(verdict.grants) == 2
    assert [grant.origin for grant in verdict.applied] == ["t:1"]
