"""`excess` against an oracle that knows nothing of trees or intervals: it permits one access or it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from osmoda.sandbox import seccomp
from osmoda.sandbox.grants import Excess, excess
from osmoda.sandbox.profile import (
    ANY_PORT,
    Environment,
    Filesystem,
    Limits,
    Mesh,
    Network,
    Process,
    Profile,
    Rule,
    Tools,
)
from osmoda.sandbox.syscall_groups import expand
from osmoda.sandbox.tiers import ceiling
from tests.unit.test_destinations import means

# ---- The oracle


@dataclass(frozen=True)
class Access:
    """One thing that a program does."""

    kind: str
    what: str | int = ""
    port: int = 0
    method: str = ""  # empty: not HTTP
    path: str = ""
    secret: str = ""
    body: int = 0
    address: str = ""  # where the name leads; empty: a public address
    hidden: bool = False  # the server name, by an encrypted hello
    nth: int = 1  # request under a rule
    size: int = 0  # bytes that went under a rule before


def glob(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def inside(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)


def rule_permits(rule: Rule, access: Access) -> bool:
    if not means(rule.host, str(access.what)) or (access.port not in rule.ports and ANY_PORT not in rule.ports):
        return False
    if access.address and not any(means(network, access.address) for network in rule.addresses):
        return False
    if access.nth > (rule.max_requests or access.nth) or access.size > (rule.max_bytes or access.size):
        return False
    http_only = rule.methods or rule.paths or rule.secret or rule.max_body is not None
    if not access.method:
        return not http_only and (rule.ech or not access.hidden)
    return (
        (not rule.methods or access.method in rule.methods)
        and (not rule.paths or any(glob(pattern, access.path) for pattern in rule.paths))
        and access.secret in ("", rule.secret)
        and (rule.max_body is None or access.body <= rule.max_body)
    )


def permits(profile: Profile, access: Access) -> bool:
    files, network, process = profile.filesystem, profile.network, profile.process
    what = str(access.what)
    inside_names = ["host", "host.osmoda"] if what.startswith("host:") else []
    denied = any(
        any(means(rule.host, one) for one in (what, access.address, *inside_names) if one)
        and (access.port in rule.ports or ANY_PORT in rule.ports)
        for rule in network.deny
    )
    limit = {
        "memory": process.memory,
        "cpu": process.cpu,
        "pids": process.pids,
        "tmp": files.tmp,
        **{
            name: getattr(process.limits, name)
            for name in ("open_files", "file_size", "address_space", "stack", "core")
        },
    }
    match access.kind:
        case "read":
            return inside(what, (*files.read, *files.write, "/usr")) and not inside(what, files.deny)
        case "write":
            return inside(what, files.write) and not inside(what, files.deny)
        case "workspace read":
            return files.workspace != "none" and not inside(what, files.deny)
        case "workspace write":
            return files.workspace == "direct" and not inside(what, files.deny)
        case "reach":
            return not denied and any(rule_permits(rule, access) for rule in network.allow)
        case "ask":
            return network.ask and not denied
        case "serve":
            return access.port in network.serve
        case "peer":
            entries = [entry.rpartition("=")[2] for entry in network.connect]
            return not denied and f"{what}:{access.port}" in entries
        case "family":
            return what in network.families
        case "loopback":
            return network.loopback
        case "call":
            return what in seccomp.allowed(process.syscalls, tier=profile.tier)
        case "variable":
            return what in profile.environment.passed and what not in dict(profile.environment.set)
        case "tool":
            tools = profile.tools
            return any(glob(one, what) for one in tools.allow) and not any(glob(one, what) for one in tools.deny)
        case "send":
            return any(glob(one, what) for one in profile.mesh.send)
        case "receive":
            return any(glob(one, what) for one in profile.mesh.receive)
        case "degrade":
            return what in profile.degrade
        case _:
            bound = limit[access.kind]
            return bound is None or access.port <= bound


# ---- Profiles and accesses out of one small world, so that they meet

TREES = ["/usr", "/usr/lib", "/srv", "/srv/a", "/srv/a/b", "/srv/a/c", "/srv/ab", "/opt"]
NAMES = ["a.b", "x.a.b", "y.x.a.b", "c.b", "single"]
HOSTS = [*NAMES, "host", "*.a.b", "*.b", "*.x.a.b", "*", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"]
PORTS = [22, 80, 443]
PATHS = ["/*", "/v1/*", "/v1/a", "*/a"]
PATTERNS = ["*", "file_*", "file_read", "*_read", "mem_*", "mem_read"]
CALLS = ["@system-service", "@debug", "@pkey", "ptrace", "kcmp", "~@debug", "~@chown", "~chown", "~ptrace", "chown"]


def some(items, most=3):
    return st.lists(st.sampled_from(items), max_size=most, unique=True).map(lambda found: tuple(sorted(found)))


def lists(strategy, most=3):
    return st.lists(strategy, max_size=most).map(tuple)


ports = some(PORTS, 2).filter(bool) | st.just((ANY_PORT,))
rules = st.builds(
    Rule,
    host=st.sampled_from(HOSTS),
    ports=ports,
    methods=some(["GET", "POST"], 2),
    paths=some(PATHS, 2),
    secret=st.sampled_from([None, None, "S", "T"]),
    max_body=st.sampled_from([None, None, 10, 20]),
) | st.builds(
    Rule,
    host=st.sampled_from(HOSTS),
    ports=ports,
    max_bytes=st.sampled_from([None, None, 10, 20]),
    max_requests=st.sampled_from([None, None, 2, 4]),
    ech=st.booleans(),
    addresses=some(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], 2),
)
bounds = st.sampled_from([None, 1, 2])
profiles = st.builds(
    Profile,
    schema=st.just(1),
    tier=st.sampled_from([1, 2]),
    description=st.just(""),
    degrade=some(["memory", "landlock"]),
    filesystem=st.builds(
        Filesystem,
        read=some(TREES),
        write=some(TREES, 2),
        deny=some([*TREES, "/proc", "/proc/1"], 2),
        workspace=st.sampled_from(["none", "overlay", "direct"]),
        tmp=st.sampled_from([1, 2]),
    ),
    network=st.builds(
        Network,
        allow=lists(rules),
        deny=lists(st.builds(Rule, host=st.sampled_from(HOSTS), ports=ports), 2),
        serve=some(PORTS),
        connect=some(["agent:a:22", "agent:b:22", "host:22", "host:80", "localhost:9=agent:a:22"]),
        ask=st.booleans(),
        loopback=st.booleans(),
        families=some(["inet", "inet6", "unix"]),
    ),
    process=st.builds(
        Process,
        syscalls=some(CALLS, 4),
        memory=bounds,
        cpu=bounds,
        pids=st.sampled_from([1, 2]),
        limits=st.builds(Limits, open_files=bounds, file_size=bounds, address_space=bounds, stack=bounds, core=bounds),
    ),
    environment=st.builds(
        Environment,
        passed=some(["LANG", "TZ", "X"]),
        set=st.dictionaries(st.sampled_from(["X", "TZ"]), st.sampled_from(["1", "2"])).map(
            lambda found: tuple(sorted(found.items()))
        ),
    ),
    tools=st.builds(Tools, allow=some(PATTERNS), deny=some(PATTERNS, 2)),
    mesh=st.builds(Mesh, send=some(PATTERNS), receive=some(PATTERNS)),
).filter(lambda profile: not (profile.tier == 2 and {"ptrace", "kcmp"} & set(profile.process.syscalls)))

# Close relatives are where mistakes would be: most pairs of independent profiles differ in everything.
SECTIONS = ("filesystem", "network", "process", "environment", "tools", "mesh", "degrade", "tier")


@st.composite
def relatives(draw, count):
    base = draw(profiles)
    found = [base]
    for _ in range(count - 1):
        other = draw(profiles)
        section = draw(st.sampled_from(SECTIONS))
        part = getattr(other, section)
        if section in ("filesystem", "network", "process", "environment", "tools"):
            name = draw(st.sampled_from(sorted(part.__dataclass_fields__)))
            part = replace(getattr(base, section), **{name: getattr(part, name)})
        changed = replace(base, **{section: part})
        try:
            seccomp.allowed(changed.process.syscalls, tier=changed.tier)
        except ValueError:
            assume(False)
        found.append(changed)
    return found


pairs = relatives(2) | st.tuples(profiles, profiles)
paths = st.sampled_from([*TREES, "/srv/a/b/z", "/usr/lib/y", "/usr/bin/x", "/opt/q"])
words = st.sampled_from(["file_read", "file_write", "mem_read", "x_read", "mem_", "other"])
accesses = st.one_of(
    st.builds(Access, st.sampled_from(["read", "write", "workspace read", "workspace write"]), paths),
    st.builds(
        Access,
        st.just("reach"),
        st.sampled_from([*NAMES, "10.1.2.3", "10.1.9.9", "10.9.9.9", "8.8.8.8", "q.c.b"]),
        st.sampled_from([*PORTS, 9]),
        st.sampled_from(["", "GET", "POST"]),
        st.sampled_from(["/", "/v1/a", "/v1/b", "/x/a"]),
        st.sampled_from(["", "S", "T"]),
        st.sampled_from([5, 15, 25]),
        st.sampled_from(["", "", "10.1.2.3", "10.1.9.9", "10.9.9.9"]),
        st.booleans(),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([0, 15, 25]),
    ),
    st.builds(Access, st.just("ask"), st.sampled_from(NAMES), st.sampled_from(PORTS)),
    st.builds(Access, st.just("serve"), port=st.sampled_from(PORTS)),
    st.builds(Access, st.just("peer"), st.sampled_from(["agent:a", "agent:b", "host"]), st.sampled_from([22, 80])),
    st.builds(Access, st.just("family"), st.sampled_from(["inet", "unix"])),
    st.just(Access("loopback")),
    st.builds(Access, st.just("call"), st.sampled_from(["ptrace", "kcmp", "chown", "read", "pkey_alloc", "openat"])),
    st.builds(Access, st.just("variable"), st.sampled_from(["LANG", "TZ", "X"])),
    st.builds(Access, st.sampled_from(["tool", "send", "receive"]), words),
    st.builds(Access, st.just("degrade"), st.sampled_from(["memory", "landlock"])),
    st.builds(
        Access,
        st.sampled_from(["memory", "cpu", "pids", "tmp", "open_files", "file_size", "address_space", "stack", "core"]),
        port=st.sampled_from([1, 2, 3]),
    ),
)


# ---- Properties


@settings(max_examples=400, deadline=None)
@given(pairs, st.lists(accesses, min_size=1, max_size=30))
def test_nothing_in_excess_means_nothing_more_is_permitted(two, tried):
    a, b = two
    if excess(a, b):
        return
    for access in tried:
        assert not permits(a, access) or permits(b, access), access


# All that can be done in the small world, by the section that decides it.
EVERYTHING = {
    "filesystem": [
        Access(kind, path)
        for kind in ("read", "write", "workspace read", "workspace write")
        for path in [*TREES, "/srv/a/b/z", "/usr/lib/y", "/usr/bin/x"]
    ],
    "network": [
        Access("reach", host, port, method, path, secret, body)
        for host in ["a.b", "x.a.b", "y.x.a.b", "single", "10.1.2.3", "10.9.9.9"]
        for port in [22, 80, 9]
        for method, path, secret, body in [
            ("", "", "", 0),
            *(
                (m, p, s, b)
                for m in ("GET", "POST")
                for p in ("/v1/a", "/v1/b")
                for s in ("", "S")
                for b in (5, 15, 25)
            ),
        ]
    ]
    + [
        Access("reach", host, port, address=address, hidden=hidden, nth=nth, size=size)
        for host in ["a.b", "x.a.b", "single"]
        for port in [22, 80]
        for address in ["", "10.1.2.3", "10.1.9.9", "10.9.9.9"]
        for hidden in [False, True]
        for nth, size in [(1, 0), (3, 0), (5, 0), (1, 15), (1, 25)]
    ]
    + [Access("ask", host, port) for host in NAMES for port in PORTS]
    + [Access("peer", what, port) for what in ("agent:a", "agent:b", "host") for port in (22, 80)],
    "environment": [Access("variable", name) for name in ("LANG", "TZ", "X")],
    "tools": [Access("tool", name) for name in ("file_read", "file_write", "mem_read", "x_read", "other")],
    "mesh": [Access(kind, name) for kind in ("send", "receive") for name in ("file_read", "x_read", "other")],
}


def permitted(profile: Profile, section: str) -> set[Access]:
    return {access for access in EVERYTHING[section] if permits(profile, access)}


@st.composite
def neighbours(draw):
    """Two profiles that differ in one field of one section, in the network perhaps in one field of one rule."""
    b = draw(profiles)
    section = draw(st.sampled_from(sorted(EVERYTHING)))
    part, other = getattr(b, section), getattr(draw(profiles), section)
    name = draw(st.sampled_from(sorted(part.__dataclass_fields__)))
    value = getattr(other, name)
    if section == "network" and part.allow and draw(st.booleans()):
        name, rule = "allow", draw(rules)
        field = draw(st.sampled_from(sorted(rule.__dataclass_fields__)))
        value = (*part.allow[1:], replace(part.allow[0], **{field: getattr(rule, field)}))
    return replace(b, **{section: replace(part, **{name: value})}), b, section


@settings(max_examples=800, deadline=None)
@given(neighbours())
def test_what_is_permitted_beyond_is_reported(found):
    a, b, section = found
    if permitted(a, section) - permitted(b, section):
        assert excess(a, b)


@settings(deadline=None)
@given(profiles)
def test_a_profile_grants_no_more_than_itself(profile):
    assert excess(profile, profile) == ()


@settings(max_examples=300, deadline=None)
@given(relatives(3))
def test_to_grant_no_more_is_transitive(three):
    a, b, c = three
    if not excess(a, b) and not excess(b, c):
        assert excess(a, c) == ()


# What is used up: a history of requests and of bytes, which single accesses do not show.

budgeted = st.builds(
    Rule,
    host=st.sampled_from(["a.b", "x.a.b", "*.a.b", "*.a.b", "*"]),
    ports=some(PORTS[:2], 2).filter(bool) | st.just((ANY_PORT,)),
    max_bytes=st.sampled_from([None, None, 1, 2, 3]),
    max_requests=st.sampled_from([None, 1, 2, 3]),
    ech=st.booleans(),
)


@st.composite
def spenders(draw):
    """Two lists of rules; the first is often the second's in narrower pieces."""
    allow = draw(lists(budgeted, 2))
    pieces = tuple(
        replace(
            rule,
            host=draw(st.sampled_from([rule.host, "x.a.b", "y.a.b"])),
            ports=draw(st.sampled_from([rule.ports, rule.ports[:1], (22,)])),
            max_bytes=rule.max_bytes and draw(st.integers(1, rule.max_bytes)),
            max_requests=rule.max_requests and draw(st.integers(1, rule.max_requests)),
        )
        for rule in (*allow, *allow)
    )
    return draw(st.sampled_from([pieces, pieces, pieces[:1], draw(lists(budgeted, 2))])), allow


