"""`osmoda-watch`: its grammar, what it prints, its exit codes, and what it does not load."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time

import pytest

from osmoda.sandbox.request import UsageError
from osmoda.supervisor.command import grammar, status_words
from osmoda.supervisor.command import verbs as command
from osmoda.supervisor.control import client as control_client
from osmoda.supervisor.control.client import NoDaemon
from osmoda.supervisor.logs import files as log_files
from osmoda.supervisor.logs.files import LogFile, record

UP = {
    "unit": "agent.service",
    "description": "An \x1b[31magent",
    "files": ["/units/agent.service", "/units/agent.service.d/more.conf"],
    "state": "active",
    "sub": "running",
    "result": "success",
    "since": 1_700_000_000.0,
    "pid": 42,
    "exit_code": None,
    "exit_signal": 0,
    "restarts": 3,
    "says": "serving",
    "problem": "",
    "health": "healthy",
    "health_problem": "",
    "group": "",
    "sandbox": "1a-2",
    "denials": ["agent.toml:3: a refusal"],
    "tier": 1,
    "profile": "/profiles/agent.toml",
    "plan": "0123456789abcdef0123",
    "notes": [],
    "memory": 12 << 20,
    "tasks": 4,
    "cpu_time": 1.5,
}
DOWN = UP | {"state": "failed", "sub": "failed", "result": "exit-code", "exit_code": 7, "pid": 0, "problem": "it broke"}


@pytest.fixture
def run(monkeypatch, capsys):
    """The command with words: exit code, output, errors. `answers` of the daemon are set by verb."""

    def call(*words, answers=None):
        def ask(verb, units=(), **_):
            if answers is None:
                raise NoDaemon("no daemon of this user runs; `osmoda-watch daemon` is one")
            asked.append((verb, list(units)))
            return {"done": True, **answers}

        monkeypatch.setattr(control_client, "ask", ask)
        monkeypatch.setattr(sys, "argv", ["osmoda-watch", *words])
        code = command.main()
        output, errors = capsys.readouterr()
        return code, output, errors

    asked = call.asked = []
    return call


def test_every_verb_has_help_with_an_example_that_it_understands(run, capsys):
    for verb in command._VERBS:
        parser = grammar.parser(verb)
        text = parser.format_help()
        _, _, after = text.partition("examples:\n")
        examples = [
            shlex.split(line.partition(">")[0].partition("|")[0]) for line in after.splitlines() if line.strip()
        ]
        assert examples, verb
        for program, first, *words in examples:
            assert (program, first) == ("osmoda-watch", verb)
            grammar.parser().parse_args([verb, *words])
        assert verb in ("daemon", "switch", "completion") or "--json" in text  # the verbs of switch have it
        assert all(len(line) <= 120 for line in text.splitlines())


def test_a_verb_that_is_none(run):
    code, _, errors = run("strat")
    assert (code, errors) == (
        125,
        "osmoda-watch: there is no verb strat; did you mean start? see osmoda-watch --help\n",
    )
    assert run()[0] == 125


def test_status_reads_like_systemctl_s(run):
    code, output, _ = run("status", "agent", answers={"units": [UP]})
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == "● agent.service - An \\x1b[31magent"
    assert lines[1:3] == ["    Loaded: from /units/agent.service", "   Drop-In: /units/agent.service.d/more.conf"]
    assert lines[3].startswith("    Active: active (running) since Tue 2023-11-14 ")
    assert lines[4:] == [
        "  Main PID: 42",
        '    Status: "serving"',
        "    Health: healthy",
        "      Tier: 1, sandbox 1a-2",
        "   Profile: /profiles/agent.toml",
        "      Plan: 0123456789abcdef",
        "     Tasks: 4",
        "    Memory: 12.0M",
        "       CPU: 1.500 s",
        "  Restarts: 3",
        "   Refused: agent.toml:3: a refusal",
    ]
    assert run.asked == [("status", ["agent.service"])]


def test_status_of_what_is_down_and_of_what_is_not(run):
    code, output, _ = run("status", "agent", answers={"units": [DOWN]})
    assert code == 3
    assert "\u00d7 agent.service" in output
    assert "failed (failed) (Result: exit-code, exit code 7) since" in output
    assert "       Why: it broke\n" in output
    code, _, errors = run("status", "other", answers={"units": []})
    assert code == 4
    assert "there is no unit other.service" in errors
    code, output, _ = run("status", "--json", answers={"units": [UP]})
    assert json.loads(output)[0] == json.loads(json.dumps(UP | {"log": []}))


def test_jobs_say_what_did_not_happen(run):
    answers = {"outcomes": [{"unit": "a.service", "ok": True, "text": ""}]}
    assert run("start", "a", answers=answers) == (0, "", "")
    answers["outcomes"].append({"unit": "b.service", "ok": False, "text": "/u/b.service:3: no\x1b"})
    assert run("restart", "a", "b", answers=answers) == (1, "", "osmoda-watch: b.service: /u/b.service:3: no\\x1b\n")
    code, output, _ = run("stop", "--json", "a", "b", answers=answers)
    assert (code, json.loads(output)) == (1, answers["outcomes"])
    assert [verb for verb, _ in run.asked] == ["start", "restart", "stop"]


def test_without_a_daemon(run):
    code, output, errors = run("start", "a")
    assert (code, output) == (125, "")
    assert errors == "osmoda-watch: no daemon of this user runs; `osmoda-watch daemon` is one\n"


def test_logs_need_no_daemon(run):
    file = LogFile(log_files.folder(), "a.service")
    for number in range(5):
        file.append(record(time.time() - 1000 + 300 * number, "a.service", "stdout", 6, 7, b"line %d" % number))
    file.close()
    code, output, _ = run("logs", "a")
    assert code == 0
    assert [line.partition("]: ")[2] for line in output.splitlines()] == [f"line {number}" for number in range(5)]
    assert len(run("logs", "a", "-n", "2")[1].splitlines()) == 2
    assert len(run("logs", "--since", "3min")[1].splitlines()) == 2
    assert [json.loads(line)["pid"] for line in run("logs", "--json", "a")[1].splitlines()] == [7] * 5
    assert run("logs", "b")[0] == 125
    assert run("logs", "a", "--since", "teatime")[2].startswith("osmoda-watch: 'teatime' is no time")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("2h ago", 7200), ("1d", 86400), ("1.5h", 5400)],
)
def test_moments_in_the_past(text, seconds):
    assert command.moment(text) == pytest.approx(time.time() - seconds, abs=5)


def test_moments_of_the_calendar():
    assert command.moment("2026-01-31 12:00") == time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))
    with pytest.raises(UsageError):
        command.moment("31.1.2026")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (61, "1min 1s"),
        (3661, "1h 1min"),
        (90000, "1 day 1h"),
        (180000, "2 days 2h"),
        (-5, "0s"),
    ],
)
def test_spans(seconds, text):
    assert status_words.ago(seconds) == text


def test_what_others_wrote_is_harmless_in_tables():
    rows = list(status_words.table(("unit", "x"), [("a\x1b]0;", "1"), ("longer", "2")]))
    assert rows == ["unit      x", "a\\x1b]0;  1", "longer    2"]


def test_looking_loads_neither_asyncio_nor_the_compiler():
    program = "import sys; import osmoda.supervisor.command.verbs; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "osmoda.supervisor.control.client" in loaded
    assert not {"asyncio", "msgspec", "rich", "osmoda.sandbox.compile", "osmoda.sandbox.profile"} & {*loaded}


def test_a_command_that_systemd_starts_loads_little():
    program = "import sys; import osmoda.supervisor.systemd.execution; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "osmoda.sandbox.service_foreground" in loaded
    assert not {"asyncio", "argparse", "h11", "shtab", "pyseccomp", "tomlkit", "rich", "logging"} & {*loaded}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(run, shell):
    code, output, _ = run("completion", shell)
    assert code == 0
    assert "osmoda-watch" in output
