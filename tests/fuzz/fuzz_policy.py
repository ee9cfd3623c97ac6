"""The policy: any bytes load or are refused, what was compiled decides as its rules say, and no question fails."""

from __future__ import annotations

import ipaddress

from osmoda.egress.destinations import Rule, canonical_host, canonical_ports, host_covers
from osmoda.egress.policy import Policy, Verdict
from osmoda.egress.policy_source import compile_policy
from osmoda.egress.policy_tables import MAGIC
from tests.fuzz.lane import Choices, run

LABELS = ("a", "b", "example", "com", "x-y", "_z", "1", "xn--a")
PORTS = (443, 80, 1, 65535, 0)
NETWORKS = (
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "192.168.0.0/16",
    "2001:db8::/32",
    "fd00::/8",
    "::/0",
)
ADDRESSES = ("10.1.2.3", "10.1.2.4", "10.200.0.1", "192.168.255.255", "8.8.8.8", "2001:db8::1", "fd00::1", "::1")
ODD_NAMES = (
    "",
    ".",
    "a..b",
    "-",
    "a.agent",
    "host.osmoda",
    "x.y.mesh",
    "127.0.0.1",
    "\udcff",
    "A.B",
    "a" * 64,
    "a." * 126 + "a",
)
PEERS = (("writer.agent", 8082), ("host.osmoda", 5432), ("analysis.server-2.mesh", 9000), ("research.agent", 8081))
CONNECT = ("agent:writer:8082", "host:5432", "mesh:server-2/analysis:9000", "localhost:8081=agent:research:8081")


def any_bytes(choices: Choices) -> None:
    asked, blob = choices.piece(60), choices.rest()
    question(Choices(asked), load(blob))
    question(Choices(asked), load(MAGIC + blob))


def compiled(choices: Choices) -> None:
    allow, deny, blob = build(choices)
    policy = load(blob)
    assert policy is not None, "what was compiled does not load"
    for _ in range(choices.number(4) + 1):
        name, port = some_name(choices), choices.pick(PORTS[:-1])
        verdict = policy.decide(name, port)
        assert verdict.allowed == judge(allow, deny, name, port)
        assert policy.decide(name, port).allowed == verdict.allowed
        assert not verdict.allowed or policy.decide_name(name).allowed
        address = ipaddress.ip_address(choices.pick(ADDRESSES))
        network = str(ipaddress.ip_network(address))
        assert policy.decide_address(address.packed, port).allowed == judge(allow, deny, network, port)
        assert (policy.denies_address(address.packed, port) is not None) == any(
            means(rule, network, port) for rule in deny
        )
    question(choices, policy)


def damaged(choices: Choices) -> None:
    _, _, whole = build(choices)
    blob = bytearray(whole)
    for _ in range(choices.number(5) + 1):
        at = choices.number(min(len(blob), 0xFFFF) - 1)
        blob[at : at + choices.number(2)] = choices.piece(3)
    question(choices, load(bytes(blob)))


def load(blob: bytes) -> Policy | None:
    try:
        return Policy.load(blob)
    except ValueError:
        return None


def build(choices: Choices) -> tuple[list[Rule], list[Rule], bytes]:
    allow = [some_rule(choices) for _ in range(choices.number(6))]
    deny = [some_rule(choices) for _ in range(choices.number(3))]
    blob = compile_policy(
        allow=[(rule, f"a file\t%{choices.number(3)}:{number}") for number, rule in enumerate(allow, 1)],
        deny=[(rule, f"other:{number}") for number, rule in enumerate(deny, 1)],
        connect=[(text, f"file:{number}") for number, text in enumerate(CONNECT[: choices.number(len(CONNECT))], 50)],
        serve=[choices.number(60000) + 1 for _ in range(choices.number(2))],
        ask=bool(choices.number(1)),
        ask_origin="file:1",
        default_origin="tier 2",
    )
    return allow, deny, blob


def some_rule(choices: Choices) -> Rule:
    host = choices.pick(("", "*.", "*", "/"))
    host = choices.pick(NETWORKS) if host == "/" else host if host == "*" else host + some_name(choices)
    return Rule(
        host,
        canonical_ports([choices.pick(PORTS) for _ in range(choices.number(2) + 1)]),
        methods=("GET", "POST")[: choices.number(2)],
        paths=("/v1/*", "/")[: choices.number(2)],
        secret=choices.pick((None, "KEY")),
        max_body=choices.pick((None, 0, 1 << 40)),
        max_requests=choices.pick((None, 5)),
        ech=bool(choices.number(1)),
    )


def some_name(choices: Choices) -> str:
    name = ".".join(choices.pick(LABELS) for _ in range(choices.number(4) + 1))
    try:
        return canonical_host(name) if "/" not in canonical_host(name) else "a.example"
    except ValueError:
        return "example.com"


def judge(allow: list[Rule], deny: list[Rule], host: str, port: int) -> bool:
    return any(means(rule, host, port) for rule in allow) and not any(means(rule, host, port) for rule in deny)


def means(rule: Rule, host: str, port: int) -> bool:
    return host_covers(rule.host, host) and (port in rule.ports or 0 in rule.ports)


def question(choices: Choices, policy: Policy | None) -> None:
    """Ask whatever may be asked; a verdict comes back."""
    if policy is None:
        return
    assert isinstance(policy.digest, str)
    assert all(0 < port < 65536 for port in (*policy.serve, *policy.local_ports))
    name = choices.pick((*ODD_NAMES, some_name(choices), choices.piece(60).decode("latin-1")))
    port = choices.number(0xFFFF)
    if choices.number(1):
        name, port = choices.pick(PEERS)
    verdicts = [policy.decide(name, port), policy.decide_name(name), policy.decide_local(port)]
    address = choices.pick((choices.take(4), choices.take(16), choices.piece(17)))
    verdicts += [policy.decide_address(address, port), policy.denies_address(address, port) or Verdict(False)]
    assert isinstance(policy.denied_explicitly(name, port), bool)
    for verdict in verdicts:
        assert isinstance(verdict.allowed, bool)
        assert verdict.allowed == bool(verdict.grants)
        assert all(isinstance(grant.inspected, bool) and grant.key for grant in verdict.grants)


MODES = (any_bytes, compiled, damaged)


def one(data: bytes) -> None:
    choices = Choices(data)
    choices.pick(MODES)(choices)


if __name__ == "__main__":
    run(one)
