"""What `osmoda-watch switch` prints, and what it makes of options and of files that say what is switched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from osmoda.sandbox.request import UsageError
from osmoda.supervisor.command import grammar
from osmoda.supervisor.command import switch_verbs as command
from osmoda.supervisor.command import switch_words as words
from osmoda.supervisor.control import client as control_client


def switch(phase: str, **more: Any) -> dict[str, Any]:
    member = {"kind": "agent", "name": "research", "before": 4, "after": 5, "snapshot": False}
    return {
        "switch": 7,
        "phase": phase,
        "reason": "",
        "error": "",
        "attempts": 0,
        "since": 0.0,
        "began": 0.0,
        "seconds_left": None,
        "trouble": "",
        "not_on_ledger": 0,
        "members": [member],
        **more,
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.6, "1min"),
        (552, "9min 12s"),
        (3600, "1h"),
        (90061, "1d 1h"),
        (86400 * 3 + 61, "3d 1min"),
    ],
)
def test_times(seconds, said):
    assert words.span(seconds) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (switch("staged"), "research: generation 5 is made; nothing has changed yet"),
        (switch("switching"), "research: switching from generation 4 to generation 5"),
        (
            switch("probation", seconds_left=552.0),
            "research: generation 5 is on probation for another 9min 12s; a failed check leads back to generation 4",
        ),
        (switch("rolling-back", reason="by hand"), "research: going back from generation 5 to generation 4: by hand"),
        (
            switch("rollback-failed", reason="by hand", error="the port is taken", attempts=3, seconds_left=4.0),
            (
                "research: the rollback to generation 4 has not succeeded yet: the port is taken; 3 attempts have "
                "failed, the next one comes in 4s (why it goes back: by hand)"
            ),
        ),
    ],
)
def test_one_sentence_a_phase(found, said):
    assert [*words.sentences(found)] == [said]


def test_how_it_ended():
    (committed,) = words.sentences(switch("committed", reason="it has passed its probation"))
    assert committed.startswith("research: generation 5 is committed since 19")
    assert committed.endswith(": it has passed its probation")
    (back,) = words.sentences(switch("rolled-back", reason="research is not healthy"))
    assert back.startswith("research: rolled back to generation 4 since 19")


def test_what_keeps_it_and_where_the_data_is():
    found = switch("rolled-back", reason="by hand", trouble="the ledger could not be written: full", not_on_ledger=2)
    found["members"] = [{"kind": "agent", "name": "research", "before": None, "after": 1, "snapshot": True}]
    found["members"].append({"kind": "nixos", "name": "system", "before": 41, "after": 42, "snapshot": False})
    first, second, third, *rest = words.sentences(found)
    assert "rolled back to no generation" in first
    assert second.endswith("in *.set-aside-by-switch-7")
    assert "rolled back to system generation 41" in third
    assert rest == [
        "switch 7: the ledger could not be written: full",
        "switch 7: the ledger lacks 2 of its steps, and gets them later",
    ]


# Options and files


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the daemon would have been sent."""
    found: list[dict[str, Any]] = []

    def ask(verb: str, units: Any = (), **options: Any) -> dict[str, Any]:
        import json

        found.append({"verb": verb, **json.loads(options.get("begin", "{}"))})
        return {"switch": switch("probation"), "done": True}

    monkeypatch.setattr(control_client, "ask", ask)
    return found


def run(*arguments: str) -> int:
    return command.run(grammar.parser().parse_args(["switch", *arguments]))


def test_options_become_paths_and_seconds(sent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words_ = [
        "begin",
        "research",
        "--code",
        "build",
        "--profile",
        "./p.toml",
        "--unit",
        "u.service",
        "--probation",
        "2h",
    ]
    assert run(*words_, "--snapshot-data", "--keep", "3", "--max-size", "1G") == 0
    assert sent == [
        {
            "verb": "switch-begin",
            "agents": [
                {
                    "unit": f"{tmp_path}/u.service",
                    "profile": f"{tmp_path}/p.toml",
                    "code": f"{tmp_path}/build",
                    "name": "research",
                    "snapshot": True,
                }
            ],
            "system": None,
            "wait": False,
            "probation": 7200.0,
            "keep": 3,
            "max_size": 1 << 30,
        }
    ]
    assert "is on probation" in capsys.readouterr().out


def test_a_file_s_paths_are_relative_to_it_and_options_win(sent, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'probation = "30min"\nsystem = 42\nkeep = 9\n[[agent]]\nname = "a"\ncode = "build/a"\nprofile = "tier1"\n'
        '[[agent]]\nname = "b"\nsnapshot-data = true\n'
    )
    assert run("begin", "--from", str(plan), "--keep", "2", "--json") == 0
    assert sent[0]["agents"] == [
        {"name": "a", "code": f"{tmp_path}/build/a", "profile": "tier1"},
        {"name": "b", "snapshot": True},
    ]
    assert (sent[0]["system"], sent[0]["keep"], sent[0]["probation"]) == (42, 2, 1800.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agent = 1", "agents are tables"),
        ("[[agent]]\ncode = 'x'", "each with a name"),
        ("[[agent]]\nname = 'a'\ncod = 'x'", "an agent has no cod"),
        ("agents = []", "there is no key agents"),
        ("probation = 'soon'\n[[agent]]\nname = 'a'", "probation=soon"),
        ("= 1", "plan.toml: "),
        ("", "which agent?"),
    ],
)
def test_files_that_say_nothing_sensible(sent, tmp_path: Path, text, said):
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(UsageError) as caught:
        run("begin", "--from", str(plan))
    assert said in str(caught.value)
    assert sent == []
