"""A profile verified: attacked and probed in a sandbox of it, each beside its control outside, and judged."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from osmoda.egress.policy import Policy
from osmoda.sandbox import battery, place
from osmoda.sandbox.battery import ATTACKS, Answer
from osmoda.sandbox.errors import LaunchError, SandboxError
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.verification import granted, rounds, services
from osmoda.sandbox.verification.layers import Layers
from osmoda.sandbox.verification.scene import VARIABLE, Scene

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from osmoda.sandbox.battery import Task
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.verification.granted import Probe
    from osmoda.sandbox.verification.rounds import Round, Run

STOPPED, WORKS, GRANTED, NO_CONTROL = "stopped", "works", "granted", "no control here"
GOT_THROUGH, DOES_NOT_WORK, NOT_JUDGED = "got through", "does not work", "not judged"
GOOD = frozenset({STOPPED, WORKS, GRANTED, NO_CONTROL})
"""Verdicts that are no reason to fail. "no control here" proves nothing, and is never counted as stopped."""

_NAMES = ("resolve", "connect")
# Spoil what others attack, and so come last.
_LAST = ("overwrite-program", "stay")
_PATIENT = 20  # seconds that what has been ended may take to be gone
# What a profile may grant by name, although the battery attacks it: the attack, the path, and how.
_GRANTABLE = {
    "read-shadow": ("/etc/shadow", "read"),
    "change-users": ("/etc/passwd", "write"),
    "switch-own-name": ("/proc/self/comm", "write"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One attack or probe and its verdict.

    `layer` stopped it and `origin` is the file:line (or "tier N") that has that layer, `answer` what the kernel said.
    `control` is what the same code did outside. `reported`: the monitor heard of the refusal.
    """

    name: str
    family: str
    title: str
    verdict: str
    layer: str
    origin: str
    answer: str
    control: str
    reported: bool = False

    @property
    def good(self) -> bool:
        """Whether the row is no reason to fail."""
        return self.verdict in GOOD

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verification:
    """All rows of one profile, and what was not tried."""

    profile: str
    tier: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether nothing got through, all that is granted works, and everything could be judged."""
        return all(row.good for row in self.rows)


def examine(profile: Profile, plan: Plan, *, workspace: str = "", only: Collection[str] = frozenset()) -> Verification:
    """Verify `plan`, which was compiled from `profile`. Takes up to twenty seconds; raises SandboxError.

    `workspace` is the directory to work in; without one, a profile that has a workspace gets an empty one. `only` names
    the attacks and probes to make; empty means all.
    """
    if plan.tier == 0:
        raise SandboxError(f"{plan.name} is of tier 0, which confines nothing: there is nothing to verify")
    with Scene(_granted_trees(profile)) as scene, scene.open_folder() as left_open:
        return _Examination(profile, plan, scene, left_open, workspace).verification(only)


def _granted_trees(profile: Profile) -> tuple[str, ...]:
    return tuple(os.path.realpath(path) for path in (*profile.filesystem.read, *profile.filesystem.write))


class _Examination:
    """Both rounds of one profile."""

    def __init__(self, profile: Profile, plan: Plan, scene: Scene, left_open: int, workspace: str) -> None:
        self._profile = profile
        self._plan = plan
        self._scene = scene
        work = workspace or f"{scene.top}/work"
        self._workspace = place.workspace(plan, work) if plan.workspace != "none" else b""
        self._names_work = False
        layer = os.fsencode(f"{scene.top}/layer") if plan.workspace == "overlay" else b""
        environment = scene.environment()
        self._inside = rounds.inside(plan, self._workspace, layer, environment=environment, left_open=left_open)
        self._outside = {
            privileged: rounds.outside(privileged=privileged, environment=environment, left_open=left_open)
            for privileged in (False, True)
        }

    def verification(self, only: Collection[str]) -> Verification:
        attacks: list[Task] = [(name, ()) for name in attack_names() if name not in _LAST]
        attacks += [("service", (path,)) for path in services.found()]
        probes = granted.probes(self._profile, self._workspace)
        # The probes of limits come last but for what spoils more: what they leave behind is not for others to meet.
        planned: list[tuple[Task, Probe | None]] = [
            *((task, None) for task in attacks),
            *(((one.attack, one.arguments), one) for one in probes),
            *(((name, ()), None) for name in _LAST),
        ]
        planned = [(task, probe) for task, probe in planned if not only or task[0] in only]
        tasks = [task for task, _ in planned]
        subjects = [probe for _, probe in planned]
        with ThreadPoolExecutor(1) as pool:
            # Both at once: neither harms what the other looks at.
            controls = pool.submit(control, self._outside, tasks, self._scene)
            inside = self._inside(tasks, self._scene.facts(inside=True))
            outside = controls.result()
        assert inside.outcome is not None
        self._names_work = any(
            probe is not None and probe.allowed and probe.attack in _NAMES and _gained(inside.answers.get(index))
            for index, probe in enumerate(subjects)
        )
        layers = Layers(self._plan, self._workspace, inside.outcome)
        rows = [
            self._row(layers, task, subjects[index], inside.answers.get(index), outside.get(index))
            for index, task in enumerate(tasks)
        ]
        if not only or "held" in only:
            rows += self._held(inside)
        if not only or "memory" in only:
            rows += self._memory()
        notes = granted.notes(self._profile, self._plan)
        return Verification(self._plan.name, self._plan.tier, tuple(rows), tuple(notes))

    def _row(
        self, layers: Layers, task: Task, probe: Probe | None, answer: Answer | None, outside: Answer | None
    ) -> Row:
        attack = ATTACKS[task[0]]
        separator = " " if attack.family == battery.GRANTS else ": "
        title = f"{attack.title}{separator}{probe.subject}" if probe is not None else attack.title
        if task[0] == "service":
            title = f"{attack.title}: {task[1][0]}"
        words = _words(answer)

        def row(verdict: str, layer: str = "", origin: str = "", text: str = words, *, reported: bool = False) -> Row:
            return Row(attack.name, attack.family, title, verdict, layer, origin, text, _words(outside), reported)

        if answer is None or answer.kind == "failed" or outside is None:
            return row(NOT_JUDGED)
        if probe is not None and probe.allowed:
            return self._granted_row(layers, probe, answer, outside, row)
        if task[0] == "stay" and answer.kind == "gained":
            return self._stayed(row)
        if probe is not None and probe.attack in _NAMES:
            # Outside there is no gateway to ask: the control is the granted name beside it.
            refused = layers.of_name(*(*probe.arguments, 0)[:2])
            if refused is None:
                return row(GOT_THROUGH if answer.kind == "gained" else NOT_JUDGED)
            if not self._names_work:
                return row(NO_CONTROL)
            return row(STOPPED, refused.name, refused.origin, refused.reason, reported=True)
        if answer.kind == "gained":
            origin = self._grants(task[0])
            return row(GRANTED, "", origin) if origin else row(GOT_THROUGH)
        if not _gained(outside) or answer.kind == "absent":
            return row(NO_CONTROL)
        layer = layers.that_refused(answer)
        if layer is None:
            return row(NOT_JUDGED, text=f"{words}, and nothing in the plan accounts for it")
        return row(STOPPED, layer.name, layer.origin, f"{words}: {layer.reason}", reported=layer.reported)

    def _granted_row(self, layers: Layers, probe: Probe, answer: Answer, outside: Answer | None, row: Any) -> Row:
        """What a profile grants has to work, unless it does not work outside either."""
        made: Row
        refused = layers.of_name(*probe.arguments) if probe.attack == "connect" else None
        lost = probe.attack == "connect" and answer.call == "resolve"  # the gateway has found no server of that name
        if (refused is not None or lost) and self._names_work and self._policy_allows(*probe.arguments):
            reason = refused.reason if refused is not None else "its server could not be found"
            made = row(NO_CONTROL, "", probe.origin, f"it is let through, but: {reason}")
        elif answer.kind == "gained" and refused is None:
            made = row(WORKS, "", probe.origin)
        elif probe.attack in ("read-path", "write-path") and outside is not None and not _gained(outside):
            made = row(NO_CONTROL, "", probe.origin)
        else:
            layer = layers.that_refused(answer)
            made = row(DOES_NOT_WORK, layer.name if layer else "", probe.origin)
        return made

    def _policy_allows(self, name: str, port: int) -> bool:
        """Whether the gateway would let it through, so that its refusal is for want of a way to the server."""
        policy = Policy.load(self._plan.egress)
        try:
            return bool(policy.decide_address(ipaddress.ip_address(name).packed, port).allowed)
        except ValueError:
            return bool(policy.decide(name, port).allowed)

    def _stayed(self, row: Any) -> Row:
        """A daemon was started; what counts is whether it is still there."""
        made: Row
        if ended(self._scene.daemon(inside=True)):
            made = row(STOPPED, "namespaces", f"tier {self._plan.tier}", "it ended with pid 1 of its namespace")
        else:
            made = row(GOT_THROUGH, text="the daemon is still there")
        return made

    def _grants(self, name: str) -> str:
        """The line of the profile that grants what an attack got; empty where none does."""
        profile = self._profile
        if name == "callers-variables":
            return profile.origin("environment", "pass") if VARIABLE in profile.environment.passed else ""
        path, mode = _GRANTABLE.get(name, ("", ""))
        for kind in ("read", "write") if mode == "read" else ("write",):
            for index, tree in enumerate(getattr(profile.filesystem, kind)):
                if path and within(path, os.path.realpath(tree)):
                    return profile.origin("filesystem", kind, index)
        return ""

    # Control groups: the kernel is asked what it holds the sandbox to.

    def _held(self, inside: Round) -> Iterator[Row]:
        process = self._profile.process
        missing = {one.layer for one in self._plan.degraded}
        found = inside.limits
        for key, wanted, files in (
            ("memory", process.memory, ("memory.max", "memory.limit_in_bytes")),
            ("cpu", process.cpu, ("cpu.max", "cpu.cfs_quota_us")),
        ):
            if wanted is None or key in missing:
                continue
            text = next((found[name] for name in files if name in found), "")
            held = _number(key, text, found.get("cpu.cfs_period_us", "100000")) if text else None
            right = held is not None and (
                held <= wanted + 4096 if key == "memory" else held <= max(wanted, 0.01) + 1e-3
            )
            origin = self._profile.origin("process", key)
            title = f"the control group's limit of {key}"
            answer = f"the kernel says {text}" if text else "no control group holds it"
            yield Row("held", "limits", title, WORKS if right else GOT_THROUGH, "cgroup", origin, answer, "")

    def _memory(self) -> Iterator[Row]:
        probe = granted.memory_probe(self._profile)
        if probe is None:
            return
        tasks: list[Task] = [(probe.attack, probe.arguments)]
        outside = self._outside[False](tasks, self._scene.facts(inside=False, number=1)).answers.get(0)
        inside = self._inside(tasks, self._scene.facts(inside=True, number=1))
        assert inside.outcome is not None
        attack = ATTACKS[probe.attack]
        answer, kills = inside.answers.get(0), inside.outcome.oom_kills
        verdict, text = NOT_JUDGED, _words(answer)
        if _gained(answer):
            verdict = GOT_THROUGH
        elif not _gained(outside):
            verdict = NO_CONTROL
        elif kills:
            verdict, text = STOPPED, f"the kernel ended it ({kills} killed for want of memory)"
        title = f"{attack.title}: {probe.subject}"
        layer = "cgroup" if verdict == STOPPED else ""
        yield Row(attack.name, attack.family, title, verdict, layer, probe.origin, text, _words(outside))


def attack_names() -> list[str]:
    """The battery's attacks that need no arguments, in its order."""
    families = battery.families()
    return [name for name, one in ATTACKS.items() if one.family in families]


