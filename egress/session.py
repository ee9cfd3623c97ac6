"""One sandbox in the gateway's hands: its policy, names, budgets, sockets and connections.

Everything that comes through the sockets was made by the program inside, and is hostile.
"""

from __future__ import annotations

import _socket
import posix
import time

from osmoda.egress.budgets import Budgets
from osmoda.egress.connection import Connection
from osmoda.egress.loop import Acceptor
from osmoda.egress.name_service import NameService
from osmoda.egress.name_table import NameTable, TableFull
from osmoda.egress.registration import SOCKETS
from osmoda.egress.relay import adopt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.asking import Desk
    from osmoda.egress.authority import Authority
    from osmoda.egress.gateway import Gateway
    from osmoda.egress.loop import Timer
    from osmoda.egress.policy import Policy, Verdict
    from osmoda.egress.registration import Channel, Opening
    from osmoda.egress.resolver import Found, Refused
    from osmoda.egress.visits import Visit

_SOL_IP, _SOL_IPV6, _SO_ORIGINAL_DST = 0, 41, 80
_TTL = 60  # seconds that a program may keep an address; it stays its name's for as long as it is used
_TOLD_PER_SECOND = 100
_WARM_UP = 0.02  # seconds from the sockets' coming to the loading of what answers questions; a question loads it, too
_NAMES_NOTED = 20  # a second
_INNER_SOCKETS = 8  # made inside at a time, for connections from other agents
_ON_LEDGER = ("event", "name", "address", "port", "protocol", "verdict", "action", "reason", "rule", "unnoted")
_MOST_WAITING = 64
_BLOCKED, _PROHIBITED, _NETWORK_ERROR = 15, 18, 23  # RFC 8914, section 4


