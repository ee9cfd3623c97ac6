"""A plan: the ordered, immutable, serialisable list of operations that one profile means on this host."""

from __future__ import annotations

import marshal

from osmoda.host.frozen import frozen, values_of
from osmoda.sandbox.operations import Operation, confinement, isolation, mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 1

_CLASSES = {
    name: value
    for module in (isolation, mounting, confinement)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Operation)
}


@frozen
class Degradation:
    """A layer this host lacks and the profile lets go by name."""

    layer: str
    reason: str
    origin: str


@frozen
class Plan:
    """What is applied, in order; in tier 0 only limits are.

    `environment` is the whole environment inside, before `passed` names are taken from the caller's. `name` is the
    profile's file name, `digest` the SHA-256 of its meaning. `memory` in bytes, `cpu` in cores and `pids` are the
    control group's limits, 0 for none.
    """

    tier: int
    name: str
    digest: str
    operations: tuple[Operation, ...]
    environment: tuple[tuple[str, str], ...]
    passed: tuple[str, ...]
    workspace: str
    memory: int
    cpu: float
    pids: int
    degraded: tuple[Degradation, ...]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def dump(self) -> bytes:
        """The plan as bytes, for the cache; `load` takes them back."""
        operations = tuple([(type(op).__name__, *values_of(op)) for op in self.operations])
        degraded = tuple([values_of(entry) for entry in self.degraded])
        return marshal.dumps((FORMAT, (*values_of(self)[:3], operations, *values_of(self)[4:-1], degraded)))

    @classmethod
    def load(cls, data: bytes) -> Plan:
        """Raises ValueError, EOFError, TypeError or LookupError on anything that `dump` did not write."""
        number, values = marshal.loads(data)
        if number != FORMAT:
            raise ValueError(f"plan format {number}, not {FORMAT}")
        operations = tuple([_CLASSES[name](*fields) for name, *fields in values[3]])
        degraded = tuple([Degradation(*entry) for entry in values[-1]])
        return cls(*[*values[:3], operations, *values[4:-1], degraded])

    @property
    def unshared(self) -> int:
        """The CLONE_NEW* flags of the child; 0 for tier 0."""
        for operation in self.operations:
            if isinstance(operation, isolation.Namespaces):
                return operation.flags()
        return 0
