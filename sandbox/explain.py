"""What a profile means on this host, layer by layer: made from the operations that a launch applies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import bpf, report
from osmoda.sandbox.denials import Filter, size
from osmoda.sandbox.operations import confinement, mounting
from osmoda.sandbox.seccomp_arguments import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from osmoda.host.features import Features
    from osmoda.sandbox.operations import Operation
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

# The order of the page, and what each layer is in a few words.
LAYERS = {
    "namespaces": "what it is apart from",
    "identity": "who it is",
    "network": "where its network leads",
    "egress": "what it can reach there",
    "mounts": "which files are there",
    "workspace": "where it works",
    "terminal": "how it meets the terminal",
    "capabilities": "what privilege is left",
    "limits": "per process",
    "cgroup": "for the whole sandbox",
    "landlock": "the file and port rules once more",
    "seccomp": "which system calls run",
}
LAYER_OF = {
    "memory": "cgroup",
    "cpu": "cgroup",
    "pids": "cgroup",
    "landlock": "landlock",
    "landlock-net": "landlock",
    "landlock-scope": "landlock",
    "notify": "seccomp",
    "idmap": "workspace",
}
_MOST_RULES = 50
_NO_MESH = "declared, without effect: this version has no mesh"
_NO_ENDPOINT = "declared, without effect: this version has no MCP endpoint"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a layer grants or takes away, and the file:line (or tier) it comes from."""

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Layer:
    """`status` is "active"; "degraded" or "unavailable" by the profile's leave; or "not declared"."""

    name: str
    status: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`not_given` is what the profile declares and this version does not give."""

    profile: str
    tier: int
    description: str
    host: str
    layers: tuple[Layer, ...]
    environment: tuple[Line, ...]
    not_given: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def explain(profile: Profile, plan: Plan, features: Features) -> Explanation:
    """`plan` is `profile` compiled for a host with `features`."""
    user = "root" if features.uid == 0 else f"uid {features.uid}"
    return Explanation(
        profile=profile.file or f"tier {profile.tier}",
        tier=plan.tier,
        description=profile.description,
        host=f"Linux {features.release}, {features.machine}, as {user}",
        layers=tuple(_layers(profile, plan)),
        environment=tuple(_environment(profile, plan)),
        not_given=tuple(_not_given(profile, plan)),
    )


def _layers(profile: Profile, plan: Plan) -> Iterator[Layer]:
    missing = {name: [entry for entry in plan.degraded if LAYER_OF[entry.layer] == name] for name in LAYERS}
    for name in LAYERS:
        operations = [operation for operation in plan.operations if operation.layer == name]
        if name == "cgroup":
            found = list(_group(profile, plan))
        elif name == "mounts":
            found = list(_mounts(operations))
        elif name == "egress":
            found = list(_egress(profile, plan))
        else:
            found = [Line(operation.describe(), operation.origin) for operation in operations]
        if name == "seccomp":
            found.extend(_families(profile, plan))
        if name == "workspace" and plan.tier and not operations:
            origin = profile.origin("filesystem", "workspace")
            found.append(Line("none of the host's: /workspace is empty, and gone at the end", origin))
        notes = [Line(f"without {entry.layer}: {entry.reason}", entry.origin) for entry in missing[name]]
        status = "active" if found else "not declared"
        if notes:
            status = "degraded" if found else "unavailable"
        if found or notes or name == "cgroup":
            yield Layer(name, status, (*found, *notes))


def _mounts(operations: list[Operation]) -> Iterator[Line]:
    """The host's system folders, which every sandbox shows, as one line."""
    system = [operation for operation in operations if _is_plain_system(operation)]
    for operation in operations:
        if not _is_plain_system(operation):
            yield Line(operation.describe(), operation.origin)
        elif operation is system[0]:
            words = [shown.describe().removeprefix("read ") for shown in system]
            yield Line(f"read {', '.join(words)}", operation.origin)


def _is_plain_system(operation: Operation) -> bool:
    return type(operation) is mounting.SystemTree


def _group(profile: Profile, plan: Plan) -> Iterator[Line]:
    if plan.memory:
        yield Line(f"memory at most {size(plan.memory)}, swap included", profile.origin("process", "memory"))
    if plan.cpu:
        yield Line(f"at most {plan.cpu:g} processor cores", profile.origin("process", "cpu"))
    if plan.pids:
        yield Line(f"at most {plan.pids - 1} processes and threads", profile.origin("process", "pids"))


