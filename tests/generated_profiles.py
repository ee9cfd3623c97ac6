"""Whole profiles, as hypothesis draws them: each is text that a person could have written, within its tier's ceiling.

Everything comes out of one small world of names, paths and ports, so that grants and denials meet. `make_world` makes
its files; profiles name them relative to their folder, which is theirs too.

There are 200 examples of a property, the same at every run. OSMODA_TEST_EXAMPLES=10000 (`tox run -e properties`) draws
as many, and new ones each time.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st

from osmoda.sandbox import profile_file
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import CompileError
from tests.compiled import host

if TYPE_CHECKING:
    from pathlib import Path

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile

type Table = dict[str, Any]
"""The values of a profile file, as `tomllib` reads them."""

EXAMPLES = int(os.environ.get("OSMODA_TEST_EXAMPLES", "200"))

examples = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 200,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
"""The settings of every property of whole profiles, as a decorator."""

# ---- The world

FILES = ("a/f", "a/b/f", "a/b/c/f", "a/d/f", "ab/f", "w/f", "w/x/f", "w2/f", "ws/f", "ws/secret/f")
LINKS = {"a/l": "b", "l": "a"}
ELSEWHERE = ("/usr/share/doc", "/usr/bin/env", "/usr/lib/os-release", "/opt", "/srv", "/usr")
WORKSPACE = "ws"

NAMES = ("example.com", "a.example.com", "b.example.com", "x.a.example.com", "other.org", "x.other.org")
HOSTS = (*NAMES, "*.example.com", "*.a.example.com", "*.org")
BEYOND_TIER_2 = ("*", "single", "10.0.0.0/8", "192.0.2.7")
ADDRESSES = ("10.1.2.3", "192.0.2.7", "8.8.8.8")
PORTS = (22, 80, 443)


def make_world(folder: Path) -> Path:
    """The files that profiles name, below `folder`."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    return folder


# ---- What may be written for each key


def some(*items: object, least: int = 0, most: int = 3) -> st.SearchStrategy[list[Any]]:
    """A list of `least` to `most` of the items, none of them twice."""
    if not items:
        return st.just([])
    return st.lists(st.sampled_from(items), min_size=least, max_size=min(most, len(items)), unique_by=json.dumps)


def table(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Table]:
    """A table with some of the keys; `passed` stands for `pass`."""
    found = st.fixed_dictionaries({}, optional=keys)
    return found.map(lambda drawn: {name.replace("passed", "pass"): value for name, value in drawn.items()})


def _rules(tier: int) -> st.SearchStrategy[Any]:
    hosts = st.sampled_from(HOSTS if tier == 2 else (*HOSTS, *BEYOND_TIER_2))
    ports = some(*PORTS, least=1, most=2)
    short = st.builds(lambda host, ports: f"{host}:{','.join(map(str, sorted(ports)))}", hosts, ports) | hosts
    inspected = st.fixed_dictionaries(
        {"host": st.sampled_from(HOSTS)},
        optional={
            "ports": ports,
            "methods": some("GET", "POST", least=1),
            "paths": some("/v1/*", "/v1/a", "/*", least=1),
            "secret": st.sampled_from(["KEY", "TOKEN"]),
            "max_body": st.sampled_from([10, "1K"]),
        },
    )
    counted: dict[str, st.SearchStrategy[Any]] = {
        "ports": ports,
        "max_bytes": st.sampled_from([10, "1M"]),
        "max_requests": st.integers(1, 3),
    }
    if tier == 1:
        counted |= {"ech": st.booleans(), "addresses": some("10.0.0.0/8", "10.1.2.3", "fd00::/8", least=1)}
    return short | inspected | st.fixed_dictionaries({"host": st.sampled_from(HOSTS)}, optional=counted)


CALLS = {
    1: (
        *("@system-service", "@debug", "@pkey", "@sandbox", "@basic-io", "@file-system", "@network-io", "@process"),
        *("ptrace", "kcmp", "chown", "mkdir", "~@chown", "~@network-io", "~mkdir", "~ptrace", "~@debug", "~socket"),
    ),
    2: (
        *("@system-service", "@pkey", "@sandbox", "@basic-io", "@file-system", "@network-io", "@process"),
        *("chown", "mkdir", "~@chown", "~@network-io", "~mkdir", "~socket", "~seccomp"),
    ),
}


