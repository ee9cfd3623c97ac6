"""HTTP and TLS through the gateway, end to end: what a program says must be about whom it connected to.

Over IPv4 and IPv6; each test first shows what the same bytes do outside, or with the rule that is missing.
"""

from __future__ import annotations

import pytest

from tests.internet import Internet
from tests.sandboxed import Ended, Sandboxed, Step
from tests.servers import names, tcp_server

FAMILIES = (4, 6)
DENIED = "tlsv1 alert access denied"
ANSWERED = "\r\n\r\n"


def each_family(**step: object) -> list[Step]:
    return [{"family": family, **step} for family in FAMILIES]


def tls(host: str, **more: object) -> list[Step]:
    return each_family(do="tls", host=host, **more)


def request(target: str = "/", host: str = "www.example.test", method: str = "GET", more: str = "") -> str:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"


def plain(host: str, said: str | list[str], port: int = 80, **more: object) -> list[Step]:
    send = [said] if isinstance(said, str) else said
    return each_family(do="talk", host=host, port=port, send=send, until=ANSWERED, **more)


def ends(found: Ended | list[Step]) -> list[str]:
    answers = found.answers if isinstance(found, Ended) else found
    return [answer["end"] for answer in answers]


def statuses(found: Ended | list[Step]) -> list[str]:
    """Of each answer its status, or how the connection ended without one."""
    answers = found.answers if isinstance(found, Ended) else found
    return [answer["got"][9:12] if answer.get("got", "").startswith("HTTP/1.") else answer["end"] for answer in answers]


# HTTP


def test_a_host_that_was_not_connected_to(sandboxed: Sandboxed, web: Internet) -> None:
    """Both are listed or only one; either way the request would reach a server under a name that nobody checked."""
    steps = [
        *plain("www.example.test", request("/fronted", "evil.example.test")),
        *plain("www.example.test", request("/fronted", "api.example.test")),
        *plain("www.example.test", request("http://evil.example.test/fronted")),
        *plain("www.example.test", request("http://www.example.test/fronted", "evil.example.test")),
        *plain("www.example.test", "GET /fronted HTTP/1.1\r\n\r\n"),
        *plain("www.example.test", request("/fronted", more="Host: evil.example.test\r\n")),
    ]
    assert statuses(sandboxed.outside(*steps))[:4] == ["200"] * 4
    before = len(web.pages())
    allow = ["www.example.test:80", "api.example.test:80"]
    visit = sandboxed.visit(*steps, *plain("www.example.test", request()), allow=allow)
    *fronted, first, second = statuses(visit)
    assert fronted[:4] == ["403"] * 4
    assert set(fronted[4:8]) <= {"400", "403"}
    assert fronted[8:] == ["400"] * 4
    assert [first, second] == ["200"] * 2
    assert len(web.pages()) - before == 2
    assert any("evil.example.test" in reason for reason in visit.reasons())


SMUGGLED = {
    "both lengths": "POST / HTTP/1.1\r\nHost: www.example.test\r\nContent-Length: 4\r\n"
    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": "POST / HTTP/1.1\r\nHost: www.example.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "a folded line": "GET / HTTP/1.1\r\nHost: www.example.test\r\nX: a\r\n b\r\n\r\n",
    "a bare carriage return": "GET / HTTP/1.1\r\nHost: www.example.test\r\nX: a\rY: b\r\n\r\n",
    "a space before the colon": "GET / HTTP/1.1\r\nHost : www.example.test\r\n\r\n",
    "an unknown coding": "POST / HTTP/1.1\r\nHost: www.example.test\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "a signed length": "POST / HTTP/1.1\r\nHost: www.example.test\r\nContent-Length: +4\r\n\r\nabcd",
    "a NUL in a value": "GET / HTTP/1.1\r\nHost: www.example.test\r\nX: a\0b\r\n\r\n",
    "no such version": "GET / HTTP/3.7\r\nHost: www.example.test\r\n\r\n",
}
RULES = {
    "passed on": 'allow = ["www.example.test:80"]',
    "inspected": 'allow = [{ host = "www.example.test", ports = [80], methods = ["GET", "POST"] }]',
}


