from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from osmoda.host import paths
from osmoda.sandbox import profile_file, tiers
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.profile import Profile, Rule

EXAMPLE = """\
schema = 1
tier = 1                      # the ceiling; 2 when absent
description = "Research agent: scrapes and summarises"

[filesystem]
read  = ["/opt/agents/research"]
write = ["/var/lib/research"]
deny  = ["/opt/agents/research/.env"]
workspace = "overlay"

[network]
allow = [
  "api.openai.com",
  "*.arxiv.org:80,443",
  { host = "github.com", ports = [22, 443] },
  { host = "api.example.com", methods = ["GET"], paths = ["/v1/*"], secret = "EXAMPLE_KEY" },
]
serve   = [8081]
connect = ["agent:writer:8082", "mesh:server-2/analysis:9000"]

[process]
syscalls = ["@system-service", "~@debug"]
memory = "512M"
cpu = 1.0
pids = 64

[environment]
pass = ["TZ", "LANG"]
set  = { PYTHONUNBUFFERED = "1" }

[tools]
allow = ["file_*", "memory_search"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles that is the caller's configuration too."""
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(
        paths, "directory", lambda kind: str(tmp_path) if kind == "config" else f"/nonexistent/{kind}/osmoda"
    )
    return tmp_path / "profiles"


