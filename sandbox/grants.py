"""Whether one profile grants no more than another: `excess(a, b)` is empty, or says what a grants beyond b.

The answer is safe to act on: where `excess` is empty, whatever `a` permits, `b` permits too. It is not always the
shortest answer: what `b` covers only with several of its grants together (a network by its two halves, a URL pattern
by two others, a budget by two budgets) is reported as excess. It is reflexive and transitive; taking a grant away or
adding a denial never makes more of it.

For paths, hosts, patterns alike: each grant of `a` that its own denials leave alive has to lie within one grant of
`b`, and where a denial of `b` meets it, `a` has to deny the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from osmoda.egress import patterns
from osmoda.egress.destinations import ANY_PORT, ANY_SECRET, Peer, Rule, host_covers, host_meet, parse_peer
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.merge import WORKSPACES
from osmoda.sandbox.seccomp import allowed as allowed_calls
from osmoda.sandbox.syscall_groups import calls, expand
from osmoda.sandbox.tiers import ceiling
from osmoda.sandbox.toml_source import Path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from osmoda.sandbox.profile import Network, Profile

ALWAYS_READ = ("/usr",)
"""Trees that every sandbox holds, declared or not."""

_ALWAYS_SEEN = (*ALWAYS_READ, "/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/sbin")
"""Trees of which every sandbox holds at least parts: another profile's denial in them is worth something."""


@dataclass(frozen=True, slots=True)
class Excess:
    """One thing granted beyond another profile.

    `kind` is the key (`filesystem.write`), `what` the value in words, `path` its key path in the profile, `origin` the
    `file:line` (or `tier N`) that grants it, `allowed` what the other profile has there.
    """

    kind: str
    what: str
    origin: str
    path: Path
    allowed: str


def excess(a: Profile, b: Profile) -> tuple[Excess, ...]:
    """What `a` grants beyond `b`; empty means that a grants no more than b."""
    return tuple(
        Excess(".".join(str(step) for step in path[:2] if isinstance(step, str)), what, a.origin(*path), path, allowed)
        for path, what, allowed in _findings(a, b)
    )


type _Finding = tuple[Path, str, str]


def _findings(a: Profile, b: Profile) -> Iterator[_Finding]:
    if a.tier < b.tier:
        yield ("tier",), f"tier {a.tier}", f"tier {b.tier}"
    for index, layer in enumerate(a.degrade):
        if layer not in b.degrade:
            yield ("degrade", index), f"running without {layer}", _listed(b.degrade)
    if b.tier != 0:  # tier 0 has no sandbox: nothing is beyond it
        yield from _filesystem(a, b)
        yield from _network(a, b)
        yield from _syscalls(a, b)
    yield from _limits(a, b)
    yield from _environment(a, b)
    for kind, allow, deny, other_allow, other_deny in (
        (("tools", "allow"), a.tools.allow, a.tools.deny, b.tools.allow, b.tools.deny),
        (("mesh", "send"), a.mesh.send, (), b.mesh.send, ()),
        (("mesh", "receive"), a.mesh.receive, (), b.mesh.receive, ()),
    ):
        for index, what in _beyond(allow, deny, other_allow, other_deny, covers=patterns.covers, meet=_pattern_meet):
            yield (*kind, index), what, _listed(other_allow, other_deny)


def _beyond[T](
    allow: Sequence[T],
    deny: Sequence[T],
    other_allow: Sequence[T],
    other_deny: Sequence[T],
    *,
    covers: Callable[[T, T], bool],
    meet: Callable[[T, T], T | None],
) -> Iterator[tuple[int, str]]:
    """Index and words of each item of `allow` that the other side does not permit, or not all of it."""
    for index, item in enumerate(allow):
        if any(covers(denied, item) for denied in deny):
            continue  # grants nothing
        if not any(covers(granted, item) for granted in other_allow):
            yield index, str(item)
            continue
        for denied in other_deny:
            common = meet(item, denied)
            if common is not None and not any(covers(own, common) for own in deny):
                yield index, str(item) if common == item else f"{item} with {common} in it"
                break


# Files