def unbudgeted(rule: Rule) -> Rule:
    return replace(rule, max_bytes=None, max_requests=None)


@settings(max_examples=1000, deadline=None)
@given(
    spenders(),
    st.lists(
        st.tuples(st.sampled_from(["a.b", "x.a.b", "y.a.b"]), st.sampled_from(PORTS[:2]), st.sampled_from([0, 1, 1])),
        min_size=4,
        max_size=16,
    ),
)
def test_nothing_in_excess_means_that_no_budget_is_used_up_earlier(two, history):
    """Under both, a connection counts for every budget that matches it, unless a rule without one matches too."""
    mine, other = (network(allow=rules) for rules in two)
    assume(not excess(mine, other))
    spent: list[dict[Rule, list[int]]] = [{}, {}]
    for host, port, size in history:
        permitted = []
        due = []
        for rules, counts in zip(two, spent, strict=True):
            matching = [rule for rule in rules if means(rule.host, host) and {port, ANY_PORT} & {*rule.ports}]
            usable = []
            for rule in matching:
                requests, moved = counts.setdefault(unbudgeted(rule), [0, 0])
                if requests < (rule.max_requests or 99) and moved + size <= (rule.max_bytes or 99):
                    usable.append(rule)
            permitted.append(bool(usable))
            if not any(rule.max_bytes is rule.max_requests is None for rule in matching):
                metered = all(rule.max_bytes for rule in usable)
                due += [(counts[scope], size if metered else 0) for scope in {unbudgeted(rule) for rule in matching}]
        assert permitted[1] or not permitted[0]
        if permitted[0]:
            for count, moved in due:
                count[0] += 1
                count[1] += moved


