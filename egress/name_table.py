"""Names and the addresses that stand for them: one table a sandbox, which nothing but its gateway reads.

The addresses are of the ranges set aside for benchmarks (RFC 2544 and RFC 5180), which lead nowhere on the internet. A
sandbox has all of both to itself: the same address means another name in another sandbox.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, deque
else:
    from _collections import OrderedDict, deque

RESOLVER_IPV4_TEXT = "198.18.0.1"
RESOLVER_IPV6_TEXT = "2001:2::1"
RESOLVER_IPV4 = b"\xc6\x12\x00\x01"
RESOLVER_IPV6 = b"\x20\x01\x00\x02" + bytes(11) + b"\x01"

NETWORK_IPV4 = "198.18.0.0/15"
NETWORK_IPV6 = "2001:2::/48"
NETWORK_IPV4_PACKED = (b"\xc6\x12\x00\x00", 15)
NETWORK_IPV6_PACKED = (b"\x20\x01\x00\x02" + bytes(12), 48)
"""First address and length in bits."""

RESERVED = 256
"""The first addresses of the IPv4 range stand for no name: the resolver is among them."""

INDEXES = (1 << 17) - RESERVED
"""How many addresses can stand for names: what is left of the IPv4 range, the smaller one."""

CAPACITY = 65536
"""How many names a table holds; fewer than `INDEXES`, so that addresses can rest (`NameTable`)."""

_FIRST_IPV4 = int.from_bytes(NETWORK_IPV4_PACKED[0], "big") + RESERVED
_NAMES_IPV6 = b"\x20\x01\x00\x02\x00\x00\x00\x01"  # 2001:2:0:1::/64


class TableFull(Exception):
    """Every name that the table can hold is in use by an open connection. The message is for the person."""


class NameTable:
    """Which address stands for which name, both ways; every operation takes constant time.

    A name keeps its address for as long as it is in the table. When the table is full, the name that was not asked for
    or connected to for longest goes, but never one that an open connection holds.

    A program may use an address long after its name went: many keep them beyond the TTL. To it that address must mean
    nothing, rather than another name, whose rule may allow more. So an address that is given up goes to the end of a
    queue, behind all those that never stood for a name and all given up before it: with `capacity` 65536 it comes to
    stand for another name when 65,280 more names have been evicted, and not before.
    """

    __slots__ = ("_capacity", "_fresh", "_held", "_idle", "_names", "_resting")

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Make an empty table for at most `capacity` names (1 to INDEXES - 1). Raises ValueError."""
        if not 0 < capacity < INDEXES:
            raise ValueError(f"a table of names holds from 1 to {INDEXES - 1} of them, not {capacity}")
        self._capacity = capacity
        self._names: dict[int, str] = {}
        # Names that no connection holds, those least recently used first. (A plain dict finds its first key in linear
        # time once many have been deleted in front of it.)
        self._idle: OrderedDict[str, int] = OrderedDict()
        self._held: dict[str, list[int]] = {}  # index, number of holders
        self._fresh = 0  # this index and those above never stood for a name
        self._resting: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._names)

    def bind(self, name: str) -> int:
        """The index of `name`, which is canonical; a new one where it has none. Raises TableFull."""
        index = self._idle.get(name)
        if index is not None:
            self._idle.move_to_end(name)
            return index
        held = self._held.get(name)
        if held is not None:
            return held[0]
        if len(self._names) >= self._capacity:
            if not self._idle:
                raise TableFull(
                    f"{self._capacity} names are in use by open connections, which is the most there can be"
                )
            _, evicted = self._idle.popitem(last=False)
            del self._names[evicted]
            self._resting.append(evicted)
        if self._fresh < INDEXES:
            index = self._fresh
            self._fresh += 1
        else:
            index = self._resting.popleft()
        self._names[index] = name
        self._idle[name] = index
        return index

    def name_of(self, address: bytes) -> str | None:
        """The name that a packed address (4 or 16 bytes) stands for; None for any other bytes."""
        if len(address) == 4:
            return self._names.get(int.from_bytes(address, "big") - _FIRST_IPV4)
        if len(address) == 16 and address[:8] == _NAMES_IPV6:
            return self._names.get(int.from_bytes(address[8:], "big"))
        return None

    def hold(self, name: str) -> None:
        """Keep `name` in the table until it is released as often as held. Raises KeyError for one that is not in it."""
        held = self._held.get(name)
        if held is not None:
            held[1] += 1
        else:
            self._held[name] = [self._idle.pop(name), 1]

    def release(self, name: str) -> None:
        """Undo one `hold`; the name counts as used just now. Raises KeyError for a name that is not held."""
        held = self._held[name]
        held[1] -= 1
        if held[1] == 0:
            del self._held[name]
            self._idle[name] = held[0]

    @staticmethod
    def ipv4(index: int) -> bytes:
        """The packed IPv4 address of an index."""
        return (_FIRST_IPV4 + index).to_bytes(4, "big")

    @staticmethod
    def ipv6(index: int) -> bytes:
        """The packed IPv6 address of an index."""
        return _NAMES_IPV6 + index.to_bytes(8, "big")
