"""What of a sandbox's network is counted: budgets of rules, new names, open connections.

A connection counts for each budget that matches it, and is let through as long as one of the rules that match has
something left; where a rule without a budget matches too, nothing is counted. What has been used up stays so when the
profile is edited: the counts are kept by what a rule is about.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.egress.policy import Grant

NAMES_PER_MINUTE = 256
MOST_NAMES = 4096
MOST_CONNECTIONS = 1024


class Budgets:
    """The counts of one sandbox. The limits are per sandbox, too."""

    __slots__ = ("_connections", "_names", "_names_per_minute", "_oldest", "_times", "_total", "_used")

    def __init__(
        self,
        *,
        connections: int = MOST_CONNECTIONS,
        names: int = MOST_NAMES,
        names_per_minute: int = NAMES_PER_MINUTE,
    ) -> None:
        self._connections = connections
        self._total = names
        self._names_per_minute = names_per_minute
        self._names: set[str] = set()
        self._times: list[float] = []  # of the last new names; a ring, once it is full
        self._oldest = 0
        self._used: dict[tuple[object, ...], list[int]] = {}  # by Grant.scope: requests, bytes

    def connect(self, opened: int) -> str:
        """Whether one more connection fits beside `opened` ones: empty, or why not."""
        if opened < self._connections:
            return ""
        return f"the sandbox has {opened} connections open, and {self._connections} are the most"

    def new_name(self, name: str, wildcard: bool, now: float) -> str:
        """Whether `name` may be looked up: empty, or why not. `now` is in seconds and never goes back.

        Names that a profile lists (`wildcard` false) are free. Each of the others carries as much out, to whoever
        answers for the domain, as fits into a name: new ones are limited.
        """
        if not wildcard or name in self._names:
            return ""
        if len(self._names) >= self._total:
            return f"{name} is one name too many: {self._total} that no rule names in full are the most for a sandbox"
        if len(self._times) < self._names_per_minute:
            self._times.append(now)
        elif now - self._times[self._oldest] < 60:
            return (
                f"{name} is one name too many: {self._names_per_minute} in a minute that no rule names in full are the "
                "most"
            )
        else:
            self._times[self._oldest] = now
            self._oldest = (self._oldest + 1) % self._names_per_minute
        self._names.add(name)
        return ""

    def left(self, grants: Sequence[Grant]) -> tuple[Grant, ...]:
        """Those of `grants` that are not used up."""
        return tuple([grant for grant in grants if not self._spent(grant)])

    def take_request(self, grants: Sequence[Grant]) -> str:
        """Count one connection, or one request of an inspected one, for the rules that match it.

        Empty, or why it may not be: all of them are used up.
        """
        budgeted = False
        for grant in grants:
            if grant.max_requests < 0 and grant.max_bytes < 0:
                return ""
            budgeted = budgeted or not self._spent(grant)
        if not budgeted:
            return self._refusal(grants)
        for used in self._counts(grants):
            used[0] += 1
        return ""

    def meter(self, grants: Sequence[Grant]) -> Callable[[int], bool] | None:
        """What a connection's bytes are told to, as they are moved; None when none of `grants` limits them.

        `grants` are those that let it through (`left`). The meter answers False as soon as all of them are used up.
        """
        if not grants or min([grant.max_bytes for grant in grants]) < 0:
            return None
        counts = self._counts(grants)
        limits = [(self._used[grant.scope], grant.max_bytes) for grant in grants]

        def count(moved: int) -> bool:
            for used in counts:
                used[1] += moved
            for used, most in limits:  # noqa: SIM110 - half the time of any()
                if used[1] <= most:
                    return True
            return False

        return count

    def _counts(self, grants: Sequence[Grant]) -> list[list[int]]:
        """The counts of `grants`, those that share one once."""
        found: dict[tuple[object, ...], list[int]] = {}
        for grant in grants:
            if grant.max_requests >= 0 or grant.max_bytes >= 0:
                found[grant.scope] = self._used.setdefault(grant.scope, [0, 0])
        return list(found.values())

    def _spent(self, grant: Grant) -> bool:
        if grant.max_requests < 0 and grant.max_bytes < 0:
            return False
        requests, moved = self._used.get(grant.scope, (0, 0))
        return 0 <= grant.max_requests <= requests or 0 <= grant.max_bytes <= moved

    def _refusal(self, grants: Sequence[Grant]) -> str:
        if not grants:
            return "no rule lets it through"
        grant = grants[0]
        requests, _ = self._used.get(grant.scope, (0, 0))
        if 0 <= grant.max_requests <= requests:
            return f"{grant.origin} allows {grant.max_requests} requests in all (max_requests), and they are used up"
        return f"{grant.origin} allows {grant.max_bytes} bytes in all (max_bytes), and they are used up"
