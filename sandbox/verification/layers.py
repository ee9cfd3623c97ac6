"""Which layer of a plan refused an attack: told by the evidence, or not at all.

The evidence is the errno, the call with its registers, what it was about, and the plan. The system call filter is asked
by simulating the very program that is installed, paths by the code that `why` answers with. Where nothing in the plan
accounts for a refusal there is no layer: the attack then counts as one that was not judged.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.sandbox import bpf, syscall_numbers, verdict
from osmoda.sandbox.battery.kernel import MACHINE
from osmoda.sandbox.host_files import HostFiles
from osmoda.sandbox.operations import confinement, isolation, mounting, networking

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from osmoda.sandbox.battery import Answer
    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.operations import Operation
    from osmoda.sandbox.plan import Plan

_BIND, _CONNECT = 1, 2  # LANDLOCK_ACCESS_NET_*
_ABSTRACT, _SIGNAL = 1, 2  # LANDLOCK_SCOPE_*
_PATH_ERRORS = {
    "mounts": {errno.ENOENT, errno.EROFS, errno.EACCES, errno.ECONNREFUSED, errno.ENOTDIR, errno.EXDEV},
    "workspace": {errno.ENOENT, errno.EROFS, errno.EACCES},
    # Landlock is asked last by the kernel: what is also read-only, or not permitted by its modes, says so first.
    "landlock": {errno.EACCES, errno.EROFS, errno.EXDEV},
    "permissions": {errno.EACCES, errno.EPERM, errno.EROFS},
    "namespaces": {errno.ENOENT, errno.EACCES, errno.ESRCH},
}


@dataclass(frozen=True, slots=True)
class Layer:
    """`origin` is the file:line (or "tier N") that has it, `reason` a clause; `reported`: the monitor heard of it."""

    name: str
    origin: str
    reason: str
    reported: bool = False


class Layers:
    """The layers of one plan, asked about what a run of it was refused."""

    def __init__(self, plan: Plan, workspace: bytes, outcome: Outcome) -> None:
        self._plan = plan
        self._workspace = workspace
        self._outcome = outcome
        self._host = HostFiles(plan)
        self._reported = {
            (denial.number, *(one & 0xFFFFFFFF for one in denial.arguments[:2])) for denial in outcome.denials
        }

        self._by_kind: dict[str, Callable[..., Layer | None]] = {
            "path": self._path,
            "process": self._process,
            "init": self._init,
            "descriptor": self._descriptor,
            "environment": self._environment,
            "namespace": self._namespace,
            "capability": self._capability,
            "privilege": self._privilege,
            "filter-state": self._filter_state,
            "landlock": self._landlock,
            "identity": self._identity,
            "abstract": self._abstract,
            "address": self._address,
            "bind": self._bind,
            "ipc": self._ipc,
            "interfaces": self._interfaces,
            "name": self._name,
            "limit": self._limit,
        }

    def that_refused(self, answer: Answer) -> Layer | None:
        """The layer that `answer` (a refused one) is the work of; None where the evidence names none."""
        kind, *rest = answer.about or ("",)
        if kind == "abi":
            return self._filter_of_abi(answer, *rest)
        filtered = self._filter(answer)
        if filtered is not None:
            return filtered
        # Of what is not in this table (a system call, a kind of socket, the bits of a mode) only the filter decides.
        asked = self._by_kind.get(kind)
        return asked(answer.number, answer.call, *rest) if asked is not None else None

    def _find[One: Operation](self, kind: type[One]) -> One | None:
        return next((op for op in self._plan.operations if isinstance(op, kind)), None)

    def _of(self, kind: type[Operation], reason: str, name: str = "") -> Layer | None:
        """The layer of an operation, if the plan has it."""
        found = self._find(kind)
        return None if found is None else Layer(name or found.layer, found.origin, reason)

    def _namespace_of(self, name: str, reason: str) -> Layer | None:
        found = self._find(isolation.Namespaces)
        return None if found is None or name not in found.names else Layer(found.layer, found.origin, reason)

    # The system call filter

    def _filter(self, answer: Answer) -> Layer | None:
        number = syscall_numbers.KNOWN[MACHINE].get(answer.call)
        if number is None or not answer.registers:
            return None
        return self._simulated(answer, number, syscall_numbers.AUDIT_ARCH[MACHINE], answer.registers)

    def _filter_of_abi(self, answer: Answer, architecture: int, number: int) -> Layer | None:
        return self._simulated(answer, number, architecture, ())

    def _simulated(self, answer: Answer, number: int, architecture: int, registers: tuple[int, ...]) -> Layer | None:
        found = self._find(confinement.Seccomp)
        if found is None:
            return None
        result = bpf.run(bpf.decode(found.program), nr=number, arch=architecture, args=registers)
        action = result & bpf.ACTION
        error = {bpf.ERRNO: result & 0xFFFF, bpf.USER_NOTIF: errno.EPERM}.get(action, 0)
        if error != answer.number:
            return None
        first = (*(one & 0xFFFFFFFF for one in registers[:2]), 0, 0)[:2]
        reported = (number, *first) in self._reported
        if action == bpf.USER_NOTIF and not reported and not self._full():
            return None  # the filter would have told the monitor, and it has heard nothing
        return Layer(found.layer, found.origin, f"the filter answers {bpf.describe(result)}", reported)

    def _full(self) -> bool:
        """Whether the monitor has stopped to keep distinct denials (`monitor`)."""
        return len(self._outcome.denials) >= 512

    # Paths, as `why` answers

    def _path(self, number: int, call: str, path: str, mode: str) -> Layer | None:
        del call
        found = verdict.path_verdict(self._plan, self._workspace, path, mode, host=self._host)  # type: ignore[arg-type]
        if found.allowed or number not in _PATH_ERRORS.get(found.layer, ()):
            return None
        return Layer(found.layer, found.origin, found.reason)

    # Everything else

    def _process(self, number: int, call: str) -> Layer | None:
        if number in (errno.ESRCH, errno.ENOENT):
            return self._namespace_of("pid", "there is no such process inside")
        if number == errno.EPERM and call == "kill":
            return self._scope(_SIGNAL, "signals stay inside")
        return None

    def _init(self, number: int, call: str, *rest: Any) -> Layer | None:
        del call, rest
        if number in (errno.EACCES, errno.EPERM):
            return self._of(confinement.Capabilities, "pid 1 lets nobody look into it who has no capability")
        return None

    def _descriptor(self, number: int, call: str) -> Layer | None:
        del call
        if number == errno.EACCES:
            return self._of(confinement.Landlock, "no rule gives a right where it leads")
        return self._of(confinement.Terminal, "descriptors above 2 are closed") if number == errno.EBADF else None

    def _environment(self, number: int, call: str) -> Layer | None:
        del call
        return None if number else Layer("environment", f"tier {self._plan.tier}", "only what is declared is passed")

    def _namespace(self, number: int, call: str) -> Layer | None:
        del call
        if number == errno.ENOSPC:
            return self._of(confinement.NoNestedNamespaces, "no namespace may be made inside")
        return self._capability(number, "")

    def _capability(self, number: int, call: str) -> Layer | None:
        del call
        if number in (0, errno.EPERM):
            return self._of(confinement.Capabilities, "no capability is left")
        return None

    def _privilege(self, number: int, call: str) -> Layer | None:
        del call
        return None if number else self._of(confinement.Capabilities, "no_new_privs: files give no privileges")

    def _filter_state(self, number: int, call: str) -> Layer | None:
        del call
        return None if number else self._of(confinement.Seccomp, "a filter is in force")

    def _landlock(self, number: int, call: str) -> Layer | None:
        del call
        return self._of(confinement.Landlock, "a rule set is in force") if number == errno.E2BIG else None

    def _identity(self, number: int, call: str) -> Layer | None:
        del call
        if number in (0, errno.EINVAL, errno.EPERM):
            return self._of(isolation.Identity, "there is no other user inside, and this one is nobody else outside")
        return None

    def _scope(self, bit: int, reason: str) -> Layer | None:
        found = self._find(confinement.Landlock)
        return Layer(found.layer, found.origin, reason) if found is not None and found.scoped & bit else None

    def _abstract(self, number: int, call: str) -> Layer | None:
        del call
        if number == errno.ECONNREFUSED:
            return self._namespace_of("network", "its names are those of another network namespace")
        return self._scope(_ABSTRACT, "abstract sockets stay inside") if number == errno.EPERM else None

    def _address(self, number: int, call: str, host: str, port: int) -> Layer | None:
        del call, host
        if number == errno.EACCES:
            return self._ports(_CONNECT, port, "no rule lets this port be connected to")
        if number in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH):
            return self._network("no route leads there")
        if number == errno.ECONNREFUSED:
            return self._network("its loopback is the sandbox's own, where nobody listens")
        if number in (errno.EPERM, errno.ECONNRESET) and self._plan.egress:
            return self._network("nothing passes but TCP and DNS to what is listed")
        return None

    def _network(self, reason: str) -> Layer | None:
        """The network of its own, if the plan makes one: a namespace, and what is set up in it."""
        if self._namespace_of("network", reason) is None:
            return None
        return self._of(networking.NamesOnly, reason) or self._of(isolation.Loopback, reason)

    def _ports(self, right: int, port: int, reason: str) -> Layer | None:
        found = self._find(confinement.Landlock)
        if found is None or not found.handled_net & right:
            return None
        granted = found.bind if right == _BIND else found.connect
        return None if port in granted else Layer(found.layer, found.origin, reason)

    def _bind(self, number: int, call: str, port: int) -> Layer | None:
        del call
        if number == errno.EACCES:
            return self._ports(_BIND, port, "no rule lets this port be bound")
        return None

    def _ipc(self, number: int, call: str) -> Layer | None:
        del call
        if number == errno.ENOENT:
            return self._namespace_of("ipc", "its keys are those of another IPC namespace")
        return None

    def _interfaces(self, number: int, call: str) -> Layer | None:
        del call
        return None if number else self._network("its network has a loopback and nothing else")

    def _name(self, number: int, call: str, name: str, port: int) -> Layer | None:
        """What the gateway said itself: it reports each refusal with its reason."""
        del number, call
        return self.of_name(name, port)

    def of_name(self, name: str, port: int) -> Layer | None:
        """What the gateway has reported of a name; of a connection also before the client has heard of it."""
        for _, told, at, reason, origin, _ in self._outcome.network:
            if told == name and at in (port, 0):
                return Layer("egress", origin, reason)
        if not self._plan.egress:
            return self._network("there is no network, and so nobody to ask")
        return None

    def _limit(self, number: int, call: str, *rest: Any) -> Layer | None:
        del call, rest
        names = {
            errno.EAGAIN: "processes",
            errno.EMFILE: "open_files",
            errno.ENOMEM: "address_space",
            errno.EFBIG: "file_size",
        }
        for operation in self._plan.operations:
            if isinstance(operation, confinement.ProcessLimit) and operation.name == names.get(number):
                return Layer(operation.layer, operation.origin, operation.describe())
        if number == errno.ENOSPC:
            return self._of(mounting.Scratch, "the scratch places are bounded")
        return None
