"""From profile and host to operations: what is granted, hidden, covered, and what stops the compilation."""

from __future__ import annotations

import os

import pytest

from osmoda.host import paths
from osmoda.ledger import folder
from osmoda.sandbox import compile as compiler
from osmoda.sandbox import mount_points, system_view
from osmoda.sandbox.errors import CompileError, ProfileError
from osmoda.sandbox.operations import confinement, isolation, mounting
from tests.compiled import compiled

FILE = "/p/agent.toml"


@pytest.fixture
def tree(tmp_path):
    """Folders and files to grant and deny: tree/{a,b/c,secret,link -> a}."""
    top = tmp_path / "tree"
    (top / "b" / "c").mkdir(parents=True)
    (top / "a").mkdir()
    (top / "secret").write_text("s")
    (top / "b" / "secret").write_text("s")
    (top / "link").symlink_to("a")
    return top


def files(text, **changed):
    """Line 3 and following are those of `text`."""
    return compiled(f"tier = 1\n[filesystem]\n{text}\n", **changed)[1]


def of(plan, *classes):
    return [op for op in plan if isinstance(op, classes)]


def names(paths):
    return [os.fsdecode(path) for path in paths]


def stops(text, **changed):
    with pytest.raises(CompileError) as error:
        files(text, **changed)
    assert "\n" not in str(error.value)
    return str(error.value)


# Denied names in trees that are read


def test_a_denied_name_in_a_read_tree_is_hidden_from_it(tree):
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/secret", "{tree}/b/secret", "{tree}/not-there"]')
    (read,) = of(plan, mounting.ReadTree)
    assert (read.path, read.origin) == (os.fsencode(tree), f"{FILE}:4")
    assert sorted(names(read.hidden)) == ["b/secret", "not-there", "secret"]
    assert of(plan, mounting.Seal)[0].staged
    assert of(plan, mounting.Mask) == []


@pytest.fixture
def secrets(tree, monkeypatch):
    """The folder of secrets' values, in a tree that is granted."""
    monkeypatch.setattr(paths, "directory", lambda kind: f"{tree}/b/{kind}")
    return tree / "b" / "config" / "secrets"


@pytest.mark.parametrize("there", [False, True])
def test_no_tree_shows_the_values_of_secrets(tree, secrets, there):
    if there:
        secrets.mkdir(parents=True)
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/secret"]')
    assert sorted(names(of(plan, mounting.ReadTree)[0].hidden)) == ["b/config/secrets", "b/state/ledger/key", "secret"]
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/b"]')
    assert names(of(plan, mounting.ReadTree)[0].hidden) == ["b"]
    assert names(of(files(f'read = ["{tree}/a"]'), mounting.ReadTree)[0].hidden) == []


def test_nor_what_a_link_in_their_place_leads_to(tree, secrets):
    secrets.parent.mkdir()
    secrets.symlink_to(tree / "a")
    plan = files(f'read = ["{tree}"]')
    assert sorted(names(of(plan, mounting.ReadTree)[0].hidden)) == ["a", "b/config/secrets", "b/state/ledger/key"]


def test_nor_the_key_that_the_ledger_is_signed_with(tree, secrets):
    ledger = tree / "b" / "state" / "ledger"
    ledger.mkdir(parents=True)
    (ledger / folder.KEY).write_bytes(b"seed")
    plan = files(f'read = ["{ledger}"]')
    assert names(of(plan, mounting.ReadTree)[0].hidden) == ["key"]
    with pytest.raises(ProfileError, match=f"{FILE}:4:9: .* no sandbox sees {ledger}/key, which the ledger is signed"):
        files(f'read = ["{ledger}/key"]')


def test_nor_a_tree_of_several_file_systems(tree, secrets, monkeypatch):
    monkeypatch.setattr(mount_points, "mount_points", lambda: (f"{tree}/a",))
    assert of(files(f'read = ["{tree}"]'), mounting.Mask) == []  # there are none; a plan that was kept ends with that
    secrets.mkdir(parents=True)
    (mask,) = of(files(f'read = ["{tree}"]'), mounting.Mask)
    assert (mask.path, mask.always) == (os.fsencode(secrets), True)