def control(outside: dict[bool, Run], tasks: Sequence[Task], scene: Scene) -> dict[int, Answer]:
    """The controls, by the index of the task: each made once, with the rights that it needs. Raises LaunchError.

    What has no control because an ordinary user may not make a user namespace here is "absent"; a control of which
    nothing is known is none.
    """
    found: dict[int, Answer] = {}
    for privileged, run in outside.items():
        mine = [index for index, task in enumerate(tasks) if ATTACKS[task[0]].privileged is privileged]
        try:
            answers = run([tasks[index] for index in mine], scene.facts(inside=False)).answers
        except LaunchError as error:
            if not privileged or os.geteuid() == 0:
                raise
            answers = dict.fromkeys(range(len(mine)), Answer("absent", str(error)))
        found.update({mine[number]: answer for number, answer in answers.items()})
    ended(scene.daemon(inside=False), at_once=True)
    return found


def _gained(answer: Answer | None) -> bool:
    return answer is not None and answer.kind == "gained"


def _words(answer: Answer | None) -> str:
    return "no answer came" if answer is None else answer.text


def _number(key: str, text: str, period: str) -> float | None:
    """A limit as the kernel writes it: bytes of memory, or cores as a quota of a period; None for no limit."""
    first, _, of = text.partition(" ")
    if not first.isdecimal():
        return None
    return int(first) if key == "memory" else int(first) / int(of or period)


def ended(name: str, *, at_once: bool = False) -> bool:
    """Whether soon, or `at_once`, no process of this name is left; what is left then is ended."""
    until = time.monotonic() + (0 if at_once else _PATIENT)
    while left := _processes_named(name):
        if time.monotonic() >= until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            return False
        time.sleep(0.01)
    return True


def _processes_named(name: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name:
                    found.append(int(entry))
    return found
