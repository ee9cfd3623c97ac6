"""Probes made from a profile: each grant is tried, and what lies beside it and is not granted."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.egress.destinations import ANY_PORT, host_covers, parse_peer
from osmoda.sandbox import system_view
from osmoda.sandbox.denials import size
from osmoda.sandbox.granted_paths import within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.egress.destinations import Rule
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

_MOST_NEIGHBOURS = 2
_MOST_PIDS = 1024
_MOST_FILES = 1 << 16
MOST_MEMORY = 256 << 20
"""Above this no limit of memory is tried by taking more: the kernel is asked what it holds the sandbox to."""
_MOST_SCRATCH = 1 << 30
_MOST_INODES = 16 << 20  # bytes of a scratch place, at a file for each 4096
_MOST_RULES = 8  # a gateway takes note of so many refused names a second, and each connection takes a moment
_MORE_PIDS = 16
_UNSERVED = (5000, 5001, 5002, 5003, 5004, 5005, 5006, 5007, 5008)
_OTHER_PORTS = (9, 8443, 4443, 81, 2222)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to try. `allowed`: it has to work. `subject` is what it is about, `origin` the line that decides."""

    attack: str
    arguments: tuple[Any, ...]
    subject: str
    allowed: bool
    origin: str


def probes(profile: Profile, workspace: bytes) -> tuple[Probe, ...]:
    """All of them, in the order in which the profile's keys are documented."""
    return (*_files(profile, os.fsdecode(workspace)), *_names(profile), *_ports(profile), *_limits(profile))


def notes(profile: Profile, plan: Plan) -> list[str]:
    """What was not tried, and why: it must not be read as if it held."""
    found = [f"{one.layer} is given up by {one.origin}: {one.reason}" for one in plan.degraded]
    if profile.network.ask:
        found.append("names that nobody lists are held until somebody decides (network.ask); they were not asked for")
    for key, rules in (("allow", profile.network.allow), ("deny", profile.network.deny)):
        if len(rules) > _MOST_RULES:
            found.append(
                f"{len(rules) - _MOST_RULES} of the rules of network.{key}: only the first {_MOST_RULES} were tried"
            )
    if profile.tools.allow or profile.mesh.send or profile.mesh.receive:
        found.append("no service of this version acts on [tools] and [mesh], so nothing was tried of them")
    if profile.process.pids > _MOST_PIDS:
        found.append(f"process.pids is above {_MOST_PIDS}: that many processes were not made")
    if (profile.process.memory or 0) > MOST_MEMORY:
        found.append(f"process.memory is above {MOST_MEMORY >> 20}M: that much was not taken, only its limit read back")
    if profile.filesystem.tmp > _MOST_SCRATCH:
        found.append(f"filesystem.tmp is above {_MOST_SCRATCH >> 30}G: no scratch place was filled")
    return found


# Files


def _files(profile: Profile, workspace: str) -> Iterator[Probe]:
    files = profile.filesystem
    shown = [os.path.realpath(path) for path in (*files.read, *files.write)]
    denied = [os.path.realpath(path) for path in files.deny]
    name = f".osmoda-verify-{secrets.token_hex(8)}"
    for kind, paths in (("read", files.read), ("write", files.write)):
        for index, path in enumerate(paths):
            if any(within(os.path.realpath(path), one) for one in denied):
                continue  # deny wins: the probes below try it
            origin = profile.origin("filesystem", kind, index)
            writes = kind == "write" or any(within(os.path.realpath(path), os.path.realpath(w)) for w in files.write)
            yield Probe("read-path", (path,), path, True, origin)
            yield Probe("write-path", (path, name), path, writes, origin)
            for beside in _neighbours(path, [*shown, workspace]):
                yield Probe("read-path", (beside,), f"{beside}, beside it", False, origin)
    for index, path in enumerate(files.deny):
        origin = profile.origin("filesystem", "deny", index)
        yield Probe("read-path", (path,), path, False, origin)
        yield Probe("write-path", (path, name), path, False, origin)
    origin = profile.origin("filesystem", "workspace")
    own = workspace or system_view.EMPTY_WORKSPACE
    yield Probe("write-path", (own, name), "the workspace", True, origin)
    for path in ("/tmp", system_view.HOME, "/dev/shm"):
        yield Probe("write-path", (path, name), path, True, profile.origin("filesystem", "tmp"))


