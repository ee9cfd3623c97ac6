"""Which groups of the v2 hierarchy are this process's to divide, in a directory that looks like the hierarchy."""

from __future__ import annotations

import os
import stat

import pytest

from osmoda.host import delegation

ME = str(os.getpid())


@pytest.fixture
def booted(tmp_path, monkeypatch):
    """A host that systemd has booted."""
    monkeypatch.setattr(delegation, "_BOOTED", str(tmp_path))


@pytest.fixture
def unbooted(tmp_path, monkeypatch):
    monkeypatch.setattr(delegation, "_BOOTED", str(tmp_path / "none"))


@pytest.fixture
def mark(monkeypatch):
    """Groups that systemd has delegated; a tmpfs keeps no such attributes for users."""
    marked = set()

    def getxattr(path, name):
        if (path, name) in marked:
            return b"1"
        raise OSError(61, "No data available")

    monkeypatch.setattr(delegation.posix, "getxattr", getxattr)
    return lambda group, name="user.delegate": marked.add((group, name))


@pytest.fixture
def group(tmp_path):
    """Make a group: its processes and controllers, and whether it is the root (which has no type)."""

    def make(path, processes=(), controllers="cpuset cpu io memory pids", root=False):
        folder = tmp_path / "mount" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
        (folder / "cgroup.subtree_control").write_text("")
        (folder / "cgroup.controllers").write_text(controllers + "\n")
        if not root:
            (folder / "cgroup.type").write_text("domain\n")
        return str(folder)

    return make


@pytest.fixture
def mount(tmp_path):
    return str(tmp_path / "mount")


def test_controllers_are_those_that_limits_need(group):
    assert delegation.controllers(group("a")) == ["memory", "cpu", "pids"]
    assert delegation.controllers(group("b", controllers="pids misc")) == ["pids"]


@pytest.mark.parametrize(("processes", "ours"), [((), True), ((ME,), True), ((ME, "1"), False), (("0",), False)])
def test_a_group_is_ours_when_nobody_else_is_in_it(processes, ours, unbooted, group, mount):
    own = group("a/b", processes)
    assert delegation.place(mount, own) == (own if ours else "")


def test_the_root_may_hold_others(unbooted, group, mount):
    own = group("", ("1", "2", ME), root=True)
    assert delegation.place(mount, own) == own


def test_without_controllers_it_is_no_place(unbooted, group, mount):
    assert delegation.place(mount, group("a", (ME,), controllers="cpuset io")) == ""


@pytest.mark.parametrize("uid", [0, 4321])
def test_a_group_that_is_not_there_is_no_place(uid, booted, mount, mark, monkeypatch):
    monkeypatch.setattr(delegation.posix, "geteuid", lambda: uid)
    assert delegation.place(f"{mount}/unified", f"{mount}/unified/system.slice/a.service") == ""
    assert delegation.place(f"{mount}/unified", f"{mount}/unified") == ""


def test_what_lies_outside_the_cgroup_namespace_is_no_place(unbooted, group, mount):
    group("a", (ME,))
    group("b", (ME,))
    assert delegation.place(f"{mount}/b", f"{mount}/b/../a") == ""


@pytest.mark.parametrize("missing", ["cgroup.procs", "cgroup.subtree_control"])
def test_a_file_that_cannot_be_written_makes_it_no_place(missing, unbooted, group, mount, monkeypatch):
    own = group("a", (ME,))
    access = os.access
    monkeypatch.setattr(
        delegation.posix, "access", lambda path, mode: not path.endswith(missing) and access(path, mode)
    )
    assert delegation.place(mount, own) == ""


@pytest.mark.parametrize("name", ["user.delegate", "trusted.delegate"])
def test_systemd_leaves_alone_what_it_has_marked(name, booted, group, mount, mark):
    own = group("system.slice/a.service", (ME,))
    mark(own, name)
    assert delegation.place(mount, own) == own