def write(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = folder / f"{name}.toml"
    path.write_text(f"schema = 1\n{text}")
    return path


def error_of(path: pathlib.Path | str) -> str:
    with pytest.raises(ProfileError) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_example_of_the_design(folder):
    path = folder / "research.toml"
    path.write_text(EXAMPLE)
    profile = Profile.load(path)
    assert profile.tier == 1
    assert profile.filesystem.read == ("/opt/agents/research",)
    assert profile.filesystem.workspace == "overlay"
    assert profile.network.allow == (
        Rule("*.arxiv.org", (80, 443)),
        Rule("api.example.com", (443,), ("GET",), ("/v1/*",), "EXAMPLE_KEY"),
        Rule("api.openai.com", (443,)),
        Rule("github.com", (22, 443)),
    )
    assert profile.process.memory == 512 << 20
    assert profile.process.cpu == 1.0
    assert profile.process.syscalls[0] == "@system-service"
    assert "~@debug" in profile.process.syscalls
    assert profile.environment.passed == ("LANG", "TZ")
    assert profile.environment.set == (("PYTHONUNBUFFERED", "1"),)
    # What the example leaves open is the tier's.
    assert profile.filesystem.tmp == 256 << 20
    assert profile.network.families == ("inet", "inet6", "unix")


def test_each_value_has_its_origin(folder):
    path = folder / "research.toml"
    path.write_text(EXAMPLE)
    profile = Profile.load(path)

    def origin(*steps: str | int) -> str:
        return profile.origin(*steps).removeprefix(f"{path}:")

    assert origin("tier") == "2"
    assert origin("filesystem", "read", 0) == "6"
    assert origin("network", "allow", 0) == "14"
    assert origin("network", "allow", 2) == "13"
    assert origin("network", "allow", 1, "paths", 0) == "16"
    assert origin("environment", "set", "PYTHONUNBUFFERED") == "29"
    assert origin("environment", "pass", 0) == "28"
    assert origin("network", "allow") == "12"
    assert origin("process", "limits", "core") == "tier 1"
    assert origin("filesystem", "tmp") == "tier 1"
    assert origin("network", "deny", 0) == "tier 1"
    added = profile.process.syscalls.index("~@keyring")
    assert origin("process", "syscalls", added) == "tier 1"


def test_a_profile_is_immutable_hashable_and_can_be_stored(folder):
    profile = Profile.load("research")
    with pytest.raises(AttributeError):
        profile.tier = 0
    with pytest.raises(TypeError):
        profile.origins["tier",] = "x"
    assert hash(profile) == hash(Profile.load("research"))
    assert profile == Profile.load("research")
    restored = pickle.loads(pickle.dumps(replace(profile, origins={})))
    assert restored == profile


def test_the_digest_is_of_the_meaning(folder):
    one = Profile.load(write(folder, "a", "tools.allow = ['b', 'a']\ndescription = 'x'"))
    other = Profile.load(write(folder, "b", "\n# a comment\n[tools]\nallow = ['a', 'b', 'a']"))
    wider = Profile.load(write(folder, "c", "tools.allow = ['a', 'b', 'c']"))
    assert one.digest == other.digest != wider.digest
    assert len(one.digest) == 64


def test_nothing_declared_is_tier_2(folder):
    profile = Profile.load(write(folder, "empty", ""))
    assert replace(profile, description="") == replace(Profile.default(2), description="")


# ---- Names and files


def test_a_name_is_looked_for_in_the_configuration_then_among_the_samples(folder):
    assert Profile.load("support").tier == 2
    write(folder, "support", "tier = 1\ndescription = 'own'")
    assert Profile.load("support").description == "own"
    assert Profile.load("tier1") == Profile.default(1)
    write(folder, "tier1", "tier = 2\ndescription = 'own'")
    assert Profile.load("tier1").description == "own"


@pytest.mark.parametrize("name", ["nobody", "..", "a b", "", "tier3"])
def test_a_name_that_nothing_has_says_where_it_looked(folder, name):
    assert f"no profile has this name; looked in {folder}" in error_of(name)


@pytest.mark.parametrize(
    "path", sorted(pathlib.Path(tiers.SHIPPED, "agents").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_samples_are_valid(path):
    assert Profile.load(path).description


def test_a_relative_path_is_absolute_in_the_profile(folder, monkeypatch):
    write(folder, "a", "tools.allow = ['x']")
    monkeypatch.chdir(folder)
    profile = Profile.load("a.toml")
    assert profile.file == str(folder / "a.toml")
    assert profile.origin("tools", "allow", 0) == f"{folder}/a.toml:2"


def test_a_file_that_cannot_be_read(folder):
    assert error_of(folder / "none.toml").endswith("none.toml: the profile cannot be read: No such file or directory")
    assert "regular file" in error_of(f"{folder}/")
    os.mkfifo(folder / "pipe.toml")
    assert "regular file" in error_of(folder / "pipe.toml")
    (folder / "bad.toml").symlink_to("/proc/self/mem")  # a regular file whose first bytes no process has
    assert error_of(folder / "bad.toml").endswith("bad.toml: the profile cannot be read: Input/output error")
    (folder / "nul.toml").write_bytes(b"schema = 1\n\xff")
    assert error_of(folder / "nul.toml").endswith(":2:1: the text is not UTF-8")
    (folder / "huge.toml").write_bytes(b"#" * (profile_file.MOST_BYTES + 1))
    assert "at most" in error_of(folder / "huge.toml")
    assert "embedded null byte" in error_of("/a\0b")


def test_every_file_that_it_was_made_from_is_recorded(folder):
    base = write(folder, "base", "tools.allow = ['a']")
    top = write(folder, "top", "extends = 'base'")
    profile = Profile.load(top)
    # Its own comes first, wherever it lies: that is the one an approval is written into.
    assert [path for path, _ in profile.files] == [str(top), str(base), os.path.join(tiers.SHIPPED, "tier2.toml")]
    base.write_text(base.read_text() + "\n")
    assert Profile.load(top).files != profile.files
    assert Profile.load(top).digest == profile.digest


# ---- extends


def test_extending_unites_grants_and_the_tightest_value_holds(folder):
    write(folder, "base", "tier = 1\n[filesystem]\nread = ['/opt/a']\n[process]\npids = 10\nmemory = '1G'")
    write(folder, "other", "tier = 1\n[filesystem]\nread = ['/opt/b']\ndeny = ['/opt/a/x']\n[process]\npids = 20")
    top = write(folder, "top", "extends = ['base', './other.toml']\n[process]\nmemory = '2G'")
    profile = Profile.load(top)
    assert profile.tier == 1
    assert profile.filesystem.read == ("/opt/a", "/opt/b")
    assert profile.filesystem.deny == ("/opt/a/x",)
    assert profile.process.pids == 10
    assert profile.process.memory == 1 << 30
    assert profile.origin("filesystem", "read", 1) == f"{folder}/other.toml:4"
    turned = write(folder, "turned", "extends = ['./other.toml', 'base']\n[process]\nmemory = '2G'")
    assert Profile.load(turned).digest == profile.digest


def test_the_strictest_tier_holds_and_its_ceiling_is_checked(folder):
    write(folder, "base", "tier = 1\n[filesystem]\nwrite = ['/srv/data']")
    top = write(folder, "top", "extends = 'base'\ntier = 2")
    assert error_of(top).startswith(
        f"{folder}/base.toml:4:10: filesystem.write grants /srv/data, above the ceiling of tier 2; allowed: nothing"
    )
    assert Profile.load(write(folder, "same", "extends = 'base'")).tier == 1
    write(folder, "mixed-in", "[tools]\nallow = ['a']")
    assert Profile.load(write(folder, "top1", "extends = 'mixed-in'\ntier = 1")).tier == 1


def test_a_relative_path_belongs_to_the_file_that_holds_it(folder):
    (folder / "sub").mkdir()
    write(folder / "sub", "base", "tier = 1\n[filesystem]\nread = ['code']")
    profile = Profile.load(write(folder, "top", "extends = './sub/base.toml'\n[filesystem]\nread = ['code']"))
    assert profile.filesystem.read == (f"{folder}/code", f"{folder}/sub/code")


def test_one_base_reached_on_two_ways_is_no_circle(folder):
    write(folder, "base", "tools.allow = ['a']\nenvironment.set = { A = '1' }")
    write(folder, "left", "extends = 'base'")
    write(folder, "right", "extends = 'base'")
    assert Profile.load(write(folder, "top", "extends = ['left', 'right']")).tools.allow == ("a",)


@pytest.mark.parametrize(
    ("bases", "error"),
    [
        ({"a": "'a'"}, "a.toml:2:1: extends leads in a circle: {folder}/a.toml extends {folder}/a.toml"),
        (
            {"a": "'b'", "b": "['c']", "c": "['./b.toml']"},
            "c.toml:2:12: extends leads in a circle: {folder}/b.toml extends {folder}/c.toml extends {folder}/b.toml",
        ),
        ({"a": "'none'"}, 'a.toml:2:1: extends "none", but no profile has this name in'),
        ({"a": "'tier1'"}, 'a.toml:2:1: extends "tier1", but no profile has this name in'),
        ({"a": "'./none.toml'"}, 'a.toml:2:1: extends "./none.toml", but there is no {folder}/none.toml'),
        ({"a": "[1]"}, "a.toml:2:12: extends[0] is 1; allowed: the name or file of a profile"),
    ],
)
def test_extends_that_leads_nowhere_or_in_a_circle(folder, bases, error):
    for name, extends in bases.items():
        write(folder, name, f"extends = {extends}")
    assert error_of(folder / "a.toml").startswith(f"{folder}/{error.format(folder=folder)}")


# ---- Ceilings


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[filesystem]\nread = ['/etc']", "3:9: filesystem.read grants /etc, above the ceiling of tier 2; allowed: /"),
        ("[network]\nallow = ['*']", "3:10: network.allow grants *:443, above the ceiling of tier 2; allowed: *.*:* w"),
        ("[network]\nallow = ['10.0.0.0/8']", "3:10: network.allow grants 10.0.0.0/8:443, above the ceiling of tier 2"),
        ("[network]\nallow = ['localhost']", "3:10: network.allow grants localhost:443, above the ceiling of tier 2"),
        ("[network]\nconnect = ['host:5432']", "3:12: network.connect grants host:5432, above the ceiling of tier 2"),
        (
            "[network]\nallow = [{ host = 'a.com', addresses = ['10.0.0.0/8'] }]",
            "3:10: network.allow grants a.com:443 with addresses in 10.0.0.0/8, above the ceiling of tier 2",
        ),
        (
            "[network]\nallow = [{ host = 'a.com', ech = true }]",
            "3:10: network.allow grants a.com:443 with encrypted hellos, above the ceiling of tier 2",
        ),
        (
            "[network]\nfamilies = ['unix']",
            "3:13: network.families grants unix sockets, above the ceiling of tier",
        ),
        (
            "[process]\npids = 5000",
            "3:1: process.pids grants pids of 5000 processes, above the ceiling of tier",
        ),
        (
            "[process.limits]\ncore = 1",
            "3:1: process.limits grants core of 1 bytes, above the ceiling of tier",
        ),
        ("[process]\nsyscalls = ['ptrace']", "3:13: process.syscalls: ptrace reaches into other processes"),
        ("[process]\nsyscalls = ['@debug']", "3:13: process.syscalls grants @debug ("),
        ("[process]\nsyscalls = ['keyctl']", "3:13: process.syscalls: keyctl reaches the kernel's keyrings"),
        (
            "[environment]\npass = ['HOME']",
            "3:9: environment.pass grants the caller's HOME, above the ceiling of",
        ),
        (
            "tier = 1\n[environment]\npass = ['LD_PRELOAD']",
            "4:9: environment.pass grants the caller's LD_PREL",
        ),
        ("tier = 1\n[filesystem]\nread = ['/']", "4:9: filesystem.read: / holds /boot, which no profile of this tier"),
        ("tier = 1\n[filesystem]\nread = ['/run/x']", "4:9: filesystem.read: /run/x lies in /run, which no profile of"),
        ("tier = 1\n[filesystem]\nwrite = ['/etc']", "4:10: filesystem.write: writing /etc would reach /etc/osmoda"),
        ("tier = 1\n[process]\nsyscalls = ['~read']", "4:13: process.syscalls: read cannot be removed"),
        ("[process]\nsyscalls = ['setuid']", "3:13: process.syscalls grants setuid, which tier 2 takes away"),
        ("[process]\nsyscalls = ['@known']", "3:13: process.syscalls grants @known ("),
        ("[process]\nsyscalls = ['@keyring']", "3:13: process.syscalls grants @keyring, which tier 2 takes away"),
        ("tier = 1\n[process]\nsyscalls = ['bpf']", "4:13: process.syscalls: bpf opens kernel interfaces"),
        ("tier = 0\n[filesystem]\nread = ['/opt']", "4:1: filesystem.read would not be enforced: tier 0 is unrestr"),
        ("tier = 0\nnetwork.loopback = true", "3:1: network.loopback would not be enforced"),
        ("tier = 0\nprocess.syscalls = ['read']", "3:1: process.syscalls would not be enforced"),
    ],
)
def test_above_the_ceiling_is_an_error_that_says_what_is_allowed(folder, text, error):
    path = write(folder, "p", text)
    assert error_of(path).startswith(f"{path}:{error}")


def test_what_tier_2_may_say_about_a_destination(folder):
    rule = "{ host = 'a.com', max_bytes = '1G', max_requests = 10 }"
    text = f"[network]\nallow = [{rule}]\nconnect = ['localhost:8081=agent:research:8081']"
    profile = Profile.load(write(folder, "p", text))
    assert profile.network.allow == (Rule("a.com", max_bytes=1 << 30, max_requests=10),)
    assert profile.network.connect == ("localhost:8081=agent:research:8081",)


def test_a_port_of_localhost_has_one_meaning(folder):
    write(folder, "a", "network.connect = ['localhost:1=agent:a:1']")
    path = write(folder, "p", "extends = './a.toml'\n[network]\nserve = [7]\nconnect = ['localhost:1=agent:b:1']")
    assert error_of(path) == (
        f'{path}:5:12: network.connect: "localhost:1=agent:b:1" and "localhost:1=agent:a:1" are both localhost:1 inside'
    )
    path = write(folder, "p", "[network]\nserve = [7]\nconnect = ['localhost:7=agent:b:1']")
    assert error_of(path).startswith(f'{path}:4:12: network.connect: "localhost:7=agent:b:1" takes port 7, which netw')


def test_all_that_is_above_the_ceiling_is_said(folder):
    path = write(folder, "p", "[filesystem]\nread = ['/etc', '/opt', '/home']\n[network]\nloopback = true\nserve = [1]")
    with pytest.raises(ProfileError) as caught:
        Profile.load(path)
    assert [(error.line, error.column) for error in (caught.value, *caught.value.others)] == [(3, 9), (3, 25)]


def test_tier_0_may_declare_limits_environment_and_tools(folder):
    text = "tier = 0\n[process]\nmemory = '1G'\n[environment]\nset = { A = 'x' }\n[tools]\nallow = ['*']"
    profile = Profile.load(write(folder, "p", text))
    assert profile.process.memory == 1 << 30
    assert profile.filesystem.read == ("/",)


def test_a_group_loses_what_the_tier_takes_away_and_the_profile_shows_it(folder):
    profile = Profile.load(write(folder, "p", "process.syscalls = ['@system-service']"))
    assert {"@system-service", "~@keyring", "~setns"} <= set(profile.process.syscalls)


def test_a_list_of_removals_removes_from_the_default(folder):
    profile = Profile.load(write(folder, "p", "process.syscalls = ['~@chown']"))
    assert {"@system-service", "~@chown"} <= set(profile.process.syscalls)


def test_importing_the_model_stays_cheap():
    """What a compile does not need at import: these cost more than the whole model."""
    code = "import sys, osmoda.sandbox.profile; print(' '.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "importlib.resources", "idna", "logging", "pydantic", "rich", "tree_sitter"} & set(found)
