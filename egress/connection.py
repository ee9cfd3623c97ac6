"""One connection from a sandbox, from its accept to its end.

    reading -> (held) -> resolving -> dialling -> relaying -> ended
                                   -> inspected ->
            -> refused ->

On ports 443 and 80, and where requests are inspected, the client's first bytes are read before anything is dialled. On
other ports the server may speak first: it is dialled at once, and only what the client says is held back until it has
been read. Every connection leaves one record.
"""

from __future__ import annotations

import time

from osmoda.egress import first_bytes, relay
from osmoda.egress.client import DIALLING, ENDED, HELD, INSPECTED, READING, REFUSED, RELAYING, RESOLVING, Client
from osmoda.egress.dial import Dial, UpstreamError, is_of_this_host
from osmoda.egress.farewell import Refusal
from osmoda.egress.judgement import LOOPBACK, address_text, decide, may_ask, objection, permits_hidden
from osmoda.egress.policy import Verdict
from osmoda.egress.relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from osmoda.egress.asking import Question
    from osmoda.egress.policy import Grant
    from osmoda.egress.session import Session
    from osmoda.egress.upstream import Answer

IDLE = 3600.0
"""Seconds after which a connection on which nothing moves is reset."""

_REFUSED_MOST = 64  # connections beyond the limit that are told so; further ones are reset at once
_MOST_CHECKED = 1024
_monotonic = time.monotonic