@pytest.mark.parametrize(
    ("uid", "path", "ours"),
    [
        (0, "system.slice/a.service", False),
        ("owner", "system.slice/a.service", True),
        ("owner", "user.slice/user-7.slice/user@7.service/app.slice/a.scope", False),
        ("other", "system.slice/a.service", False),
    ],
)
def test_without_a_mark_only_a_users_own_group_outside_the_users_manager_is_delegated(
    uid, path, ours, booted, group, mount, mark, monkeypatch
):
    own = group(path, (ME,))
    os.chmod(own, stat.S_IRWXU | stat.S_IRWXO)
    owner = 4321 if os.geteuid() == 0 else os.geteuid()
    if os.geteuid() == 0:
        os.chown(own, owner, -1)
    monkeypatch.setattr(delegation.posix, "geteuid", lambda: {"owner": owner, "other": owner + 1}.get(uid, uid))
    assert delegation.place(mount, own) == (own if ours else "")


def test_a_scope_that_this_process_was_given_is_its_own(booted, group, mount, mark):
    own = group("user.slice/user-7.slice/user@7.service/app.slice/osmoda-1.scope", (ME,))
    assert delegation.place(mount, own) == ""
    assert delegation.place(mount, own, "osmoda-2.scope") == ""
    assert delegation.place(mount, own, "osmoda-1.scope") == own


def test_a_unit_with_a_delegated_subgroup_has_its_place_above(booted, group, mount, mark):
    unit = group("system.slice/a.service")
    # Nobody has handed the subgroup any controllers yet.
    own = group("system.slice/a.service/main", (ME, "1"), controllers="")
    assert delegation.place(mount, own) == ""
    mark(unit)
    assert delegation.place(mount, own) == unit
    group("system.slice/a.service", ("77",))
    assert delegation.place(mount, own) == ""


def test_what_is_delegated_to_the_users_manager_is_not_ours(booted, group, mount, mark):
    manager = group("user.slice/user-7.slice/user@7.service")
    mark(manager)
    own = group("user.slice/user-7.slice/user@7.service/init.scope", (ME, "1"))
    assert delegation.place(mount, own) == ""


# What systemd can be asked for.


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """The runtime directory of uid 4321, and its environment."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    environment = {"XDG_RUNTIME_DIR": str(folder)}
    monkeypatch.setattr(delegation.posix, "geteuid", lambda: 4321)
    monkeypatch.setattr(delegation.paths, "environment", lambda name: environment.get(name, ""))
    return folder, environment


def test_the_bus_of_the_users_manager(runtime, tmp_path):
    folder, environment = runtime
    assert delegation.manager_bus() == ""
    other = tmp_path / "session"
    other.write_text("")
    environment["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={other},guid=ab;unix:abstract=x"
    assert delegation.manager_bus() == str(other)
    (folder / "bus").write_text("")
    assert delegation.manager_bus() == str(folder / "bus")
    environment["DBUS_SESSION_BUS_ADDRESS"] = "unix:abstract=/tmp/dbus-x"
    (folder / "bus").unlink()
    assert delegation.manager_bus() == ""


def test_the_bus_of_root_is_the_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(delegation.posix, "geteuid", lambda: 0)
    monkeypatch.setattr(delegation, "_SYSTEM_BUS", str(tmp_path / "bus"))
    assert delegation.manager_bus() == ""
    (tmp_path / "bus").write_text("")
    assert delegation.manager_bus() == str(tmp_path / "bus")


def test_a_scope_has_the_controllers_of_its_manager(runtime, booted, group, mount):
    group("user.slice/user-4321.slice/user@4321.service", controllers="memory pids")
    assert delegation.offered(mount) == []
    (runtime[0] / "bus").write_text("")
    assert delegation.offered(mount) == ["memory", "pids"]
    group("user.slice/user-4321.slice/user@4321.service", controllers="")
    assert delegation.offered(mount) == []


def test_where_systemd_does_not_run_there_is_no_scope(runtime, unbooted, group, mount):
    group("user.slice/user-4321.slice/user@4321.service")
    (runtime[0] / "bus").write_text("")
    assert delegation.offered(mount) == []