@pytest.mark.parametrize("name", ["", "EXAMPLE_KEY"])
def test_they_cannot_be_granted(secrets, name):
    secrets.mkdir(parents=True)
    (secrets / "EXAMPLE_KEY").write_text("value")
    with pytest.raises(
        ProfileError, match=f"{FILE}:4:9: .* no sandbox sees {secrets}, where the values of secrets are kept"
    ):
        files(f'read = ["{secrets / name}"]')


def test_what_lies_in_a_denied_folder_needs_no_hiding_of_its_own(tree):
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/b", "{tree}/b/c", "{tree}/b/secret"]')
    assert names(of(plan, mounting.ReadTree)[0].hidden) == ["b"]


def test_a_denied_link_hides_itself_and_what_it_leads_to(tree):
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/link"]')
    assert sorted(names(of(plan, mounting.ReadTree)[0].hidden)) == ["a", "link"]


def test_a_grant_in_a_denied_tree_grants_nothing(tree):
    plan = files(f'read = ["{tree}/b/c", "{tree}/b/secret"]\nwrite = ["{tree}/b"]\ndeny = ["{tree}/b"]')
    assert of(plan, mounting.Grant) == []


def test_a_grant_of_a_link_into_a_denied_tree_grants_nothing(tree):
    plan = files(f'read = ["{tree}/link"]\ndeny = ["{tree}/a"]')
    assert of(plan, mounting.Grant, mounting.Alias) == []


def test_a_denied_name_beside_the_grants_changes_nothing(tree):
    plan = files(f'read = ["{tree}/a"]\ndeny = ["{tree}/secret"]')
    assert of(plan, mounting.ReadTree)[0].hidden == ()
    assert of(plan, mounting.Mask) == []


# Denied names in trees that are written, and in the workspace


def test_a_denied_name_in_a_written_tree_is_covered(tree):
    plan = files(f'write = ["{tree}"]\ndeny = ["{tree}/b/secret"]')
    (mask,) = of(plan, mounting.Mask)
    assert (names([mask.path]), mask.always, mask.origin) == ([f"{tree}/b/secret"], True, f"{FILE}:5")
    order = list(map(type, plan))
    assert order.index(mounting.WriteTree) < order.index(mounting.Mask) < order.index(mounting.Seal)


def test_one_that_is_not_there_stops_the_compilation(tree):
    message = stops(f'write = ["{tree}"]\ndeny = ["{tree}/none"]')
    assert message.startswith(
        f"{FILE}:5: {tree}/none does not exist and so cannot be denied in {tree}, which is written"
    )


def test_so_does_a_link_which_no_mount_can_cover(tree):
    message = stops(f'write = ["{tree}"]\ndeny = ["{tree}/link"]')
    assert message.startswith(f"{FILE}:5: {tree}/link is a symbolic link, which cannot be denied in {tree}")
    assert message.endswith(f"deny what it leads to, {tree}/a")


@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_any_denied_name_may_lie_in_the_workspace(mode, tree):
    plan = files(f'workspace = "{mode}"\nread = ["{tree}"]\ndeny = ["{tree}/secret", "/srv/other"]')
    masks = of(plan, mounting.Mask)
    assert {(names([mask.path])[0], mask.always) for mask in masks} == {
        (f"{tree}/secret", False),
        ("/srv/other", False),
    }
    for overlay in of(plan, mounting.OverlayWorkspace):
        assert {*overlay.masked} == {mask.path for mask in masks}


def test_without_a_workspace_nothing_is_covered_for_it():
    plan = files('workspace = "none"\ndeny = ["/srv/other"]')
    assert of(plan, mounting.Mask, mounting.DirectWorkspace, mounting.OverlayWorkspace, mounting.Pinned) == []
    assert b"/workspace" in {op.path for op in of(plan, mounting.Scratch)}


