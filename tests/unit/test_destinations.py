from __future__ import annotations

import functools
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.destinations import (
    ANY_PORT,
    Peer,
    Rule,
    canonical_addresses,
    canonical_host,
    check_allowed,
    check_method,
    check_secret,
    check_url_path,
    host_covers,
    host_meet,
    parse_connect,
    parse_peer,
    parse_rule,
    peer_conflicts,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("api.openai.com", Rule("api.openai.com", (443,))),
        ("*.arxiv.org:443,80,443", Rule("*.arxiv.org", (80, 443))),
        ("EXAMPLE.com.", Rule("example.com", (443,))),
        ("bücher.example", Rule("xn--bcher-kva.example", (443,))),
        ("*.Straße.example:8443", Rule("*.xn--strae-oqa.example", (8443,))),
        ("10.0.0.0/8:5432", Rule("10.0.0.0/8", (5432,))),
        ("192.0.2.7", Rule("192.0.2.7/32", (443,))),
        ("[2001:db8::]:443", Rule("2001:db8::/128", (443,))),
        ("[2001:DB8:0::/32]:22,80", Rule("2001:db8::/32", (22, 80))),
        ("2001:db8::/32", Rule("2001:db8::/32", (443,))),
        ("*", Rule("*", (443,))),
        ("localhost:1", Rule("localhost", (1,))),
    ],
)
def test_a_rule_has_one_canonical_form(text, rule):
    assert parse_rule(text, (443,)) == rule
    assert parse_rule(str(rule), (443,)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "2130706433",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "1.2.3.4.5",
        "256.1.1.1",
        "a\0b.com",
        "a b.com",
        "evil.com/x",
        "http://evil.com",
        "user@evil.com",
        "[evil.com]",
        "[::1",
        "[::1]x",
        "[10.0.0.1]",
        "::ffff:10.0.0.1",
        "[::ffff:0:0/96]:80",
        "fe80::1%eth0",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "a..b",
        "-a.com",
        "a-.com",
        "*a.com",
        "a.*.com",
        "*.*.com",
        "*.*",
        "**",
        "*.",
        "*.10.0.0.1",
        "x" * 64 + ".com",
        ".".join(["abcdefg"] * 32),
        "x.com:",
        "x.com:0",
        "x.com:0443",
        "x.com:70000",
        "x.com:+80",
        "x.com:\uff18\uff10",
        "x.com:80,",
        "x.com:*",
        "writer.agent",
        "mcp.osmoda",
        "a.b.mesh",
        "\u202eevil.com",
        "①.②",
    ],
)
def test_what_two_programs_could_read_differently_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_rule(text, (443,))


def test_only_a_tier_file_means_every_port_and_every_domain():
    assert parse_rule("*.*:*", (443,), tier_file=True) == Rule("*.*", (ANY_PORT,))
    assert parse_connect("agent:*:*", tier_file=True) == "agent:*:*"
    assert parse_peer("localhost:*=agent:*:*", tier_file=True) == Peer(("*.agent",), ANY_PORT, "agent:*", ANY_PORT)
    for text in ("agent:*:1", "mesh:*/a:1", "host:*", "localhost:*=agent:a:1"):
        with pytest.raises(ValueError, match="it is not"):
            parse_connect(text)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("agent:writer:8082", Peer(("writer.agent",), 8082, "agent:writer")),
        ("agent:Writer_2.b:1", Peer(("writer_2.b.agent",), 1, "agent:Writer_2.b")),
        ("mesh:server-2/analysis:9000", Peer(("analysis.server-2.mesh",), 9000, "mesh:server-2/analysis")),
        ("host:5432", Peer(("host.osmoda", "host"), 5432, "host")),
        ("localhost:8081=agent:research:80", Peer(("research.agent",), 80, "agent:research", 8081)),
    ],
)
def test_peers(text, peer):
    assert parse_connect(text) == text
    assert parse_peer(text) == peer
    assert str(peer) == text.partition("=")[2] or text


@pytest.mark.parametrize(
    "text",
    [
        "agent:writer",
        "agent:writer:0",
        "agent:a/b:1",
        "mesh:a:1",
        "host:",
        "host:099999",
        "unix:/x",
        "agent::1",
        "agent:a..b:1",
        "agent:a-:1",
        "agent:a.:1",
        f"agent:{'a' * 64}:1",
        f"mesh:{'a.' * 80}b/{'a.' * 80}b:1",
        "localhost:1",
        "localhost:1=host:1",
        "localhost:1=mesh:a/b:1",
        "localhost:0=agent:a:1",
        "localhost:=agent:a:1",
        "localhost:1=localhost:1=agent:a:1",
        "localhost:1=agent:a",
        "agent:a:1\n",
    ],
)
def test_peers_that_are_refused(text):
    with pytest.raises(ValueError, match="is not"):
        parse_connect(text)


