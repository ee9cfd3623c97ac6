"""What all commands do alike: errors are sentences, whatever the standard streams are, and names that are no text."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from osmoda.sandbox import command_line
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.verbs import Command
from tests.worlds import SECONDS, World

COMMANDS = ["osmoda-sandbox", "osmoda-egress", "osmoda-ledger", "osmoda-watch"]
# In a shell, with a stream that is not as usual. `left` prints for a reader that has gone before the command begins.
CLOSED, FULL, LEFT = (
    '"$@" >&-',
    '"$@" >/dev/full',
    '{ while [ ! -e left ]; do :; done; "$@"; echo $? >code; } | touch left',
)


class Quiet(Exception):
    """What a room's errors are to the command of that room."""


def carry_out(verb):
    return Command("osmoda-test", command_line.parser, {}.__getitem__, "look", (Quiet,)).carry_out(verb)


def raising(error):
    def verb():
        raise error

    return verb


def test_what_cannot_be_encoded_is_escaped(monkeypatch):
    written = io.BytesIO()
    # As it is in most locales, it refuses what it cannot encode.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))

    def verb():
        print("b\udcff", "ü → \u2713")
        return 3

    with pytest.raises(UnicodeEncodeError):
        verb()
    assert carry_out(verb) == 3
    assert written.getvalue().split() == [rb"b\udcff", rb"\xfc", rb"\u2192", rb"\u2713"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Quiet("b\udcff is not\x1b here"), 125, ["b\\udcff is not\\x1b here"]),
        (OSError(28, "No space left on device"), 125, ["No space left on device"]),
        (FileNotFoundError(2, "No such file or directory", b"b\xff"), 125, ["b\\xff: No such file or directory"]),
        (ProfileError("it is not right", "b\udcff", 3, 1), 125, ["b\\udcff:3:1: it is not right"]),
        (ImportError("libseccomp.so.2: cannot open"), 125, ["libseccomp.so.2: cannot open"]),
        (BrokenPipeError(32, "Broken pipe"), 141, []),
        (KeyboardInterrupt(), 130, []),
        (SystemExit(0), 0, []),
        (SystemExit(None), 0, []),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_a_code(capsys, error, code, said):
    assert carry_out(raising(error)) == code
    assert capsys.readouterr().err.splitlines() == [f"osmoda-test: {line}" for line in said]


def test_a_mistake_of_the_program_s_own_is_none_of_the_caller_s():
    with pytest.raises(ZeroDivisionError):
        carry_out(lambda: 1 // 0)


def run(tmp_path, shell, *words):
    """Exit code, output and errors of a shell that runs a command."""
    argv = ["sh", "-c", shell, "sh", *World.osmoda_argv(*words[1:], command=words[0])]
    return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written(tmp_path, command):
    for shell, reason in ((CLOSED, "Bad file descriptor"), (FULL, "No space left on device")):
        done = run(tmp_path, shell, command, "--version")
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr == f"{command}: the standard output cannot be written: {reason}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_left_is_no_error(tmp_path, command):
    os.mkfifo(tmp_path / "begin")
    done = run(tmp_path, LEFT, command, "--help")
    assert done.stderr == ""
    assert (tmp_path / "code").read_text() == "141\n"


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_errors_that_cannot_be_told_are_still_in_the_exit_code(tmp_path, stream):
    done = run(tmp_path, f'"$@" {stream}', "osmoda-watch", "nope")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "")
