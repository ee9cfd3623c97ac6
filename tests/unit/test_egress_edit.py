"""An edited profile file: whole or as before, under other editors too, and only where it holds."""

from __future__ import annotations

import os
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from osmoda.egress.edits import Entry, allow, deny, remove
from osmoda.egress.policy import Policy
from osmoda.sandbox import egress_edit, egress_force, egress_token, opening, request
from osmoda.sandbox.errors import ProfileError, SandboxError
from tests.worlds import World

PROFILE = 'schema = 1\ntier = 1\n[network]\nallow = ["a.example"]  # so\ndeny = []\n'


@pytest.fixture(autouse=True)
def own_directories(monkeypatch, no_leftovers):
    """The test's own, also for `paths`, which reads the environment that the process was started with."""
    monkeypatch.setattr(egress_edit.paths.posix, "environ", dict(os.environb))


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(PROFILE)
    return path


def adding(*rules):
    return lambda text: allow(text, [Entry(rule) for rule in rules])


def names(path, key="allow"):
    return tomllib.loads(path.read_text())["network"][key]


def litter(path):
    return sorted(set(os.listdir(path.parent)) - {path.name})


def test_an_edit_is_in_the_file_with_its_mode_and_nothing_beside_it(profile):
    profile.chmod(0o640)
    made = egress_edit.edit(str(profile), adding("b.example"))
    assert made.file == str(profile)
    assert names(profile) == ["a.example", "b.example"]
    assert "# so" in profile.read_text()
    assert stat.S_IMODE(profile.stat().st_mode) == 0o640
    assert litter(profile) == []
    assert made.everywhere