@pytest.mark.parametrize(
    ("connect", "serve", "found"),
    [
        (["agent:a:1", "agent:a:2", "host:1", "mesh:s/a:1"], [1], []),
        (["agent:a:1", "localhost:1=agent:a:1", "localhost:2=agent:a:1"], [], []),
        (["localhost:1=agent:a:1", "localhost:1=agent:b:1"], [], [(1, "localhost:1 inside")]),
        (["localhost:1=agent:a:1"], [1], [(0, "which network.serve gives to the sandbox itself")]),
        (["agent:A:1", "agent:a:1"], [], [(1, "a.agent:1 inside")]),
        (["mesh:b.c/a:1", "mesh:c/a.b:1"], [], [(1, "a.b.c.mesh:1 inside")]),
    ],
)
def test_a_place_inside_means_one_peer(connect, serve, found):
    conflicts = list(peer_conflicts(connect, serve))
    assert [index for index, _ in conflicts] == [index for index, _ in found]
    for (_, reason), (_, end) in zip(conflicts, found, strict=True):
        assert reason.endswith(end)


def test_a_rule_in_words():
    rule = Rule("a.b", (80, 443), ("GET",), max_bytes=5, max_requests=6, ech=True, addresses=("10.0.0.0/8", "::/0"))
    assert str(rule) == (
        "a.b:80,443 with methods GET and at most 5 bytes in all and at most 6 requests in all and encrypted hellos and "
        "addresses in 10.0.0.0/8, ::/0"
    )


@pytest.mark.parametrize(
    ("rule", "inspected"),
    [
        (Rule("a.b", max_bytes=1, max_requests=1, ech=True, addresses=("::/0",), secret="*"), False),
        (Rule("a.b", methods=("GET",)), True),
        (Rule("a.b", paths=("/",)), True),
        (Rule("a.b", secret="S"), True),
        (Rule("a.b", max_body=0), True),
    ],
)
def test_what_has_to_be_looked_into(rule, inspected):
    assert rule.inspected is inspected


@pytest.mark.parametrize("texts", [["a.b"], ["0x7f.1"], ["127.1"], ["10.0.0.1/8"], ["fe80::1%eth0"], ["*"], [""]])
def test_what_a_name_leads_to_is_networks(texts):
    with pytest.raises(ValueError, match=r"it is|is not|of that length|has no zone"):
        canonical_addresses(texts)
    assert canonical_addresses(["2001:DB8::/32", "10.0.0.1", "10.0.0.1/32"]) == ("10.0.0.1/32", "2001:db8::/32")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.0/8", "127.0.0.53/32", "::1/128", "198.18.0.0/15", "198.19.1.0/24", "2001:2::/48", "2001:2::9/128"],
)
def test_addresses_that_only_mean_something_inside_are_not_allowed_as_a_rule(host):
    with pytest.raises(ValueError, match="a sandbox has these addresses for itself"):
        check_allowed(Rule(host))


@pytest.mark.parametrize("host", ["0.0.0.0/0", "::/0", "198.16.0.0/12", "a.b"])
def test_what_is_larger_is_allowed(host):
    assert check_allowed(Rule(host)) == Rule(host)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_method, ["GET", "M-SEARCH"], ["get", "", "GET ", "G\n"]),
        (check_url_path, ["/", "/v1/*", "/a..b"], ["", "v1", "/a/../b", "/a?b", "/a#b", "/a b", "/a\n", "/.."]),
        (check_secret, ["OPENAI_API_KEY", "_x"], ["", "9x", "a-b", "*", "A\n"]),
    ],
)
def test_fields_of_a_rule(check, good, bad):
    for text in good:
        assert check(text) == text
    for text in bad:
        with pytest.raises(ValueError, match=r"."):
            check(text)


_names = st.sampled_from(["a", "a.b", "x.a.b", "y.x.a.b", "b", "c.b", "ab", "xa.b"])
_hosts = (
    _names
    | _names.map(lambda name: f"*.{name}")
    | st.sampled_from(
        ["*", "*.*", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "11.0.0.0/8", "::/0", "2001:db8::/32"]
    )
)


@functools.cache
def means(host: str, target: str) -> bool:
    """Whether `target` (a name or an address) is one of those that `host` means, by another way."""
    try:
        address = ipaddress.ip_address(target)
    except ValueError:
        if "/" in host:
            return False
        labels = target.split(".")
        if host == "*":
            return True
        if host == "*.*":
            return len(labels) > 1
        if host.startswith("*."):
            wanted = host.split(".")[1:]
            return len(labels) > len(wanted) and labels[-len(wanted) :] == wanted
        return labels == host.split(".")
    return "/" in host and address in ipaddress.ip_network(host)


_targets = _names | st.sampled_from(["10.1.2.3", "10.1.2.4", "10.9.9.9", "11.0.0.1", "2001:db8::1", "q.y.x.a.b"])


@given(_hosts, _hosts, _targets)
def test_a_host_that_covers_means_at_least_as_much(wide, narrow, target):
    if host_covers(wide, narrow) and means(narrow, target):
        assert means(wide, target)


@given(_hosts, _hosts, _targets)
def test_the_meet_is_what_both_mean(one, other, target):
    common = host_meet(one, other)
    assert (means(one, target) and means(other, target)) == (common is not None and means(common, target))


@given(_hosts)
def test_a_canonical_host_stays_as_it_is(host):
    assert canonical_host(host, tier_file=True) == host
    assert host_covers(host, host)


@given(st.text(max_size=12) | st.text("0123456789.x:/[]*a-", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        rule = parse_rule(text, (443,))
    except ValueError:
        return
    assert parse_rule(str(rule), (443,)) == rule
    assert str(rule).isascii()
