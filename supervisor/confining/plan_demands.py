"""What a directive asks of the plan that its unit runs under, and whether the plan does it.

A directive that a sandbox satisfies anyway is not taken for satisfied: each of these looks for the operation that
does it, and gives a clause that says why the plan does not, or an empty one. A plan of tier 0 has none of them.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from osmoda.sandbox import bpf
from osmoda.sandbox.host_files import HostFiles
from osmoda.sandbox.operations import confinement, isolation, mounting
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, KNOWN
from osmoda.sandbox.verdict import path_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from osmoda.sandbox.operations import Operation
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.verdict import Mode
_I386, _ARM = 0x40000003, 0x40000028  # AUDIT_ARCH_* of linux/audit.h
_X32 = 0x40000001  # write(2) of the x32 ABI, whose calls have this bit set


@dataclass(frozen=True, slots=True)
class Built:
    """What a unit was compiled to: a plan, and the workspace that it works in."""

    plan: Plan
    workspace: bytes


type Demand = Callable[[Built], str]
"""A question to a plan: why it does not do what was asked, or the empty string."""


def _the[T: Operation](plan: Plan, kind: type[T]) -> T | None:
    return next((operation for operation in plan if isinstance(operation, kind)), None)


# A unit asks about many calls of one filter.
_decoded = lru_cache(maxsize=8)(bpf.decode)


def _nothing(plan: Plan, what: str) -> str:
    return f"tier 0 has no sandbox, and so no {what}" if plan.tier == 0 else f"the sandbox has no {what}"


def namespace(name: str) -> Demand:
    """A namespace of its own: user, mount, pid, network, ipc, uts or cgroup (namespaces(7))."""

    def look(built: Built) -> str:
        found = _the(built.plan, isolation.Namespaces)
        return "" if found is not None and name in found.names else _nothing(built.plan, f"{name} namespace of its own")

    return look


def no_nested_namespaces(built: Built) -> str:
    """No further namespaces: the sysctl, and the calls that make and enter them."""
    if _the(built.plan, confinement.NoNestedNamespaces) is None:
        return _nothing(built.plan, "bar to further namespaces")
    return calls_refused(("unshare", "setns", "clone3"))(built)


def no_capabilities(built: Built) -> str:
    """An empty bounding set, and no_new_privs with it (capabilities(7))."""
    found = _the(built.plan, confinement.Capabilities)
    return "" if found is not None else _nothing(built.plan, "bar to new privileges")


def own_host_uid(built: Built) -> str:
    """A uid on the host that no other process has."""
    found = _the(built.plan, isolation.Identity)
    if found is None:
        return _nothing(built.plan, "uid of its own")
    return "" if found.own_host_uid else "only a daemon that runs as root has uids to give"


def sealed_proc(built: Built) -> str:
    """A fresh /proc of its own processes that nothing can be written to; /sys is never there."""
    if _the(built.plan, mounting.Proc) is None or _the(built.plan, mounting.Seal) is None:
        return _nothing(built.plan, "/proc of its own")
    for path in ("/proc/sys/kernel/hostname", "/sys/kernel"):
        if path_verdict(built.plan, built.workspace, path, "write").allowed:
            return f"{path} could be written"
    return ""


def own_devices(built: Built) -> str:
    """A /dev with harmless devices only."""
    return "" if _the(built.plan, mounting.Devices) is not None else _nothing(built.plan, "/dev of its own")


def devices_in(names: Iterable[str]) -> Demand:
    """The devices are there: `/dev/null` and the like."""

    def look(built: Built) -> str:
        found = _the(built.plan, mounting.Devices)
        shown = {f"/dev/{name.decode()}" for name in found.names} if found is not None else set()
        missing = [name for name in names if name not in shown]
        return f"no sandbox is given {missing[0]}" if missing else ""

    return look


def private_tmp(built: Built) -> str:
    """A /tmp of its own, and nothing of the host's /tmp or /var/tmp."""
    scratch = {operation.path for operation in built.plan if isinstance(operation, mounting.Scratch)}
    if b"/tmp" not in scratch:
        return _nothing(built.plan, "/tmp of its own")
    for operation in built.plan:
        if isinstance(operation, mounting.Grant) and operation.path.startswith((b"/tmp/", b"/var/tmp")):
            return f"{os.fsdecode(operation.path)} is shown"
    if built.workspace.startswith((b"/tmp/", b"/var/tmp/")):
        return f"the workspace {os.fsdecode(built.workspace)} lies there"
    return ""