def test_a_run_keeps_its_own_file_whatever_folder_the_editor_is_in(profile, tmp_path, monkeypatch):
    """A profile that was named relative to where it was started is not another one of that name."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / profile.name).write_text(PROFILE.replace("a.example", "evil.example"))
    for words in (["--profile", profile.name], ["--profile", f"./{profile.name}"]):
        monkeypatch.chdir(profile.parent)
        token = opening.token_of_request(request.parse([*words, "true"]), os.getcwd())
        monkeypatch.chdir(elsewhere)
        policy = Policy.load(egress_token.recompile(token))
        assert policy.decide("a.example", 443).allowed
        assert not policy.decide("evil.example", 443).allowed


def test_extended_attributes_stay(profile):
    try:
        os.setxattr(profile, "user.note", b"x")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    egress_edit.edit(str(profile), adding("b.example"))
    assert os.getxattr(profile, "user.note") == b"x"


def test_a_link_is_followed_to_the_file_and_stays(profile, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to(profile)
    assert egress_edit.edit(str(link), adding("b.example")).file == str(profile)
    assert link.is_symlink()
    assert names(profile) == ["a.example", "b.example"]


def test_what_needs_no_change_is_not_written(profile):
    before = profile.stat()
    made = egress_edit.edit(str(profile), adding("a.example"))
    assert made.edit.kept
    assert (profile.stat().st_ino, profile.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        (PROFILE.replace("tier = 1", "tier = 2"), adding("10.0.0.0/8:5432"), "above the ceiling of tier 2"),
        (
            PROFILE.replace("tier = 1", "tier = 0").replace("deny = []", ""),
            adding("b.example"),
            "would not be enforced",
        ),
        (PROFILE + "nonsense = 1\n", adding("b.example"), "nonsense"),
        ("schema = 1\n[network\n", adding("b.example"), "is not TOML"),
        (PROFILE, adding("a..b"), "is no rule"),
        (PROFILE, lambda text: remove(text, ["b.example"]), "has a rule b.example"),
    ],
)
def test_what_would_not_hold_is_refused_with_its_reason_and_the_file_left(profile, text, change, words):
    profile.write_text(text)
    before = profile.stat()
    with pytest.raises(SandboxError, match=words) as caught:
        egress_edit.edit(str(profile), change)
    assert str(profile) in str(caught.value)
    assert profile.read_text() == text
    assert profile.stat().st_ino == before.st_ino
    assert litter(profile) == []


def test_an_edit_may_mend_a_profile_that_does_not_hold(profile):
    profile.write_text(PROFILE.replace("a.example", "a..b"))
    egress_edit.edit(str(profile), lambda text: remove(text, ["a..b"]))
    assert names(profile) == []


@pytest.mark.parametrize("name", ["tier2", "no-such-profile"])
def test_a_name_without_a_file_is_refused(name):
    with pytest.raises(SandboxError, match=name):
        egress_edit.edit(name, adding("b.example"))


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path):
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    with pytest.raises(ProfileError, match="regular file"):
        egress_edit.edit(str(path), adding("b.example"))


def test_who_writes_at_the_same_time_is_not_overwritten(profile, monkeypatch):
    """A text editor in between, once before the last look at the file and once after it."""
    for moment in ("_same", "_exchange"):
        profile.write_text(PROFILE)
        real = getattr(egress_edit, moment)

        def other_first(*arguments, real=real, moment=moment):
            monkeypatch.setattr(egress_edit, moment, real)
            new = profile.with_name("other")
            new.write_text(PROFILE.replace("a.example", "theirs.example"))
            new.rename(profile)
            return real(*arguments)

        monkeypatch.setattr(egress_edit, moment, other_first)
        egress_edit.edit(str(profile), adding("b.example"))
        assert names(profile) == ["theirs.example", "b.example"]
        assert litter(profile) == []


def test_who_never_stops_writing_is_said(profile, monkeypatch):
    monkeypatch.setattr(egress_edit, "_same", lambda *_: False)
    with pytest.raises(SandboxError, match="nothing was changed"):
        egress_edit.edit(str(profile), adding("b.example"))
    assert profile.read_text() == PROFILE


def test_a_file_system_that_cannot_exchange_has_it_renamed(profile, monkeypatch):
    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(egress_edit.syscalls, "renameat2", refused)
    egress_edit.edit(str(profile), adding("b.example"))
    assert names(profile) == ["a.example", "b.example"]
    assert litter(profile) == []


def test_another_files_denial_and_grant_are_told_with_their_lines(profile, tmp_path):
    base = tmp_path / "base.toml"
    base.write_text('schema = 1\ntier = 1\n[network]\nallow = ["c.example"]\ndeny = [\n"b.example"]\n')
    profile.write_text('extends = "./base.toml"\n' + PROFILE)
    made = egress_edit.edit(str(profile), adding("b.example", "c.example"))
    assert made.notes[0] == f"b.example:443 stays refused: the deny of b.example:* at {base}:6 wins"
    made = egress_edit.edit(str(profile), lambda text: remove(text, ["c.example"]))
    assert made.notes == (f"c.example:443 is still allowed: c.example:443 at {base}:4",)


def test_the_first_rule_of_all_is_for_the_next_start(profile):
    profile.write_text("schema = 1\n")
    assert "next start" in egress_edit.edit(str(profile), adding("a.example")).notes[0]


# As users of their own


def test_a_file_that_is_not_the_callers_to_write_is_refused(world: World):
    path = world.tmp / "agent.toml"
    path.write_text(PROFILE)
    path.chmod(0o444)
    if world.is_root:
        world.own(path)
        assert world.egress("allow", path, "b.example").returncode == 0
        return
    if os.getuid() == 0:
        refused = world.egress("allow", path, "b.example")  # in a folder of its own, a file of root's
        assert refused.returncode == 125
        assert "may only be read" in refused.stderr
        path.chmod(0o666)
        refused = world.egress("allow", path, "b.example")
        assert refused.returncode == 125
        assert "belongs to another user" in refused.stderr
    world.own(path)
    path.chmod(0o444)
    refused = world.egress("allow", path, "b.example")
    assert "may only be read" in refused.stderr
    assert path.read_text() == PROFILE


def test_a_folder_that_may_not_be_written_is_said(world: World):
    folder = world.tmp / "closed"
    folder.mkdir()
    path = folder / "agent.toml"
    path.write_text(PROFILE)
    world.own(path)
    refused = world.egress("allow", path, "b.example")
    if world.is_root:
        assert refused.returncode == 0
    else:
        assert refused.returncode == 125
        assert f"{path} cannot be replaced" in refused.stderr


def test_twenty_editors_at_once_all_land(world: World):
    profile = world.tmp / "agent.toml"
    profile.write_text(PROFILE)
    world.own(profile)
    argv = [world.osmoda_argv("allow", profile, f"n{number}.example", command="osmoda-egress") for number in range(20)]
    editors = [world.popen(one, stdout=subprocess.DEVNULL) for one in argv]
    assert [editor.wait(120) for editor in editors] == [0] * 20
    assert sorted(names(profile)) == sorted(["a.example", *[f"n{number}.example" for number in range(20)]])
    assert "# so" in profile.read_text()
    assert [name for name in os.listdir(world.tmp) if name.startswith(".agent")] == []
    assert profile.stat().st_uid == world.uid


# What runs under it


class Gateways:
    """The control sockets of gateways: `served`, and what they were given."""

    def __init__(self, *served):
        self.served = list(served)
        self.silent = []
        self.given = []
        self.moments = []

    def sessions(self):
        return list(self.served)

    def policy(self, identity, blob, pid):
        self.given.append((identity, blob))
        if identity == "gone":
            raise egress_force.NoSuchSandbox("it has ended")
        if identity == "deaf":
            raise egress_force.ControlError("it is busy")
        return 2


class Served:
    def __init__(self, identity, file, token=None):
        self.identity, self.agent, self.profile, self.pid = identity, "", str(file), 7
        self.files = (str(file),)
        self.token = egress_edit_token(file) if token is None else token


def egress_edit_token(file):
    from osmoda.sandbox.opening import token_of_file

    return token_of_file(str(file))


@pytest.fixture
def gateways(monkeypatch):
    found = Gateways()
    monkeypatch.setattr(egress_force, "Client", lambda: found)
    return found


def test_what_runs_under_the_file_has_the_policy_of_the_new_text(profile, tmp_path, gateways):
    other = tmp_path / "other.toml"
    other.write_text(PROFILE)
    gateways.served = [Served("one", profile), Served("two", profile), Served("else", other), Served("gone", profile)]
    made = egress_edit.edit(str(profile), adding("b.example"))
    assert [one.identity for one in made.reached] == ["one", "two"]
    assert [one.closed for one in made.reached] == [2, 2]
    blobs = dict(gateways.given)
    assert set(blobs) == {"one", "two", "gone"}
    assert blobs["one"] == egress_token.recompile(egress_edit_token(profile))


def test_many_runs_of_one_profile_are_compiled_once(profile, gateways, monkeypatch):
    calls = []
    real = egress_token.recompile
    monkeypatch.setattr(egress_token, "recompile", lambda token: calls.append(token) or real(token))
    gateways.served = [Served(str(number), profile) for number in range(50)]
    assert len(egress_edit.edit(str(profile), adding("b.example")).reached) == 50
    assert len(calls) == 1


def test_a_sandbox_that_comes_while_the_edit_is_made_has_it_too(profile, gateways):
    late = Served("late", profile)
    gateways.served = [Served("one", profile)]
    given = gateways.policy

    def policy(*arguments):
        if late not in gateways.served:
            gateways.served.append(late)
        return given(*arguments)

    gateways.policy = policy
    made = egress_edit.edit(str(profile), adding("b.example"))
    assert [one.identity for one in made.reached] == ["one", "late"]
    assert gateways.given[0][1] == gateways.given[1][1]


def test_the_policies_are_compiled_before_the_file_is_written(profile, gateways, monkeypatch):
    order = []
    real = egress_token.recompile
    monkeypatch.setattr(egress_token, "recompile", lambda token: order.append(names(profile)) or real(token))
    gateways.served = [Served("one", profile)]
    egress_edit.edit(str(profile), adding("b.example"))
    assert order == [["a.example"]]


def test_a_sandbox_that_does_not_take_it_is_told(profile, gateways):
    gateways.served = [Served("deaf", profile), Served("old", profile, b"\0")]
    gateways.silent = [9]
    made = egress_edit.edit(str(profile), adding("b.example"))
    assert {one.identity: one.error for one in made.reached} == {
        "deaf": "it is busy",
        "old": "the sandbox was started by another version of osmoda, or from no profile file",
    }
    assert made.silent == (9,)
    assert not made.everywhere


def test_an_edit_that_would_break_a_profile_that_runs_on_top_is_refused(profile, tmp_path, gateways):
    top = tmp_path / "top.toml"
    top.write_text('schema = 1\ntier = 2\nextends = "./agent.toml"\n')
    one = Served("one", top)
    one.files = (str(top), str(profile))
    gateways.served = [one]
    with pytest.raises(SandboxError, match=r"would break .*top\.toml"):
        egress_edit.edit(str(profile), adding("10.0.0.0/8:5432"))
    assert profile.read_text() == PROFILE
    assert gateways.given == []


def test_a_profile_on_top_that_is_broken_already_keeps_nobody_from_a_denial(profile, tmp_path, gateways):
    top = tmp_path / "top.toml"
    top.write_text('schema = 1\nextends = "./agent.toml"\nnonsense = 1\n')
    one = Served("one", top)
    one.files = (str(top), str(profile))
    gateways.served = [one]
    made = egress_edit.edit(str(profile), lambda text: deny(text, [Entry("a.example")]))
    assert names(profile, "deny") == ["a.example"]
    assert "nonsense" in made.reached[0].error
    assert not made.everywhere


def test_with_its_last_rule_a_sandbox_loses_the_network(profile, gateways):
    from osmoda.egress.policy import Policy

    gateways.served = [Served("one", profile)]
    egress_edit.edit(str(profile), lambda text: remove(text, ["a.example"]))
    assert not Policy.load(gateways.given[0][1]).decide("a.example", 443).allowed


def test_what_is_made_at_the_launch_is_said_to_be_for_the_next_start(profile, gateways):
    gateways.served = [Served("one", profile)]
    notes = egress_edit.edit(str(profile), adding("10.0.0.0/8:5432")).notes
    assert notes == ("10.0.0.0/8: from the next start on, since addresses of networks are routed at the launch",)
    more = {"methods": ["GET"], "secret": "KEY"}
    notes = egress_edit.edit(str(profile), lambda text: allow(text, [Entry("s.example", (), more)])).notes
    assert "KEY: from the next start on, since secrets are read at the launch" in notes
    assert any("certificates" in note for note in notes)


def test_reload_puts_the_file_as_it_is_in_force(profile, gateways):
    gateways.served = [Served("one", profile)]
    before = profile.stat()
    made = egress_edit.reload(str(profile))
    assert [one.identity for one in made.reached] == ["one"]
    assert profile.stat().st_ino == before.st_ino
    profile.write_text("nonsense = 1\n")
    with pytest.raises(ProfileError, match="nonsense"):
        egress_edit.reload(str(profile))
    assert len(gateways.given) == 1