def _egress(profile: Profile, plan: Plan) -> Iterator[Line]:
    """What the gateway is given, in the profile's words."""
    if not plan.egress:
        return
    network = profile.network
    for index, rule in enumerate(network.allow[:_MOST_RULES]):
        how = ", each request looked at" if rule.inspected else ""
        yield Line(f"allow {rule}{how}", profile.origin("network", "allow", index))
    for index, rule in enumerate(network.deny[:_MOST_RULES]):
        yield Line(f"deny {rule}", profile.origin("network", "deny", index))
    more = len(network.allow) + len(network.deny) - len(network.allow[:_MOST_RULES]) - len(network.deny[:_MOST_RULES])
    if more:
        yield Line(f"and {more} rules more: osmoda-egress list", profile.origin("network", "allow"))
    for index, peer in enumerate(network.connect):
        if not peer.startswith("mesh:"):
            yield Line(f"connect to {peer}", profile.origin("network", "connect", index))
    if network.serve:
        ports = ", ".join(map(str, network.serve))
        yield Line(f"other agents that say so may reach port {ports}", profile.origin("network", "serve"))
    if network.ask:
        yield Line("any other name: somebody is asked (osmoda-egress pending)", profile.origin("network", "ask"))


def _families(profile: Profile, plan: Plan) -> Iterator[Line]:
    """Asked of the filter itself, with each family's plainest socket."""
    for operation in plan.operations:
        if isinstance(operation, confinement.Seccomp):
            asked = Filter(operation, plan.tier)
            machine = asked.machine
            open_ones = [
                name
                for name, number in FAMILIES.items()
                if any(asked.answer("socket", machine, (number, kind, 0)) == bpf.ALLOW for kind in (1, 3))
            ]
            words = ", ".join(open_ones) if open_ones else "none"
            yield Line(f"socket families: {words}", profile.origin("network", "families"))


def _environment(profile: Profile, plan: Plan) -> Iterator[Line]:
    if plan.tier == 0:
        yield Line("the caller's whole environment", "tier 0")
    elif plan.passed:
        yield Line(f"passed on where set: {', '.join(plan.passed)}", profile.origin("environment", "pass"))
    declared = {name for name, _ in profile.environment.set}
    own = [name for name, _ in plan.environment if name not in declared]
    if own:
        yield Line(f"set: {', '.join(own)}", f"tier {plan.tier}")
    for name in sorted(declared):
        yield Line(f"set: {name}", profile.origin("environment", "set", name))


def _not_given(profile: Profile, plan: Plan) -> Iterator[Line]:
    tables: list[tuple[tuple[str, str], tuple[object, ...], str]] = [
        (("mesh", "send"), profile.mesh.send, _NO_MESH),
        (("mesh", "receive"), profile.mesh.receive, _NO_MESH),
        (("tools", "allow"), profile.tools.allow, _NO_ENDPOINT),
        (("tools", "deny"), profile.tools.deny, _NO_ENDPOINT),
    ]
    if plan.tier:
        peers = [peer for peer in profile.network.connect if peer.startswith("mesh:")]
        tables.insert(0, (("network", "connect"), tuple(peers), _NO_MESH))
    for key, items, reason in tables:
        if items and not profile.origin(*key).startswith("tier "):
            names = ", ".join(str(item) for item in items)
            yield Line(f"{'.'.join(key)} = {names}: {reason}", profile.origin(*key))


def show(explanation: Explanation, console: Console) -> None:
    """Print it for a person."""
    title = report.heading(report.clean(report.short(explanation.profile)))
    title.append(f": tier {explanation.tier}", style="bold")
    console.print(title)
    if explanation.description:
        console.print(report.clean(explanation.description))
    console.print(report.clean(f"on {explanation.host}"), style="dim")
    if explanation.tier == 0:
        console.print(
            "\nNothing is confined: tier 0 runs the command as the caller, with the caller's files, network and"
        )
        console.print("system calls. Only the limits below hold.")
    for layer in explanation.layers:
        console.print()
        console.print(report.heading(layer.name, layer.status, LAYERS[layer.name]))
        empty = "no limit of memory or processor is declared"
        rows = [(line.text, line.origin) for line in layer.lines] or [(empty, "")]
        console.print(report.lines(rows))
    if explanation.environment:
        console.print()
        console.print(report.heading("environment"))
        console.print(report.lines((line.text, line.origin) for line in explanation.environment))
    if explanation.not_given:
        console.print()
        console.print(report.heading("declared, but not given"))
        console.print(report.lines((line.text, line.origin) for line in explanation.not_given))