# Denied names in the system's trees


def test_a_denied_name_in_usr_is_hidden_from_it():
    plan = files('deny = ["/usr/share/doc", "/usr/lib/none"]')
    (without,) = of(plan, mounting.SystemTreeWithout)
    assert without.path == b"/usr"
    assert sorted(names(without.hidden)) == ["lib/none", "share/doc"]
    assert without.origin == f"{FILE}:4"
    assert of(plan, mounting.Seal)[0].staged


def test_through_a_link_of_the_root_it_is_hidden_too():
    if not os.path.islink("/bin"):
        pytest.skip("this host has no merged /usr")
    (without,) = of(files('deny = ["/bin/none"]'), mounting.SystemTreeWithout)
    assert names(without.hidden) == ["bin/none"]


def contents(plan):
    """What the skeleton copies of the host's /etc."""
    return {f"/{os.fsdecode(name)}" for name, _ in of(plan, mounting.Skeleton)[0].files} & {*system_view.copied()}


@pytest.mark.parametrize("denied", system_view.copied())
def test_a_denied_file_of_etc_is_neither_copied_nor_mounted(denied):
    """Small files are copied into the plan, where no mount would hide them."""
    plan = files(f'deny = ["{denied}"]')
    assert denied not in contents(plan)
    assert denied.encode() not in {op.path for op in of(plan, mounting.SystemTree)}


@pytest.mark.parametrize("copied", system_view.copied())
def test_nor_is_one_whose_real_file_is_denied(copied):
    assert copied not in contents(files(f'deny = ["{os.path.realpath(copied)}"]'))


def test_all_of_etc_can_be_denied():
    plan = files('deny = ["/etc"]')
    assert contents(plan) == set()
    assert [op.path for op in of(plan, mounting.SystemTree) if op.path.startswith(b"/etc")] == []


@pytest.mark.parametrize("path", [path for path in system_view.trees() if path.startswith("/etc")])
def test_a_denied_system_tree_is_not_shown(path):
    assert path.encode() not in {op.path for op in of(files(f'deny = ["{path}"]'), mounting.SystemTree)}


# Grants in one another, and links


def test_only_the_outermost_of_nested_reads_is_mounted(tree):
    plan = files(f'read = ["{tree}", "{tree}/b", "{tree}/b/c"]')
    assert [op.path for op in of(plan, mounting.Grant)] == [os.fsencode(tree)]


def test_a_read_in_a_written_or_system_tree_is_there_already(tree):
    plan = files(f'read = ["{tree}/b", "/usr/share"]\nwrite = ["{tree}"]')
    assert [type(op) for op in of(plan, mounting.Grant)] == [mounting.WriteTree]


def test_a_write_in_a_read_tree_is_mounted_over_it(tree):
    plan = files(f'read = ["{tree}"]\nwrite = ["{tree}/b"]')
    assert [(type(op), op.path) for op in of(plan, mounting.Grant)] == [
        (mounting.ReadTree, os.fsencode(tree)),
        (mounting.WriteTree, os.fsencode(tree / "b")),
    ]


def test_a_denied_name_in_a_write_in_a_read_tree_belongs_to_the_write(tree):
    plan = files(f'read = ["{tree}"]\nwrite = ["{tree}/b"]\ndeny = ["{tree}/b/secret", "{tree}/secret"]')
    assert names(of(plan, mounting.ReadTree)[0].hidden) == ["secret"]
    assert names(op.path for op in of(plan, mounting.Mask)) == [f"{tree}/b/secret"]


def test_a_file_is_mounted_as_one(tree):
    assert [type(op) for op in of(files(f'read = ["{tree}/secret"]'), mounting.Grant)] == [mounting.ReadFile]


