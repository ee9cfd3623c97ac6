"""The grammar: help with examples that hold, one sentence for what it does not know, completion."""

from __future__ import annotations

import re
import shlex

import pytest
import shtab

from osmoda.sandbox import command_line, grammar, request
from osmoda.sandbox.request import UsageError

VERBS = sorted(
    [
        *("run", "learn", "serve", "explain", "check", "diff", "why", "doctor", "verify", "ps", "top", "kill"),
        *("changes", "commit", "discard", "completion"),
    ]
)


def examples(verb):
    text = command_line.parser(verb).format_help()
    after = text.partition("examples:\n")[2]
    return [shlex.split(line.partition(">")[0]) for line in after.splitlines() if line.startswith("  osmoda-sandbox ")]


def test_these_are_the_verbs():
    text = command_line.parser().format_help()
    assert sorted(re.findall(r"^    ([a-z]+)(?:  |$)", text, re.MULTILINE)) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_examples_and_each_of_them_parses(verb):
    found = examples(verb)
    assert found
    for program, first, *rest in found:
        assert (program, first) == ("osmoda-sandbox", verb)
        if verb == "run":
            assert request.parse(rest) is not None
        else:
            assert command_line.parser().parse_args([first, *rest]).verb == verb


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "completion"])
def test_every_verb_has_json(verb):
    assert "--json" in command_line.parser(verb).format_help()


def test_the_help_of_run_is_the_table_that_is_parsed():
    text = " ".join(command_line.parser("run").format_help().split())
    for name, (_, metavar, words) in request.OPTIONS.items():
        assert f"{name} {metavar}" in text
        assert " ".join(words.split()) in text
    for name, (_, words) in request.FLAGS.items():
        assert name in text
        assert " ".join(words.split()) in text


@pytest.mark.parametrize(
    "arguments",
    [["explain", "--nope"], ["explain", "--tier", "3"], ["check"], ["diff", "a"], ["kill", "--signal"], ["completion"]],
)
def test_what_does_not_parse_is_one_sentence_and_no_exit(arguments):
    with pytest.raises(UsageError, match=rf"see osmoda-sandbox {arguments[0]} --help$") as caught:
        command_line.parser().parse_args(arguments)
    assert "\n" not in str(caught.value)


def test_options_are_not_abbreviated():
    with pytest.raises(UsageError):
        command_line.parser().parse_args(["why", "--sysc", "bpf"])


@pytest.mark.parametrize("shell", grammar.SHELLS)
def test_completion_knows_every_verb_and_the_options_of_run(shell):
    script = shtab.complete(command_line.parser(), shell=shell)
    for verb in VERBS:
        assert verb in script
    assert "workspace-mode" in script
