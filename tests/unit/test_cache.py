"""Kept plans: used when whole, one's own, and what a compilation would give again; else never."""

from __future__ import annotations

import os
import shutil
import stat
from hashlib import sha256
from pathlib import Path

import pytest

from osmoda.host import features, paths
from osmoda.sandbox import cache, compilation, plans
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.request import Request
from tests.compiled import host

KEY = cache.key("a.toml", 2, "", (), (), (), ())


@pytest.fixture(scope="module")
def plan():
    return compile_profile(Profile.default(2), host())


@pytest.fixture
def witnessed(tmp_path):
    """A file, a path that is not there, a link and a folder that a plan depends on."""
    (tmp_path / "profile.toml").write_text("tier = 2\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    digest = sha256(b"tier = 2\n").hexdigest()
    return cache.witness(
        [(str(tmp_path / "profile.toml"), digest)],
        [str(tmp_path / "absent.toml")],
        [(str(tmp_path / "link"), str(tmp_path / "tree"))],
        [str(tmp_path / "folder")],
    )


@pytest.fixture
def entry(plan, witnessed):
    """The file of an entry under KEY that is used."""
    cache.store(KEY, plan, witnessed)
    assert cache.load(KEY) == plan
    (found,) = Path(paths.own_directory("cache", "plans")).iterdir()
    return found


def test_what_is_stored_is_found_again(entry):
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700
    assert cache.load(KEY) == cache.load(KEY)


def test_another_key_finds_nothing(entry):
    assert cache.load(cache.key("b.toml", 2, "", (), (), (), ())) is None


@pytest.mark.parametrize("name", [*cache._ENVIRONMENT, *cache._OWN])
def test_each_variable_that_paths_depend_on_is_part_of_the_key(name, monkeypatch):
    monkeypatch.setattr(paths.posix, "environ", dict(paths.posix.environ) | {name.encode(): b"/other"})
    assert cache.key("a.toml", 2, "", (), (), (), ()) != KEY


def test_an_entry_under_another_keys_name_is_not_used(entry):
    other = cache.key("other", 2)
    shutil.copyfile(entry, cache._path("plans", other))
    os.chmod(cache._path("plans", other), 0o600)
    assert cache.load(other) is None


def test_another_installation_has_entries_of_its_own(entry, monkeypatch):
    assert cache.load(KEY) is not None
    monkeypatch.setattr(cache, "__file__", "/elsewhere/osmoda/sandbox/cache.py")
    assert cache.load(KEY) is None


def test_dropping_an_entry(entry):
    cache.drop(KEY)
    assert cache.load(KEY) is None
    cache.drop(KEY)


# What it was made from has changed.


def replace(path, text):
    (path.parent / "new").write_text(text)
    os.replace(path.parent / "new", path)


def lead_elsewhere(folder):
    (folder / "link").unlink()
    (folder / "other").mkdir()
    (folder / "link").symlink_to("other")


CHANGES = {
    "content": lambda folder: (folder / "profile.toml").write_text("tier = 1\n"),
    "content, same length and time": lambda folder: rewrite(folder / "profile.toml", b"tier = 0\n"),
    "profile gone": lambda folder: (folder / "profile.toml").unlink(),
    "found first": lambda folder: (folder / "absent.toml").write_text(""),
    "found first, as a link to nowhere": lambda folder: (folder / "absent.toml").symlink_to("nowhere"),
    "link leads elsewhere": lead_elsewhere,
    "link leads nowhere": lambda folder: (folder / "tree").rmdir(),
    "folder has another entry": lambda folder: (folder / "folder" / "new").write_text(""),
    "folder has another mode": lambda folder: (folder / "folder").chmod(0o700),
    "folder is another": lambda folder: ((folder / "folder").rename(folder / "old"), (folder / "folder").mkdir()),
    "folder gone": lambda folder: (folder / "folder").rmdir(),
}


def rewrite(path, content):
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_makes_it_stale(change, entry, tmp_path):
    CHANGES[change](tmp_path)
    assert cache.load(KEY) is None


def test_another_host_makes_it_stale(entry, monkeypatch):
    monkeypatch.setattr(features, "fingerprint", lambda: ("another",))
    assert cache.load(KEY) is None


def test_the_same_content_anew_keeps_it(entry, tmp_path, plan):
    replace(tmp_path / "profile.toml", "tier = 2\n")
    assert cache.load(KEY) == plan


def test_the_code_and_etc_are_witnesses():
    watched = [path for path, _, _ in cache.witness((), (), ()).unmoved]
    root = os.path.dirname(os.path.dirname(cache.__file__))
    assert {"/", "/etc", root + "/sandbox", root + "/sandbox/operations", root + "/host", root + "/profiles"} <= {
        *watched
    }


# What is in its place was not written by this user's osmoda.


def flip(entry, place):
    content = bytearray(entry.read_bytes())
    content[place] ^= 1
    entry.write_bytes(content)


def as_link(entry):
    entry.rename(entry.parent.parent / "real")
    entry.symlink_to(entry.parent.parent / "real")


def as_pipe(entry):
    entry.unlink()
    os.mkfifo(entry, 0o600)


def as_folder(entry):
    entry.unlink()
    entry.mkdir(mode=0o600)


def grow(entry):
    with entry.open("r+b") as file:
        file.truncate(cache._MOST_BYTES + 1)


DAMAGES = {
    "first byte": lambda entry: flip(entry, 0),
    "byte of the plan": lambda entry: flip(entry, entry.stat().st_size // 2),
    "last byte": lambda entry: flip(entry, -1),
    "empty": lambda entry: entry.write_bytes(b""),
    "digest only": lambda entry: entry.write_bytes(sha256(b"").digest()),
    "truncated": lambda entry: os.truncate(entry, entry.stat().st_size - 1),
    "longer": lambda entry: entry.write_bytes(entry.read_bytes() + b"\0"),
    "too large": grow,
    "readable by others": lambda entry: entry.chmod(0o604),
    "writable by its group": lambda entry: entry.chmod(0o620),
    "executable": lambda entry: entry.chmod(0o700),
    "setuid": lambda entry: entry.chmod(0o4600),
    "hard link": lambda entry: os.link(entry, entry.parent.parent / "second"),
    "symbolic link": as_link,
    "named pipe": as_pipe,
    "folder": as_folder,
    "folder of all": lambda entry: entry.parent.chmod(0o777),
    "folder around it of all": lambda entry: entry.parent.parent.chmod(0o777),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_never_used(damage, entry):
    DAMAGES[damage](entry)
    assert cache.load(KEY) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("above", [0, 1, 2])
def test_another_users_entry_or_folder_is_never_used(above, entry):
    os.chown([entry, *entry.parents][above], 1234, 1234)
    assert cache.load(KEY) is None


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"\xe9", (5).to_bytes(4, "little"), b")\x03NNN", b")\x02NN"], ids=repr
)
def test_nonsense_with_the_right_digest_is_not_used(body, entry):
    entry.write_bytes(sha256(body).digest() + body)
    assert cache.load(KEY) is None


# Keeping costs nothing that matters.


def test_the_oldest_go_when_there_are_too_many(plan, witnessed, monkeypatch):
    monkeypatch.setattr(cache, "_MOST_ENTRIES", 3)
    folder = Path(paths.own_directory("cache", "plans"))
    keys = [cache.key(str(number)) for number in range(5)]
    for number, key in enumerate(keys):
        cache.store(key, plan, witnessed)
        assert cache.load(key) == plan
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(0, number))
    assert len(list(folder.iterdir())) == 3
    assert [cache.load(key) is not None for key in keys] == [False, False, True, True, True]


