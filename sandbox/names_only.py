"""From a profile's network to the operations that make it: what is local, what is redirected, what passes."""

from __future__ import annotations

import json
import marshal
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from osmoda.egress.name_table import NETWORK_IPV4, NETWORK_IPV6, RESOLVER_IPV4_TEXT, RESOLVER_IPV6_TEXT
from osmoda.egress.registration import GATE_PORT
from osmoda.sandbox import cache, network_policy
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.operations import networking

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from osmoda.host.features import Features
    from osmoda.sandbox.profile import Profile

_TABLE = {"family": "inet", "table": "osmoda"}
_SECONDS = 20.0
_SCRATCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "network_scratch.py")


class Encoding:
    """Routes and rules on their way through `network_scratch`, a program of its own, while the rest is compiled.

    `networks` are local besides the ranges of names, `localhost` the redirected ports of 127.0.0.1 and ::1, `serve` the
    ports that other agents reach, `loopback` tells whether programs inside may reach each other.
    """

    def __init__(
        self,
        origin: str,
        networks: Sequence[str] = (),
        localhost: Sequence[int] = (),
        serve: Sequence[int] = (),
        *,
        loopback: bool,
        ipv6: bool,
    ) -> None:
        networks = tuple(network for network in networks if ipv6 or ":" not in network)
        self._origin = origin
        self._asked = (loopback, ipv6, networks, tuple(localhost), tuple(serve))
        specification = {
            "addresses": [RESOLVER_IPV4_TEXT, *([RESOLVER_IPV6_TEXT] if ipv6 else [])],
            "networks": [NETWORK_IPV4, *([NETWORK_IPV6] if ipv6 else []), *networks],
            "ruleset": ruleset(networks, localhost, serve, loopback=loopback, ipv6=ipv6),
        }
        # The same specification gives the same messages on the same kernel, from the same code.
        own = os.stat(_SCRATCH)
        self._key = (json.dumps(specification), platform.release(), own.st_ino, own.st_mtime_ns)
        self._kept = cache.load_part("networks", self._key)
        self._child = None if self._kept is not None else self._start(specification)

    def _start(self, specification: dict[str, Any]) -> subprocess.Popen[bytes]:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        program = (
            f"import sys; sys.path[:] = {[*sys.path, package]!r}; "
            "from osmoda.sandbox.network_scratch import main; main()"
        )
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        assert child.stdin is not None
        with child.stdin as stream:
            stream.write(json.dumps(specification).encode())
        child.stdin = None
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Where the compilation has failed elsewhere, the program still runs."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            self._child.communicate()

    def operation(self) -> networking.NamesOnly:
        """What a launch applies. Raises CompileError where this kernel or host cannot."""
        output = self._kept if self._kept is not None else self._encoded()
        links, rules = marshal.loads(output)
        return networking.NamesOnly(self._origin, *self._asked, links, rules)

    def _encoded(self) -> bytes:
        assert self._child is not None
        try:
            output, errors = self._child.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise CompileError("the network's rules could not be encoded in time", self._origin) from None
        if self._child.returncode != 0:
            reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise CompileError(f"this host cannot enforce a network of names ({reason})", self._origin)
        cache.store_part("networks", self._key, output)
        return output


def encoding(profile: Profile, features: Features) -> Encoding:
    """The network of `profile` on a host with `features`."""
    return Encoding(
        profile.origin("network", "allow"),
        network_policy.networks_of(profile),
        network_policy.local_ports_of(profile),
        profile.network.serve,
        loopback=profile.network.loopback,
        ipv6=features.ipv6,
    )


def resolver(profile: Profile) -> str:
    """The content of /etc/resolv.conf (resolv.conf(5)): the gateway's resolver."""
    address = RESOLVER_IPV4_TEXT if "inet" in profile.network.families else RESOLVER_IPV6_TEXT
    return f"nameserver {address}\noptions timeout:3 attempts:2\n"


def ruleset(
    networks: Sequence[str], localhost: Sequence[int], serve: Sequence[int], *, loopback: bool, ipv6: bool
) -> dict[str, Any]:
    """The packet rules, as libnftables-json(5) has them. Each takes some 20 µs at every launch, so they are few.

    One chain redirects, the other lets through what came of that, and rejects the rest: at once, so that no program
    waits for a time-out.
    """
    commands: list[dict[str, Any]] = [{"add": {"table": {"family": "inet", "name": "osmoda"}}}]
    for name, kind, priority in (("redirect", "nat", -100), ("out", "filter", 0)):
        chain = {**_TABLE, "name": name, "type": kind, "hook": "output", "prio": priority, "policy": "accept"}
        commands.append({"add": {"chain": chain}})

    def add(chain: str, *expressions: dict[str, Any]) -> None:
        commands.append({"add": {"rule": {**_TABLE, "chain": chain, "expr": list(expressions)}}})

    counted: dict[str, Any] = {"counter": None}
    gate = {"redirect": {"port": GATE_PORT}}
    add("out", _in({"ct": {"key": "state"}}, ["established", "related"]), {"accept": None})
    add("out", _in({"ct": {"key": "status"}}, "dnat"), {"accept": None})
    families = [("ip", RESOLVER_IPV4_TEXT, NETWORK_IPV4, "127.0.0.0/8")]
    if ipv6:
        families.append(("ip6", RESOLVER_IPV6_TEXT, NETWORK_IPV6, "::1"))
    for family, resolver_address, names, own in families:
        destination = _field(family, "daddr")
        listed = [network for network in networks if (":" in network) == (family == "ip6")]
        for port in localhost:
            add("redirect", *_to(family, own), _equal(_field("tcp", "dport"), port), gate)
        if any(network.endswith("/0") or network.startswith("127.") for network in listed):
            # What programs inside listen on is theirs, also where a rule lists every network.
            add("redirect", *_to(family, own), {"return": None})
        for network in (names, *listed):
            add("redirect", _unequal(destination, resolver_address), *_to(family, network), _is("tcp"), counted, gate)
        add("out", _equal(destination, resolver_address), _equal(_field("th", "dport"), 53), {"accept": None})
        if loopback:
            add("out", *_to(family, own), {"accept": None})
        else:
            for port in serve:
                add("out", *_to(family, own), _equal(_field("tcp", "dport"), port), {"accept": None})
    add("out", _is("tcp"), counted, {"reject": {"type": "tcp reset"}})
    add("out", counted, {"reject": {"type": "icmpx", "expr": "port-unreachable"}})
    return {"nftables": commands}


def _field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


def _equal(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _unequal(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "!=", "left": left, "right": right}}


def _in(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "in", "left": left, "right": right}}


def _is(protocol: str) -> dict[str, Any]:
    return _equal({"meta": {"key": "l4proto"}}, protocol)


def _to(family: str, network: str) -> list[dict[str, Any]]:
    """Whether a packet goes to `network`; whether it is of `family` at all, where that is everything."""
    address, slash, length = network.partition("/")
    if slash and not int(length):
        return [_equal({"meta": {"key": "nfproto"}}, "ipv4" if family == "ip" else "ipv6")]
    return [_equal(_field(family, "daddr"), {"prefix": {"addr": address, "len": int(length)}} if slash else address)]
