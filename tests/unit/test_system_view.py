from __future__ import annotations

import os
import stat

import pytest

from osmoda.sandbox import granted_paths, grants, system_view
from osmoda.sandbox.operations import mounting, trust_store


def test_what_every_sandbox_reads_is_what_grants_count_on():
    """`grants.excess` takes /usr for granted, and any other system tree for something worth denying."""
    trees = system_view.trees()
    assert set(grants.ALWAYS_READ) <= set(trees)
    for path in (*trees, *system_view.copied()):
        assert any(granted_paths.within(path, seen) for seen in grants._ALWAYS_SEEN), path


@pytest.mark.parametrize("name", system_view._PROGRAMS)
def test_a_denial_below_each_folder_of_programs_is_worth_something(name):
    from tests.compiled import compiled

    plain, _ = compiled("tier = 1")
    denying, _ = compiled(f'tier = 1\n[filesystem]\ndeny = ["/{name}/x"]\n')
    assert [found.kind for found in grants.excess(plain, denying)] == ["filesystem.deny"]
    assert grants.excess(denying, plain) == ()


def test_the_trees_are_there_and_nobodys_secret():
    for path in (*system_view.trees(), *system_view.copied()):
        status = os.stat(path)
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        assert status.st_mode & stat.S_IROTH
        assert "private" not in path
        assert not path.startswith(("/etc/shadow", "/etc/passwd", "/etc/ssh"))


def test_an_entry_of_etc_is_either_mounted_or_copied():
    mounted = {path for path in system_view.trees() if path.startswith("/etc/")}
    assert mounted.isdisjoint(system_view.copied())
    assert mounted | {*system_view.copied()} == set(system_view._etc())
    assert all(os.path.getsize(path) <= system_view._COPIED for path in system_view.copied())


def test_an_entry_that_others_may_not_read_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "open").write_text("")
    (tmp_path / "closed").write_text("")
    (tmp_path / "closed").chmod(0o640)
    os.mkfifo(tmp_path / "pipe", 0o644)
    names = ("open", "closed", "pipe", "missing")
    monkeypatch.setattr(system_view, "_ETC", tuple(f"..{tmp_path}/{name}" for name in names))
    monkeypatch.setattr(system_view.glob, "glob", lambda pattern: [])
    assert system_view._etc() == [f"/etc/..{tmp_path}/open"]


def skeleton(shown=("/usr",), copies=(), places=("/tmp",)):
    return system_view.skeleton("tier 2", shown, copies, "box", places, "nameserver 198.18.0.1\n")


def test_every_mount_has_a_place_and_every_place_a_parent():
    made = skeleton(system_view.trees(), system_view.copied(), ("/tmp", system_view.HOME, "/dev/shm", "/workspace"))
    names = {*made.directories, *(name for name, _ in made.files)}
    for path in (*system_view.trees(), *system_view.copied(), "/tmp", "/home/agent", "/dev/shm", "/proc", "/dev/pts"):
        assert path[1:].encode() in names
    for device in system_view.DEVICES:
        assert b"dev/" + device in names
    position = {name: index for index, name in enumerate(made.directories)}
    for name in (*names, *(name for name, _ in made.links)):
        parent = name.rpartition(b"/")[0]
        if parent:
            assert parent in position
            assert position[parent] < position.get(name, len(position))
    assert len(made.directories) == len({*made.directories})


def test_generated_files_tell_nothing_of_the_host():
    files = dict(skeleton().files)
    assert files[b"etc/passwd"].count(b"\n") == 3
    assert b"agent:x:1000:1000:" in files[b"etc/passwd"]
    assert files[b"etc/hostname"] == b"box\n"
    assert files[b"etc/hosts"].split() == [b"127.0.0.1", b"localhost", b"box", b"::1", b"localhost", b"box"]
    assert files[b"etc/resolv.conf"] == b"nameserver 198.18.0.1\n"


def test_what_is_generated_in_etc_is_listed():
    made = skeleton()
    names = [name.decode() for name, _ in (*made.files, *made.links) if name.startswith(b"etc/")]
    own = {f"/{name}" for name in names if f"/{name}" != trust_store.BUNDLE}
    assert own == set(system_view.GENERATED)


def test_generated_files_win_over_copied_ones(tmp_path):
    files = dict(skeleton(copies=("/etc/passwd",)).files)
    assert files[b"etc/passwd"].startswith(b"root:x:0:0:root:/:/usr/sbin/nologin\nagent")


def test_links_of_the_root_are_repeated():
    links = dict(skeleton().links)
    for name in system_view._PROGRAMS:
        if os.path.islink(f"/{name}"):
            assert links[name.encode()] == os.fsencode(os.readlink(f"/{name}"))
            assert system_view.through_link(f"/{name}/x")
        else:
            assert name.encode() not in links
            assert not system_view.through_link(f"/{name}/x")
    assert not system_view.through_link("/usr/bin")
    assert links[b"dev/ptmx"] == b"pts/ptmx"


def test_the_mask_is_a_file_of_the_skeleton():
    assert mounting.MASK in dict(skeleton().files)


def test_the_environment_fits_what_is_generated():
    environment = system_view.environment()
    assert environment["HOME"] == system_view.HOME
    passwd = dict(skeleton().files)[b"etc/passwd"].decode()
    assert f"{environment['USER']}:x:{system_view.UID}:{system_view.GID}:agent:{environment['HOME']}:" in passwd