def test_a_folder_that_cannot_be_used_only_costs_the_entry(plan, witnessed):
    top = Path(paths.own_directory("cache"))
    top.chmod(0o777)
    cache.store(KEY, plan, witnessed)
    assert cache.load(KEY) is None
    assert list(top.iterdir()) == []
    cache.drop(KEY)


def test_nor_does_one_that_cannot_be_made(plan, witnessed, monkeypatch):
    monkeypatch.setattr(paths, "directory", lambda kind: "/proc/none")
    cache.store(KEY, plan, witnessed)
    assert cache.load(KEY) is None


def test_a_full_disk_leaves_no_half_of_an_entry(plan, witnessed, monkeypatch):
    write = cache.posix.write
    monkeypatch.setattr(cache.posix, "write", lambda fd, data: write(fd, data[:100]))
    cache.store(KEY, plan, witnessed)
    monkeypatch.undo()
    assert list(Path(paths.own_directory("cache", "plans")).iterdir()) == []


def test_an_entry_is_replaced_in_one_step(entry, plan, witnessed):
    before = entry.stat().st_ino
    cache.store(KEY, plan, witnessed)
    assert entry.stat().st_ino != before
    assert cache.load(KEY) == plan


# From requests.


@pytest.fixture
def compilations(monkeypatch):
    """How often a plan was compiled."""
    counted = []
    of_request = compilation.of_request
    monkeypatch.setattr(
        compilation, "of_request", lambda request, folder: (counted.append(1), of_request(request, folder))[1]
    )
    return counted


def test_a_second_request_takes_the_kept_plan(tmp_path, compilations):
    first, cached = plans.for_request(Request(("true",), tier=2), str(tmp_path))
    assert not cached
    assert plans.for_request(Request(("false",), tier=2, quiet=True), "/elsewhere") == (first, True)
    assert len(compilations) == 1


