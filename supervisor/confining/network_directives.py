"""systemd's directives on networks and sockets."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from osmoda.egress.destinations import ANY_PORT, Rule, parse_peer
from osmoda.sandbox.seccomp_arguments import FAMILIES
from osmoda.supervisor.confining import directive_values as values
from osmoda.supervisor.confining import plan_demands as demands
from osmoda.supervisor.confining.directive_rules import refused, switch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.supervisor.confining import directive_rules
    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.units.unit import Directive

_EVERYTHING = ("0.0.0.0/0", "::/0")
_ADDRESS_FAMILIES = {
    "AF_UNIX": "unix",
    "AF_LOCAL": "unix",
    "AF_INET": "inet",
    "AF_INET6": "inet6",
    "AF_NETLINK": "netlink",
}
_BINDING = "ports are bound in the sandbox's own network; [network] serve says which of them others reach"


def _private(narrowing: Narrowing, last: Directive) -> None:
    if narrowing.profile.network.allow or narrowing.profile.network.connect or narrowing.profile.network.serve:
        narrowing.notes.append(f"{last.origin}: PrivateNetwork= takes away what the profile's [network] grants")
    narrowing.no_network(last.origin)


def _address_deny(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """IPAddressDeny=, and what IPAddressAllow= takes out of it; the latter alone denies nothing."""
    denied = values.networks(given)
    if not denied:
        return
    last = given[-1]
    narrowing.sandboxed(last)
    allowed = {item.text for item in values.networks(narrowing.given("IPAddressAllow"))}
    localhost = {"127.0.0.0/8", "::1/128"}
    if {item.text for item in denied} >= set(_EVERYTHING):
        further = sorted(allowed - localhost)
        if further and narrowing.profile.network.allow:
            why = f"of {further[0]} nothing is reached by address; [network] allow of the profile lists what may be"
            narrowing.refuse(last, why)
        narrowing.no_network(last.origin)
        if not localhost <= allowed:
            narrowing.no_loopback(last.origin)
        return
    for item in denied:
        network = ipaddress.ip_network(item.text)
        if any(_overlap(network, ipaddress.ip_network(text)) for text in allowed):
            narrowing.refuse(item.directive, f"IPAddressAllow= takes something out of {item.text}; deny less than that")
        if any(_overlap(network, ipaddress.ip_network(text)) for text in localhost):
            _no_localhost(narrowing, item.directive)
        if not network.is_loopback:
            narrowing.deny_network(Rule(item.text, (ANY_PORT,)), item.directive.origin)


type _Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _overlap(one: _Network, other: _Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _no_localhost(narrowing: Narrowing, directive: Directive) -> None:
    network = narrowing.profile.network
    reached = [entry for entry in network.connect if parse_peer(entry).target == "host"]
    if reached:
        narrowing.refuse(directive, f'the profile connects to "{reached[0]}", a port of this host; take that out')
    if network.allow or network.connect or network.serve:
        narrowing.refuse(directive, "a sandbox with a network has a loopback interface of its own")
    narrowing.no_loopback(directive.origin)


def _address_allow(_draft: Narrowing, given: Sequence[Directive]) -> None:
    """Read by IPAddressDeny=; checked here for what is no address."""
    values.networks(given)


def _families(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """config_parse_address_families() of systemd."""
    listed: set[str] = set()
    allows: bool | None = None
    for directive in given:
        if not directive.value:
            listed, allows = set(), None
            continue
        if directive.value == "none":
            listed, allows = set(), True
            continue
        inverted = directive.value.startswith("~")
        allows = not inverted if allows is None else allows
        for name in directive.value.removeprefix("~").split():
            if not name.startswith("AF_"):
                raise ValueError(f"holds {name}, which is no family such as AF_UNIX")
            family = _ADDRESS_FAMILIES.get(name, name)
            (listed.add if inverted != allows else listed.discard)(family)
    if allows is None:
        return
    narrowing.sandboxed(given[-1])
    narrowing.keep_families([name for name in FAMILIES if (name in listed) == allows], given[-1].origin)


def _interfaces(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """A sandbox has no interface but its own lo; what its gateway reaches for it leaves by the host's."""
    names = values.items(given)
    if not names:
        return
    last = given[-1]
    narrowing.sandboxed(last)
    network = narrowing.profile.network
    if network.allow or any(parse_peer(entry).target == "mesh" for entry in network.connect):
        narrowing.refuse(last, "the gateway dials from the host's network, by whatever interface its routes name")
    if not _allows_lo(given):
        _no_localhost(narrowing, last)
    narrowing.demand(last, demands.namespace("network"))


def _allows_lo(given: Sequence[Directive]) -> bool:
    """config_parse_restrict_network_interfaces() of systemd, asked for the one interface that a sandbox has."""
    listed: set[str] = set()
    allows: bool | None = None
    for directive in given:
        if not directive.value:
            listed, allows = set(), None
            continue
        inverted = directive.value.startswith("~")
        allows = not inverted if allows is None else allows
        for name in directive.value.removeprefix("~").split():
            (listed.add if inverted != allows else listed.discard)(name)
    return ("lo" in listed) == (allows is not False)


def _bind_allow(_draft: Narrowing, given: Sequence[Directive]) -> None:
    """An exception to SocketBindDeny=, which is refused."""
    values.items(given)


RULES: dict[str, directive_rules.Rule] = {
    "PrivateNetwork": switch(demands.namespace("network"), narrow=_private),
    "NetworkNamespacePath": refused(
        "a sandbox has a network of its own; agents reach each other through [network] connect"
    ),
    "IPCNamespacePath": refused("a sandbox has System V IPC of its own"),
    "IPAddressDeny": _address_deny,
    "IPAddressAllow": _address_allow,
    "IPIngressFilterPath": refused("no program of the caller's filters packets"),
    "IPEgressFilterPath": refused("no program of the caller's filters packets"),
    "BPFProgram": refused("no program of the caller's is loaded into the kernel"),
    "RestrictAddressFamilies": _families,
    "RestrictNetworkInterfaces": _interfaces,
    "SocketBindAllow": _bind_allow,
    "SocketBindDeny": refused(_BINDING),
    "NFTSet": refused("packets of a sandbox never pass the host's filters"),
}