LISTS = [
    ("filesystem", "read"),
    ("filesystem", "write"),
    ("network", "allow"),
    ("network", "serve"),
    ("network", "connect"),
    ("network", "families"),
    ("environment", "passed"),
    ("tools", "allow"),
    ("mesh", "send"),
]


@settings(max_examples=200, deadline=None)
@given(pairs, st.sampled_from(LISTS), st.integers(0, 2))
def test_taking_a_grant_away_never_adds_excess(two, key, index):
    a, b = two
    section, name = key
    items = getattr(getattr(a, section), name)
    left = replace(a, **{section: replace(getattr(a, section), **{name: items[:index] + items[index + 1 :]})})
    assert kinds(excess(left, b)) <= kinds(excess(a, b))
    assert excess(left, a) == ()


DENIALS = [
    ("filesystem", st.sampled_from(TREES)),
    ("network", st.builds(Rule, host=st.sampled_from(HOSTS), ports=ports)),
    ("tools", st.sampled_from(PATTERNS)),
]


@settings(max_examples=200, deadline=None)
@given(pairs, st.sampled_from(DENIALS), st.data())
def test_a_denial_more_never_adds_excess(two, denial, data):
    a, b = two
    section, items = denial
    part = getattr(a, section)
    stricter = replace(a, **{section: replace(part, deny=(*part.deny, data.draw(items)))})
    assert len(excess(stricter, b)) <= len(excess(a, b))
    assert excess(stricter, a) == ()


