"""Whether this host can enforce each layer: one real denial of each, and how to mend what is missing.

Real sandboxes are started the way `run` does, and a program in them asks for what they must refuse (see `trial`).
Nothing counts as refused that would not have worked outside.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host import features as host_features
from osmoda.host import paths, syscalls
from osmoda.sandbox import mending, place, profile_file, report, syscall_numbers, trial, unattended
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.init import Command
from osmoda.sandbox.operations import Setup, confinement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from osmoda.host.features import Features
    from osmoda.sandbox.monitor import Outcome

_NOTHING = "nothing refused it"
_PATIENCE = 30.0  # seconds, after which a trial is ended
_SHARE = 0.1  # of a core, which the trial of the processor limit gets
_LANDLOCK_READ = 0b1100  # LANDLOCK_ACCESS_FS_READ_FILE and READ_DIR


@dataclass(frozen=True, slots=True)
class Check:
    """One layer tried, with `status` "active", "unavailable" or "not tried".

    `needed`: every sandbox of tier 1 and 2 has it. `tried` is what was asked for, `answer` what the kernel said, `mend`
    what to do where it is not active.
    """

    layer: str
    tried: str
    status: str
    answer: str
    needed: bool = True
    mend: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked inside, and the errno values that are this layer's refusal."""

    layer: str
    name: str
    tried: str
    refusals: tuple[int, ...]
    words: str = ""


_CONFINED = (
    _Question("namespaces", "process", "kill a process of the host", (errno.ESRCH,), "it does not exist inside"),
    _Question(
        "identity", "identity", "become root (setuid 0)", (errno.EINVAL, errno.EPERM), "there is no such user inside"
    ),
    _Question("mounts", "file", "read a file of the host that is not granted", (errno.ENOENT,), "it is not there"),
    _Question("mounts", "system", "write to /usr", (errno.EROFS,)),
    _Question(
        "network", "address", "connect to a service of the host", (errno.ECONNREFUSED, errno.ENETUNREACH), "another lo"
    ),
    _Question("network", "abstract", "connect to an abstract socket of the host", (errno.ECONNREFUSED, errno.EPERM)),
    _Question("capabilities", "capability", "bind port 80 of its own network", (errno.EACCES,)),
    _Question("limits", "forks", "fork beyond process.pids", (errno.EAGAIN,)),
    _Question("seccomp", "seccomp", "make a user namespace (unshare)", (errno.EPERM,)),
    _Question("terminal", "terminal", "type into a terminal (TIOCSTI)", (errno.EPERM,)),
)


_NAMES = (
    _Question("egress", "declared", "reach the one port of the host that is declared", (0,)),
    _Question("egress", "undeclared", "reach another port there", (errno.ECONNRESET,), "the gateway decides"),
    _Question("egress", "unlisted", "look up a name that is not listed", (errno.ENOENT,), "no query leaves"),
    _Question("egress", "unrouted", "connect to an address without a name", (errno.ENETUNREACH,)),
    _Question("egress", "datagram", "send a datagram to a listed name", (errno.EPERM, errno.ECONNREFUSED)),
)


def examine() -> tuple[Check, ...]:
    """Try every layer; nothing is left behind. Takes about two seconds."""
    host = host_features.probe()
    with tempfile.TemporaryDirectory(prefix="osmoda-doctor-") as scene:
        doctor = _Doctor(host, scene)
        return (*doctor.confined(), *doctor.names(), *doctor.landlock(), *doctor.limits())


def healthy(checks: tuple[Check, ...]) -> bool:
    """Whether all is active that every sandbox of tier 1 and 2 needs."""
    return all(check.status == "active" or not check.needed for check in checks)