@pytest.mark.parametrize("rules", RULES)
def test_requests_that_two_readers_read_differently(sandboxed: Sandboxed, web: Internet, rules: str) -> None:
    steps = [step for said in SMUGGLED.values() for step in plain("www.example.test", said)]
    before = len(web.pages())
    visit = sandboxed.visit(*steps, *plain("www.example.test", request()), network=RULES[rules], workers=8)
    found = dict(zip([(what, family) for what in SMUGGLED for family in FAMILIES], statuses(visit), strict=False))
    assert {what: status for what, status in found.items() if status not in {"400", "501", "505"}} == {}
    assert statuses(visit)[-2:] == ["200"] * 2
    assert len(web.pages()) - before == 2


def test_paths_and_methods_of_rules(sandboxed: Sandboxed, web: Internet) -> None:
    """A server decodes and normalises what it is asked; so must whoever judges it, or refuse what has two meanings."""
    listed = [("GET", "/v1/items"), ("GET", "/v1/"), ("GET", "/v1/a?b=/../c")]
    unlisted = [
        ("GET", "/v2/items"),
        ("POST", "/v1/items"),
        ("GET", "/v1/..%2fadmin"),
        ("GET", "/v1/%2e%2e/admin"),
        ("GET", "/v1/../admin"),
        ("GET", "/v1/..\\admin"),
        ("GET", "/v1/..%5cadmin"),
        ("GET", "/v1/%252e%252e%252fadmin"),
        ("GET", "//v1/items"),
        ("GET", "/V1/items"),
        ("OPTIONS", "*"),
    ]
    table = '{ host = "www.example.test", ports = [80, 443], methods = ["GET"], paths = ["/v1/*"] }'
    steps = []
    for method, target in (*listed, *unlisted):
        said = request(target, method=method)
        steps += [*plain("www.example.test", said), *tls("www.example.test", send=said, until=ANSWERED)]
    outside = sandboxed.outside(*steps, workers=8)
    assert statuses(outside)[:12] == ["200"] * 12
    assert outside[4 * 5]["got"].partition(" GET ")[2].startswith("/v1/..%2fadmin"), "the server got what was meant"
    before = len(web.pages())
    visit = sandboxed.visit(*steps, network=f"allow = [{table}]", workers=8)
    assert statuses(visit)[:12] == ["200"] * 12, visit.errors
    refused = dict(zip([step["send"] if isinstance(step["send"], str) else step["send"][0] for step in steps[12:]],
                       statuses(visit)[12:], strict=True))  # fmt: skip
    assert {said: status for said, status in refused.items() if status not in {"403", "400"}} == {}
    assert len(web.pages()) - before == 12
    said = {record["path"] for record in visit.records if record["event"] == "request" and record["verdict"] == "deny"}
    assert "/v2/items" in said


def test_a_redirect_is_judged_on_its_own(sandboxed: Sandboxed, web: Internet) -> None:
    curl = ["curl", "-sSL", "--max-time", "20", "-w", "%{http_code}"]
    to_listed = "https://api.example.test/redirect?to=https://www.example.test/there"
    to_other = "https://api.example.test/redirect?to=https://other.example.test/there"
    outside = sandboxed.world.run([*curl, to_other], check=True)
    assert outside.stdout == "other.example.test says GET /there\n200"
    allow = ["api.example.test", "www.example.test"]
    assert sandboxed.run(*curl, to_listed, allow=allow).output == "www.example.test says GET /there\n200"
    before = len(web.pages("other.example.test"))
    ended = sandboxed.run(*curl, to_other, allow=allow)
    assert (ended.status, ended.output) == (6, "302")
    assert "other.example.test" in ended.errors
    assert len(web.pages("other.example.test")) == before


def test_plain_http_has_the_rules_of_tls(sandboxed: Sandboxed, web: Internet) -> None:
    table = '{ host = "api.example.test", ports = [80, 443], methods = ["GET"], max_body = 10 }'
    get, post = request("/echo", "api.example.test"), request(
        "/echo", "api.example.test", "POST", "Content-Length: 1\r\n") + "x"  # fmt: skip
    long = request("/echo", "api.example.test", more="Content-Length: 11\r\n") + "x" * 11
    steps = []
    for said in (get, post, long):
        steps += [*plain("api.example.test", said), *tls("api.example.test", send=said, until=ANSWERED)]
    assert statuses(sandboxed.outside(*steps)) == ["200"] * 12
    found = statuses(sandboxed.visit(*steps, network=f"allow = [{table}]"))
    assert found == ["200"] * 4 + ["403"] * 4 + found[8:]
    assert set(found[8:]) <= {"403", "413"}