def test_a_tree_with_file_systems_in_it_is_mounted_with_them(tree, monkeypatch):
    monkeypatch.setattr(mount_points, "mount_points", lambda: ("/", f"{tree}/b"))
    plan = files(f'read = ["{tree}"]\ndeny = ["{tree}/secret"]')
    assert [type(op) for op in of(plan, mounting.Grant)] == [mounting.ReadMounts]
    assert [op.always for op in of(plan, mounting.Mask)] == [True]
    message = stops(f'read = ["{tree}"]\ndeny = ["{tree}/none"]')
    assert f"{tree}/none does not exist and so cannot be denied in {tree}, which is made of several" in message


def test_mount_points_are_found_with_their_odd_names(tmp_path, monkeypatch):
    table = b"1 1 0:1 / / rw - x x rw\n2 1 0:2 / /mnt/a\\040b\\134c\xc3\xa4 rw - x x rw\n"
    (tmp_path / "mountinfo").write_bytes(table)
    open_ = open
    monkeypatch.setattr(mount_points, "open", lambda path, mode: open_(tmp_path / "mountinfo", mode), raising=False)
    assert mount_points.mount_points() == ("/", "/mnt/a b\\cä")


def test_a_granted_link_is_made_again_where_nothing_shows_it(tree):
    plan = files(f'read = ["{tree}/link"]')
    assert [op.path for op in of(plan, mounting.ReadTree)] == [os.fsencode(tree / "a")]
    assert [(op.path, op.target) for op in of(plan, mounting.Alias)] == [
        (os.fsencode(tree / "link"), os.fsencode(tree / "a"))
    ]


def test_and_once_only(tree):
    plan = files(f'read = ["{tree}/link"]\nwrite = ["{tree}/link"]')
    assert len(of(plan, mounting.Alias)) == 1


@pytest.mark.parametrize("grant", ["{tree}/link", "/bin", "/bin/sh", "/usr/bin/sh"])
def test_it_is_not_made_where_a_tree_or_the_root_shows_it(grant, tree):
    granted = grant.format(tree=tree)
    if os.path.realpath(granted) == granted:
        pytest.skip("no link on this host")
    assert of(files(f'read = ["{tree}", "{granted}"]'), mounting.Alias) == []


def test_names_that_are_no_text_are_granted(tree):
    odd = os.fsencode(tree) + b"/\xff"
    os.mkdir(odd)
    os.symlink(b"\xff", os.fsencode(tree / "odd"))
    plan = files(f'read = ["{tree}/odd"]')
    assert [op.path for op in of(plan, mounting.ReadTree)] == [odd]


def test_what_is_missing_names_the_line(tree):
    assert stops(f'read = ["{tree}", "{tree}/none"]') == (f"{FILE}:4: {tree}/none cannot be granted: it does not exist")


# What decides about the next launch


def test_the_profile_and_this_package_are_pinned_in_what_is_written(tree):
    profile = tree / "agent.toml"
    profile.write_text(f'schema = 1\ntier = 1\n[filesystem]\nwrite = ["{tree}"]\n')
    from osmoda.sandbox.profile import Profile
    from tests.compiled import host

    plan = compiler.compile_profile(Profile.load(profile), host())
    (pinned,) = of(plan, mounting.Pinned)
    assert os.fsencode(profile) in pinned.paths
    assert pinned.trees == (os.fsencode(tree),)
    package = os.fsencode(os.path.realpath(os.path.dirname(compiler.__file__)))
    assert any(package == path or package.startswith(path + b"/") for path in pinned.paths)
    order = list(map(type, plan))
    assert order.index(mounting.WriteTree) < order.index(mounting.Pinned) < order.index(mounting.Seal)


def test_nor_may_they_be_granted_themselves(tree):
    profile = tree / "agent.toml"
    profile.write_text(f'schema = 1\ntier = 1\n[filesystem]\nwrite = ["{tree}/agent.toml"]\n')
    from osmoda.sandbox.profile import Profile
    from tests.compiled import host

    with pytest.raises(CompileError, match=f"^{profile}:4: writing {profile} would reach {profile}, which decides"):
        compiler.compile_profile(Profile.load(profile), host())


