"""What a gateway counts: plain numbers, kept on the way and put into words elsewhere (`metrics`)."""

from __future__ import annotations

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds in seconds of the time from accept to the first byte passed on."""


class Counters:
    """Since the gateway started."""

    __slots__ = (
        "accepted",
        "bytes_down",
        "bytes_up",
        "dropped",
        "faults",
        "names",
        "names_refused",
        "records",
        "setup",
        "setup_sum",
        "verdicts",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.faults = 0
        self.records = 0
        self.names = 0  # DNS queries that got an address
        self.names_refused = 0
        self.dropped = 0  # queries of sandboxes that have ended which got no answer
        self.verdicts: dict[tuple[str, str, str], int] = {}
        self.setup = [0] * (len(BUCKETS) + 1)
        self.setup_sum = 0.0

    def decided(self, event: str, verdict: str, action: str) -> None:
        """A connection or request was decided: ("connection", "allow", "spliced") for instance."""
        key = (event, verdict, action)
        self.verdicts[key] = self.verdicts.get(key, 0) + 1

    def set_up(self, seconds: float) -> None:
        """A connection was passed on this long after it was accepted."""
        self.setup_sum += seconds
        for index, bound in enumerate(BUCKETS):
            if seconds <= bound:
                self.setup[index] += 1
                return
        self.setup[-1] += 1