def test_values_of_variables_are_neither_kept_nor_compiled(tmp_path, compilations):
    asked = Request(("true",), tier=1, set=(("KEY", "hunter2"),))
    plan, _ = plans.for_request(asked, str(tmp_path))
    for found in Path(paths.own_directory("cache", "plans")).iterdir():
        assert b"hunter2" not in found.read_bytes()
    assert ("KEY", "hunter2") not in plan.environment
    _, cached = plans.for_request(Request(("true",), tier=1, set=(("KEY", "swordfish"),)), str(tmp_path))
    assert cached


def test_relative_paths_are_another_request_elsewhere(tmp_path, compilations):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.toml").write_text("schema = 1\ntier = 2\n")
    asked = Request(("true",), profile="./p.toml")
    os.chdir(tmp_path / "one")
    assert not plans.for_request(asked, str(tmp_path / "one"))[1]
    assert not plans.for_request(asked, str(tmp_path / "two"))[1]
    assert plans.for_request(asked, str(tmp_path / "one"))[1]


@pytest.fixture(autouse=True)
def _same_folder():
    before = os.getcwd()
    yield
    os.chdir(before)


DENIED_CHANGES = {
    "a denied link leads elsewhere": ("link", lead_elsewhere),
    "a denied name comes to be": ("later", lambda folder: (folder / "later").symlink_to("tree")),
}


@pytest.mark.parametrize("change", DENIED_CHANGES)
def test_what_is_denied_is_looked_at_again(change, tmp_path):
    """Compiled anew, the plan hides what the link leads to now."""
    name, act = DENIED_CHANGES[change]
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    profile = tmp_path / "p.toml"
    profile.write_text(f'schema = 1\ntier = 1\n[filesystem]\nread = ["{tmp_path}"]\ndeny = ["{tmp_path}/{name}"]\n')
    asked = Request(("true",), profile=str(profile))
    before, _ = plans.for_request(asked, "/")
    assert plans.for_request(asked, "/")[1]
    act(tmp_path)
    after, cached = plans.for_request(asked, "/")
    assert not cached
    assert after != before


def test_a_profile_of_the_same_name_that_would_be_found_first(compilations):
    asked = Request(("true",), profile="writer")
    assert not plans.for_request(asked, "/")[1]
    assert plans.for_request(asked, "/")[1]
    own = Path(paths.own_directory("config", "profiles"), "writer.toml")
    own.write_text("schema = 1\ntier = 2\n")
    plan, cached = plans.for_request(asked, "/")
    assert (plan.tier, cached) == (2, False)


# Parts of plans


def test_a_part_is_kept_under_all_that_it_depends_on():
    assert cache.load_part("networks", ("a", 1)) is None
    cache.store_part("networks", ("a", 1), b"messages")
    assert cache.load_part("networks", ("a", 1)) == b"messages"
    assert cache.load_part("networks", ("a", 2)) is None
    assert cache.load_part("others", ("a", 1)) is None


def test_a_part_that_was_tampered_with_is_not_used():
    cache.store_part("networks", ("a", 1), b"messages")
    path = cache._path("networks", ("a", 1))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-1] + b"?")
    assert cache.load_part("networks", ("a", 1)) is None
    Path(path).write_bytes(content)
    assert cache.load_part("networks", ("a", 1)) == b"messages"
    os.chmod(path, 0o644)
    assert cache.load_part("networks", ("a", 1)) is None


# From profiles that somebody has read already.


@pytest.fixture
def compiled(monkeypatch):
    """How often a profile was compiled."""
    counted = []
    of_profile = compilation.of_profile
    monkeypatch.setattr(compilation, "of_profile", lambda profile: (counted.append(1), of_profile(profile))[1])
    return counted


def test_a_profile_takes_the_kept_plan(tmp_path, compiled):
    text = 'schema = 1\ntier = 1\n[filesystem]\nread = ["/etc/hostname"]\n'
    (tmp_path / "p.toml").write_text(text)
    first = plans.for_profile(Profile.load(tmp_path / "p.toml"))
    assert first == compile_profile(Profile.load(tmp_path / "p.toml"), features.probe())
    assert plans.for_profile(Profile.load(tmp_path / "p.toml")) == first
    assert len(compiled) == 1
    # The same, said in another line: what it refuses is told by that.
    (tmp_path / "p.toml").write_text("\n" + text)
    again = plans.for_profile(Profile.load(tmp_path / "p.toml"))
    assert len(compiled) == 2
    assert again != first


@pytest.mark.parametrize("change", DENIED_CHANGES)
def test_what_a_profile_denies_is_looked_at_again(change, tmp_path, compiled):
    name, act = DENIED_CHANGES[change]
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    (tmp_path / "p.toml").write_text(
        f'schema = 1\ntier = 1\n[filesystem]\nread = ["{tmp_path}"]\ndeny = ["{tmp_path}/{name}"]\n'
    )
    profile = Profile.load(tmp_path / "p.toml")
    before = plans.for_profile(profile)
    act(tmp_path)
    assert plans.for_profile(profile) != before
    assert len(compiled) == 2