def test_other_protocols_on_the_ports_of_http(sandboxed: Sandboxed, web: Internet) -> None:
    """Plain HTTP and ssh on 443, ssh and a tunnel on 80: a port is no permission to speak anything on it."""
    steps = [
        *plain("www.example.test", request(), port=443),
        *each_family(do="talk", host="www.example.test", port=443, send=["SSH-2.0-x\r\n"]),
        *each_family(do="talk", host="www.example.test", port=80, send=["SSH-2.0-x\r\n"]),
        *plain("www.example.test", "CONNECT www.example.test:22 HTTP/1.1\r\nHost: www.example.test:22\r\n\r\n"),
        *plain("www.example.test", "CONNECT evil.example.test:443 HTTP/1.1\r\nHost: evil.example.test:443\r\n\r\n"),
        *plain("www.example.test", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        *plain("www.example.test", request(more="Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: upgrade\r\n")),
    ]
    before = len(web.pages())
    visit = sandboxed.visit(*steps, allow=["www.example.test:80,443"], workers=14)
    found = statuses(visit)
    assert found[:2] == ["400"] * 2
    assert set(found[2:6]) == {"reset"}
    assert set(found[6:10]) <= {"400", "403", "405"}
    assert set(found[10:]) <= {"400", "403", "405", "505", "reset"}
    assert len(web.pages()) == before
    assert len(visit.denied) == len(steps)


def test_ports_are_part_of_a_rule(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [
        *tls("www.example.test", port=8443),
        *plain("www.example.test", request(), port=8080),
        *tls("www.example.test"),
    ]
    assert "reset" not in ends(sandboxed.outside(*steps))
    visit = sandboxed.visit(*steps, allow=["www.example.test"])
    assert statuses(visit)[:4] == [DENIED] * 2 + ["403"] * 2
    assert ends(visit)[4:] == ["agreed"] * 2
    assert {record["port"] for record in visit.denied} == {8443, 8080}
    visit = sandboxed.visit(*steps, allow=["www.example.test:8080,8443"])
    assert ends(visit)[:2] == ["agreed"] * 2
    assert statuses(visit)[2:] == ["200"] * 2 + [DENIED] * 2


def test_what_is_tls_or_http_on_other_ports_is_read_as_strictly(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [
        *tls("www.example.test", port=8443, sni="evil.example.test"),
        *plain("www.example.test", request(host="evil.example.test:8080"), port=8080),
    ]
    assert set(ends(sandboxed.outside(*steps))) <= {"agreed", "eof", ""}
    visit = sandboxed.visit(*steps, allow=["www.example.test:8080,8443"])
    assert statuses(visit) == [DENIED] * 2 + ["403"] * 2


def test_servers_that_speak_first_or_not_at_all(sandboxed: Sandboxed, tcp: Internet) -> None:
    """Ports of no protocol: everything passes both ways, half a close included, and a reset is one."""
    ports = ",".join(str(port) for port in (7, 2525, 4441, 4443, 4444))
    steps = [
        *each_family(
            do="talk", host="tcp.example.test", port=tcp_server.ECHO, send=["ab", "cd"], shut=True, pause=0.05
        ),
        *each_family(do="talk", host="tcp.example.test", port=tcp_server.GREETING, send=["x"], shut=True),
        *each_family(
            do="talk", host="tcp.example.test", port=tcp_server.COUNT, send=["\0z" * 500], repeat=5000, shut=True
        ),
        *each_family(do="talk", host="tcp.example.test", port=tcp_server.RESET, send=["x\n"]),
        *each_family(do="talk", host="tcp.example.test", port=tcp_server.CLOSE),
    ]
    outside = [(answer["end"], answer.get("got")) for answer in sandboxed.outside(*steps)]
    visit = sandboxed.visit(*steps, allow=[f"tcp.example.test:{ports}"])
    inside = [(answer["end"], answer.get("got")) for answer in visit.answers]
    assert inside[:8] == outside[:8]
    assert [got for _, got in inside[4:6]] == ["5000000\n"] * 2
    assert {end for end, _ in inside[8:]} <= {"eof", "reset"}


# TLS


def test_no_server_name_means_the_name_that_was_connected_to(sandboxed: Sandboxed, web: Internet) -> None:
    steps = [
        *tls("www.example.test", sni="", send=request("/nameless"), until=ANSWERED),
        *tls("other.example.test", sni=""),
    ]
    assert ends(sandboxed.outside(*steps))[2:] == ["agreed"] * 2
    visit = sandboxed.visit(*steps, allow=["www.example.test"])
    assert statuses(visit) == ["200"] * 2 + ["no such name"] * 2
    assert [record["name"] for record in visit.records if record["verdict"] == "allow"] == ["www.example.test"] * 2


def test_a_server_name_that_was_not_connected_to(sandboxed: Sandboxed, web: Internet) -> None:
    """Domain fronting: behind one address there are other servers, and the hello says which."""
    steps = [*tls("www.example.test", sni="evil.example.test", send=request("/fronted", "evil.example.test"))]
    assert all("evil.example.test says GET /fronted" in answer["got"] for answer in sandboxed.outside(*steps))
    before = len(web.pages())
    for rules in (["www.example.test"], ["www.example.test", "evil.example.test"]):
        visit = sandboxed.visit(*steps, allow=rules)
        assert ends(visit) == [DENIED] * 2
        assert all("evil.example.test" in reason for reason in visit.reasons())
    assert len(web.pages()) == before


@pytest.mark.parametrize("shape", [{"segment": 1}, {"segment": 100}, {"record": 5}, {"record": 64, "segment": 7}])
def test_a_hello_in_pieces_gets_the_same_verdict(sandboxed: Sandboxed, web: Internet, shape: dict[str, int]) -> None:
    listed, evil = tls("www.example.test", **shape), tls("www.example.test", sni="evil.example.test", **shape)
    assert ends(sandboxed.outside(*listed, *evil, workers=4)) == ["agreed"] * 4
    visit = sandboxed.visit(*listed, *evil, allow=["www.example.test"], workers=4)
    assert ends(visit) == ["agreed"] * 2 + [DENIED] * 2


def test_a_hello_without_end(sandboxed: Sandboxed, web: Internet) -> None:
    """16 MB are claimed; 16 KiB are read."""
    visit = sandboxed.visit(
        *each_family(do="flood", host="www.example.test", claimed=0xFFFFFF), allow=["www.example.test"]
    )
    for answer in visit.answers:
        assert answer["end"] in {"eof", "reset"}
        assert answer["sent"] < 8 << 20, "what the sockets' buffers take, and no more"
    assert all("hello" in reason for reason in visit.reasons())
    assert len(visit.denied) == 2


def test_an_encrypted_hello(sandboxed: Sandboxed, web: Internet) -> None:
    """Its server name is none that can be held against anything, so a rule has to say that it may be."""
    steps = tls("www.example.test", ech=True)
    control = sandboxed.outside(*steps)
    assert set(ends(control)).isdisjoint({DENIED, "reset"}), "the server answers: it ignores what it does not know"
    assert ends(sandboxed.visit(*steps, allow=["www.example.test"])) == [DENIED] * 2
    visit = sandboxed.at(1).visit(*steps, network='allow = [{ host = "www.example.test", ech = true }]')
    assert ends(visit) == ends(control)
    # A program may end before its connection does.
    assert [record["action"] in ("spliced", "ended") for record in visit.records] == [True] * 2


@pytest.mark.parametrize("name", names.INVALID)
def test_an_invalid_certificate_of_an_inspected_server(sandboxed: Sandboxed, web: Internet, name: str) -> None:
    """The program cannot see it, so the gateway must: the request is not delivered."""
    curl = "curl -sS --max-time 20 -w ' %{http_code}'"
    outside = sandboxed.world.run(["sh", "-c", f"{curl} --insecure https://{name}/secret"])
    assert outside.stdout == f"{name} says GET /secret\n 200"
    before = len(web.pages(name))
    both = f"{curl} -4 https://{name}/secret; echo; {curl} -6 https://{name}/secret"
    ended = sandboxed.run("sh", "-c", both, network=_reading(name))
    assert ended.output.count("\n 502") == 2, ended.errors
    assert ended.output.lower().count("certificate verify failed") == 2
    assert len(web.pages(name)) == before
    # Passed on unopened, the program decides; with curl's own verification it does so.
    assert sandboxed.run("sh", "-c", f"{curl} https://{name}/secret", allow=[name]).status == 60


def _reading(name: str) -> str:
    return f'allow = [{{ host = "{name}", methods = ["GET"] }}]'


def test_inspected_servers_that_are_not_there(sandboxed: Sandboxed, web: Internet) -> None:
    for name in ("absent.example.test", "unreachable.example.test"):
        ended = sandboxed.run("curl", "-sS", "-w", " %{http_code}", f"https://{name}/", network=_reading(name))
        assert ended.output.endswith(" 502") or ended.status in {6, 35}, (ended.output, ended.errors)
        assert {record["verdict"] for record in ended.records} <= {"allow"}
