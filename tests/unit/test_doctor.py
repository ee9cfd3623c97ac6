"""How `doctor` judges answers; the real trials are in tests/integration/test_cli_doctor.py."""

from __future__ import annotations

import ast
import errno
import sys
from pathlib import Path

import pytest

from osmoda.sandbox import doctor, trial
from osmoda.sandbox.doctor import Check


def check(status, *, needed=True):
    return Check("layer", "tried", status, "answer", needed)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ((check("active"),), True),
        ((check("active"), check("unavailable", needed=False)), True),
        ((check("active"), check("unavailable")), False),
        ((check("not tried"),), False),
    ],
)
def test_healthy_is_all_that_every_sandbox_needs(checks, expected):
    assert doctor.healthy(checks) is expected


@pytest.mark.parametrize(
    ("found", "status", "answer"),
    [
        ({"file": errno.ENOENT}, "active", "No such file or directory: it is not there"),
        ({"file": 0}, "unavailable", "nothing refused it"),
        # Refused, but not by this layer: that proves nothing about it.
        ({"file": errno.EACCES}, "unavailable", "Permission denied, which is not this layer's doing"),
        ({}, "unavailable", "no answer"),
    ],
)
def test_only_the_layers_own_refusal_counts(found, status, answer):
    question = next(one for one in doctor._CONFINED if one.name == "file")
    judged = doctor._judge(question, found)
    assert (judged.status, judged.answer) == (status, answer)


def test_every_question_can_be_asked():
    for question in doctor._CONFINED:
        assert callable(getattr(trial.Trial, question.name))


def test_what_is_asked_inside_needs_nothing_but_the_standard_library():
    tree = ast.parse(Path(trial.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_the_page_names_each_layer_once_with_its_worst_answer():
    from rich.console import Console

    console = Console(width=100, markup=False, force_terminal=False)
    checks = (
        Check("mounts", "read a file", "active", "not there"),
        Check("mounts", "write to /usr", "unavailable", "nothing refused it", mend="do this"),
        Check("cgroup cpu", "compute", "unavailable", "no cgroup", needed=False, mend="do that"),
    )
    with console.capture() as capture:
        doctor.show(checks, console)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert lines.count("mounts  unavailable") == 1
    assert "  active: read a file: not there" in lines
    assert "    to mend: do this" in lines
    assert "cgroup cpu  unavailable  for profiles that declare such a limit" in lines
    assert lines[-1] == "Something that the tiers need is missing."