def calls_refused(names: Iterable[str]) -> Demand:
    """The system calls are refused whatever their arguments are, asked of the filter itself."""
    wanted = tuple(names)

    def look(built: Built) -> str:
        let_through = [name for name in wanted if _let_through(built.plan, name)]
        return f"its filter lets {let_through[0]} through" if let_through else ""

    return _with_filter(look)


def call_refused_with(name: str, *arguments: int) -> Demand:
    """One call with these arguments is refused."""
    return _with_filter(
        lambda built: f"its filter lets {name} through" if _let_through(built.plan, name, arguments) else ""
    )


def only_native_calls(built: Built) -> str:
    """Calls of other architectures' ABIs are refused."""
    found = _the(built.plan, confinement.Seccomp)
    if found is None:
        return _nothing(built.plan, "filter of system calls")
    here = AUDIT_ARCH[os.uname().machine]
    foreign = (_I386, _ARM, *(number for number in AUDIT_ARCH.values() if number != here))
    program = _decoded(found.program)
    asked = [(1, arch) for arch in foreign]
    if here == AUDIT_ARCH["x86_64"]:
        asked.append((_X32, here))
    let_through = any(bpf.run(program, nr=number, arch=arch) == bpf.ALLOW for number, arch in asked)
    return "its filter lets another ABI through" if let_through else ""


def answers_with(number: int) -> Demand:
    """Refused calls are answered with this errno."""
    return _with_filter(lambda _: "" if number == errno.EPERM else "refused calls are answered with EPERM")


def _with_filter(look: Demand) -> Demand:
    def both(built: Built) -> str:
        if _the(built.plan, confinement.Seccomp) is None:
            return _nothing(built.plan, "filter of system calls")
        return look(built)

    return both


def _let_through(plan: Plan, name: str, arguments: tuple[int, ...] = ()) -> bool:
    found = _the(plan, confinement.Seccomp)
    machine = os.uname().machine
    if found is None:
        return True
    if name not in KNOWN[machine]:
        return False  # this machine has no such call
    program, number, arch = _decoded(found.program), KNOWN[machine][name], AUDIT_ARCH[machine]
    return bpf.run(program, nr=number, arch=arch, args=arguments) == bpf.ALLOW


def path_refused(path: str, *modes: Mode) -> Demand:
    """None of `modes` is possible on the host's `path`, asked of the mounts and rules of the plan."""

    def look(built: Built) -> str:
        if built.plan.tier == 0:
            return "tier 0 has no sandbox, and so no mounts of its own"
        for mode in modes:
            answer = path_verdict(built.plan, built.workspace, path, mode, host=HostFiles(built.plan))
            if answer.allowed:
                return answer.sentence()
        return ""

    return look


def path_granted(path: str, mode: Mode) -> Demand:
    """`mode` is possible on the host's `path`."""

    def look(built: Built) -> str:
        if built.plan.tier == 0:
            return ""
        answer = path_verdict(built.plan, built.workspace, path, mode, host=HostFiles(built.plan))
        return "" if answer.allowed else answer.sentence()

    return look


def own_keyring(built: Built) -> str:
    """A session keyring of its own, and no calls to reach another."""
    if _the(built.plan, isolation.Identity) is None:
        return _nothing(built.plan, "keyring of its own")
    return calls_refused(("add_key", "keyctl", "request_key"))(built)


def memory_limited(built: Built) -> str:
    """A limit of memory that a control group holds: a profile may give that up where the host has none."""
    return "" if built.plan.memory else "this host has no controller for it, and the profile gives the limit up"


def cpu_limited(built: Built) -> str:
    """The same for CPU time."""
    return "" if built.plan.cpu else "this host has no controller for it, and the profile gives the limit up"


def memory_without_swap(built: Built) -> str:
    """A memory limit that swap counts into."""
    return "" if built.plan.memory else "swap is only kept from what has a MemoryMax="


def processes_limited(built: Built) -> str:
    """A limit of processes that the kernel holds."""
    by_rlimit = any(isinstance(one, confinement.ProcessLimit) and one.name == "processes" for one in built.plan)
    return "" if built.plan.pids or by_rlimit else "nothing counts its processes"
