"""The operations a plan is made of.

An operation is a frozen class with `describe()`, one line for a person, and `apply()`, the system calls. `explain`,
`--dry-run` and the launch walk the same list, so what is printed is what is applied.
"""

from __future__ import annotations

from osmoda.host.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Setup:
    """What one launch knows and the plan does not: descriptors, the workspace, ids. Lives in the child."""

    __slots__ = (
        "host_gid",
        "host_uid",
        "kept",
        "layer",
        "listener",
        "master",
        "notify",
        "proc",
        "root",
        "slave",
        "sockets",
        "staged",
        "trees",
        "trust",
        "tty",
        "workspace",
    )

    def __init__(self, workspace: bytes, layer: bytes, host_uid: int, host_gid: int, tty: bool) -> None:
        self.workspace = workspace
        self.layer = layer
        self.host_uid = host_uid
        self.host_gid = host_gid
        self.root = -1
        self.proc = -1
        self.listener = -1
        self.master = -1
        self.notify = -1
        self.kept = 6
        self.slave = b""
        self.staged = 0
        self.tty = tty
        self.trees: dict[bytes, int] = {}
        self.sockets: tuple[int, ...] = ()
        self.trust: tuple[int, ...] = ()


@frozen
class Operation:
    """One step. `origin` is the `file:line` that asked for it, or the tier that always has it."""

    origin: str

    layer: ClassVar[str] = ""

    def describe(self) -> str:
        """One line: what this grants or takes away."""
        raise NotImplementedError(type(self).__name__)

    def apply(self, setup: Setup) -> None:
        """Do it, in the child; raises OSError with the call and the object."""
        raise NotImplementedError(type(self).__name__)