def show(checks: tuple[Check, ...], console: Console) -> None:
    """Print the checks for a person."""
    host = host_features.probe()
    console.print(report.heading(f"Linux {host.release}, {host.machine}, as uid {host.uid}"))
    ledger = f"on the ledger in {paths.ledger()}" if paths.has_ledger() else "on no ledger (osmoda-ledger init)"
    console.print(report.lines([(f"launches are put {ledger}", "")]))
    for layer in dict.fromkeys(check.layer for check in checks):
        mine = [check for check in checks if check.layer == layer]
        worst = next((check.status for check in mine if check.status != "active"), "active")
        note = "" if mine[0].needed else "for profiles that declare such a limit"
        console.print()
        console.print(report.heading(layer, worst, note))
        for check in mine:
            mark = "" if check.status == worst else f"{check.status}: "
            console.print(report.lines([(f"{mark}{check.tried}: {check.answer}", "")]))
            if check.mend:
                console.print(report.lines([(f"to mend: {check.mend}", "")], indent=4))
    console.print()
    if healthy(checks):
        console.print("This host enforces all that the tiers need.", style="green")
    else:
        console.print("Something that the tiers need is missing.", style="red")


class _Doctor:
    """The trials on one host, with files of its own in `scene`."""

    def __init__(self, host: Features, scene: str) -> None:
        self._host = host
        self._scene = scene
        self._degrade = list(mending.missing_layers(host))

    # The first sandbox: all that tier 1 has without being asked.

    def confined(self) -> list[Check]:
        work = os.path.join(self._scene, "work")
        os.mkdir(work, 0o700)
        secret = os.path.join(self._scene, "secret")
        with open(secret, "w", encoding="utf-8") as file:
            file.write("not granted\n")
        trial.Trial({"file": secret}).file()  # outside it can be read
        with _victim() as victim, _service() as (port, name):
            facts = {"victim": victim, "file": secret, "port": port, "name": name}
            ask = [*(question.name for question in _CONFINED), "workspace", "no_new_privs"]
            try:
                outcome, found = self._run('workspace = "direct"', "pids = 16", ask, facts, work)
            except SandboxError as error:
                mend = mending.for_launch(self._host, str(error))
                return [Check("sandbox", "start one of tier 1", "unavailable", str(error), mend=mend)]
            alive = _is_alive(victim)
        checks = [_judge(question, found) for question in _CONFINED]
        if not alive:
            checks[0] = Check("namespaces", _CONFINED[0].tried, "unavailable", "it was killed")
        if not found.get("no_new_privs"):
            checks.append(Check("capabilities", "look at no_new_privs", "unavailable", "it is not set"))
        checks.append(self._notified(outcome))
        checks.append(self._owner(os.path.join(work, "made-inside"), found))
        return checks

    def _notified(self, outcome: Outcome) -> Check:
        tried = "have the refused unshare reported"
        if "notify" in self._degrade:
            mend = 'Linux 5.0 or later; else degrade = ["notify"]'
            return Check("seccomp", tried, "unavailable", "this kernel has no user notification", mend=mend)
        number = syscall_numbers.KNOWN[self._host.machine]["unshare"]
        reported = any(denial.number == number for denial in outcome.denials)
        status = "active" if reported else "unavailable"
        return Check("seccomp", tried, status, "it was reported" if reported else "no report came")

    def _owner(self, made: str, found: dict[str, float]) -> Check:
        """As root the sandbox has a uid of its own, and an idmapped mount gives its files to the workspace's owner."""
        tried = "make a file in the workspace"
        if found.get("workspace") != 0:
            return Check("workspace", tried, "unavailable", os.strerror(int(found.get("workspace", errno.EIO))))
        owner = os.stat(made).st_uid
        status = "active" if owner == os.geteuid() else "unavailable"
        how = ", through an idmapped mount" if self._host.privileged else ""
        return Check("workspace", tried, status, f"on the host it belongs to uid {owner}{how}")

    # The second: a network of names, whose gateway leads to one port of this host and nowhere else.

    def names(self) -> list[Check]:
        with _greeter() as port, _greeter() as other:
            facts = {"declared": port, "undeclared": other}
            ask = [question.name for question in _NAMES]
            try:
                _, found = self._run('workspace = "none"', "", ask, facts, "", f'connect = ["host:{port}"]')
            except SandboxError as error:
                return [Check("egress", _NAMES[0].tried, "unavailable", str(error), mend=mending.NFTABLES)]
        return [_judge(question, found) for question in _NAMES]

    # Landlock doubles what the mounts do: so it is asked alone, in a child of this process, and where only it refuses.

    def landlock(self) -> list[Check]:
        if not self._host.landlock:
            mend = mending.LANDLOCK
            return [Check("landlock", "ask for its ABI", "unavailable", "this kernel has none", mend=mend)]
        secret = os.path.join(self._scene, "secret")
        checks = []
        with _victim() as victim, _service() as (_, name):
            found = self._alone(secret, victim, name)
        abi = f"Landlock ABI {self._host.landlock}"
        file, process, abstract = found["file"], found["process"], found["abstract"]
        words = f"{_errno_words(file)} ({abi})" if file > 0 else _errno_words(file)
        checks.append(_verdict("landlock", "read a file without a rule", file == errno.EACCES, words))
        if self._host.landlock >= mending.SCOPE_ABI:
            for tried, number in (
                ("signal a process outside", process),
                ("connect to an abstract socket outside", abstract),
            ):
                checks.append(_verdict("landlock", tried, number == errno.EPERM, _errno_words(number)))
        else:
            answer, mend = f"{abi} has no scopes", mending.LANDLOCK_SCOPE
            checks.append(Check("landlock", "signal a process outside", "unavailable", answer, mend=mend))
        checks.append(self._ports(abi))
        return checks

    def _alone(self, secret: str, victim: int, name: str) -> dict[str, int]:
        """What Landlock alone refuses to a child that nothing else confines."""
        host = self._host
        scoped = 3 if host.landlock >= mending.SCOPE_ABI else 0
        handled = _LANDLOCK_READ
        operation = confinement.Landlock("doctor", handled, 0, scoped, host.landlock, ((b"/usr", handled),), (), ())
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            found = {}
            try:
                syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
                operation.apply(Setup(b"", b"", 0, 0, tty=False))
                facts = {"file": secret, "victim": victim, "name": name}
                asked = trial.Trial(facts)
                for question in ("file", "abstract", "process"):
                    try:
                        getattr(asked, question)()
                        found[question] = 0
                    except OSError as error:
                        found[question] = error.errno or -1
                os.write(writer, json.dumps(found).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as stream:
            answer = stream.read()
        os.waitpid(pid, 0)
        given: dict[str, int] = json.loads(answer or b"{}")
        return {"file": -1, "process": -1, "abstract": -1} | given

    def _ports(self, abi: str) -> Check:
        tried = "bind a TCP port that no rule grants"
        if self._host.landlock < mending.NETWORK_ABI:
            mend = mending.LANDLOCK_NET
            return Check("landlock", tried, "unavailable", f"{abi} has no rules for ports", mend=mend)
        try:
            _, found = self._run('workspace = "none"', "", ["port"], {}, "", network="loopback = false")
        except SandboxError as error:
            return Check("landlock", tried, "not tried", str(error))
        return _judge(_Question("landlock", "port", tried, (errno.EACCES,)), found)

    # Control groups: for the profiles that declare such a limit.

    def limits(self) -> list[Check]:
        return [self._memory(), self._processor()]

    def _memory(self) -> Check:
        tried = "use 256M of memory under a limit of 64M"
        if "memory" not in self._host.controllers:
            return self._no_controller("memory", tried)
        try:
            outcome, _ = self._run('workspace = "none"', 'memory = "64M"', ["memory"], {}, "")
        except SandboxError as error:
            return Check("cgroup memory", tried, "unavailable", str(error), needed=False)
        killed = outcome.signal == signal.SIGKILL and outcome.oom_kills > 0
        answer = "the kernel ended it" if killed else "nothing refused it"
        return _verdict("cgroup memory", tried, killed, answer, needed=False)

    def _processor(self) -> Check:
        tried = f"compute with {_SHARE} of a core"
        if "cpu" not in self._host.controllers:
            return self._no_controller("cpu", tried)
        try:
            _, found = self._run('workspace = "none"', f"cpu = {_SHARE}", ["share"], {}, "")
        except SandboxError as error:
            return Check("cgroup cpu", tried, "unavailable", str(error), needed=False)
        share = found.get("share", 0.0)
        limited = 0 < share < 4 * _SHARE
        return Check("cgroup cpu", tried, "active" if limited else "unavailable", f"it got {share:.2f}", needed=False)

    def _no_controller(self, controller: str, tried: str) -> Check:
        words = f"no cgroup with the {controller} controller is delegated to this user"
        mend = mending.for_controller(self._host, controller)
        return Check(f"cgroup {controller}", tried, "unavailable", words, needed=False, mend=mend)

    def _run(
        self, filesystem: str, process: str, ask: list[str], facts: dict[str, Any], work: str, network: str = ""
    ) -> tuple[Outcome, dict[str, float]]:
        """Run `trial` in a sandbox of tier 1, and what it printed. Raises SandboxError when it does not start."""
        interpreter = os.path.realpath(sys.executable)
        # The interpreter may be installed anywhere; its own folder is granted if the system's are not enough.
        prefix = os.path.realpath(sys.base_prefix)
        read = "" if prefix.startswith("/usr") else f"read = [{json.dumps(prefix)}]"
        text = (
            f"schema = 1\ntier = 1\ndegrade = {json.dumps(self._degrade)}\n"
            f"[filesystem]\n{filesystem}\n{read}\n[process]\n{process}\n[network]\n{network}\n"
        )
        plan = compile_profile(profile_file.load_text(text, "doctor", self._scene), self._host)
        with open(trial.__file__, encoding="utf-8") as source:
            argv = (interpreter, "-I", "-S", "-c", source.read(), json.dumps(facts | {"ask": ask}))
        with tempfile.TemporaryFile() as output, open(os.devnull, "rb") as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            workspace = place.workspace(plan, work)
            directory = place.start_directory(plan, workspace, "")
            command = Command(argv, place.environment(plan, False, ()), directory, *streams, ())
            outcome = unattended.run(plan, command, workspace, patience=_PATIENCE)
            output.seek(0)
            printed = output.read()
        try:
            return outcome, json.loads(printed)
        except ValueError:
            if outcome.signal:
                return outcome, {}
            last = printed.decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxError(f"the trial ended with {outcome.status}: {last}") from None


def _judge(question: _Question, found: dict[str, float]) -> Check:
    number = int(found.get(question.name, -1))
    answer = _errno_words(number)
    if question.refusals == (0,):
        # The one that has to work.
        status = "active" if number == 0 else "unavailable"
        return Check(question.layer, question.tried, status, "it is reached" if number == 0 else answer)
    if question.words and number == question.refusals[0]:
        answer = f"{answer}: {question.words}"
    return _verdict(question.layer, question.tried, number in question.refusals, answer)


def _errno_words(number: int) -> str:
    if number == 0:
        return _NOTHING
    return os.strerror(number) if number > 0 else "no answer"


def _verdict(layer: str, tried: str, active: bool, answer: str, *, needed: bool = True) -> Check:
    if active or answer in (_NOTHING, "no answer"):
        return Check(layer, tried, "active" if active else "unavailable", answer, needed)
    return Check(layer, tried, "unavailable", f"{answer}, which is not this layer's doing", needed)


@contextlib.contextmanager
def _victim() -> Iterator[int]:
    """A process of the host's that waits to be killed."""
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _is_alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


@contextlib.contextmanager
def _greeter() -> Iterator[int]:
    """The TCP port of a service of the host's that greets whoever comes, proven to be reachable outside."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        pid = os.fork()
        if not pid:
            try:
                while True:
                    with listener.accept()[0] as one:
                        one.sendall(trial.GREETING)
            finally:
                os._exit(1)  # whatever happens here must not go on as a second doctor
        try:
            trial.greeted("127.0.0.1", port)
            yield port
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextlib.contextmanager
def _service() -> Iterator[tuple[int, str]]:
    """Two listeners of the host's, proven to be reachable outside: a TCP port and the name of an abstract socket."""
    name = f"osmoda-doctor-{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as internet, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + name)
        unix.listen()
        port = internet.getsockname()[1]
        outside = trial.Trial({"port": port, "name": name})
        outside.address()
        outside.abstract()
        yield port, name
