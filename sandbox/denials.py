"""What was refused during a run: from the kernel's reports to sentences with layer, object and the line to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import advice, bpf, call_words, seccomp, syscall_numbers, tiers
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.seccomp_arguments import SNAPSHOTS
from osmoda.sandbox.terminal_text import clean

if TYPE_CHECKING:
    from osmoda.sandbox.advice import Advice
    from osmoda.sandbox.monitor import Outcome, RawDenial
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

CHECKED = seccomp.CHECKED
"""Calls that get through with some arguments and not with others."""

_ARCHITECTURES = {number: name for name, number in syscall_numbers.AUDIT_ARCH.items()}


@dataclass(frozen=True, slots=True)
class Denial:
    """One refusal, in words.

    `time` is seconds since the epoch, 0 where the kernel only counted; `pid` as the host counts, 0 for the whole
    sandbox. `operation` is the call or the limit, `object` what it was about. `habitual` is what programs try out of
    habit and do without. `count` is how often. `origin` is the file:line to change and `line` what to write there,
    both empty where no profile of this tier can allow it.
    """

    time: float
    sandbox: str
    pid: int
    command: str
    layer: str
    operation: str
    object: str
    advice: str
    habitual: bool
    count: int
    origin: str = ""
    line: str = ""

    def sentence(self) -> str:
        """One sentence: who was refused what, by which layer, and what would change it."""
        who = f"{self.command or 'a program'}[{self.pid}]" if self.pid else "the sandbox"
        if self.layer == "seccomp":
            what = f"{self.operation}({self.object})"
        else:
            what = f"{self.operation} {self.object}".rstrip()
        # The program chose its own name: nothing of it may act on the caller's terminal.
        return clean(f"{who} was refused {what} by {self.layer}; {self.advice}")

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def interpret(outcome: Outcome, plan: Plan, profile: Profile | None = None, *, sandbox: str = "") -> tuple[Denial, ...]:
    """The refusals of a run under `plan`, the telling ones first.

    With the `profile` that the plan was compiled from, each advice holds the whole line to write.
    """
    found = [*_limits(outcome, plan, profile), *_network(outcome), *_calls(outcome, plan, profile)]
    return tuple(replace(denial, sandbox=sandbox) for denial in sorted(found, key=lambda it: it.habitual))


# System calls


def _calls(outcome: Outcome, plan: Plan, profile: Profile | None) -> list[Denial]:
    if not outcome.denials:
        return []
    operation = next((op for op in plan.operations if isinstance(op, confinement.Seccomp)), None)
    if operation is None:
        return []
    decided = Filter(operation, plan.tier, profile)
    merged: dict[tuple[str, str, str, bool], Denial] = {}
    for raw in outcome.denials:
        denial = decided.denial(raw)
        key = (denial.command, denial.operation, denial.object, denial.habitual)
        earlier = merged.get(key)
        merged[key] = denial if earlier is None else replace(earlier, count=earlier.count + denial.count)
    return list(merged.values())


# Arguments with which a call whose arguments decide is let through, if the call is allowed at all.
_HARMLESS: dict[str, tuple[tuple[int, ...], ...]] = {
    "socket": ((1, 1, 0), (2, 1, 0), (10, 1, 0), (16, 3, 0)),
    "socketpair": ((1, 1, 0),),
    "memfd_create": ((0, 0x8),),
    "personality": ((0xFFFFFFFF,),),
    "mknod": ((0, 0o100644),),
    "mknodat": ((0, 0, 0o100644),),
}
_ARGUMENT_REASONS = {
    "clone": "namespaces are made once, at the launch",
    "ioctl": "it would act on the terminal in the user's place",
    "memfd_create": "without MFD_NOEXEC_SEAL the file could be executed, and has no name that a rule could hold",
    "personality": "another execution domain would weaken memory protection",
    "socketpair": "only unix socket pairs connect to nothing outside",
    "seccomp": "a filter that reports to a listener of its own could answer in this one's place",
}
_SET_ID_REASON = "a file with a set-user-id or set-group-id bit, or a device, would outlive the sandbox"


class Filter:
    """The system call filter of a plan, asked by simulating the very program that is installed."""

    def __init__(self, operation: confinement.Seccomp, tier: int, profile: Profile | None = None) -> None:
        self._instructions = bpf.decode(operation.program)
        self._origin = operation.origin
        self._tier = tier
        self._profile = profile

    @property
    def machine(self) -> str:
        """The architecture that the program was built for: the only one whose `getpid` it lets through."""
        for machine, numbers in syscall_numbers.KNOWN.items():
            architecture = syscall_numbers.AUDIT_ARCH[machine]
            if bpf.run(self._instructions, nr=numbers["getpid"], arch=architecture) == bpf.ALLOW:
                return machine
        raise ValueError("the filter is for none of the known architectures")

    def answer(self, name: str, machine: str, arguments: tuple[int, ...] = ()) -> int:
        """What the filter returns for a call (see `bpf.describe`). KeyError: `machine` has no such call."""
        number = syscall_numbers.KNOWN[machine][name]
        architecture = syscall_numbers.AUDIT_ARCH[machine]
        return bpf.run(self._instructions, nr=number, arch=architecture, args=arguments)

    def allowed_at_all(self, name: str, machine: str) -> bool:
        """Whether the call gets through with harmless arguments."""
        return any(self.answer(name, machine, tried) == bpf.ALLOW for tried in _HARMLESS.get(name, ((0,) * 6,)))

    def advise(self, name: str, machine: str, arguments: tuple[int, ...] = ()) -> Advice:
        """What would let a refused call through."""
        if not self.allowed_at_all(name, machine) and name != "socket":
            return advice.for_call(name, self._tier, self._origin, self._profile)
        if name == "ioctl" and len(arguments) > 1 and arguments[1] & 0xFFFFFFFF in SNAPSHOTS:
            return advice.above(self._tier, "a snapshot holds what is denied in its tree, under another name")
        if name != "socket":
            return advice.above(self._tier, _ARGUMENT_REASONS.get(name, _SET_ID_REASON))
        return self._advise_socket(machine, arguments)

    def _advise_socket(self, machine: str, arguments: tuple[int, ...]) -> Advice:
        family = arguments[0] & 0xFFFFFFFF if arguments else 0
        if any(self.answer("socket", machine, (family, kind, 0)) == bpf.ALLOW for kind in (1, 3)):
            shown = call_words.arguments_of("socket", (*arguments, 0, 0, 0))
            return advice.above(self._tier, f"only TCP, UDP and routing sockets are let through, not {shown}")
        if self._profile is not None and "socket" not in advice.allowed_calls(self._profile):
            return advice.for_call("socket", self._tier, self._origin, self._profile)
        return advice.for_family(family, self._tier, self._profile)

    def denial(self, raw: RawDenial) -> Denial:
        """A reported call in words."""
        machine = _ARCHITECTURES.get(raw.architecture)
        if machine is None:
            name, words = f"syscall {raw.number}", ""
            changed = advice.above(self._tier, "calls of other architectures are refused")
        else:
            name = syscall_numbers.name(raw.number, machine)
            words = call_words.arguments_of(name, raw.arguments)
            if name in syscall_numbers.KNOWN[machine]:
                changed = self.advise(name, machine, raw.arguments)
            else:
                changed = advice.above(self._tier, "the kernel has no call of this number")
        return Denial(
            time=raw.time,
            sandbox="",
            pid=raw.pid,
            command=raw.command,
            layer="seccomp",
            operation=name,
            object=words,
            advice=changed.text,
            habitual=call_words.habitual(name, raw.arguments),
            count=raw.count,
            origin=changed.origin,
            line=changed.line,
        )


# Network


def _network(outcome: Outcome) -> list[Denial]:
    """What the gateway refused; its reason says what would allow it."""
    found = []
    for moment, name, port, reason, origin, count in outcome.network:
        thing = f"{name}:{port}" if port else name
        operation = "a connection to" if port else "the name"
        where = "" if origin.startswith("tier ") or not origin else origin
        found.append(Denial(moment, "", 0, "", "egress", operation, thing, reason, False, count, where))
    return found


# Limits


def _limits(outcome: Outcome, plan: Plan, profile: Profile | None) -> list[Denial]:
    found = []
    if outcome.oom_kills:
        origin = profile.origin("process", "memory") if profile is not None else ""
        changed = _more(origin, f'memory = "{size(plan.memory * 2)}"')
        found.append(_limit("memory", f"beyond {size(plan.memory)}", outcome.oom_kills, changed))
    if outcome.forks_refused:
        most = plan.pids - 1  # pid 1 counts too
        origin = profile.origin("process", "pids") if profile is not None else _pids_origin(plan)
        bound = tiers.ceiling(plan.tier).process.pids
        if most < bound:
            changed = _more(origin, f"pids = {min(most * 2, bound)}")
        else:
            changed = advice.above(plan.tier, f"process.pids is at most {bound}")
        found.append(_limit("fork", f"beyond {most} processes and threads", outcome.forks_refused, changed))
    if outcome.timed_out:
        text = "a longer --timeout would allow it"
        found.append(Denial(0.0, "", 0, "", "time-out", "running on", "", text, False, 1))
    return found


def _more(origin: str, line: str) -> Advice:
    return advice.Advice(f"{advice.place(origin, 'process')} sets the limit; more: {line}", origin, line)


def _limit(operation: str, thing: str, count: int, changed: Advice) -> Denial:
    return Denial(0.0, "", 0, "", "cgroup", operation, thing, changed.text, False, count, changed.origin, changed.line)


def _pids_origin(plan: Plan) -> str:
    for operation in plan.operations:
        if isinstance(operation, confinement.ProcessLimit) and operation.name == "processes":
            return operation.origin
    return ""


def size(value: int) -> str:
    """Bytes with the largest unit that divides them, as profiles write them."""
    for unit, factor in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value} bytes"
