"""What a policy answers: a verdict, and the grants that it rests on.

Nobody changes one. They are made at each first decision, so they hold what is at hand, and put the rest into words when
somebody asks: `host.frozen` would take longer than the decision itself.
"""

from __future__ import annotations

from _operator import attrgetter

TYPE_CHECKING = False

FIELDS = ("ports", "methods", "paths", "secret", "max_body", "max_bytes", "max_requests", "ech", "addresses")


class Terms:
    """What a rule says besides its host and its line."""

    __slots__ = FIELDS

    def __init__(
        self,
        ports: tuple[int, ...],
        methods: tuple[str, ...],
        paths: tuple[str, ...],
        secret: str,
        max_body: int,
        max_bytes: int,
        max_requests: int,
        ech: bool,
        addresses: tuple[str, ...],
    ) -> None:
        self.ports, self.methods, self.paths, self.secret = ports, methods, paths, secret
        self.max_body, self.max_bytes, self.max_requests = max_body, max_bytes, max_requests
        self.ech, self.addresses = ech, addresses

    def origin(self, reference: int) -> str:
        """`file:line` of an entry, for terms that know where their entries stand."""
        raise NotImplementedError

    @property
    def inspected(self) -> bool:
        """Whether it asks something of each request; it then grants nothing to a connection that nobody looks into."""
        return bool(self.methods or self.paths or self.secret) or self.max_body >= 0


class Grant:
    """A rule of `network.allow` as the gateway applies it.

    What is absent is empty, or -1 for a limit. `ports` is `(0,)` for every port; `max_body` and `max_bytes` are in
    bytes; `origin` is `file:line`.
    """

    __slots__ = ("_origin", "_terms", "host")

    if TYPE_CHECKING:
        ports: tuple[int, ...]
        methods: tuple[str, ...]
        paths: tuple[str, ...]
        secret: str
        max_body: int
        max_bytes: int
        max_requests: int
        ech: bool
        addresses: tuple[str, ...]
        inspected: bool
    else:
        ports, methods, paths, secret, max_body, max_bytes, max_requests, ech, addresses, inspected = [
            property(attrgetter(f"_terms.{name}")) for name in (*FIELDS, "inspected")
        ]

    def __init__(
        self,
        host: str,
        ports: tuple[int, ...] = (443,),
        methods: tuple[str, ...] = (),
        paths: tuple[str, ...] = (),
        secret: str = "",
        max_body: int = -1,
        max_bytes: int = -1,
        max_requests: int = -1,
        ech: bool = False,
        addresses: tuple[str, ...] = (),
        origin: str = "",
    ) -> None:
        self.host = host
        self._terms = Terms(ports, methods, paths, secret, max_body, max_bytes, max_requests, ech, addresses)
        self._origin: str | int = origin

    @property
    def origin(self) -> str:
        """The `file:line` it stands in."""
        if isinstance(self._origin, int):
            self._origin = self._terms.origin(self._origin)
        return self._origin

    @property
    def scope(self) -> tuple[object, ...]:
        """What it is about, budgets aside: a budget that is edited goes on from what has been used."""
        return self.host, self.ports, self.methods, self.paths, self.secret, self.max_body, self.ech, self.addresses

    @property
    def key(self) -> tuple[object, ...]:
        """What it grants, wherever that is written: the same before and after an edit of other lines."""
        return (*self.scope, self.max_bytes, self.max_requests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grant) and self.key == other.key and self.origin == other.origin

    def __hash__(self) -> int:
        return hash((self.key, self.origin))

    def __repr__(self) -> str:
        return f"Grant({', '.join([f'{name}={getattr(self, name)!r}' for name in ('host', *FIELDS, 'origin')])})"


class Verdict:
    """Allow or deny, and why.

    `grants` are all the rules that match, the narrowest host first. `reason` is a sentence for the user when denied.
    `inspect`: the connection has to be looked into. `target` is empty for the internet by this name; for names of ours
    it is "agent:NAME", "host" or "mesh:SERVER/AGENT".
    """

    __slots__ = ("_origin", "allowed", "grants", "inspect", "reason", "target")

    def __init__(
        self,
        allowed: bool,
        grants: tuple[Grant, ...] = (),
        origin: str = "",
        reason: str = "",
        inspect: bool = False,
        target: str = "",
    ) -> None:
        self.allowed, self.grants, self._origin = allowed, grants, origin
        self.reason, self.inspect, self.target = reason, inspect, target

    @property
    def origin(self) -> str:
        """The `file:line` that decided; "tier 2" and the like where nobody wrote one."""
        return self._origin or (self.grants[0].origin if self.grants else "")

    @property
    def spliced(self) -> tuple[Grant, ...]:
        """Those of `grants` that let a connection through which nobody looks into: they ask nothing of requests."""
        return tuple([grant for grant in self.grants if not grant.inspected])

    @property
    def applied(self) -> tuple[Grant, ...]:
        """Those of `grants` that hold for the connection as it is carried.

        A rule about requests does not where nobody looks into them, and lends neither its budget nor its addresses.
        """
        return self.grants if self.inspect else self.spliced

    def __repr__(self) -> str:
        names = ("allowed", "grants", "origin", "reason", "inspect", "target")
        return f"Verdict({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"
