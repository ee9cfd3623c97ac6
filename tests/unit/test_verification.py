"""What a verification says, to a person and to a build server, and which probes a profile makes; without a sandbox."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from osmoda.sandbox.battery import ATTACKS, Answer
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.verification import examine, granted, words
from osmoda.sandbox.verification.examine import (
    DOES_NOT_WORK,
    GOT_THROUGH,
    NO_CONTROL,
    NOT_JUDGED,
    STOPPED,
    WORKS,
    Row,
    Verification,
)
from osmoda.sandbox.verification.rounds import Round
from tests.compiled import compiled


def row(verdict: str, title: str = "an attack") -> Row:
    return Row("attack", "paths", title, verdict, "mounts", "agent.toml:3", "openat: ENOENT", "it worked")


def test_what_fails_a_verification() -> None:
    """Not to know is not to hold; a row without a control is no reason either way."""
    for verdict in (STOPPED, WORKS, NO_CONTROL):
        assert Verification("agent", 2, (row(STOPPED), row(verdict))).holds
    for verdict in (GOT_THROUGH, DOES_NOT_WORK, NOT_JUDGED):
        assert not Verification("agent", 2, (row(STOPPED), row(verdict))).holds


class NoScene:
    """Enough of a scene for controls that cannot be made."""

    def facts(self, *, inside: bool) -> dict[str, object]:
        return {"inside": inside}

    def daemon(self, *, inside: bool) -> str:
        return f"no such daemon {inside:d}"


def cannot(*_: object) -> Round:
    raise LaunchError("it ended with 1")


def test_controls_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a user namespace may be missing, and only to an ordinary user; then the rows have no control, and say so."""
    plain = next(name for name, attack in ATTACKS.items() if not attack.privileged)
    privileged = next(name for name, attack in ATTACKS.items() if attack.privileged)
    tasks = [(plain, ()), (privileged, ())]

    def works(*_: object) -> Round:
        return Round({0: Answer("gained", "it")})

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = examine.control({False: works, True: cannot}, tasks, NoScene())
    assert [found[index].kind for index in range(2)] == ["gained", "absent"]
    with pytest.raises(LaunchError):
        examine.control({False: cannot, True: works}, tasks, NoScene())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(LaunchError):
        examine.control({False: works, True: cannot}, tasks, NoScene())


def test_the_report_for_a_build_server() -> None:
    """Names of files may hold anything."""
    rows = (row(STOPPED, "read /a\x1b[2J&<b>\udc80"), row(NO_CONTROL), row(GOT_THROUGH), row(NOT_JUDGED))
    suite = ET.fromstring(words.junit(Verification('a"<', 2, rows)))
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "skipped": "1",
    }
    cases = suite.findall("testcase")
    assert "&<b>" in cases[0].get("name", "")
    assert cases[2].find("failure").get("message") == "got through"


def test_the_matrix_names_holes_and_where_they_are() -> None:
    console = Console(width=100, force_terminal=False, record=True)
    with console.capture() as captured:
        words.show(Verification("agent", 1, (row(STOPPED), row(GOT_THROUGH)), ("one thing",)), console)
    text = captured.get()
    assert "openat: ENOENT (agent.toml:3)" in text
    assert "one thing" in text
    assert "does not hold" in text


def test_the_probes_of_a_profile(tmp_path: Path) -> None:
    """What is expected comes from the profile's own words; deny wins, also among names."""
    for name in ("in", "in/.env", "beside"):
        (tmp_path / name).mkdir()
    profile, _ = compiled(
        f"""
        tier = 1
        [filesystem]
        read = ["{tmp_path}/in"]
        deny = ["{tmp_path}/in/.env"]
        [network]
        allow = ["api.example.com", "*.wild.example:80,443", "10.0.0.0/8:5432"]
        deny = ["bad.wild.example"]
        serve = [8081]
        loopback = false
        """
    )
    found = {(probe.attack, probe.arguments[0], probe.allowed) for probe in granted.probes(profile, b"")}
    assert found >= {
        ("read-path", f"{tmp_path}/in", True),
        ("write-path", f"{tmp_path}/in", False),
        ("read-path", f"{tmp_path}/in/.env", False),
        ("read-path", f"{tmp_path}/beside", False),
        ("resolve", "api.example.com", True),
        ("resolve", "osmoda-verify.api.example.com", False),
        ("resolve", "osmoda-verify.wild.example", True),
        ("resolve", "wild.example", False),
        ("connect", "10.0.0.1", True),
        ("connect", "bad.wild.example", False),
        ("serve", 8081, True),
        ("serve", 5000, False),
    }
    assert ("read-path", f"{tmp_path}/beside", True) not in found
    asking, _ = compiled('tier = 1\n[network]\nallow = ["api.example.com"]\nask = true')
    assert all(probe.allowed for probe in granted.probes(asking, b"") if probe.attack in ("resolve", "connect"))


def test_what_was_not_tried_is_said() -> None:
    profile, plan = compiled('tier = 1\n[tools]\nallow = ["file_*"]\n[process]\nmemory = "8G"\npids = 4000')
    text = "\n".join(granted.notes(profile, plan))
    for part in ("[tools]", "process.memory", "process.pids"):
        assert part in text