def kinds(found: tuple[Excess, ...]) -> set[tuple[str, str]]:
    return {(item.kind, item.what) for item in found}


# ---- Cases with a name

BASE = Profile.default(1)


def network(**fields) -> Profile:
    return replace(BASE, network=replace(BASE.network, **fields))


def files(**fields) -> Profile:
    return replace(BASE, filesystem=replace(BASE.filesystem, **fields))


def environment(**fields) -> Profile:
    return replace(BASE, environment=Environment(**{"passed": (), "set": (), **fields}))


def tools(allow: tuple[str, ...], deny: tuple[str, ...] = ()) -> Profile:
    return replace(BASE, tools=Tools(allow, deny))


def limits(**fields) -> Profile:
    return replace(BASE, process=replace(BASE.process, **fields))


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        (files(read=("/srv/a",)), files(read=("/srv",)), None),
        (files(read=("/srv",)), files(read=("/srv/a",)), ("filesystem.read", "/srv")),
        (files(read=("/srv",)), files(write=("/srv",)), None),
        (files(write=("/srv",)), files(read=("/srv",)), ("filesystem.write", "/srv")),
        (files(read=("/srv",)), files(read=("/srv",), deny=("/srv/k",)), ("filesystem.read", "/srv with /srv/k in it")),
        (files(read=("/srv",), deny=("/srv/k",)), files(read=("/srv",), deny=("/srv/k/l",)), None),
        (files(read=("/usr/share",)), files(), None),
        (files(), files(deny=("/usr/bin/gcc",)), ("filesystem.deny", "reading /usr with /usr/bin/gcc in it")),
        (files(workspace="overlay"), files(workspace="direct"), None),
        (files(workspace="direct"), files(workspace="overlay"), ("filesystem.workspace", "a workspace that is direct")),
        (
            files(workspace="overlay"),
            files(workspace="overlay", deny=("/w/.env",)),
            ("filesystem.workspace", "/w/.env in a workspace around it"),
        ),
        (network(allow=(Rule("x.a.b"),)), network(allow=(Rule("*.a.b"),)), None),
        (network(allow=(Rule("a.b"),)), network(allow=(Rule("*.a.b"),)), ("network.allow", "a.b:443")),
        (network(allow=(Rule("a.b", (80, 443)),)), network(allow=(Rule("a.b", (80,)), Rule("*.b", (443,)))), None),
        (network(allow=(Rule("a.b", (ANY_PORT,)),)), network(allow=(Rule("a.b"),)), ("network.allow", "a.b:*")),
        (network(allow=(Rule("10.1.0.0/16"),)), network(allow=(Rule("*"),)), ("network.allow", "10.1.0.0/16:443")),
        (network(allow=(Rule("a.b"),)), network(allow=(Rule("0.0.0.0/0"),)), ("network.allow", "a.b:443")),
        (
            network(allow=(Rule("*.b"),)),
            network(allow=(Rule("*.b"),), deny=(Rule("x.b", (ANY_PORT,)),)),
            ("network.allow", "*.b:443 with x.b:443 in it"),
        ),
        (
            network(allow=(Rule("a.b"),)),
            network(allow=(Rule("a.b"),), deny=(Rule("10.0.0.0/8", (ANY_PORT,)),)),
            ("network.allow", "a.b:443 with 10.0.0.0/8:443 in it"),
        ),
        (
            network(allow=(Rule("a.b", methods=("GET", "PUT")),)),
            network(allow=(Rule("a.b", methods=("GET",)), Rule("a.b", methods=("PUT",)))),
            None,
        ),
        (
            network(allow=(Rule("a.b"),)),
            network(allow=(Rule("a.b", secret="S"),)),
            ("network.allow", "a.b:443"),
        ),
        (
            network(allow=(Rule("a.b", secret="S"),)),
            network(allow=(Rule("a.b"),)),
            ("network.allow", "a.b:443 with secret S"),
        ),
        (network(ask=True), network(ask=True, deny=(Rule("a.b", (ANY_PORT,)),)), ("network.ask", "asking for a.b:*")),
        (files(read=("/srv",), deny=("/srv",)), files(), None),
        (
            network(allow=(Rule("a.b", max_body=20),)),
            network(allow=(Rule("a.b", max_body=10),)),
            ("network.allow", "a.b:443 with bodies of at most 20 bytes"),
        ),
        (
            network(allow=(Rule("a.b", methods=("GET",), max_body=10),)),
            network(allow=(Rule("a.b", max_body=10),)),
            None,
        ),
        (
            network(allow=(Rule("a.b", max_body=10),)),
            network(allow=(Rule("a.b", methods=("GET",), max_body=10),)),
            ("network.allow", "a.b:443 with bodies of at most 10 bytes"),
        ),
        (
            network(allow=(Rule("a.b", paths=("/v1/*",)),)),
            network(allow=(Rule("a.b", paths=("/v1/a*",)),)),
            ("network.allow", "a.b:443 with paths /v1/*"),
        ),
        (
            network(allow=(Rule("a.b", (ANY_PORT,)),)),
            network(allow=(Rule("a.b", (ANY_PORT,)),), deny=(Rule("a.b", (22,)),)),
            ("network.allow", "a.b:* with a.b:22 in it"),
        ),
        (network(allow=(Rule("a.b", max_requests=5),)), network(allow=(Rule("a.b"),)), None),
        (
            network(allow=(Rule("a.b"),)),
            network(allow=(Rule("a.b", max_requests=5),)),
            ("network.allow", "a.b:443"),
        ),
        (
            network(allow=(Rule("a.b", max_requests=6),)),
            network(allow=(Rule("a.b", max_requests=5),)),
            ("network.allow", "a.b:443 with at most 6 requests in all"),
        ),
        (
            network(allow=(Rule("a.b", max_bytes=6),)),
            network(allow=(Rule("a.b", max_requests=6),)),
            ("network.allow", "a.b:443 with at most 6 bytes in all"),
        ),
        (
            network(allow=(Rule("x.a.b", max_bytes=2), Rule("y.a.b", max_bytes=3))),
            network(allow=(Rule("*.a.b", max_bytes=5),)),
            None,
        ),
        (network(allow=(Rule("a.b"),)), network(allow=(Rule("a.b", ech=True, addresses=("10.0.0.0/8",)),)), None),
        (
            network(allow=(Rule("a.b", ech=True),)),
            network(allow=(Rule("a.b"),)),
            ("network.allow", "a.b:443 with encrypted hellos"),
        ),
        (
            network(allow=(Rule("a.b", addresses=("10.1.0.0/16", "10.2.0.0/16")),)),
            network(allow=(Rule("a.b", addresses=("10.1.0.0/16",)), Rule("*", addresses=("10.2.0.0/15",)))),
            None,
        ),
        (
            network(allow=(Rule("a.b", addresses=("0.0.0.0/0",)),)),
            network(allow=(Rule("a.b", addresses=("10.0.0.0/8",)),)),
            ("network.allow", "a.b:443 with addresses in 0.0.0.0/0"),
        ),
        (network(connect=("localhost:9=agent:a:1",)), network(connect=("agent:a:1",)), None),
        (network(connect=("agent:a:1",)), network(connect=("localhost:9=agent:a:1",)), None),
        (
            network(connect=("localhost:1=agent:b:1",)),
            network(connect=("localhost:1=agent:a:1",)),
            ("network.connect", "localhost:1=agent:b:1"),
        ),
        (
            network(connect=("host:1",)),
            network(connect=("host:1",), deny=(Rule("*", (ANY_PORT,)),)),
            ("network.connect", "host:1"),
        ),
        (
            environment(passed=("A",)),
            environment(passed=("A",), set=(("A", "1"),)),
            ("environment.pass", "the caller's A"),
        ),
        (environment(passed=("A",), set=(("A", "1"),)), environment(set=(("A", "1"),)), None),
        (environment(set=(("A", "1"),)), environment(set=(("A", "2"),)), ("environment.set", "A=1")),
        (tools(("file_*",)), tools(("*",), ("*_write",)), ("tools.allow", "file_* with *_write in it")),
        (tools(("file_*",), ("*_w*",)), tools(("*",), ("*_write",)), None),
        (limits(memory=None), limits(memory=5), ("process.memory", "no limit of memory")),
        (limits(memory=6), limits(memory=5), ("process.memory", "memory of 6 bytes")),
        (limits(memory=5), limits(memory=None), None),
        (Profile.default(2), BASE, None),
        (BASE, Profile.default(0), None),
    ],
)
def test_cases(a, b, found):
    assert [(item.kind, item.what) for item in excess(a, b)] == ([found] if found else [])