class Connection(Client):
    """A connection of `session` to the address and port in `original`, where the client meant to go.

    The descriptor, connected and non-blocking, becomes this object's to close. While it lives it is one of
    `session.connections`.
    """

    __slots__ = ("_over", "_waits_for", "approved", "led_to")

    def __init__(self, session: Session, fd: int | _socket.socket, original: tuple[bytes, int]) -> None:
        """Raises OSError when the loop cannot take it; it is closed then."""
        super().__init__(session, fd, original)
        self.approved = False
        self.led_to: tuple[bytes, ...] = ()  # the address that was dialled; where it is inspected, those that may be
        self._waits_for: Dial | Question | None = None
        self._over: Callable[[], None] | None = None
        opened = len(session.connections)
        session.connections.add(self)
        crowded = session.budgets.connect(opened)
        unrecorded = session.ledger.refusal if session.ledger is not None else ""
        if unrecorded:
            self._refuse(unrecorded, "")
        elif crowded:
            self._refuse(crowded, "")
            if session.budgets.connect(opened - _REFUSED_MOST):
                self._cut()
        elif not self.verdict.allowed and not may_ask(session.policy, self.name, self.port):
            self._refuse(self.verdict.reason)
        elif not self.speaks_first:
            self._proceed()

    # --- whether, and where to ---

    def _proceed(self) -> None:
        """What is to be read first has been read: ask, or go."""
        session = self.session
        if not self.verdict.allowed:
            self.state = HELD
            self._timer.cancel()
            self._waits_for = session.gateway.ask(session, self.name, self.port, self._answered)
            return
        if self.verdict.grants and not self.verdict.inspect:
            spent = session.budgets.take_request(self.verdict.applied)
            if spent:
                self._refuse(spent)
                return
        self._timer.cancel()
        self._go()

    def _answered(self, allowed: bool, reason: str) -> None:
        """Somebody has decided about a held connection."""
        if self.state is not HELD:
            return
        session = self.session
        self._waits_for = None
        self.state = READING
        if not allowed:
            self._refuse(reason, session.policy.ask_origin)
            return
        self.verdict = decide(session.policy, self.name, self.address, self.port)
        if not self.verdict.allowed:
            self.approved = True
            self.verdict = Verdict(True, (), session.policy.ask_origin, reason)
        if self.verdict.inspect and not self.protocol:
            self._read_first()  # by a rule that was not there when it was held
        else:
            self._proceed()

    def _go(self) -> None:
        """Find the way to where the verdict leads."""
        verdict, session = self.verdict, self.session
        if verdict.inspect and self.protocol not in (first_bytes.TLS, first_bytes.HTTP):
            self._refuse(f"{verdict.origin} has requests inspected, and what came is neither TLS nor HTTP")
        elif verdict.inspect and session.authority is None:
            self._refuse(f"{verdict.origin} has requests inspected, for which the sandbox is to be started anew")
        elif verdict.target == "host":
            self._dial(LOOPBACK)
        elif verdict.target:
            port = self.port
            if not self.name:
                # A port of the sandbox's own localhost stands for one of the agent's, perhaps another.
                port = int(session.policy.local_ports[port].rpartition(":")[2])
            self.state = DIALLING
            self._over = session.gateway.dial_agent(session, verdict.target, port, self._visiting, self.revoke)
        elif self.name:
            self.state = RESOLVING
            answer = session.gateway.upstream.cached(self.name)
            if answer is not None:
                self._resolved(answer)
            else:
                session.gateway.upstream.resolve(session, self.name, self.port, self._resolved)
        else:
            self._choose([self.address])

    def _visiting(self, fd: int, reason: str) -> None:
        if self.state is not DIALLING:
            if fd >= 0:
                self.session.loop.close(fd)
        elif fd < 0:
            self._fail(UpstreamError("unreachable", reason))
        else:
            self._relay(fd)

    def _resolved(self, answer: Answer) -> None:
        if self.state is not RESOLVING:
            return
        if isinstance(answer, UpstreamError):
            self._fail(answer)
        else:
            self._choose(answer)

    def _choose(self, answer: list[bytes]) -> None:
        """Go to those of the addresses that may be dialled."""
        session, name, port = self.session, self.name, self.port
        # The same answer was judged by the same verdict a moment ago, more often than not.
        known = session.checked.get((name, port))
        if known is not None and known[0] is answer and known[1] is self.verdict:
            addresses = known[2]
        else:
            policy, verdict = session.policy, self.verdict
            objections = [
                objection(policy, verdict, name, address, port, own=is_of_this_host(address)) for address in answer
            ]
            addresses = [address for address, (reason, _) in zip(answer, objections, strict=True) if not reason]
            if not addresses:
                reason, rule = objections[0]
                self._refuse(f"{name}: {reason}" if name else reason, rule)
                return
            if len(session.checked) >= _MOST_CHECKED:
                session.checked.clear()
            session.checked[name, port] = answer, self.verdict, addresses
        if self.verdict.inspect:
            self._inspect(addresses)
        else:
            self._dial(addresses)

    def _dial(self, addresses: tuple[bytes, ...] | list[bytes]) -> None:
        self.state = DIALLING
        dial = self.session.gateway.upstream.dial_any(addresses, self.port, self._connected)
        if self.state is DIALLING:
            self._waits_for = dial

    def _connected(self, result: _socket.socket | UpstreamError, address: bytes) -> None:
        self._waits_for = None
        if isinstance(result, UpstreamError):
            self._fail(result)
        else:
            self.led_to = (address,)
            self._relay(result)

    def _relay(self, server: _socket.socket | int) -> None:
        session, first, shown = self.session, self._first, bool(self.protocol)
        self._let_through("spliced")
        self.state = RELAYING
        self.relay = Relay(
            session.loop,
            self.socket,
            server,
            self._relayed,
            idle=IDLE,
            meter=self._meter(),
            check=None if shown else self._show,
        )
        session.gateway.counters.set_up(_monotonic() - self.began)
        content = b""
        if shown and first is not None:
            content = bytes(first.content)
            self._first = None
        self.relay.start(content, unread=self._unread)

    def _meter(self) -> Callable[[int], bool] | None:
        grants, budgets = self.verdict.applied, self.session.budgets
        return budgets.meter(budgets.left(grants)) if grants else None

    def _inspect(self, addresses: list[bytes]) -> None:
        """Hand the client over to the inspecting half, which dials one of the addresses itself."""
        from osmoda.egress.inspection import InspectedConnection

        session, first = self.session, self._first
        self._let_through("inspected")
        authority = session.authority
        assert first is not None
        assert authority is not None  # what has none was refused before (`_go`)
        self._first = None
        self.state = INSPECTED
        self.led_to = tuple(addresses)
        flow = InspectedConnection(
            id=id(self),
            session=session.identity,
            name=self.name or address_text(self.address),
            port=self.port,
            tls=self.protocol == first_bytes.TLS,
            addresses=tuple([address_text(address) for address in addresses]),
            grants=self.verdict.grants,
            authority=authority,
            secrets=tuple([(name, *pair) for name, pair in session.secrets.items()]),
            upstream_authorities=session.gateway.upstream_authorities,
            on_record=self._noted,
            on_closed=self._inspected,
            take_request=session.budgets.take_request,
            on_moved=self._moved,
        )
        session.loop.unregister(self.socket.fileno())
        fd = self.socket.detach()
        try:
            session.gateway.inspector().adopt(fd, bytes(first.content), flow)
        except BaseException:
            session.loop.close(fd)  # nobody else knows it: the client would wait for ever
            raise

    def _let_through(self, action: str) -> None:
        """Put it on the ledger before anything passes; what it came to is in the log."""
        if self.session.ledger is not None:
            address = self.led_to[0] if self.led_to else self.address
            self.session.put_on_ledger(
                {
                    "event": "connection",
                    "name": self.name,
                    "address": address_text(address),
                    "port": self.port,
                    "protocol": self.protocol or first_bytes.OTHER,
                    "verdict": "allow",
                    "action": action,
                    "reason": self.verdict.reason if self.approved else "",
                    "rule": self.verdict.origin,
                }
            )

    # --- ends ---

    def _relayed(self, cause: str) -> None:
        """The relay has ended, and closed both sockets."""
        refusal = self._refusal
        if refusal is not None:
            self._record(refusal.verdict, refusal.action, refusal.reason, refusal.rule)
        elif cause == relay.USED_UP:
            spent = self.session.budgets.take_request(self.verdict.applied)
            self._record("deny", "revoked", spent or "the bytes that a rule allows are used up")
        elif cause == relay.FAULT:
            self._record("allow", "failed", cause)
        else:
            self._record("allow", "spliced", "" if cause == relay.ENDED else cause)
        self._end()

    def _noted(self, fields: dict[str, object]) -> None:
        """What the inspecting half has to say of a request."""
        self.session.record(**fields)

    def _moved(self, grants: tuple[Grant, ...], moved: int) -> None:
        """The inspecting half has moved bytes of requests that `grants` allow."""
        budgets = self.session.budgets
        meter = budgets.meter(grants)
        if meter is not None and not meter(moved):
            self.revoke(budgets.take_request(grants) or "the bytes that a rule allows are used up")

    def _inspected(self, flow: int, up: int, down: int) -> None:
        """The inspecting half has closed it."""
        if self.state is INSPECTED and flow == id(self):
            self._record("allow", "inspected", "", up=up, down=down)
            self._end()

    def recheck(self) -> None:
        """The policy has been edited: reset it when it is no longer allowed, and leave it alone when it is."""
        state, session = self.state, self.session
        if state in (HELD, REFUSED, ENDED) or self._refusal is not None:
            return  # questions are answered from the new policy where they are asked
        policy = session.policy
        before, verdict = self.verdict, decide(policy, self.name, self.address, self.port)
        asks = may_ask(policy, self.name, self.port)
        if self.approved and asks and not verdict.allowed:
            return
        self.verdict = verdict
        reason = self._no_longer(before)
        if reason and not (state is READING and asks):
            self.revoke(reason)
        elif state is READING:
            if not self.speaks_first and self._first is not None and not self._first.content:
                self._proceed()
        elif state in (RESOLVING, DIALLING):
            self._withdraw()
            self._again()
        elif state is INSPECTED:
            session.gateway.inspector().recheck(id(self), verdict.grants)
        elif self.relay is not None:
            self.relay.meter = self._meter()

    def _again(self) -> None:
        """Find the way anew under an edited policy; it may lead to fewer addresses, or be inspected."""
        if self.verdict.inspect and not self.protocol:
            self._read_first()
        else:
            self._go()

    def _no_longer(self, before: Verdict) -> str:
        """Why the new verdict does not allow what is open; empty when it does."""
        verdict = self.verdict
        if not verdict.allowed:
            return verdict.reason
        if self.hidden and not permits_hidden(verdict):
            return f"{verdict.origin} does not permit an encrypted hello (ech)"
        if self.state not in (RELAYING, INSPECTED):
            return ""
        if verdict.target != before.target:
            return f"{verdict.origin} leads it elsewhere"
        if verdict.inspect and self.state is RELAYING:
            return f"{verdict.origin} has its requests inspected, and this one was not"
        for address in self.led_to if not verdict.target else ():
            own = is_of_this_host(address)
            reason, _ = objection(self.session.policy, verdict, self.name, address, self.port, own=own)
            if reason:
                return reason
        return ""

    def revoke(self, reason: str) -> None:
        """Reset it now, both sides; nothing that is queued is delivered. Does nothing when it has ended."""
        self._break(Refusal("deny", "revoked", reason, self.verdict.origin))

    def part(self) -> None:
        """The sandbox has ended, or its gateway does: nobody is refused anything any more."""
        self._break(Refusal("allow", "ended", "the sandbox has ended", self.verdict.origin))

    def fault(self) -> None:
        """A callback of this connection has failed: cut it."""
        self._break(Refusal("allow", "failed", relay.FAULT, self.verdict.origin))

    def _break(self, refusal: Refusal) -> None:
        if self.state is ENDED:
            return
        if self.state is REFUSED and self._farewell is not None:
            self._farewell.cut()
            return
        self._refusal = refusal
        if self.state is RELAYING and self.relay is not None:
            self.relay.revoke()
        elif self.state is INSPECTED:
            self.session.gateway.inspector().revoke(id(self))
            self._record(refusal.verdict, refusal.action, refusal.reason, refusal.rule)
            self._end()
        else:
            self._cut()

    def _withdraw(self) -> None:
        """Wait for nobody any more, and say so to whoever was visited."""
        waits_for, self._waits_for = self._waits_for, None
        if isinstance(waits_for, Dial):
            waits_for.cancel()
        elif waits_for is not None:
            waits_for.withdraw(self._answered)
        over, self._over = self._over, None
        if over is not None:
            over()

    def _record(
        self, verdict: str, action: str, reason: str, rule: str | None = None, *, up: int = 0, down: int = 0
    ) -> None:
        session = self.session
        address = b"" if self.name else self.address
        if self.relay is not None:
            up, down = self.relay.bytes_up, self.relay.bytes_down
            address = self.led_to[0] if self.led_to else address
        session.gateway.counters.bytes_up += up
        session.gateway.counters.bytes_down += down
        session.record(
            event="connection",
            name=self.name,
            address=address_text(address),
            port=self.port,
            protocol=self.protocol or first_bytes.OTHER,
            verdict=verdict,
            action=action,
            reason=reason,
            rule=self.verdict.origin if rule is None else rule,
            bytes_up=up,
            bytes_down=down,
            duration=round(_monotonic() - self.began, 6),
        )

    def _end(self) -> None:
        """Let go of everything."""
        self.state = ENDED
        self._timer.cancel()
        self._withdraw()
        self._first = self._farewell = self.relay = None
        if self.name:
            self.session.table.release(self.name)
        self.session.connections.discard(self)