class Session:
    """One sandbox. `token`, `files`, `profile` and `identity` are as whoever runs it gave them (`Opening`)."""

    def __init__(self, gateway: Gateway, channel: Channel, opening: Opening, policy: Policy) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.identity = opening.identity
        self.agent = opening.agent
        self.tier = opening.tier
        self.profile = opening.profile
        self.token = opening.token
        self.files = opening.files
        self.inspects = opening.inspects
        self.secrets = {name: (placeholder, value) for name, placeholder, value in opening.secrets}
        self.policy = policy
        self.table = NameTable()
        self.budgets = Budgets()
        self.connections: set[Connection] = set()
        self.checked: dict[tuple[str, int], tuple[list[bytes], Verdict, list[bytes]]] = {}
        """Which addresses of an answer may be dialled, as a verdict had it (`Connection`)."""
        self.approved: set[tuple[str, int]] = set()
        self.desk: Desk | None = None  # its questions, once there were any
        self.visits: set[Visit] = set()  # connections of other agents to what it serves
        self.deaf: dict[int, float] = {}  # ports that it serves where nothing listened, and until when that is believed
        self.authority: Authority | None = None
        self.opened = time.time()
        self.ended = False
        self._channel = channel
        self._acceptors: list[Acceptor] = []
        self._names: NameService | None = None
        self._warming: Timer | None = None
        self._inner: list[int] = []
        self._waiting: list[Callable[[int], None]] = []
        self._ipv6 = True
        self._names_second = 0
        self._names_noted: set[str] = set()
        self.unnoted = 0
        """Refused names that no record tells of, since the last one that says so."""
        self._second = 0
        self._told = 0
        self.ledger = gateway.use_ledger()
        self.ledger_second = 0
        self.ledger_noted = 0
        """Verdicts of that second (see `ledger_feed`)."""

    # --- its sockets ---

    def attach(self, descriptors: list[int]) -> None:
        """Take the sockets that were made inside, in the order of `registration.SOCKETS`. Raises ValueError."""
        if self._acceptors or len(descriptors) not in (len(SOCKETS) // 2, len(SOCKETS)):
            for fd in descriptors:
                posix.close(fd)
            raise ValueError("the sockets of a sandbox are passed once, all of them")
        listeners = [_socket.socket(fileno=fd) for fd in descriptors[::3]]
        udp, tcp = descriptors[1::3], descriptors[2::3]
        self._ipv6 = len(descriptors) == len(SOCKETS)
        self._names = NameService(
            self.loop,
            udp,
            tcp,
            self.look_up,
            reverse=self.table.name_of,
            refused=lambda name, reason: self.refuse_name(name, reason, ""),
        )
        # Not at once: the program is about to start, and would share the processor with it.
        self._warming = self.loop.call_later(_WARM_UP, self._names.prewarm)
        self._acceptors = [self._accepting(listener) for listener in listeners]

    def _accepting(self, listener: _socket.socket) -> Acceptor:
        level, size = (_SOL_IP, 16) if listener.family == _socket.AF_INET else (_SOL_IPV6, 28)
        return Acceptor(self.loop, listener, lambda fd: self._accepted(fd, level, size), self.gateway.out_of_something)

    def _accepted(self, fd: int, level: int, size: int) -> None:
        if self.ledger is not None and self.ledger.when_decided(lambda: self._accepted(fd, level, size)):
            return
        if self.ended:
            self.loop.close(fd)
            return
        accepted = adopt(fd)
        try:
            packed = accepted.getsockopt(level, _SO_ORIGINAL_DST, size)
        except OSError:
            # Already gone, or it came without a redirect: nobody asked for anything that could be decided.
            accepted.close()
            return
        port = int.from_bytes(packed[2:4], "big")
        address = packed[4:8] if level == _SOL_IP else packed[8:24]
        self.gateway.counters.accepted += 1
        Connection(self, accepted, (address, port))

    def look_up(self, name: str) -> Found | Refused:
        """What the resolver answers for `name`: an address of its own table, or why there is none."""
        from osmoda.egress.resolver import Found, Refused

        verdict = self.policy.decide_name(name)
        held = False
        if not verdict.allowed:
            held = self.policy.ask and not self.policy.denied_explicitly(name, 0)
            if not held:
                self.refuse_name(name, verdict.reason, verdict.origin)
                # Not REFUSED: the C library takes that for a passing failure, and asks again and again.
                return Refused("NXDOMAIN", _BLOCKED, verdict.reason)
        failure = "" if verdict.target else self.gateway.upstream.known_failure(name)
        if failure:
            return Refused("NXDOMAIN", _NETWORK_ERROR, failure)
        exact = any(grant.host == name for grant in verdict.grants) or bool(verdict.target)
        reason = self.budgets.new_name(name, not exact, self.loop.now)
        if reason:
            self.refuse_name(name, reason, verdict.origin)
            return Refused("REFUSED", _PROHIBITED, reason)
        try:
            index = self.table.bind(name)
        except TableFull as error:
            self.refuse_name(name, str(error), verdict.origin)
            return Refused("REFUSED", _PROHIBITED, str(error))
        self.gateway.counters.names += 1
        return Found(self.table.ipv4(index), self.table.ipv6(index) if self._ipv6 else b"", _TTL)

    def refuse_name(self, name: str, reason: str, origin: str) -> None:
        """Note that a name was not answered: each once a second, and so many, or one sandbox could fill the log."""
        self.gateway.counters.names_refused += 1
        second = int(self.loop.now)
        if second != self._names_second:
            self._names_second = second
            self._names_noted.clear()
        if name in self._names_noted or len(self._names_noted) >= _NAMES_NOTED:
            self.unnoted += 1
            return
        self._names_noted.add(name)
        unnoted, self.unnoted = self.unnoted, 0
        more = {"unnoted": unnoted} if unnoted else {}
        self.record(
            event="name",
            name=name,
            protocol="dns",
            verdict="deny",
            action="refused",
            reason=reason,
            rule=origin,
            **more,
        )

    # --- sockets inside, for connections from other agents ---

    def take_inner_socket(self, done: Callable[[int], None]) -> None:
        """`done` gets a non-blocking TCP socket made in the sandbox's namespace, or -1 when there is none to be had.

        It is of AF_INET6 and reaches 127.0.0.1 as ::ffff:127.0.0.1; without IPv6, of AF_INET.
        """
        if self._inner:
            done(self._inner.pop())
            return
        if len(self._waiting) >= _MOST_WAITING or self.ended:
            done(-1)
            return
        self._waiting.append(done)
        if len(self._waiting) == 1:
            self._say("want", _INNER_SOCKETS)

    def provide(self, descriptors: list[int]) -> None:
        """Sockets that were asked for."""
        self._inner.extend(descriptors)
        waiting, self._waiting = self._waiting, []
        for index, done in enumerate(waiting):
            if self._inner:
                done(self._inner.pop())
            elif descriptors:
                self._waiting = waiting[index:]
                self._say("want", _INNER_SOCKETS)
                return
            else:
                done(-1)

    def dropped_queries(self) -> int:
        """How many DNS queries of the sandbox got no answer: it asked too fast, or from where no answer gets to."""
        return self._names.dropped() if self._names is not None else 0

    # --- the policy, and what is open under it ---

    def replace_policy(self, policy: Policy) -> int:
        """Put an edited policy in force: connections it no longer allows are reset. How many those were."""
        self.policy = policy
        before = len(self.connections)
        for connection in tuple(self.connections):
            connection.recheck()
        return before - len(self.connections)

    def approve(self, name: str, port: int) -> None:
        """Let `name` at `port` through for as long as this sandbox runs."""
        self.approved.add((name, port))

    # --- what is said about it ---

    def record(self, **fields: object) -> None:
        """Write a record of this sandbox; a refusal is told to whoever runs it, too."""
        entry: dict[str, object] = {
            "time": time.time(),
            "sandbox": self.identity,
            "agent": self.agent,
            "tier": self.tier,
            "profile": self.profile,
            **fields,
        }
        self.gateway.write(entry)
        if entry.get("verdict") == "deny":
            self.put_on_ledger(fields)
            self._tell(entry)

    def put_on_ledger(self, fields: dict[str, object]) -> None:
        """A verdict: what was refused, or is about to be let through."""
        if self.ledger is not None:
            told = {name: fields[name] for name in _ON_LEDGER if name in fields}
            self.ledger.note(self, told)

    def _tell(self, entry: dict[str, object]) -> None:
        second = int(self.loop.now)
        if second != self._second:
            self._second, self._told = second, 0
        self._told += 1
        if self._told > _TOLD_PER_SECOND:
            return
        name, port = entry.get("name") or entry.get("address") or "", entry.get("port") or 0
        self._say("denial", entry["time"], name, port, entry.get("reason", ""), entry.get("rule", ""))

    def _say(self, kind: str, *values: object) -> None:
        try:
            self._channel.say(kind, *values)
        except OSError:
            return  # it is gone, which the loop will hear of, or does not read, and can do without

    def stop_accepting(self) -> None:
        """Take no more connections: those to come wait, in a socket that whoever runs it keeps, for another gateway."""
        for acceptor in self._acceptors:
            acceptor.close()

    def close(self) -> None:
        """The sandbox has ended, or the gateway ends: let go of all that was its."""
        if self.ended:
            return
        self.ended = True
        for connection in tuple(self.connections):
            connection.part()
        if self.desk is not None:
            from osmoda.egress import asking

            asking.session_ended(self)
        if self.visits:
            from osmoda.egress import visits

            visits.session_ended(self)
        if self.ledger is not None:
            self.ledger.sum_up(self)
        self.gateway.counters.dropped += self.dropped_queries()
        if self._warming is not None:
            self._warming.cancel()
        if self._names is not None:
            self._names.close()
        self.stop_accepting()
        self.provide([])
        for fd in self._inner:
            posix.close(fd)
        self._inner.clear()
        self.loop.unregister(self._channel.fileno())
        self._channel.close()
