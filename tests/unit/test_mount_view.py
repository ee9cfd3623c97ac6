"""The view that mount operations make: what covers what, in the order of the launch."""

from __future__ import annotations

from osmoda.sandbox.mount_view import Unknown, View
from osmoda.sandbox.operations import mounting
from tests.compiled import compiled

WORK = b"/srv/project"


def view_of(text, folder=None, workspace=WORK):
    _, plan = compiled(text, folder)
    return View(plan, workspace)


def test_a_later_mount_covers_an_earlier_one_below_it(tmp_path):
    """The workspace is mounted after read trees: a read tree inside it is covered, a written tree is not."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "own").mkdir()
    view = view_of(
        'tier = 1\n[filesystem]\nread = ["inner"]\nwrite = ["own"]\nworkspace = "direct"', tmp_path, bytes(tmp_path)
    )
    assert isinstance(view.mount_of(f"{tmp_path}/inner/x").operation, mounting.DirectWorkspace)
    assert isinstance(view.mount_of(f"{tmp_path}/own/x").operation, mounting.WriteTree)


def test_the_root_is_read_only_once_it_is_sealed_and_proc_too():
    view = view_of("tier = 2", workspace=b"")
    assert view.root is not None
    assert view.root.read_only
    assert view.mount_of("/proc/1").read_only
    assert not view.mount_of("/tmp/x").read_only
    assert view.mount_of("/etc/passwd") is view.root


def test_folders_on_the_way_to_a_grant_are_there(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    view = view_of('tier = 1\n[filesystem]\nread = ["a/b"]', tmp_path)
    parent = view.mount_of(str(tmp_path / "a"))
    assert parent.made[str(tmp_path / "a")] == "directory"
    assert not parent.shows_host


def test_a_mask_for_the_workspace_counts_only_where_the_workspace_shows_it():
    text = 'tier = 1\n[filesystem]\ndeny = ["/srv/project/.env"]\nworkspace = "overlay"'
    assert isinstance(view_of(text).mount_of("/srv/project/.env").operation, mounting.Mask)
    elsewhere = view_of(text, workspace=b"/srv/another").mount_of("/srv/project/.env")
    assert not isinstance(elsewhere.operation, mounting.Mask)


def test_a_pinned_profile_shows_the_workspaces_file_read_only(tmp_path):
    profile = tmp_path / "agent.toml"
    profile.write_text('schema = 1\ntier = 1\n[filesystem]\nworkspace = "direct"\n')
    from osmoda.sandbox.compile import compile_profile
    from osmoda.sandbox.profile import Profile
    from tests.compiled import host

    plan = compile_profile(Profile.load(profile), host())
    mount = View(plan, bytes(tmp_path)).mount_of(str(profile))
    assert mount.read_only
    assert mount.shows_host
    assert isinstance(mount.base.operation, mounting.DirectWorkspace)


def test_dots_and_double_slashes_are_resolved():
    view = view_of("tier = 2", workspace=b"")
    assert view.resolve("//usr/./lib/../bin//x", Unknown()) == "/usr/bin/x"
    assert view.resolve("/../..", Unknown()) == "/"
    assert view.resolve("/dev/stdin", Unknown()) == "/proc/self/fd/0"


def test_what_is_mounted_in_a_pinned_folder_stays_and_becomes_read_only(tmp_path):
    for name in ("data", "data/package", "data/package/cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/package/secret").write_text("")
    text = """
        tier = 1
        [filesystem]
        write = ["data", "data/package/cache"]
        deny = ["data/package/secret"]
    """
    _, plan = compiled(text, tmp_path)
    data, package = bytes(tmp_path / "data"), str(tmp_path / "data/package")
    operations = [op for op in plan.operations if not isinstance(op, mounting.Pinned)]
    seal = next(index for index, op in enumerate(operations) if isinstance(op, mounting.Seal))
    operations.insert(seal, mounting.Pinned("tier 1", (package.encode(),), (data,)))
    values = {name: getattr(plan, name) for name in type(plan).__fields__}
    view = View(type(plan)(**values | {"operations": tuple(operations)}), b"")
    assert isinstance(view.mount_of(f"{package}/secret").operation, mounting.Mask)
    assert isinstance(view.mount_of(f"{package}/cache/x").operation, mounting.WriteTree)
    assert view.mount_of(f"{package}/cache/x").read_only
    assert view.mount_of(f"{package}/code.py").read_only
    assert not view.mount_of(f"{tmp_path}/data/x").read_only
