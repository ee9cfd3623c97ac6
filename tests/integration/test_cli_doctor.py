"""`doctor` on this host: every layer fires, and one that is missing is told and mended."""

from __future__ import annotations

import json

from tests.worlds import World

NEEDED = ["namespaces", "identity", "mounts", "network", "capabilities", "limits", "seccomp", "terminal", "workspace"]


def test_every_layer_of_this_host_refuses_what_it_must(world: World) -> None:
    run = world.osmoda("doctor", "--json")
    checks = json.loads(run.stdout)
    by_layer = {check["layer"]: check for check in checks}
    assert list(dict.fromkeys(check["layer"] for check in checks))[: len(NEEDED)] == NEEDED
    wrong = [check for check in checks if check["needed"] and check["status"] != "active"]
    assert wrong == []
    assert run.returncode == 0
    assert run.stderr == ""
    if world.is_root:
        assert by_layer["cgroup memory"]["status"] == "active"
        assert by_layer["cgroup cpu"]["status"] == "active"


def test_the_page_says_what_was_tried_and_what_the_kernel_said(world: World) -> None:
    run = world.osmoda("doctor", check=True)
    assert "kill a process of the host: No such process" in run.stdout
    assert "write to /usr: Read-only file system" in run.stdout
    assert run.stdout.rstrip().endswith("This host enforces all that the tiers need.")


def test_without_a_cgroup_limits_are_unavailable_and_the_way_to_them_is_told(world: World) -> None:
    checks = json.loads(world.osmoda("doctor", "--json").stdout)
    memory = next(check for check in checks if check["layer"] == "cgroup memory")
    if memory["status"] == "unavailable":
        assert 'degrade = ["memory"]' in memory["mend"]
        assert not memory["needed"]
    else:
        assert memory["answer"] == "the kernel ended it"


def examine_without_user_namespaces() -> list[tuple[str, str, str]]:
    """In a process of its own, in a user namespace in which no further ones are allowed."""
    import os

    from osmoda.sandbox import doctor

    uid, gid = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")
    checks = doctor.examine()
    assert not doctor.healthy(checks)
    return [(check.layer, check.status, check.mend) for check in checks]


def test_a_host_without_user_namespaces_is_told_how_to_allow_them(world: World) -> None:
    first, *rest = world.call(examine_without_user_namespaces)
    assert first[:2] == ("sandbox", "unavailable")
    assert "sysctl user.max_user_namespaces" in first[2]
    # Landlock can still be tried alone.
    assert ("landlock", "active", "") in rest