def _filesystem(a: Profile, b: Profile) -> Iterator[_Finding]:
    mine, other = a.filesystem, b.filesystem
    readable = (*ALWAYS_READ, *other.read, *other.write)
    for index, what in _beyond(mine.read, mine.deny, readable, other.deny, covers=_tree_covers, meet=_tree_meet):
        yield ("filesystem", "read", index), what, _listed((*other.read, *other.write), other.deny)
    for index, what in _beyond(mine.write, mine.deny, other.write, other.deny, covers=_tree_covers, meet=_tree_meet):
        yield ("filesystem", "write", index), what, _listed(other.write, other.deny)
    for _, what in _beyond(_ALWAYS_SEEN, mine.deny, _ALWAYS_SEEN, other.deny, covers=_tree_covers, meet=_tree_meet):
        yield ("filesystem", "deny"), f"reading {what}", _listed((), other.deny)
    if WORKSPACES.index(mine.workspace) > WORKSPACES.index(other.workspace):
        yield ("filesystem", "workspace"), f"a workspace that is {mine.workspace}", other.workspace
    elif mine.workspace != "none":
        # The workspace is named at the launch, so it may hold whatever the other side denies, save where none may lie.
        never = ceiling(a.tier).filesystem.deny
        for denied in other.deny:
            if not any(within(denied, tree) for tree in (*never, *mine.deny)):
                yield ("filesystem", "workspace"), f"{denied} in a workspace around it", _listed((), other.deny)
    if mine.tmp > other.tmp:
        yield ("filesystem", "tmp"), f"{mine.tmp} bytes", f"{other.tmp} bytes"


def _tree_covers(tree: str, path: str) -> bool:
    return within(path, tree)


def _tree_meet(one: str, other: str) -> str | None:
    if within(one, other):
        return one
    return other if within(other, one) else None


# Network


def _network(a: Profile, b: Profile) -> Iterator[_Finding]:
    mine, other = a.network, b.network
    budgets = _Budgets(mine)
    for index, rule in enumerate(mine.allow):
        what = _rule_beyond(rule, mine.deny, other.allow, other.deny, budgets)
        if what is not None:
            yield ("network", "allow", index), what, _listed(other.allow, other.deny)
    for index, port in enumerate(mine.serve):
        if port not in other.serve and ANY_PORT not in other.serve:
            what = "every port" if port == ANY_PORT else f"port {port}"
            yield ("network", "serve", index), what, _listed(other.serve)
    others = [parse_peer(entry, tier_file=True) for entry in other.connect]
    for index, entry in enumerate(mine.connect):
        if _peer_beyond(parse_peer(entry, tier_file=True), mine.deny, others, other.deny):
            yield ("network", "connect", index), entry, _listed(other.connect, other.deny)
    for index, family in enumerate(mine.families):
        if family not in other.families:
            yield ("network", "families", index), f"{family} sockets", _listed(other.families)
    if mine.ask and not other.ask:
        yield ("network", "ask"), "asking for names that are not listed", "false"
    elif mine.ask:
        for rule in other.deny:
            if not all(_denied(rule.host, port, mine.deny) for port in rule.ports):
                yield ("network", "ask"), f"asking for {rule}", _listed((), other.deny)
    if mine.loopback and not other.loopback:
        yield ("network", "loopback"), "its own loopback interface", "false"


def _rule_beyond(
    rule: Rule, deny: tuple[Rule, ...], other_allow: tuple[Rule, ...], other_deny: tuple[Rule, ...], budgets: _Budgets
) -> str | None:
    """What `rule` grants beyond the other side, port by port, or None."""
    for port in rule.ports:
        if deny and _denied(rule.host, port, deny):
            continue
        atom = rule if rule.ports == (port,) else replace(rule, ports=(port,))
        if not _rule_granted(rule, atom, other_allow, budgets):
            return str(atom)
        for denied in other_deny:
            # A name may lead to any address, so a denied network counts for names too.
            host = denied.host if denied.is_network and not atom.is_network else host_meet(atom.host, denied.host)
            if host is None:
                continue
            for common in _ports_meet(port, denied.ports):
                if not _denied(host, common, deny):
                    return f"{atom} with {Rule(host, (common,))} in it"
    return None


