"""The record of the last run: what is read, what is refused to be read, and what is told of it."""

from __future__ import annotations

import marshal
import os

import pytest
from rich.console import Console

from osmoda.host import paths
from osmoda.sandbox import foreground, why
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.request import Request
from tests.compiled import compiled, outcome, refused


def place():
    return f"{paths.own_directory('state')}/last-run"


def keep(*denials, **changed):
    request = Request(("prog", "argument"), profile="agent.toml", workspace="work", read=("/opt",))
    foreground._keep(request, "1a-1", outcome(*denials, **changed))
    return request


def test_what_run_keeps_is_what_why_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    denial = refused("ptrace", 16)
    request = keep(denial, status=3, oom_kills=1, forks_refused=2, timed_out=True, refused=9)
    run = why.last_run()
    assert run is not None
    assert (run.identity, run.directory, run.status, run.refused) == ("1a-1", str(tmp_path), 3, 9)
    assert run.request == request
    assert run.outcome.denials == (denial,)
    assert (run.outcome.oom_kills, run.outcome.forks_refused, run.outcome.timed_out) == (1, 2, True)


def test_there_may_be_no_last_run():
    assert why.last_run() is None


def test_a_record_that_others_may_write_or_that_is_a_link_is_not_read(tmp_path):
    keep()
    os.chmod(place(), 0o620)
    with pytest.raises(SandboxError, match="this user alone"):
        why.last_run()
    os.chmod(place(), 0o600)
    os.rename(place(), place() + ".real")
    os.symlink(place() + ".real", place())
    with pytest.raises(SandboxError, match="cannot be read"):
        why.last_run()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to own a file as another user")
def test_a_record_of_another_owner_is_not_read():
    keep()
    os.chown(place(), 12345, -1)
    with pytest.raises(SandboxError, match="this user alone"):
        why.last_run()


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", marshal.dumps((0, "x")), marshal.dumps(5), marshal.dumps((2,) * 7)]
)
def test_a_record_of_another_version_is_one_sentence(content):
    keep()
    with open(place(), "wb") as file:
        file.write(content)
    with pytest.raises(SandboxError, match="written by another version"):
        why.last_run()


def test_a_profile_that_was_edited_after_the_run_is_told(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("schema = 1\n")
    from osmoda.sandbox.profile import Profile

    profile = Profile.load(file)
    keep()
    run = why.last_run()
    os.utime(file, (run.ended - 10, run.ended - 10))
    assert why.changed_since(run, profile) == ()
    os.utime(file, (run.ended + 10, run.ended + 10))
    assert why.changed_since(run, profile) == (str(file),)
    file.unlink()
    assert why.changed_since(run, profile) == (str(file),)


def shown(found, changed=()):
    keep()
    console = Console(width=100, markup=False, force_terminal=False)
    with console.capture() as capture:
        why.show_run(why.last_run(), found, changed, console)
    return capture.get()


def test_habits_are_folded_and_the_rest_has_its_advice():
    profile, plan = compiled("tier = 2")
    keep(refused("unshare", 0x10000000), refused("socket", 1, 1 | 0o2000000 | 0o4000, 0))
    text = shown(why.denials_of(why.last_run(), plan, profile))
    assert "unshare(CLONE_NEWUSER)" in text
    assert "above tier 2's ceiling" in text.replace("\n", " ")
    assert "out of habit, without need: socket(AF_UNIX, SOCK_STREAM)" in text


def test_a_run_without_refusals():
    assert "nothing was refused\n" in shown(())
    assert "agent.toml has changed since" in shown((), ("/x/agent.toml",)).replace("/x/", "")


def test_a_call_that_is_answered_as_if_the_kernel_lacked_it_is_no_refusal_by_the_profile():
    profile, plan = compiled("tier = 1")
    verdict = why.ask_call(plan, profile, "openat2")
    assert (verdict.allowed, verdict.answer, verdict.line) == (False, "ENOSYS", "")


def test_a_call_that_sets_the_limit_of_core_files_depends_on_what_it_sets():
    for text, depends in (("tier = 2", True), ("tier = 1\n[process.limits]\ncore = '1M'", False)):
        profile, plan = compiled(text)
        for name in ("prlimit64", "setrlimit"):
            found = why.ask_call(plan, profile, name)
            assert (found.allowed, found.depends) == (True, depends)
