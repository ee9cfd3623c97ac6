"""What an observed program tried in vain, as far as it tells something: private places, services, addresses, calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osmoda.egress.addresses import classify
from osmoda.sandbox import denials, tiers
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.learning.fold import NotGranted
from osmoda.sandbox.learning.seen import ENTRY, WRITE

if TYPE_CHECKING:
    from osmoda.sandbox.learning.private import PrivatePlaces
    from osmoda.sandbox.learning.seen import Seen, Use
    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan

# Looked for by every C library and run-time, on every host, and done without.
_HABITS = ("/run/nscd", "/var/run/nscd", "/sys/fs/cgroup", "/sys/kernel/mm", "/sys/devices/system", "/proc", "/dev")


def tried(seen: Seen, outcome: Outcome, plan: Plan, private: PrivatePlaces) -> list[NotGranted]:
    """Each of them, and why it is not granted."""
    found = [*_files(seen, private), *_sockets(seen), *_addresses(seen)]
    for denial in denials.interpret(outcome, plan):
        if not denial.habitual:
            what = (
                f"{denial.operation} {denial.object}"
                if denial.layer != "seccomp"
                else (f"the system call {denial.operation}({denial.object})")
            )
            why = "" if denial.layer == "egress" else denial.advice
            who = (denial.command,) if denial.command else ()
            found.append(NotGranted(what.strip(), why or denial.advice, who, denial.count))
    for (address, port), use in seen.listening.items():
        why = f"it needs no grant to listen inside; network.serve = [{port}] would let other agents in"
        found.append(NotGranted(f"listening on {address} port {port}", why, tuple(use.programs), use.count))
    return found


def _files(seen: Seen, private: PrivatePlaces) -> list[NotGranted]:
    never = tiers.ceiling(1).filesystem.deny
    found = []
    for name, use in seen.failed.items():
        path = os.fsdecode(name)
        real = os.path.realpath(path)
        if any(within(path, one) or within(real, one) for one in _HABITS):
            continue
        why = private.holds(path) if private.is_place(path) or os.path.lexists(path) else None
        tree = next((tree for tree in never if within(path, tree) or within(real, tree)), None)
        if why is None and tree is not None and os.path.lexists(path):
            why = f"it lies in {tree}, which no profile of this tier may grant"
        if why is not None:
            done = "writing" if use.kinds & (WRITE | ENTRY) else "reading"
            found.append(NotGranted(f"{done} {path}", why, tuple(use.programs), use.count))
    return found


def _sockets(seen: Seen) -> list[NotGranted]:
    found = []
    for name, use in seen.sockets.items():
        path = os.fsdecode(name)
        if os.path.lexists(path) and not any(within(path, one) for one in _HABITS):
            why = "services of the host are not for the sandbox; only a tree granted for writing would give it"
            found.append(NotGranted(f"connecting to the socket {path}", why, tuple(use.programs), use.count))
    return found


def _addresses(seen: Seen) -> list[NotGranted]:
    return [_address(address, port, use) for (address, port), use in seen.addresses.items()]


def _address(address: str, port: int, use: Use) -> NotGranted:
    import ipaddress

    packed = ipaddress.ip_address(address)
    kind = classify(packed.packed)
    width = packed.max_prefixlen
    bracketed = f"[{address}/{width}]" if ":" in address else f"{address}/{width}"
    why = f'an address and no name; network.allow = ["{bracketed}:{port}"] would let it be reached'
    if kind != "public":
        why = (
            f"an address that is not public ({kind}), and no name; if it is meant, write it into network.allow by hand"
        )
    return NotGranted(f"connecting to {address} port {port}", why, tuple(use.programs), use.count)
