"""Whether a sandbox may reach a name or an address, and which line of its profile says so.

`deny` wins over `allow`; several rules that match are united. A decision costs the same with one name and with 100,000:
a name is looked up as it is, and for wildcards its endings of those lengths that exist.
"""

from __future__ import annotations

import _socket

from osmoda.egress.addresses import embedded
from osmoda.egress.policy_tables import LINE_BITS, Reader
from osmoda.egress.verdicts import Grant, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from osmoda.egress.policy_tables import References, Rule, Tables

__all__ = ["Grant", "Loader", "Policy", "Verdict", "is_host_name"]

MOST_KEPT = 1024
"""Verdicts that a policy keeps: those of names in use."""

_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_DIGITS = "0123456789"
_HEX_DIGITS = "0123456789abcdef"
_OURS = (".agent", ".osmoda", ".mesh")
_MAPPED = bytes(10) + b"\xff\xff"
_new = object.__new__


class Policy:
    """The compiled policy of one sandbox. Made by `load` or `loader`; immutable."""

    __slots__ = (
        "_deepest", "_ending", "_every", "_exact", "_kept", "_peers", "_rules", "_tables", "ask", "ask_origin",
        "digest", "local_ports", "secrets", "serve",
    )  # fmt: skip

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._rules = tables.rules
        self._peers = tables.peers
        self._every = tables.every
        self._exact = tables.names.lookup()
        self._ending = tables.wildcards.lookup()
        self._deepest = tables.deepest
        self._kept: dict[tuple[str, int], Verdict] = {}
        self.ask: bool = tables.ask
        self.ask_origin: str = tables.ask_origin
        self.serve: tuple[int, ...] = tables.serve
        self.secrets: tuple[str, ...] = tables.secrets
        self.digest: str = tables.digest
        self.local_ports: dict[int, str] = {
            local: f"{target}:{port}" for local, (_, port, target, _, _) in tables.local_ports.items()
        }

    @staticmethod
    def load(blob: bytes) -> Policy:
        """The policy that `compile_policy` wrote. Raises ValueError for anything else."""
        loader = Policy.loader(blob)
        while True:
            policy = loader.step()
            if policy is not None:
                return policy

    @staticmethod
    def loader(blob: bytes) -> Loader:
        """Load in steps of about a millisecond. Raises ValueError as `load` does, here or in a step."""
        return Loader(blob)

    def decide(self, name: str, port: int) -> Verdict:
        """Whether `name` (canonical: lower case, no dot at the end) may be reached at `port`."""
        kept, place = self._kept, (name, port)
        verdict = kept.get(place)
        if verdict is not None:
            return verdict
        peers = self._peers.get(name)
        if peers is not None and port in peers:
            verdict = _peer(name, port, *peers[port])
        else:
            found = self._find(name)
            if found is None:
                return Verdict(False, (), self._tables.default_origin, "what was asked for is not a host name")
            verdict = self._judge(name, port, found)
        if verdict.allowed:  # others are without number
            if len(kept) >= MOST_KEPT:
                kept.clear()
            kept[place] = verdict
        return verdict

    def _find(self, name: str) -> list[tuple[str, References]] | None:
        """The hosts of rules that mean `name`, the narrowest first, and their rules; None when it is no host name."""
        found: list[tuple[str, References]] = []
        references = self._exact(name)
        if references is not None:
            found.append((name, references))
        elif not is_host_name(name):
            return None
        if self._deepest:
            ending = name.partition(".")[2]
            if len(name) > 63:  # with perhaps more than a hundred labels: only so many from the end as a wildcard has
                labels = name.rsplit(".", self._deepest)
                if len(labels) > self._deepest:
                    ending = name[len(labels[0]) + 1 :]
            look_up = self._ending
            while ending:
                references = look_up(ending)
                if references is not None:
                    found.append((f"*.{ending}", references))
                ending = ending.partition(".")[2]
        if self._every and not name.endswith(_OURS):
            found.append(("*", self._every))
        return found

    def _judge(self, what: str, port: int, found: list[tuple[str, References]]) -> Verdict:
        rules = self._rules
        grants = []
        secret = opaque = False
        for host, references in found:
            for reference in (references,) if references.__class__ is int else references:  # type: ignore[union-attr]
                rule = rules[reference >> LINE_BITS]
                if port in rule.at if rule.at is not None else 0 < port < 65536:
                    if rule.deny:
                        return _refused_by(what, port, rule.origin(reference))
                    grant = _new(Grant)  # without its __init__, which would be half of a decision
                    grant.host = host
                    grant._terms = rule
                    grant._origin = reference
                    grants.append(grant)
                    if not rule.asks:
                        opaque = True
                    elif rule.secret:
                        secret = True
        if not grants:
            return self._not_listed(what, port, found)
        verdict = _new(Verdict)
        verdict.allowed = True
        verdict.grants = tuple(grants)
        verdict._origin = verdict.reason = verdict.target = ""
        verdict.inspect = secret or not opaque
        return verdict

    def decide_name(self, name: str) -> Verdict:
        """Whether there is a port at which `name` may be reached: what the resolver answers."""
        tables = self._tables
        found = self._find(name)
        if found is None:
            return Verdict(False, (), tables.default_origin, "what was asked for is not a host name")
        denied, denied_at = self._denied_ports(found)
        listed = False
        target = ""
        grants = []
        for port, (leads_to, origin, denial) in self._peers.get(name, {}).items():
            listed = True
            if denial:
                denied_at = denied_at or denial
            else:
                target = leads_to
                grants.append(Grant(name, (port,), origin=origin))
        for rule, reference, host in self._matching(found):
            if not rule.deny:
                listed = True
                if denied is not None and (rule.at is None or not rule.at <= denied):
                    grants.append(_grant(rule, reference, host))
        if grants:
            inspect = any(grant.secret for grant in grants) or all(grant.inspected for grant in grants)
            return Verdict(True, tuple(grants), "", "", inspect, target)
        if listed or denied is None:
            return _refused_by(name, 0, denied_at)
        return self._not_listed(name, 0, [])

    def _denied_ports(self, found: list[tuple[str, References]]) -> tuple[set[int] | None, str]:
        """The ports of denials (None: all of them), and where the first, or the one of them all, is written."""
        ports: set[int] = set()
        origin = ""
        for rule, reference, _ in self._matching(found):
            if rule.deny:
                if rule.at is None:
                    return None, rule.origin(reference)
                ports |= rule.at
                origin = origin or rule.origin(reference)
        return ports, origin

    def _matching(self, found: list[tuple[str, References]]) -> Iterable[tuple[Rule, int, str]]:
        for host, references in found:
            for reference in (references,) if isinstance(references, int) else references:
                yield self._rules[reference >> LINE_BITS], reference, host

    def denied_explicitly(self, name: str, port: int) -> bool:
        """Whether asking somebody is out of the question: a denial means it, or no rule could ever allow it.

        With port 0: whether that is so for every port. What is no host name, and names of ours, are never asked about.
        """
        found = self._find(name)
        if found is None or name.endswith(_OURS):
            return True
        denied, _ = self._denied_ports(found)
        return denied is None or port in denied

    def decide_local(self, port: int) -> Verdict:
        """Whether a port of the sandbox's own localhost leads to another agent (`local_ports`), and to which."""
        entry = self._tables.local_ports.get(port)
        if entry is None:
            reason = f"localhost:{port} leads to no other agent: no entry of network.connect says so"
            return Verdict(False, (), self._tables.default_origin, reason)
        return _peer(*entry)

    def decide_address(self, address: bytes, port: int) -> Verdict:
        """Whether a rule names the network of this packed address (4 or 16 bytes)."""
        if address[:12] == _MAPPED and len(address) == 16:
            address = address[12:]
        if len(address) not in self._tables.networks:
            return Verdict(False, (), self._tables.default_origin, "what was asked for is no address")
        denied = self.denies_address(address, port)
        return denied if denied is not None else self._judge(_text(address), port, self._networks(address))

    def denies_address(self, address: bytes, port: int) -> Verdict | None:
        """The denial of this packed address, which a name may have led to; an IPv4 address within it counts too."""
        inner = embedded(address) if len(address) == 16 else None
        for one in (address,) if inner is None else (address, inner):
            for rule, reference, _ in self._matching(self._networks(one)):
                if rule.deny and (rule.at is None or port in rule.at):
                    return _refused_by(_text(one), port, rule.origin(reference))
        return None

    def _networks(self, address: bytes) -> list[tuple[str, References]]:
        """The networks of rules that hold `address`, the narrowest first."""
        number = int.from_bytes(address)
        found: list[tuple[str, References]] = []
        for shift, prefixes in self._tables.networks.get(len(address), {}).items():
            entry = prefixes.get(number >> shift)
            if entry is not None:
                found.append(entry)
        return found

    def _not_listed(self, what: str, port: int, found: list[tuple[str, References]]) -> Verdict:
        """The denial of what no rule allows, with what comes nearest."""
        peers = self._peers.get(what)
        if peers and port:
            origin = next(iter(peers.values()))[1]
            reason = f"{_place(what, port)} is not allowed: {origin} allows only {_ports(peers)}"
            return Verdict(False, (), origin, reason)
        if what.endswith(_OURS):
            reason = f"{_place(what, port)} is not allowed: no entry of network.connect leads there"
            return Verdict(False, (), self._tables.default_origin, reason)
        rules = [(rule, reference) for rule, reference, _ in self._matching(found) if not rule.deny] if found else []
        if rules:
            origins = dict.fromkeys([rule.origin(reference) for rule, reference in rules])
            ports = {number for rule, _ in rules for number in rule.ports}
            first, *others = origins
            verb = f"and {len(others)} more allow" if others else "allows"
            return Verdict(
                False, (), first, f"{_place(what, port)} is not allowed: {first} {verb} only {_ports(ports)}"
            )
        origin = self._tables.default_origin
        return Verdict(False, (), origin, f"{what} is not in network.allow of {origin}")


