"""Why something was refused: the last run's denials, and answers about a path or a system call before any run."""

from __future__ import annotations

import marshal
import os
import shlex
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host import paths
from osmoda.sandbox import bpf, denials, report, syscall_numbers, verdict
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.host_files import HostFiles
from osmoda.sandbox.monitor import Outcome, RawDenial
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.request import Request
from osmoda.sandbox.syscall_groups import calls

if TYPE_CHECKING:
    from rich.console import Console

    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.verdict import Mode, Verdict

_FORMAT = 4
_MOST_BYTES = 1 << 20
_NOT_REPORTED = (
    "Refused files are not reported by the kernel: what is not granted is not there. "
    "Ask for one: osmoda-sandbox why --path PATH"
)


@dataclass(frozen=True, slots=True)
class LastRun:
    """The record of the caller's last run. `ended` is seconds since the epoch; `refused` counts every refused call."""

    identity: str
    directory: str
    request: Request
    status: int
    refused: int
    outcome: Outcome
    ended: float


def last_run() -> LastRun | None:
    """The record that `run` leaves in the state directory; None when there is none.

    Raises SandboxError for one that is not this user's alone, or that another version wrote.
    """
    path = f"{paths.own_directory('state')}/last-run"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SandboxError(f"{path} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        private = stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 == 0 and status.st_nlink == 1
        if status.st_uid != os.geteuid() or not private:
            raise SandboxError(f"{path} is not a file of this user alone; it is not read")
        content = stream.read(_MOST_BYTES)
    try:
        return _record(content, status.st_mtime)
    except (ValueError, EOFError, TypeError):
        raise SandboxError(f"{path} was written by another version; run the command again") from None


def _record(content: bytes, ended: float) -> LastRun:
    number, identity, directory, asked, argv, numbers, (network, raw) = marshal.loads(content)
    if number != _FORMAT:
        raise ValueError(number)
    profile, tier, workspace, workspace_mode, read, write, passed, allow, deny = asked
    granted = {"read": read, "write": write, "passed": passed, "allow": allow, "deny": deny}
    request = Request(argv, profile, tier, workspace, workspace_mode, **granted)
    status, refused, oom_kills, forks_refused, timed_out = numbers
    outcome = Outcome(
        status=status,
        signal=0,
        timed_out=timed_out,
        user_time=0.0,
        system_time=0.0,
        peak_memory=0,
        duration=0.0,
        oom_kills=oom_kills,
        forks_refused=forks_refused,
        refused=refused,
        network=network,
        denials=tuple(RawDenial(*entry) for entry in raw),
    )
    return LastRun(identity, directory, request, status, refused, outcome, ended)


# The last run


def denials_of(run: LastRun, plan: Plan, profile: Profile) -> tuple[Denial, ...]:
    """Each refusal of `run`, with the advice of `profile`, from which `plan` was compiled."""
    return denials.interpret(run.outcome, plan, profile, sandbox=run.identity)


def changed_since(run: LastRun, profile: Profile) -> tuple[str, ...]:
    """The files of `profile` that were written after `run` ended: the advice is about what they say now."""
    changed = []
    for path, _ in profile.files:
        try:
            if os.path.isabs(path) and os.stat(path).st_mtime > run.ended:
                changed.append(path)
        except FileNotFoundError:
            changed.append(path)
    return tuple(changed)


def show_run(run: LastRun, found: tuple[Denial, ...], changed: tuple[str, ...], console: Console) -> None:
    """Print the refusals of the last run."""
    profile = run.request.profile or f"tier {max(run.request.tier, 0) if run.request.tier >= 0 else 2}"
    title = report.heading(report.clean(shlex.join(run.request.argv)), note=f"{profile}, exit code {run.status}")
    console.print(title)
    for path in changed:
        console.print(report.clean(f"{report.short(path)} has changed since; the advice is about what it says now"))
    telling = [denial for denial in found if not denial.habitual]
    folded = [denial for denial in found if denial.habitual]
    if not telling:
        console.print("nothing was refused" + (" but what programs try out of habit" if folded else ""))
    rows = []
    for denial in telling:
        what = (
            f"{denial.operation}({denial.object})"
            if denial.layer == "seccomp"
            else f"{denial.operation} {denial.object}"
        )
        who = f"{denial.command}[{denial.pid}]" if denial.pid else "the sandbox"
        rows.append((denial.layer, who, what.rstrip(), denial.advice))
    if rows:
        console.print(report.columns(("layer", "who", "refused", "what would change it"), rows))
    if folded:
        names = sorted({f"{denial.operation}({denial.object})" for denial in folded})
        console.print(f"\nout of habit, without need: {report.clean(', '.join(names))}", style="dim")
    console.print(f"\n{_NOT_REPORTED}", style="dim")


# Before any run


def ask_path(plan: Plan, profile: Profile, workspace: bytes, path: str, mode: Mode) -> Verdict:
    """Whether a sandbox of `plan` would get `mode` on `path`, relative to the current directory."""
    absolute = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    return verdict.path_verdict(plan, workspace, absolute, mode, host=HostFiles(plan), profile=profile)


@dataclass(frozen=True, slots=True)
class CallVerdict:
    """Whether a system call gets through. `depends`: with some arguments it does not, although it is allowed."""

    call: str
    allowed: bool
    depends: bool
    answer: str
    origin: str
    advice: str
    line: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def sentence(self) -> str:
        """The answer in one sentence."""
        if not self.allowed:
            return f"{self.call} is refused by seccomp ({self.answer}; {self.origin}); {self.advice}"
        but = ", but for some arguments" if self.depends else ""
        return f"{self.call} is allowed{but}" + (f" ({self.origin})" if self.origin else "; tier 0 filters nothing")


def ask_call(plan: Plan, profile: Profile, name: str) -> CallVerdict:
    """Whether a sandbox of `plan` may make the system call `name`. Raises SandboxError for an unknown name."""
    try:
        if name.startswith("@"):
            raise ValueError(f"{name} is a group; ask for one call")
        calls(name)
    except ValueError as error:
        raise SandboxError(str(error)) from None
    operation = next((op for op in plan.operations if isinstance(op, confinement.Seccomp)), None)
    if operation is None:
        return CallVerdict(name, True, False, "allow", "", "", "")
    asked = denials.Filter(operation, plan.tier, profile)
    if name not in syscall_numbers.KNOWN[asked.machine]:
        raise SandboxError(f"{asked.machine} has no system call {name}")
    if asked.allowed_at_all(name, asked.machine):
        depends = name in denials.CHECKED
        if name in ("setrlimit", "prlimit64"):
            # The limit of core files stays what it is.
            depends = any(isinstance(op, confinement.NoCoreDumps) for op in plan.operations)
        return CallVerdict(name, True, depends, "allow", operation.origin, "", "")
    answer = bpf.describe(asked.answer(name, asked.machine))
    if answer == "errno 38":
        text = "programs take it for a call that this kernel does not have, and do without"
        return CallVerdict(name, False, False, "ENOSYS", operation.origin, text, "")
    changed = asked.advise(name, asked.machine)
    return CallVerdict(name, False, False, "EPERM", operation.origin, changed.text, changed.line)
