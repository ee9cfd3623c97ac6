"""`osmoda-egress test`: the answers are those of the code that decides."""

from __future__ import annotations

import pytest

from osmoda.sandbox import egress_test
from osmoda.sandbox.errors import SandboxError
from tests.compiled import compiled

PROFILE = """
tier = 1
[network]
allow = [
  "a.example", "*.b.example:22", "10.0.0.0/8:5432",
  { host = "c.example", methods = ["GET"], paths = ["/v1/*"] },
]
deny = ["evil.b.example"]
connect = ["agent:writer:8082", "host:5432"]
"""


def ask(what, method="GET", text=PROFILE):
    return egress_test.ask(compiled(text)[0], what, method)


@pytest.mark.parametrize(
    ("what", "line", "how"),
    [
        ("https://a.example/x", 5, "spliced"),
        ("a.example", 5, "spliced"),
        ("A.Example.", 5, "spliced"),
        ("ssh://x.b.example", 5, "spliced"),
        ("10.1.2.3:5432", 5, "spliced"),
        ("https://c.example/v1/items?x=1", 6, "inspected"),
        ("c.example:443", 6, "inspected"),
        ("writer.agent:8082", 9, "spliced"),
        ("host.osmoda:5432", 9, "spliced"),
    ],
)
def test_what_is_allowed_is_so_by_its_line(what, line, how):
    answer = ask(what)
    assert answer.allowed
    assert answer.origin == f"/p/agent.toml:{line}"
    assert answer.how == how


@pytest.mark.parametrize(
    ("what", "method", "words"),
    [
        ("https://other.example", "GET", "not in network.allow"),
        ("a.example:22", "GET", "allows only port 443"),
        ("evil.b.example:22", "GET", "the deny at /p/agent.toml:8"),
        ("https://c.example/v1/x", "POST", "allows only GET"),
        ("https://c.example/v2", "GET", "no path of /p/agent.toml:6"),
        ("https://c.example/v1/..%2fv2", "GET", "do not agree"),
        ("11.0.0.1:5432", "GET", "not in network.allow"),
        ("writer.agent:8083", "GET", "allows only port 8082"),
        ("other.agent:1", "GET", "no entry of network.connect"),
    ],
)
def test_what_is_refused_is_so_for_a_reason(what, method, words):
    answer = ask(what, method)
    assert not answer.allowed
    assert words in answer.sentence()
    assert answer.layer == "egress"


def test_without_a_network_and_without_a_sandbox():
    assert ask("a.example", text="tier = 2").layer == "network"
    assert ask("a.example", text="tier = 0").allowed


@pytest.mark.parametrize(
    "what", ["https://user@a.example/", "a..b:1", "https://[evil.com]/", "a.example:70000", "foo://a.example"]
)
def test_what_is_no_place_is_one_sentence(what):
    with pytest.raises(SandboxError):
        ask(what)
