"""Names and addresses of the network, end to end: which of them lead out of a sandbox, over IPv4 and IPv6.

Each test first shows that what is refused inside works outside, or with the rule that is missing.
"""

from __future__ import annotations

import pytest

from tests.internet import Internet
from tests.sandboxed import Ended, Sandboxed, Step
from tests.servers import names

FAMILIES = (4, 6)
DENIED = "tlsv1 alert access denied"
NO_NAME = "no such name"


def each_family(**step: object) -> list[Step]:
    return [{"family": family, **step} for family in FAMILIES]


def tls(host: str, **more: object) -> list[Step]:
    return each_family(do="tls", host=host, **more)


def ends(found: Ended | list[Step]) -> list[str]:
    answers = found.answers if isinstance(found, Ended) else found
    return [answer["end"] for answer in answers]


# Names


def test_listed_names_and_no_others(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [*tls("www.example.test", verify=True), *tls("other.example.test", verify=True)]
    assert ends(sandboxed.outside(*steps)) == ["agreed"] * 4
    visit = sandboxed.visit(*steps, allow=["www.example.test"])
    assert ends(visit) == ["agreed"] * 2 + [NO_NAME] * 2
    assert {record["name"] for record in visit.denied} == {"other.example.test"}
    assert visit.reasons() == ["other.example.test is not in network.allow of the command line"]
    assert {denial["object"] for denial in visit.report["denials"] if denial["layer"] == "egress"} == {
        "other.example.test"
    }
    # A program may end before its connection does.
    assert [record["action"] in ("spliced", "ended") for record in visit.of("www.example.test")] == [True] * 2


def test_an_empty_list_is_no_network(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [
        *tls("www.example.test"),
        {"do": "talk", "host": "198.51.100.10", "port": 80},
        {"do": "talk", "host": "2001:db8:100::10", "port": 80},
        {"do": "datagram", "host": names.DNS_IPV4, "port": 53},
    ]
    controls = sandboxed.outside(*[{**step, "send": "GET / HTTP/1.0\r\n\r\n", "seconds": 3} for step in steps[:-1]])
    assert ends(controls) == ["eof"] * 4
    visit = sandboxed.at(1).visit(*steps, network="allow = []")
    assert set(ends(visit)) <= {"ENETUNREACH", "no name now", NO_NAME}
    assert visit.records == []
    # Tier 2 has no loopback either, and Landlock keeps its ports.
    visit = sandboxed.visit(*steps[2:], network="allow = []")
    assert set(ends(visit)) <= {"ENETUNREACH", "EACCES"}


def test_wildcards_cover_what_is_below_and_nothing_beside(sandboxed: Sandboxed, web: Internet) -> None:
    below = ["a.wild.test", "a.b.c.wild.test", "A.Wild.Test"]
    beside = ["wild.test", "notwild.test", "a.wild.test.evil.test"]
    steps = [step for name in (*below, *beside) for step in tls(name)]
    assert ends(sandboxed.outside(*steps)) == ["agreed"] * 12
    visit = sandboxed.visit(*steps, allow=["*.wild.test"])
    assert ends(visit) == ["agreed"] * 6 + [NO_NAME] * 6
    # The same bytes in a hello, on a connection to a name below.
    hellos = [step for name in beside for step in tls("a.wild.test", sni=name)]
    assert ends(sandboxed.outside(*hellos)) == ["agreed"] * 6
    assert ends(sandboxed.visit(*hellos, allow=["*.wild.test"])) == [DENIED] * 6


def test_deny_wins_over_allow(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [*tls("a.wild.test"), *tls("b.wild.test"), *tls("c.b.wild.test")]
    allowed = sandboxed.visit(*steps, allow=["*.wild.test"])
    assert ends(allowed) == ["agreed"] * 6
    visit = sandboxed.visit(*steps, allow=["*.wild.test"], deny=["b.wild.test", "*.b.wild.test"])
    assert ends(visit) == ["agreed"] * 2 + [NO_NAME] * 4


def test_a_name_in_brackets(sandboxed: Sandboxed, web: Internet) -> None:
    """CVE-2022-29188: a deny list that compares "[name]" with "name", in front of a client that drops the brackets."""
    heads = [
        {"do": "talk", "host": "api.example.test", "port": 80, "send": [f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"]}
        for host in ("api.example.test", "[evil.example.test]", "[api.example.test]")
    ]
    question = {"do": "dns", "labels": ["[evil", "example", "test]"]}
    rules = {"allow": ["*.example.test:80,443"], "deny": ["evil.example.test"]}
    before = len(web.pages("evil.example.test"))
    first, evil, own, answer = sandboxed.visit(
        *[{**head, "until": "\r\n\r\n"} for head in heads], question, **rules
    ).answers
    assert first["got"].startswith("HTTP/1.1 200 ")
    assert [evil["got"][:12], own["got"][:12]] == ["HTTP/1.1 400"] * 2
    assert (answer["rcode"], answer["answers"]) != (0, 1)
    refused = sandboxed.world.osmoda("run", "--allow", "[evil.example.test]", "--", "true")
    assert refused.returncode == 125
    assert "[evil.example.test]" in refused.stderr
    assert len(web.pages("evil.example.test")) == before


@pytest.mark.parametrize("name", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1", "127.0.0.1", "3325256714"])
def test_an_address_in_disguise(sandboxed: Sandboxed, web: Internet, name: str) -> None:
    """inet_aton(3) takes them all. None is a name, none is answered, and no tier 2 profile lists one."""
    plain = {"do": "talk", "host": "www.example.test", "port": 80, "until": "\r\n\r\n"}
    steps = [
        {**plain, "send": [f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"]},
        {"do": "dns", "name": name},
        # Python sends no address as a name; what stands for it here has its length.
        *tls("www.example.test", sni="x" * len(name), replace=["x" * len(name), name]),
    ]
    assert sandboxed.outside(steps[0])[0]["got"].startswith("HTTP/1.1 200 ")
    visit = sandboxed.visit(*steps, allow=["*.example.test:80,443"])
    head, question, *hellos = visit.answers
    assert head["got"][:12] in {"HTTP/1.1 400", "HTTP/1.1 403"}
    assert question["answers"] == 0
    assert all("alert" in hello["end"] or hello["end"] == "reset" for hello in hellos), hellos
    refused = sandboxed.world.osmoda("run", "--allow", name, "--", "true")
    assert refused.returncode == 125, "tier 2 lists no addresses, however they are written"


def test_international_names(sandboxed: Sandboxed, web: Internet) -> None:
    """A rule in Unicode and a client in punycode mean the same name (UTS 46)."""
    wanted = "xn--bcher-kva.example.test"
    steps = [*tls(wanted, verify=True), *tls("www.example.test", verify=True)]
    for rules in (["bücher.example.test"], ["BÜCHER.example.test."], [wanted]):
        assert ends(sandboxed.visit(*steps, allow=rules)) == ["agreed"] * 2 + [NO_NAME] * 2
    visit = sandboxed.visit(*steps, allow=["\uff57\uff57\uff57\u3002example.test"])  # full width
    assert ends(visit) == [NO_NAME] * 2 + ["agreed"] * 2


@pytest.mark.parametrize(
    ("what", "host", "status"),
    [
        ("fine", "www.example.test:80", "200"),
        ("too long", "a" * 60 + ".www.example.test" * 13, "400"),
        ("a port with a zero in front", "www.example.test:0080", "400"),
        ("a port with a zero in front", "www.example.test:0443", "400"),
        ("no port", "www.example.test:70000", "400"),
        ("another port", "www.example.test:8080", "403"),
        ("a bare line feed", "www.example.test\nX: y", "400"),
        ("a bare carriage return", "www.example.test\rX: y", "400"),
        ("a NUL", "www.example.test\0.evil.example.test", "400"),
        ("a user", "www.example.test@evil.example.test", "400"),
        ("two", "www.example.test, evil.example.test", "400"),
        ("a path", "www.example.test/", "400"),
        ("an underscore for a dot", "www_example.test", "403"),
    ],
)
def test_malformed_hosts_of_a_request(sandboxed: Sandboxed, web: Internet, what: str, host: str, status: str) -> None:
    request = f"GET /{what.replace(' ', '-')} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    steps = each_family(do="talk", host="www.example.test", port=80, send=[request], until="\r\n\r\n")
    before = len(web.pages())
    visit = sandboxed.visit(*steps, allow=["*.example.test:80"])
    assert [answer["got"][9:12] for answer in visit.answers] == [status] * 2
    assert len(web.pages()) - before == (2 if status == "200" else 0)
    assert len(visit.denied) == (0 if status == "200" else 2)


def test_malformed_names_of_questions_and_hellos(sandboxed: Sandboxed, web: Internet) -> None:
    strange = [
        ["www", "example", "test\0"],
        ["www\0evil", "example", "test"],
        ["www.example", "test"],  # a dot within a label
        ["www", "example\r\n", "test"],
        [*["a" * 63] * 3, "b" * 50, "example", "test"],
        ["www", " example", "test"],
        ["-www", "example", "test"],
    ]
    questions = [{"do": "dns", "labels": labels, "tcp": tcp, "family": family}
                 for labels in strange for tcp in (False, True) for family in FAMILIES]  # fmt: skip
    hidden = "w\0w.example.test"
    hellos = tls("www.example.test", replace=["www.example.test", hidden])
    visit = sandboxed.visit(*questions, *hellos, *tls("www.example.test"), allow=["*.example.test"])
    answers, checked, control = visit.answers[: len(questions)], visit.answers[-4:-2], visit.answers[-2:]
    assert all(answer["answers"] == 0 and answer["rcode"] != 0 for answer in answers), answers
    assert all("alert" in answer["end"] or answer["end"] == "reset" for answer in checked), checked
    assert ends(list(control)) == ["agreed"] * 2


@pytest.mark.parametrize(
    "rule", ["www.example.test:0443", "www.example.test:70000", "a" * 64 + ".test", "a..b", "ww w.test"]
)
def test_malformed_rules(sandboxed: Sandboxed, rule: str) -> None:
    refused = sandboxed.world.osmoda("run", "--allow", rule, "--", "true")
    assert refused.returncode == 125
    assert "Traceback" not in refused.stderr
    assert refused.stderr.count("\n") == 1


# Addresses

HERE = {"loopback.example.test", "zero.example.test", "lan.example.test", "mapped.example.test"}
MISLEADING = [name for name in names.MISLEADING if "mixed" not in name]


def test_names_that_lead_to_addresses_that_are_not_public(sandboxed: Sandboxed, web: Internet) -> None:
    """A listed name is somebody else's, and may lead to this host, its network, or its cloud's metadata service."""
    steps = [step for name in MISLEADING for step in tls(name)]
    reachable = [step for step in steps if step["host"] not in HERE and step["family"] == _family(step["host"])]
    assert ends(sandboxed.outside(*reachable)) == ["agreed"] * len(reachable)
    before = len(web.pages())
    visit = sandboxed.visit(*steps, allow=MISLEADING)
    assert ends(visit) == [DENIED] * len(steps)
    assert len(web.pages()) == before
    said = {record["name"]: record["reason"] for record in visit.denied}
    assert set(said) == set(MISLEADING)
    for name, words in {
        "private.example.test": "a private address",
        "metadata.example.test": "metadata service",
        "shared.example.test": "carrier's NAT",
        "nat64.example.test": "10.9.9.9",
        "mapped.example.test": "metadata service",
        "loopback.example.test": "a loopback address",
        "alias.example.test": "a private address",
    }.items():
        assert words in said[name], said[name]


def _family(name: str) -> int:
    record = names.MISLEADING[name]
    return 4 if record.get("A") or "CNAME" in record else 6


def test_a_rule_may_name_the_network_that_a_name_leads_to(sandboxed: Sandboxed, web: Internet) -> None:
    """And just that one; translated addresses are judged by what is in them."""
    table = '{ host = "*.example.test", addresses = ["10.9.0.0/16"] }'
    wanted = ["private.example.test", "alias.example.test"]
    others = ["private172.example.test", "metadata.example.test", "shared.example.test"]
    steps = [step for name in (*wanted, *others) for step in tls(name)]
    visit = sandboxed.at(1).visit(*steps, network=f"allow = [{table}]")
    assert ends(visit) == ["agreed"] * 4 + [DENIED] * 6
    assert {record["address"] for record in visit.records if record["verdict"] == "allow"} == {"10.9.9.9"}
    refused = sandboxed.world.run(sandboxed.argv("true", network=f"allow = [{table}]"))
    assert refused.returncode == 125, "beyond the ceiling of tier 2"


@pytest.mark.parametrize("name", ["mixed.example.test", "mixedalias.example.test"])
def test_of_mixed_answers_the_bad_ones_are_dropped(sandboxed: Sandboxed, web: Internet, name: str) -> None:
    request = f"GET /mixed HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    steps = [step for _ in range(3) for step in tls(name, send=request)]
    before = len(web.pages())
    visit = sandboxed.visit(*steps, allow=[name])
    assert all("says GET /mixed" in answer["got"] for answer in visit.answers), visit.answers
    reached = {page["address"] for page in web.pages()[before:]}
    assert reached <= {"198.51.100.10", "2001:db8:100::10"}
    assert {record["address"] for record in visit.records} == reached


def test_an_answer_that_flips_after_the_check(sandboxed: Sandboxed, web: Internet) -> None:
    """DNS rebinding: the address that was checked is the one that is dialled, and a later one is checked anew."""
    good = {"A": ["198.51.100.10"], "AAAA": ["2001:db8:100::10"]}
    bad = {"A": ["10.9.9.9"], "AAAA": ["fd00:9::9"]}
    steps = [step for _ in range(5) for step in tls("rebind.example.test", send="GET / HTTP/1.0\r\n\r\n")]
    for first, then in ((good, bad), (bad, good)):
        before = len(web.pages())
        with web.dns.answering(rebind_example={"answers": [first, then]}):
            assert len(sandboxed.outside({"do": "resolve", "name": "rebind.example.test"}, *steps)) == 11
        reached = {page["address"] for page in web.pages()[before:]}
        assert reached & {"10.9.9.9", "fd00:9::9"} or first is bad, "outside it works"
        before = len(web.pages())
        with web.dns.answering(rebind_example={"answers": [first, then]}):
            visit = sandboxed.visit(*steps, allow=["rebind.example.test"])
        reached = {page["address"] for page in web.pages()[before:]}
        assert reached <= {"198.51.100.10", "2001:db8:100::10"}
        assert ends(visit)[0] == ("eof" if first is good else DENIED)
        assert set(ends(visit)) <= {"eof", DENIED}


def test_names_that_lead_to_this_host(sandboxed: Sandboxed, web: Internet) -> None:
    """By its addresses on the network, where services listen that think themselves behind a firewall."""
    records = {
        "mine_example": {"A": [names.HOST_IPV4], "AAAA": [names.HOST_IPV6]},
        "mylan_example": {"A": [names.HOST_LAN]},
    }
    with web.dns.answering(**records):
        wanted = ["mine.example.test", "mylan.example.test", "lan.example.test", "loopback.example.test"]
        visit = sandboxed.visit(*[step for name in wanted for step in tls(name)], allow=wanted)
    assert ends(visit) == [DENIED] * 8
    assert any("this host" in reason for reason in visit.reasons()), visit.reasons()


def test_addresses_that_stand_for_no_name(sandboxed: Sandboxed, web: Internet) -> None:
    """Routes lead nowhere; the ranges of names hold nothing but the names that were asked for."""
    beyond = ["198.51.100.10", "2001:db8:100::10", names.HOST_IPV4, names.HOST_IPV6, "10.9.9.9", "169.254.169.254"]
    unbound = ["198.18.77.77", "198.19.255.255", "2001:2::7777", "198.18.0.0", "2001:2::"]
    steps: list[Step] = [{"do": "connect", "host": host, "port": 443, "seconds": 3} for host in beyond]
    assert set(ends(sandboxed.outside(*steps[:2], *steps[4:]))) == {"connected"}
    inside = [{"do": "tls", "host": host, "sni": "www.example.test"} for host in unbound]
    visit = sandboxed.at(1).visit(*steps, *inside, allow=["www.example.test"])
    assert ends(visit)[: len(steps)] == ["ENETUNREACH"] * len(steps)
    assert set(ends(visit)[len(steps) :]) <= {DENIED, "reset", "ENETUNREACH", "ECONNREFUSED", "EACCES"}
    assert all(record["verdict"] == "deny" for record in visit.records)


def test_rules_for_networks(sandboxed: Sandboxed, web: Internet) -> None:
    """At tier 1 a rule may list addresses: just those are local inside, and lead to the gateway."""
    listed = ["203.0.113.96/28:443", "[2001:db8:113::/120]:443"]
    inside = [(names.NOBODY_IPV4, 443), (names.NOBODY_IPV6, 443)]
    outside = [("203.0.113.10", 443), ("2001:db8:113:1::99", 443), (names.NOBODY_IPV4, 80), (names.NOBODY_IPV6, 8443)]
    steps: list[Step] = [{"do": "tls", "host": host, "port": port, "sni": ""} for host, port in (*inside, *outside)]
    visit = sandboxed.at(1).visit(*steps, allow=listed)
    assert ends(visit)[:2] == ["agreed"] * 2, visit.errors
    assert ends(visit)[2:4] == ["ENETUNREACH"] * 2
    assert "agreed" not in ends(visit)[4:]
    # Denied networks hold for names, too.
    denied = sandboxed.at(1).visit(*tls("www.example.test"), allow=["www.example.test"], deny=["198.51.100.0/24"])
    assert {record["address"] for record in denied.records if record["verdict"] == "allow"} == {"2001:db8:100::10"}


def test_servers_that_are_not_there(sandboxed: Sandboxed, web: Internet) -> None:
    """The program sees which: not resolvable, refused, unreachable; a resolver that does not answer is bounded."""
    wanted = ["absent.example.test", "unreachable.example.test", "www.example.test:9", "broken.example.test"]
    plain = {"do": "talk", "send": ["GET / HTTP/1.1\r\nHost: unreachable.example.test\r\n\r\n"], "port": 80}
    steps: list[Step] = [
        *tls("absent.example.test"),
        *tls("unreachable.example.test"),
        *each_family(do="talk", host="www.example.test", port=9, send=["x"]),
        {**plain, "host": "unreachable.example.test", "until": "\r\n\r\n"},
    ]
    visit = sandboxed.visit(*steps, allow=[*wanted, "unreachable.example.test:80"])
    absent, unreachable, refused, answer = ends(visit)[:2], ends(visit)[2:4], ends(visit)[4:6], visit.answers[6]
    assert set(absent) <= {"tlsv1 unrecognized name", NO_NAME}
    assert set(unreachable) <= {"tlsv1 unrecognized name", "reset"}
    assert set(refused) <= {"reset", "ECONNREFUSED"}
    assert answer["got"].startswith("HTTP/1.1 502 ")
    assert {record["verdict"] for record in visit.records} == {"allow"}, "a server's absence is no refusal"
    assert {record["action"] for record in visit.records} == {"failed"}
