"""From a profile to the gateway's policy: what it says, with its lines; nothing where it says nothing."""

from __future__ import annotations

import pytest

from osmoda.egress.policy import Policy
from osmoda.sandbox import egress_token, network_policy, opening
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.request import Request
from tests.compiled import compiled


def profile(text):
    return compiled(text)[0]


@pytest.mark.parametrize("text", ["tier = 0", "tier = 1", "tier = 2", '[network]\ndeny = ["a.example"]'])
def test_without_a_way_out_there_is_no_policy(text):
    assert network_policy.policy_of(profile(text)) == b""
    assert compiled(text)[1].egress == b""


@pytest.mark.parametrize(
    "text", ['allow = ["a.example"]', 'connect = ["agent:writer:8082"]', "serve = [8081]", "ask = true"]
)
def test_each_way_out_or_in_makes_one(text):
    _, plan = compiled(f"tier = 2\n[network]\n{text}")
    assert plan.egress
    assert any(type(operation).__name__ == "NamesOnly" for operation in plan.operations)
    assert not any(type(operation).__name__ == "Loopback" for operation in plan.operations)


def test_verdicts_name_the_profiles_lines():
    policy = Policy.load(
        network_policy.policy_of(
            profile("""
                tier = 1
                [network]
                allow = [
                  "a.example",
                  "*.b.example:80",
                ]
                deny = ["evil.b.example"]
            """)
        )
    )
    assert policy.decide("a.example", 443).origin == "/p/agent.toml:5"
    assert policy.decide("x.b.example", 80).origin == "/p/agent.toml:6"
    assert policy.decide("evil.b.example", 80).origin == "/p/agent.toml:8"
    refused = policy.decide("c.example", 443)
    assert not refused.allowed
    assert "/p/agent.toml" in refused.reason


def test_options_of_a_command_are_no_lines_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request(("true",), tier=1, allow=("a.example",))
    policy = Policy.load(egress_token.recompile(opening.token_of_request(request, str(tmp_path))))
    assert policy.decide("a.example", 443).origin == "the command line"
    assert "the command line" in policy.decide("b.example", 443).reason


def test_what_the_compiler_needs_to_know():
    asked = profile("""
        tier = 1
        [network]
        allow = [
          "10.0.0.0/8:5432", "192.0.2.7", "10.0.0.0/8", "10.1.0.0/16", "[2001:db8::]", "[2001:db8::/32]:22",
          { host = "a.example", secret = "KEY" }, { host = "b.example", secret = "KEY" },
          { host = "c.example", secret = "OTHER" },
        ]
        connect = ["localhost:8081=agent:research:8081", "localhost:80=agent:a:1", "host:5432"]
    """)
    assert network_policy.networks_of(asked) == ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32")
    assert network_policy.local_ports_of(asked) == (80, 8081)
    assert network_policy.secrets_of(asked) == ("KEY", "OTHER")
    assert network_policy.inspects(asked)


@pytest.mark.parametrize(
    ("rule", "inspected"),
    [
        ('"a.example"', False),
        ('{ host = "a.example", ports = [22] }', False),
        ('{ host = "a.example", methods = ["GET"] }', True),
        ('{ host = "a.example", paths = ["/v1/*"] }', True),
        ('{ host = "a.example", secret = "KEY" }', True),
        ('{ host = "a.example", max_body = "1M" }', True),
    ],
)
def test_which_rules_need_connections_to_be_opened(rule, inspected):
    asked, plan = compiled(f"tier = 2\n[network]\nallow = [{rule}]")
    assert network_policy.inspects(asked) is inspected
    assert plan.inspects is inspected
    stores = [operation for operation in plan.operations if type(operation).__name__ == "TrustStore"]
    assert len(stores) == int(inspected)
    variables = {name for name, value in plan.environment if value == "/etc/osmoda/ca-certificates.crt"}
    assert ({"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} <= variables) is inspected


# Tokens


def test_a_token_brings_the_policy_as_the_profile_says_now(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('schema = 1\ntier = 2\n[network]\nallow = ["a.example"]\n')
    request = Request(("true",), profile="agent.toml", allow=("b.example",), set=(("KEY", "hunter2"),))
    token = opening.token_of_request(request, str(tmp_path))
    assert b"hunter2" not in token
    before = Policy.load(egress_token.recompile(token))
    assert [before.decide(f"{name}.example", 443).allowed for name in "abc"] == [True, True, False]
    file.write_text('schema = 1\ntier = 2\n[network]\nallow = ["c.example"]\n')
    after = Policy.load(egress_token.recompile(token))
    assert [after.decide(f"{name}.example", 443).allowed for name in "abc"] == [False, True, True]


def test_a_token_of_a_loaded_profile(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('schema = 1\ntier = 2\n[network]\nallow = ["a.example"]\n')
    token = opening.token_of_file(Profile.load(file).file)
    assert Policy.load(egress_token.recompile(token)).decide("a.example", 443).allowed


@pytest.mark.parametrize("token", [b"", b"nonsense", opening.token_of_file("")])
def test_a_token_that_is_none_is_one_sentence(token):
    for read in (egress_token.recompile, egress_token.compiled_from):
        with pytest.raises(SandboxError, match="another version of osmoda, or from no profile file"):
            read(token)


def test_runs_that_differ_in_nothing_of_the_policy_are_compiled_from_the_same():
    def made(*words, directory="/w", **more):
        return egress_token.compiled_from(opening.token_of_request(Request(words, profile="a.toml", **more), directory))

    assert made("true") == made("false", timeout=3.0, agent="x")
    assert made("true") != made("true", allow=("b.example",))
    assert made("true") != made("true", directory="/v")
    assert egress_token.compiled_from(opening.token_of_file("/w/a.toml")) != made("true")


@pytest.mark.parametrize(
    ("asked", "source", "name"),
    [("writer", "x.toml", "writer"), ("", "/p/research.toml", "research"), ("", "support", "support"), ("", "", "")],
)
def test_an_agents_name_is_that_of_its_profile(asked, source, name):
    assert opening.agent_name(asked, source) == name