def _denied(host: str, port: int, deny: tuple[Rule, ...]) -> bool:
    return any(host_covers(rule.host, host) and _port_in(port, rule.ports) for rule in deny)


def _port_in(port: int, ports: tuple[int, ...]) -> bool:
    return ANY_PORT in ports or port in ports


def _ports_meet(port: int, ports: tuple[int, ...]) -> tuple[int, ...]:
    if port == ANY_PORT:
        return ports
    return (port,) if _port_in(port, ports) else ()


def _rule_granted(rule: Rule, atom: Rule, other_allow: tuple[Rule, ...], budgets: _Budgets) -> bool:
    """Whether all that `rule` permits at the one port of `atom` lies within some rule of the other side."""
    near = [
        wide
        for wide in other_allow
        if host_covers(wide.host, atom.host) and _port_in(atom.ports[0], wide.ports) and budgets.within(rule, wide)
    ]
    hidden = (False, True) if atom.ech and not atom.inspected else (False,)
    if not (atom.methods or atom.paths or atom.addresses):
        return all(any(_request_covers(wide, None, None, None, ech, atom) for wide in near) for ech in hidden)
    return all(
        any(_request_covers(wide, method, path, address, ech, atom) for wide in near)
        for method, path, address, ech in product(
            atom.methods or (None,), atom.paths or (None,), (None, *atom.addresses), hidden
        )
    )


def _request_covers(
    rule: Rule, method: str | None, path: str | None, address: str | None, ech: bool, atom: Rule
) -> bool:
    """`None` stands for all methods, all paths, public addresses. Only what asks nothing of HTTP covers the rest."""
    return (
        (atom.inspected or not rule.inspected)
        and (not rule.methods or method in rule.methods)
        and (not rule.paths or (path is not None and any(patterns.covers(wide, path) for wide in rule.paths)))
        and (atom.secret is None or rule.secret in (ANY_SECRET, atom.secret))
        and (rule.max_body is None or (atom.max_body is not None and atom.max_body <= rule.max_body))
        and (address is None or any(host_covers(wide, address) for wide in rule.addresses))
        and (rule.ech or not ech)
    )


class _Budgets:
    """The budgets of one profile: what can be used up of another profile's."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def within(self, rule: Rule, wide: Rule) -> bool:
        """Whether a budget of `wide` is never used up before one of `rule`, which it covers in all else.

        That is so where both count the same, or where all that can be used of `wide` fits into it.
        """
        if wide.max_bytes is wide.max_requests is None:
            return True
        for name in ("max_bytes", "max_requests"):
            most, own = getattr(wide, name), getattr(rule, name)
            if most is None or (own is not None and own <= most and _unbudgeted(rule) == _unbudgeted(wide)):
                continue
            used = self._used(wide, name)
            if used is None or used > most:
                return False
        return True

    def _used(self, wide: Rule, name: str) -> int | None:
        """The most that the rules which meet `wide` permit together, None for no limit. The same rule counts once."""
        found: dict[Rule, int] = {}
        deny = self._network.deny
        for rule in self._network.allow:
            ports = [port for port in rule.ports if _ports_meet(port, wide.ports)]
            if host_meet(rule.host, wide.host) and not all(_denied(rule.host, port, deny) for port in ports):
                most = getattr(rule, name)
                if most is None:
                    return None
                scope = _unbudgeted(rule)
                found[scope] = max(found.get(scope, 0), most)
        return sum(found.values())


def _unbudgeted(rule: Rule) -> Rule:
    return replace(rule, max_bytes=None, max_requests=None)


def _peer_beyond(peer: Peer, deny: tuple[Rule, ...], others: Sequence[Peer], other_deny: tuple[Rule, ...]) -> bool:
    """Whether the other side does not let `peer` be reached. A port of localhost that leads there grants no more."""
    if not any(_peer_covers(wide, peer) for wide in others):
        return not _denied_peer(peer, peer.port, deny)
    return any(
        not _denied_peer(peer, port, deny)
        for rule in other_deny
        if any(host_covers(rule.host, name) for name in peer.names)
        for port in _ports_meet(peer.port, rule.ports)
    )


def _denied_peer(peer: Peer, port: int, deny: tuple[Rule, ...]) -> bool:
    return any(_denied(name, port, deny) for name in peer.names)


def _peer_covers(wide: Peer, peer: Peer) -> bool:
    left, right = re.split("[:/]", wide.target), re.split("[:/]", peer.target)
    return (
        wide.port in (ANY_PORT, peer.port)
        and len(left) == len(right)
        and all(one in ("*", other) for one, other in zip(left, right, strict=True))
    )


# Processes


def _syscalls(a: Profile, b: Profile) -> Iterator[_Finding]:
    mine, other = a.process.syscalls, b.process.syscalls
    beyond = _calls(a) - _calls(b) if (mine, a.tier) != (other, b.tier) else frozenset[str]()
    rest = set(beyond)
    for index, entry in enumerate(mine):
        found = () if entry.startswith("~") else calls(entry) & beyond
        if found:
            rest.difference_update(found)
            what = entry if found == {entry} else f"{entry} ({few(found)})"
            yield ("process", "syscalls", index), what, _listed(other)
    if rest:
        yield ("process", "syscalls"), few(rest), _listed(other)


def few(names: Iterable[str]) -> str:
    """The first names, in order, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _calls(profile: Profile) -> frozenset[str]:
    """What the filter lets through; in tier 0 there is none."""
    spec = profile.process.syscalls
    return allowed_calls(spec, tier=profile.tier) if profile.tier else expand(spec)


