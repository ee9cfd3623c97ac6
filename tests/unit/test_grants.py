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


def glob(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def inside(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)


def rule_permits(rule: Rule, access: Access) -> bool:
    if not means(rule.host, str(access.what)) or (access.port not in rule.ports and ANY_PORT not in rule.ports):
        return False
    http_only = rule.methods or rule.paths or rule.secret or rule.max_body is not None
    if not access.method:
        return not http_only
    return (
        (not rule.methods or access.method in rule.methods)
        and (not rule.paths or any(glob(pattern, access.path) for pattern in rule.paths))
        and access.secret in ("", rule.secret)
        and (rule.max_body is None or access.body <= rule.max_body)
    )


def permits(profile: Profile, access: Access) -> bool:
    files, network, process = profile.filesystem, profile.network, profile.process
    what = str(access.what)
    denied = any(
        means(rule.host, what) and (access.port in rule.ports or ANY_PORT in rule.ports) for rule in network.deny
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
            return what in network.connect
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
HOSTS = [*NAMES, "*.a.b", "*.b", "*.x.a.b", "*", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"]
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
) | st.builds(Rule, host=st.sampled_from(HOSTS), ports=ports)
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
        connect=some(["agent:a:1", "agent:b:1", "host:1"]),
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
    ),
    st.builds(Access, st.just("ask"), st.sampled_from(NAMES), st.sampled_from(PORTS)),
    st.builds(Access, st.just("serve"), port=st.sampled_from(PORTS)),
    st.builds(Access, st.just("peer"), st.sampled_from(["agent:a:1", "agent:b:1", "host:1"])),
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
    + [Access("ask", host, port) for host in NAMES for port in PORTS],
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


def test_excess_names_the_line_that_grants(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("schema = 1\ntier = 1\n[network]\nallow = [\n 'b.c',\n 'a.b',\n]\n")
    found = excess(Profile.load(path), network(allow=(Rule("b.c"),)))
    assert found == (Excess("network.allow", "a.b:443", f"{path}:6", ("network", "allow", 0), "b.c:443"),)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_a_ceiling_grants_no_more_than_itself(tier):
    assert excess(ceiling(tier), ceiling(tier)) == ()