class Loader:
    """A policy that is being loaded."""

    __slots__ = ("_reader",)

    def __init__(self, blob: bytes) -> None:
        self._reader = Reader(blob)

    def step(self) -> Policy | None:
        """Read on for about a millisecond; the policy when that was the last of it. Raises ValueError."""
        tables = self._reader.step()
        return None if tables is None else Policy(tables)


def is_host_name(name: str) -> bool:
    """Whether `name` is canonical: labels of 1 to 63 lower-case letters, digits, `_` and inner hyphens; no address."""
    if not name or len(name) > 253 or not name.isascii() or name.encode().translate(None, _HOST_BYTES):
        return False
    last = name[-1]
    if last == "." or name[0] == "." or ".." in name:
        return False
    if "-" in name and (last == "-" or name[0] == "-" or "-." in name or ".-" in name):
        return False
    start = 0
    while len(name) - start > 63:
        dot = name.rfind(".", start, start + 64)
        if dot < 0:
            return False
        start = dot + 1
    if last in _DIGITS or "0x" in name:
        # What some resolver would read as an address ends in a number (URL standard, "ends in a number").
        label = name[name.rfind(".") + 1 :]
        return not (label.isdigit() or (label[:2] == "0x" and not label[2:].strip(_HEX_DIGITS)))
    return True


def _grant(rule: Rule, reference: int, host: str) -> Grant:
    grant = _new(Grant)
    grant.host = host
    grant._terms = rule  # as its __init__, but with what is there
    grant._origin = reference
    return grant


def _peer(name: str, port: int, target: str, origin: str, denial: str) -> Verdict:
    if denial:
        return _refused_by(name, port, denial)
    return Verdict(True, (Grant(name, (port,), origin=origin),), origin, "", False, target)


def _refused_by(what: str, port: int, origin: str) -> Verdict:
    return Verdict(False, (), origin, f"{_place(what, port)} is refused by the deny at {origin}")


def _place(what: str, port: int) -> str:
    if not port:
        return what
    return f"[{what}]:{port}" if ":" in what else f"{what}:{port}"


def _ports(numbers: Iterable[int]) -> str:
    ports = list(map(str, sorted(numbers)))
    if len(ports) == 1:
        return f"port {ports[0]}"
    if len(ports) > 8:
        return f"ports {', '.join(ports[:7])} and {len(ports) - 7} more"
    return f"ports {', '.join(ports[:-1])} and {ports[-1]}"


def _text(address: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)