# What the host lacks


@pytest.mark.parametrize(
    ("layer", "declared", "lacking", "origin"),
    [
        ("memory", 'memory = "64M"', {"controllers": ("cpu", "pids")}, f"{FILE}:4"),
        ("cpu", "cpu = 0.5", {"controllers": ()}, f"{FILE}:4"),
        ("landlock", "pids = 9", {"landlock": 0}, "tier 2"),
        ("landlock-net", "pids = 9", {"landlock": 3}, "tier 2"),
        ("landlock-scope", "pids = 9", {"landlock": 5}, "tier 2"),
        ("notify", "pids = 9", {"notify": False}, "tier 2"),
    ],
)
def test_a_missing_layer_stops_unless_it_is_named(layer, declared, lacking, origin):
    others = '"landlock-net", "landlock-scope"'.replace(f'"{layer}"', '"idmap"')
    text = f"tier = 2\n[process]\n{declared}\n"
    with pytest.raises(CompileError) as error:
        compiled(f"degrade = [{others}]\n{text}", **lacking)
    assert str(error.value).startswith(f"{origin.replace(':4', ':5')}: ")
    assert str(error.value).endswith(f'the launch stops, unless the profile says degrade = ["{layer}"]')

    _, plan = compiled(f'degrade = [{others}, "{layer}"]\n{text}', **lacking)
    noted = {entry.layer: entry for entry in plan.degraded}
    assert layer in noted
    assert noted[layer].reason in str(error.value)
    assert noted[layer].origin == f"{FILE}:2"


def test_what_is_degraded_is_not_in_the_plan():
    leave = 'degrade = ["memory", "cpu", "landlock", "notify"]\n'
    _, plan = compiled(
        leave + 'tier = 2\n[process]\nmemory = "64M"\ncpu = 1.0\n', controllers=(), landlock=0, notify=False
    )
    assert (plan.memory, plan.cpu, plan.pids) == (0, 0.0, 0)
    assert of(plan, confinement.Landlock) == []
    assert not of(plan, confinement.Seccomp)[0].notify


def test_leave_that_is_not_needed_degrades_nothing():
    _, plan = compiled('degrade = ["memory", "cpu", "landlock", "notify"]\n[process]\nmemory = "64M"\n')
    assert plan.degraded == ()
    assert plan.memory == 64 << 20


def test_without_user_namespaces_there_is_no_sandbox():
    with pytest.raises(CompileError, match=r"tier 2: user namespaces are switched off .*max_user_namespaces is 0"):
        compiled("tier = 2", user_namespaces=0)


@pytest.mark.parametrize("kernel", [(4, 19), (5, 13)])
def test_nor_on_a_kernel_that_is_too_old(kernel):
    with pytest.raises(CompileError, match=f"Linux {kernel[0]}.{kernel[1]}, and a sandbox needs 5.14"):
        compiled("tier = 2", kernel=kernel)


def test_system_calls_that_no_filter_can_be_made_for_name_the_line():
    with pytest.raises(CompileError, match=f"^{FILE}:4: process.syscalls: "):
        compiled('tier = 2\n[process]\nsyscalls = ["@system-service"]\n', machine="riscv64")


# Limits and identity


@pytest.mark.parametrize("privileged", [True, False])
def test_who_the_sandbox_is_on_the_host(privileged):
    _, plan = compiled("tier = 2", privileged=privileged)
    assert of(plan, isolation.Identity)[0].own_host_uid is privileged


def test_each_declared_limit_is_an_operation_from_its_line():
    _, plan = compiled(
        "tier = 1\n[process]\npids = 9\n[process.limits]\nopen_files = 33\nfile_size = '1M'\naddress_space = '1G'\n"
        "stack = '2M'\ncore = '1M'\n"
    )
    assert {(op.name, op.value, op.origin.removeprefix(FILE)) for op in of(plan, confinement.ProcessLimit)} == {
        ("processes", 10, ":4"),
        ("open_files", 33, ":6"),
        ("file_size", 1 << 20, ":7"),
        ("address_space", 1 << 30, ":8"),
        ("stack", 2 << 20, ":9"),
        ("core", 1 << 20, ":10"),
    }
    assert of(plan, confinement.NoCoreDumps) == []


