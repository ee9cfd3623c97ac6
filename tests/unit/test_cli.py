"""The verbs from their arguments to what is printed and the exit code."""

from __future__ import annotations

import json
import os
import textwrap

import pytest

from osmoda.sandbox import cli
from tests.worlds import Program

PROFILE = """\
schema = 1
tier = 1
description = "Reads notes"
[filesystem]
read = ["notes"]
deny = ["notes/.env"]
"""


@pytest.fixture
def profile(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a\n")
    (tmp_path / "agent.toml").write_text(PROFILE)
    monkeypatch.chdir(tmp_path)
    return "agent.toml"


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def record(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return code, json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "which verb?"),
        (["explian"], "there is no verb explian; did you mean explain?"),
        (["quux"], "there is no verb quux; see osmoda-sandbox --help"),
        (["--quux"], "unrecognized arguments"),
        (["explain", "no-such-profile"], "no profile has this name"),
        (["explain", "./no.toml"], "cannot be read: No such file or directory"),
        (["explain", "a", "--profile", "b"], "the profile is given twice"),
        (["explain", "--env", "X"], "want NAME=VALUE"),
        (["kill"], "name the sandboxes to end, or --all"),
        (["kill", "--all", "x"], "name the sandboxes to end, or --all"),
        (["kill", "ffff-ffff"], "no sandbox ffff-ffff is running"),
        (["kill", "--signal", "NOPE", "--all"], "there is no signal NOPE"),
        (["why"], "there is no last run"),
        (["why", "--tier", "2"], "ask about something"),
        (["why", "--tier", "2", "--syscall", "opne"], "did you mean open?"),
        (["why", "--tier", "2", "--syscall", "@file-system"], "@file-system is a group"),
        (["why", "--path", "a", "--syscall", "b"], "not allowed with"),
        (["diff", "tier1", "nope"], "no profile has this name"),
        (["changes", "--workspace", "/no/such"], "/no/such"),
        (["run", "--dry-run"], "there is no command to run"),
        (["run", "--dry-run", "--profile", "./no.toml", "--", "true"], "cannot be read"),
        (["explain", "\x1b]0;evil\x07"], "\\x1b]0;evil\\x07"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_125(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (125, "")
    assert err.startswith("osmoda-sandbox: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert sentence in err
    assert "\x1b" not in err


def test_every_error_of_a_profile_is_told(capsys, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text('schema = 1\ntier = 7\ncolour = "red"\n')
    code, _, err = run(capsys, "explain", str(broken))
    assert code == 125
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{broken}:2:1", f"{broken}:3:1"]


def test_explain_names_lines(capsys, profile):
    code, out, _ = run(capsys, "explain", profile)
    assert code == 0
    assert "agent.toml: tier 1" in out
    words = out.replace("agent.toml:5", "").split()  # which stands beside the first line of what is wrapped
    assert "but not .env" in " ".join(words), "however the width wraps it, which depends on the folder's name"
    code, found = record(capsys, "explain", profile)
    assert (code, found["tier"], found["description"]) == (0, 1, "Reads notes")
    mounts = next(layer for layer in found["layers"] if layer["name"] == "mounts")
    (granted,) = (line for line in mounts["lines"] if line["text"].endswith("notes but not .env"))
    assert granted["origin"].endswith("agent.toml:5")


def test_explain_takes_the_options_of_run(capsys, profile, tmp_path):
    (tmp_path / "more").mkdir()
    _, found = record(capsys, "explain", profile, "--read", str(tmp_path / "more"), "--workspace-mode", "none")
    mounts = next(layer for layer in found["layers"] if layer["name"] == "mounts")
    assert any(line["text"] == f"read {tmp_path}/more" for line in mounts["lines"])


def test_check_prints_ok_or_each_error_with_its_place(capsys, profile, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text('schema = 1\ntier = 2\n[filesystem]\nwrite = ["/srv"]\nread = ["/run"]\n')
    code, out, err = run(capsys, "check", profile, "broken.toml", "research")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "agent.toml: OK"
    assert lines[-1] == "research: OK"
    assert lines[1].startswith(f"{broken}:5:")
    code, found = record(capsys, "check", "broken.toml")
    assert code == 1
    assert found[0]["errors"][0]["line"] == 5
    assert run(capsys, "check", profile)[:2] == (0, "agent.toml: OK\n")


def test_check_compiles_too(capsys, tmp_path):
    missing = tmp_path / "missing.toml"
    missing.write_text('schema = 1\ntier = 1\n[filesystem]\nread = ["/no/such/place"]\n')
    code, out, _ = run(capsys, "check", str(missing))
    assert code == 1
    assert out == f"{missing}:4: /no/such/place cannot be granted: /no does not exist\n"


def test_diff_tells_what_is_granted_beyond(capsys, profile, tmp_path):
    assert run(capsys, "diff", profile, profile) == (0, "agent.toml grants nothing beyond agent.toml\n", "")
    code, out, _ = run(capsys, "diff", profile, "tier2")
    assert code == 1
    assert "tier: tier 1; there: tier 2" in out
    code, found = record(capsys, "diff", profile, "tier1")
    assert code == 1
    (excess,) = found
    assert (excess["kind"], excess["what"]) == ("filesystem.read", str(tmp_path / "notes"))
    assert excess["origin"] == f"{tmp_path}/agent.toml:5"
    assert record(capsys, "diff", "tier2", "tier1") == (0, [])


def test_why_about_a_path(capsys, profile, tmp_path):
    code, out, _ = run(capsys, "why", profile, "--path", "notes/a.txt")
    assert (code, out) == (
        0,
        f"{tmp_path}/notes/a.txt may be read, read {tmp_path}/notes but not .env ({tmp_path}/agent.toml:5)\n",
    )
    code, found = record(capsys, "why", profile, "--path", "notes/a.txt", "--write")
    assert (code, found["allowed"], found["layer"], found["mode"]) == (1, False, "mounts", "write")
    assert found["advice"]["line"] == f'write = ["{tmp_path}/notes/a.txt"]'
    assert (found["profile"], found["tier"]) == ("agent.toml", 1)


def test_why_about_a_call(capsys):
    code, found = record(capsys, "why", "--tier", "2", "--syscall", "ptrace")
    assert (code, found["allowed"], found["answer"]) == (1, False, "EPERM")
    code, found = record(capsys, "why", "--tier", "2", "--syscall", "clone3")
    assert (code, found["answer"]) == (1, "ENOSYS")
    code, found = record(capsys, "why", "--tier", "2", "--syscall", "ioctl")
    assert (code, found["allowed"], found["depends"]) == (0, True, True)
    code, out, _ = run(capsys, "why", "--tier", "0", "--syscall", "ptrace")
    assert (code, out) == (0, "ptrace is allowed; tier 0 filters nothing\n")


def test_a_dry_run_tells_all_and_does_nothing(capsys, profile, tmp_path, monkeypatch):
    monkeypatch.setenv("LANG", "C.UTF-8")
    before = sorted(os.listdir(tmp_path))
    arguments = ["run", "--dry-run", "--profile", profile, "--env", "TOKEN=hunter2", "--json", "--", "touch", "made"]
    code = cli.main(arguments)
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["argv"] == ["touch", "made"]
    assert (found["workspace"], found["directory"]) == ("", "/workspace")
    assert {"TOKEN", "HOME", "PATH"} <= set(found["environment"])
    assert "hunter2" not in json.dumps(found)
    names = [operation["operation"] for operation in found["operations"]]
    assert names[0] == "Namespaces"
    assert [name for name in names[-3:] if name != "NoCoreDumps"] == ["Landlock", "Seccomp"]
    assert sorted(os.listdir(tmp_path)) == before


def test_a_dry_run_in_words_has_the_operations_in_order(capsys, profile):
    code, out, _ = run(capsys, "run", "--dry-run", "--profile", profile, "--", "echo", "a b")
    assert code == 0
    out = " ".join(out.split())
    assert out.index("own user, mount, pid") < out.index("but not .env") < out.index("seccomp: ")
    assert "execute: echo 'a b'" in out


def test_help_of_the_command_of_a_verb_and_of_run(capsys):
    for arguments in (["--help"], ["why", "--help"]):
        assert cli.main(arguments) == 0
    assert "examples:" in capsys.readouterr().out
    assert cli.main(["run", "--help"]) == 0
    assert "osmoda-sandbox run --profile agent.toml" in capsys.readouterr().out


def test_completion_prints_a_script(capsys):
    code, out, _ = run(capsys, "completion", "bash")
    assert code == 0
    assert "complete -" in out


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    import subprocess
    import sys

    script = textwrap.dedent("""
        import sys
        from osmoda.sandbox.cli import main
        sys.exit(main(["explain", "--tier", "2"]))
    """)
    process = Program([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
