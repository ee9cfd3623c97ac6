"""A plan: the ordered, immutable, serialisable list of operations that one profile means on this host."""

from __future__ import annotations

import marshal

from osmoda.host.frozen import frozen, values_of
from osmoda.sandbox.operations import Operation, confinement, isolation, mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import sha256
    from types import ModuleType
else:
    from _sha2 import sha256

FORMAT = 2

_CLASSES: dict[str, type[Operation]] = {}


def operation_class(name: str) -> type[Operation]:
    """The class of an operation. Raises KeyError. Those that few plans have are loaded for one that does."""
    if not _CLASSES:
        _learn(isolation, mounting, confinement)
    if name not in _CLASSES:
        from osmoda.sandbox.operations import networking, supervision, trust_store

        _learn(networking, supervision, trust_store)
    return _CLASSES[name]


def _learn(*modules: ModuleType) -> None:
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Operation):
                _CLASSES.setdefault(name, value)


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
    profile's file name, `digest` the SHA-256 of its meaning, `files` what it was made from, in the order of
    `Profile.files`. `memory` in bytes, `cpu` in cores and `pids` are the control group's limits, 0 for none. `egress`
    is the policy that a gateway is given, empty where there is no way out; `secrets` are the names it puts in,
    `inspects` tells that it looks into some connections.
    """

    tier: int
    name: str
    digest: str
    files: tuple[str, ...]
    operations: tuple[Operation, ...]
    environment: tuple[tuple[str, str], ...]
    passed: tuple[str, ...]
    workspace: str
    memory: int
    cpu: float
    pids: int
    egress: bytes
    secrets: tuple[str, ...]
    inspects: bool
    degraded: tuple[Degradation, ...]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def dump(self) -> bytes:
        """The plan as bytes, for the cache; `load` takes them back."""
        operations = tuple([(type(op).__name__, *values_of(op)) for op in self.operations])
        degraded = tuple([values_of(entry) for entry in self.degraded])
        return marshal.dumps((FORMAT, (*values_of(self)[:4], operations, *values_of(self)[5:-1], degraded)))

    def fingerprint(self) -> bytes:
        """SHA-256 of all of it: the same for equal plans, however they came about."""
        # Version 2 of the encoding: later ones mark shared objects, so that equal plans could differ.
        return sha256(marshal.dumps(marshal.loads(self.dump()), 2)).digest()

    @classmethod
    def load(cls, data: bytes) -> Plan:
        """Raises ValueError, EOFError, TypeError or LookupError on anything that `dump` did not write."""
        number, values = marshal.loads(data)
        if number != FORMAT:
            raise ValueError(f"plan format {number}, not {FORMAT}")
        operations = tuple([operation_class(name)(*fields) for name, *fields in values[4]])
        degraded = tuple([Degradation(*entry) for entry in values[-1]])
        return cls(*[*values[:4], operations, *values[5:-1], degraded])

    @property
    def unshared(self) -> int:
        """The CLONE_NEW* flags of the child; 0 for tier 0."""
        for operation in self.operations:
            if isinstance(operation, isolation.Namespaces):
                return operation.flags()
        return 0
