"""What verbs print: clean, narrow, and the same wherever it goes."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from osmoda.sandbox import report


def test_what_a_terminal_would_act_on_is_escaped():
    assert report.clean("a\x1b[31m\tb\u202e") == "a\\x1b[31m\\tb\\u202e"
    assert report.clean("prüfen ✓") == "prüfen ✓"


def test_origins_are_shortened_by_the_place_and_the_home(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert report.short(f"{here}/agent.toml:3") == "agent.toml:3"
    assert report.short(f"{tmp_path}/x/agent.toml:3") == "~/x/agent.toml:3"
    assert report.short(f"{tmp_path}x/agent.toml:3") == f"{tmp_path}x/agent.toml:3"
    assert report.short("tier 2") == "tier 2"


def test_json_is_ascii_whatever_it_holds(capsys):
    value = {"name": "prüfen\x1b\udcff"}
    report.print_json(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize("text", ["word " * 60, "x" * 300])
def test_long_lines_are_folded_and_nothing_is_cut(text):
    console = Console(width=80, record=True, markup=False)
    with console.capture() as capture:
        console.print(report.lines([(text, "/a/very/long/path/to/some/file/of/a/profile.toml:123")]))
    printed = capture.get()
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count(text[0]) >= text.count(text[0])
