"""Verdicts on paths, from plans alone: which layer refuses, from which line, and what would change it.

That they are what the kernel does is held by tests/integration/test_cli_why_agrees.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from osmoda.sandbox.mount_view import Mount, Unknown
from osmoda.sandbox.operations import confinement, mounting
from osmoda.sandbox.verdict import path_verdict
from tests.compiled import compiled

WORK = b"/srv/project"


class Host(Unknown):
    """A host with the named links, kinds and refusals."""

    def __init__(self, links=(), kinds=(), closed=()) -> None:
        self.links, self.kinds, self.closed = dict(links), dict(kinds), set(closed)

    def readlink(self, path: str) -> str | None:
        return self.links.get(path)

    def kind(self, path: str) -> str | None:
        return self.kinds.get(path, "file")

    def permits(self, path: str, mode: str, mount: Mount) -> bool | None:
        return (path, mode) not in self.closed


@pytest.fixture
def granted(tmp_path):
    """A profile that reads `notes` without `notes/.env`, writes `data` without `data/secret`, and its plan."""
    for name in ("notes", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "secret").write_text("")
    text = """
        tier = 1
        [filesystem]
        read = ["notes"]
        write = ["data"]
        deny = ["notes/.env", "data/secret"]
        workspace = "direct"
    """
    profile, plan = compiled(text, tmp_path)

    def ask(path: str | Path, mode: str = "read", host: Unknown | None = None):
        return path_verdict(plan, WORK, str(path), mode, host=host, profile=profile)

    ask.plan, ask.profile = plan, profile
    return ask


def test_what_is_granted_is_allowed_from_its_line(granted, tmp_path):
    verdict = granted(tmp_path / "notes" / "a.txt")
    assert (verdict.allowed, verdict.layer, verdict.origin) == (True, "mounts", "/p/agent.toml:4")
    assert verdict.advice is None
    assert granted(tmp_path / "data" / "b.txt", "write").allowed
    assert granted("/srv/project/new", "write").layer == "workspace"


def test_what_is_not_granted_is_not_there_and_the_line_to_add_grants_it(granted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    verdict = granted(other)
    assert (verdict.allowed, verdict.layer) == (False, "mounts")
    assert verdict.advice.origin == "/p/agent.toml:4"
    profile, plan = compiled(f"tier = 1\n[filesystem]\n{verdict.advice.line}", tmp_path)
    assert path_verdict(plan, b"", str(other), "list", profile=profile).allowed


def test_reading_does_not_give_writing(granted, tmp_path):
    verdict = granted(tmp_path / "notes" / "a.txt", "write")
    assert (verdict.allowed, verdict.layer) == (False, "mounts")
    assert "read-only" in verdict.reason
    assert verdict.advice.line.startswith("write = ")
    assert verdict.advice.origin == "/p/agent.toml:5"


@pytest.mark.parametrize("denied", ["notes/.env", "notes/.env/below", "data/secret"])
@pytest.mark.parametrize("mode", ["read", "write", "exec", "list"])
def test_a_denied_path_names_the_line_that_denies_it(granted, tmp_path, denied, mode):
    verdict = granted(tmp_path / denied, mode)
    assert (verdict.allowed, verdict.layer) == (False, "mounts")
    assert verdict.advice.text == "/p/agent.toml:6 denies it (filesystem.deny)"
    assert verdict.advice.line == ""


def test_what_no_profile_may_grant_is_above_the_ceiling(granted):
    for path in ("/run/docker.sock", "/sys/kernel", "/boot/vmlinuz"):
        verdict = granted(path)
        assert not verdict.allowed
        assert verdict.advice.text.startswith("above tier 1's ceiling: ")


def test_in_tier_2_other_trees_are_above_the_ceiling():
    profile, plan = compiled("tier = 2")
    read = path_verdict(plan, b"", "/var/lib/thing", "read", profile=profile)
    write = path_verdict(plan, b"", "/opt/thing", "write", profile=profile)
    installed = path_verdict(plan, b"", "/opt/thing", "read", profile=profile)
    assert read.advice.text.startswith("above tier 2's ceiling: filesystem.read may hold ")
    assert "nothing but the workspace" in write.advice.text
    assert installed.advice.line == 'read = ["/opt/thing"]'


def test_links_are_followed_as_inside_and_not_as_on_the_host(granted, tmp_path):
    notes = tmp_path / "notes"
    host = Host(links={f"{notes}/in": "a.txt", f"{notes}/out": "/srv/secret", f"{notes}/up": "../data/b.txt"})
    assert granted(notes / "in", host=host).path == f"{notes}/a.txt"
    out = granted(notes / "out", host=host)
    assert (out.path, out.allowed) == ("/srv/secret", False)
    assert granted(notes / "up", "write", host=host).allowed
    # /bin is the sandbox's own link.
    assert granted("/bin/sh", "exec").path == "/usr/bin/sh"


def test_a_link_to_a_denied_name_does_not_get_around_it(granted, tmp_path):
    host = Host(links={f"{tmp_path}/notes/env": ".env"})
    assert not granted(tmp_path / "notes" / "env", host=host).allowed


def test_links_in_a_circle_are_refused_by_no_layer(granted, tmp_path):
    host = Host(links={f"{tmp_path}/notes/a": "b", f"{tmp_path}/notes/b": "a"})
    verdict = granted(tmp_path / "notes" / "a", host=host)
    assert (verdict.allowed, verdict.layer, verdict.reason) == (False, "", "its symbolic links lead in a circle")


def test_the_private_tmp_is_not_the_hosts(granted):
    assert not granted("/tmp/host-file").allowed
    assert "the host's is not there" in granted("/tmp/host-file").reason
    assert granted("/tmp/new", "write").allowed
    assert not granted("/tmp/no-folder/new", "write").allowed
    assert granted("/tmp", "list").allowed


def test_proc_shows_no_process_of_the_host_and_cannot_be_written(granted):
    assert granted("/proc/4711/environ").layer == "namespaces"
    assert granted("/proc/version").allowed
    assert granted("/proc/keys").layer == granted("/proc/key-users").layer == "mounts"
    assert granted("/proc/sys/kernel/core_pattern", "write").layer == "mounts"


def test_devices(granted):
    assert granted("/dev/null", "write").allowed
    assert not granted("/dev/sda").allowed
    assert not granted("/dev/null", "exec").allowed


def test_the_files_own_modes_are_the_last_to_refuse(granted, tmp_path):
    path = str(tmp_path / "notes" / "closed")
    verdict = granted(path, host=Host(closed={(path, "read")}))
    assert (verdict.allowed, verdict.layer) == (False, "permissions")


def test_what_the_host_does_not_have_is_refused_by_no_layer_but_can_be_made(granted, tmp_path):
    path = str(tmp_path / "data" / "new")
    host = Host(kinds={path: "absent"})
    assert granted(path, host=host).layer == ""
    assert granted(path, "write", host=host).allowed


def test_landlock_refuses_what_the_mounts_alone_would_show(granted, tmp_path):
    """Take the rules away from Landlock's operation: the answer changes, and names that layer."""
    (landlock,) = (op for op in granted.plan.operations if isinstance(op, confinement.Landlock))
    bare = confinement.Landlock(landlock.origin, landlock.handled_fs, 0, 0, landlock.abi, (), (), ())
    changed = tuple(bare if op is landlock else op for op in granted.plan.operations)
    plan = replace_operations(granted.plan, changed)
    verdict = path_verdict(plan, WORK, str(tmp_path / "notes" / "a.txt"), "read")
    assert (verdict.allowed, verdict.layer, verdict.origin) == (False, "landlock", landlock.origin)


def replace_operations(plan, operations):
    values = {name: getattr(plan, name) for name in type(plan).__fields__}
    return type(plan)(**values | {"operations": operations})


def test_a_mount_operation_that_is_not_known_is_never_passed_over(granted):
    class NovelMount(mounting.Operation):
        layer = "mounts"

        def __init__(self) -> None:
            """Without fields."""

    plan = replace_operations(granted.plan, (*granted.plan.operations, NovelMount()))
    with pytest.raises(TypeError, match="NovelMount"):
        path_verdict(plan, WORK, "/usr", "list")


def test_tier_0_confines_nothing():
    _, plan = compiled("tier = 0")
    verdict = path_verdict(plan, b"", "/etc/shadow", "write")
    assert (verdict.allowed, verdict.reason) == (True, "tier 0 confines nothing")


def test_the_sentence_holds_path_layer_origin_and_advice(granted, tmp_path):
    text = granted(tmp_path / "notes" / ".env").sentence()
    assert text.startswith(f"{tmp_path}/notes/.env may not be read: refused by mounts, ")
    assert text.endswith("/p/agent.toml:6 denies it (filesystem.deny)")
    assert dataclasses.asdict(granted("/usr"))["mode"] == "read"