def test_a_wider_tier_is_excess_and_no_sandbox_is_beyond_every_sandbox():
    assert "tier" in {item.kind for item in excess(BASE, Profile.default(2))}
    assert "tier" in {item.kind for item in excess(Profile.default(0), BASE)}


def test_calls_are_compared_as_the_filter_lets_them_through():
    """`kcmp` is in @system-service, but the filter wants it by name."""
    named = replace(BASE, process=replace(BASE.process, syscalls=(*BASE.process.syscalls, "kcmp")))
    assert expand(named.process.syscalls) == expand(BASE.process.syscalls)
    assert [item.what for item in excess(named, BASE)] == ["@system-service (kcmp)", "kcmp"]


def test_two_that_fit_alone_may_not_fit_together():
    two = network(allow=(Rule("x.a.b", max_requests=3), Rule("y.a.b", max_requests=3)))
    found = excess(two, network(allow=(Rule("*.a.b", max_requests=5),)))
    assert [item.what for item in found] == [
        f"{host}:443 with at most 3 requests in all" for host in ("x.a.b", "y.a.b")
    ]


def test_excess_names_the_line_that_grants(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("schema = 1\ntier = 1\n[network]\nallow = [\n 'b.c',\n 'a.b',\n]\n")
    found = excess(Profile.load(path), network(allow=(Rule("b.c"),)))
    assert found == (Excess("network.allow", "a.b:443", f"{path}:6", ("network", "allow", 0), "b.c:443"),)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_a_ceiling_grants_no_more_than_itself(tier):
    assert excess(ceiling(tier), ceiling(tier)) == ()
