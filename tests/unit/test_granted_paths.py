from __future__ import annotations

import os

import pytest

from osmoda.host import paths
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.granted_paths import own_directories, refusal, resolve_grant, within, written_path
from osmoda.sandbox.tiers import ceiling

NEVER = ceiling(2).filesystem.deny


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/opt/x", "/opt/x"),
        ("/opt//x/./y/", "/opt/x/y"),
        ("//opt", "/opt"),
        ("/", "/"),
        ("code", "/profiles/here/code"),
        (".", "/profiles/here"),
        ("./a/../b", "/profiles/here/b"),
        ("~", "/home/tester"),
        ("~/x", "/home/tester/x"),
        ("/a..b/...", "/a..b/..."),
    ],
)
def test_a_written_path_is_absolute_and_normalised(text, path, monkeypatch):
    monkeypatch.setattr(paths, "home", lambda: "/home/tester")
    assert written_path(text, "/profiles/here") == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("..", "escapes"),
        ("../other", "escapes"),
        ("a/../../here2", "escapes"),
        ("/opt/../etc", "without"),
        ("~/../root", "without"),
        ("~root/x", "own home"),
        ("", "empty"),
        ("/a\0b", "control"),
        ("/a\nb", "control"),
    ],
)
def test_a_path_that_escapes_or_misleads_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        written_path(text, "/profiles/here")


def test_within():
    assert within("/a/b", "/a")
    assert within("/a", "/a")
    assert within("/a", "/")
    assert not within("/ab", "/a")
    assert not within("/", "/a")


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/1", "/sys/fs", "/dev/shm", "/run/docker.sock", "/boot"])
def test_trees_of_the_kernel_and_of_services_are_never_granted(path):
    assert "no profile of this tier may grant" in (refusal(path, write=False, never=NEVER) or "")


@pytest.mark.parametrize("path", ["/etc", "/var/lib", "/var/lib/osmoda", "/etc/osmoda/profiles"])
def test_writing_never_reaches_the_files_of_osmoda(path):
    assert refusal(path, write=False, never=NEVER) is None
    assert "its own files" in (refusal(path, write=True, never=NEVER) or "")


def test_the_callers_own_directories_are_guarded_too(monkeypatch):
    monkeypatch.setattr(paths, "directory", lambda kind: f"/home/tester/{kind}/osmoda")
    assert "/home/tester/state/osmoda" in own_directories()
    assert refusal("/home/tester", write=True, never=NEVER) is not None
    assert refusal("/home/tester/project", write=True, never=NEVER) is None


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "granted" / "inner").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "granted" / "file").write_text("x")
    return tmp_path


def resolve(path):
    return resolve_grant(str(path), "p.toml:7", write=False, never=NEVER)


def test_a_path_without_links_is_itself(tree):
    assert resolve(tree / "granted") == str(tree / "granted")
    assert resolve(tree / "granted" / "file") == str(tree / "granted" / "file")


@pytest.mark.parametrize("target", ["inner", "./inner", "{here}/inner", "inner/../inner"])
def test_a_link_within_its_folder_is_followed(tree, target):
    (tree / "granted" / "link").symlink_to(target.format(here=tree / "granted"))
    assert resolve(tree / "granted" / "link") == str(tree / "granted" / "inner")


@pytest.mark.parametrize("target", ["../secret", "{top}/secret", "inner/../../secret", "..", "/"])
def test_a_link_out_of_its_folder_is_refused_with_its_target(tree, target):
    link = tree / "granted" / "link"
    link.symlink_to(target.format(top=tree))
    for path in (link, link / "below"):
        with pytest.raises(CompileError) as caught:
            resolve(path)
        assert str(caught.value).startswith(f"p.toml:7: {path} cannot be granted: {link} is a symbolic link")
        assert os.path.realpath(link) in str(caught.value)


def test_a_link_that_leads_out_by_way_of_another_is_refused(tree):
    (tree / "granted" / "two").symlink_to("../secret")
    (tree / "granted" / "one").symlink_to("two")
    with pytest.raises(CompileError, match="symbolic link out of its folder"):
        resolve(tree / "granted" / "one")


def test_links_of_the_root_folder_are_the_systems_own():
    usr_merged = os.path.islink("/bin")
    assert resolve("/bin") == (os.path.realpath("/bin") if usr_merged else "/bin")


def test_the_real_name_is_checked_again():
    link = next((name for name in ("/var/run", "/var/lock") if os.path.islink(name)), None)
    assert link is not None
    with pytest.raises(CompileError, match="cannot be granted"):
        resolve(link)


def test_links_in_a_circle_are_refused(tree):
    (tree / "granted" / "a").symlink_to("b")
    (tree / "granted" / "b").symlink_to("a")
    with pytest.raises(CompileError, match="circle"):
        resolve(tree / "granted" / "a")


def test_a_missing_path_names_what_is_missing(tree):
    with pytest.raises(CompileError, match=r"p\.toml:7: .*none/deeper cannot be granted: .*/none does not exist"):
        resolve(tree / "none" / "deeper")
    with pytest.raises(CompileError, match="cannot be granted: it does not exist"):
        resolve(tree / "none")


def test_what_is_neither_file_nor_folder_is_refused(tree):
    os.mkfifo(tree / "fifo")
    with pytest.raises(CompileError, match="neither a file nor a folder"):
        resolve(tree / "fifo")


def test_a_file_used_as_a_folder_is_refused(tree):
    with pytest.raises(CompileError, match="Not a directory"):
        resolve(tree / "granted" / "file" / "x")