def _capabilities(tier: int) -> dict[str, st.SearchStrategy[Any]]:
    own = ("a", "a/b", "a/b/f", "a/l", "ab", "l") if tier == 1 else ()
    families = ("unix", "inet", "inet6", "netlink") if tier == 1 else ("inet", "inet6")
    peers = ("agent:writer:8082", "agent:reader:80", "localhost:9000=agent:writer:8082", "mesh:s/a:1")
    return {
        "degrade": some("memory", "cpu", "landlock", "landlock-net", "landlock-scope", "notify", "idmap"),
        "filesystem": table(
            read=some(*own, *ELSEWHERE),
            write=some(*(("w", "w/x", "w2", "a/d") if tier == 1 else ()), most=2),
            deny=some(
                "a/b", "a/b/f", "a/missing", "ab", "w/x", "w/x/f", "l", "ws/secret", "/usr/share", "/etc/ld.so.cache"
            ),
            workspace=st.sampled_from(["none", "overlay", "direct"]),
            tmp=st.sampled_from(["1M", "64M", 4096]),
        ),
        "network": table(
            allow=st.lists(_rules(tier), max_size=3),
            deny=some(*HOSTS, "*.example.com:80", "10.1.0.0/16:22", "*", "8.8.8.8", "host", most=2),
            serve=some(8080, 8081, most=2),
            connect=some(*peers, *(("host:5432",) if tier == 1 else ()), most=2),
            ask=st.booleans(),
            loopback=st.booleans(),
            families=some(*families),
        ),
        "process": table(
            syscalls=some(*CALLS[tier], most=4),
            memory=st.sampled_from(["64M", "1G"]),
            cpu=st.sampled_from([0.5, 2.0]),
            pids=st.sampled_from([1, 64, 4096]),
            limits=table(
                open_files=st.sampled_from([16, 1024, 65536]),
                file_size=st.sampled_from([0, "1M"]),
                address_space=st.sampled_from(["1G", "4G"]),
                stack=st.sampled_from(["8M"]),
                core=st.just(0),
            ),
        ),
        "environment": table(
            passed=some("LANG", "TZ", "LC_ALL", "CI", *(("HOME", "X") if tier == 1 else ())),
            set=st.dictionaries(st.sampled_from(["X", "TZ", "LANG"]), st.sampled_from(["1", "2"])),
        ),
        "tools": table(allow=some("*", "file_*", "file_read", "mem_*"), deny=some("file_write", "*_read", most=2)),
        "mesh": table(send=some("*", "news/*", most=2), receive=some("jobs", "jobs/*", most=2)),
    }


@cache
def tables(*tiers: int) -> st.SearchStrategy[Table]:
    """Profiles of one of `tiers`, each within its ceiling."""
    one_of = [st.fixed_dictionaries({"tier": st.just(tier)}, optional=_capabilities(tier)) for tier in tiers]
    return st.one_of(one_of).map(deepcopy)


# What is above a tier's ceiling, or must never be granted: the key, and what is written there.
BEYOND: dict[int, tuple[tuple[str, Any], ...]] = {
    1: (
        *(("filesystem.read", [path]) for path in ("/proc", "/proc/1", "/run/x.sock", "/dev", "/sys", "/", "/boot")),
        *(("filesystem.write", [path]) for path in ("/", "/run", "/etc", "/dev/shm", "/var")),
        ("filesystem.tmp", "65G"),
        ("network.allow", ["127.0.0.1:80"]),
        ("network.allow", ["::1"]),
        *(("process.syscalls", [name]) for name in ("@mount", "mount", "@keyring", "bpf", "unshare", "@raw-io")),
        ("process.syscalls", ["@system-service", "~read"]),
        ("process.pids", 65537),
        *(("environment.pass", [name]) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES")),
        ("network.families", ["packet"]),
        ("degrade", ["seccomp"]),
    ),
    2: (
        *(("filesystem.read", [path]) for path in ("a", "/home", "/var", "/root", "/proc/self", "/run", "/")),
        *(("filesystem.write", [path]) for path in ("w", "/usr", "/opt")),
        ("filesystem.tmp", "5G"),
        *(("network.allow", [rule]) for rule in ("*", "*:443", "single", "10.0.0.0/8", "192.0.2.7:80")),
        ("network.allow", [{"host": "a.example.com", "addresses": ["10.0.0.0/8"]}]),
        ("network.allow", [{"host": "a.example.com", "ech": True}]),
        ("network.connect", ["host:5432"]),
        *(("network.families", [name]) for name in ("unix", "netlink")),
        *(("process.syscalls", [name]) for name in ("@debug", "ptrace", "kcmp", "@aio", "@setuid", "modify_ldt")),
        ("process.pids", 4097),
        ("process.limits.open_files", 65537),
        ("process.limits.core", 1),
        *(("environment.pass", [name]) for name in ("HOME", "SSH_AUTH_SOCK", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD")),
    ),
}  # fmt: skip


def with_value(profile: Table, key: str, value: Any) -> Table:
    """The profile with `value` at the dotted `key`; what a list holds already stays."""
    changed = deepcopy(profile)
    *tables_above, last = key.split(".")
    place = changed
    for name in tables_above:
        place = place.setdefault(name, {})
    place[last] = [*place.get(last, []), *value] if isinstance(value, list) else value
    return changed


def text(profile: Table) -> str:
    """The profile as TOML, one key a line."""
    lines = ["schema = 1", *(f"{key} = {_value(value)}" for key, value in profile.items() if not _is_table(value))]
    for name, section in profile.items():
        if _is_table(section):
            lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def loaded(profile: Table, folder: Path) -> Profile:
    """The profile, as a file in `folder` that nobody wrote. Raises ProfileError."""
    return profile_file.load_text(text(profile), str(folder / "agent.toml"), str(folder))


def compiled(profile: Table, folder: Path, **features: Any) -> tuple[Profile, Plan]:
    """The profile and its plan; one that the files of this host do not allow is no example."""
    found = loaded(profile, folder)
    try:
        return found, compile_profile(found, host(**features))
    except CompileError:
        reject()
