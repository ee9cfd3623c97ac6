"""May this connection be, and go there? Policy and values in, verdicts and reasons out: no socket, no clock.

The resolver decided by name already; here it is decided again, with the port, with what the client itself names, and
with the addresses that the name leads to.
"""

from __future__ import annotations

import _socket

from osmoda.egress import first_bytes
from osmoda.egress.addresses import classify, inside, may_dial
from osmoda.egress.policy import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.egress.first_bytes import FirstBytes
    from osmoda.egress.policy import Policy

LOOPBACK = (b"\x7f\0\0\1", bytes(15) + b"\1")
"""127.0.0.1 and ::1."""


def address_text(address: bytes) -> str:
    """A packed address as people write it; empty for none."""
    if not address:
        return ""
    return _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)


def decide(policy: Policy, name: str, address: bytes, port: int) -> Verdict:
    """Whether a connection may be: to `name`, or, without one, to `address` itself."""
    if name:
        return policy.decide(name, port)
    if address in LOOPBACK:
        return policy.decide_local(port)
    if classify(address) == "ours":
        text = address_text(address)
        return Verdict(False, (), "", f"{text} stands for no name any more: the name is to be looked up again")
    return policy.decide_address(address, port)


def may_ask(policy: Policy, name: str, port: int) -> bool:
    """Whether somebody is to be asked about a connection that no rule allows."""
    return bool(name) and policy.ask and not policy.denied_explicitly(name, port)


def permits_hidden(verdict: Verdict) -> bool:
    """Whether a hello may be encrypted in part (ECH)."""
    return any(grant.ech for grant in verdict.applied)


def contradiction(
    policy: Policy, verdict: Verdict, name: str, address: bytes, port: int, first: FirstBytes
) -> tuple[str, str]:
    """Why what the client says first may not go where its connection leads, and whose rule that is; empty if it may."""
    what = "TLS hello" if first.protocol == first_bytes.TLS else "HTTP request"
    rule = verdict.origin
    host = first.host
    if first.port not in (0, port):
        return f"the {what} is for port {first.port}, the connection for port {port}", rule
    if host and name:
        if host != name:
            return f"the {what} names {host}, the connection is for {name}", rule
    elif host and address not in LOOPBACK and host != address_text(address) and policy.denied_explicitly(host, port):
        # A network was granted, whatever names lead there; but what is denied by name stays so.
        denied = policy.decide(host, port)
        return denied.reason or f"the {what} names {host}, which no rule could allow", denied.origin
    if first.hidden and not permits_hidden(verdict):
        where = name or address_text(address)
        return f"part of the TLS hello is encrypted (ECH), and no rule for {where} has ech = true", rule
    return "", ""


def objection(
    policy: Policy, verdict: Verdict, name: str, address: bytes, port: int, *, own: bool = False
) -> tuple[str, str]:
    """Why an address, to which `name` leads or which was itself asked for, may not be dialled, and whose rule that is.

    Both empty when it may. `own`: it is an address of this host's, which a rule has to name like a private one.

    A network of its own right counts for names, too: it was granted to every program of the sandbox, whatever leads
    there.
    """
    denied = policy.denies_address(address, port)
    if denied is not None:
        return denied.reason, denied.origin
    networks: tuple[str, ...] = ()
    for grant in verdict.applied:
        networks += grant.addresses if name else (grant.host,)
    reason = may_dial(address, networks)
    if reason and name:
        direct = policy.decide_address(address, port)
        if direct.allowed and not direct.inspect:
            networks += tuple([grant.host for grant in direct.grants])
            reason = may_dial(address, networks)
    if own and not reason and not inside(address, networks):
        reason = f"{address_text(address)} is an address of this host, and no rule names its network"
    return (reason, verdict.origin) if reason else ("", "")