@pytest.mark.parametrize("tier", [1, 2])
def test_a_limit_of_no_core_holds_for_programs_of_the_hosts_too(tier):
    _, plan = compiled(f"tier = {tier}\n[process.limits]\ncore = 0\n")
    assert [op.origin.removeprefix(FILE) for op in of(plan, confinement.NoCoreDumps)] == [":4"]
    assert "core" not in {op.name for op in of(plan, confinement.ProcessLimit)}


def test_a_group_that_is_made_counts_processes_too():
    assert compiled('[process]\npids = 9\nmemory = "64M"\n')[1].pids == 10
    assert compiled("[process]\npids = 9\n")[1].pids == 0  # the rlimit holds


@pytest.mark.parametrize("tier", [1, 2])
def test_processes_that_the_kernel_does_not_count_are_counted_by_a_group(tier):
    text = f"tier = {tier}\n[process]\npids = 9\n"
    for version in (1, 2):
        _, plan = compiled(text, privileged=False, uncounted=True, cgroup_version=version)
        assert plan.pids == 10
        assert "processes" not in {op.name for op in of(plan, confinement.ProcessLimit)}
    with pytest.raises(CompileError, match="the kernel does not count processes of root") as caught:
        compiled(text, privileged=False, uncounted=True, controllers=("memory", "cpu"))
    assert caught.value.origin == f"{FILE}:4"


# Tier 0


def test_tier_0_has_limits_and_nothing_else():
    _, plan = compiled("tier = 0\n[process.limits]\ncore = 0\nopen_files = 50\n")
    assert [(type(op), op.name, op.value) for op in plan] == [
        (confinement.ProcessLimit, "open_files", 50),
        (confinement.ProcessLimit, "core", 0),
    ]
    assert plan.unshared == 0


def test_tier_0_without_declarations_does_nothing():
    _, plan = compiled("tier = 0")
    assert plan.operations == ()
    assert plan.environment == ()
    assert (plan.memory, plan.cpu, plan.pids) == (0, 0.0, 0)


def test_limits_of_tier_0_are_the_groups():
    _, plan = compiled('tier = 0\n[process]\nmemory = "64M"\ncpu = 0.5\npids = 20\n')
    assert (plan.memory, plan.cpu, plan.pids) == (64 << 20, 0.5, 21)
    with pytest.raises(CompileError, match=f"^{FILE}:4: process.pids cannot be enforced"):
        compiled("tier = 0\n[process]\npids = 20\n", controllers=("memory",))


# The order that the kernel needs


def test_the_order_of_what_is_taken_away():
    _, plan = compiled("tier = 2")
    order = [type(op) for op in plan]
    expected = [
        isolation.Namespaces,
        isolation.Identity,
        mounting.Root,
        mounting.Skeleton,
        mounting.Proc,
        confinement.NoNestedNamespaces,
        mounting.Seal,
        confinement.Terminal,
        confinement.Capabilities,
        confinement.Landlock,
        confinement.Seccomp,
    ]
    assert [cls for cls in order if cls in expected] == expected
    assert order[-1] is confinement.Seccomp


def test_the_plan_names_the_profile_and_its_meaning(tree):
    profile, plan = compiled('[environment]\nset = { A = "1", HOME = "/x" }\npass = ["LANG"]\n')
    assert (plan.name, plan.digest, plan.tier) == ("agent.toml", profile.digest, 2)
    environment = dict(plan.environment)
    assert (environment["A"], environment["HOME"], environment["USER"]) == ("1", "/x", "agent")
    assert plan.passed == ("LANG",)
