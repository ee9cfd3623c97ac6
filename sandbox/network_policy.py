"""What a profile says about the network, for the gateway and for the compiler: nothing where it says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.egress.destinations import host_covers, parse_peer
from osmoda.egress.policy_source import compile_policy

if TYPE_CHECKING:
    from osmoda.egress.destinations import Rule
    from osmoda.sandbox.profile import Profile


def policy_of(profile: Profile) -> bytes:
    """The compiled policy; empty where nothing can be reached, and nothing reaches in: then there is no gateway."""
    network = profile.network
    if profile.tier == 0 or not (network.allow or network.connect or network.serve or network.ask):
        return b""
    file = _place(profile.file or f"tier {profile.tier}")
    return compile_policy(
        allow=_with_origins(profile, "allow", network.allow),
        deny=_with_origins(profile, "deny", network.deny),
        connect=[
            (peer, _place(profile.origin("network", "connect", index))) for index, peer in enumerate(network.connect)
        ],
        serve=network.serve,
        ask=network.ask,
        ask_origin=_place(profile.origin("network", "ask")),
        default_origin=file,
    )


def _with_origins(profile: Profile, key: str, rules: tuple[Rule, ...]) -> list[tuple[Rule, str]]:
    return [(rule, _place(profile.origin("network", key, index))) for index, rule in enumerate(rules)]


def _place(origin: str) -> str:
    """Options of a command become a profile, whose lines nobody sees."""
    return "the command line" if origin.startswith("command line") else origin


def nothing() -> bytes:
    """The policy under which nothing can be reached, for a sandbox whose profile has lost its last rule."""
    return compile_policy(
        allow=(), deny=(), connect=(), serve=(), ask=False, ask_origin="", default_origin="the edited profile"
    )


def networks_of(profile: Profile) -> tuple[str, ...]:
    """The networks of rules: their addresses are local inside, so that connections to them come to the gateway.

    None lies within another: a set of intervals in the kernel would refuse that.
    """
    hosts = {rule.host for rule in profile.network.allow if rule.is_network}
    return tuple(sorted(one for one in hosts if not any(host_covers(other, one) for other in hosts - {one})))


def local_ports_of(profile: Profile) -> tuple[int, ...]:
    """The ports of the sandbox's own localhost that lead to other agents."""
    ports = {parse_peer(entry).local_port for entry in profile.network.connect}
    return tuple(sorted(port for port in ports if port is not None))


def secrets_of(profile: Profile) -> tuple[str, ...]:
    """The names of the secrets that the gateway puts in."""
    return tuple(sorted({rule.secret for rule in profile.network.allow if rule.secret is not None}))


def inspects(profile: Profile) -> bool:
    """Whether some connections are looked into, so that programs must trust the sandbox's own CA."""
    return any(rule.inspected for rule in profile.network.allow)