def _limits(a: Profile, b: Profile) -> Iterator[_Finding]:
    mine, other = a.process, b.process
    for path, value, bound, unit in (
        (("process", "memory"), mine.memory, other.memory, "bytes"),
        (("process", "cpu"), mine.cpu, other.cpu, "cores"),
        (("process", "pids"), mine.pids, other.pids, "processes"),
        (("process", "limits", "open_files"), mine.limits.open_files, other.limits.open_files, "files"),
        (("process", "limits", "file_size"), mine.limits.file_size, other.limits.file_size, "bytes"),
        (("process", "limits", "address_space"), mine.limits.address_space, other.limits.address_space, "bytes"),
        (("process", "limits", "stack"), mine.limits.stack, other.limits.stack, "bytes"),
        (("process", "limits", "core"), mine.limits.core, other.limits.core, "bytes"),
    ):
        if bound is not None and (value is None or value > bound):
            what = f"no limit of {path[-1]}" if value is None else f"{path[-1]} of {value} {unit}"
            yield path, what, f"at most {bound} {unit}"


# Environment and patterns


def _environment(a: Profile, b: Profile) -> Iterator[_Finding]:
    mine, other = a.environment, b.environment
    # A variable that is set hides the caller's.
    allow, deny = _split((*mine.passed, *(f"~{name}" for name, _ in mine.set if name != "*")))
    other_allow, other_deny = _split((*other.passed, *(f"~{name}" for name, _ in other.set if name != "*")))
    for index, what in _beyond(allow, deny, other_allow, other_deny, covers=patterns.covers, meet=_pattern_meet):
        path = ("environment", "pass", mine.passed.index(allow[index]))
        yield path, f"the caller's {what}", _listed(other_allow, other_deny)
    if ("*", "*") not in other.set:
        for name, value in mine.set:
            if (name, value) not in other.set:
                yield ("environment", "set", name), f"{name}={value}", _listed([f"{n}={v}" for n, v in other.set])


def _split(entries: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Entries that grant, and those that take away (`~` in front)."""
    granted = tuple(entry for entry in entries if not entry.startswith("~"))
    return granted, tuple(entry[1:] for entry in entries if entry.startswith("~"))


def _pattern_meet(item: str, denied: str) -> str | None:
    """What both match; where neither holds the other, the whole of `denied`, which is more."""
    if patterns.covers(denied, item):
        return item
    return denied if patterns.overlap(item, denied) else None


def _listed(granted: Sequence[object], taken: Sequence[object] = ()) -> str:
    text = ", ".join(str(item) for item in granted) or "nothing"
    return f"{text}, without {', '.join(str(item) for item in taken)}" if taken else text
