from __future__ import annotations

import pytest

from osmoda.sandbox import request
from osmoda.sandbox.request import Request, UsageError, parse


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--profile a.toml", "profile", "a.toml"),
        ("--profile=a.toml", "profile", "a.toml"),
        ("-p a.toml", "profile", "a.toml"),
        ("--tier 0", "tier", 0),
        ("--tier=2", "tier", 2),
        ("-t 1", "tier", 1),
        ("--workspace /w", "workspace", "/w"),
        ("-w .", "workspace", "."),
        ("--workspace-mode overlay", "workspace_mode", "overlay"),
        ("--workspace-mode direct", "workspace_mode", "direct"),
        ("--workspace-mode none", "workspace_mode", "none"),
        ("--chdir /d", "directory", "/d"),
        ("-C d", "directory", "d"),
        ("--timeout 2", "timeout", 2.0),
        ("--timeout 0.5s", "timeout", 0.5),
        ("--timeout 3m", "timeout", 180.0),
        ("--timeout 1h", "timeout", 3600.0),
        ("--read /a --read=/b", "read", ("/a", "/b")),
        ("--write /a", "write", ("/a",)),
        ("--env A=b=c -e D=", "set", (("A", "b=c"), ("D", ""))),
        ("--pass-env A --pass-env B", "passed", ("A", "B")),
        ("--allow a.example --allow b.example:80,443", "allow", ("a.example", "b.example:80,443")),
        ("--deny c.a.example", "deny", ("c.a.example",)),
        ("--agent writer", "agent", "writer"),
        ("--pool", "pool", True),
        ("--dry-run", "dry_run", True),
        ("--quiet", "quiet", True),
        ("-q", "quiet", True),
        ("--json", "json", True),
    ],
)
def test_each_option(words, field, value):
    asked = parse([*words.split(), "--", "true"])
    assert asked == Request(("true",), **{field: value})


def test_every_option_of_the_table_is_tried_above():
    marks = test_each_option.pytestmark[0].args[1]
    assert {field for _, field, _ in marks} == {
        *(field for field, *_ in request.OPTIONS.values()),
        *(field for field, _ in request.FLAGS.values()),
    }


def test_without_options_the_rest_is_the_profiles():
    assert parse(["true"]) == Request(
        ("true",), "", -1, "", "", "", 0.0, (), (), (), (), (), (), "", False, False, False
    )


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["--", "ls", "-l"], ("ls", "-l")),
        (["ls", "-l", "--tier", "9"], ("ls", "-l", "--tier", "9")),
        (["-q", "--", "--quiet"], ("--quiet",)),
        (["-q", "--", "--", "a"], ("--", "a")),
        (["-"], ("-",)),
        (["", "a"], ("", "a")),
    ],
)
def test_the_command_starts_at_the_first_word_that_is_no_option(words, argv):
    asked = parse(words)
    assert asked is not None
    assert asked.argv == argv


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["--tier", "2", "--help"]])
def test_help_is_no_request(words):
    assert parse(words) is None


def test_help_after_the_command_is_the_commands():
    asked = parse(["ls", "--help"])
    assert asked is not None
    assert asked.argv == ("ls", "--help")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command to run; an example: osmoda-sandbox run"),
        (["--tier", "2", "--"], "no command to run"),
        (["--teir", "2", "ls"], "no option --teir; see osmoda-sandbox run --help"),
        (["--teir=2", "ls"], "no option --teir=2"),
        (["-x", "ls"], "no option -x"),
        (["-pfile", "ls"], "no option -pfile"),
        (["--quiet=1", "ls"], "no option --quiet=1"),
        (["--tier"], "--tier wants N"),
        (["-w"], "--workspace wants DIR"),
        (["--profile", "", "ls"], "--profile wants FILE"),
        (["--profile=", "ls"], "--profile wants FILE"),
        (["--read", "a\0b", "ls"], "--read wants PATH"),
        (["--tier", "3", "ls"], "--tier 3: the tiers are 0, 1 and 2"),
        (["-t", "two", "ls"], "--tier two: the tiers are"),
        (["--workspace-mode", "rw", "ls"], "--workspace-mode rw: the modes are"),
        (["--tier", "1", "-t", "2", "ls"], "--tier is given twice"),
        (["-p", "a", "--profile=b", "ls"], "--profile is given twice"),
        *[
            (["--timeout", text, "ls"], f"--timeout {text}: want a number of seconds above 0")
            for text in ("0", "-1", "x", "nan", "inf", "1e12", "5d", "s", "")
        ],
        (["--env", "A", "ls"], "--env A: want NAME=VALUE"),
        (["-e", "=b", "ls"], "--env =b: want NAME=VALUE"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(words, message):
    with pytest.raises(UsageError) as error:
        parse(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_variables_are_no_part_of_what_is_kept_on_disk():
    asked = parse(["--env", "KEY=hunter2", "--pass-env", "OTHER", "--env", "B=swordfish", "true", "opensesame"])
    assert asked is not None
    kept = repr(asked.compiled_from)
    assert "KEY" in kept
    assert "OTHER" in kept
    assert not any(word in kept for word in ("hunter2", "swordfish", "opensesame"))


@pytest.mark.parametrize(
    "words",
    [
        "-p a",
        "-t 1",
        "--workspace-mode none",
        "--read /a",
        "--write /a",
        "-e A=1",
        "--pass-env A",
        "--allow a.example",
        "--deny a.example",
    ],
)
def test_what_decides_the_plan_is_part_of_it(words):
    with_option, without = parse([*words.split(), "true"]), parse(["true"])
    assert with_option is not None
    assert without is not None
    assert with_option.compiled_from != without.compiled_from


@pytest.mark.parametrize("words", ["-w /w", "-C /d", "--timeout 1", "-q", "--json", "--pool", "--dry-run"])
def test_what_does_not_is_not(words):
    with_option, without = parse([*words.split(), "true", "x"]), parse(["true"])
    assert with_option is not None
    assert without is not None
    assert with_option.compiled_from == without.compiled_from