def _neighbours(path: str, shown: list[str]) -> list[str]:
    """Some of what lies in the same folder and that nothing grants."""
    folder = os.path.dirname(os.path.realpath(path))
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    system = ("/usr", "/etc", "/proc", "/sys", "/dev", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
    found = []
    for name in names:
        beside = os.path.realpath(os.path.join(folder, name))
        around = any(within(tree, beside) for tree in shown if tree)
        covered = any(within(beside, tree) for tree in (*shown, *system, system_view.HOME) if tree)
        if not around and not covered and os.access(beside, os.R_OK) and not os.path.islink(beside):
            found.append(beside)
    return found[:_MOST_NEIGHBOURS]


# Names and ports: what is listed is told by the profile's own rules, not by the policy that was compiled from them.


def _names(profile: Profile) -> Iterator[Probe]:
    """Names first, then what must be refused, and connections last: a gateway that finds no server remembers that."""
    network = profile.network
    found: list[Probe] = []
    for index, rule in enumerate(network.allow[:_MOST_RULES]):
        host, port = _concrete(rule), _first(rule)
        if not _listed(profile, host, port):
            continue  # deny wins: the probes below try it
        origin = profile.origin("network", "allow", index)
        if not rule.is_network:
            found.append(Probe("resolve", (host,), host, True, origin))
        found.append(Probe("connect", (host, port), f"{host}:{port}", True, origin))
        if not network.ask:
            found += _beside(profile, rule, host, origin)
    for index, rule in enumerate(network.deny[:_MOST_RULES]):
        host, port = _concrete(rule), _first(rule)
        found.append(Probe("connect", (host, port), f"{host}:{port}", False, profile.origin("network", "deny", index)))
    for index, entry in enumerate(network.connect[:_MOST_RULES]):
        for name in parse_peer(entry).names:
            found.append(Probe("resolve", (name,), name, True, profile.origin("network", "connect", index)))
    yield from sorted(found, key=lambda probe: (probe.attack == "connect") + 1 if probe.allowed else 1.5)


def _beside(profile: Profile, rule: Rule, host: str, origin: str) -> Iterator[Probe]:
    """Another port of a listed name, a name below it, and above a wildcard: where nothing lists them."""
    other = next((one for one in _OTHER_PORTS if not _listed(profile, host, one)), None)
    if other is not None:
        yield Probe("connect", (host, other), f"{host}:{other}, another port of it", False, origin)
    if rule.is_network:
        return
    names = [f"osmoda-verify.{host}", *([rule.host[2:]] if rule.host.startswith("*.") else [])]
    for name in names:
        if not any(_listed(profile, name, port) for port in _ports_of(profile)):
            yield Probe("resolve", (name,), f"{name}, beside it", False, origin)


def _concrete(rule: Rule) -> str:
    """A name, or an address, that the rule means."""
    if rule.is_network:
        network = ipaddress.ip_network(rule.host)
        return str(network.network_address + (1 if network.num_addresses > 2 else 0))
    return f"osmoda-verify.{rule.host[2:]}" if rule.host.startswith("*.") else rule.host


def _first(rule: Rule) -> int:
    return 443 if rule.ports[0] == ANY_PORT else rule.ports[0]


def _ports_of(profile: Profile) -> set[int]:
    """The ports of all rules, and some besides."""
    return {port or 443 for rule in profile.network.allow for port in rule.ports} | set(_OTHER_PORTS)


def _listed(profile: Profile, host: str, port: int) -> bool:
    """Whether the profile lets `host` be reached at `port`."""
    network = profile.network
    return any(_means(rule, host, port) for rule in network.allow) and not any(
        _means(rule, host, port) for rule in network.deny
    )


def _means(rule: Rule, host: str, port: int) -> bool:
    narrow = host
    if rule.is_network:
        try:
            narrow = str(ipaddress.ip_network(host))
        except ValueError:
            return False
    return (ANY_PORT in rule.ports or port in rule.ports) and host_covers(rule.host, narrow)


def _ports(profile: Profile) -> Iterator[Probe]:
    network = profile.network
    for index, port in enumerate(network.serve):
        yield Probe("serve", (port,), f"port {port}", True, profile.origin("network", "serve", index))
    if not network.loopback and "landlock-net" not in profile.degrade and "landlock" not in profile.degrade:
        other = next(port for port in _UNSERVED if port not in network.serve)
        origin = profile.origin("network", "serve")
        yield Probe("serve", (other,), f"port {other}, which is not listed", False, origin)


# Limits


def _limits(profile: Profile) -> Iterator[Probe]:
    process, limits = profile.process, profile.process.limits
    origin = profile.origin("process", "pids")
    if process.pids <= _MOST_PIDS:
        for attack in ("processes", "threads"):
            subject = f"{process.pids}"
            yield Probe(attack, (process.pids + _MORE_PIDS,), subject, False, origin)
    if limits.open_files is not None and limits.open_files <= _MOST_FILES:
        origin = profile.origin("process", "limits", "open_files")
        yield Probe("descriptors", (limits.open_files + 8,), str(limits.open_files), False, origin)
    for name in ("address_space", "file_size"):
        value = getattr(limits, name)
        if value is not None:
            origin = profile.origin("process", "limits", name)
            yield Probe(name.replace("_", "-"), (value + 4096,), size(value), False, origin)
    tmp, origin = profile.filesystem.tmp, profile.origin("filesystem", "tmp")
    for place in ("/tmp", system_view.HOME, "/dev/shm"):
        if tmp <= _MOST_SCRATCH:
            yield Probe("scratch", (place, tmp + 4096), f"{size(tmp)} in {place}", False, origin)
        if tmp <= _MOST_INODES:
            most = max(tmp // 4096, 1024)
            yield Probe("inodes", (place, most + 1), f"{most} files in {place}", False, origin)


def memory_probe(profile: Profile) -> Probe | None:
    """The one that ends its sandbox, and so has one of its own; None where no limit, or a large one, is declared."""
    memory = profile.process.memory
    if not memory or memory > MOST_MEMORY or "memory" in profile.degrade:
        return None
    return Probe("memory", (memory + (32 << 20),), size(memory), False, profile.origin("process", "memory"))
