"""A plan with what a supervisor adds to it, and what it may not add."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from osmoda.host.frozen import fields_of
from osmoda.sandbox import bpf
from osmoda.sandbox.bpf import JEQ, JSET, LD_ABS, RET, Instruction
from osmoda.sandbox.denials import Filter
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.operations import confinement, isolation, mounting, supervision
from osmoda.sandbox.plan import Plan
from osmoda.sandbox.seccomp_arguments import FAMILIES
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN

if TYPE_CHECKING:
    from osmoda.sandbox.operations import Operation

ORIGIN = "the supervisor"
_DGRAM = 2
_CONNECT_TCP = 2  # LANDLOCK_ACCESS_NET_CONNECT_TCP
_MSG_FASTOPEN = 0x20000000
_SOL_TCP, _TCP_ULP = 6, 31
_FLAGS_AT = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}  # the argument that holds MSG_*


def with_notify(plan: Plan, families: str) -> Plan:
    """`plan` with a socket for notifications and NOTIFY_SOCKET, which names it; of tier 1 or 2.

    `families` is the line that lists socket families. Raises LaunchError where the plan lets no program make the socket
    that it would send from.
    """
    asked = Filter(_filter(plan), plan.tier)
    if asked.answer("socket", asked.machine, (FAMILIES["unix"], _DGRAM, 0)) != bpf.ALLOW:
        raise LaunchError(
            f"{plan.name}: notifications (Type=notify, WatchdogSec=) go through a unix socket, and network.families "
            f'({families}) has no "unix", which tier 1 can add and tier 2 cannot'
        )
    operations = list(plan.operations)
    kinds = [type(operation) for operation in operations]
    operations.insert(kinds.index(mounting.Seal), supervision.NotifySocket(ORIGIN))
    variables = dict(plan.environment) | {"NOTIFY_SOCKET": supervision.NOTIFY_SOCKET.decode()}
    return _changed(plan, operations=tuple(operations), environment=tuple(sorted(variables.items())))


def with_tcp_listeners(plan: Plan) -> Plan:
    """`plan` for a command that is given listening TCP sockets of the host's network; of tier 1 or 2.

    Raises LaunchError where the command could use such a socket for connections of its own: that is so unless Landlock
    refuses all of them.
    """
    rules = next((op for op in plan.operations if isinstance(op, confinement.Landlock)), None)
    if rules is None or not rules.handled_net & _CONNECT_TCP or rules.connect:
        loopback = next((op.origin for op in plan.operations if isinstance(op, isolation.Loopback)), "")
        where = f"network.loopback = false ({loopback})" if loopback else "an empty network.allow"
        raise LaunchError(
            f"{plan.name}: a TCP socket that listens on the host could be turned into a connection from the host to "
            f"anywhere, which only Landlock's rules for ports hinder, and this plan has none for connect: it takes "
            f"{where}; a unix socket (ListenStream=/a/path) can be passed on, and network.serve needs no socket"
        )
    operations = list(plan.operations)
    position = [type(operation) for operation in operations].index(confinement.Seccomp)
    machine = Filter(_filter(plan), plan.tier).machine
    operations.insert(position, supervision.HostListeners(ORIGIN, _no_way_round(machine)))
    return _changed(plan, operations=tuple(operations))


def _filter(plan: Plan) -> confinement.Seccomp:
    return next(op for op in plan.operations if isinstance(op, confinement.Seccomp))


def _no_way_round(machine: str) -> bytes:
    """A filter that refuses MSG_FASTOPEN and TCP_ULP; other architectures are refused by the plan's own filter."""
    lines: list[bpf.Line] = [
        Instruction(LD_ABS, 0, 0, bpf.ARCH),
        (JEQ, AUDIT_ARCH[machine], "", "allow"),
        Instruction(LD_ABS, 0, 0, bpf.NR),
        *[(JEQ, KNOWN[machine][name], name, "") for name in (*_FLAGS_AT, "setsockopt")],
        (bpf.JA, 0, "allow", ""),
        "setsockopt:",
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 8),
        (JEQ, _SOL_TCP, "", "allow"),
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 16),
        (JEQ, _TCP_ULP, "deny", "allow"),
    ]
    for name, argument in _FLAGS_AT.items():
        lines += [
            f"{name}:",
            Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 8 * argument),
            (JSET, _MSG_FASTOPEN, "deny", "allow"),
        ]
    lines += [
        "deny:",
        Instruction(RET, 0, 0, bpf.ERRNO | errno.EPERM),
        "allow:",
        Instruction(RET, 0, 0, bpf.ALLOW),
    ]
    return bpf.encode(bpf.assemble(lines))


def _changed(
    plan: Plan, operations: tuple[Operation, ...], environment: tuple[tuple[str, str], ...] | None = None
) -> Plan:
    values = {name: getattr(plan, name) for name in fields_of(plan)} | {"operations": operations}
    if environment is not None:
        values["environment"] = environment
    return Plan(**values)
